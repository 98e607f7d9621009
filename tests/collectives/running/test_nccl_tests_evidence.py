"""What the columns of a log say against the collective that it was said to be of: nccl-tests' own definitions."""

import json
from pathlib import Path

import pytest

from flopcast.collectives.running.nccl_tests_log import read_log
from flopcast.errors import InputError

RANKS = 8
# doc/PERFORMANCE.md and TimeTest's arguments in src/*.cu: busbw / algbw of eight ranks, and what is printed as redop.
PROGRAMS = {
    "all_reduce": (1.75, "sum"),
    "all_gather": (0.875, "none"),
    "reduce_scatter": (0.875, "sum"),
    "alltoall": (0.875, "none"),
    "broadcast": (1.0, "none"),
    "reduce": (1.0, "sum"),
    "sendrecv": (1.0, "sum"),
    "hypercube": (1.0, ""),
}
# What these columns cannot tell apart. Before June 2020 all_gather_perf and reduce_scatter_perf had a ratio of 1.
ALIKE = {
    "all_gather": {"alltoall"},
    "alltoall": {"all_gather"},
    "broadcast": {"all_gather", "alltoall", "sendrecv", "hypercube"},
    "reduce": {"reduce_scatter", "sendrecv"},
    "sendrecv": {"reduce", "reduce_scatter"},
    "hypercube": {"all_gather", "alltoall", "broadcast", "sendrecv"},
}


def old_log(program: str, ranks: int = RANKS, listed: int = RANKS, groups: int = 1) -> str:
    """A table from before 2.18, which does not name its program."""
    ratio, redop = PROGRAMS[program]
    if ranks != RANKS and program == "all_reduce":
        ratio = 2 * (ranks - 1) / ranks
    lines = [
        f"#  Rank {rank:2d} Group {rank % groups:2d} Pid 1 on gpu000 device {rank:2d} [0x00] H100"
        for rank in range(listed)
    ]
    lines.append("#  size  count  type  redop  root  time  algbw  busbw  #wrong")
    for size in (1024, 2**20, 2**28):
        seconds = 30e-6 + size / 200e9
        rate = size / seconds / 1e9
        lines.append(f"{size} {size // 4} float {redop} -1 {seconds * 1e6:.2f} {rate:.2f} {rate * ratio:.2f} 0")
    return "\n".join([*lines, "# Avg bus bandwidth : 1", ""])


def document(program: str, name: str) -> dict[str, object]:
    ratio, redop = PROGRAMS[program]
    cell = {"time": 1e4, "alg_bw": 107.3741824, "bus_bw": 107.3741824 * ratio, "nwrong": 0}
    row = {"size": 2**30, "count": 2**28, "type": "float", "redop": redop, "root": "-1", "out_of_place": cell}
    devices = [{"rank": rank, "group": 0, "hostname": "a"} for rank in range(RANKS)]
    return {"args": [name], "config": {"devices": devices}, "results": [row]}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_log_is_read_only_as_what_it_can_be(program: str, tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text(old_log(program))
    (tmp_path / "run.json").write_text(json.dumps(document(program, "ours")))
    for path in (tmp_path / "run.log", tmp_path / "run.json"):
        for named in PROGRAMS:
            if named == program or named in ALIKE.get(program, ()):
                assert read_log(path, named).rows
            else:
                with pytest.raises(InputError, match=r"run.*line \d+: .*(redop|busbw .* over algbw)"):
                    read_log(path, named)


def test_odd_cells_are_no_reason_to_fail(tmp_path: Path) -> None:
    found = document("all_reduce", "ours")
    found["config"] = {"devices": [{"rank": rank, "group": [1], "hostname": "a"} for rank in range(RANKS)]}
    (tmp_path / "run.json").write_text(json.dumps(found))
    assert read_log(tmp_path / "run.json", "all_reduce").rows
    (tmp_path / "run.log").write_text(old_log("all_reduce").replace(" 0.03 ", " 0e400 "))
    assert "0e400" in (tmp_path / "run.log").read_text()
    assert len(read_log(tmp_path / "run.log", "all_reduce").rows) == 3


def test_the_line_and_what_contradicts_the_name_are_said(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    path.write_text(old_log("all_reduce") + old_log("all_gather"))
    with pytest.raises(InputError, match=r"line 23: redop is 'none', which it never is of all_reduce; name the coll"):
        read_log(path, "all_reduce")
    path.write_text(old_log("reduce_scatter"))
    with pytest.raises(
        InputError, match=r"line 11: busbw 26.03 over algbw 29.75 is not the 1.75 to 2 of all_reduce on 8"
    ):
        read_log(path, "all_reduce")
    # The first table names its program, the second does not: the name ends with the program.
    path.write_text(f"# Collective test starting: all_gather_perf\n{old_log('all_gather')}")
    assert {row.collective for row in read_log(path, "all_reduce").rows} == {"all_gather"}
    path.write_text(path.read_text() + "# Collective test concluded: all_gather_perf\n" + old_log("all_reduce"))
    with pytest.raises(InputError, match="does not say which collective"):
        read_log(path)
    assert {row.collective for row in read_log(path, "all_reduce").rows} == {"all_gather", "all_reduce"}


def test_ranks_of_shortened_lists_and_of_groups(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    for ranks, listed, groups in ((64, 8, 1), (8, 0, 1), (2, 8, 4)):
        path.write_text(old_log("all_reduce", ranks, listed, groups))
        assert read_log(path, "all_reduce").rows
