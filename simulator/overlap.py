"""What of a pass's communication its computation hides, and what running side by side costs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator.busy_links import Links
from flopcast.simulator.constants import Constants
from flopcast.simulator.operation import Array
from flopcast.simulator.plan import Plans


class Compute:
    """The computation of one pass, with the shares of it that links carry data meanwhile.

    ``layer``: seconds of one of its layers; ``end``: of what stands at the end that the head is at, which is the head
    itself or a layer.
    """

    def __init__(self, seconds: Array, constants: Constants, layer: Array, end: Array) -> None:
        self.seconds, self.layer, self.end = seconds, layer, end
        self.nvlink = constants.nvlink_share * seconds
        self.network = constants.network_share * seconds


class Overlap:
    """Collectives beside the computation of one pass.

    E + max(0, C - s T) + leak min(C / s, T): the ends E have nothing to hide behind; of the rest C, what goes on beside
    the computation T has the share s of NVLink or the network that the step leaves it, what is left over has all of
    it. Of two links the one that slows the computation more counts. Without prefetch nothing is hidden, and with it no
    more is exposed than without. ``unused``: seconds in which a link has nothing to carry beside a pass's computation,
    in each of several passes and in one of them besides.
    """

    def __init__(
        self,
        links: Links,
        compute: Compute,
        prefetch: NDArray[np.int64],
        constants: Constants,
        unused: Callable[[], tuple[Array, Array]] | None = None,
    ) -> None:
        self.alone = self.contention = links.alone
        self._any = links.any
        if not links.any:
            return
        inside = np.maximum(links.inside - links.end_inside, 0.0)
        between = np.maximum(links.between - links.end_between, 0.0)
        self._compute_s = compute.seconds
        self._beside = (
            (constants.nvlink_leak, inside / constants.nvlink_share, links.end_inside / constants.nvlink_share),
            (constants.network_leak, between / constants.network_share, links.end_between / constants.network_share),
        )
        self.contention = self._lost(0)
        self._unused = unused
        self._left = np.maximum(inside - compute.nvlink, between - compute.network)
        self._ends, self._root = links.end_inside + links.end_between, links.root
        # Without prefetch the smaller of this and what they take alone is the latter.
        self._unhidden = np.where(prefetch > 0, 0.0, np.inf)

    def exposed(self, num_passes: NDArray[np.int64] | int = 1) -> Array:
        """Seconds that the computation does not hide, spread over so many passes, each with ends of its own."""
        if not self._any:
            return self.alone
        ends = self._ends if isinstance(num_passes, int) else self._root + (self._ends - self._root) * num_passes
        left = self._left + self._ends + self._unhidden
        if self._unused is not None:
            each, once = self._unused()
            left = left + (num_passes * each + once)
        overlapped = np.maximum(left, ends) + self.slowed(num_passes)
        return np.asarray(np.minimum(overlapped, self.alone))

    def slowed(self, num_passes: NDArray[np.int64] | int = 1) -> Array:
        """What the computation loses to them: of several passes, the ends of each have none beside them to slow."""
        if not self._any or isinstance(num_passes, int):
            return self.contention
        return self._lost(num_passes - 1)

    def _lost(self, further_passes: NDArray[np.int64] | int) -> Array:
        lost = (
            leak * np.clip(seconds - further_passes * end, 0.0, self._compute_s) for leak, seconds, end in self._beside
        )
        return np.asarray(np.maximum(*lost))

    def within(self, num_passes: NDArray[np.int64] | int = 1) -> Array:
        """The same as :meth:`exposed` where what opens a pass falls into a wait before it."""
        if not self._any:
            return self.alone
        left = self._left if isinstance(num_passes, int) else self._left - (num_passes - 1) * self._ends
        return np.asarray(np.minimum(np.maximum(left, 0.0) + self._unhidden + self.slowed(num_passes), self.alone))


def exposed_beside(links: Links, compute: Compute, constants: Constants) -> Array:
    """Seconds of collectives left over beside other micro-batches' computation, no layer of which waits for them."""
    inside_pass = links.of_layers(1.0, at_end=False)
    return Overlap(inside_pass, compute, np.ones(1, dtype=np.int64), constants).exposed()


@dataclass(frozen=True)
class Waits:
    """Seconds that a stage waits for gathers and reductions in one pass: in the first forward, in any other, and so on.

    ``apart``: the reductions are those of zero bubble's pass of weight gradients.
    """

    first: Array
    later: Array
    backward: Array
    reduce: Array
    reduce_last: Array
    apart: bool

    @property
    def further(self) -> Array:
        """Those of every micro-batch but the step's first forward and last backward."""
        return np.asarray(self.later + self.backward + self.reduce)

    def of(self, num_micro_batches: NDArray[np.int64]) -> Array:
        """Those of a step of so many micro-batches."""
        once = self.first + self.backward + self.reduce_last
        return once if np.all(num_micro_batches == 1) else np.asarray(once + (num_micro_batches - 1) * self.further)


@dataclass(frozen=True)
class Passing:
    """Seconds that gathers and reductions hold up a micro-batch on its way through a stage that waits for it.

    ``first``: the step's first on its way forward; ``later``: any other; ``back``: backward; ``last``: the step's last,
    backward. The way back is slowed by the reductions beside it, or waits for them where nothing overlaps.
    """

    first: Array
    later: Array
    back: Array
    last: Array


