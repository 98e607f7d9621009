"""All-reduce in the switches of the network (SHARP) where the switches of the nodes do not help: CollNet."""

import numpy as np

from flopcast.collectives import nccl
from flopcast.collectives.constants import Constants
from flopcast.collectives.cost import COLLNET, SIMPLE, Candidate, Floats
from flopcast.collectives.group import Fabric
from flopcast.collectives.links import Links
from flopcast.collectives.pipeline import fill


def collnet(tensor_bytes: Floats, on: Links, fabric: Fabric, constants: Constants) -> list[Candidate]:
    """CollNet over several nodes: each sends S to the network and receives the sum, whatever their number.

    T = launch + base + a + max(2 S (g-1)/g / B_node, S f / B_NIC) + fill: reduced and gathered inside the node, a GPU
    for each NIC; where g GPUs share fewer NICs, f = (1 + g/NICs) / 2 (tuning.cc, CollNetDirect).
    """
    share = nccl.COLLNET_SHARE[np.asarray(fabric.architecture)]
    shared = np.maximum(on.ranks_per_node / np.maximum(np.asarray(fabric.nics_per_node), 1), 1.0)
    between = tensor_bytes * (1 + shared) / 2 / (on.node_rate * share)
    inside = 2 * tensor_bytes * (on.ranks_per_node - 1) / on.ranks_per_node / on.bus
    transfer = np.maximum(between, inside)
    path = nccl.COLLNET_STEP_S + on.crossing_s + on.base_s
    time = on.launch_s + path + transfer + fill(transfer, path, constants.tree_fill_chunks, constants.tree_fill_limit)
    able = on.multi & np.asarray(fabric.sharp)
    return [Candidate(COLLNET, SIMPLE, np.where(able, time, np.inf), np.asarray(tensor_bytes))]
