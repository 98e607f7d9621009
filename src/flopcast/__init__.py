"""Forecasts what a language-model training run costs on a GPU cluster, explains the forecast, and proves it."""

from typing import TYPE_CHECKING, Any

from flopcast.version import __version__ as __version__

if TYPE_CHECKING:
    from flopcast.errors import InputError
    from flopcast.simulator.catalogue import load_cluster, load_model
    from flopcast.simulator.cluster import Cluster
    from flopcast.simulator.compare import Comparison, compare
    from flopcast.simulator.forecast import Forecast, Row, forecast
    from flopcast.simulator.goodput import RunCost, run_cost
    from flopcast.simulator.model import Model
    from flopcast.simulator.plan import Plan, Plans, placement
    from flopcast.simulator.request import Request
    from flopcast.simulator.search import SearchRequest, SearchResult, search

# Each public name and where it lives; imported on first use, so that `flopcast --help` loads none of them.
_HOMES = {
    "Cluster": "flopcast.simulator.cluster",
    "Comparison": "flopcast.simulator.compare",
    "Forecast": "flopcast.simulator.forecast",
    "InputError": "flopcast.errors",
    "Model": "flopcast.simulator.model",
    "Plan": "flopcast.simulator.plan",
    "Plans": "flopcast.simulator.plan",
    "Request": "flopcast.simulator.request",
    "Row": "flopcast.simulator.forecast",
    "RunCost": "flopcast.simulator.goodput",
    "SearchRequest": "flopcast.simulator.search",
    "SearchResult": "flopcast.simulator.search",
    "compare": "flopcast.simulator.compare",
    "forecast": "flopcast.simulator.forecast",
    "load_cluster": "flopcast.simulator.catalogue",
    "load_model": "flopcast.simulator.catalogue",
    "placement": "flopcast.simulator.plan",
    "run_cost": "flopcast.simulator.goodput",
    "search": "flopcast.simulator.search",
}
__all__ = [
    "Cluster",
    "Comparison",
    "Forecast",
    "InputError",
    "Model",
    "Plan",
    "Plans",
    "Request",
    "Row",
    "RunCost",
    "SearchRequest",
    "SearchResult",
    "compare",
    "forecast",
    "load_cluster",
    "load_model",
    "placement",
    "run_cost",
    "search",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'flopcast' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
