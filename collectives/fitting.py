"""Fits the constants to measured rows, and says how well they forecast rows that they were not fitted to.

Robust least squares (soft L1) of log(forecast / measured) over out-of-place rows of at least 1 KiB. Launching
differs with how a benchmark was started, so every series has a launch time of its own, drawn to a common one; a
forecast from specifications alone uses the median of those seen at small messages. Every other constant is held
inside its plausible range and drawn to the middle of it, so that one without rows is a guess, not an accident.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
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
RANGE_WEIGHT = 0.1
LAUNCH_WEIGHT = 0.33
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
    bare = replace(given.table, fabric=replace(given.table.fabric, launch_scale=1e-12))
    bare = _subset(bare, np.flatnonzero(use))
    measured, bins = given.measured_s[use], given.bins[use]
    weight = BIN_WEIGHTS[bins] / np.bincount(place)[place] ** 0.25
    low = np.log([FITTED[name].low for name in _FREE])
    high = np.log([FITTED[name].high for name in _FREE])
    middle, spread = (low + high) / 2, (high - low) / 4
    launch_middle = float(np.log(np.sqrt(FITTED["launch_s"].low * FITTED["launch_s"].high)))
    count = len(_FREE)

    def without_launch(x: Floats) -> Floats:
        values = dict(zip(_FREE, np.exp(x[:count]), strict=True))
        return times(bare, replace(DEFAULT, **values))

    def residuals_of(without: Floats, x: Floats) -> Floats:
        launch = np.exp(x[count:])
        return np.concatenate(
            [
                np.log((without + launch[place]) / measured) * weight,
                RANGE_WEIGHT * (x[:count] - middle) / spread,
                LAUNCH_WEIGHT * (x[count:] - launch_middle),
            ]
        )

    def residuals(x: Floats) -> Floats:
        return residuals_of(without_launch(x), x)

    def jacobian(x: Floats) -> Floats:
        without, step = without_launch(x), 1e-3
        base = residuals_of(without, x)
        matrix = np.zeros((base.size, x.size))
        for k in range(count):
            moved = x.copy()
            # Step inwards at the upper end of a range.
            moved[k] += step if x[k] + step < high[k] else -step
            matrix[:, k] = (residuals(moved) - base) / (moved[k] - x[k])
        # Launching adds to every candidate alike, hence to the time.
        launch = np.exp(x[count:])
        matrix[np.arange(measured.size), count + place] = weight * launch[place] / (without + launch[place])
        matrix[measured.size + count + np.arange(names.size), count + np.arange(names.size)] = LAUNCH_WEIGHT
        return matrix

    start = np.concatenate([middle, np.full(names.size, launch_middle)])
    bounds = (np.concatenate([low, np.full(names.size, -np.inf)]), np.concatenate([high, np.full(names.size, np.inf)]))
    found = least_squares(
        residuals, start, jacobian, bounds, loss="soft_l1", f_scale=ROBUST_SCALE, max_nfev=40, xtol=1e-4, ftol=1e-4
    ).x
    values = dict(zip(_FREE, np.exp(found[:count]), strict=True))
    small = np.unique(place[bins == 0])
    launch_s = float(np.exp(np.median(found[count:][small]))) if small.size else float(np.exp(launch_middle))
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


def as_source(constants: Constants) -> str:
    """The fields as they stand in :mod:`flopcast.collectives.constants`, to three digits."""
    return "\n".join(f"    {name}: float = {value:.3g}" for name, value in asdict(constants).items())


def _subset(table: Table, keep: NDArray[np.int64]) -> Table:
    return Table(
        table.collective[keep],
        table.tensor_bytes[keep],
        rows_of(table.group, keep),
        rows_of(table.fabric, keep),
        table.algorithm[keep],
        table.skip_reason[keep],
    )
