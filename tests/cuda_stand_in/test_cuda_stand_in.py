"""What runs on a GPU, run without one: scenarios in processes of their own, which have a "cuda" in host memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cuda_stand_in import build

from flopcast.simulator.catalogue import load_cluster
from flopcast.simulator.profile import KINDS, read_profile

TESTS = Path(__file__).resolve().parents[1]
TIMEOUT_S = 300.0
OPS = {
    "rms_norm": ["rms_norm_forward", "rms_norm_backward", "rms_norm_weight_gradient"],
    "add_rms_norm": ["rms_norm_forward", "rms_norm_backward", "rms_norm_weight_gradient"],
    "rope": ["rope", "rope"],
    "swiglu": ["swiglu_forward", "swiglu_backward"],
    "cross_entropy": ["cross_entropy_statistics", "cross_entropy_gradient"],
    "nf4": ["nf4_quantise", "nf4_dequantise"],
}
STRATEGIES = ("zero3-node+q4", "tp2")

pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=build.unavailable() or "")


def run(*arguments: str, ranks: int = 1) -> None:
    """``python -m cuda_stand_in ARGUMENTS`` on so many ranks; what a rank that fails has said is the failure."""
    build.library()  # before the ranks, of which each would compile it
    command = [sys.executable, "-W", "error", "-m", "cuda_stand_in", *arguments]
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    if ranks > 1:
        environment |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    started = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=TIMEOUT_S)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, words in zip(started, said, strict=True):
        assert process.returncode == 0, words[-4000:]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("kernels") / "found.json"
    run("kernels", str(file))
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of each rank."""
    folder = tmp_path_factory.mktemp("training")
    run("training", str(folder), *STRATEGIES, ranks=2)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_the_kernels_are_what_runs(kernels: dict[str, Any]) -> None:
    assert kernels["backend"] == "cupy"
    assert kernels["current"] == 0  # launches on the other device have left it so
    assert {name: found["launches"] for name, found in kernels["ops"].items()} == OPS


@pytest.mark.parametrize("op", OPS)
def test_an_op_is_right_and_waits_for_nothing(op: str, kernels: dict[str, Any]) -> None:
    assert kernels["ops"][op]["failure"] == ""
    assert kernels["ops"][op]["waits"] == []


def test_autograd_sees_what_a_kernel_writes_in_place(kernels: dict[str, Any]) -> None:
    """A kernel writes by address: a tensor that was kept for a backward pass would go stale unnoticed."""
    assert kernels["unseen_writes"] == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_training_is_that_of_the_cpu(strategy: str, training: list[dict[str, Any]]) -> None:
    for rank in training:
        device, cpu = rank[strategy]["cuda"], rank[strategy]["cpu"]
        # Both compute in bf16 and round in other places.
        assert len(device["losses"]) == 2
        assert device["losses"] == pytest.approx(cpu["losses"], abs=2e-3)
        assert device["norms"] == pytest.approx(cpu["norms"], rel=1e-2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_waits_for_the_device_once(strategy: str, training: list[dict[str, Any]]) -> None:
    for rank in training:
        # The first step makes the tables of rope.
        waits = rank[strategy]["cuda"]["waits"][1]
        assert len(waits) == 1, waits
        assert "to the host in flopcast.trainer.loop:" in waits[0]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_training_runs_the_kernels_once(strategy: str, training: list[dict[str, Any]]) -> None:
    """Of two layers: two norms and that of the head, two products of each other kind, forward and backward alike."""
    device = training[0][strategy]["cuda"]
    launches = device["launches"][1]
    micro_batches = 2 if strategy != "tp2" else 4
    wanted = {"rms_norm_forward": 3, "rms_norm_backward": 3, "rope": 4, "swiglu_forward": 2, "swiglu_backward": 2}
    assert {name: launches.count(name) for name in wanted} == {n: c * micro_batches for n, c in wanted.items()}
    assert ("nf4_quantise" in launches) == ("q4" in strategy)
    assert sorted(device["attention"][1]) == ["backward"] * 2 * micro_batches + ["forward"] * 2 * micro_batches


def test_a_profile_of_the_device_is_a_cluster(tmp_path: Path) -> None:
    path, waits = tmp_path / "profile.json", tmp_path / "waits.json"
    run("profiling", str(path), str(waits))
    # A layer whose launches are timed must not make the host wait for the GPU.
    assert not [wait for wait in json.loads(waits.read_text()) if "attention" in wait]
    found = read_profile(path)
    assert found.device_type == "cuda"
    assert {sample.kind for sample in found.samples} == set(KINDS) - {"collective"}
    assert not found.skipped
    assert found.devices[0].environment["backend"] == "cupy"
    machine = load_cluster(path)
    assert machine.gpu.name.lower().startswith("h100")
    assert machine.measured is not None
    assert machine.measured.gemm is not None
