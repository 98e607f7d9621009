"""The fit of a machine's few constants to its own runs: what happens only when everything runs together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import t as student_t

from flopcast.errors import InputError, nearest
from flopcast.reports.machine_runs import MachineRun
from flopcast.simulator.batch import Batch, Case
from flopcast.simulator.calibrated import MACHINE_CONSTANTS, QUANTITIES, with_constants
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.forecast import machine_constants, with_waiting
from flopcast.simulator.measured import Measured
from flopcast.simulator.operation import Array
from flopcast.simulator.plan import Plans
from flopcast.simulator.profile import Calibration, CalibrationRun, FittedConstant

# Runs repeat to about two hundredths; a constant is expected within a quarter of its range around its prior (of its
# logarithm's range where it is a factor).
RUN_DEVIATION = 0.02
PRIOR_WIDTH = 0.25
# The share of runs that a band holds.
COVERAGE = 0.8
FEWEST_FOR_BAND = 3  # runs left out
PROFILED_DTYPE = "bf16"  # as the trainer's settings name it


@dataclass(frozen=True)
class Fit:
    """Constants fitted to runs: values, standard deviations and correlations [K, K], and predictions of the runs."""

    names: tuple[str, ...]
    values: Array
    deviations: Array
    correlations: Array
    predicted_s: Array

    @property
    def constants(self) -> dict[str, float]:
        """Values by name."""
        return dict(zip(self.names, self.values.tolist(), strict=True))


@dataclass(frozen=True)
class Calibrating:
    """A fit to all runs, and each run's forecast by a fit to the others (not-a-number where those were too few)."""

    runs: tuple[MachineRun, ...]
    before_s: Array
    fit: Fit
    left_out_s: Array

    @property
    def measured_s(self) -> Array:
        """Measured seconds per step."""
        return np.array([run.step_s for run in self.runs])

    @property
    def left_out_errors(self) -> Array:
        """Predicted over measured minus 1 of each run, left out."""
        return np.asarray(self.left_out_s / self.measured_s - 1)

    def section(self) -> Calibration:
        """What a profile carries."""
        constants = {
            name: FittedConstant(
                value=float(value),
                deviation=float(deviation),
                low=MACHINE_CONSTANTS[name].low,
                high=MACHINE_CONSTANTS[name].high,
                unit=MACHINE_CONSTANTS[name].unit,
            )
            for name, value, deviation in zip(self.fit.names, self.fit.values, self.fit.deviations, strict=True)
        }
        pairs = [(i, j) for i in range(len(constants)) for j in range(i)]
        rows = zip(self.runs, self.fit.predicted_s.tolist(), self.left_out_s.tolist(), strict=True)
        return Calibration(
            constants=constants,
            correlations={
                f"{self.fit.names[j]}, {self.fit.names[i]}": float(self.fit.correlations[i, j]) for i, j in pairs
            },
            ranges=ranges(self.runs),
            runs=[
                CalibrationRun(
                    name=run.name,
                    measured_step_s=run.step_s,
                    predicted_step_s=predicted,
                    left_out_step_s=None if np.isnan(left_out) else left_out,
                )
                for run, predicted, left_out in rows
            ],
            band=band(self.measured_s, self.left_out_s),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def calibrate(
    runs: Sequence[MachineRun], cluster: Cluster, names: Sequence[str] | None = None, device: str = ""
) -> Calibrating:
    """Fit constants to runs on a measured cluster, and again with each run left out in turn.

    ``names``: which of MACHINE_CONSTANTS, by default those that the runs can tell apart. ``device``: what the profile
    measured. Raises InputError for runs of another device or dtype, fewer runs than constants, and an unmeasured
    cluster.
    """
    if cluster.measured is None:
        raise InputError(f"cluster '{cluster.name}' was not measured; give --cluster the file of flopcast profile")
    for run in runs:
        if run.device not in (device, cluster.gpu.name):
            raise InputError(
                f"run '{run.name}' is of '{run.device}' and the profile of '{device}'; calibrate on runs of the same "
                "device"
            )
        if run.dtype not in ("", PROFILED_DTYPE):  # logs of earlier versions do not say
            raise InputError(
                f"run '{run.name}' was computed in {run.dtype}, while profile and forecasts are of {PROFILED_DTYPE}; "
                f'calibrate on runs with plan.dtype = "{PROFILED_DTYPE}"'
            )
    chosen = _chosen(runs, cluster.measured, names)
    if len(runs) < len(chosen):
        raise InputError(
            f"{len(runs)} run{'s' * (len(runs) != 1)} cannot set {len(chosen)} constants ({', '.join(chosen)}); give "
            "at least as many runs, or name fewer with --constants"
        )
    whole = fit(runs, cluster, chosen)
    left_out = np.full(len(runs), np.nan)
    if len(runs) - 1 >= len(chosen):
        for place, run in enumerate(runs):
            others = [other for other in runs if other is not run]
            left_out[place] = predicted_s([run], cluster, fit(others, cluster, chosen, whole.constants).constants)[0]
    return Calibrating(tuple(runs), predicted_s(runs, cluster, {}), whole, left_out)


def _chosen(runs: Sequence[MachineRun], measured: Measured, names: Sequence[str] | None) -> tuple[str, ...]:
    """The constants named, or those that such runs tell apart on such a machine."""
    if names:
        for name in names:
            if name not in MACHINE_CONSTANTS:
                raise InputError(f"--constants holds '{name}'; {nearest(name, list(MACHINE_CONSTANTS))}")
        return tuple(dict.fromkeys(names))
    ranks = {run.plan.num_gpus for run in runs}
    chosen = ["compute_scale"]
    if not measured.dispatch_s:  # on a CPU launches were timed with the work
        chosen.append("dispatch_scale")
    if max(ranks) > 1 and "nvlink_leak" not in measured.constants:
        chosen.append("overlap_leak")
    if len(ranks) > 1:
        chosen.append("straggler")
    return tuple(chosen)


def predicted_s(runs: Sequence[MachineRun], cluster: Cluster, constants: Mapping[str, float]) -> Array:
    """Forecast seconds per step of each run with these machine constants."""
    return _forecasts(runs, cluster)(constants)


def _forecasts(runs: Sequence[MachineRun], cluster: Cluster) -> Callable[[Mapping[str, float]], Array]:
    """:func:`predicted_s` as a function of the constants; what happens in each run is listed once."""
    measured = cluster.measured
    assert measured is not None
    batch = Batch.of([Case(run.model, cluster, run.plan) for run in runs])
    shares = np.array([run.share_of_step for run in runs])

    def predicted(constants: Mapping[str, float]) -> Array:
        machine = replace(cluster, measured=with_constants(measured, constants))
        step = with_waiting(batch.on(machine).step_time(machine_constants(machine)), batch.plans, machine)
        return np.asarray(step.total * shares)

    return predicted


def fit(
    runs: Sequence[MachineRun], cluster: Cluster, names: Sequence[str], start: Mapping[str, float] | None = None
) -> Fit:
    """Bounded least squares of log(predicted / measured), each constant held near its prior as runs that repeat allow.

    min sum((log p_i - log t_i) / s)^2 + sum((x_k - x0_k) / w)^2 over low <= x <= high, with x the logarithm where
    the constant is a factor; covariance (J^T J)^-1 at the minimum. ``start``: where to begin, by default the priors.
    """
    entries = [MACHINE_CONSTANTS[name] for name in names]
    logarithmic = np.array([entry.low > 0 for entry in entries])
    measured = np.array([run.step_s for run in runs])

    def inner(values: Array) -> Array:
        return np.where(logarithmic, np.log(np.where(logarithmic, values, 1.0)), values)

    def outer(position: Array) -> Array:
        return np.where(logarithmic, np.exp(position), position)

    assert cluster.measured is not None
    predicted = _forecasts(runs, cluster)
    expected = [e.prior for e in entries]
    low, high, prior = (
        inner(np.array(ends)) for ends in ([e.low for e in entries], [e.high for e in entries], expected)
    )
    width = PRIOR_WIDTH * (high - low)

    def residuals(position: Array) -> Array:
        constants = dict(zip(names, outer(position).tolist(), strict=True))
        errors = np.log(predicted(constants) / measured) / RUN_DEVIATION
        return np.concatenate([errors, (position - prior) / width])

    steps = [1e-4] * len(entries)
    begin = inner(np.array([start[name] for name in names])) if start else prior
    inside = np.clip(begin, low + 1e-3 * (high - low), high - 1e-3 * (high - low))
    solution = least_squares(residuals, inside, bounds=(low, high), diff_step=steps, x_scale=high - low, max_nfev=60)
    jacobian = np.asarray(solution.jac, dtype=np.float64)
    covariance = np.linalg.inv(jacobian.T @ jacobian)
    spreads = np.sqrt(np.diag(covariance))
    values = outer(solution.x)
    return Fit(
        names=tuple(names),
        values=values,
        deviations=np.where(logarithmic, values * spreads, spreads),
        correlations=covariance / np.outer(spreads, spreads),
        predicted_s=predicted(dict(zip(names, values.tolist(), strict=True))),
    )


def ranges(runs: Sequence[MachineRun]) -> dict[str, list[float]]:
    """Least and most of each quantity that describes a run."""
    found = {}
    for name, (_, value_of) in QUANTITIES.items():
        values = [float(np.atleast_1d(value_of(run.model, Plans.of([run.plan])))[0]) for run in runs]
        found[name] = [min(values), max(values)]
    return found


def band(measured_s: Array, left_out_s: Array) -> list[float] | None:
    """The 10 % and 90 % quantiles of log(measured / predicted) for one more run, from n runs each left out.

    Prediction interval of n normal residuals about 0: +- t(0.9; n) rms sqrt(1 + 1/n), with Student's t of n degrees of
    freedom. None for fewer than three runs.
    """
    logs: NDArray[np.float64] = np.log(measured_s / left_out_s)
    number = len(logs)
    if number < FEWEST_FOR_BAND or np.isnan(logs).any():
        return None
    rms = float(np.sqrt(np.mean(logs**2)))
    half = float(student_t.ppf(0.5 + COVERAGE / 2, number)) * rms * (1 + 1 / number) ** 0.5
    return [-half, half]
