"""The double binary tree of all-reduce between nodes, with a chain inside each node; latency logarithmic in nodes."""

import numpy as np

from flopcast.collectives import nccl
from flopcast.collectives.constants import Constants
from flopcast.collectives.cost import LL, LL128, SIMPLE, TREE, Candidate, Floats
from flopcast.collectives.links import Links
from flopcast.collectives.pipeline import fill


def node_volume(tensor_bytes: Floats, on: Links) -> Floats:
    """Bytes a node sends: its half of two trees, up and down: S with two nodes (which inflates busbw), else 2 S."""
    return np.asarray(tensor_bytes * np.where(on.nodes > 2, 2.0, 1.0))


def tree(tensor_bytes: Floats, on: Links, constants: Constants) -> list[Candidate]:
    """The three protocols of NCCL's tree, for groups of several nodes.

    T = launch + base + 2 [(g-1) a_node + log2(N) a_network] + max(2 S / B_tree, S_node / B_NIC) + fill:
    up the tree and down again, every GPU passing S on twice over its links, every node sending S_node. The chain of
    GPUs in a node has to fill under LL128 as under Simple, which tells in racks of 72.
    """
    sent = node_volume(tensor_bytes, on)
    inside = 2 * tensor_bytes / on.tree_bus
    between = sent / on.channel_rate
    transfer = np.maximum(inside, between)
    # LL and LL128 reach the same shares of the slower link here; LL twice that, for S goes up and S comes down where a
    # ring's rank sends 2 S.
    ll = transfer / (2 * constants.ll_share)
    ll128 = transfer / (nccl.LL128_PAYLOAD * on.ll128_share)

    def latency(protocol: int, network_share: float = 1.0) -> Floats:
        network = (nccl.TREE_NETWORK_STEP_S[protocol] + on.crossing_s) * network_share
        return np.asarray(2 * ((on.ranks_per_node - 1) * nccl.TREE_NVLINK_STEP_S[protocol] + on.hops * network))

    def filled(protocol: int, transfer: Floats) -> Floats:
        path = latency(protocol, constants.network_fill_share) + on.base_s
        return (
            latency(protocol) + transfer + fill(transfer, path, constants.tree_fill_chunks, constants.tree_fill_limit)
        )

    based = on.launch_s + on.base_s
    times = {
        LL: on.launch_s + latency(LL) + ll,
        LL128: np.where(on.ll128, based + filled(LL128, ll128), np.inf),
        SIMPLE: based + filled(SIMPLE, transfer),
    }
    return [Candidate(TREE, protocol, np.where(on.multi, time, np.inf), sent) for protocol, time in times.items()]
