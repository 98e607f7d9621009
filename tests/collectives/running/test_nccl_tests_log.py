"""Logs in the formats of nccl-tests, old and new, whole and broken."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from flopcast.collectives.measured import forecast_rows, read
from flopcast.collectives.running.log_calibration import as_json, columns, fit, residual_table
from flopcast.collectives.running.nccl_tests_log import read_log
from flopcast.collectives.running.results import Report, Row, table
from flopcast.errors import InputError

DEVICES = "".join(
    f"#  Rank {rank:2d} Group  0 Pid {1000 + rank:6d} on {'node-a' if rank < 4 else 'node-b':>10} "
    f"device {rank % 4:2d} [0000:0{rank}:00] NVIDIA A100-SXM4-40GB\n"
    for rank in range(8)
)


def columns_of(*words: object) -> str:
    """A line of nccl-tests' table, in its widths."""
    widths = (12, 12, 8, 6, 6, *(7, 6, 6, 6) * 2)
    return "  ".join(f"{word!s:>{width}}" for word, width in zip(words, widths, strict=True)) + "\n"


HEADING = ("count", "type", "redop", "root", *("time", "algbw", "busbw", "#wrong") * 2)
NEW = (
    "# nccl-tests version 2.19.6 nccl-headers=22907 nccl-library=22907\n"
    "# Collective test starting: all_gather_perf\n"
    "# nThread 1 nGpus 1 minBytes 1024 maxBytes 4096 step: 2(factor) warmup iters: 1 iters: 20 agg iters: 1 "
    "validation: 1 graph: 0 unalign: 0\n#\n# Using devices\n" + DEVICES + "#\n"
    "#                                                              out-of-place                       in-place\n"
    + columns_of("#       size", *HEADING)
    + columns_of("#        (B)", "(elements)", "", "", "", *("(us)", "(GB/s)", "(GB/s)", "") * 2)
    + columns_of(1024, 32, "float", "none", -1, "20.00", 0.05, 0.04, 0, "19.00", 0.05, 0.05, 0)
    + "node-a:1000:1000 [0] NCCL INFO something in between\n"
    + columns_of(2048, 64, "float", "none", -1, "21.00", "0.10", 0.09, 0, "20.50", "0.10", 0.09, 2)
    + columns_of(2**29, 2**24, "float", "none", -1, "5000.0", 107.37, 93.95, 0, "4900.0", 109.57, 95.87, "N/A")
    + "# Out of bounds values : 0 OK\n# Avg bus bandwidth    : 0.07 \n#\n# Collective test concluded: all_gather_perf\n"
)
# A table of 2021: no root, "error" for "#wrong", no name of the collective, and no reduction.
OLD = (
    "# nThread 1 nGpus 8 minBytes 4 maxBytes 8 step: 2(factor) warmup iters: 5 iters: 20 validation: 0\n#\n"
    "# Using devices\n#   Rank  0 Pid 112424 on localhost device  0 [0x00] A100-SXM4-40GB\n#\n"
    "#       size         count    type   redop     time   algbw   busbw  error     time   algbw   busbw  error\n"
    "#        (B)    (elements)                     (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)\n"
    "           4             1   float     sum    34.73    0.00    0.00    N/A    35.30    0.00    0.00    N/A\n"
    "           8             2   float     sum    34.66    0.00    0.00  0e+00    34.84    0.00    0.00  0e+00\n"
    "# Out of bounds values : 0 OK\n# Avg bus bandwidth    : 68.4048\n#\n"
)
DOCUMENT = {
    "version": 3,
    "args": ["/opt/nccl-tests/build/alltoall_perf", "-b", "8"],
    "nccl_version": 22907,
    "config": {"devices": [{"rank": 0, "hostname": "node-a", "device_info": "NVIDIA H100"}]},
    "results": [
        {
            "size": 1024,
            "count": 32,
            "type": "float",
            "redop": "none",
            "root": "    -1",
            "out_of_place": {"time": 30.5, "alg_bw": 0.03, "bus_bw": 0.02, "nwrong": 0.0},
            "in_place": {"time": 31.5, "alg_bw": 0.03, "bus_bw": 0.02, "nwrong": None},
        },
        {
            "size": 2048,
            "count": 64,
            "type": "float",
            "redop": "none",
            "root": "    -1",
            "out_of_place": None,
            "in_place": {"cpu_time": 33.0, "alg_bw": 0.06, "bus_bw": 0.05, "nwrong": 1.0},
        },
    ],
}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.log"
    path.write_text(text)
    return path


