"""What a search prints: the document, the sentences and the figure, against the numbers they are made of."""

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import H100, cluster, small_model
from rich.console import Console

from flopcast import InputError, load_model
from flopcast.reports.comparison import row_as_json
from flopcast.reports.figures.canvas import save
from flopcast.reports.figures.pareto import draw
from flopcast.reports.figures.scaling import search_scaling
from flopcast.reports.placements import described, settings, varied
from flopcast.reports.runner_up import why_behind
from flopcast.reports.search import as_json, memory_steps, render
from flopcast.reports.verdict import exchange_remark, launch_remark, remarks, verdict
from flopcast.simulator.forecast import Row, forecast
from flopcast.simulator.model import Model
from flopcast.simulator.plan import Plan
from flopcast.simulator.search import SearchRequest, SearchResult, search

MODEL = small_model(hidden=4096, num_heads=32, num_kv_heads=32, intermediate=11008, num_layers=32)
MACHINE = cluster(H100)


def found(**fields: Any) -> SearchResult:
    return search(MODEL, MACHINE, SearchRequest(**{"num_gpus": [16], "global_batch_tokens": 64 * 2048, **fields}))


RESULT = found()


def printed(result: SearchResult) -> str:
    out = io.StringIO()
    console = Console(width=120, file=out)
    for part in render(result):
        console.print(part)
    return out.getvalue()


def test_the_document_has_rows_as_compares_and_what_the_search_adds() -> None:
    document = as_json(RESULT, 1e12)
    assert document["num_tokens"] == 1e12
    assert document["num_plans"] == RESULT.num_plans
    assert document["elapsed_s"] > 0
    assert len(document["rows"]) == 5
    row = RESULT.found[0].rows[0]
    first = document["rows"][0]
    days = 1e12 / (row.tokens_per_s_per_gpu * 16) / 86400
    added = {"days": pytest.approx(days), "objective": row.step_s, "why_behind": ""}
    assert {**row_as_json(row, MACHINE.gpu.memory_bytes), **added} == first
    assert all(row["why_behind"] for row in document["rows"][1:])
    assert forecast(MODEL, MACHINE, Plan(**first["plan"])).step_s[0] == first["step_s"]
    front = document["counts"][0]["front"]
    assert front[0]["step_s"] == pytest.approx(first["step_s"])


def test_the_document_says_what_it_rests_on() -> None:
    machine = replace(MACHINE, assumptions=("network.nic: 50 GB/s is assumed",))
    request = SearchRequest([16], global_batch_tokens=64 * 2048, fixed={"pp": [1], "tp": [1]})
    document = as_json(search(MODEL, machine, request))
    assert document["cluster"]["assumptions"] == ["network.nic: 50 GB/s is assumed"]


def test_what_is_as_good_is_named_however_many_placements_are_shown() -> None:
    near = verdict(RESULT).partition("Not told apart from it: ")[2]
    assert near
    assert verdict(found(top=1)).endswith(near)


def test_the_verdict_names_the_winner_with_its_band() -> None:
    row = RESULT.found[0].rows[0]
    words = verdict(RESULT)
    assert words.startswith(f"Best by time: {described(row)}: {row.step_s:.2f} s per step")
    assert f"({row.low_s:.2f}-{row.high_s:.2f})" in words
    assert f"{row.memory_bytes / 1e9:.1f} GB" in words


@pytest.mark.parametrize("by_memory", [False, True])
def test_why_a_plan_is_behind_adds_up(by_memory: bool) -> None:
    """The total is the difference; the parts named are those that differ most, each with its own difference."""
    first, second = RESULT.found[0].rows[0], RESULT.found[0].rows[-1]
    words = why_behind(second, first, by_memory)
    if by_memory:
        assert float(words.split(" GB:")[0]) == pytest.approx(
            (second.memory_bytes - first.memory_bytes) / 1e9, abs=0.06
        )
    else:
        more = second.step_s - first.step_s
        assert float(words.split(" s:")[0]) == pytest.approx(more, rel=0.05)
        named = dict(re.findall(r"([a-z][a-z -]+?)(?: \(recompute \w+\))? ([+-][\d.]+)", words.split(": ", 1)[1]))
        bubble = second.seconds["bubble"] - first.seconds["bubble"]
        if "pipeline bubble" in named:
            assert float(named["pipeline bubble"]) == pytest.approx(bubble, rel=0.05, abs=0.01)


def test_a_plan_that_recomputes_says_so() -> None:
    first = RESULT.found[0].rows[0]
    again = forecast(MODEL, MACHINE, Plan(**{**first.plan, "recompute": "full"})).rows()[0]
    assert "computation (recompute full) +" in why_behind(again, first, by_memory=False)


def test_what_the_terminal_shows() -> None:
    text = printed(RESULT)
    assert f"{RESULT.num_plans:,} legal plans" in text
    assert described(RESULT.found[0].rows[1]).split()[0] in text
    assert "why it is behind the first" in text
    assert "With gradients in 32 bits and no 4-bit gather the best is" in " ".join(text.split())
    several = printed(found(num_gpus=[8, 16, 32]))
    assert "The best placements on 32 GPUs" in several
    assert "kept of the" in several


