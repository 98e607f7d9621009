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


def band(plans: Plans, gpus_per_node: NDArray[np.int64] | int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factors on the step time that bound 80 % of comparable measured runs."""
    quantiles = np.exp(np.array([residual_quantiles()[name] for name in REGIMES]))
    chosen = quantiles[regime(plans, gpus_per_node)]
    return chosen[:, 0], chosen[:, 1]
