"""What of a pass's communication its computation hides, and what running side by side costs."""

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator.constants import Constants
from flopcast.simulator.operation import Array


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

    def exposed(self, compute: Compute, prefetch: NDArray[np.int64], constants: Constants) -> Array:
        """What of them the computation beside them does not hide.

        E + max(0, C - s T) + leak min(C / s, T): the ends E have nothing to hide behind; of the rest C, what
        goes on beside the computation T has the share s of NVLink or the network that the step leaves it, what is
        left over has all of it. Without prefetch nothing is hidden, and with it no more is exposed than without.
        """
        alone = self.alone
        if not self.any or not np.any(prefetch > 0):
            return alone
        inside, between = self._hidden
        left = np.maximum(inside - compute.nvlink, between - compute.network)
        ends = self.end_inside + self.end_between
        overlapped = np.maximum(left, 0.0) + self.contention(compute, constants) + ends
        return np.where(prefetch > 0, np.minimum(overlapped, alone), alone)

    def contention(self, compute: Compute, constants: Constants) -> Array:
        """What running beside them costs the computation: leak min(C / s, T)."""
        inside, between = self._hidden
        beside = np.maximum(inside / constants.nvlink_share, between / constants.network_share)
        return np.minimum(constants.overlap_leak * beside, compute.leak)

    @property
    def _hidden(self) -> tuple[Array, Array]:
        return np.maximum(self.inside - self.end_inside, 0.0), np.maximum(self.between - self.end_between, 0.0)
