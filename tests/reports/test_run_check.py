"""Faults planted into rows are found, the published table has none, and FLOP conventions are recognised."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from builders import RUN

from flopcast.cli import main
from flopcast.reports.run_check import Checked, check_table
from flopcast.reports.runs import PUBLISHED_RUNS

ROW: dict[str, Any] = {
    **RUN,
    "source": "a table of runs",
    "trust": "A",
    "measured_step_s": 8.0,
    "measured_tokens_per_s_per_gpu": 2048,
    "measured_tflops_per_gpu": "",
    "measured_mem_GB": "",
}


def checked(folder: Path, *changes: dict[str, Any]) -> Checked:
    path = folder / "runs.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROW))
        writer.writeheader()
        writer.writerows({**ROW, **change} for change in changes)
    return check_table(path)


def test_a_sound_row(tmp_path: Path) -> None:
    found = checked(tmp_path, {})
    assert (found.num_rows, found.faults, found.cautions) == (1, (), ())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"measured_step_s": 8000}, "makes 2 tokens/s per GPU"),  # milliseconds
        ({"measured_step_s": -8}, "measured_step_s is -8"),
        ({"hidden": "4k"}, "hidden is '4k'"),
        ({"mlp_type": "relu"}, "mlp_type is 'relu'"),
        ({"trust": "D"}, "trust is 'D'"),
        ({"source": ""}, "source is blank"),
        ({"tp": 0.5, "measured_mem_GB": 80e9}, "measured_mem_GB is 80000000000"),
    ],
)
def test_a_planted_fault_is_found(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    found = checked(tmp_path, {name: value for name, value in change.items() if name in ROW})
    assert any(words in sentence for _, sentence in found.faults), found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_gpus": 64.5}, "n_gpus is 64.5: Input should be a multiple of 1"),
        ({"gpus_per_node": 0}, "gpus_per_node is 0"),
        ({"node_gbit": -5}, "node_gbit is -5"),
        ({"recompute": "ful"}, "recompute is 'ful'"),
        ({"precision": "bf17"}, "precision is 'bf17': Input should be bf16, fp16 or fp8"),
        ({"sharding": "zero9"}, "sharding is 'zero9': ZeRO has"),
    ],
)
def test_what_reading_refuses_is_a_fault(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert [sentence.startswith(words) for _, sentence in checked(tmp_path, change).faults] == [True]


def test_what_is_forecast_against_a_cell_asks_for_a_look(tmp_path: Path) -> None:
    found = checked(tmp_path, {"framework": "torchtitn"})
    assert found.cautions == (("one", "is forecast with framework fsdp2: 'torchtitn' is not known"),)
    # Beside a fault too, and of a shape by the model's name.
    other = checked(tmp_path, {"framework": "torchtitn", "hidden": "", "n_layers": "", "trust": "D"})
    assert other.cautions == found.cautions
    assert [sentence.partition(" ")[0] for _, sentence in other.faults] == ["trust"]


def test_the_same_id_twice(tmp_path: Path) -> None:
    assert checked(tmp_path, {}, {}).faults == (("one", "id occurs twice"),)


def test_what_cannot_be_or_be_forecast_asks_for_a_look(tmp_path: Path) -> None:
    fast = checked(tmp_path, {"measured_step_s": 0.8, "measured_tokens_per_s_per_gpu": 20480})
    assert "of the peak" in fast.cautions[0][1]
    unknown = checked(tmp_path, {"gpu": "H200-14GB"})
    assert "is not forecast" in unknown.cautions[0][1]


def test_the_convention_behind_a_published_rate(tmp_path: Path) -> None:
    # 6,738,415,616 parameters less the embedding, and 12 L D S of attention; by hand.
    flop = 6 * (6_738_415_616 - 32000 * 4096) + 12 * 32 * 4096 * 4096
    found = checked(tmp_path, {"measured_tflops_per_gpu": flop * 2048 / 1e12})
    assert found.conventions.to_dict("records") == [{"source": "table", "convention": "full", "rows": 1}]
    other = checked(tmp_path, {"measured_tflops_per_gpu": 2 * flop * 2048 / 1e12})
    assert other.conventions["convention"].tolist() == ["none"]


def test_the_published_runs_have_no_fault() -> None:
    found = check_table(PUBLISHED_RUNS)
    assert found.num_rows == 1138
    assert not found.faults
    table = found.conventions.set_index(["source", "convention"])["rows"]
    # As the table's description says: Megatron's counts recomputation, Stas Bekman's half the attention.
    assert table["megatron-sc21", "full, recomputation counted"] == 10
    assert table["stas-ml-eng", "causal"] == 14
    assert table["llm-foundry", "full"] > 100


def test_the_command_ends_with_1_on_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checked(tmp_path, {"trust": "D"})
    with pytest.raises(SystemExit) as stopped:
        main(["accuracy", "--check", "--runs", str(tmp_path / "runs.csv"), "--json"])
    assert stopped.value.code == 1
    assert json.loads(capsys.readouterr().out)["faults"][0]["id"] == "one"
