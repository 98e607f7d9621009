"""Small models of every mixture of experts, counted by transformers itself on torch's meta device."""

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


@pytest.mark.parametrize(
    ("kind", "config"),
    [
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
