"""Bytes that one node's ranks of one group send, over NVLink and over the NICs, by the accounting of a ring."""

import numpy as np

from flopcast.collectives.cost import Floats, checked_bytes
from flopcast.collectives.group import FloatArray, Group


def ring_bytes(tensor_bytes: FloatArray, group: Group, passes: int) -> Floats:
    """What each rank sends in a ring: ``passes (n-1)/n S``; 2 passes for all-reduce, 1 for its halves."""
    ranks = np.asarray(group.size, dtype=np.float64)
    return np.asarray(passes * (ranks - 1) / ranks * checked_bytes(tensor_bytes))


def split(rank_bytes: Floats, group: Group) -> tuple[Floats, Floats]:
    """(inside, between): of a node's g ranks one crosses to the next node, if there is one; the others stay inside."""
    per_node = np.asarray(group.ranks_per_node, dtype=np.float64)
    crossing = np.where(group.num_nodes > 1, 1.0, 0.0)
    return np.asarray((per_node - crossing) * rank_bytes), np.asarray(crossing * rank_bytes)
