"""DeepSeek: fine-grained experts beside shared ones, leading dense layers, from V2 on with latent attention."""

from dataclasses import replace

from flopcast.errors import InputError
from flopcast.simulator.blocks.experts import Experts
from flopcast.simulator.blocks.latent_attention import LatentAttention
from flopcast.simulator.blocks.residual import FeedForward
from flopcast.simulator.blocks.transformer import Mlp
from flopcast.simulator.huggingface.fields import Fields
from flopcast.simulator.huggingface.llama import attention_of
from flopcast.simulator.huggingface.mixture import mixture_model
from flopcast.simulator.model import Model
from flopcast.simulator.units import shown

FURTHER_TOKENS = (
    "num_nextn_predict_layers: {} is left out, as in transformers; it would train and be held beside the rest"
)


def deepseek(fields: Fields) -> Model:
    """DeepseekConfig (deepseek-ai/deepseek-moe-16b-base, configuration_deepseek.py): plain attention, no biases."""
    attention = attention_of(fields)
    parts = feed_forwards(fields, default_dense=0)
    return mixture_model(fields, [attention] * len(parts), parts)


def deepseek_v2(fields: Fields) -> Model:
    """DeepseekV2Config: no leading dense layer where absent; without ``q_lora_rank`` (null) queries are one matrix."""
    return _latent(fields, default_dense=0, default_groups=(1, 1))


def deepseek_v3(fields: Fields) -> Model:
    """DeepseekV3Config: three leading dense layers, and experts of 4 in 8 groups, where absent.

    The layers that predict further tokens (``num_nextn_predict_layers``) are no part of the model, as in transformers.
    """
    return without_further_tokens(fields, _latent(fields, default_dense=3, default_groups=(8, 4)))


def without_further_tokens(fields: Fields, model: Model) -> Model:
    """The model with a word on the layers that predict further tokens, where its config.json has some."""
    further = fields.config.get("num_nextn_predict_layers")
    return replace(model, assumptions=(*model.assumptions, FURTHER_TOKENS.format(further))) if further else model


def _latent(fields: Fields, default_dense: int, default_groups: tuple[int, int]) -> Model:
    fields.refuse("attention_bias", False, "biases in latent attention are not supported; write false")
    without_rank = "q_lora_rank" in fields.config and fields.config["q_lora_rank"] is None
    attention = LatentAttention(
        num_heads=fields.size("num_attention_heads"),
        kv_rank=fields.size("kv_lora_rank", default=512),
        nope_dim=fields.size("qk_nope_head_dim", default=128),
        rope_dim=fields.size("qk_rope_head_dim", default=64),
        value_dim=fields.size("v_head_dim", default=128),
        query_rank=0 if without_rank else fields.size("q_lora_rank", default=1536),
    )
    parts = feed_forwards(fields, default_dense, default_groups)
    return mixture_model(fields, [attention] * len(parts), parts)


def feed_forwards(fields: Fields, default_dense: int, default_groups: tuple[int, int] = (1, 1)) -> list[FeedForward]:
    """An MLP in the first ``first_k_dense_replace`` layers, experts in every ``moe_layer_freq``-th after them."""
    first = fields.config.get("first_k_dense_replace")
    first = default_dense if first is None else first
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise InputError(f"first_k_dense_replace is {shown(first)}; write a whole number of layers")
    every = fields.size("moe_layer_freq", default=1)
    size = fields.size("moe_intermediate_size")
    experts = Experts(
        fields.size("n_routed_experts"),
        fields.size("num_experts_per_tok"),
        size,
        size * (fields.optional_size("n_shared_experts") or 0),
        num_groups=fields.optional_size("n_group") or default_groups[0],
        groups_per_token=fields.optional_size("topk_group") or default_groups[1],
    )
    layers = range(fields.num_layers("num_hidden_layers"))
    sparse = [index >= first and index % every == 0 for index in layers]
    if all(sparse):
        return [experts] * len(sparse)
    mlp = Mlp(fields.size("intermediate_size"))
    return [experts if is_sparse else mlp for is_sparse in sparse]
