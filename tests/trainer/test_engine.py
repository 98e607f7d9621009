"""Every strategy on 8 gloo ranks against one process and plain PyTorch: the ranks are started once for all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import engine_ranks
import pytest
import torch

from flopcast.trainer.engine.weights import draw
from flopcast.trainer.huggingface import save
from flopcast.trainer.numerics import Numerics

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-3}
WORKER = Path(engine_ranks.__file__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    search = os.pathsep.join([str(WORKER.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": search}
    command = [sys.executable, "-P", "-W", "error::FutureWarning", str(WORKER)]
    command += [str(engine_ranks.WORLD_SIZE), str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.parametrize("case", engine_ranks.cases(), ids=str)
def test_losses_and_norms_are_those_of_one_process(results: dict[str, Any], case: engine_ranks.Case) -> None:
    found, expected = results[case.key], results[f"{case.model} {case.dtype}"]
    assert len(found["losses"]) == case.steps
    assert found["losses"] == pytest.approx(expected["losses"][: case.steps], abs=TOLERANCE[case.dtype], rel=0)
    norm_tolerance = 1e-5 if case.dtype == "float32" else 1e-2
    assert found["norms"] == pytest.approx(expected["norms"][: case.steps], rel=norm_tolerance)
    assert expected["losses"][-1] < expected["losses"][0]
    if case.steps == engine_ranks.STEPS:
        unseen = expected["evaluations"][: engine_ranks.WORLD_SIZE // (2 if case.pp > 1 else 1)]
        assert found["evaluation"] == pytest.approx(sum(unseen) / len(unseen), abs=TOLERANCE[case.dtype], rel=0)


@pytest.mark.parametrize("strategy", engine_ranks.QUANTISED)
def test_the_four_bit_gather_gives_all_ranks_the_same_weights(results: dict[str, Any], strategy: str) -> None:
    found, expected = results[strategy], results["tiny-plamo float32"]
    assert found["same_everywhere"]
    assert found["losses"] == pytest.approx(expected["losses"][:4], abs=0.05)
    assert found["losses"] != pytest.approx(expected["losses"][:4], abs=1e-5)


def test_what_the_node_keeps_is_what_was_gathered(results: dict[str, Any]) -> None:
    """Keeping payloads in the node adds no second rounding: the losses are those of gathering over all ranks again."""
    assert results["zero3-node+q4"]["losses"] == pytest.approx(results["zero3+q4"]["losses"], abs=1e-6)


def test_a_run_goes_on_under_another_strategy(results: dict[str, Any]) -> None:
    losses = [results[f"resumed {turn}"] for turn in range(len(engine_ranks.TURNS))]
    assert losses == pytest.approx(results["tiny-plamo float32"]["losses"][: len(losses)], abs=1e-5)


@pytest.mark.parametrize("strategy", engine_ranks.QUANTISED)
def test_a_quantised_run_goes_on_to_the_last_bit(results: dict[str, Any], strategy: str) -> None:
    assert results[f"{strategy} resumed"] == results[strategy]["losses"][2:]


@pytest.mark.parametrize("case", engine_ranks.TURNS, ids=str)
def test_whole_weights_are_dealt_out_and_collected_again(results: dict[str, Any], case: engine_ranks.Case) -> None:
    assert results[f"reloaded {case.key}"]


def test_every_strategy_exports_the_bytes_that_one_process_writes(
    results: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    model = engine_ranks.MODELS["tiny-plamo"]
    save(model, Numerics(), draw(model, engine_ranks.SEED + 1).items(), tmp_path / "alone", torch.float32)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "alone").iterdir()}
    assert expected.keys() == {"config.json", "model.safetensors"}
    for number, _ in enumerate(engine_ranks.TURNS):
        assert {path.name: path.read_bytes() for path in (folder / f"reloaded-{number}").iterdir()} == expected


@pytest.mark.parametrize("stages", [1, 2])
def test_what_is_evaluated_is_cross_entropy_alone(results: dict[str, Any], stages: int) -> None:
    found = results[f"z-loss {stages}"]
    assert found["evaluated"][0] == pytest.approx(found["evaluated"][1], abs=1e-7)
    assert found["trained"][1] > found["trained"][0] + 1
