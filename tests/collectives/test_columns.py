"""Tables as people write them: names, units, what is left out; no row with a GPU and a NIC rate is refused."""

import numpy as np
import pytest

from flopcast.collectives.columns import collective_name, tidy
from flopcast.collectives.headings import why_untimed
from flopcast.collectives.measured import forecast_rows, read
from flopcast.errors import InputError


def table(**cells: object) -> dict[str, np.ndarray]:
    return {name: np.array([cell], dtype=object if isinstance(cell, str) else None) for name, cell in cells.items()}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("AllReduce", "all_reduce"),
        ("all-reduce", "all_reduce"),
        ("ncclAllReduce", "all_reduce"),
        ("all_reduce_perf", "all_reduce"),
        ("all_gather_into_tensor", "all_gather"),
        ("hypercube_perf", "all_gather"),
        ("reduce_scatter_tensor", "reduce_scatter"),
        ("alltoall", "all_to_all"),
        ("all_to_all_single", "all_to_all"),
        ("gather", "all_to_all"),
        ("Bcast", "broadcast"),
        ("send/recv", "point_to_point"),
        ("barrier", "barrier"),
    ],
)
def test_collectives_by_other_names(written: str, meant: str) -> None:
    assert collective_name(written) == meant


@pytest.mark.parametrize(
    ("written", "gbit"),
    [
        *(("400", 400), ("400 Gbit/s", 400), ("400Gb/s", 400), ("50 GB/s", 400), ("NDR", 400), ("8x400G", 400)),
        *(("HDR200", 200), ("EDR", 100), ("2 x HDR", 200)),
    ],
)
def test_nic_rates_with_units(written: str, gbit: float) -> None:
    found = tidy(table(gpu="H100", collective="all_reduce", bytes=1e9, nic_gbit=written))
    assert found["nic_gbit"][0] == gbit
    assert found["n_nodes"][0] == 2


def test_columns_by_other_names_and_sizes_with_suffixes() -> None:
    found = tidy(
        table(**{"GPU type": "A100", "Op": "all_gather", "Size (B)": "1 GiB", "Time (us)": "4,500", "Nodes": 2})
    )
    assert (found["bytes"][0], found["time_us"][0], found["n_nodes"][0]) == (2**30, 4500, 2)
    assert found["gpus_per_node"][0] == 8
    assert found["series"][0] == "A100 2 x 8"


@pytest.mark.parametrize(
    ("collective", "busbw"), [("all_reduce", 175.0), ("reduce_scatter", 87.5), ("all_to_all", 87.5), ("reduce", 100.0)]
)
def test_time_from_either_bandwidth(collective: str, busbw: float) -> None:
    """8 ranks, 1 GB at 100 GB/s: 10 ms, by nccl-tests' definitions of bus bandwidth."""
    common = {"gpu": "A100", "collective": collective, "bytes": 1e9, "gpus_per_node": 8, "n_nodes": 1}
    assert tidy(table(**common, busbw_GBps=busbw))["time_us"][0] == pytest.approx(1e4)
    assert tidy(table(**common, algbw_GBps=100.0))["time_us"][0] == pytest.approx(1e4)
    del common["bytes"]
    assert tidy(table(**common, time_us=1e4, algbw_GBps=100.0))["bytes"][0] == 1e9


@pytest.mark.parametrize(
    ("cells", "time_us"),
    [
        ({"BusBW (Gbps)": 1400.0}, 1e4),
        ({"busbw_gbps": 175.0}, 1e4),
        ({"Bus bandwidth": "175 GB/s"}, 1e4),
        ({"busbw": "0.175 TB/s"}, 1e4),
        ({"out-of-place busbw (GB/s)": 175.0, "in-place busbw (GB/s)": 100.0}, 1e4),
        ({"avg algbw": 100.0}, 1e4),
        ({"Latency (ms)": 10.0}, 1e4),
        ({"latency": "10 ms"}, 1e4),
        ({"time": "0.01s"}, 1e4),
        ({"Out-of-place time (us)": 1e4, "in-place time (us)": 9e3}, 1e4),
        # The micro sign and the Greek letter.
        *(({heading: 1e4}, 1e4) for heading in ("time (\u00b5s)", "Latency [\u03bcs]", "time [usec]")),
        *(({heading: 10.0}, 1e4) for heading in ("avg time (msec)", "runtime_ms", "Elapsed time (ms)")),
        *(({heading: 1e7}, 1e4) for heading in ("elapsed_ns", "time (ns)")),
        ({"time_ms": "10,000.0 \u00b5s"}, 1e4),  # a cell's own unit counts
        ({"time stamp": 5.0, "time": 7.0, "time_ms": 10.0}, 1e4),  # and a column that names its unit
        ({"busbw (MB/s)": 175e3}, 1e4),
        ({"busbw (GiB/s)": 175e9 / 2**30}, 1e4),
        ({"busbw_GB_s": 175.0}, 1e4),
        ({"busbw [gbit/s]": 1400.0}, 1e4),
        ({"busbw": f"{175e9 / 2**20} MiB/s"}, 1e4),
    ],
)
def test_units_and_qualifiers_of_results(cells: dict[str, object], time_us: float) -> None:
    """8 ranks reduce 1 GB in 10 ms: 100 GB/s, times 2 * 7/8 on the bus."""
    common = {"gpu": "A100", "collective": "all_reduce", "bytes": 1e9, "gpus_per_node": 8, "n_nodes": 1}
    assert tidy(table(**common, **cells))["time_us"][0] == pytest.approx(time_us)


