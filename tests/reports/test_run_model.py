"""The model of a row: by its columns, by its name, and mixtures of experts by either."""

from typing import Any

import pytest
from builders import RUN

from flopcast import load_model
from flopcast.reports.runs import Run, express


def changed(**cells: Any) -> Run:
    return express({**RUN, **cells})


@pytest.mark.parametrize("name", ["Llama-2-13B", "llama2-13b", "meta-llama/Llama-2-13b-hf", "LLAMA2_13B"])
def test_a_blank_shape_is_the_catalogues(name: str) -> None:
    run = changed(hidden=None, model_name=name)
    assert run.model is not None
    assert run.model.layers == load_model("llama-2-13b").layers
    assert "the shape of llama-2-13b" in run.assumed


def test_a_mixture_by_its_columns() -> None:
    mixtral = {"n_layers": 32, "hidden": 4096, "ffn_hidden": 14336, "n_heads": 32, "n_kv_heads": 8, "vocab": 32000}
    for experts, per_token in (("num_experts", "experts_per_token"), ("n_experts", "top_k")):
        run = changed(**mixtral, **{experts: 8, per_token: 2, "ep": 8})
        assert run.model is not None
        assert run.plan is not None
        assert run.model.num_parameters == load_model("mixtral-8x7b").num_parameters
        assert run.plan.ep == 8


def test_a_mixture_by_its_name_alone_is_not_taken_for_a_dense_model() -> None:
    known = changed(model_name="Mixtral-8x7B")
    assert known.model is not None
    assert known.model.num_parameters == load_model("mixtral-8x7b").num_parameters
    assert "num_experts is blank" in changed(model_name="Unheard-of-8x3B").skipped
    assert not changed(model_name="llama-7b-A100").skipped


def test_packed_samples_are_attended_to_alone() -> None:
    """256 tokens each: a token attends to 128 on average, which is what a window of 128 gives but for its beginning."""
    plain, packed = changed(notes="SFT"), changed(notes="SFT on packed sequences")
    assert plain.model is not None
    assert packed.model is not None
    per_token = [model.layers[0].score_flop_per_token(4096, causal=True) for model in (plain.model, packed.model)]
    assert per_token[0] == pytest.approx(4 * 4096 * 2048)
    assert per_token[1] == pytest.approx(4 * 4096 * 128, rel=0.02)
    assert packed.model.num_parameters == plain.model.num_parameters
    assert "samples of 256 tokens are packed into a sequence" in packed.assumed
    assert not any("packed" in words for words in changed(notes="packed documents, pre-training").assumed)
