"""The timeline's answer: one JSON document, tables, figures."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from builders import plan
from rich.console import Console

from flopcast import InputError
from flopcast.reports.figures.canvas import save
from flopcast.reports.figures.timeline import draw
from flopcast.reports.timeline import IN_WORDS, LABELS, as_json, plan_in_words, render
from flopcast.reports.trace import write_traces
from flopcast.reports.trace_comparison import compare_with_trace
from flopcast.simulator.catalogue import load_cluster, load_model
from flopcast.simulator.plan import FIELDS
from flopcast.simulator.timeline import Disturbance, play
from flopcast.simulator.timeline.waterfall import ORDER

EVEN = play(load_model("plamo-13b"), load_cluster("abci-a"), plan("zero3-node", 64, grad_accum=2))
SLOW = play(load_model("plamo-13b"), load_cluster("abci-a"), plan("zero3", 64), Disturbance({3: 0.8}))
PIPELINE = play(
    load_model("llama-2-7b"),
    load_cluster("abci-a"),
    plan("zero1", 64, pp=4, grad_accum=8, schedule="interleaved", virtual_pp=2),
)


@pytest.mark.parametrize("timeline", [EVEN, SLOW, PIPELINE])
def test_the_document_holds_what_it_promises(timeline: object) -> None:
    assert isinstance(timeline, type(EVEN))
    document = json.loads(json.dumps(as_json(timeline), allow_nan=False))
    assert document["step_s"] == timeline.step_s
    assert document["waterfall"][0]["name"] == "ideal_at_peak"
    assert sum(part["seconds"] for part in document["waterfall"]) == pytest.approx(document["step_s"], rel=1e-12)
    assert 0 < document["exposed_communication_s"] < document["step_s"]
    assert sum(row["num_ranks"] for row in document["rank_classes"]) == 64
    assert document["plan"]["num_gpus"] == 64


def test_every_part_has_a_label() -> None:
    assert set(LABELS) == {"ideal_at_peak", *ORDER}


def printed(timeline: object, comparison: object = None) -> str:
    console = Console(width=120, file=StringIO())
    for part in render(timeline, comparison):  # type: ignore[arg-type]
        console.print(part)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_tables_say_what_stragglers_cost_and_who_is_alike() -> None:
    text = printed(SLOW)
    assert f"{SLOW.step_s:.3f} s per step" in text
    assert f"cost the whole job {SLOW.step_s / SLOW.undisturbed_s - 1:.1%}" in text
    assert "rank 0 and 55 like it" in text
    assert "rank 24 and 7 like it" in text
    assert "stragglers" not in printed(EVEN)


def test_slow_links_are_named_and_slow_nodes_come_first() -> None:
    text = printed(play(SLOW.forecast.model, SLOW.forecast.cluster, SLOW.plan, Disturbance({7: 0.8}, {3: 0.5})))
    assert "rank 24 and 7 like it, link 0.5" in text
    where = SLOW.forecast.cluster
    many = play(SLOW.forecast.model, where, plan("zero3", 128), Disturbance({7: 0.8}, {3: 0.5}, jitter=0.02))
    rows = [row for row in printed(many).splitlines() if row.startswith(("rank ", "and "))]
    assert {row.split("  ")[0] for row in rows[:2]} == {
        "rank 24 and 7 like it, link 0.5",
        "rank 56 and 7 like it, speed 0.8",
    }


def test_what_it_rests_on_is_said_as_compare_says_it() -> None:
    (assumed,) = EVEN.forecast.cluster.assumptions
    assert as_json(EVEN)["assumptions"] == [assumed]
    assert f"Rests on assumptions {assumed}" in " ".join(printed(EVEN).split())


def test_a_plan_that_does_not_fit_says_so() -> None:
    played = play(load_model("plamo-13b"), load_cluster("abci-a"), plan("ddp", 64))
    document = as_json(played)
    assert document["fits"] is False
    need = played.forecast.memory.total[0]
    assert document["memory_bytes"] == need
    assert f"The plan does not fit: {need / 1e9:.0f} GB for a GPU of 43 GB" in printed(played)
    assert as_json(EVEN)["fits"] is True
    assert "fit" not in printed(EVEN)


def test_a_comparison_is_in_both(tmp_path: Path) -> None:
    (path,) = write_traces(EVEN, tmp_path / "step.json.gz")
    comparison = compare_with_trace(EVEN, path)
    rows = {row["operations"]: row for row in as_json(EVEN, comparison)["comparison"]["rows"]}
    assert rows["gemm"]["ratio"] == pytest.approx(1.0)
    assert "measured, s" in printed(EVEN, comparison)


@pytest.mark.parametrize("timeline", [EVEN, PIPELINE])
def test_the_figure_shows_streams_or_stages_and_the_waterfall(timeline: object, tmp_path: Path) -> None:
    assert isinstance(timeline, type(EVEN))
    figure = draw(timeline)
    whole, forward, backward, cascade = figure.axes
    rows = [label.get_text() for label in whole.get_yticklabels()]
    assert rows == (["compute", "in-node", "between-nodes"] if timeline is EVEN else [f"stage {s}" for s in range(4)])
    assert (forward.get_title(loc="left"), backward.get_title(loc="left")) == (
        ("Layer 20 forward", "Layer 20 backward") if timeline is EVEN else ("Layer 16 forward", "Layer 16 backward")
    )
    bars = cascade.patches
    assert sum(bar.get_width() for bar in bars) == pytest.approx(timeline.step_s, rel=0.02)  # type: ignore[attr-defined]
    save(figure, tmp_path / "step.png")
    assert (tmp_path / "step.png").stat().st_size > 10_000


def test_a_figure_that_cannot_be_written(tmp_path: Path) -> None:
    for name in ("step.xyz", "nowhere/step.png"):
        with pytest.raises(InputError, match="cannot be written"):
            save(draw(EVEN), tmp_path / name)


def test_the_heading_says_how_the_work_is_split_and_in_what_numbers() -> None:
    fields = {"cp": 2, "sequence_parallel": True, "precision": "fp8", "gradient_bits": 16, "attention": "cudnn"}
    played = play(load_model("llama-2-7b"), load_cluster("dgx-h100"), plan("tp2", 1024, **fields))
    said = " ".join(printed(played).split())
    assert "1,024 x h100-80gb" in said
    assert "tp 2, cp 2, sequence parallel, products in fp8, 16-bit gradients" in said


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ""),
        ({"engine": "megatron"}, ", engine megatron"),
        ({"compiled": True}, ", compiled"),
        ({"fused_kernels": False}, ", no fused kernels"),
        ({"attention": "flash2"}, ", attention flash2"),
        ({"state_bytes": 0}, ", 0 bytes of optimizer state per parameter"),
        ({"overlap_update": False}, ", parameters gathered before the forward"),
        ({"sliced_update": True}, ", update exchanged in slices"),
        ({"ep": 8, "dispatcher": "deepep"}, ", dispatcher deepep"),
        ({"ep": 8, "precision": "fp8", "dispatch_bits": 8}, ", products in fp8, 8-bit dispatch"),
        ({"ep": 8, "overlap_expert": True}, ", exchange with experts hidden"),
        ({"strategy": "tp8", "sequence_parallel": True}, ", sequence parallel"),
        (
            {"strategy": "tp8", "ep": 8, "sequence_parallel": True, "whole_experts": True},
            ", sequence parallel, whole experts",
        ),
        ({"strategy": "tp2", "overlap_tensor": True}, ", tensor-parallel communication hidden"),
        ({"strategy": "zero3", "prefetch": 0}, ", no prefetch"),
    ],
)
def test_the_heading_names_what_is_not_usual_and_nothing_else(fields: dict[str, Any], words: str) -> None:
    given = plan(**{"strategy": "zero1", "num_gpus": 64, "attention": "cudnn", "grad_accum": 4, **fields})
    degrees = "".join(f", {name} {getattr(given, name)}" for name in ("tp", "ep") if getattr(given, name) > 1)
    machine = load_cluster("dgx-h100")
    assert plan_in_words(given, machine) == (
        f"micro-batch 1 x 4 passes of 2,048 tokens, recompute none{degrees}{words}, 32-bit gradients"
    )
    bucketed = plan_in_words(replace(given, bucket_bytes=2**31), machine)
    assert bucketed.endswith("32-bit gradients" + (" in 2,048 MiB buckets" if given.parameter_shard == 1 else ""))


def test_no_field_of_a_plan_goes_without_a_word() -> None:
    strategy = {"strategy", "num_gpus", "gather_bits", "parameter_shard", "gradient_shard", "optimizer_shard"}
    always = {"seq_len", "micro_batch", "grad_accum", "recompute", "recompute_layers", "gradient_bits"}
    where_it_counts = {"tp", "cp", "ep", "pp", "virtual_pp", "schedule", "prefetch", "bucket_bytes"}
    assert set(FIELDS) == strategy | always | where_it_counts | set(IN_WORDS)


def test_labels_of_many_stages_stand_apart() -> None:
    model = replace(load_model("llama-2-7b"), layers=load_model("llama-2-7b").layers[:16])
    figure = draw(play(model, load_cluster("abci-a"), plan("zero1", 64, pp=16, grad_accum=16)))
    upper = figure.axes[0]
    assert [label.get_text() for label in upper.get_yticklabels()] == [f"stage {n}" for n in range(0, 16, 2)]
