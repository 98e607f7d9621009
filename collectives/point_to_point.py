"""Point to point: every rank sends a tensor to its neighbour, as pipeline stages do."""

import numpy as np

from flopcast.collectives import nccl
from flopcast.collectives.constants import DEFAULT, Constants
from flopcast.collectives.cost import RING, SIMPLE, Candidate, Cost, Floats, checked_bytes, evaluate
from flopcast.collectives.group import Fabric, FloatArray, Group
from flopcast.collectives.links import Links, links
from flopcast.collectives.volume import split


def cost(tensor_bytes: FloatArray, group: Group, fabric: Fabric, constants: Constants = DEFAULT) -> Cost:
    """One message of S to the next rank: T = launch + base + a + S / B, over NVLink, or over the sender's own NIC.

    For the stages of a pipeline give ``Group(size=2, ranks_per_node=1, groups_per_node=<pairs that speak at once>)``,
    or ``ranks_per_node=2`` where both sit in one node. A larger group is a ring of neighbours (nccl-tests'
    sendrecv): as slow as its crossing between nodes, and the more ranks it has the fewer channels NCCL gives to each.
    """
    return evaluate(_candidates, tensor_bytes, group, fabric, constants)


def sent_bytes(tensor_bytes: FloatArray, group: Group) -> tuple[Floats, Floats]:
    """(inside, between): bytes one node's ranks send when every rank sends S to the next: g S in all."""
    alone = np.asarray(group.size) == 1
    return split(np.where(alone, 0.0, checked_bytes(tensor_bytes)), group)


def _channels_rate(on: Links, fabric: Fabric) -> Floats:
    """Bytes/s that the channels of one send between nodes carry."""
    nics = np.ceil(np.asarray(fabric.nics_per_node) / np.asarray(fabric.gpus_per_node))
    few = np.maximum(np.where(on.ranks > nccl.SEND_CHANNELS_RANKS, 1, nccl.SEND_CHANNELS), nics)
    # Both are rounded to powers of two.
    wanted = np.maximum(nics, np.ceil(nics * np.asarray(fabric.nic_bytes_per_s) / nccl.SEND_COUNTED_BYTES_PER_S))
    fitting = nccl.RING_CHANNELS / np.ceil(on.ranks / nccl.SEND_PEERS_PER_CHANNEL)
    many = 2 ** np.minimum(np.ceil(np.log2(np.maximum(wanted, 1))), np.floor(np.log2(np.maximum(fitting, 1))))
    channels = np.where(np.asarray(fabric.nccl_minor) >= nccl.SEND_CHANNELS_MINOR, many, few)
    return np.asarray(nccl.SEND_CHANNEL_BYTES_PER_S * channels)


def _candidates(tensor_bytes: Floats, group: Group, fabric: Fabric, constants: Constants) -> list[Candidate]:
    on = links(group, fabric, constants)
    # One rank of each group crosses between nodes, by its own NICs.
    inside = tensor_bytes / (on.bus * constants.copy_share) + nccl.RING_NVLINK_STEP_S[SIMPLE]
    network = nccl.RING_NETWORK_STEP_S[SIMPLE] + on.crossing_s
    rate = np.minimum(on.own_rate * constants.point_to_point_share, _channels_rate(on, fabric))
    between = tensor_bytes / rate + network
    time = on.launch_s + on.base_s + np.where(on.multi, between, inside)
    return [Candidate(RING, SIMPLE, np.asarray(time), tensor_bytes)]
