"""Pipeline schedules in closed form: the longest chain of passes that wait for each other.

The chain goes down the stages with the first micro-batch, along one stage with all of them, and up with the last. It
leaves that stage for those behind it where they take longer than what the stage does meanwhile: while the first
micro-batch is on its way to the end and back, and the last one. Which stage it keeps to is a matter of trying the
first, the last of the fullest ones between, and the last.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator.broadcast import largest
from flopcast.simulator.operation import Array
from flopcast.simulator.overlap import Passing, Waits
from flopcast.simulator.plan import Plans


@dataclass(frozen=True)
class Sent:
    """Seconds that a send takes of its stage: to one in the same node, and to one in another; alike without either.

    ``spared``: what the sends of the stages between the first and the last take less than as many of the mean.
    """

    near: Array
    far: Array
    spared: Array

    @property
    def mean(self) -> Array:
        """Of the first and the last stage of a node each way: one neighbour is in it, the other in the next."""
        return np.asarray((self.near + self.far) / 2)


@dataclass(frozen=True)
class Stage:
    """Seconds of one micro-batch on one stage, what it waits out of its sends included.

    Zero bubble runs ``weight``, the gradients of the weights, apart; elsewhere it is 0 and ``backward`` the whole.
    ``waits``: what it waits besides for gathers and reductions where they do not fall into a wait for a micro-batch.
    """

    forward: Array
    backward: Array
    weight: Array
    waits: Waits

    @property
    def way(self) -> Array:
        """What a micro-batch waits for on its way forward and back."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Layers:
    """How the layers lie on the p stages of each plan.

    ``num_full`` stages between the first and the last have as many as the fullest, ``num_short`` of them one less.
    ``first_chunk``, ``last_chunk``: what of a full stage's layers the first and the last of its v model chunks
    have, and by how much the last stage's last is ``shorter``. ``longer``: by so many full stages' layers one round of
    chunks, not the last, is longer before the last stage than on it. ``uneven``: of whole rounds, some of which have a
    layer more than others, what every further p micro-batches wait for, in full stages' layers.
    """

    num_full: NDArray[np.int64]
    num_short: NDArray[np.int64]
    first_chunk: Array
    last_chunk: Array
    shorter: Array
    longer: Array
    uneven: Array


@dataclass(frozen=True)
class Pipeline:
    """The p stages of each plan: the ``first``, those like ``middle`` and ``short`` between, and the ``last``.

    ``short`` is None where no plan has such a stage. ``head``: seconds of ``last`` beyond its layers. ``latency``:
    seconds from the end of a pass to the start of the next stage's, beside what the sender waits. ``passing``: what
    gathers and reductions hold a micro-batch up on a stage that waits for it. ``sends``: forward and backward.
    """

    first: Stage
    middle: Stage
    short: Stage | None
    last: Stage
    layers: Layers
    head: Array
    latency: Array
    passing: Passing
    sends: dict[str, Sent]

    def full(self, way: str) -> Array:
        """Seconds of one micro-batch on the full stages between, and what the sends of all between take less."""
        less = sum((self.sends[d].spared for d in ("forward", "backward") if way in (d, "way")), np.zeros(1))
        return np.asarray(self.layers.num_full * getattr(self.middle, way) - less)

    def between(self, way: str) -> Array:
        """Seconds of one micro-batch on all stages between the first and the last: "forward", "backward" or "way"."""
        of_full = self.full(way)
        if self.short is None:
            return of_full
        return np.asarray(of_full + self.layers.num_short * getattr(self.short, way))


def _forward(stage: Stage) -> Array:
    """Seconds of any forward pass but the step's first, its waits included."""
    return stage.forward + stage.waits.later


def _backward(stage: Stage) -> Array:
    """Seconds of any backward pass but the step's last, its waits included."""
    return stage.backward + stage.waits.backward + stage.waits.reduce


