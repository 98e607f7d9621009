"""Fits the constants to measured rows, and says how well they forecast rows that they were not fitted to.

Robust least squares (soft L1) of log(forecast / measured) over out-of-place rows of at least 1 KiB. The rows of a
series are not independent: launching differs with how a benchmark was started, and two machines of one specification
reach different rates. So every series has a launch time and a rate of its own, drawn to common ones, and counts as one
machine, not as its rows. A forecast from specifications uses the median launch time of those seen at small messages,
and the common rate. Every other constant is held inside its plausible range and drawn to the middle of it: a quarter
of the range is its standard deviation. One with few rows is then a published value corrected, one without a guess.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flopcast.collectives.constants import DEFAULT, FITTED, Constants
from flopcast.collectives.cost import Floats
from flopcast.collectives.measured import Table, forecast_rows, read, rows_of, times

BIN_EDGES = (256 * 2**10, 16 * 2**20, 512 * 2**20)
BIN_NAMES = ("< 256 KiB", "256 KiB - 16 MiB", "16 - 512 MiB", ">= 512 MiB")
# The larger a message, the less its time depends on how a benchmark was started: rows weigh accordingly.
BIN_WEIGHTS = np.array([1.0, 1.0, 1.5, 4.0])
ROBUST_SCALE = 0.2
RANGE_WEIGHT = 0.6
LAUNCH_WEIGHT = 0.33
RATE_WEIGHT = 2.0
_FREE = [name for name, entry in FITTED.items() if name != "launch_s" and not entry.source.startswith("assumed")]


@dataclass(frozen=True)
class Rows:
    """The rows of a table that count, with their series, machine class and size bin."""

    columns: dict[str, NDArray[Any]]
    table: Table
    measured_s: Floats
    series: NDArray[np.str_]
    machine: NDArray[np.str_]
    bins: NDArray[np.int64]


def rows(columns: Mapping[str, NDArray[Any]]) -> Rows:
    """Rows out of place, of at least 1 KiB; a machine class is architecture, one node or several, and fabric."""
    size = np.asarray(columns["bytes"], dtype=np.float64)
    keep = (np.asarray(columns["in_place"]) == 0) & (size >= 1024) & (np.asarray(columns["time_us"]) > 0)
    chosen = {name: np.asarray(values)[keep] for name, values in columns.items()}
    table = read(chosen)
    architecture, network = np.asarray(table.fabric.architecture), np.asarray(table.fabric.fabric)
    kinds = zip(architecture, chosen["n_nodes"] > 1, network, strict=True)
    return Rows(
        columns=chosen,
        table=table,
        measured_s=np.asarray(chosen["time_us"], dtype=np.float64) * 1e-6,
        series=np.asarray(chosen["series"], dtype=np.str_),
        machine=np.array([f"{gpu} {fabric if several else 'one node'}" for gpu, several, fabric in kinds]),
        bins=np.digitize(table.tensor_bytes, BIN_EDGES),
    )


def fit(given: Rows, use: NDArray[np.bool_]) -> Constants:
    """The constants that fit the rows of ``use`` best; those of ``given`` outside it are not looked at."""
    from scipy.optimize import least_squares

    names, place = np.unique(given.series[use], return_inverse=True)
    table = _subset(given.table, np.flatnonzero(use))
    measured, bins = given.measured_s[use], given.bins[use]
    weight = BIN_WEIGHTS[bins] / np.bincount(place)[place] ** 0.25
    low = np.log([FITTED[name].low for name in _FREE])
    high = np.log([FITTED[name].high for name in _FREE])
    middle, spread = (low + high) / 2, (high - low) / 4
    launch_middle = float(np.log(np.sqrt(FITTED["launch_s"].low * FITTED["launch_s"].high)))
    count, series = len(_FREE), names.size

    def parts(x: Floats) -> tuple[Floats, Floats, Floats]:
        """The constants, and every series' own launch time and rate."""
        return x[:count], x[count : count + series], x[count + series :]

    def of_rows(x: Floats) -> Floats:
        shared, launch, rate = (np.exp(part) for part in parts(x))
        values = dict(zip(_FREE, shared, strict=True))
        scale = {"launch_scale": launch[place], "nvlink_scale": rate[place], "nic_scale": rate[place]}
        model = times(replace(table, fabric=replace(table.fabric, **scale)), replace(DEFAULT, launch_s=1.0, **values))
        return np.asarray(np.log(model / measured) * weight)

    def residuals(x: Floats) -> Floats:
        shared, launch, rate = parts(x)
        drawn = (RANGE_WEIGHT * (shared - middle) / spread, LAUNCH_WEIGHT * (launch - launch_middle))
        return np.concatenate([of_rows(x), *drawn, RATE_WEIGHT * rate])

    def jacobian(x: Floats) -> Floats:
        base, step = of_rows(x), 1e-3
        matrix = np.zeros((base.size + x.size, x.size))
        np.fill_diagonal(
            matrix[base.size :],
            np.concatenate([RANGE_WEIGHT / spread, np.full(series, LAUNCH_WEIGHT), np.full(series, RATE_WEIGHT)]),
        )
        for k in range(count):
            moved = x.copy()
            # Step inwards at the upper end of a range.
            moved[k] += step if x[k] + step < high[k] else -step
            matrix[: base.size, k] = (of_rows(moved) - base) / (moved[k] - x[k])
        # A row depends on its own series only: one step of all series together tells each of them.
        for begin in (count, count + series):
            moved = x.copy()
            moved[begin : begin + series] += step
            matrix[np.arange(base.size), begin + place] = (of_rows(moved) - base) / step
        return matrix

    start = np.concatenate([middle, np.full(series, launch_middle), np.zeros(series)])
    free = np.full(2 * series, np.inf)
    bounds = (np.concatenate([low, -free]), np.concatenate([high, free]))
    found = least_squares(
        residuals, start, jacobian, bounds, loss="soft_l1", f_scale=ROBUST_SCALE, max_nfev=40, xtol=1e-4, ftol=1e-4
    ).x
    values = dict(zip(_FREE, np.exp(found[:count]), strict=True))
    small = np.unique(place[bins == 0])
    launch_s = (
        float(np.exp(np.median(found[count : count + series][small]))) if small.size else float(np.exp(launch_middle))
    )
    return replace(DEFAULT, **values, launch_s=launch_s)


def leave_out(given: Rows, label: NDArray[np.str_]) -> dict[str, Floats]:
    """Forecasts of every row by constants fitted without the rows of its label, from specifications and calibrated."""
    spec, calibrated = np.full(given.measured_s.shape, np.nan), np.full(given.measured_s.shape, np.nan)
    for name in np.unique(label):
        out = label == name
        constants = fit(given, ~out)
        mine = {key: values[out] for key, values in given.columns.items()}
        spec[out] = forecast_rows(mine, constants)[0]
        calibrated[out] = forecast_rows(mine, constants, calibrated=True)[0]
    return {"specifications": spec, "calibrated": calibrated}


def errors(forecast_s: Floats, given: Rows) -> list[float]:
    """Mean |forecast / measured - 1| in each bin of ``BIN_NAMES``."""
    relative = np.abs(forecast_s / given.measured_s - 1)
    return [float(np.mean(relative[given.bins == k])) for k in range(len(BIN_NAMES))]


def _subset(table: Table, keep: NDArray[np.int64]) -> Table:
    return Table(
        table.collective[keep],
        table.tensor_bytes[keep],
        rows_of(table.group, keep),
        rows_of(table.fabric, keep),
        table.algorithm[keep],
        table.skip_reason[keep],
    )
