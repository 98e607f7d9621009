"""The sentences of a comparison against the numbers they are made of."""

import os
from pathlib import Path

from builders import cluster, plan, small_model

from flopcast import Request, compare
from flopcast.reports.comparison import as_json
from flopcast.reports.explain import bound_by, runs_as
from flopcast.reports.published_efficiency import PUBLISHED, forecasts, table
from flopcast.simulator.forecast import forecast

ROOT = Path(__file__).resolve().parents[2]


def test_a_plan_that_does_not_fit_says_what_fills_the_memory() -> None:
    model = small_model(hidden=8192, num_heads=64, num_kv_heads=64, intermediate=28672, num_layers=80)
    row = forecast(model, cluster(), plan("ddp", 8)).rows()[0]
    words = bound_by(row, 80 * 2**30)
    assert words.startswith("does not fit")
    assert "optimizer" in words
    assert f"{row.memory_bytes / 1e9:.0f} GB" in words


def test_shares_in_the_sentence_are_those_of_the_step() -> None:
    row = forecast(small_model(), cluster(), plan("zero3", 16)).rows()[0]
    words = bound_by(row, 80 * 2**30)
    assert f"{row.seconds['gemm'] / row.step_s:.0%} matrix products" in words


def test_what_was_chosen_in_a_few_words() -> None:
    fields = {"micro_batch": 2, "grad_accum": 3, "recompute": "full", "sequence_parallel": True}
    assert runs_as(forecast(small_model(), cluster(), plan("tp2", 16, **fields)).rows()[0]) == (
        "2 x 3, full, sequence parallel"
    )


def test_the_document_carries_what_the_answer_rests_on() -> None:
    document = as_json(compare(small_model(), cluster(), Request(16)))
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
