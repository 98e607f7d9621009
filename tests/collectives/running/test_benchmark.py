"""The benchmark under torchrun on three gloo ranks, and alone; every collective, right results, columns, forecast."""

import csv
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flopcast.cli import main
from flopcast.collectives import COLLECTIVES, Fabric, Group, architecture_code, fabric_code
from flopcast.collectives.measured import read
from flopcast.collectives.running import benchmark, results
from flopcast.collectives.running.benchmark import Options, run
from flopcast.collectives.running.cases import CASES
from flopcast.collectives.running.nccl_tests_log import read_log
from flopcast.collectives.running.surroundings import Topology, process_group
from flopcast.errors import InputError

SCRIPT = Path(__file__).parent / "benchmark_script.py"
RANKS = 3
BUS_FACTOR = {
    "all_reduce": 2 * 2 / 3,
    "torus_all_reduce": 2 * 2 / 3,
    **dict.fromkeys(("all_gather", "quantised_all_gather", "reduce_scatter", "all_to_all"), 2 / 3),
    **dict.fromkeys(("broadcast", "reduce", "sendrecv"), 1.0),
}
PARTS = {"all_gather", "quantised_all_gather", "reduce_scatter", "all_to_all"}
OUT_OF_PLACE_ONLY = {"all_to_all", "sendrecv"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    ran = subprocess.run([*command, str(SCRIPT), str(folder)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "collectives" not in ran.stdout
    return folder


@pytest.mark.parametrize("dtype", ["float", "bfloat16"])
def test_every_collective_is_right_and_counted_as_in_nccl_tests(folder: Path, dtype: str) -> None:
    document = json.loads((folder / f"{dtype}.json").read_text())
    assert document["num_wrong"] == 0
    assert document["topology"]["ranks"] == RANKS
    assert document["topology"]["torus"] == [1, RANKS]
    assert document["versions"]["torch"] == torch.__version__
    assert document["arguments"]["dtype"] == dtype
    assert len(document["devices"]) == RANKS
    rows: list[dict[str, Any]] = document["rows"]
    assert list(dict.fromkeys(row["collective"] for row in rows)) == list(CASES)
    for row in rows:
        assert row["num_wrong"] == 0, row
        assert row["time_s"] > 0
        assert row["spread"] >= 0
        assert row["algbw_bytes_per_s"] == pytest.approx(row["num_bytes"] / row["time_s"])
        assert row["busbw_bytes_per_s"] == pytest.approx(row["algbw_bytes_per_s"] * BUS_FACTOR[row["collective"]])
        per_rank = row["num_bytes"] // (RANKS if row["collective"] in PARTS else 1)
        assert per_rank == row["count"] * (4 if dtype == "float" else 2)
    places = {name: {row["in_place"] for row in rows if row["collective"] == name} for name in CASES}
    assert places == {name: {False} if name in OUT_OF_PLACE_ONLY else {False, True} for name in CASES}


def test_forecast_is_the_cost_model_s(folder: Path) -> None:
    rows = json.loads((folder / "float.json").read_text())["rows"]
    fabric = Fabric(architecture_code("ampere"), 300e9, True, 4, 25e9, fabric_code("infiniband"), 8)
    for row in rows:
        forecast = row["forecast"]
        assert forecast["time_s"] > 0
        assert row["ratio"] == pytest.approx(forecast["time_s"] / row["time_s"])
        if row["collective"] in COLLECTIVES:
            cost = COLLECTIVES[row["collective"]].cost(float(row["num_bytes"]), Group(RANKS, RANKS), fabric)
            assert forecast["time_s"] == pytest.approx(float(cost.time_s))
        elif row["collective"] == "torus_all_reduce":
            assert forecast["algorithm"] == "torus/Simple"


def test_the_table_is_read_by_the_reader_of_nccl_tests_logs(folder: Path, tmp_path: Path) -> None:
    text = (folder / "table.txt").read_text()
    first = text.index("# flopcast", 1)
    (tmp_path / "run.log").write_text(text[:first])
    log = read_log(tmp_path / "run.log")
    rows = json.loads((folder / "float.json").read_text())["rows"]
    assert [(r.collective, r.num_bytes, r.in_place, r.num_wrong) for r in log.rows] == [
        (r["collective"], r["num_bytes"], r["in_place"], 0) for r in rows
    ]
    assert len(log.devices) == RANKS


def test_the_csv_is_a_table_of_measurements(folder: Path) -> None:
    with (folder / "float.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0])[: len(results.COLUMNS)] == results.COLUMNS
    table = read({name: np.array([row[name] for row in rows], dtype=object) for name in results.COLUMNS})
    known = [row["collective"] not in ("quantised_all_gather", "torus_all_reduce") for row in rows]
    assert [reason == "" for reason in table.skip_reason] == known
    assert list(table.group.size) == [RANKS] * len(rows)


def test_a_group_of_one_works_without_torchrun(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    shown: list[str] = []
    options = Options(tuple(CASES), begin=256, end=1024, iterations=3, backend="gloo")
    report = run(options, show=shown.append, quiet=True)
    assert report is not None
    assert report.num_wrong == 0
    assert {row.collective for row in report.rows} == set(CASES)
    assert all(row.forecast is None for row in report.rows)
    assert shown == list(results.table(report))
    assert json.loads(json.dumps(report.as_json(), allow_nan=False))["backend"] == "gloo"
    assert capsys.readouterr().out == ""


def test_sizes_a_step_apart_and_a_reader_who_goes_away() -> None:
    """``head -2`` closes the pipe: nothing more is measured or shown."""
    shown: list[str] = []

    def show(text: str) -> None:
        if len(shown) == 2:
            raise BrokenPipeError
        shown.append(text)

    options = Options(("all_reduce",), begin=1024, end=4096, step=1024, iterations=1, backend="gloo")
    report = run(options, quiet=True)
    assert report is not None
    assert [row.num_bytes for row in report.rows if not row.in_place] == [1024, 2048, 3072, 4096]
    introduction = "".join(results.introduction(report.about))
    assert "step: 1024(bytes)" in introduction
    assert "gloo: 1 rank on 1 node, torus 1 x 1" in introduction
    assert run(options, show=show, quiet=True) is None
    assert len(shown) == 2


def test_a_csv_on_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    for write, content in ((results.write_csv, []), (results.write_json, {})):
        with pytest.raises(InputError, match=r"rows: cannot be written \(No space left on device\); make room or name"):
            write(tmp_path / "rows", content)
    assert list(tmp_path.iterdir()) == []


def test_topology_of_nodes() -> None:
    def grid(*hosts: str) -> tuple[int, int, tuple[int, int]]:
        found = Topology(hosts, ("",) * len(hosts))
        return found.num_nodes, found.ranks_per_node, found.grid

    assert grid("a", "a", "b", "b", "c", "c") == (3, 2, (3, 2))
    assert grid(*"aaaaaaaa") == (1, 8, (2, 4))
    assert grid(*"aaaaaaa") == (1, 7, (1, 7))
    assert grid(*"aab") == (2, 0, (1, 3))
    assert grid(*"abab") == (2, 0, (2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"collectives": ("allreduce",)}, "did you mean 'all_reduce'"),
        ({"collectives": ()}, "no collective is named"),
        ({"dtype": "bf16"}, "dtype 'bf16' is unknown"),
        ({"collectives": ("quantised_all_gather",), "dtype": "int64"}, "quantised_all_gather has no dtype 'int64'"),
        ({"iterations": 0}, "-n of at least 1"),
        ({"begin": 8, "end": 4}, "no larger than -e"),
        ({"timeout_s": 0.0}, "timeout is 0.0 s"),
        ({"begin": 8, "end": 2**30, "step": 8}, "more than 10000 sizes; give a larger -i"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Options(**options)


def test_bad_environments_are_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match=r"WORLD_SIZE.* is not set but RANK is"), process_group("gloo", 5.0):
        pass
    monkeypatch.delenv("RANK")
    with pytest.raises(InputError, match="backend 'carrier-pigeon' is unknown"), process_group("carrier-pigeon", 5.0):
        pass
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="needs a GPU"), process_group("nccl", 5.0):
            pass


def test_ranks_with_other_arguments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def heard(text: str, device: torch.device) -> list[str]:
        return [text, text.replace("-b 4 ", "-b 8 ")]

    monkeypatch.setattr(benchmark, "gather_text", heard)
    benchmark._agree_on(Options(("all_reduce",), begin=16, end=64), torch.device("cpu"))
    with pytest.raises(
        InputError, match=r"rank 1 was started with 'all_reduce -b 8 .* and rank 0 with 'all_reduce -b 4 "
    ):
        benchmark._agree_on(Options(("all_reduce",), begin=4, end=64), torch.device("cpu"))


def test_a_csv_in_no_folder_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "collectives", "--csv", str(tmp_path / "none" / "rows.csv")])
    assert "there is no folder" in capsys.readouterr().err
