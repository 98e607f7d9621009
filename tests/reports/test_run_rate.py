"""Steps from what tables state of their rate, against the step times that the same rows publish."""

from typing import Any

import published
import pytest
from builders import RUN

from flopcast.reports.runs import express
from flopcast.simulator.conventions import model_flop_per_token

BLANK = dict.fromkeys(
    (
        *("measured_step_s", "measured_tokens_per_s_per_gpu", "measured_tflops_per_gpu"),
        *("measured_mfu_pct", "measured_hfu_pct"),
    )
)


@pytest.mark.parametrize(
    ("source", "name", "agreement"),
    [
        ("llm-foundry", "measured_tflops_per_gpu", 0.01),
        ("llm-foundry", "measured_mfu_pct", 0.01),
        ("llm-foundry", "measured_hfu_pct", 0.01),
        ("megatron-sc21", "measured_tflops_per_gpu", 0.01),
        ("nemo-24.07", "measured_tflops_per_gpu", 0.005),
        ("stas-ml-eng", "measured_tflops_per_gpu", 0.005),
        ("playbook", "measured_mfu_pct", 0.01),
    ],
)
def test_an_efficiency_alone_gives_the_published_step(source: str, name: str, agreement: float) -> None:
    """Four conventions: model FLOPs with full and with causal attention, hardware FLOPs, and those of 8-bit peaks."""
    rows = [row for row in published.rows() if row["source_key"] == source and row[name] == row[name]][:8]
    errors = []
    for row in rows:
        run, alone = express(row), express({**row, **BLANK, name: row[name]})
        assert not alone.skipped
        errors.append(abs(alone.measured_step_s / run.measured_step_s - 1))
    assert sorted(errors)[len(errors) // 2] < agreement


def efficiency(**cells: Any) -> float:
    run = express({**RUN, **BLANK, **cells})
    assert not run.skipped
    return run.measured_step_s


@pytest.mark.parametrize(
    ("said", "convention"),
    [
        ("6N only, attention not counted", "6n"),
        ("model FLOPs, causal attention", "causal"),
        ("FULL (non-causal) attention", "full"),
        (None, "full"),
    ],
)
def test_conventions_as_tables_name_them(said: str | None, convention: str) -> None:
    run = express({**RUN})
    assert run.model is not None
    flop = model_flop_per_token(run.model, 4096, convention).total
    found = efficiency(measured_tflops_per_gpu=200, tflops_convention=said)
    assert found == pytest.approx(256 * 4096 / 64 * flop / 200e12)


def test_an_efficiency_may_be_of_the_peak_in_8_bits() -> None:
    """The H100 SXM's datasheet: 1,979 TFLOP/s in 8 bits without sparsity, 989.4 in 16."""
    of_8_bits = efficiency(gpu="H100-SXM", measured_mfu_pct=30, tflops_convention="full, fp8 peak 1979")
    of_16_bits = efficiency(gpu="H100-SXM", measured_mfu_pct=30, tflops_convention="full")
    assert of_8_bits == pytest.approx(of_16_bits / 2, rel=1e-3)


def test_recomputation_counts_where_the_hardware_s_flops_are_stated() -> None:
    run = express({**RUN})
    assert run.model is not None
    flop = model_flop_per_token(run.model, 4096, "full")
    ratio = efficiency(measured_hfu_pct=50) / efficiency(measured_mfu_pct=50)
    assert ratio == pytest.approx((flop.total + flop.layers_forward) / flop.total)


def test_a_share_beyond_the_peak_is_refused() -> None:
    run = express({**RUN, **BLANK, "measured_mfu_pct": 470})
    assert "at most 100 %" in run.skipped


def test_what_says_more_of_the_step_goes_first() -> None:
    assert efficiency(measured_tokens_per_s_per_gpu=1024, measured_mfu_pct=1) == 256 * 4096 / (1024 * 64)
