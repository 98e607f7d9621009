"""The fit of the global constants to all published runs together: robust, bounded, every source counted alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from flopcast.reports.runs import Run
from flopcast.simulator.batch import Batch, Case
from flopcast.simulator.constants import Constants, Entry, default_constants, entries
from flopcast.simulator.operation import Array

# Residuals of log time beyond this count linearly, not squared: some published rows are wrong by tens of per cent.
ROBUST_SCALE = 0.06
# One standard deviation of the prior on a constant, as a share of its range: what no run constrains stays put.
PRIOR_WIDTH = 0.5


@dataclass(frozen=True)
class RunSet:
    """Runs that can be forecast, their operations built once."""

    runs: tuple[Run, ...]
    batch: Batch

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "RunSet":
        """The runs that are not skipped."""
        kept = tuple(run for run in runs if not run.skipped)
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

    def log_errors(self, constants: Constants | None = None) -> Array:
        """log(predicted / measured)."""
        return np.log(self.predicted_s(constants) / self.measured_s)


def _parts(run: Run) -> tuple:  # type: ignore[type-arg]
    assert run.model is not None
    assert run.cluster is not None
    assert run.plan is not None
    return run.model, run.cluster, run.plan


def source_weights(sources: np.ndarray, used: np.ndarray) -> Array:
    """Each source's rows share a weight that grows with the square root of their number, up to 40 rows."""
    weights = np.zeros(len(sources))
    for source in np.unique(sources):
        rows = (sources == source) & used
        if rows.any():
            weights[rows] = np.sqrt(min(rows.sum(), 40) / rows.sum())
    return weights


def fit(runs: RunSet, used: np.ndarray | None = None, start: Constants | None = None) -> Constants:
    """The fitted constants, from the rows where ``used`` (all where None)."""
    used = np.ones(len(runs.runs), dtype=bool) if used is None else used
    free = [entry for entry in entries() if entry.fitted and not entry.name.startswith(("reserved", "allocator"))]
    start = start or default_constants()
    weights = source_weights(runs.sources, used)
    low, high = np.array([e.low for e in free]), np.array([e.high for e in free])
    initial = (np.array([getattr(start, e.name) for e in free]) - low) / (high - low)
    residuals = _residuals(runs, free, start, weights, low, high, initial)
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


def _residuals(
    runs: RunSet,
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


def leave_one_out(runs: RunSet, groups: np.ndarray) -> Array:
    """log(predicted / measured) of every run by constants fitted without its group."""
    errors = np.zeros(len(runs.runs))
    for group in np.unique(groups):
        inside = groups == group
        errors[inside] = runs.log_errors(fit(runs, ~inside))[inside]
    return errors
