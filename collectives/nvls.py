"""All-reduce in the NVLink switch (NVLS), and between nodes a tree of switches (NVLS-tree) or SHARP."""

import numpy as np
from numpy.typing import NDArray

from flopcast.collectives import nccl
from flopcast.collectives.constants import Constants
from flopcast.collectives.cost import NVLS, NVLS_TREE, SIMPLE, Candidate, Floats
from flopcast.collectives.group import BLACKWELL, Fabric, hopper_or_later
from flopcast.collectives.links import Links
from flopcast.collectives.pipeline import fill


def nvls(tensor_bytes: Floats, on: Links, fabric: Fabric, constants: Constants) -> list[Candidate]:
    """NVLS in one node, NVLS-tree over up to four, NVLS with SHARP over any number, for Hopper and Blackwell.

    T = launch + base + 2 log2(N) a_hop + max(S v / B_NVLS, S_node / B_NIC) + fill. The switch adds, so a GPU sends
    S up and its shard of the sum down: v = 1.75 (1 + 1/g) / (1 + 1/8) below eight GPUs; from eight on it is
    1.75 (1 - 1/n) / (1 - 1/h) with h heads in one node, by NCCL's own model (tuning.cc), and 2 (n-1)/n over several. A
    SHARP network is one hop, and a node sends S whatever their number.
    """
    blackwell = np.asarray(fabric.architecture) == BLACKWELL
    share = np.where(blackwell, constants.nvls_share_blackwell, constants.nvls_share_hopper)
    rate = share * fabric.nvlink_bytes_per_s * fabric.nvlink_scale
    heads = np.minimum(on.ranks_per_node, nccl.NVLS_MAX_HEADS)
    several = np.where(on.multi, 2.0, 1.75 / (1 - 1 / np.maximum(heads, 2))) * (on.ranks - 1) / on.ranks
    volume = np.maximum(several, 1.75 * (1 + 1 / on.ranks_per_node) / (1 + 1 / 8))
    sharp = np.asarray(fabric.sharp)
    sent = tensor_bytes * np.where((on.nodes > 2) & ~sharp, 2.0, 1.0)
    # With two nodes each switch drives every NIC of its node; in a deeper tree the channels are the limit.
    deep = nccl.NVLS_TREE_SHARE * np.minimum(on.node_rate, 2 * on.channel_rate)
    network = np.where((on.nodes > 2) & ~sharp, deep, on.node_rate)
    inside = _lengthened(tensor_bytes, heads, on, fabric, constants)
    transfer = np.maximum(inside * volume / rate, np.where(on.multi, sent / network, 0.0))

    hops = np.where(sharp, np.minimum(on.hops, 1.0), on.hops)
    between = 2 * hops * (constants.nvls_tree_hop_s + on.crossing_s)
    path = constants.nvls_base_s + on.ranks_per_node * constants.nvls_rank_s + between * constants.network_fill_share
    time = (
        on.launch_s
        + constants.nvls_base_s
        + between
        + transfer
        + fill(transfer, path, constants.tree_fill_chunks, constants.tree_fill_limit)
    )
    algorithm = np.where(on.multi & ~sharp, NVLS_TREE, NVLS)
    return [Candidate(algorithm, SIMPLE, np.where(_able(on, fabric), time, np.inf), sent)]


def _lengthened(size: Floats, heads: Floats, on: Links, fabric: Fabric, constants: Constants) -> Floats:
    """Bytes that take as long with long chunks as ``size`` does with the chunks that NCCL takes in one node.

    Short ones up to a size that grows with channels and heads; messages just below it take no longer than it does.
    """
    blackwell = np.asarray(fabric.architecture) == BLACKWELL
    new = np.asarray(fabric.nccl_minor) >= nccl.NVLS_CHANNELS_MINOR
    channels = np.where(new, nccl.NVLS_CHANNELS_BLACKWELL, nccl.NVLS_OLD_CHANNELS_BLACKWELL)
    channels = np.where(blackwell, channels, nccl.NVLS_CHANNELS_HOPPER)
    share = np.where(blackwell, constants.nvls_short_share_blackwell, constants.nvls_short_share_hopper)
    longest = nccl.NVLS_SHORT_LOOPS * channels * heads * np.asarray(fabric.nvls_chunk_bytes)
    return np.where(on.multi, size, np.minimum(size / share, np.maximum(size, longest)))


def before_rings(on: Links, fabric: Fabric) -> NDArray[np.bool_]:
    """Where NCCL's own tables put an NVLS-tree before a ring's LL128 and Simple, whatever the size."""
    return np.asarray(_able(on, fabric) & (on.nodes == 2) & (on.ranks_per_node >= nccl.NVLS_TREE_RANKS))


def _able(on: Links, fabric: Fabric) -> NDArray[np.bool_]:
    return np.asarray(
        np.asarray(fabric.nvswitch)
        & hopper_or_later(fabric.architecture)
        & (on.ranks_per_node >= nccl.NVLS_MIN_RANKS)
        & ((on.nodes <= nccl.NVLS_TREE_MAX_NODES) | np.asarray(fabric.sharp))
    )