def gpipe(pipeline: Pipeline, plans: Plans) -> Array:
    """The sum of F + (m-1) max F + sum B + (m-1) max B: a flow shop forward, and one backward (arXiv:1811.06965)."""
    first, middle, last = pipeline.first, pipeline.middle, pipeline.last
    full = pipeline.layers.num_full > 0

    def pace(of: Callable[[Stage], Array], sent: Sent) -> Array:
        """Of all micro-batches one way: the slowest stage's, which may send to another node."""
        ends = np.maximum(of(first), of(last))
        return np.where(full, np.maximum(ends, of(middle) + sent.far - sent.mean), ends)

    forward, backward = pace(_forward, pipeline.sends["forward"]), pace(_backward, pipeline.sends["backward"])
    down, up = (getattr(first, way) + pipeline.between(way) for way in ("forward", "backward"))
    down = down + (plans.pp - 1) * pipeline.passing.first
    up = up + (plans.pp - 1) * pipeline.passing.last
    opening = np.maximum(first.waits.first, last.waits.first - down)
    closing = np.maximum(first.waits.reduce_last, last.waits.reduce_last - up)
    ends = opening + np.maximum(first.waits.backward, last.waits.backward) + closing
    return np.asarray(down + last.way + up + (plans.grad_accum - 1) * (forward + backward) + ends)


def one_forward_one_backward(pipeline: Pipeline, plans: Plans) -> Array:
    """The longest over stages q of sum_{i<q} (F+B) + m (F_q+B_q) + [S - n F_q]+ + [S - n B_q]+ (arXiv:2104.04473, 2.2).

    S = sum_{i>q} (F+B), the way to the end and back, while stage q runs n = min(p-1-q, m-1) forwards, or backwards.
    Even stages: (m + p - 1) (F+B). ZB-H1 runs its backwards without the weights' gradients W, of which stage s puts s
    off (arXiv:2401.10241, 2.1), so that W too goes on while the last micro-batch is away; after its last B stage q has
    min(m, q+1) W left, which the way up to the first stage and its one W may outlast. Even stages with F, B > W:
    m (F+B+W) + (p-1) (F+B-W).
    """
    first, middle, last = pipeline.first, pipeline.middle, pipeline.last
    p, m, passing = plans.pp, plans.grad_accum, pipeline.passing
    going, coming = passing.first + passing.back, passing.later + passing.last

    def along(stage: Stage, index: NDArray[np.int64] | Array, behind: Array) -> Array:
        """All micro-batches on stage ``index``, and the way of the first and the last through those behind it."""
        waits = stage.waits
        forward, backward = stage.forward + waits.later, stage.backward + waits.backward
        weight = stage.weight
        if waits.apart:
            weight = weight + waits.reduce
        else:
            backward = backward + waits.reduce
        num_behind = p - 1 - index
        n = np.minimum(num_behind, m - 1)
        put_off = np.clip(m - 1 - index, 0, n) * weight
        first_away = np.maximum(behind + num_behind * going - n * forward, 0.0)
        last_away = np.maximum(behind + num_behind * coming - n * backward - put_off, 0.0)
        both = np.where(m - 1 > num_behind, first_away + last_away, np.maximum(first_away, last_away))
        own = m * (stage.forward + stage.backward + stage.weight) + waits.backward
        return (own if np.all(m == 1) else own + (m - 1) * waits.further) + both

    def ways(stage: Stage, index: NDArray[np.int64] | Array, down: Array, up: Array) -> Array:
        """To that stage and from it back to the first, or as long as its own gradients take.

        What opens the stage's first pass, and what closes its last one, may be over meanwhile.
        """
        waits = stage.waits
        down, up = down + index * passing.first, up + index * passing.last
        opened = np.maximum(down + first.waits.first, waits.first)
        if waits.apart:
            left = np.minimum(m, index + 1) * (stage.weight + waits.reduce)
            return opened + waits.reduce_last + np.maximum(up + first.weight + first.waits.reduce - left, 0.0)
        closing = np.maximum(first.waits.reduce_last - passing.last, 0.0)
        return opened + np.maximum(waits.reduce_last, passing.last + up + closing)

    full = pipeline.layers.num_full
    after_middle = last.way
    if pipeline.short is not None:
        after_middle = after_middle + pipeline.layers.num_short * pipeline.short.way
    after_first = pipeline.between("way") + last.way
    to_middle = [getattr(first, way) + pipeline.full(way) - getattr(middle, way) for way in ("forward", "backward")]
    to_last = [getattr(first, way) + pipeline.between(way) for way in ("forward", "backward")]
    by_middle = np.asarray(along(middle, full, after_middle) + ways(middle, full, *to_middle))
    by_last = along(last, p - 1, 0.0 * last.forward) + ways(last, p - 1, *to_last)
    by_first = along(first, 0 * p, after_first) + first.waits.first + first.waits.reduce_last
    return largest([by_first, np.where(full > 0, by_middle, 0.0), by_last])