def test_a_new_text_log(tmp_path: Path) -> None:
    log = read_log(written(tmp_path, NEW))
    assert log.hosts == ("node-a",) * 4 + ("node-b",) * 4
    assert log.devices == ("NVIDIA A100-SXM4-40GB",) * 8
    assert (log.num_nodes, log.nccl_version) == (2, "2.29.7")
    assert [(row.num_bytes, row.count, row.in_place, row.num_wrong) for row in log.rows] == [
        *((1024, 32, False, 0), (1024, 32, True, 0), (2048, 64, False, 0), (2048, 64, True, 2)),
        *((2**29, 2**24, False, 0), (2**29, 2**24, True, None)),
    ]
    first = log.rows[0]
    assert first.collective == "all_gather"
    assert first.time_s == pytest.approx(20e-6)
    assert first.busbw_bytes_per_s == pytest.approx(0.04e9)
    assert (first.dtype, first.reduction, first.root) == ("float", "none", -1)


def test_an_old_text_log_needs_the_collective(tmp_path: Path) -> None:
    path = written(tmp_path, OLD)
    with pytest.raises(InputError, match=r"line 8: the log does not say which collective"):
        read_log(path)
    log = read_log(path, "all_reduce")
    assert [row.num_wrong for row in log.rows] == [None, None, 0, 0]
    assert [row.time_s * 1e6 for row in log.rows] == pytest.approx([34.73, 35.30, 34.66, 34.84])
    assert log.devices == ("A100-SXM4-40GB",)
    # The oldest all-gather tables leave the reduction empty.
    empty = written(tmp_path, OLD.replace("   sum ", "       "))
    assert [row.time_s for row in read_log(empty, "all_gather").rows] == [row.time_s for row in log.rows]


def test_a_json_log(tmp_path: Path) -> None:
    log = read_log(written(tmp_path, json.dumps(DOCUMENT)))
    assert [(row.collective, row.num_bytes, row.in_place, row.num_wrong) for row in log.rows] == [
        ("all_to_all", 1024, False, 0),
        ("all_to_all", 1024, True, None),
        ("all_to_all", 2048, True, 1),
    ]
    assert [row.time_s * 1e6 for row in log.rows] == pytest.approx([30.5, 31.5, 33.0])
    assert (log.hosts, log.devices, log.nccl_version) == (("node-a",), ("NVIDIA H100",), "2.29.7")


