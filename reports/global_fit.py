"""The fit of the global constants to all published runs together: robust, bounded, no source for more than 40 rows."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from flopcast.errors import InputError
from flopcast.files import write_atomically
from flopcast.reports.memory_rows import MemoryRows
from flopcast.reports.runs import Run, read_runs
from flopcast.simulator import band
from flopcast.simulator.batch import Batch, Case
from flopcast.simulator.constants import FILE, Constants, Entry, default_constants, entries
from flopcast.simulator.operation import Array

# Residuals of log time beyond this count linearly, not squared: some published rows are wrong by tens of per cent.
ROBUST_SCALE = 0.06
# One standard deviation of the prior on a constant, as a share of its range: what no run constrains stays put.
PRIOR_WIDTH = 0.15
# No step time depends on them: they are fitted to the runs that state memory, by themselves.
MEMORY_CONSTANTS = ("nccl_bytes", "allocator_slack")
# The share of runs that a band is to hold.
COVERAGE = 0.8


@dataclass(frozen=True)
class RunSet:
    """Runs that can be forecast, their operations built once."""

    runs: tuple[Run, ...]
    batch: Batch

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "RunSet":
        """The runs that are not skipped; InputError where there is none."""
        kept = tuple(run for run in runs if not run.skipped)
        if not kept:
            reason = next((f": {run.id}: {run.skipped}" for run in runs), "")
            raise InputError(f"none of the {len(runs)} runs can be forecast{reason}")
        return cls(kept, Batch.of([Case(*_parts(run)) for run in kept]))

    @property
    def sources(self) -> np.ndarray:
        """The table each run is from."""
        return np.array([run.source for run in self.runs])

    @property
    def frameworks(self) -> np.ndarray:
        """The software each run used."""
        return np.array([run.framework for run in self.runs])

    @property
    def measured_s(self) -> Array:
        """Measured seconds per step."""
        return np.array([run.measured_step_s for run in self.runs])

    def predicted_s(self, constants: Constants | None = None) -> Array:
        """Forecast seconds per step."""
        share = np.array([run.share_of_step for run in self.runs])
        return np.asarray(self.batch.step_time(constants).total * share)

    def log_errors(self, constants: Constants) -> Array:
        """log(predicted / measured)."""
        return np.log(self.predicted_s(constants) / self.measured_s)


def _parts(run: Run) -> tuple:  # type: ignore[type-arg]
    assert run.model is not None
    assert run.cluster is not None
    assert run.plan is not None
    return run.model, run.cluster, run.plan


def source_weights(sources: np.ndarray, used: np.ndarray) -> Array:
    """Factors on residuals, by which a source counts as its rows do, up to 40 of them."""
    weights = np.zeros(len(sources))
    for source in np.unique(sources):
        rows = (sources == source) & used
        if rows.any():
            weights[rows] = np.sqrt(min(rows.sum(), 40) / rows.sum())
    return weights


def fit(
    runs: RunSet,
    used: np.ndarray | None = None,
    start: Constants | None = None,
    held: Mapping[str, float] | None = None,
) -> Constants:
    """The fitted constants, from the rows where ``used`` (all where None); those ``held`` stay at their values."""
    held = held or {}
    free = [entry for entry in entries() if entry.fitted and entry.name not in (*held, *MEMORY_CONSTANTS)]
    return _solve(runs, free, (start or default_constants()).with_values(**held), used)


def _solve(
    runs: "RunSet | MemoryRows", free: Sequence[Entry], start: Constants, used: np.ndarray | None = None
) -> Constants:
    used = np.ones(len(runs.runs), dtype=bool) if used is None else used
    weights = source_weights(runs.sources, used)
    low, high = np.array([e.low for e in free]), np.array([e.high for e in free])
    initial = (np.array([getattr(start, e.name) for e in free]) - low) / (high - low)
    prior = (np.array([e.prior for e in free], dtype=np.float64) - low) / (high - low)
    residuals = _residuals(runs, free, start, weights, low, high, prior)
    solution = least_squares(
        residuals,
        np.clip(initial, 0.01, 0.99),
        bounds=(0, 1),
        loss="soft_l1",
        f_scale=1.0,
        diff_step=[1e-3] * len(free),
        max_nfev=40,
    )
    return start.with_values(**_named(free, low + solution.x * (high - low)))


def fit_memory(runs: Sequence[Run], start: Constants | None = None) -> Constants:
    """The constants with those of memory fitted to the runs that state theirs, each by its source's counter."""
    rows, start = MemoryRows.of(runs), start or default_constants()
    return _solve(rows, [entry for entry in entries() if entry.name in MEMORY_CONSTANTS], start)


def _residuals(
    runs: RunSet | MemoryRows,
    free: Sequence[Entry],
    start: Constants,
    weights: Array,
    low: Array,
    high: Array,
    prior: Array,
) -> Callable[[Array], Array]:
    def residuals(position: Array) -> Array:
        constants = start.with_values(**_named(free, low + position * (high - low)))
        errors = weights * runs.log_errors(constants) / ROBUST_SCALE
        return np.concatenate([errors, (position - prior) / PRIOR_WIDTH])

    return residuals