def interleaved(pipeline: Pipeline, plans: Plans) -> Array:
    """1F1B with v chunks per stage: the way to the last stage and back is that of one chunk (arXiv:2104.04473, 2.2).

    Before and after the steady state a micro-batch goes round all stages v - 1 times, p passes of one chunk or p sends'
    latency longer. Even stages: m (F+B) + (p-1) (F+B) / v. In the steady state a stage has (v+1) p passes of chunks
    under way, and chunk k of v waits for its backward during k p of ((F+B) / v + 2 L): by Little's law a micro-batch
    takes at least (F+B) / 2 + v L.
    """
    first, middle, last = pipeline.first, pipeline.middle, pipeline.last
    p, m, v = plans.pp, plans.grad_accum, plans.virtual_pp
    latency, passing = pipeline.latency, pipeline.passing
    late = (m - p) * np.maximum(v * latency - middle.way / 2, 0.0)
    hops = passing.first + passing.last
    embedding = first.way - middle.way

    def to(index: NDArray[np.int64] | Array) -> Array:
        """The way of the first chunk to a stage, and back."""
        chunks = index * (middle.way * pipeline.layers.first_chunk)
        return np.asarray(chunks + embedding + index * (hops / v + 2 * latency))

    def behind(index: NDArray[np.int64] | Array, stage: Stage) -> Array:
        """What the way of the last chunk to the end and back gains over the stage's own passes meanwhile."""
        num_behind = p - 1 - index
        chunks = num_behind * pipeline.layers.last_chunk - pipeline.layers.shorter
        away = middle.way * chunks + pipeline.head + num_behind * (2 * latency + hops / v)
        # So many passes of the warm-up remain when the first micro-batch comes to the last chunk.
        n = np.minimum(2 * num_behind, (m - p) * v + p - 1) / v
        waits = stage.waits
        going = np.maximum(away - n * (stage.forward + waits.later), 0.0)
        coming = np.maximum(away - n * (stage.backward + waits.backward + waits.reduce), 0.0)
        return np.asarray(np.where(m > p, going + coming, np.maximum(going, coming)))

    waits = last.waits
    forth = passing.first - waits.later - np.maximum(waits.first - waits.later, 0.0) / p
    back = passing.last - waits.backward - waits.reduce - np.maximum(waits.reduce_last - waits.reduce, 0.0) / p
    rounds = np.maximum(forth + v * latency, 0.0) + np.maximum(back + v * latency, 0.0)

    by_first = m * first.way + first.waits.of(m) + behind(plans.zeros, first)
    full = pipeline.layers.num_full
    steady = m * middle.way + middle.waits.of(m)
    by_middle = np.where(full > 0, to(full) + (v - 1) * p / v * rounds + steady + behind(full, middle), 0.0)
    on_last = m * last.way + waits.of(m)
    if np.any(pipeline.layers.uneven):
        again = np.maximum(m / p - 1.5, 0.0) * pipeline.layers.uneven * middle.way
        on_last = np.where(again > 0, np.maximum(on_last, steady + again), on_last)
    longer = pipeline.layers.longer * (middle.way + middle.waits.further)
    by_last = to(p - 1) + (v - 1) * p / v * rounds + longer + on_last
    return np.asarray(np.maximum(np.maximum(by_first, by_middle), by_last) + late)


# Seconds from the first forward to the end of the last reduction.
SCHEDULES: dict[str, Callable[[Pipeline, Plans], Array]] = {
    "gpipe": gpipe,
    "1f1b": one_forward_one_backward,
    "zero-bubble": one_forward_one_backward,
    "interleaved": interleaved,
}