@pytest.mark.parametrize(
    ("cells", "size"),
    [
        ({"size_mb": 512}, 2**29),
        ({"Message size (GiB)": 2}, 2**31),
        ({"Data size": "16 GiB"}, 2**34),
        ({"Payload": 8}, 8),
        ({"size_mb": "2 GiB"}, 2**31),
    ],
)
def test_sizes_with_the_unit_in_the_heading(cells: dict[str, object], size: int) -> None:
    assert tidy(table(gpu="A100", nccl_test="allreduce", **cells))["bytes"][0] == size


@pytest.mark.parametrize(
    "cells",
    [
        {"nic": "16x200G"},
        {"nic": "16 x 200 Gbps"},
        {"nic": "16xHDR"},
        {"fabric": "EFAv3 16x200Gb"},
        {"interconnect": "EFAv3 16x200Gb (p5en)"},
        {"nic": "200G", "nics": 16},
    ],
)
def test_nics_counted_with_their_rate(cells: dict[str, object]) -> None:
    found = tidy(table(gpu="H200", collective="all_reduce", bytes=1e9, n_nodes=4, **cells))
    assert (found["nics_per_node"][0], found["nic_gbit"][0]) == (16, 200)


@pytest.mark.parametrize(
    ("ranks", "given", "nodes", "per_node"),
    [(16, {}, 2, 8), (4, {}, 1, 4), (64, {"gpus_per_node": 4}, 16, 4), (24, {"n_nodes": 3}, 3, 8), (9, {}, 2, 5)],
)
def test_nodes_from_ranks(ranks: int, given: dict[str, int], nodes: int, per_node: int) -> None:
    found = tidy(table(gpu="H100", collective="all_reduce", bytes=1e9, ranks=ranks, **given))
    assert (found["n_nodes"][0], found["gpus_per_node"][0]) == (nodes, per_node)


@pytest.mark.parametrize("gpu", ["H100", "NVIDIA A100-SXM4-80GB", "Tesla V100-SXM2-32GB", "MI300X", "X900"])
@pytest.mark.parametrize("collective", ["AllReduce", "alltoall", "reduce", "sendrecv", "scatter", "broadcast"])
@pytest.mark.parametrize(("gpus", "nodes"), [(1, 2), (3, 1), (7, 5), (8, 1), (8, 500), (72, 2), ("", "")])
def test_no_row_with_gpu_and_nic_is_refused(gpu: str, collective: str, gpus: object, nodes: object) -> None:
    notes = "NCCL_ALGO=NVLSTree" if collective == "AllReduce" else ""
    row = table(gpu=gpu, collective=collective, bytes="64M", gpus_per_node=gpus, n_nodes=nodes, nic="200G", notes=notes)
    for calibrated in (False, True):
        seconds, skipped = forecast_rows(row | table(time_us=1000.0), calibrated=calibrated)
        assert skipped[0] == ""
        assert np.isfinite(seconds[0])
        assert seconds[0] > 0


def test_an_algorithm_that_cannot_run_is_replaced() -> None:
    row = table(gpu="A100", collective="all_reduce", bytes=1e9, gpus_per_node=8, n_nodes=1)
    assert forecast_rows(row | table(notes="NCCL_ALGO=NVLS"))[0] == forecast_rows(row)[0]


@pytest.mark.parametrize(
    ("written", "same"),
    [
        *(("IB", "infiniband"), ("InfiniBand NDR", "infiniband"), ("RoCE v2", "roce"), ("EFAv3", "efa")),
        *(("TCPXO", "tcpxo"), ("Slingshot 11", "slingshot"), ("tcp", "ethernet"), ("", "infiniband")),
    ],
)
def test_fabrics_by_other_names(written: str, same: str) -> None:
    row = table(gpu="H100", collective="all_reduce", bytes=1e9, gpus_per_node=8, n_nodes=4, nic_gbit=400)
    code = read(row | table(fabric=written)).fabric.fabric[0]
    assert code == read(row | table(fabric=same)).fabric.fabric[0]
    if written:
        assert (
            code == read(row | table(fabric="", interconnect=f"{written} 8x400Gb")).fabric.fabric[0]
            or same == "ethernet"
        )


