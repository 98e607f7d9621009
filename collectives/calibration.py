"""Fits a machine to its own rows: launch and hops from small messages, rates from large ones.

The result is a :class:`Fabric` whose ``_scale`` fields correct the global constants for this machine. The piecewise
fit beside it knows nothing of NCCL: a latency and a rate per range of sizes, with what they leave unexplained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from flopcast.collectives.cost import Floats
from flopcast.collectives.group import Fabric, Group
from flopcast.errors import InputError

# Seconds of every row on a machine: a collective's ``cost(...).time_s`` with its constants bound.
TimeModel: TypeAlias = Callable[[Floats, Group, Fabric], Floats]

# Launching differs between one process for all GPUs and one per GPU, and between CPUs, by about this much.
LAUNCH_RANGE = (0.25, 2.5)
HOP_RANGE = (0.02, 50.0)
RATE_RANGE = (0.2, 1.3)
LARGE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Calibration:
    """A machine's fabric and the relative residual, forecast over measured minus 1, of every row it was fitted to."""

    fabric: Fabric
    residuals: Floats


@dataclass(frozen=True)
class PiecewiseFit:
    """T = alpha_k + S / B_k for sizes up to ``edges[k]``, and each row's relative residual."""

    edges: Floats
    alpha_s: Floats
    bytes_per_s: Floats
    residuals: Floats

    def time_s(self, tensor_bytes: Floats | float) -> Floats:
        """Seconds by the piece that the size falls into."""
        size = np.asarray(tensor_bytes, dtype=np.float64)
        piece = np.minimum(np.searchsorted(self.edges, size), len(self.edges) - 1)
        return np.asarray(self.alpha_s[piece] + size / self.bytes_per_s[piece])


def fit_alpha(tensor_bytes: Floats, time_s: Floats, group: Group, fabric: Fabric, model: TimeModel) -> Fabric:
    """``fabric`` with the launch time, and between nodes the hops, that its smallest rows show.

    The launch takes up the gap as far as launching can plausibly differ (``LAUNCH_RANGE``); what is left is laid
    on the hops between nodes. Each is where the median relative residual of the rows is nearest zero.
    """
    size, measured = _rows(tensor_bytes, time_s)
    launched = _best(size, measured, group, fabric, model, "launch_scale", LAUNCH_RANGE)
    if not np.all(group.num_nodes > 1):
        return launched
    return _best(size, measured, group, launched, model, "hop_scale", HOP_RANGE)


def calibrate(tensor_bytes: Floats, time_s: Floats, group: Group, fabric: Fabric, model: TimeModel) -> Calibration:
    """``fabric`` with latencies from the rows up to 1 MiB and the rate from those of 256 MiB and more.

    The rate corrected is that of the NICs where the group spans nodes, else that of NVLink. A kind of row that is
    missing leaves its scale as it was.
    """
    size, measured = _rows(tensor_bytes, time_s)
    small, large = size <= 2**20, size >= LARGE_BYTES
    found = fabric
    between = bool(np.all(group.num_nodes > 1))
    for _ in range(3):
        if small.any():
            found = fit_alpha(size[small], measured[small], group, found, model)
        if large.any():
            name = "nic_scale" if between else "nvlink_scale"
            found = _best(size[large], measured[large], group, found, model, name, RATE_RANGE)
    return Calibration(found, np.asarray(model(size, group, found) / measured - 1))


def fit_piecewise(tensor_bytes: Floats, time_s: Floats, edges: Sequence[float]) -> PiecewiseFit:
    """Latency and rate of each range of sizes, by least squares of the relative error.

    ``edges`` are the upper ends of the ranges, increasing; rows above the last one belong to it. A range with one
    row has no latency of its own, and one with none takes over its neighbour's below.
    """
    size, measured = _rows(tensor_bytes, time_s)
    ends = np.asarray(edges, dtype=np.float64)
    if ends.size == 0 or np.any(np.diff(ends) <= 0):
        raise InputError(f"edges is {list(edges)}: give increasing sizes in bytes")
    piece = np.minimum(np.searchsorted(ends, size), len(ends) - 1)
    alpha, slope = np.zeros(len(ends)), np.zeros(len(ends))
    for k in range(len(ends)):
        mine = piece == k
        if not mine.any():
            alpha[k], slope[k] = (alpha[k - 1], slope[k - 1]) if k else (measured.min(), 0.0)
            continue
        alpha[k], slope[k] = _line(size[mine], measured[mine])
    rate = 1 / np.maximum(slope, 1e-18)
    fit = PiecewiseFit(ends, alpha, rate, np.zeros(0))
    return replace(fit, residuals=fit.time_s(size) / measured - 1)


def _line(size: Floats, measured: Floats) -> tuple[float, float]:
    """Non-negative latency and slope that minimise the relative squared error."""
    if size.size == 1:
        return 0.0, float(measured[0] / max(size[0], 1.0))
    design = np.stack([1 / measured, size / measured], axis=1)
    alpha, slope = np.linalg.lstsq(design, np.ones(size.size), rcond=None)[0]
    if slope < 0:
        return float(size.size / np.sum(1 / measured)), 0.0
    if alpha < 0:
        return 0.0, float(np.sum(size / measured) / np.sum((size / measured) ** 2))
    return float(alpha), float(slope)


def _rows(tensor_bytes: Floats, time_s: Floats) -> tuple[Floats, Floats]:
    size = np.atleast_1d(np.asarray(tensor_bytes, dtype=np.float64))
    measured = np.atleast_1d(np.asarray(time_s, dtype=np.float64))
    if size.size == 0:
        raise InputError("no rows to fit to: give at least one measured size")
    if size.shape != measured.shape:
        raise InputError(f"{size.size} sizes but {measured.size} times: give one time per size")
    if not np.all((measured > 0) & np.isfinite(measured)):
        raise InputError("time_s holds a value that is not a positive number of seconds: drop that row")
    return size, measured


def _best(
    size: Floats,
    measured: Floats,
    group: Group,
    fabric: Fabric,
    model: TimeModel,
    name: str,
    bounds: tuple[float, float],
) -> Fabric:
    """``fabric`` with one scale where the median of log(forecast / measured) is nearest zero, by bisection."""
    low, high = (float(np.log(bound)) for bound in bounds)

    def median(log_scale: float) -> float:
        return float(np.median(np.log(model(size, group, _scaled(fabric, name, log_scale)) / measured)))

    rising = median(high) >= median(low)
    for _ in range(40):
        middle = (low + high) / 2
        if (median(middle) > 0) == rising:
            high = middle
        else:
            low = middle
    return _scaled(fabric, name, (low + high) / 2)


def _scaled(fabric: Fabric, name: str, log_scale: float) -> Fabric:
    changes: dict[str, Any] = {name: float(np.exp(log_scale))}
    return replace(fabric, **changes)


__all__ = ["Calibration", "PiecewiseFit", "calibrate", "fit_alpha", "fit_piecewise"]
