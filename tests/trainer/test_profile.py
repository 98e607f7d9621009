"""Measuring a machine: small profiles of this CPU, resumed, over two ranks, and read back as a cluster."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import PROFILE_SHAPES

from flopcast.errors import InputError
from flopcast.kernels import timing
from flopcast.simulator.catalogue import load_cluster
from flopcast.simulator.profile import KINDS, read_profile
from flopcast.trainer import profile as profiling
from flopcast.trainer.profiling import measures, pieces

SMALL = replace(measures.SIZES["cpu", True], **PROFILE_SHAPES)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measures.SIZES, ("cpu", True), SMALL)
    monkeypatch.setattr(timing, "CPU_CACHE_BYTES", 2**14)
    monkeypatch.setattr(timing, "_SAMPLE_S", 1e-5)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_a_profile_of_one_process(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    found = profiling.profile(path, quick=True, quiet=True)
    assert found == read_profile(path)
    assert [p.name for p in tmp_path.iterdir()] == ["profile.json"]
    kinds = {sample.kind for sample in found.samples}
    assert kinds == set(KINDS) - {"collective"}  # one rank has nobody to speak to
    assert {sample.arguments["layout"] for sample in found.of_kind("gemm")} == {"nt", "nn", "tn"}
    assert {sample.arguments["op"] for sample in found.of_kind("kernel")} == set(pieces.PIECES)
    assert any(skipped.arguments["backend"] == "cudnn" and skipped.reason for skipped in found.skipped)
    assert found.devices[0].environment["torch"]
    machine = load_cluster(path)
    assert machine.gpus_per_node == 1
    assert machine.measured is not None
    assert machine.measured.gemm is not None


def test_a_batch_jobs_log_has_a_line_for_each_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = profiling.profile(tmp_path / "profile.json", quick=True, kinds=["launch", "gemm", "copy"])
    assert found is not None
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[2] for line in lines] == ["launch", "gemm", "copy"]
    assert all(line.startswith("flopcast: measures ") for line in lines)


def test_an_interrupted_profile_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "profile.json"
    measured: list[str] = []
    side_by_side = profiling.nodes.side_by_side

    def counted(records: list[dict[str, Any]]) -> Any:
        measured.append(records[0]["kind"])
        if len(measured) == 4:
            raise KeyboardInterrupt
        return side_by_side(records)

    monkeypatch.setattr(profiling.nodes, "side_by_side", counted)
    with pytest.raises(KeyboardInterrupt):
        profiling.profile(path, quick=True, quiet=True)
    kept = (tmp_path / ".profile.json.partial.jsonl").read_text()
    assert len(kept.splitlines()) == 1 + 3
    (tmp_path / ".profile.json.partial.jsonl").write_text(kept + '{"name": "cop')  # killed while it wrote
    first = [json.loads(line)["samples"] for line in kept.splitlines()[1:]]
    found = profiling.profile(path, quick=True, quiet=True)
    assert found is not None
    assert len(found.samples) > 10
    stored = [sample.model_dump(mode="json") for sample in found.samples]
    assert all(sample in stored for samples in first for sample in samples)


def test_what_another_machine_began_is_measured_again(tmp_path: Path) -> None:
    (tmp_path / ".profile.json.partial.jsonl").write_text('{"profile of": ["something else"]}\n{"name": "launch"}\n')
    found = profiling.profile(tmp_path / "profile.json", quick=True, quiet=True, kinds=["launch"])
    assert found is not None
    assert {sample.arguments["op"] for sample in found.samples} == {"add", "layer"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kinds": ["gem"]}, "did you mean 'gemm'"),
        ({"kinds": ["collective"]}, "nothing was measured"),
        ({"cluster": "abci-b"}, "unknown cluster 'abci-b'"),
    ],
)
def test_bad_requests_are_one_sentence(arguments: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        profiling.profile(tmp_path / "profile.json", quick=True, quiet=True, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory"):
        profiling.profile(tmp_path, quick=True, quiet=True)


def test_two_ranks_measure_their_collectives(tmp_path: Path) -> None:
    path = tmp_path / "two.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "flopcast"]
    arguments = ["profile", "--quick", "--kinds", "launch", "collective", "--output", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("collective") == 1
    found = read_profile(path)
    assert len(found.devices) == found.ranks_per_node == 2
    names = {sample.arguments["collective"] for sample in found.of_kind("collective")}
    assert names == {"all_gather", "reduce_scatter", "all_reduce"}
    assert {s.arguments["collective"] for s in found.of_kind("collective", through="fsdp2")} == names - {"all_reduce"}
    for sample in found.of_kind("launch"):
        assert len(sample.by_device) == 2
