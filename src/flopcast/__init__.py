"""Forecasts what a language-model training run costs on a GPU cluster, explains the forecast, and proves it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flopcast.errors import InputError
    from flopcast.simulator.catalogue import load_cluster, load_model
    from flopcast.simulator.cluster import Cluster
    from flopcast.simulator.compare import Request, compare
    from flopcast.simulator.forecast import Forecast, forecast
    from flopcast.simulator.model import Model
    from flopcast.simulator.plan import Plan, Plans
    from flopcast.simulator.search import SearchRequest, search

# Each public name and where it lives; imported on first use, so that `flopcast --help` loads none of them.
_HOMES = {
    "Cluster": "flopcast.simulator.cluster",
    "Forecast": "flopcast.simulator.forecast",
    "InputError": "flopcast.errors",
    "Model": "flopcast.simulator.model",
    "Plan": "flopcast.simulator.plan",
    "Plans": "flopcast.simulator.plan",
    "Request": "flopcast.simulator.compare",
    "SearchRequest": "flopcast.simulator.search",
    "compare": "flopcast.simulator.compare",
    "forecast": "flopcast.simulator.forecast",
    "load_cluster": "flopcast.simulator.catalogue",
    "load_model": "flopcast.simulator.catalogue",
    "search": "flopcast.simulator.search",
}
__all__ = [
    "Cluster",
    "Forecast",
    "InputError",
    "Model",
    "Plan",
    "Plans",
    "Request",
    "SearchRequest",
    "compare",
    "forecast",
    "load_cluster",
    "load_model",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'flopcast' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
