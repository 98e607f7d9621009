"""The sentences of a comparison against the numbers they are made of."""

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
from builders import cluster, plan, small_model
from rich.console import Console

from flopcast import Request, compare, load_cluster, load_model
from flopcast.reports.comparison import FITTED, as_json, assumptions, nodes_in_words, render
from flopcast.reports.document.numbers import digits
from flopcast.reports.document.recommendation import in_words
from flopcast.reports.explain import apart, bound_by, ranked, recommended, runs_as, verdict
from flopcast.reports.published_efficiency import PUBLISHED, forecasts, table
from flopcast.reports.runs import published_runs
from flopcast.simulator.calibrated import Calibrated
from flopcast.simulator.catalogue import generic_cluster
from flopcast.simulator.forecast import best_of, forecast

ROOT = Path(__file__).resolve().parents[2]


def test_a_gpu_of_a_generation_without_runs_is_said() -> None:
    published = {run.cluster.gpu.architecture for run in published_runs() if run.cluster}
    assert published == set(FITTED)
    for name, said in (
        ("mi300x", True),
        ("rtx-4090", True),
        ("v100-32gb", True),
        ("a100-40gb", False),
        ("b200", False),
    ):
        notes = assumptions(small_model(), generic_cluster(name))
        assert any(note.startswith("gpu: ") and f"{name} is of none of them" in note for note in notes) == said, name
    # Fitted to the machine's own runs, the constants are of it.
    fitted = replace(generic_cluster("mi300x"), calibration=Calibrated({"num_gpus": (1.0, 8.0)}, None, num_runs=1))
    assert not any(note.startswith("gpu: ") for note in assumptions(small_model(), fitted))


def test_a_plan_that_does_not_fit_says_what_fills_the_memory() -> None:
    model = small_model(hidden=8192, num_heads=64, num_kv_heads=64, intermediate=28672, num_layers=80)
    row = forecast(model, cluster(), plan("ddp", 8)).rows()[0]
    words = bound_by(row, 80 * 2**30)
    assert words.startswith("does not fit")
    assert "optimizer" in words
    assert f"{row.memory_bytes / 1e9:,.0f} GB" in words


def test_memory_that_rounds_to_the_card_is_told_apart_from_it() -> None:
    assert apart(116.4, 85.9) == ("116", "86")
    assert apart(43.2, 42.9) == ("43.2", "42.9")
    assert apart(42.932, 42.949) == ("42.93", "42.95")


def test_a_run_of_minutes_is_not_told_as_no_days() -> None:
    comparison = compare(load_model("gpt2"), load_cluster("dgx-b200"), Request(64, strategies=["zero1"]))
    out = io.StringIO()
    for part in render(comparison, None):
        Console(width=120, file=out).print(part)
    line = next(line for line in out.getvalue().splitlines() if line.startswith("zero1"))
    best = comparison.best
    assert f"{digits(best.step_s)} ({digits(best.low_s)}-{digits(best.high_s)})" in line
    minutes = 20 * comparison.model.num_parameters / (64 * best.tokens_per_s_per_gpu) / 60
    assert f" {digits(minutes)} " in line
    assert "Minutes are for 2.49 G tokens" in out.getvalue()


def test_a_part_of_a_node_is_not_told_as_a_node() -> None:
    assert nodes_in_words(cluster(), 480) == "60 nodes of 8"
    assert nodes_in_words(cluster(), 8) == "1 node of 8"
    assert nodes_in_words(cluster(), 1) == "1 of the 8 GPUs of a node"


def test_shares_in_the_sentence_are_those_of_the_step() -> None:
    row = forecast(small_model(), cluster(), plan("zero3", 16)).rows()[0]
    words = bound_by(row, 80 * 2**30)
    assert f"{100 * row.seconds['gemm'] / row.step_s:.0f} % matrix products" in words


def test_the_verdict_names_the_fastest_that_fits_and_its_equals() -> None:
    best = forecast(small_model(), cluster(), plan("zero3", 16)).rows()[0]
    others = [
        replace(best, strategy=name, step_s=longer * best.step_s, plan=best.plan | {"tp": tp})
        for name, longer, tp in (("a", 1.01, 2), ("b", 1.5, 4))
    ]
    words = verdict([best, *others], 80 * 2**30)
    assert words.startswith(f"Fastest that fits: zero3, {digits(best.step_s)} s")
    assert words.endswith("told apart from it: a.")
    big = small_model(hidden=8192, num_heads=64, num_kv_heads=64, intermediate=28672, num_layers=80)
    words = verdict(forecast(big, cluster(), [plan("ddp", 8), plan("zero1", 8)]).rows(), 80 * 2**30)
    assert words.startswith("Nothing fits: zero1 needs least")
    assert "Sharding more (zero3) would need less" in words


