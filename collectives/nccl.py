"""What NCCL publishes about itself: the tables of its own cost model and the limits of its transports.

Source: NVIDIA/nccl 2.30.7, src/graph/tuning.cc (latencies, efficiencies), src/graph/topo.h (link rates),
src/graph/search.cc (channel search). NCCL picks argmin over algorithm and protocol of ``latency + bytes / rate``;
so do we, with the latencies and rates corrected by what measurements show (:mod:`flopcast.collectives.constants`).
"""

import numpy as np

# Latency of one step over NVLink and over the network, in seconds, by protocol: LL, LL128, Simple (hwLat).
RING_NVLINK_STEP_S = (0.6e-6, 1.9e-6, 3.4e-6)
RING_NETWORK_STEP_S = (2.7e-6, 4.0e-6, 14.0e-6)
TREE_NVLINK_STEP_S = (0.6e-6, 1.25e-6, 4.0e-6)
TREE_NETWORK_STEP_S = (5.0e-6, 8.5e-6, 14.0e-6)

# PAT (one GPU per node): base + log2(nodes) * 14 us / 3.5 + 2.8 us per rank, at 0.75 of the bus.
PAT_BASE_S = 8e-6
PAT_NETWORK_STEP_S = 4e-6
PAT_RANK_S = 2.8e-6
PAT_SHARE = 0.75

# Bytes per second of the link rate that NCCL counts on, over the datasheet's: 20 of 25 GB/s on Volta and Ampere,
# 20.6 of 25 on Hopper, 40.1 of 50 on Blackwell; other GPUs as Ampere.  Order of ARCHITECTURES.
LINK_SHARE = np.array([0.8, 0.8, 0.824, 0.802, 0.8])

# LL128 carries 120 of every 128 bytes; NCCL counts 0.92 of the bus for it.
LL128_PAYLOAD = 0.92
# A tree's bus over the ring's: 0.92, and 0.85 of it for the plain tree pattern. The search begins with balanced trees
# and tries plain ones from Hopper on only (search.cc, "Try a simpler tree"). Order of ARCHITECTURES.
TREE_SHARE = 0.92 * np.array([1.0, 1.0, 0.85, 0.85, 1.0])
# Bytes/s that the kernel of one channel of a tree reaches at most, up and down together, over two nodes and over more
# (tuning.cc, perChMaxTreeBws): with a NIC for every GPU of an A100 a tree loses to a ring, and on B200 it moves 98 GB/s
# over 4 to 64 nodes where the ring moves 200. H100 nodes with two NICs pass NCCL's 41.4 GB/s: no limit is known there.
# Order of ARCHITECTURES.
TREE_CHANNEL_BYTES_PER_S = np.array(
    [[18.5e9, 10e9], [23.6e9, 17.8e9], [np.inf, np.inf], [42.8e9, 24e9], [np.inf, np.inf]]
)
# Channels at more than this are built twice, at half the rate each, but from Hopper on no more than four of at most 50
# GB/s (search.cc, ncclTopoDupChannels).
DOUBLED_BYTES_PER_S = 26e9
# What a GPU's own PCIe slot carries, as NCCL counts it (topo.h: 12 GB/s for generation 3 x16): a rank's network traffic
# passes it, however many NICs its node has. B300 boards have generation 6. Order of ARCHITECTURES.
SLOT_BYTES_PER_S = np.array([12e9, 24e9, 48e9, 96e9, np.inf])
# No NVLink is as slow as PCIe 5.0 x16 but the bridges of pairs: a slower link inside a node is the slot itself.
SLOWEST_NVLINK_BYTES_PER_S = 64e9

# The search builds 8 channels at a NIC's full rate of 50 GB/s (doubled at half of it for slower NICs): a ring or a
# tree across nodes uses no more NICs than that, however many the node has. From 2.28 on rings of Blackwell racks find
# 16 at 45.1 GB/s, all of their NVLink (search.cc, sm100SpeedArrayInter).
NODE_CHANNELS = 8
CHANNEL_BYTES_PER_S = 50e9
RACK_CHANNELS_MINOR = 28

# Each of these becomes two of a ring, 16 in all, and became four before 2.20 (connect.cc, "Use 4 compute channels per
# search channel"). On Hopper one channel's kernel moves at most this: of 8 H100 nodes NVIDIA calls 366 GB/s good and
# says that 24 channels give more than 380 (nccl-tests issue 309). Where every step copies, to its output and to the
# next rank, 16 are measured at 323 to 331 GB/s in all-gathers on GCP, AWS and InfiniBand. B200 passes 392 with 16.
RING_CHANNELS = 16
OLD_RING_CHANNELS = 32
RING_CHANNELS_MINOR = 20
RING_CHANNEL_BYTES_PER_S = 22.9e9
COPY_CHANNEL_BYTES_PER_S = 20.5e9

# A multi-node NVLS-tree is not built beyond this many nodes (NVIDIA/nccl issue 1221). Over more than two it reaches
# 0.91 of the ring's rate on B200, forced on 4 to 64 nodes; its channels are twice a ring's.
NVLS_TREE_MAX_NODES = 4
NVLS_TREE_SHARE = 0.92
# NVLS needs more than two ranks in the node.
NVLS_MIN_RANKS = 3
# NVLS in one node takes chunks of 64 KiB for messages below this many loops of all channels and heads with chunks of
# NCCL_NVLS_CHUNKSIZE, 128 KiB by default (enqueue.cc, calcCollChunking): 1 GiB on eight H100, 1.6 GB on eight B200.
# Channels are 16 on Hopper and 24 on Blackwell, 32 before 2.27, and heads the GPUs, 32 at most (nvls.cc).
NVLS_SHORT_LOOPS = 64
NVLS_CHANNELS_HOPPER = 16
NVLS_CHANNELS_BLACKWELL = 24
NVLS_OLD_CHANNELS_BLACKWELL = 32
NVLS_CHANNELS_MINOR = 27
NVLS_MAX_HEADS = 32
# Over two nodes of at least this many ranks NCCL's tables put an NVLS-tree before a ring's LL128 and Simple at every
# size: 67 us (25 + 2 * 20.9) against 75 (14 + 28 * 1.9 + 2 * 4) and 132 * 1.4 with eight ranks, and a higher rate.
NVLS_TREE_RANKS = 7

# CollNet, the reduction in the network (SHARP) without NVLS: latencies of its steps, and its rate from Hopper on.
COLLNET_STEP_S = 3.7e-6 + 31e-6
COLLNET_SHARE = np.array([1.0, 1.0, 0.85, 0.85, 1.0])

# A send between nodes has two channels, one in groups of more than 32 ranks, and at least one for each NIC of its GPU
# (paths.cc, "start from 2 channels per NIC and reduce with scale", 2.20 to 2.28). From 2.29 on it has one for every 14
# GB/s of its NICs, and half as many until the sends to all ranks, eight to a channel, fit 16 channels
# (ncclTopoComputeP2pChannels). NCCL counts 14 GB/s for one; on B200 one is measured at 15 to 17 and two at 34.
SEND_CHANNELS = 2
SEND_CHANNELS_RANKS = 32
SEND_CHANNELS_MINOR = 29
SEND_COUNTED_BYTES_PER_S = 14e9
SEND_PEERS_PER_CHANNEL = 8
SEND_CHANNEL_BYTES_PER_S = 17e9
