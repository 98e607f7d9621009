"""Pipeline schedules in closed form: the longest chain of passes that wait for each other.

The chain goes down the stages with the first micro-batch, along one stage with all of them, and up with the last. It
leaves that stage for those behind it where they take longer than what the stage does meanwhile: while the first
micro-batch is on its way to the end and back, and the last one. Which stage it keeps to is a matter of trying the
first, the last of the fullest ones between, and the last.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flopcast.simulator.broadcast import largest
from flopcast.simulator.operation import Array
from flopcast.simulator.plan import Plans


@dataclass(frozen=True)
class Stage:
    """Seconds of one micro-batch on one stage, what it waits out of its sends included.

    ``backward`` is the whole of it; zero bubble runs ``weight``, the gradients of the weights, apart from ``inputs``.
    """

    forward: Array
    backward: Array
    inputs: Array
    weight: Array


@dataclass(frozen=True)
class Pipeline:
    """The p stages of each plan: ``first``, ``num_full`` like ``middle``, ``num_short`` with ``short`` of it, ``last``.

    ``head``: forward and backward seconds of ``last`` beyond its layers. ``latency``: seconds from the end of a pass
    to the start of the next stage's, beside what the sender waits.
    """

    first: Stage
    middle: Stage
    last: Stage
    num_full: Array
    num_short: Array
    short: Array
    head: Array
    latency: Array

    @property
    def between(self) -> Array:
        """The middle stages, counted in full ones."""
        return np.asarray(self.num_full + self.short * self.num_short)


def step_seconds(pipeline: Pipeline, plans: Plans) -> Array:
    """Seconds from the first forward to the end of the last backward of m micro-batches, where pp is above 1."""
    found: Array | None = None
    for schedule, chain in CHAINS.items():
        here = plans.has(schedule=schedule)
        if np.any(here):
            spent = chain(pipeline, plans)
            found = spent if found is None else np.where(here, spent, found)
    assert found is not None
    return found


def gpipe(pipeline: Pipeline, plans: Plans) -> Array:
    """sum F + (m-1) max F + sum B + (m-1) max B: a flow shop forward, and one backward (arXiv:1811.06965)."""
    first, middle, last = pipeline.first, pipeline.middle, pipeline.last
    once = first.forward + first.backward + last.forward + last.backward
    once = once + pipeline.between * (middle.forward + middle.backward)
    full = pipeline.num_full > 0
    slowest = [
        largest([getattr(first, way), getattr(last, way), np.where(full, getattr(middle, way), 0.0)])
        for way in ("forward", "backward")
    ]
    return np.asarray(once + (plans.grad_accum - 1) * (slowest[0] + slowest[1]))


def one_forward_one_backward(pipeline: Pipeline, plans: Plans) -> Array:
    """max over stages q of sum_{i<q} (F+B) + m (F_q+B_q) + [S - n F_q]+ + [S - n B_q]+ (arXiv:2104.04473, 2.2).

    S = sum_{i>q} (F+B), the way to the end and back; n = p-1-q forwards of the first n stages' warm-up or backwards of
    their cool-down pass meanwhile. Even stages: (m + p - 1) (F+B).
    """
    first, middle, last, p, m = pipeline.first, pipeline.middle, pipeline.last, plans.pp, plans.grad_accum
    to_last = last.forward + last.backward
    to_middle = middle.forward + middle.backward
    behind_middle = pipeline.short * pipeline.num_short * to_middle + to_last
    behind_first = pipeline.between * to_middle + to_last
    before_last = first.forward + first.backward + pipeline.between * to_middle

    def along(stage: Stage, behind: Array, num_behind: Array) -> Array:
        n = np.minimum(num_behind, m - 1)
        detours = _detours(behind - n * stage.forward, behind - n * stage.backward, m - 1 > num_behind)
        return np.asarray(m * (stage.forward + stage.backward) + detours)

    before_middle = first.forward + first.backward + (pipeline.num_full - 1) * to_middle
    by_middle = before_middle + along(middle, behind_middle, pipeline.num_short + 1)
    return largest(
        [
            along(first, behind_first, p - 1),
            np.where(pipeline.num_full > 0, by_middle, 0.0),
            before_last + m * to_last,
        ]
    )


def interleaved(pipeline: Pipeline, plans: Plans) -> Array:
    """1F1B with v chunks per stage: the way to the last stage and back is that of one chunk (arXiv:2104.04473, 2.2).

    Before and after the steady state a micro-batch goes round all stages v - 1 times, p passes of one chunk or p sends'
    latency longer. Even stages: m (F+B) + (p-1) (F+B) / v.
    """
    first, middle, last = pipeline.first, pipeline.middle, pipeline.last
    p, m, v = plans.pp, plans.grad_accum, plans.virtual_pp
    of_middle = (middle.forward + middle.backward) / v
    of_last = (last.forward + last.backward - pipeline.head) / v + pipeline.head
    embedding = first.forward + first.backward - middle.forward - middle.backward
    hops = 2 * (p - 1) * pipeline.latency
    behind = pipeline.between * of_middle + of_last + hops
    n = np.minimum(2 * (p - 1), (m - p) * v + p - 1)
    detours = _detours(behind - n * first.forward / v, behind - n * first.backward / v, m > p)
    along_first = m * (first.forward + first.backward) + detours
    before = (1 + pipeline.between) * of_middle + embedding + hops
    rounds = 2 * (v - 1) * p * pipeline.latency
    return np.maximum(along_first, before + rounds + m * (last.forward + last.backward))


def zero_bubble(pipeline: Pipeline, plans: Plans) -> Array:
    """ZB-H1: as 1F1B with B without the weights' gradients W, of which stage s puts s off (arXiv:2401.10241, 2.1).

    After its last B stage q has min(m, q+1) W left, which the way up to the first stage and its one W may outlast. Even
    stages with F, B > W: m (F+B+W) + (p-1) (F+B-W).
    """
    first, middle, last, p, m = pipeline.first, pipeline.middle, pipeline.last, plans.pp, plans.grad_accum
    to_last = last.forward + last.inputs
    to_middle = middle.forward + middle.inputs
    behind_middle = pipeline.short * pipeline.num_short * to_middle + to_last
    behind_first = pipeline.between * to_middle + to_last

    def along(stage: Stage, behind: Array, index: Array, num_behind: Array) -> Array:
        n = np.minimum(num_behind, m - 1)
        among = np.minimum(n, np.maximum(m - 1 - index, 0))
        way_up = behind - n * stage.inputs - among * stage.weight
        return _detours(behind - n * stage.forward, way_up, m - 1 > num_behind) + m * (
            stage.forward + stage.inputs + stage.weight
        )

    def tail(stage: Stage, way_up: Array, index: Array) -> Array:
        return np.maximum(way_up + first.weight - np.minimum(m, index + 1) * stage.weight, 0.0)

    full = pipeline.num_full - 1
    by_middle = (
        *(first.forward + full * middle.forward, along(middle, behind_middle, full + 1, pipeline.num_short + 1)),
        tail(middle, first.inputs + full * middle.inputs, full + 1),
    )
    by_last = (
        *(first.forward + pipeline.between * middle.forward, m * (to_last + last.weight)),
        tail(last, first.inputs + pipeline.between * middle.inputs, p - 1),
    )
    return largest(
        [
            along(first, behind_first, 0 * p, p - 1),
            np.where(pipeline.num_full > 0, sum(by_middle), 0.0),
            np.asarray(sum(by_last)),
        ]
    )


def _detours(going: Array, coming: Array, apart: Array) -> Array:
    """What a chain gains by leaving its stage with the first micro-batch and with the last, or one if they overlap."""
    going, coming = np.maximum(going, 0.0), np.maximum(coming, 0.0)
    return np.where(apart, going + coming, np.maximum(going, coming))


CHAINS: dict[str, Callable[[Pipeline, Plans], Array]] = {
    "1f1b": one_forward_one_backward,
    "gpipe": gpipe,
    "interleaved": interleaved,
    "zero-bubble": zero_bubble,
}
