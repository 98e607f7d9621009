"""Mixtures of experts on LLaMA's pattern: Mixtral, Qwen, OLMoE, Granite, MiniMax."""

from collections.abc import Sequence
from dataclasses import replace

from flopcast.errors import InputError
from flopcast.simulator.blocks.experts import Experts
from flopcast.simulator.blocks.residual import FeedForward, Mixer
from flopcast.simulator.blocks.transformer import Attention, Mlp, block_of
from flopcast.simulator.huggingface.fields import Fields
from flopcast.simulator.huggingface.llama import attention_of, head_dim, heads, upper_windows
from flopcast.simulator.model import Model
from flopcast.simulator.units import shown


def mixture_model(fields: Fields, mixers: Sequence[Mixer], parts: Sequence[FeedForward]) -> Model:
    """A model of RMSNorm, one mixer and one feed-forward part for every layer."""
    return Model(
        name=fields.name,
        hidden=fields.size("hidden_size"),
        vocab_size=fields.size("vocab_size"),
        context=fields.size("max_position_embeddings"),
        layers=tuple(block_of(mixer, part) for mixer, part in zip(mixers, parts, strict=True)),
        tied_embeddings=fields.flag("tie_word_embeddings", default=False),
    )


def mixtral(fields: Fields) -> Model:
    """MixtralConfig: 8 key/value heads, 8 experts of which a token uses 2, no window where absent; untied."""
    num_heads, num_kv_heads = heads(fields, default_kv_heads=8)
    window = fields.optional_size("sliding_window")
    attention = Attention(num_heads, num_kv_heads, head_dim(fields, num_heads), window=window)
    experts = Experts(
        fields.size("num_local_experts", "num_experts", default=8),
        fields.size("num_experts_per_tok", default=2),
        fields.size("intermediate_size"),
    )
    layers = fields.num_layers("num_hidden_layers")
    return mixture_model(fields, [attention] * layers, [experts] * layers)


def qwen2_moe(fields: Fields) -> Model:
    """Qwen2MoeConfig: biases on q, k and v unless ``qkv_bias`` is false, a gated shared expert; windows as Qwen2."""
    num_heads, num_kv_heads = heads(fields)
    attention = Attention(
        num_heads,
        num_kv_heads,
        head_dim(fields, num_heads),
        qkv_bias=fields.flag("qkv_bias", default=True),
    )
    experts = Experts(
        fields.size("num_experts", default=60),
        fields.size("num_experts_per_tok", default=4),
        fields.size("moe_intermediate_size", default=1408),
        fields.size("shared_expert_intermediate_size", default=5632),
        shared_gate=True,
    )
    mixers = [replace(attention, window=window) for window in upper_windows(fields)]
    return mixture_model(fields, mixers, _every_so_often(fields, experts))


def qwen3_moe(fields: Fields) -> Model:
    """Qwen3MoeConfig: 4 key/value heads where absent, a norm on each head of q and k, no shared expert."""
    attention = attention_of(fields, default_kv_heads=4, qk_norm=True)
    if fields.flag("use_sliding_window", default=False):
        window = fields.size_or_null("sliding_window", default=4096)
        attention = replace(attention, window=window)
    experts = Experts(
        fields.size("num_experts", "num_local_experts", default=128),
        fields.size("num_experts_per_tok", default=8),
        fields.size("moe_intermediate_size", default=768),
    )
    parts = _every_so_often(fields, experts)
    return mixture_model(fields, [attention] * len(parts), parts)


def olmoe(fields: Fields) -> Model:
    """OlmoeConfig: 64 experts of which a token uses 8, one norm over all heads of q and one over those of k."""
    attention = attention_of(fields, qk_norm=True, qk_norm_per_head=True)
    return _everywhere(fields, attention, default_experts=64, default_per_token=8)


def granitemoe(fields: Fields) -> Model:
    """GraniteMoeConfig: 8 experts of which a token uses 2 where absent; its multipliers cost nothing."""
    return _everywhere(fields, attention_of(fields), default_experts=8, default_per_token=2)


def minimax_m2(fields: Fields) -> Model:
    """MiniMaxM2Config: heads of 128, 256 experts of which a token uses 8, norms as OLMoE's, half a head turned."""
    num_heads, num_kv_heads = heads(fields, default_kv_heads=8)
    size = head_dim(fields, num_heads, default=128)
    turned = fields.optional_size("rotary_dim")
    share = min(turned / size, 1.0) if turned else fields.rotary_share("partial_rotary_factor")
    attention = Attention(num_heads, num_kv_heads, size, qk_norm=True, qk_norm_per_head=True, rotary_share=share)
    return _everywhere(fields, attention, default_experts=256, default_per_token=8)


def _everywhere(fields: Fields, attention: Attention, default_experts: int, default_per_token: int) -> Model:
    """A model of such attention and experts of ``intermediate_size`` in every layer."""
    experts = Experts(
        fields.size("num_experts", "num_local_experts", default=default_experts),
        fields.size("num_experts_per_tok", default=default_per_token),
        fields.size("intermediate_size"),
    )
    layers = fields.num_layers("num_hidden_layers")
    return mixture_model(fields, [attention] * layers, [experts] * layers)


def _every_so_often(fields: Fields, experts: Experts) -> list[FeedForward]:
    """Experts in every ``decoder_sparse_step``-th layer (1: all), an MLP in those of ``mlp_only_layers``."""
    step = fields.size("decoder_sparse_step", default=1)
    dense = fields.config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(isinstance(i, bool) or not isinstance(i, int) for i in dense):
        raise InputError(f"mlp_only_layers is {shown(dense)}; write a list of layers, counted from 0")
    layers = range(fields.num_layers("num_hidden_layers"))
    sparse = [(index + 1) % step == 0 and index not in dense for index in layers]
    if all(sparse):
        return [experts] * len(sparse)
    mlp = Mlp(fields.size("intermediate_size"))
    return [experts if is_sparse else mlp for is_sparse in sparse]