def test_what_a_node_is_joined_by() -> None:
    def rate(**cells: object) -> tuple[float, int]:
        found = read(table(**({"gpu": "X900", "collective": "all_reduce", "bytes": 1e9} | cells))).fabric
        return float(found.nvlink_bytes_per_s[0]), int(found.architecture[0])

    assert rate(interconnect="NVLink4/NVSwitch") == rate(gpu="H100")
    assert rate(interconnect="900 GB/s")[0] == 450e9
    assert rate(interconnect="IB NDR 4 NIC (~24 GB/s each)")[0] == rate()[0] == 32e9
    assert rate(gpu="H100", interconnect="PCIe")[0] == rate(gpu="H100", interconnect="PCIe Gen5 x16")[0] == 64e9
    assert rate(gpu="H100", interconnect="RoCE, PCIe Gen5 NICs")[0] == 450e9


def test_a_bridge_counts_for_a_pair_of_cards_only() -> None:
    """NVIDIA A40 datasheet: PCIe 4.0 x16, and a bridge of 112.5 GB/s that joins two."""
    common = {"gpu": "A40", "interconnect": "NVLink bridge 112.5 GB/s", "collective": "all_reduce", "bytes": 1e9}
    rates = [read(table(**common, gpus_per_node=gpus)).fabric.nvlink_bytes_per_s[0] for gpus in (2, 4)]
    assert rates == [56.25e9, 32e9]


@pytest.mark.parametrize(
    ("card", "rate"), [("A100-PCIe-80GB", 300e9), ("H100 PCIe", 300e9), ("A40", 56.25e9), ("L40S", 32e9)]
)
def test_a_bridge_without_a_rate_is_the_card_s_own(card: str, rate: float) -> None:
    """NVIDIA's datasheets: bridges of 600 and 112.5 GB/s, both ways together; an L40S has none."""
    row = table(gpu=card, interconnect="NVLink bridge", collective="all_reduce", bytes=1e9, gpus_per_node=2)
    assert read(row).fabric.nvlink_bytes_per_s[0] == rate


@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_a_mesh_has_one_link_to_each_peer(gpus: int) -> None:
    """AMD: every MI300X has a link to each of the other seven, which carries 48 GB/s one way of its 64.

    The model takes 0.8 of what a table of links says, as NCCL does.
    """
    rate = (gpus - 1) * 48e9 / 0.8
    row = table(gpu="MI300X", collective="all_reduce", bytes=1e9, gpus_per_node=gpus, n_nodes=1)
    assert read(row).fabric.nvlink_bytes_per_s[0] == pytest.approx(rate)


@pytest.mark.parametrize(
    ("nodes", "notes", "joined"),
    [
        (16, "", (64, 1, 64)),
        (18, "", (72, 1, 72)),
        (32, "", (64, 2, 64)),
        (16, "NCCL_MNNVL_ENABLE=0", (4, 16, 4)),
        (1, "", (4, 1, 4)),
        (19, "", (4, 19, 4)),  # cannot be two equal racks
        (16, "MNNVL off in this run", (4, 16, 4)),
        (16, "NCCL_MNNVL_ENABLE=1, about as fast as with MNNVL off", (64, 1, 64)),
        (16, "TWO NVLink domains, 8 nodes per domain", (32, 2, 32)),
        (24, "in 3 NVL72 racks of 32 GPUs", (32, 3, 32)),
        (24, "may span two racks", (48, 2, 48)),
        (16, "may span two racks", (64, 1, 64)),
        (2, "cross-NVLink-domain RDMA", (4, 2, 4)),
        (2, "in different domains", (4, 2, 4)),
        (3, "an NVL4 partition of each of three racks", (4, 3, 4)),
        (18, "half of an NVL36", (36, 2, 36)),
    ],
)
def test_boards_of_a_rack_are_one_node(nodes: int, notes: str, joined: tuple[int, int, int]) -> None:
    """GB200 NVL72 datasheet: NVLink switches join 18 boards of four; one NIC per GPU here."""
    row = table(gpu="GB200", collective="all_reduce", bytes=1e9, gpus_per_node=4, n_nodes=nodes, nics=4, notes=notes)
    found = tidy(row)
    assert (found["gpus_per_node"][0], found["n_nodes"][0], found["nics_per_node"][0]) == joined
    if joined[1] == 1:
        assert forecast_rows(row)[1][0] == ""  # one node needs no NIC rate


