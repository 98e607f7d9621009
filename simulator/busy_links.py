"""Seconds of collectives by the links they keep busy, and of those at the ends of a pass."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator.broadcast import Sum
from flopcast.simulator.operation import Array


class Links:
    """Seconds of collectives that may be hidden, apart by the links they keep busy, which work side by side.

    ``end_inside``, ``end_between``: those of one layer and of the root, which open a forward or close a backward;
    ``root``: those of the root among them, which a pass through several model chunks has once.
    """

    def __init__(self, zeros: Array) -> None:
        self.any = False
        self.inside = self.between = self.end_inside = self.end_between = self.root = zeros

    def add(self, time: Array, count: Array, crosses_nodes: NDArray[np.bool_]) -> None:
        """``count`` collectives of ``time`` seconds each, over the network or within a node; one stands at an end."""
        self.any = True
        whole = time * count
        end = np.where(count > 0, np.minimum(time, whole), 0.0)
        self.between = self.between + np.where(crosses_nodes, whole, 0.0)
        self.inside = self.inside + np.where(crosses_nodes, 0.0, whole)
        self.end_between = self.end_between + np.where(crosses_nodes, end, 0.0)
        self.end_inside = self.end_inside + np.where(crosses_nodes, 0.0, end)

    def __add__(self, other: "Links") -> "Links":
        if not (self.any and other.any):
            return self if self.any else other
        links = Links(self.inside)
        links.any = True
        for name in ("inside", "between", "end_inside", "end_between", "root"):
            setattr(links, name, getattr(self, name) + getattr(other, name))
        return links

    @classmethod
    def mixed(cls, kinds: Sequence["Links"], in_one_piece: NDArray[np.bool_]) -> "Links":
        """Those of several kinds of layer, one of which stands at an end: each kind as likely as its share of them.

        ``in_one_piece``: where all layers of every kind are sent together, and so stand there together.
        """
        links = kinds[0]
        for other in kinds[1:]:
            links = links + other
        if len(kinds) > 1:
            for end, of in (("end_inside", "inside"), ("end_between", "between")):
                whole = np.where(getattr(links, of) > 0, getattr(links, of), 1.0)
                usual = Sum(getattr(kind, end) * getattr(kind, of) / whole for kind in kinds).total
                setattr(links, end, np.where(in_one_piece, getattr(links, end), usual))
        return links

    def of_layers(self, share: Array | float, at_end: NDArray[np.bool_] | bool = True) -> "Links":
        """A share of them, whose ends are the pass's where ``at_end``."""
        if not self.any:
            return self
        links = Links(self.inside * share)
        links.any, links.between, links.root = True, self.between * share, 0.0 * links.inside
        links.end_inside, links.end_between = self.end_inside * at_end, self.end_between * at_end
        return links

    def of_root(self, at_end: NDArray[np.bool_] | bool) -> "Links":
        """The same as the root's."""
        links = self.of_layers(1.0, at_end)
        links.root = links.end_inside + links.end_between
        return links

    @property
    def alone(self) -> Array:
        """Seconds where nothing else runs and one follows the other."""
        return self.inside + self.between