@dataclass(frozen=True)
class Traffic:
    """A stage's gathers in the first forward, another one and a backward; its reductions, and those in the last."""

    first: Links
    later: Links
    backward: Links
    reduce: Links
    reduce_last: Links


@dataclass(frozen=True)
class Passes:
    """The computation beside a stage's gathers and reductions.

    ``inputs`` runs beside the backward gathers and ``weight`` beside the reductions; but for zero bubble they are the
    same backward pass, whose gathers and reductions then run side by side.
    """

    forward: Compute
    inputs: Compute
    weight: Compute

    @property
    def apart(self) -> bool:
        """Whether the gradients of the weights have a pass of their own."""
        return self.weight is not self.inputs


class Communication:
    """A stage's gathers and reductions beside its computation."""

    def __init__(self, traffic: Traffic, passes: Passes, plans: Plans, constants: Constants) -> None:
        self._apart = passes.apart
        # Parameters that stay gathered are there before the micro-batch is.
        self._sharded = plans.parameter_shard > 1
        self._prefetch = plans.prefetch > 0

        known: dict[tuple[int, int], Overlap] = {}

        def overlap(
            links: Links,
            compute: Compute,
            prefetch: NDArray[np.int64] = plans.prefetch,
            unused: Callable[[], tuple[Array, Array]] | None = None,
        ) -> Overlap:
            key = (id(links), id(compute))
            if key not in known:
                known[key] = Overlap(links, compute, prefetch, constants, unused)
            return known[key]

        # What only the update has changed may have to be there before anything starts.
        opening = np.where(plans.overlap_update | self._sharded, plans.prefetch, 0)

        backward = traffic.backward

        def unused(compute: Compute, links: Links, *apart: Links) -> tuple[Array, Array]:
            """The layer at one end of a pass hides no gather, that at the other no reduction.

            What only one of them is beside, ``apart`` holds.
            """
            share = np.where(links.inside > links.between, constants.nvlink_share, constants.network_share)
            share = share * self._sharded
            layer = each = share * compute.layer
            if apart:
                part = compute.layer / compute.seconds
                each = sum((np.maximum(layer - other.alone * part, 0.0) for other in apart), plans.zeros)
            return each, share * (compute.end - compute.layer)

        def of_sharded(compute: Compute, links: Links, *apart: Links) -> Callable[[], tuple[Array, Array]] | None:
            return partial(unused, compute, links, *apart) if np.any(self._sharded) else None

        forward = passes.forward
        self._first = overlap(traffic.first, forward, opening, of_sharded(forward, traffic.first))
        self._later = overlap(traffic.later, forward, unused=of_sharded(forward, traffic.later))
        self._backward = overlap(backward, passes.inputs)
        self._reductions = self._all = overlap(traffic.reduce, passes.weight)
        self._reductions_last = self._all_last = overlap(traffic.reduce_last, passes.weight)
        if not passes.apart:
            both = backward + traffic.reduce
            last = both if traffic.reduce_last is traffic.reduce else backward + traffic.reduce_last
            idle = of_sharded(passes.inputs, both, backward, traffic.reduce)
            self._all = self._all_last = overlap(both, passes.inputs, unused=idle)
            if last is not both:
                # What follows a reduction, on another link, runs on beside all layers.
                nothing_more = traffic.reduce_last.alone == traffic.reduce.alone
                self._all_last = overlap(last, passes.inputs, unused=idle and partial(_where, nothing_more, idle))

    def waits(self, num_chunks: NDArray[np.int64] | int) -> Waits:
        """What the stage itself waits for in a pass of so many model chunks."""
        backward, reduce, last = (o.exposed(num_chunks) for o in (self._backward, self._all, self._all_last))
        if not self._apart:
            reduce, last = reduce - backward, last - backward
        first, later = self._first.exposed(num_chunks), self._later.exposed(num_chunks)
        return Waits(first, later, backward, reduce, last, self._apart)

    def passing(self, num_chunks: NDArray[np.int64] | int) -> Passing:
        """What holds up a micro-batch on its way through the stage, when that waits for it."""
        slowed = last = np.where(self._prefetch, self._reductions.slowed(num_chunks), 0.0)
        if self._reductions_last is not self._reductions:
            last = np.where(self._prefetch, self._reductions_last.slowed(num_chunks), 0.0)
        if not np.any(self._sharded):
            none = 0.0 * self._later.alone
            return Passing(none, none, none, none) if self._apart else Passing(none, none, slowed, last)
        first, later, back = (
            self._if_sharded(overlap.within(num_chunks), 0.0) for overlap in (self._first, self._later, self._backward)
        )
        if self._apart:
            return Passing(first, later, back, back)
        # The next layer waits for the first reduction of the one before it, not for what follows in the last backward.
        reduce = self._if_sharded(self._all.within(num_chunks), slowed)
        if self._reductions_last is self._reductions:
            return Passing(first, later, reduce, reduce)
        alone = self._if_sharded(self._reductions_last.alone - self._reductions.alone, 0.0)
        return Passing(first, later, reduce, reduce + np.where(self._prefetch, last - slowed, alone))

    def _if_sharded(self, held_up: Array, else_: Array | float) -> Array:
        return held_up if np.all(self._sharded) else np.where(self._sharded, held_up, else_)


def _where(condition: NDArray[np.bool_], unused: Callable[[], tuple[Array, Array]]) -> tuple[Array, Array]:
    each, once = unused()
    return condition * each, condition * once
