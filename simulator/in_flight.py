"""How many micro-batches a pipeline stage holds something of, as its schedule has it."""

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator.operation import Array
from flopcast.simulator.plan import Plans


def micro_batches_in_flight(plans: Plans, stage: NDArray[np.int64] | int = 0) -> Array:
    """Micro-batches whose activations a stage holds at once, right after a forward, in units of its layers.

    1F1B: min(p - stage, m). GPipe: m. Interleaved: the warm-up's 2 (p - stage - 1) + (v-1) p passes of a chunk and one
    more, on the first stage p (1 + (p-1)/(p v)) micro-batches (arXiv:2205.05198, section 4.2.3). Zero bubble (ZB-H1):
    as 1F1B. Where a forward runs together with another micro-batch's backward, one more of a chunk.
    """
    p, m, v = plans.pp, plans.grad_accum, plans.virtual_pp
    more = plans.overlap_expert / v
    one_f_one_b = np.minimum(p - stage, m).astype(np.float64)
    interleaved = np.minimum((2 * (p - stage - 1) + (v - 1) * p + 1) / v + more, m)
    flight = np.select([plans.has(schedule="gpipe"), plans.has(schedule="interleaved")], [m, interleaved], one_f_one_b)
    return np.where(p == 1, 1.0 + more, flight)


def left_in_flight(plans: Plans, stage: NDArray[np.int64] | int) -> Array:
    """The same of zero bubble right after a backward, when most weights' gradients are put off."""
    return np.maximum(np.minimum(plans.pp, plans.grad_accum) - stage - 1.0, 0.0)


def put_off_weights(plans: Plans, stage: NDArray[np.int64] | int) -> tuple[Array, Array]:
    """Micro-batches whose weights' gradients a stage has yet to compute: with :func:`micro_batches_in_flight`, and
    right after a backward with :func:`left_in_flight`, the step's last backward included.

    ZB-H1 puts off those of s micro-batches on stage s, so that every stage holds something of min(p, m): as much as
    1F1B's first stage, if what a put-off gradient needs is no more than an activation (arXiv:2401.10241, 2.1).
    """
    p, m = plans.pp, plans.grad_accum
    present = plans.has(schedule="zero-bubble") & (p > 1)
    nothing = plans.zeros
    forward = np.where(present, np.clip(m - p + stage, 0.0, stage), nothing)
    return forward, np.where(present, np.minimum(stage + 1.0, m), nothing)
