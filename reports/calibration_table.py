"""A calibration as its reader sees it: how good the fit is, what was fitted, where it holds."""

import math
from collections.abc import Iterator

from flopcast.reports.calibration import Calibrating
from flopcast.simulator.calibrated import MACHINE_CONSTANTS, QUANTITIES
from flopcast.simulator.profile import FittedConstant
from flopcast.simulator.units import format_seconds

# Of a constant's range: the fit never quite reaches an end.
NEAR = 0.01


def lines(found: Calibrating) -> Iterator[str]:
    """The runs with their errors, the constants with their deviations, the range and the band."""
    section = found.section()
    width = max(len(run.name) for run in found.runs)
    yield f"{'run':<{width}}   measured   profile alone   fitted   left out"
    before = found.before_s / found.measured_s - 1
    fitted = found.fit.predicted_s / found.measured_s - 1
    for run, alone, inside, left in zip(found.runs, before, fitted, found.left_out_errors, strict=True):
        outside = "-" if left != left else f"{left:+.1%}"
        errors = f"{alone:>+13.1%}   {inside:>+6.1%}   {outside:>8}"
        yield f"{run.name:<{width}}   {format_seconds(run.step_s):>8}   {errors}"
    yield ""
    for name, constant in section.constants.items():
        meaning = MACHINE_CONSTANTS[name].meaning
        value, ends = f"{constant.value:.3g} +- {constant.deviation:.2g}", f"{constant.low:g} to {constant.high:g}"
        yield f"{name} = {value} ({ends}): {meaning}"
        if _is_cut_off(constant):
            yield f"{name} lies at its bound: the profile does not describe these runs"
    for pair, correlation in section.correlations.items():
        yield f"correlation of {pair}: {correlation:+.2f}"
    yield ""
    for name, (least, most) in section.ranges.items():
        span, unit = " to ".join(dict.fromkeys((f"{least:,.0f}", f"{most:,.0f}"))), QUANTITIES[name][0]
        yield f"calibrated for {span} {unit.removesuffix('s') if span == '1' else unit}"
    yield "beyond these, a forecast says so and its band widens"
    if section.band is None:
        yield "too few runs to leave one out: the band is that of published runs"
    else:
        low, high = (math.expm1(log) for log in section.band)
        yield f"80 % band from the runs left out: {low:+.0%} to {high:+.0%}"


def _is_cut_off(constant: FittedConstant) -> bool:
    """Whether the runs asked for more than the range holds; no share is below nothing or above all."""
    width = constant.high - constant.low
    ends = [end for end in (constant.low, constant.high) if not (constant.unit.startswith("share") and end in (0, 1))]
    return any(abs(constant.value - end) < NEAR * width for end in ends)
