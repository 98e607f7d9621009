"""Small models of many families, mixtures of experts among them, counted by transformers on torch's meta device."""

from typing import Any

import pytest
import torch
from small_configs import FEW, SMALL_CONFIGS
from transformers import AutoConfig, AutoModelForCausalLM

from flopcast.simulator.huggingface import model_from_config


@pytest.mark.parametrize(("kind", "config"), SMALL_CONFIGS)
def test_counts_are_those_of_transformers(kind: str, config: dict[str, Any]) -> None:
    with torch.device("meta"):
        reference = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config))
    expected = sum(parameter.numel() for parameter in reference.parameters())
    assert model_from_config({"model_type": kind, **config}, kind).num_parameters == expected


@pytest.mark.parametrize("kind", ["cohere2", "exaone4", "gpt_oss", "llama4_text", "olmo3", "smollm3"])
def test_the_layers_that_slide_and_those_that_turn_are_those_of_transformers(kind: str) -> None:
    config = {**FEW, "num_hidden_layers": 9, "sliding_window": 64, "use_sliding_window": True}
    reference = AutoConfig.for_model(kind, **config)
    layers = [block.parts()[0] for block in model_from_config({"model_type": kind, **config}, kind).layers]  # type: ignore[attr-defined]
    assert [bool(layer.window or layer.chunk) for layer in layers] == [
        t != "full_attention" for t in reference.layer_types
    ]
    turn = getattr(reference, "no_rope_layers", None)
    if turn is None and kind in ("cohere2", "exaone4"):  # positions only where a layer slides: modeling_<kind>.py
        turn = [t == "sliding_attention" for t in reference.layer_types]
    assert [layer.rotary_share for layer in layers] == [float(t) for t in turn or [1] * 9]
