"""The algorithms against NCCL's own figures and against closed forms worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from flopcast.collectives import ALGORITHMS, COLLECTIVES, DEFAULT, PROTOCOLS, Fabric, Group, fabric_code
from flopcast.collectives.cost import LL, LL128, SIMPLE
from flopcast.collectives.group import architecture_code
from flopcast.collectives.links import links
from flopcast.collectives.nvls import nvls
from flopcast.collectives.pat import pat
from flopcast.collectives.pipeline import fill, overlapped
from flopcast.collectives.ring import ring
from flopcast.collectives.tree import tree
from flopcast.errors import InputError

GIB = 2.0**30
MIB = 2.0**20
A100 = Fabric(architecture_code("ampere"), 300e9, True, 8, 25e9, fabric_code("infiniband"), 8)
A100_4HDR = replace(A100, nics_per_node=4)
A100_4EDR = replace(A100, nics_per_node=4, nic_bytes_per_s=12.5e9)
H100 = Fabric(architecture_code("hopper"), 450e9, True, 8, 50e9, fabric_code("infiniband"), 8)
B200 = Fabric(architecture_code("blackwell"), 900e9, True, 8, 50e9, fabric_code("infiniband"), 8)
# NCCL's own figures know nothing of our corrections.
PLAIN = replace(DEFAULT, launch_s=1e-30, protocol_base_s=1e-30, hop_infiniband_s=1e-30)


def latency(candidates: list, protocol: int) -> float:
    return next(float(c.time_s) for c in candidates if c.protocol == protocol)


@pytest.mark.parametrize(
    ("nodes", "protocol", "expected_us"),
    # notes on tuning.cc 2.30.7, less NCCL's base of 6.6 / 14 / 8.4 us, which we fit instead
    [
        (1, LL, 15.0 - 6.6),
        (1, LL128, 40.6 - 14),
        (1, SIMPLE, 56 - 8.4),
        (2, SIMPLE, 131.6 - 8.4),
        (4, SIMPLE, 283 - 8.4),
    ],
)
def test_ring_latency_is_nccls(nodes: int, protocol: int, expected_us: float) -> None:
    on = links(Group(8 * nodes, 8), A100_4HDR, PLAIN)
    found = latency(ring(np.array(1e-20), 2, on, PLAIN), protocol)
    assert found * 1e6 == pytest.approx(expected_us, rel=2e-3)


@pytest.mark.parametrize(("nodes", "expected_us"), [(2, 92), (4, 120), (16, 176)])
def test_tree_latency_is_nccls(nodes: int, expected_us: float) -> None:
    on = links(Group(8 * nodes, 8), A100_4HDR, PLAIN)
    assert latency(tree(np.array(1e-20), on, PLAIN), SIMPLE) * 1e6 == pytest.approx(expected_us - 8.4, rel=6e-3)


def test_pat_latency_by_hand() -> None:
    on = links(Group(64, 1), H100, PLAIN)
    # 8 + log2(64) * 14 / 3.5 + 2.8 * 64 us
    assert float(pat(np.array(0.0), on)[0].time_s) * 1e6 == pytest.approx(8 + 6 * 4 + 2.8 * 64)


def test_bandwidths_by_hand() -> None:
    on = links(Group(32, 8), A100_4HDR, DEFAULT)
    assert float(on.bus) == pytest.approx(0.8 * 300e9 * DEFAULT.ring_share)
    assert float(on.ring_bus) == pytest.approx(4 * 25e9 * DEFAULT.nic_share_infiniband)
    # Eight groups of one rank per node share four NICs; one such group alone has one NIC.
    assert float(links(Group(4, 1, 8), A100_4HDR, DEFAULT).node_rate) == pytest.approx(float(on.node_rate) / 8)
    assert float(links(Group(4, 1, 1), A100_4HDR, DEFAULT).node_rate) == pytest.approx(float(on.node_rate) / 4)
    # With one rank per node NVLink does not bound the ring.
    slow = replace(A100_4HDR, nvlink_bytes_per_s=1e9)
    assert float(links(Group(4, 1, 1), slow, DEFAULT).ring_bus) == pytest.approx(25e9 * DEFAULT.nic_share_infiniband)


@pytest.mark.parametrize(
    ("collective", "ranks", "fabric", "low", "high"),
    [
        # NVIDIA's stated bus bandwidths, GB/s: nccl-tests 119, 212, 290, 309 and nccl 812
        ("all_reduce", 8, H100, 460, 485),
        ("all_gather", 8, H100, 345, 372),
        ("all_reduce", 16, H100, 455, 485),
        ("all_reduce", 32, H100, 350, 384),
        ("all_reduce", 64, A100, 180, 196),
        ("all_reduce", 64, A100_4HDR, 90, 97),
    ],
)
def test_peak_bus_bandwidth(collective: str, ranks: int, fabric: Fabric, low: float, high: float) -> None:
    time_s = float(COLLECTIVES[collective].cost(8 * GIB, Group(ranks, 8), fabric).time_s)
    factor = (2 if collective == "all_reduce" else 1) * (ranks - 1) / ranks
    assert low < 8 * GIB * factor / time_s / 1e9 < high


@pytest.mark.parametrize(
    ("collective", "size", "group", "fabric", "algorithm", "protocol"),
    [
        ("all_reduce", 8 * GIB, Group(8, 8), A100, "ring", "Simple"),
        ("all_reduce", 8 * GIB, Group(8, 8), H100, "nvls", "Simple"),
        ("all_reduce", 8 * GIB, Group(16, 8), H100, "nvls-tree", "Simple"),
        ("all_reduce", 8 * GIB, Group(128, 8), H100, "ring", "Simple"),
        ("all_reduce", 1024.0, Group(256, 8), A100, "tree", "LL"),
        ("all_reduce", 1024.0, Group(8, 8), A100, "ring", "LL"),
        ("all_gather", 2.0**20, Group(512, 1, 8), H100, "pat", "Simple"),
        ("all_gather", 8 * GIB, Group(64, 8), H100, "ring", "Simple"),
    ],
)
def test_choice(collective: str, size: float, group: Group, fabric: Fabric, algorithm: str, protocol: str) -> None:
    found = COLLECTIVES[collective].cost(size, group, fabric)
    assert (ALGORITHMS[int(found.algorithm)], PROTOCOLS[int(found.protocol)]) == (algorithm, protocol)


def test_two_nodes_inflate_the_tree() -> None:
    # With two nodes a tree's node sends S, a ring's 2 (n-1)/n S: busbw beyond the NICs' 50 GB/s.
    found = COLLECTIVES["all_reduce"].cost(8 * GIB, Group(16, 8), A100_4EDR)
    assert ALGORITHMS[int(found.algorithm)] == "tree"
    assert 8 * GIB * 2 * 15 / 16 / float(found.time_s) > 4 * 12.5e9
    assert float(found.wire_bytes_per_s_per_nic) < 12.5e9


def test_a_ring_beats_the_tree_where_every_gpu_has_its_nic() -> None:
    """A channel of an Ampere tree reaches 23.6 GB/s, both ways together, over two nodes (tuning.cc): eight, 94.4.

    NVIDIA names 192 GB/s for two DGX A100, a ring's (NVIDIA/nccl issue 812), and says that with eight NICs the tree
    struggles (nccl-tests issue 196).
    """
    found = COLLECTIVES["all_reduce"].cost(8 * GIB, Group(16, 8), A100)
    assert ALGORITHMS[int(found.algorithm)] == "ring"
    tree_only = COLLECTIVES["all_reduce"].cost(64 * GIB, Group(16, 8), A100, algorithm="tree")
    assert 64 * GIB / float(tree_only.time_s) == pytest.approx(8 * 23.6e9 / 2, rel=5e-3)


@pytest.mark.parametrize(("nodes", "each"), [(2, 42.8e9), (4, 24e9), (64, 24e9)])
def test_a_tree_of_blackwell_nodes_has_eight_channels(nodes: int, each: float) -> None:
    """search.cc keeps eight channels of 48 GB/s single; tuning.cc has what one reaches, both ways together.

    Forced trees on B200 with eight NICs of 400 Gbit/s are published at 180 GB/s over two nodes and at 98 over four to
    64 (together-nccl-tests, 2026), within 5 % of it.
    """
    all_reduce, size = COLLECTIVES["all_reduce"], 256 * GIB
    forced = all_reduce.cost(size, Group(8 * nodes, 8), B200, algorithm="tree")
    assert size / float(forced.time_s) == pytest.approx(8 * each / 2, rel=0.02)
    # Left to itself NCCL takes a ring or the switches.
    assert ALGORITHMS[int(all_reduce.cost(size, Group(8 * nodes, 8), B200).algorithm)] != "tree"


def test_a_chain_of_72_gpus_fills_under_every_protocol() -> None:
    racks = replace(B200, gpus_per_node=72, nics_per_node=72)
    on = links(Group(1440, 72), racks, PLAIN)
    size = np.array(64 * 2.0**20)
    slowest = 2 * size / on.tree_bus
    for protocol, share in ((LL128, 0.92 * PLAIN.ll128_share_hopper), (SIMPLE, 1.0)):
        bare = latency(tree(np.array(1e-20), on, PLAIN), protocol) + float(slowest) / share
        # Half of a limit that is as long as several passes down the chain, or of several transfers.
        assert latency(tree(size, on, PLAIN), protocol) > 1.2 * bare


def test_a_deep_nvls_tree_loses_to_the_ring_of_eight_nics_and_wins_in_racks() -> None:
    """A node sends 2 S over its NICs, at 0.92 of their rate; racks use sixteen of them where a ring uses eight.

    Forced over 4 nodes of B200: 149 to 181 GB/s, their rings 161 to 201 (together-nccl-tests, 2026).
    """
    all_reduce, size = COLLECTIVES["all_reduce"], 256 * GIB
    nic = 50e9 * DEFAULT.nic_share_infiniband
    forced = all_reduce.cost(size, Group(32, 8), B200, algorithm="nvls-tree")
    assert size / float(forced.time_s) == pytest.approx(0.92 * 8 * nic / 2, rel=0.01)
    assert ALGORITHMS[int(all_reduce.cost(size, Group(32, 8), B200).algorithm)] == "ring"
    racks = replace(B200, gpus_per_node=64, nics_per_node=64)
    found = all_reduce.cost(size, Group(192, 64), racks)
    assert ALGORITHMS[int(found.algorithm)] == "nvls-tree"
    assert size / float(found.time_s) == pytest.approx(0.92 * 16 * nic / 2, rel=0.01)


def test_collnet_cannot_pass_a_node_s_links() -> None:
    slow = replace(B200, sharp=True, nvswitch=False, nvlink_bytes_per_s=100e9)
    found = COLLECTIVES["all_reduce"].cost(64 * GIB, Group(32, 8), slow, algorithm="collnet")
    on = links(Group(32, 8), slow, DEFAULT)
    assert 64 * GIB * 2 * 7 / 8 / float(found.time_s) == pytest.approx(float(on.bus), rel=0.01)


def test_switches_of_the_network_reduce_for_nodes_without_nvls() -> None:
    """CollNet: a node sends S to the network, at 0.85 of the NICs' rate from Hopper on (tuning.cc), on any number.

    B200 with SHARP and without NVLS is published at 313 GB/s on 4 nodes and at 273 on 64 (together-nccl-tests, 2026).
    """
    sharp = replace(B200, sharp=True, nvswitch=False)
    rates = []
    for nodes in (4, 64):
        found = COLLECTIVES["all_reduce"].cost(64 * GIB, Group(8 * nodes, 8), sharp)
        assert ALGORITHMS[int(found.algorithm)] == "collnet"
        rates.append(64 * GIB / float(found.time_s))
    assert rates == pytest.approx([8 * 50e9 * DEFAULT.nic_share_infiniband * 0.85] * 2, rel=0.01)
    # Eight GPUs that share four NICs reach two thirds of what those carry.
    four = replace(sharp, nics_per_node=4)
    found = COLLECTIVES["all_reduce"].cost(64 * GIB, Group(64, 8), four, algorithm="collnet")
    assert 64 * GIB / float(found.time_s) == pytest.approx(rates[0] / 2 / 1.5, rel=0.01)
    with pytest.raises(InputError, match="cannot run"):
        COLLECTIVES["all_reduce"].cost(GIB, Group(64, 8), B200, algorithm="collnet")


@pytest.mark.parametrize(("ranks", "rate"), [(16, 34e9), (32, 34e9), (64, 17e9), (512, 17e9)])
def test_a_send_between_nodes_has_two_channels_and_one_in_large_groups(ranks: int, rate: float) -> None:
    """paths.cc, 2.28; B200 is published at 34.1 GB/s on 2 and 4 nodes and at 17.2 on 8 to 64 (together-nccl-tests)."""

    def reached(fabric: Fabric, size: float = 64 * GIB) -> float:
        return size / float(COLLECTIVES["point_to_point"].cost(size, Group(ranks, 8), fabric).time_s)

    assert reached(B200) == pytest.approx(rate, rel=0.01)
    # A slower NIC is the limit itself, and of four for each GPU every one has a channel.
    share = DEFAULT.nic_share_infiniband * DEFAULT.point_to_point_share
    assert reached(replace(B200, nic_bytes_per_s=12.5e9)) == pytest.approx(12.5e9 * share, rel=0.01)
    four = replace(B200, nics_per_node=32, nic_bytes_per_s=12.5e9)
    assert reached(four) == pytest.approx(4 * 12.5e9 * share, rel=0.01)


@pytest.mark.parametrize(("ranks", "rate"), [(16, 68e9), (32, 68e9), (64, 34e9), (128, 17e9), (512, 17e9)])
def test_a_send_has_more_channels_from_2_29_on(ranks: int, rate: float) -> None:
    """paths.cc: 50 / 14 GB/s is four channels; 64 ranks, eight to a channel, leave two of 16 to each, 128 one."""
    fabric = replace(B200, nccl_minor=29)
    found = COLLECTIVES["point_to_point"].cost(64 * GIB, Group(ranks, 8), fabric)
    nic = 50e9 * DEFAULT.nic_share_infiniband * DEFAULT.point_to_point_share
    assert 64 * GIB / float(found.time_s) == pytest.approx(min(rate, nic), rel=0.01)


def test_forced_algorithm() -> None:
    all_reduce = COLLECTIVES["all_reduce"]
    forced = all_reduce.cost(8 * GIB, Group(16, 8), A100_4EDR, algorithm="ring")
    assert ALGORITHMS[int(forced.algorithm)] == "ring"
    assert float(forced.time_s) > float(all_reduce.cost(8 * GIB, Group(16, 8), A100_4EDR).time_s)
    with pytest.raises(InputError, match="cannot run"):
        all_reduce.cost(GIB, Group(8, 8), A100, algorithm="nvls")
    with pytest.raises(InputError, match="did you mean 'ring'"):
        all_reduce.cost(GIB, Group(8, 8), A100, algorithm="rings")


def test_nvls_needs_a_switch_and_three_ranks() -> None:
    for fabric, group in ((replace(H100, nvswitch=False), Group(8, 8)), (H100, Group(2, 2)), (H100, Group(80, 8))):
        assert np.isinf(nvls(np.array(GIB), links(group, fabric, DEFAULT), fabric, DEFAULT)[0].time_s)
    sharp = replace(H100, sharp=True)
    found = nvls(np.array(GIB), links(Group(80, 8), sharp, DEFAULT), sharp, DEFAULT)[0]
    assert np.isfinite(found.time_s)
    assert float(found.node_bytes) == GIB


@pytest.mark.parametrize(
    ("fabric", "chunk", "size", "published"),
    [
        # nccl-tests on DGX H100, DGX Cloud's sample output
        (H100, 128, GIB / 2, 250e9),
        (H100, 128, GIB, 266e9),
        # p6-b200, stas00/ml-engineering, network/README.md: AWS's plugin sets 512 KiB
        (B200, 512, 2 * GIB, 420e9),
        (B200, 512, 4 * GIB, 423e9),
        (B200, 512, 8 * GIB, 479e9),
    ],
)
def test_nvls_takes_short_chunks_of_messages_that_are_not_large(
    fabric: Fabric, chunk: int, size: float, published: float
) -> None:
    found = COLLECTIVES["all_reduce"].cost(size, Group(8, 8), replace(fabric, nvls_chunk_bytes=chunk * 2**10))
    assert ALGORITHMS[int(found.algorithm)] == "nvls"
    assert size / float(found.time_s) == pytest.approx(published, rel=0.035)


def test_nvls_in_one_node_by_hand() -> None:
    """enqueue.cc: 64 KiB below 64 * 24 channels * 8 heads * 128 KiB, 1.61e9 bytes; 32 channels before 2.27."""

    def transfer(size: float, fabric: Fabric = B200, gpus: int = 8) -> float:
        group = Group(gpus, gpus)
        (one,) = nvls(np.array(size), links(group, fabric, PLAIN), fabric, replace(PLAIN, tree_fill_limit=1e-30))
        return float(one.time_s) - PLAIN.nvls_base_s

    rate = 900e9 * DEFAULT.nvls_share_blackwell
    short = DEFAULT.nvls_short_share_blackwell
    longest = 64 * 24 * 8 * 128 * 2**10
    assert transfer(GIB) == pytest.approx(1.75 * GIB / rate / short)
    assert transfer(0.99 * longest) == pytest.approx(transfer(longest)) == pytest.approx(1.75 * longest / rate)
    assert transfer(GIB + 2**29, replace(B200, nccl_minor=26)) == pytest.approx(1.75 * 1.5 * GIB / rate / short)
    # 64 GPUs of a rack have 32 heads and pass 31/32 of a switch's rate (tuning.cc), eight GPUs 7/8.
    rack = replace(B200, nics_per_node=64, gpus_per_node=64)
    assert transfer(64 * GIB, rack, 64) == pytest.approx(1.75 * (63 / 64) * (32 / 31) * 64 * GIB / rate)
    assert transfer(64 * GIB, rack, 72) == pytest.approx(1.75 * (71 / 72) * (32 / 31) * 64 * GIB / rate)


def test_wire_rate_counts_all_groups() -> None:
    # Eight data-parallel groups under tensor parallelism keep eight NICs busy at the rate they reach.
    found = COLLECTIVES["all_gather"].cost(2 * GIB, Group(8, 1, 8), H100)
    assert float(found.wire_bytes_per_s_per_nic) == pytest.approx(50e9 * DEFAULT.nic_share_infiniband, rel=0.02)
    assert float(COLLECTIVES["all_gather"].cost(2 * GIB, Group(8, 8), H100).wire_bytes_per_s_per_nic) == 0


def test_long_rings_hide_latency_behind_transfer() -> None:
    # FSDP's gather of a 13B model's layer over 480 A100 with four NICs: within a tenth of the bandwidth bound,
    # where adding up 479 steps of latency would cost 2.4 ms more.
    size, group = 600 * 2.0**20, Group(480, 8)
    on = links(group, A100_4HDR, DEFAULT)
    bound = size * 479 / 480 / float(on.ring_bus)
    found = float(COLLECTIVES["all_gather"].cost(size, group, A100_4HDR).time_s)
    assert bound < found < 1.12 * bound
    large = float(COLLECTIVES["all_gather"].cost(8 * GIB, Group(2048, 8), A100).time_s)
    assert large < 1.05 * 8 * GIB / (8 * 25e9 * DEFAULT.nic_share_infiniband)


def test_pipeline_limits() -> None:
    assert float(overlapped(np.array(1.0), np.array(1e-9))) == pytest.approx(1.0)
    assert float(overlapped(np.array(1e-9), np.array(1.0))) == pytest.approx(1.0)
    assert float(fill(np.array(1e-9), np.array(1.0), 2.0, 3.0)) == pytest.approx(2e-9)
    assert float(fill(np.array(1e9), np.array(1.0), 2.0, 3.0)) == pytest.approx(3.0)


CARDS = Fabric(architecture_code("other"), 64e9, False, 8, 50e9, fabric_code("roce"), 8)


def test_cards_without_nvlink_run_at_their_slot() -> None:
    """PCIe 5.0 x16, 64 GB/s one way, of which NCCL counts on about 0.8: 2 (n-1)/n S over it for a large all-reduce."""
    found = COLLECTIVES["all_reduce"].cost(8 * GIB, Group(16, 8), CARDS)
    assert float(found.time_s) == pytest.approx(2 * 15 / 16 * 8 * GIB / (0.8 * 64e9 * DEFAULT.ring_share), rel=0.01)


def test_one_slot_carries_what_a_card_sends_to_peers_and_to_nics() -> None:
    slot = 0.8 * 64e9 * DEFAULT.ring_share * DEFAULT.copy_share
    found = COLLECTIVES["all_to_all"].cost(8 * GIB, Group(16, 8), CARDS)
    assert float(found.time_s) == pytest.approx(15 / 16 * 8 * GIB / slot, rel=0.01)
    # NVLink and NIC send side by side: the slower one counts.
    switched = COLLECTIVES["all_to_all"].cost(8 * GIB, Group(16, 8), H100)
    own = 50e9 * DEFAULT.nic_share_infiniband * DEFAULT.point_to_point_share
    assert float(switched.time_s) == pytest.approx(8 / 16 * 8 * GIB / own, rel=0.01)


def test_cards_without_nvlink_run_no_ll128() -> None:
    size = np.geomspace(1e3, 1e9, 40)
    assert LL128 not in COLLECTIVES["all_reduce"].cost(size, Group(8, 8), CARDS).protocol
    assert LL128 in COLLECTIVES["all_reduce"].cost(size, Group(8, 8), A100).protocol


@pytest.mark.parametrize("name", ["all_reduce", "all_gather", "point_to_point"])
def test_a_rank_sends_what_its_slot_carries_however_many_nics(name: str) -> None:
    """topo.h: 48 GB/s for PCIe 5.0 x16. Four NICs of 50 GB/s beside one GPU send no more than that together."""
    one = replace(H100, nics_per_node=4, gpus_per_node=1)
    found = COLLECTIVES[name].cost(8 * GIB, Group(2, 1), one)
    assert 0.75 * 48e9 < 4 * float(found.wire_bytes_per_s_per_nic) <= 48e9


def test_ampere_has_balanced_trees() -> None:
    """tuning.cc takes 0.92 of the bus, and 0.85 of that for a plain tree, which search.cc tries from Hopper on."""
    wide = [replace(fabric, nics_per_node=64, nic_bytes_per_s=100e9) for fabric in (A100, H100)]
    on = [links(Group(16, 8), fabric, DEFAULT) for fabric in wide]
    rates = [
        2 * 64 * GIB / latency(tree(np.array(64 * GIB), each, DEFAULT), SIMPLE) / float(each.chain_bus) for each in on
    ]
    assert rates == pytest.approx([0.92, 0.92 * 0.85], rel=5e-3)


@pytest.mark.parametrize(("gpus", "share"), [(8, 8 / 7), (4, 4 / 3), (1, np.inf)])
def test_a_chain_that_leaves_the_node_spares_the_links_of_one_gpu(gpus: int, share: float) -> None:
    """Of g GPUs g - 1 send to a peer: a channel of rate r costs the links of all g together (g-1) r, each (g-1)/g r."""
    fast = replace(H100, nics_per_node=64, nic_bytes_per_s=100e9)
    across, inside = (links(Group(gpus * nodes, gpus), fast, DEFAULT) for nodes in (2, 1))
    assert float(across.chain_bus) == pytest.approx(share * float(across.bus))
    assert float(inside.chain_bus) == float(inside.bus)


def test_hopper_rings_across_nodes_reach_what_their_channels_carry() -> None:
    """DGX H100 with eight NICs of 400 Gbit/s: 16 channels of 24 GB/s in NCCL's graph, 384 on links of 370.8.

    NVIDIA names 366 GB/s for an all-reduce and over 380 for 24 channels (nccl-tests issue 309); all-gathers are
    published at 323 to 331. NCCL had 32 channels before 2.20, and B200 is published at 392 GB/s (together-nccl-tests).
    """

    def bus(fabric: Fabric, collective: str = "all_reduce", passes: int = 2) -> float:
        found = COLLECTIVES[collective].cost(64 * GIB, Group(128, 8), fabric)
        return passes * 127 / 128 * 64 * GIB / float(found.time_s)

    nics = 8 * 50e9 * DEFAULT.nic_share_infiniband
    assert nics > 0.824 * 450e9
    assert bus(H100) == pytest.approx(366e9, rel=5e-3)
    assert 320e9 < bus(H100, "all_gather", 1) < 331e9
    for unbound in (replace(H100, min_channels=24), replace(H100, nccl_minor=19), B200):
        assert bus(unbound) == pytest.approx(nics, rel=5e-3)
    assert bus(replace(H100, min_channels=8)) == bus(H100)


def test_rings_of_blackwell_racks_have_sixteen_channels_from_2_28_on() -> None:
    """search.cc, sm100SpeedArrayInter: 45.1 GB/s, a sixteenth of NVLink's 721.8; before, eight at a NIC's rate."""
    rack = replace(B200, nics_per_node=64, gpus_per_node=64)
    new, old = (links(Group(128, 64), replace(rack, nccl_minor=minor), DEFAULT) for minor in (28, 27))
    assert float(old.ring_bus) == pytest.approx(8 * 50e9 * DEFAULT.nic_share_infiniband)
    assert float(new.ring_bus) == pytest.approx(721.8e9 * DEFAULT.ring_share * 64 / 63, rel=1e-3)


@pytest.mark.parametrize("size", [4 * MIB, 16 * MIB, 64 * MIB, GIB])
def test_an_nvls_tree_over_two_nodes_goes_before_rings(size: float) -> None:
    """By NCCL's tables 67 us against a ring's 75 (LL128) and 184 (Simple), and 462 GB/s against 353 and 384."""
    found = COLLECTIVES["all_reduce"].cost(size, Group(16, 8), H100)
    assert ALGORITHMS[int(found.algorithm)] == "nvls-tree"
    # What is asked for is run, and nodes without NVLS have rings.
    assert COLLECTIVES["all_reduce"].cost(size, Group(16, 8), H100, algorithm="ring").time_s > 0
    without = COLLECTIVES["all_reduce"].cost(size, Group(16, 8), replace(H100, nvswitch=False))
    assert ALGORITHMS[int(without.algorithm)] in ("ring", "tree")


def test_ll128_fills_a_ring_between_nodes_and_not_inside_one() -> None:
    for nodes, filled in ((1, 0.0), (2, 1.0)):
        on = links(Group(8 * nodes, 8), A100, DEFAULT)
        sent = np.array(32 * MIB)
        rate = min(0.92 * float(on.ring_bus), DEFAULT.ll128_share * float(on.bus))
        crossings = 2 * (nodes - 1)
        inside = 2 * (8 * nodes - 1) - crossings
        steps = inside * 1.9e-6 + crossings * (4e-6 + DEFAULT.hop_infiniband_s)
        filling = fill(sent / rate, on.base_s, DEFAULT.ring_fill_chunks, DEFAULT.ring_fill_limit)
        expected = float(on.launch_s + on.base_s + overlapped(sent / rate, np.array(steps)) + filled * filling)
        assert latency(ring(sent, 2, on, DEFAULT), LL128) == pytest.approx(expected)