def test_more_than_four_gpus_have_a_switch() -> None:
    """NVIDIA HGX boards: NVLinks join four Hoppers to each other, NVSwitches eight, of which a job may take six."""
    row = {"gpu": "H200", "collective": "all_reduce", "bytes": 8.0 * 2**30, "n_nodes": 1}
    for gpus, gain in ((4, False), (6, True)):
        default, off = (
            float(forecast_rows(table(**row, gpus_per_node=gpus, notes=notes))[0][0])
            for notes in ("", "NCCL_NVLS_ENABLE=0")
        )
        assert (default < 0.9 * off) == gain


def test_what_no_table_can_do_without() -> None:
    with pytest.raises(InputError, match="columns gpu, collective, bytes are missing"):
        tidy(table(a=1, b=2))


@pytest.mark.parametrize(
    ("cell", "time_us"), [("8,500.5", 8500.5), ("1,073,741", 1073741.0), ("8500,5", np.nan), ("8 500", np.nan)]
)
def test_a_comma_groups_thousands_or_the_cell_is_no_number(cell: str, time_us: float) -> None:
    row = table(gpu="A100", collective="all_reduce", bytes=1e9, time=cell)
    np.testing.assert_equal(tidy(row)["time_us"][0], time_us)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"time (fortnights)": 3.0}, "column 'time (fortnights)' is no time or bandwidth in a known unit"),
        ({"busbw (%)": 3.0}, "column 'busbw (%)' is no time or bandwidth in a known unit"),
        ({"time_us": "8500,5"}, "time_us is '8500,5'; write a number above 0"),
        ({"busbw": "180 bananas"}, "busbw is '180 bananas'; write a number above 0"),
        ({"time": -8.0}, "time is '-8.0'; write a number above 0"),
        ({"time_us": ""}, "neither a time nor a bandwidth is given"),
        ({"timestamp": "12:00"}, "neither a time nor a bandwidth is given"),
    ],
)
def test_why_a_row_has_no_time(cells: dict[str, object], words: str) -> None:
    row = table(gpu="A100", collective="all_reduce", bytes=1e9, **cells)
    assert np.isnan(tidy(row)["time_us"][0]) or tidy(row)["time_us"][0] < 0
    assert why_untimed(row).startswith(words)


@pytest.mark.parametrize(
    ("column", "cell"), [("n_nodes", "two"), ("n_nodes", -1), ("gpus_per_node", 0), ("ranks", 1.5), ("ranks", 1e30)]
)
def test_a_count_that_is_none_is_no_single_node(column: str, cell: object) -> None:
    row = table(gpu="A100", collective="all_reduce", bytes=1e9, **{column: cell})
    for columns in (row, tidy(row)):  # tidied once, or twice
        assert forecast_rows(columns)[1][0] == f"{column} is '{cell}'; write a whole number from 1 to 10,000,000"
    assert forecast_rows(row | table(**{column: "n/a"}))[1][0] == ""


@pytest.mark.parametrize("cell", [np.inf, -np.inf, 1e25, "inf", "1e400"])
@pytest.mark.parametrize("column", ["bytes", "time_us", "busbw", "nic_gbit"])
def test_what_nothing_can_have_is_no_number(column: str, cell: object) -> None:
    """One such cell would otherwise refuse the table, or be forecast as a number that wrapped around."""
    row = table(gpu="A100", collective="all_reduce", **({"bytes": 1e9} | {column: cell}))
    name = {"busbw": "busbw_GBps"}.get(column, column)
    found = tidy(row)
    assert np.isnan(found[name][0])
    if column == "bytes":
        assert forecast_rows(row)[1][0] == "no number of bytes, 0 or more, is given"


def test_one_rank_alone_is_skipped() -> None:
    row = table(gpu="A100", collective="all_reduce", bytes=1e9, gpus_per_node=1, n_nodes=1, time_us=30.0)
    assert forecast_rows(row, calibrated=True)[1][0] == "one rank alone exchanges nothing"


@pytest.mark.parametrize(
    ("heading", "name"),
    [
        *((size, "bytes") for size in ("msg_size_bytes", "Message size (B)", "data size", "Buffer size [bytes]")),
        *((nic, "nic_gbit") for nic in ("NIC speed (Gbps)", "nic_bandwidth_gbps", "NIC rate [Gbit/s]")),
        ("GPUs/node", "gpus_per_node"),
        ("NICs/node", "nics_per_node"),
    ],
)
def test_a_unit_or_a_stroke_in_a_heading(heading: str, name: str) -> None:
    row = table(gpu="A100", collective="all_reduce", **({"bytes": 1e9, "n_nodes": 2} | {heading: 8.0}))
    if name == "bytes":
        del row["bytes"]
    assert tidy(row)[name][0] == 8.0
