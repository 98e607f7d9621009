"""``flopcast search`` as a user meets it."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from flopcast.cli import main
from flopcast.cli.search import search
from flopcast.simulator.forecast import MEMORY_MARGIN
from flopcast.simulator.ranking import Ranking

LLAMA = ["search", "llama-7b", "--cluster", "dgx-a100", "--gpus", "8"]


def test_json_has_the_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*LLAMA, "--fix", "pp=1", "--top", "3", "--json"])
    assert not stopped.value.code
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert {"num_plans", "elapsed_s", "rows"} <= set(document)
    assert len(document["rows"]) == 3
    assert {row["plan"]["pp"] for row in document["rows"]} == {1}
    assert "plans/s" in captured.err


def test_a_figure_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*LLAMA, "--fix", "pp=1", "cp=1", "--figure", str(tmp_path / "front.svg")])
    assert (tmp_path / "front.svg").read_text().startswith("<?xml")
    assert "Best by time" in capsys.readouterr().out


def test_several_gpu_counts_are_drawn_as_scaling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(
            [*LLAMA, "16", "--fix", "pp=1", "cp=1", "--figure", str(tmp_path / "scaling.svg"), "--memory-margin", "0.2"]
        )
    assert (tmp_path / "scaling.svg").read_text().startswith("<?xml")
    assert "leave 20 % of 42.9 GB free" in capsys.readouterr().out


def test_days_are_for_the_tokens_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*LLAMA, "--fix", "pp=1", "cp=1"])
    assert "135 G tokens, 20 per parameter (--tokens sets it), take" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*LLAMA, "--fix", "pp=1", "cp=1", "--tokens", "2T"])
    assert "2.00 T tokens take" in capsys.readouterr().out


def test_the_default_margin_is_the_simulators() -> None:
    assert inspect.signature(search).parameters["memory_margin"].default == MEMORY_MARGIN


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--fix", "pp=0"], "at least 1"),
        (["--fix", "tp=3"], "does not divide num_heads"),
        (["--objective", "cost"], "no gpu_hour_price"),
        (["--fix", "precision=fp8"], "a100-40gb has no 8-bit peak"),
        (["--memory-margin", "1"], "--memory-margin is 1"),
        (["--tokens", "0"], "--tokens is 0"),
        (["--figure", "absent/folder/front.svg"], "there is no folder absent/folder"),
    ],
)
def test_bad_input_is_one_line(given: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*LLAMA, *given])
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("flopcast: ")
    assert words in captured.err.splitlines()[-1]


def test_ctrl_c_prints_the_best_so_far(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    add, seen = Ranking.add, []

    def interrupted(self: Ranking, *piece: Any) -> None:
        seen.append(piece)
        if len(seen) > 3:
            raise KeyboardInterrupt
        add(self, *piece)

    monkeypatch.setattr(Ranking, "add", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main([*LLAMA, "--json"])
    captured = capsys.readouterr()
    assert stopped.value.code == 130
    assert "best so far" in captured.err
    document = json.loads(captured.out)
    assert document["complete"] is False
    assert document["rows"]


def test_what_is_fixed_is_shown_as_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*LLAMA, "--fix", "compiled=true", "pp=1"])
    assert "Fixed: compiled=true pp=1" in capsys.readouterr().out


def test_a_short_training_is_told_in_hours(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["search", "gpt2", "--cluster", "dgx-h100", "--gpus", "8", "--fix", "pp=1", "tp=1"])
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"take [\d.]+ hours and [\d.]+ GPU-hours, without failures", said)


def test_ctrl_c_before_there_is_anything_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flopcast.simulator.catalogue.load_model", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(LLAMA)
    assert (stopped.value.code, capsys.readouterr().err) == (130, "flopcast: interrupted\n")