def test_what_this_benchmark_prints_is_read_back(tmp_path: Path) -> None:
    rows = [
        Row("torus_all_reduce", size, size // 4, "float", "sum", -1, place, 1e-4, size / 1e-4, size / 1e-4, 0.1, 0)
        for size in (4096, 8192)
        for place in (False, True)
    ]
    about = {
        "backend": "gloo",
        "arguments": {"begin": 4096, "end": 8192, "factor": 2, "warmup": 1, "iterations": 5},
        "versions": {"flopcast": "0.1.0", "torch": "2.13.0"},
        "topology": {"ranks": 2, "nodes": 1, "torus": [1, 2], "hosts": ["a", "a"]},
        "devices": ["some processor", "some processor"],
    }
    log = read_log(written(tmp_path, "\n".join(table(Report(tuple(rows), about)))))
    assert [(r.collective, r.num_bytes, r.in_place, r.num_wrong) for r in log.rows] == [
        (r.collective, r.num_bytes, r.in_place, r.num_wrong) for r in rows
    ]
    assert log.rows[0].time_s == pytest.approx(1e-4)
    assert log.devices == ("some processor",) * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "run.log: is empty; name a log"),
        ("hello\nworld\n", "line 2: the file ends without a line '# size count"),
        (NEW[: NEW.index("        1024  ")], "the file ends after the heading; expected rows"),
        (NEW[: NEW.index("        2048  ")], "line 19: the file is cut off; expected more rows"),
        (NEW[: NEW.index("20.50")], "line 20: has 9 columns; expected at least 13"),
        (NEW.replace("20.50", "2o.50"), "line 20: time is '2o.50'; expected a number"),
        (NEW.replace("21.00", " 0.00"), "line 20: time is 0.00; expected more than 0, remove the row"),
        (json.dumps(DOCUMENT).replace("30.5", "0.0"), "results[0]: time is 0.0; expected more than 0"),
        (NEW.replace("all_gather_perf", "ib_write_bw"), "line 2: the program is 'ib_write_bw'"),
        (NEW.replace("  algbw", "  speed"), "line 16: expected time, algbw, busbw and #wrong twice"),
        ("{" + NEW, "line 1: Expecting property name"),
        (json.dumps([DOCUMENT]), "line 1: is a list; expected one JSON document"),
        (json.dumps({"tool": "flopcast bench collectives", "rows": []}), "is flopcast's own benchmark, not nccl-tests"),
        (
            "".join("Nov 23 05:22:26 gpu[1]: " + line + "\n" for line in NEW.splitlines()),
            "line 16: a heading stands behind 'Nov 23 05:22:26 gpu[1]:'; cut that off every line",
        ),
        (json.dumps(DOCUMENT, indent=1)[:-200], "expected a whole JSON document"),
        (json.dumps({"results": 3}), "has no list 'results'"),
        (json.dumps({**DOCUMENT, "results": []}), "'results' is empty"),
        (json.dumps({**DOCUMENT, "results": [3]}), r"results[0]: is not an object"),
        (json.dumps({**DOCUMENT, "args": ["x"]}), "the program is 'x'"),
        (
            json.dumps(DOCUMENT, indent=1).replace("30.5", '"nan"'),
            "line 20: results[0]: time is 'nan'; expected a number",
        ),
        (json.dumps(DOCUMENT).replace("1024", '"many"'), "size is 'many'; expected a number"),
        ("[" * 100000, "the file ends without"),
        ('{"a":' * 100000, "nests too deep"),
    ],
)
def test_broken_and_foreign_files_are_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_log(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_log(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\0\1\2")
    with pytest.raises(InputError, match="binary"):
        read_log(tmp_path / "binary")
    with pytest.raises(InputError, match="collective 'gossip' is unknown; known: all_gather"):
        read_log(tmp_path / "none", "gossip")
    with pytest.raises(InputError, match="collective 'allreduce' is unknown; did you mean 'all_reduce'"):
        read_log(tmp_path / "none", "allreduce")


def test_a_log_feeds_the_calibration(tmp_path: Path) -> None:
    log = read_log(written(tmp_path, NEW))
    found = columns(log, "site", nics_per_node=4, nic_gbit=200, fabric="infiniband")
    rows = read(found)
    assert list(rows.skip_reason) == [""] * 6
    assert list(rows.group.size) == [8] * 6
    assert list(rows.group.ranks_per_node) == [4] * 6
    plain, _ = forecast_rows(found)
    fitted, _ = forecast_rows(found, calibrated=True)
    measured = np.array([row.time_s for row in log.rows])
    small = slice(0, 4)
    assert np.abs(fitted / measured - 1)[small].max() < np.abs(plain / measured - 1)[small].max()


def test_piecewise_fit_shows_its_residuals() -> None:
    sizes = [2**k for k in range(10, 30)]

    def seconds(size: int) -> float:
        return 20e-6 + size / 10e9 if size <= 2**18 else 50e-6 + size / 100e9

    rows = [
        Row("all_reduce", s, s // 4, "float", "sum", -1, place, seconds(s), s / seconds(s), s / seconds(s))
        for s in sizes
        for place in (False, True)
    ]
    found = fit(rows)
    assert found.alpha_s[:2] == pytest.approx([20e-6, 50e-6], rel=1e-6)
    assert found.bytes_per_s[:2] == pytest.approx([10e9, 100e9], rel=1e-6)
    assert np.abs(found.residuals).max() < 1e-6
    lines = residual_table(rows, found)
    assert len(lines) == 2 + 3 + 1 + len(sizes)  # the sizes reach into three of the four ranges
    assert lines[0] == "# out-of-place rows"
    assert lines[2].split() == ["#", str(2**18), "20.0", "10.0"]
    assert lines[3].split() == ["#", str(2**24), "50.0", "100"]
    few = residual_table(rows[-1:] + rows[4::40], fit(rows[-1:] + rows[4::40]))
    assert few[2].split() == ["#", str(2**18), "-", f"{rows[4].num_bytes / rows[4].time_s / 1e9:.3f}"], few
    with pytest.raises(InputError, match="one collective at a time"):
        fit([*rows, Row("reduce", 8, 2, "float", "sum", 0, False, 1e-5, 1.0, 1.0)])
    with pytest.raises(InputError, match="no out-of-place row is there"):
        fit([row for row in rows if row.in_place])


def test_a_fit_as_a_document_and_times_that_do_not_grow() -> None:
    flat = [Row("all_reduce", 2**k, 1, "float", "sum", -1, False, (90 - k) * 1e-6, 1.0, 1.0) for k in range(10, 16)]
    large = Row("all_reduce", 2**34, 1, "float", "sum", -1, False, 0.1, 1.0, 1.0)
    found = as_json([*flat, large], fit([*flat, large]))
    assert found["collective"] == "all_reduce"
    small, last = found["ranges"]
    assert (small["up_to_bytes"], small["rows"], small["bytes_per_s"]) == (2**18, 6, None)
    assert small["alpha_s"] == pytest.approx(77.5e-6, rel=1e-3)
    assert last == {"up_to_bytes": None, "rows": 1, "alpha_s": None, "bytes_per_s": pytest.approx(2**34 / 0.1)}
    assert [row["bytes"] for row in found["rows"]] == [*(2**k for k in range(10, 16)), 2**34]
    assert all(row["fitted_s"] == pytest.approx(row["measured_s"] * (1 + row["residual"])) for row in found["rows"])
    assert residual_table([*flat, large], fit([*flat, large]))[2].split()[-1] == "-"


def test_times_that_hardly_grow_beyond_their_scatter_tell_no_rate() -> None:
    """200 GB/s add 1.3 us up to 256 KiB: told by times that are exact, and not by ones that are off by 2 %."""

    def ranges(off: float) -> list[dict[str, float | None]]:
        seconds = {2**k: (30e-6 + 2**k / 200e9) * (1 + off * (-1) ** k) for k in range(3, 25)}
        rows = [Row("all_reduce", s, 1, "float", "sum", -1, False, t, 1.0, 1.0) for s, t in seconds.items()]
        found: list[dict[str, float | None]] = as_json(rows, fit(rows))["ranges"]
        return found

    assert [each["bytes_per_s"] for each in ranges(0.0)] == pytest.approx([200e9, 200e9], rel=1e-6)
    small, middle = ranges(0.02)
    assert small["bytes_per_s"] is None
    assert middle["bytes_per_s"] == pytest.approx(200e9, rel=0.03)


def test_a_log_of_several_collectives_keeps_their_names(tmp_path: Path) -> None:
    path = tmp_path / "several.log"
    path.write_text(NEW + NEW.replace("all_gather_perf", "alltoall_perf"))
    for named in (None, "reduce"):
        assert {row.collective for row in read_log(path, named).rows} == {"all_gather", "all_to_all"}
    for other in ("gather", "scatter", "hypercube"):  # nccl-tests' own, which no name given beside them replaces
        path.write_text(NEW.replace("all_gather_perf", f"{other}_perf"))
        assert {row.collective for row in read_log(path, "all_reduce").rows} == {other}
    path.write_text(NEW.replace("all_gather_perf", "ours"))
    assert {row.collective for row in read_log(path, "alltoall").rows} == {"all_to_all"}
    path.write_text(OLD.replace("   sum ", "       "))
    assert {row.collective for row in read_log(path, "alltoall_perf").rows} == {"all_to_all"}


@pytest.mark.parametrize(
    "label",
    [
        "[1,0]<stdout>:",
        "   [1,0]<stdout>: ",
        "0: ",
        " 0: ",
        "2026-02-16T10:00:00.000000000Z ",
        "2026-02-16T10:00:00.000000000Z stdout F ",
        "> ",
        "(head, rank=0, pid=38) ",
        *("[default0]:", "[rank0]:", "[prterun-gpu000-1234@1,0]<stdout>: "),
        *("Mon Nov 23 05:22:26 2026[1,0]<stdout>:", "Tue Nov  3 05:22:26 2026<stdout>:"),
        *("gpu-001.local: ", "[node1] ", "\x1b[1;36m[node1]\x1b[0m ", "\x1b[32m", "gpu001: 0: "),
    ],
)
def test_what_launchers_write_before_a_line_is_taken_off(tmp_path: Path, label: str) -> None:
    """torchrun --tee, mpirun --tag-output and --timestamp-output, srun --label, kubectl logs --timestamps, Ray, pdsh,
    clush, and colours."""
    plain = read_log(written(tmp_path, NEW))
    assert read_log(written(tmp_path, "".join(label + line + "\n" for line in NEW.splitlines()))) == plain


def test_a_tag_within_a_row_and_a_heading_without_its_mark(tmp_path: Path) -> None:
    plain = read_log(written(tmp_path, NEW))
    pieces = NEW.replace("      -1    21.00", "      -1[1,0]<stdout>:    21.00").replace("#       size", "        size")
    assert pieces.count("[1,0]") == 1
    assert read_log(written(tmp_path, pieces)).rows == plain.rows


def test_out_of_place_alone_and_no_count_of_errors(tmp_path: Path) -> None:
    alone = (
        "#       size         count      type   redop    root     time   algbw   busbw\n"
        "     8388608       2097152     float     sum      -1    80.32  104.44  182.77\n"
        "# Out of bounds values : 0 OK\n"
    )
    rows = read_log(written(tmp_path, alone), "all_reduce").rows
    assert [(row.num_bytes, row.in_place, row.num_wrong) for row in rows] == [(8388608, False, None)]
    assert rows[0].num_bytes / rows[0].time_s == pytest.approx(rows[0].algbw_bytes_per_s, rel=1e-3)
    counted = alone.replace("busbw\n", "busbw  #wrong\n").replace("182.77", "182.77       3")
    assert read_log(written(tmp_path, counted), "all_reduce").rows[0].num_wrong == 3


def test_the_table_of_2019_is_in_milliseconds(tmp_path: Path) -> None:
    first = (
        "# Rank  0 on node-a device  0 [0x00] Tesla V100-SXM2-16GB\n"
        "#                                     out-of-place                    in-place\n"
        "#      bytes             N    type      op     time  algbw  busbw      res     time  algbw  busbw      res\n"
        "     1048576        262144   float     sum    2.059   0.51   0.51      N/A    3.314   0.32   0.32      N/A\n"
        " Out of bounds values : 0 OK\n Avg bus bandwidth    : 0.41\n"
    )
    rows = read_log(written(tmp_path, first), "all_reduce").rows
    assert [row.time_s for row in rows] == pytest.approx([2.059e-3, 3.314e-3])
    assert rows[0].num_bytes / rows[0].time_s == pytest.approx(rows[0].algbw_bytes_per_s, rel=0.01)


def test_ranks_that_a_log_leaves_out_sit_with_the_one_before(tmp_path: Path) -> None:
    kept = [line for line in NEW.splitlines(keepends=True) if not re.match(r"#  Rank  [1256]", line)]
    log = read_log(written(tmp_path, "".join(kept)))
    assert (log.hosts, log.num_nodes) == (("node-a",) * 4 + ("node-b",) * 4, 2)


def test_runs_side_by_side_are_refused(tmp_path: Path) -> None:
    """Without MPI=1 mpirun starts separate runs of one process each: every rank is there twice."""
    twice = NEW.replace(
        DEVICES, DEVICES + "#  Rank  0 Group  0 Pid   4321 on     node-c device  0 [0x00] NVIDIA A100\n"
    )
    with pytest.raises(InputError, match=r"line 14: rank 0 is on node-c and on node-a; expected one run"):
        read_log(written(tmp_path, twice))


def test_a_second_run_on_other_ranks_is_refused(tmp_path: Path) -> None:
    other = NEW.replace("node-b", "node-c")
    with pytest.raises(InputError, match=r"line 31: a second run on other ranks begins here; split the file"):
        read_log(written(tmp_path, NEW + other))
    alone = read_log(written(tmp_path, NEW))
    assert read_log(written(tmp_path, NEW + NEW)).rows == alone.rows * 2
    # A run that ended before its first row leaves only its list.
    ended = other[: other.index("        1024  ")] + "# Avg bus bandwidth : 0\n"
    assert read_log(written(tmp_path, NEW + ended)) == alone


def test_what_follows_the_last_row_is_no_row(tmp_path: Path) -> None:
    plain = read_log(written(tmp_path, NEW))
    assert read_log(written(tmp_path, NEW + "2026-05-05 12:00:01 job finished\n12345 done\n")) == plain
    assert read_log(written(tmp_path, NEW.replace("node-a:1000:1000 [0]", "WARNING: 3 of"))) == plain


def test_rccl_tests(tmp_path: Path) -> None:
    """Its library announces itself otherwise, and algorithm, protocol and channels may follow the columns."""
    text = (
        NEW.replace(
            "nccl-tests version 2.19.6 nccl-headers=22907 nccl-library=22907", "rccl-tests: Version develop:6405c76"
        )
        .replace("#\n# Using", "#\nRCCL version : 2.27.7-develop:29e1567\nHIP version  : 7.0.51831-a3e329ad8\n# Using")
        .replace("#wrong\n", "#wrong     algo     proto   nchannels\n")
        .replace("N/A\n", "N/A    RING    SIMPLE          32\n")
        .replace("          0\n", "          0  Direct    SIMPLE          32\n")
    )
    log = read_log(written(tmp_path, text))
    assert log.nccl_version == "2.27.7"
    assert log.rows == read_log(written(tmp_path, NEW)).rows


def test_the_gpus_of_one_process_are_noted(tmp_path: Path) -> None:
    one, eight = written(tmp_path, NEW), tmp_path / "eight.log"
    eight.write_text(NEW.replace("nGpus 1 ", "nGpus 4 "))
    document = tmp_path / "run.json"
    document.write_text(json.dumps({**DOCUMENT, "args": ["all_reduce_perf", "-b", "8", "-g", "4"]}))
    logs = [read_log(path) for path in (one, eight, document)]
    assert [log.gpus_per_process for log in logs] == [1, 4, 4]
    machine = {"nics_per_node": 4, "nic_gbit": 200, "fabric": "infiniband"}
    assert [int(read(columns(log, "x", **machine)).fabric.gpus_per_process[0]) for log in logs[:2]] == [1, 4]
