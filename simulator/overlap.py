"""What of a pass's communication its computation hides, and what running side by side costs."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator.broadcast import Sum
from flopcast.simulator.constants import Constants
from flopcast.simulator.operation import Array
from flopcast.simulator.plan import Plans


class Compute:
    """The computation of one pass, with the shares of it that links carry data meanwhile."""

    def __init__(self, seconds: Array, constants: Constants) -> None:
        self.seconds = seconds
        self.nvlink = constants.nvlink_share * seconds
        self.network = constants.network_share * seconds
        self.leak = constants.overlap_leak * seconds


class Links:
    """Seconds of collectives that may be hidden, apart by the links they keep busy, which work side by side.

    ``end_inside``, ``end_between``: those of one layer and of the root, which open a forward or close a backward.
    """

    def __init__(self, zeros: Array) -> None:
        self.any = False
        self.inside = self.between = self.end_inside = self.end_between = zeros

    def add(self, time: Array, count: Array, crosses_nodes: NDArray[np.bool_]) -> None:
        """``count`` collectives of ``time`` seconds each, over the network or within a node."""
        self.any = True
        end = np.where(count > 0, np.minimum(time, time * count), 0.0)
        self.between = self.between + np.where(crosses_nodes, time * count, 0.0)
        self.inside = self.inside + np.where(crosses_nodes, 0.0, time * count)
        self.end_between = self.end_between + np.where(crosses_nodes, end, 0.0)
        self.end_inside = self.end_inside + np.where(crosses_nodes, 0.0, end)

    def __add__(self, other: "Links") -> "Links":
        links = Links(self.inside)
        links.any = self.any or other.any
        for name in ("inside", "between", "end_inside", "end_between"):
            setattr(links, name, getattr(self, name) + getattr(other, name))
        return links

    @property
    def alone(self) -> Array:
        """Seconds where nothing else runs and one follows the other."""
        return self.inside + self.between

    def exposed(
        self, compute: Compute, prefetch: NDArray[np.int64], constants: Constants, num_ends: NDArray[np.int64] | int = 1
    ) -> Array:
        """What of them the computation beside them does not hide.

        E + max(0, C - s T) + leak min(C / s, T): the ends E have nothing to hide behind; of the rest C, what
        goes on beside the computation T has the share s of NVLink or the network that the step leaves it, what is
        left over has all of it. Without prefetch nothing is hidden, and with it no more is exposed than without.
        ``num_ends``: passes that it all happens in, each with ends of its own; 0 where they fall into a wait.
        """
        alone = self.alone
        if not self.any or not np.any(prefetch > 0):
            return alone
        inside, between = self._hidden
        left = np.maximum(inside - compute.nvlink, between - compute.network)
        ends = self.end_inside + self.end_between
        if isinstance(num_ends, int):
            left, ends = np.maximum(left, 0.0), ends * num_ends
        else:
            left, ends = np.maximum(left - (num_ends - 1) * ends, 0.0), ends * num_ends
        overlapped = left + self.contention(compute, constants) + ends
        return np.where(prefetch > 0, np.minimum(overlapped, alone), alone)

    def contention(self, compute: Compute, constants: Constants) -> Array:
        """What running beside them costs the computation: leak min(C / s, T)."""
        inside, between = self._hidden
        beside = np.maximum(inside / constants.nvlink_share, between / constants.network_share)
        return np.minimum(constants.overlap_leak * beside, compute.leak)

    @property
    def _hidden(self) -> tuple[Array, Array]:
        return np.maximum(self.inside - self.end_inside, 0.0), np.maximum(self.between - self.end_between, 0.0)


class Exposed:
    """Seconds of a step's gathers and reductions that a stage waits for, given what runs beside them.

    ``inputs`` runs beside the backward gathers and ``weight`` beside the reductions; but for zero bubble they are the
    same backward pass, whose gathers and reductions then run side by side. ``others``, where there is a pipeline: what
    of them holds up a micro-batch on its way through another stage and back.
    """

    def __init__(
        self,
        gathers: Mapping[str, Links],
        reduces: Mapping[str, Links],
        beside: tuple[Compute, Compute, Compute],
        plans: Plans,
        constants: Constants,
    ) -> None:
        forward, inputs, weight = beside
        chunks = plans.virtual_pp if np.any(plans.virtual_pp > 1) else 1

        def exposed(links: Links, compute: Compute, num_ends: NDArray[np.int64] | int = chunks) -> Array:
            return links.exposed(compute, plans.prefetch, constants, num_ends)

        m, split = plans.grad_accum, weight is not inputs
        last = reduces["every"] + reduces["last"]
        backward = exposed(gathers["backward"], inputs)
        if split:
            reduce_every, reduce_last = exposed(reduces["every"], weight), exposed(last, weight)
        else:
            reduce_every = exposed(gathers["backward"] + reduces["every"], inputs) - backward
            reduce_last = exposed(gathers["backward"] + last, inputs) - backward
        first, every, later = (exposed(gathers[when], forward) for when in ("first", "every", "later"))
        self.gather = Sum([first, m * (every + backward), (m - 1) * later]).total
        self.reduce = (m - 1) * reduce_every + reduce_last
        if not np.any(plans.pp > 1):
            return
        # Parameters that stay gathered are there before the micro-batch is.
        sharded = plans.parameter_shard > 1
        passed = [(gathers["first"], forward), (gathers["every"], forward), (gathers["backward"], inputs)]
        self.others = np.where(sharded, Sum([exposed(links, compute, 0) for links, compute in passed]).total, 0.0)
        if not split:
            slowed = np.where(plans.prefetch > 0, last.contention(inputs, constants), np.where(sharded, last.alone, 0.0))
            self.others = self.others + slowed
