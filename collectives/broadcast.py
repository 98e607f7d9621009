"""Broadcast: one rank holds the tensor and every rank ends with it."""

import numpy as np

from flopcast.collectives import nccl
from flopcast.collectives.constants import DEFAULT, Constants
from flopcast.collectives.cost import Candidate, Cost, Floats, checked_bytes, evaluate
from flopcast.collectives.group import Fabric, FloatArray, Group
from flopcast.collectives.links import links
from flopcast.collectives.ring import ring


def cost(tensor_bytes: FloatArray, group: Group, fabric: Fabric, constants: Constants = DEFAULT) -> Cost:
    """A pipelined chain from the root along the ring: S over the slowest link, after n - 1 steps of latency."""
    return evaluate(_candidates, tensor_bytes, group, fabric, constants)


def sent_bytes(tensor_bytes: FloatArray, group: Group) -> tuple[Floats, Floats]:
    """(inside, between): bytes one node's ranks send, the mean over nodes: (g-1) S and (N-1)/N S."""
    size = checked_bytes(tensor_bytes)
    nodes = np.asarray(group.num_nodes, dtype=np.float64)
    return np.asarray((np.asarray(group.ranks_per_node) - 1.0) * size), np.asarray((nodes - 1) / nodes * size)


def _candidates(tensor_bytes: Floats, group: Group, fabric: Fabric, constants: Constants) -> list[Candidate]:
    on = links(group, fabric, constants)
    return ring(
        tensor_bytes,
        1,
        on,
        constants,
        channel_bytes_per_s=nccl.COPY_CHANNEL_BYTES_PER_S,
        ll_share=0.5,
        chain=True,
    )
