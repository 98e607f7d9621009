"""The interval around a forecast, from the residuals of published runs that its constants had not seen."""

import tomllib
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator.plan import Plans

FILE = Path(__file__).with_name("residuals.toml")


@cache
def residual_quantiles() -> dict[str, tuple[float, float]]:
    """By regime: the 10 % and 90 % quantiles of log(measured / predicted), each source left out in turn."""
    with FILE.open("rb") as file:
        table = tomllib.load(file)
    return {name: (entry["low"], entry["high"]) for name, entry in table.items()}


def regime(plans: Plans, gpus_per_node: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """0 within a node, 1 between nodes: what the residuals were found to depend on."""
    return np.asarray(plans.num_gpus > gpus_per_node).astype(np.int64)


REGIMES = ("one_node", "many_nodes")
# The 90 % quantile of measured / predicted over the 125 steps of mixtures that NVIDIA publishes, those launched kernel
# by kernel and those replayed by CUDA graphs (docs/models.md): no constant is fitted to them.
MIXTURE_LAUNCHED, MIXTURE_REPLAYED = 1.53, 1.34


def band(
    plans: Plans, gpus_per_node: NDArray[np.int64] | int, mixture: NDArray[np.bool_] | bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factors on the step time that bound 80 % of comparable measured runs; ``mixture``: of models with experts."""
    dense = np.array([residual_quantiles()[name] for name in REGIMES])
    low, high = dense[regime(plans, gpus_per_node)].T
    most = np.log(np.where(plans.has(cuda_graphs="full"), MIXTURE_REPLAYED, MIXTURE_LAUNCHED))
    return np.exp(low), np.exp(np.where(mixture, np.maximum(high, most), high))
