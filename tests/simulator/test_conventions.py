"""FLOP conventions: published values, and how far apart they are."""

import pytest

from flopcast.simulator.catalogue import load_model
from flopcast.simulator.conventions import model_flop_per_token


def test_llama_3_8b_at_8k_by_each_convention() -> None:
    """45.0, 51.5 and 57.9 GFLOP per token, 22 % apart."""
    model = load_model("llama-3-8b")
    found = [model_flop_per_token(model, 8192, c).total / 1e9 for c in ("6n", "causal", "full")]
    assert found == pytest.approx([45.0, 51.5, 57.9], abs=0.06)


def test_plamo_13b_by_hand() -> None:
    model = load_model("plamo-13b")
    multiplied = 13_099_545_600 - 50432 * 5120
    scores = 12 * 40 * 5120 * 4096
    assert model_flop_per_token(model, 4096, "6n").total == 6 * multiplied
    assert model_flop_per_token(model, 4096, "full").total == 6 * multiplied + scores
    assert model_flop_per_token(model, 4096, "causal").total == 6 * multiplied + scores / 2


def test_full_recompute_repeats_the_layers_forward_not_the_head() -> None:
    model = load_model("plamo-13b")
    layers = 40 * 314_577_920
    assert model_flop_per_token(model, 4096, "6n").layers_forward == 2 * layers