def test_the_verdict_says_what_is_one_plan_and_what_is_tight() -> None:
    rows = ranked(compare(small_model(), cluster(), Request(8, strategies=["zero3", "hsdp", "ddp"])).rows)
    words = verdict(rows, 80 * 2**30)
    if rows[0].strategy != "ddp":
        assert "here the same plan: " in words
    slow, fast = sorted(rows, key=lambda row: row.step_s)[::-2]
    tight = [replace(slow, tight=False), replace(fast, tight=True, step_s=slow.step_s / 2)]
    assert ranked(reversed(tight)) == tight
    assert f"faster but tight in memory: {fast.strategy}" in verdict(tight, 80 * 2**30)
    assert best_of(tight) == tight[0]
    assert "tight: " in verdict(tight[1:], 80 * 2**30)


@pytest.mark.parametrize(
    ("longer", "changes", "exact"),
    [(1.02, {}, True), (1.04, {}, False), (1.02, {"tight": True}, False), (1.02, {"fits": False}, False)],
)
def test_four_bits_are_recommended_where_they_are_clearly_faster(
    longer: float, changes: dict[str, bool], exact: bool
) -> None:
    """Within 3 %, at as much room in memory, the plan that gathers in 16 bits."""
    row = forecast(small_model(), cluster(), plan("zero3", 16)).rows()[0]
    narrow = replace(row, strategy="zero3+q4", plan=row.plan | {"gather_bits": 4})
    wide = replace(row, step_s=longer * row.step_s, **changes)  # type: ignore[arg-type]
    assert recommended([wide, narrow]) == recommended([narrow, wide]) == (wide if exact else narrow)


def test_where_nothing_fits_the_smallest_is_named() -> None:
    row = replace(forecast(small_model(), cluster(), plan("zero3", 16)).rows()[0], fits=False)
    smaller = replace(row, memory_bytes=row.memory_bytes / 2, step_s=2 * row.step_s)
    assert recommended([row, smaller]) == smaller


def test_no_table_is_cut_short_on_a_narrow_terminal() -> None:
    comparison = compare(load_model("llama-3-70b"), load_cluster("dgx-h100"), Request(1024))
    out = io.StringIO()
    console = Console(width=100, file=out)
    for part in render(comparison, None):
        console.print(part)
    assert "…" not in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 100


def test_eight_bits_are_said_and_what_their_shares_are_of() -> None:
    model, where = load_model("llama-2-7b"), load_cluster("dgx-h100")
    for precision, words in (("bf16", "MFU and HFU are shares of 989 dense TFLOP/s"), ("fp8", "Products have 8 bits;")):
        found = compare(model, where, Request(8, precision=precision))  # type: ignore[arg-type]
        out = io.StringIO()
        for part in render(found, None):
            Console(width=120, file=out).print(part)
        assert words in out.getvalue()
        assert ("products in fp8" in in_words(found.best)) == (precision == "fp8")


def test_what_was_chosen_in_a_few_words() -> None:
    fields = {"micro_batch": 2, "grad_accum": 3, "recompute": "full", "sequence_parallel": True}
    assert runs_as(forecast(small_model(), cluster(), plan("tp2", 16, **fields)).rows()[0]) == (
        "2 x 3, full, sequence parallel"
    )


def test_the_document_carries_what_the_answer_rests_on() -> None:
    document = as_json(compare(small_model(), cluster(), Request(16)), 1e12)
    assert document["num_tokens"] == 1e12
    for row in document["rows"]:
        assert row["days"] * 86400 * 16 * row["tokens_per_s_per_gpu"] == pytest.approx(1e12)
    assert document["cluster"]["assumptions"] == []
    assert document["chosen"] == ["seq_len", "tokens_per_gpu", "micro_batch", "recompute", "attention"]
    assert all(row["bound_by"] for row in document["rows"])


def test_published_efficiencies_stand_in_the_documentation() -> None:
    for entry in PUBLISHED:
        rows = forecasts(entry)
        assert rows["6n"].mfu < rows["causal"].mfu < rows["full"].mfu
    page = ROOT / "docs" / "published-efficiency.md"
    text = page.read_text()
    start, end = text.index("<!-- table -->"), text.index("<!-- /table -->")
    shown = "<!-- table -->\n" + "\n".join(table()) + "\n"
    if os.environ.get("UPDATE_EXAMPLES"):
        page.write_text(text[:start] + shown + text[end:])
    else:
        assert text[start:end] == shown
