"""The rates and latencies that a group finds on a machine: inside the node, between nodes, per crossing.

A collective between nodes is a pipeline through NVLink and NICs; its rate is that of the slower of the two. The
groups of a node that speak at the same time share its NICs evenly.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flopcast.collectives import nccl
from flopcast.collectives.constants import Constants
from flopcast.collectives.cost import Floats
from flopcast.collectives.group import BLACKWELL, FABRICS, HOPPER, Fabric, Group, hopper_or_later

_EFA, _TCP = FABRICS.index("efa"), FABRICS.index("gpudirect-tcp")
# FABRICS, then EFA of the first generation and GPUDirect-TCPX.
_ORDERED = np.array([True, True, True, False, False, False, False, False])


@dataclass(frozen=True)
class Links:
    """Scalars or arrays over cases; rates in bytes/s of a node (``node_``) or of a GPU, latencies in seconds.

    ``bus`` is the rate of a ring inside the node, ``chain_bus`` that of a node's part of a ring or tree across nodes,
    ``ring_bus`` that of the whole ring, ``node_rate`` what all NICs of a node give this group, ``channel_rate`` what
    NCCL's channels reach of that, ``ring_channels`` how many a ring between nodes has where their number can bound it
    and infinite elsewhere, ``nic_rate`` what each rank gets from its NICs when all the node's ranks send,
    ``own_rate`` when only one rank of each group does; ``hops`` is log2 of the nodes, ``launch_s`` the time to start
    a kernel on the GPUs of a process, ``per_process`` their number, ``base_s`` the fixed cost of LL128 and Simple,
    ``crossing_s`` what the fabric adds to one step between nodes, ``ll128`` whether LL128 can run, ``ll128_share``
    what its copying through registers reaches of ``bus``, ``tree_bus`` what a tree reaches of ``chain_bus``;
    ``pcie`` whether PCIe alone joins the GPUs of a node.
    """

    ranks: Floats
    ranks_per_node: Floats
    nodes: Floats
    hops: Floats
    multi: NDArray[np.bool_]
    bus: Floats
    chain_bus: Floats
    ring_bus: Floats
    node_rate: Floats
    channel_rate: Floats
    ring_channels: Floats
    nic_rate: Floats
    own_rate: Floats
    launch_s: Floats
    per_process: Floats
    base_s: Floats
    crossing_s: Floats
    ll128: NDArray[np.bool_]
    ll128_share: Floats
    tree_bus: Floats
    pcie: NDArray[np.bool_]


def links(group: Group, fabric: Fabric, constants: Constants) -> Links:
    """What ``group`` finds on ``fabric``."""
    ranks = np.asarray(group.size, dtype=np.float64)
    per_node = np.asarray(group.ranks_per_node, dtype=np.float64)
    nodes = ranks / per_node
    multi = nodes > 1
    architecture = np.asarray(fabric.architecture)
    bus = constants.ring_share * nccl.LINK_SHARE[architecture] * fabric.nvlink_bytes_per_s * fabric.nvlink_scale

    share, crossing, ordered = network(fabric, constants)
    nics = np.asarray(fabric.nics_per_node, dtype=np.float64)
    nic = np.asarray(fabric.nic_bytes_per_s) * share
    # A rank drives its own NICs only: one, or several where the node has more NICs than GPUs.
    own = np.maximum(nics / np.asarray(fabric.gpus_per_node), np.minimum(nics, 1.0))
    usable = np.minimum(nics / np.asarray(group.groups_per_node), own * per_node)
    slot = nccl.SLOT_BYTES_PER_S[architecture]
    node_rate = np.where(multi, np.minimum(usable * nic, slot * per_node), 1.0)
    minor = np.asarray(fabric.nccl_minor)
    wide = (architecture == BLACKWELL) & (minor >= nccl.RACK_CHANNELS_MINOR)
    channels = np.where(wide, nccl.RING_CHANNELS, nccl.NODE_CHANNELS) * np.maximum(
        1.0, nccl.CHANNEL_BYTES_PER_S / np.maximum(np.asarray(fabric.nic_bytes_per_s), 1.0)
    )
    default = np.where(minor >= nccl.RING_CHANNELS_MINOR, nccl.RING_CHANNELS, nccl.OLD_RING_CHANNELS)
    bounding = multi & (architecture == HOPPER)
    channel_rate = np.where(multi, np.minimum(np.minimum(usable, channels) * nic, slot * per_node), 1.0)
    # All the ranks of a node may send at once, and so may the ranks of the other groups.
    speaking = np.asarray(group.groups_per_node) * per_node
    nic_rate = np.where(multi, np.minimum(np.minimum(own, nics / speaking) * nic, slot), 1.0)
    alone = np.minimum(own, nics / np.asarray(group.groups_per_node)) * nic
    own_rate = np.where(multi, np.minimum(alone, slot), 1.0)

    together = np.asarray(fabric.gpus_per_process, dtype=np.float64)
    pcie = np.asarray(fabric.nvlink_bytes_per_s) <= nccl.SLOWEST_NVLINK_BYTES_PER_S
    # Where a ring or tree leaves the node, one of its g GPUs sends to a NIC and not to a peer: over all channels the
    # links of a GPU carry (g-1)/g of it. NCCL's search counts so too and builds 16 channels of 24 GB/s, 384 in all, on
    # links of 370.8 (search.cc). A PCIe slot carries both. With one rank per node nothing crosses the links.
    leaving = np.where(pcie, 1.0, per_node / np.maximum(per_node - 1, 1.0))
    chain_bus = bus * np.where(multi, np.where(per_node > 1, leaving, np.inf), 1.0)
    each = nccl.TREE_CHANNEL_BYTES_PER_S[architecture, np.where(nodes > 2, 1, 0)]
    tree_rate = _tree_channels(usable, np.asarray(fabric.nic_bytes_per_s), architecture) * each
    base = constants.protocol_base_s * np.where(hopper_or_later(architecture), constants.hopper_base_scale, 1.0)
    return Links(
        ranks=ranks,
        ranks_per_node=per_node,
        nodes=nodes,
        hops=np.ceil(np.log2(nodes)),
        multi=multi,
        bus=np.asarray(bus),
        chain_bus=np.asarray(chain_bus),
        ring_bus=np.minimum(chain_bus, np.where(multi, channel_rate, np.inf)),
        node_rate=node_rate,
        channel_rate=channel_rate,
        ring_channels=np.where(bounding, np.maximum(default, np.asarray(fabric.min_channels)), np.inf),
        nic_rate=nic_rate,
        own_rate=own_rate,
        launch_s=np.asarray(constants.launch_s * fabric.launch_scale + constants.process_gpu_s * (together - 1.0)),
        per_process=together,
        base_s=np.asarray(base),
        crossing_s=np.asarray(crossing * fabric.hop_scale),
        # NCCL runs LL128 by default where NVLink joins the node's GPUs (tuning.cc, "Enable LL128 by default").
        ll128=np.asarray((ordered | ~multi) & (~pcie | (per_node == 1))),
        ll128_share=np.where(hopper_or_later(architecture), constants.ll128_share_hopper, constants.ll128_share),
        tree_bus=np.minimum(
            chain_bus * nccl.TREE_SHARE[architecture], np.where(multi & (per_node > 1), tree_rate, np.inf)
        ),
        pcie=np.asarray(pcie),
    )


def _tree_channels(usable: Floats, line_bytes_per_s: Floats, architecture: NDArray[np.int64]) -> Floats:
    """Channels of a tree across nodes: one for each of the NICs, two for each of fast ones (ncclTopoDupChannels).

    On Blackwell NVLink carries eight of them at 50 GB/s each, and eight stay eight: with many nodes half of what a ring
    moves.
    """
    doubled = np.where(line_bytes_per_s > nccl.DOUBLED_BYTES_PER_S, 2, 1)
    single = (architecture == BLACKWELL) & (line_bytes_per_s <= nccl.CHANNEL_BYTES_PER_S)
    most = np.where(single, nccl.NODE_CHANNELS, 2 * nccl.NODE_CHANNELS)
    return np.asarray(np.minimum(np.maximum(usable, 1) * doubled, most))


def network(fabric: Fabric, constants: Constants) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """A NIC's share of its line rate, the seconds a crossing adds to NCCL's own latency, and whether LL128 can run.

    LL128 needs a network that keeps the order of 128-byte stores, which sockets and the libfabric providers of
    Slingshot and of the first EFA do not promise.

    Two names hide two generations, told apart by the NICs of a node: EFA of the first generation comes four to a
    node (p4d, p4de), later ones sixteen or thirty-two; GPUDirect-TCPX four to a node (A3 High), the offloaded
    TCPXO eight (A3 Mega).
    """
    c = constants
    shares = np.array(
        [
            *(c.nic_share_infiniband, c.nic_share_roce, c.nic_share_efa, c.nic_share_tcpxo),
            *(c.nic_share_slingshot, c.nic_share_ethernet, c.nic_share_efa_first, c.nic_share_tcpx),
        ]
    )
    crossings = np.array(
        [
            *(c.hop_infiniband_s, c.hop_roce_s, c.hop_efa_s, c.hop_tcpxo_s),
            *(c.hop_slingshot_s, c.hop_ethernet_s, c.hop_efa_first_s, c.hop_tcpx_s),
        ]
    )
    code = np.asarray(fabric.fabric)
    few = np.asarray(fabric.nics_per_node) <= 4
    row = np.where(few & (code == _EFA), len(FABRICS), np.where(few & (code == _TCP), len(FABRICS) + 1, code))
    return shares[row] * np.asarray(fabric.nic_scale), crossings[row], _ORDERED[row]