def _named(free: Sequence[Entry], values: Array) -> dict[str, float]:
    return {entry.name: float(value) for entry, value in zip(free, values, strict=True)}


def leave_one_out(runs: RunSet, groups: np.ndarray, held: Mapping[str, float] | None = None) -> Array:
    """log(predicted / measured) of every run by constants fitted without its group."""
    errors = np.zeros(len(runs.runs))
    for group in np.unique(groups):
        inside = groups == group
        errors[inside] = runs.log_errors(fit(runs, ~inside, held=held))[inside]
    return errors


@dataclass(frozen=True)
class GlobalFit:
    """The constants before and after, and the mean over sources of the median |error|, in sample and left out."""

    runs: RunSet
    before: Constants
    after: Constants
    left_out_errors: Array

    @property
    def in_sample(self) -> float:
        """On the runs the constants were fitted to."""
        return mean_of_medians(self.runs.sources, self.runs.log_errors(self.after))

    @property
    def left_out(self) -> float:
        """On runs of a framework that the constants were fitted without."""
        return mean_of_medians(self.runs.sources, self.left_out_errors)

    def as_json(self) -> dict[str, Any]:
        """The document that ``flopcast calibrate --global --json`` prints; errors are fractions."""
        return {
            "constants": [
                {
                    "name": entry.name,
                    "unit": entry.unit,
                    "low": entry.low,
                    "high": entry.high,
                    "before": float(getattr(self.before, entry.name)),
                    "after": float(getattr(self.after, entry.name)),
                }
                for entry in entries()
                if entry.fitted
            ],
            "num_runs": len(self.runs.runs),
            "error_in_sample": self.in_sample,
            "error_left_out": self.left_out,
        }

    def write(self) -> None:
        """Store the constants and the residuals."""
        write_constants(self.after)
        write_residuals(self.runs, self.left_out_errors)


def calibrate(path: Path) -> GlobalFit:
    """Fit the constants to a table of runs, and again with each framework left out."""
    table = read_runs(path)
    runs = RunSet.of(table)
    after = fit_memory(table, fit(runs))
    return GlobalFit(runs, default_constants(), after, leave_one_out(runs, runs.frameworks))


def mean_of_medians(sources: np.ndarray, log_errors: Array) -> float:
    """Mean over sources of the median |predicted / measured - 1|."""
    sizes = np.abs(np.expm1(log_errors))
    return float(np.mean([np.median(sizes[sources == source]) for source in np.unique(sources)]))


def write_constants(constants: Constants, path: Path = FILE) -> None:
    """Set the values in ``constants.toml`` to four significant digits, leaving all else as it is."""
    text = path.read_text(encoding="utf-8")
    for entry in entries():
        if entry.fitted:
            value = min(max(float(f"{getattr(constants, entry.name):.4g}"), entry.low), entry.high)
            text = re.sub(rf"(\[{entry.name}\]\nvalue = )\S+", rf"\g<1>{value!r}", text)
    write_atomically(path, text.encode())


def write_residuals(runs: RunSet, log_errors: Array, path: Path = band.FILE) -> None:
    """Store the quantiles of log(measured / predicted) that bound the band by regime, every source counted alike.

    A run to come is of a source that is not among the n held, so the band takes in (1 + 1/n) x 80 % of their runs, as
    conformal prediction does for groups (Dunn, Wasserman and Ramdas 2022, arXiv:1809.07441).
    """
    regimes = band.regime(runs.batch.plans, runs.batch.hardware.gpus_per_node)
    parts = [
        "# Quantiles of log(measured / predicted step time) of published runs by constants fitted without the runs'\n"
    ]
    parts.append("# framework, every source counted alike. Written by the global fit.\n")
    for code, name in enumerate(band.REGIMES):
        inside = regimes == code
        number = len(np.unique(runs.sources[inside]))
        outside = max(1 - COVERAGE * (1 + 1 / number), 0.0) / 2
        low, high = weighted_quantiles(-log_errors[inside], runs.sources[inside], (outside, 1 - outside))
        parts.append(f"\n[{name}]\nlow = {low:.4f}\nhigh = {high:.4f}\nnum_runs = {int(inside.sum())}\n")
    write_atomically(path, "".join(parts).encode())


def weighted_quantiles(values: Array, sources: np.ndarray, shares: Sequence[float]) -> list[float]:
    """Quantiles in which the rows of every source together weigh the same."""
    _, where, counts = np.unique(sources, return_inverse=True, return_counts=True)
    weights = 1.0 / counts[where]
    order = np.argsort(values)
    cumulated = (np.cumsum(weights[order]) - 0.5 * weights[order]) / weights.sum()
    return [float(np.interp(share, cumulated, values[order])) for share in shares]
