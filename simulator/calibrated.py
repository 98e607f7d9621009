"""What a calibration changes of a machine's forecast: constants that only runs show, the band, and where it ends."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from flopcast.simulator.constants import default_constants
from flopcast.simulator.measured import Measured
from flopcast.simulator.model import Model
from flopcast.simulator.operation import Array
from flopcast.simulator.plan import Plans
from flopcast.simulator.profile import Calibration


@dataclass(frozen=True)
class MachineConstant:
    """A constant that a profile cannot see: its range, its value expected before any run, and what it means."""

    low: float
    high: float
    prior: float
    unit: str
    meaning: str


# In a profile everything runs by itself; these four say what happens when it runs together.
MACHINE_CONSTANTS: Mapping[str, MachineConstant] = MappingProxyType(
    {
        "compute_scale": MachineConstant(
            0.5, 3.0, 1.0, "factor", "computation in a training step over the same alone: caches, casts, copies, clocks"
        ),
        "dispatch_scale": MachineConstant(
            0.25, 16.0, 1.0, "factor", "host time per listed kernel in a training step over that of a tiny layer alone"
        ),
        "overlap_leak": MachineConstant(
            0.0, 1.0, 0.45, "share of the shorter of the two", "what is exposed of communication beside computation"
        ),
        "straggler": MachineConstant(
            0.0, 0.3, 0.02, "share of the step", "deviation between ranks, who wait for the slowest"
        ),
    }
)  # fmt: skip

# What a calibration's runs are described by: outside their least and most, the forecast is an extrapolation.
QUANTITIES: Mapping[str, tuple[str, Callable[[Model, Plans], Array]]] = MappingProxyType(
    {
        "num_gpus": ("GPUs", lambda model, plans: np.asarray(plans.num_gpus, dtype=np.float64)),
        "num_parameters": ("parameters", lambda model, plans: np.asarray(float(model.num_parameters))),
        "tokens_per_pass": (
            "tokens per GPU and pass",
            lambda model, plans: np.asarray(plans.micro_batch * plans.seq_len / plans.cp, dtype=np.float64),
        ),
        "seq_len": ("tokens per sequence", lambda model, plans: np.asarray(plans.seq_len, dtype=np.float64)),
    }
)  # fmt: skip
# The band reaches no further from the forecast than this factor, or than the runs' own: beyond it says nothing.
MOST_WIDENED = 10.0
# Beyond a range by less than this factor is still inside it: repeats of a size are not the same size.
TOLERANCE = 1.01


def with_constants(measured: Measured, values: Mapping[str, float]) -> Measured:
    """The measurements with machine constants applied; names as in MACHINE_CONSTANTS."""
    scale = values.get("dispatch_scale", 1.0)
    default = default_constants()
    constants = dict(measured.constants)
    for name in ("launch_s", "collective_launch_s", "inner_launch_s"):
        constants[name] = scale * constants.get(name, getattr(default, name))
    if "overlap_leak" in values:
        constants |= dict.fromkeys(("nvlink_leak", "network_leak"), values["overlap_leak"])
    return replace(
        measured,
        compute_scale=values.get("compute_scale", measured.compute_scale),
        dispatch_s=scale * measured.dispatch_s,
        constants=constants,
        straggler=values.get("straggler", measured.straggler),
    )


@dataclass(frozen=True)
class Calibrated:
    """Where a machine was calibrated: least and most of each of QUANTITIES, and the band of the runs left out.

    ``band``: the 10 % and 90 % quantiles of log(measured / predicted), None where too few runs were left out to know.
    """

    ranges: Mapping[str, tuple[float, float]]
    band: tuple[float, float] | None
    num_runs: int

    @classmethod
    def of(cls, calibration: Calibration) -> "Calibrated":
        """From the section of a profile."""
        ranges = {name: (ends[0], ends[1]) for name, ends in calibration.ranges.items() if name in QUANTITIES}
        band = None if calibration.band is None else (calibration.band[0], calibration.band[1])
        return cls(ranges, band, len(calibration.runs))

    def doublings_outside(self, model: Model, plans: Plans) -> Array:
        """How far each plan lies outside: the most doublings beyond the range of any quantity, 0 inside."""
        outside = np.zeros(1)
        for name, (least, most) in self.ranges.items():
            value = QUANTITIES[name][1](model, plans)
            beyond = np.maximum(np.log2(least / TOLERANCE / value), np.log2(value / (most * TOLERANCE)))
            outside = np.maximum(outside, beyond)
        return np.asarray(np.maximum(outside, 0.0))

    def widened(self, published: tuple[Array, Array], model: Model, plans: Plans) -> tuple[Array, Array]:
        """Factors on the step time: the runs' band, or the published one, wider by its width for each doubling out.

        No wider than :data:`MOST_WIDENED` either way, unless it is so to begin with.
        """
        logs = tuple(np.log(factor) for factor in published) if self.band is None else self.band
        wider = 1 + self.doublings_outside(model, plans)
        most = np.log(MOST_WIDENED)
        low, high = (np.exp(np.clip(wider * log, np.minimum(log, -most), np.maximum(log, most))) for log in logs)
        return np.asarray(low + 0 * published[0]), np.asarray(high + 0 * published[1])

    def notes(self, model: Model, plans: Plans) -> list[str]:
        """One sentence for each quantity that some plan has outside the calibrated range."""
        found = []
        for name, (least, most) in self.ranges.items():
            words, value_of = QUANTITIES[name]
            values = np.atleast_1d(value_of(model, plans))
            found += [
                f"{value:,.0f} {words}: outside the {self.num_runs} runs calibrated on ({least:,.0f} to {most:,.0f}), "
                f"so the band is wider, at most {MOST_WIDENED:g} times the forecast and as much below"
                for value in (float(values.min()), float(values.max()))
                if not least / TOLERANCE <= value <= most * TOLERANCE
            ]
        return list(dict.fromkeys(found))
