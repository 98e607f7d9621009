"""Small models of many families, mixtures of experts among them, counted by transformers on torch's meta device."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from flopcast.simulator.huggingface import model_from_config

COMMON: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "vocab_size": 1000,
    "max_position_embeddings": 256,
}
QWEN: dict[str, Any] = {
    **COMMON,
    "num_key_value_heads": 2,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
}
DEEPSEEK: dict[str, Any] = {
    **COMMON,
    "num_key_value_heads": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 96,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
}
GPT: dict[str, Any] = {"n_embd": 256, "n_layer": 3, "n_head": 8, "vocab_size": 1000, "n_positions": 256}
FEW: dict[str, Any] = {**COMMON, "num_key_value_heads": 2, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("arcee", FEW),
        ("arcee", {**FEW, "mlp_bias": True, "attention_bias": True}),
        ("cohere", FEW),
        ("cohere", {**FEW, "use_qk_norm": True, "tie_word_embeddings": False}),
        ("cohere2", {**FEW, "head_dim": 64}),
        ("ernie4_5", FEW),
        ("ernie4_5", {**FEW, "use_bias": True, "head_dim": 32}),
        ("exaone4", FEW),
        ("exaone4", {**COMMON, "num_key_value_heads": 8, "layer_types": ["full_attention"] * 5}),
        ("glm", FEW),
        ("glm", {**FEW, "attention_bias": False, "head_dim": 32}),
        ("glm4", FEW),
        ("gpt_bigcode", GPT),
        ("gpt_bigcode", {**GPT, "multi_query": False, "n_inner": 700}),
        ("gptj", {**GPT, "rotary_dim": 16}),
        ("granite", FEW),
        ("granite", {**FEW, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("nemotron", {**FEW, "head_dim": 64}),
        ("nemotron", {**FEW, "head_dim": 32, "mlp_bias": True, "attention_bias": True}),
        ("olmo2", FEW),
        ("olmo3", {**FEW, "attention_bias": True}),
        ("seed_oss", FEW),
        ("seed_oss", {**FEW, "attention_bias": False, "attention_out_bias": True, "mlp_bias": True, "head_dim": 32}),
        ("smollm3", FEW),
        ("smollm3", {**COMMON, "pad_token_id": 0, "num_attention_heads": 16, "tie_word_embeddings": False}),
        ("stablelm", FEW),
        ("stablelm", {**FEW, "use_parallel_residual": True, "use_qkv_bias": True}),
        ("starcoder2", COMMON),
        ("starcoder2", {**COMMON, "use_bias": False, "tie_word_embeddings": False, "sliding_window": 64}),
        ("glm4_moe", {**FEW, "n_routed_experts": 8, "num_experts_per_tok": 3}),
        (
            "glm4_moe",
            {
                **FEW,
                **{
                    "n_routed_experts": 8,
                    "moe_intermediate_size": 96,
                    "num_experts_per_tok": 2,
                    "first_k_dense_replace": 2,
                    "use_qk_norm": True,
                    "attention_bias": True,
                    "n_shared_experts": 2,
                    "head_dim": 64,
                },
            },
        ),
        ("gpt_oss", {**COMMON, "num_local_experts": 6, "num_experts_per_tok": 2}),
        ("gpt_oss", {**FEW, "num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 32, "attention_bias": False}),
        ("granitemoe", {**FEW, "num_local_experts": 5}),
        ("granitemoe", {**COMMON, "attention_bias": True, "tie_word_embeddings": True}),
        ("llama4_text", COMMON),
        ("llama4_text", {**FEW, "num_local_experts": 4, "interleave_moe_layer_step": 2, "intermediate_size_mlp": 700}),
        ("llama4_text", {**FEW, "num_local_experts": 4, "moe_layers": [1, 2], "intermediate_size_mlp": 700}),
        ("minimax_m2", {**FEW, "num_local_experts": 9, "num_experts_per_tok": 3}),
        ("minimax_m2", {**COMMON, "num_local_experts": 8, "num_experts_per_tok": 8, "head_dim": 32}),
        ("olmoe", FEW),
        ("olmoe", {**COMMON, "num_experts": 7, "num_experts_per_tok": 2, "attention_bias": True}),
        ("mixtral", {**COMMON, "num_key_value_heads": 2, "num_local_experts": 4}),
        ("mixtral", {**COMMON, "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": True}),
        ("qwen2_moe", {**QWEN, "shared_expert_intermediate_size": 192}),
        ("qwen2_moe", {**QWEN, "decoder_sparse_step": 2, "mlp_only_layers": [3], "qkv_bias": False}),
        ("qwen3_moe", {**QWEN, "head_dim": 64, "mlp_only_layers": [0]}),
        ("qwen3_moe", {**QWEN, "attention_bias": True}),
        ("deepseek_v2", {**DEEPSEEK, "n_shared_experts": 2, "first_k_dense_replace": 1, "q_lora_rank": None}),
        ("deepseek_v2", {**DEEPSEEK, "n_shared_experts": 1, "q_lora_rank": 96}),
        ("deepseek_v3", {**DEEPSEEK, "n_shared_experts": 1, "q_lora_rank": 96, "n_group": 2, "topk_group": 1}),
    ],
)
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
    assert [layer.window is not None for layer in layers] == [t != "full_attention" for t in reference.layer_types]
    turn = getattr(reference, "no_rope_layers", None)
    if turn is None and kind in ("cohere2", "exaone4"):  # positions only where a layer slides: modeling_<kind>.py
        turn = [t == "sliding_attention" for t in reference.layer_types]
    assert [layer.rotary_share for layer in layers] == [float(t) for t in turn or [1] * 9]