def row_of(model: Model, seq_len: int, **fields: Any) -> Row:
    return forecast(model, MACHINE, Plan("ddp", 16, seq_len, grad_accum=8, **fields)).rows()[0]


def test_where_ranks_split_layers_another_engine_is_named_unless_one_was_chosen() -> None:
    words, whole = "PyTorch's own engine; --fix engine=megatron", {"pp": [1], "cp": [1]}
    told = {
        **{tp: remarks(found(fixed={"tp": [tp], **whole})) for tp in (1, 2)},
        **{engine: remarks(found(fixed={"tp": [2], **whole, "engine": [engine]})) for engine in ("fsdp2", "megatron")},
    }
    assert {which for which, said in told.items() if any(words in sentence for sentence in said)} == {2}


def test_a_mixture_that_waits_for_its_exchange_is_told_what_helps() -> None:
    def row(**fields: Any) -> Row:
        return row_of(load_model("mixtral-8x7b"), 4096, ep=8, **fields)

    waits = row()
    share = 100 * waits.seconds["expert_communication"] / waits.step_s
    assert share > 2
    assert f"{share:.0f} %. Software that sends one copy to a node" in exchange_remark(waits)
    assert exchange_remark(row(dispatcher="deepep")) == ""
    assert exchange_remark(RESULT.found[0].rows[0]) == ""


def test_passes_that_wait_for_the_host_are_told_of_cuda_graphs() -> None:
    waits = row_of(MODEL, 256)
    share = 100 * waits.seconds["launch"] / waits.step_s
    assert share > 2
    assert f"{share:.0f} %. Software that replays them from CUDA graphs" in launch_remark(waits)
    assert launch_remark(row_of(MODEL, 256, cuda_graphs="full")) == ""
    assert launch_remark(RESULT.found[0].rows[0]) == ""


def test_memory_steps_are_on_the_front_and_ever_smaller() -> None:
    front = RESULT.found[0].front
    places = memory_steps(RESULT, RESULT.found[0])
    memory = front.memory.total[places]
    assert list(memory) == sorted(memory, reverse=True)
    assert places[0] == 0


def test_what_was_varied_is_said_of_each_plan() -> None:
    result = found(fixed={"compiled": [True, False], "precision": ["bf16", "fp8"], "tp": [1, 2]})
    row = result.found[0].rows[0]
    assert settings(row, varied(result)).endswith("compiled true, precision fp8")
    assert "% MFU of the 16-bit peak" in verdict(result)


def test_settings_say_what_was_chosen() -> None:
    fields = {"strategy": "zero1", "num_gpus": 16, "seq_len": 2048, "optimizer_shard": 4, "grad_accum": 4}
    plan = Plan(**fields, tp=2, pp=2, sequence_parallel=True, schedule="gpipe", recompute="full", bucket_bytes=2**31)  # type: ignore[arg-type]
    row = forecast(MODEL, MACHINE, plan).rows()[0]
    assert described(row) == "zero1 with tp 2, pp 2"
    assert settings(row) == ("1 x 4, recompute full, sequence parallel, gpipe, 32-bit gradients in 2 GiB buckets")


def test_the_figure_has_the_front_and_is_written(tmp_path: Path) -> None:
    figure = draw(RESULT)
    (axes,) = figure.axes
    front = RESULT.found[0].front
    line = next(line for line in axes.lines if len(line.get_xdata()) == len(front.plans))  # type: ignore[arg-type]
    assert max(line.get_xdata()) == pytest.approx(front.memory.total.max() / 1e9)  # type: ignore[arg-type]
    for ending in ("svg", "png"):
        save(figure, tmp_path / f"front.{ending}")
        save(draw(RESULT), tmp_path / f"again.{ending}")
        written = (tmp_path / f"front.{ending}").read_bytes()
        assert len(written) > 1000
        assert written == (tmp_path / f"again.{ending}").read_bytes()
    with pytest.raises(InputError, match="cannot be written"):
        save(figure, tmp_path / "front.unknown")
    assert {path.name for path in tmp_path.iterdir()} == {"front.svg", "front.png", "again.svg", "again.png"}


def test_the_figure_of_several_gpu_counts_has_each_and_the_ideal(tmp_path: Path) -> None:
    result = found(num_gpus=[8, 16, 32])
    figure = search_scaling(result)
    left, right = figure.axes
    ideal, forecast_s = left.lines
    rows = [f.rows[0] for f in result.found]
    assert list(forecast_s.get_xdata()) == [8, 16, 32]  # type: ignore[arg-type]
    assert list(forecast_s.get_ydata()) == [row.step_s for row in rows]  # type: ignore[arg-type]
    assert list(ideal.get_ydata()) == pytest.approx([rows[0].step_s * 8 / n for n in (8, 16, 32)])  # type: ignore[arg-type]
    assert list(right.lines[0].get_ydata()) == [100 * row.mfu for row in rows]  # type: ignore[arg-type]
    save(figure, tmp_path / "scaling.svg")
