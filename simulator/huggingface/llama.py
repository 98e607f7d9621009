"""LLaMA and its kin: RMSNorm, rotary positions, SwiGLU, attention and MLP in sequence."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flopcast.errors import InputError
from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.huggingface.fields import Fields
from flopcast.simulator.model import Model
from flopcast.simulator.units import shown


def heads(fields: Fields, default_kv_heads: int | None = None) -> tuple[int, int]:
    """Query heads and key/value heads, which must divide them; the class says how many where absent."""
    num_heads = fields.size("num_attention_heads")
    num_kv_heads = fields.size("num_key_value_heads", default=default_kv_heads or num_heads)
    fields.divided("num_attention_heads", num_heads, "num_key_value_heads", num_kv_heads)
    return num_heads, num_kv_heads


def head_dim(fields: Fields, num_heads: int, default: int | None = None) -> int:
    """The size of a head: its own field, the class's default, or hidden / heads."""
    given = fields.optional_size("head_dim") or default
    if given:
        return given
    return fields.divided("hidden_size", fields.size("hidden_size"), "num_attention_heads", num_heads)


def attention_of(
    fields: Fields, default_kv_heads: int | None = None, default_head_dim: int | None = None, **more: Any
) -> Attention:
    """Attention with biases on all of its matrices or, unless ``attention_bias`` says so, on none.

    ``more``: its other fields, where they are not usual.
    """
    num_heads, num_kv_heads = heads(fields, default_kv_heads)
    bias = fields.flag("attention_bias", default=False)
    size = head_dim(fields, num_heads, default_head_dim)
    return Attention(num_heads, num_kv_heads, size, qkv_bias=bias, output_bias=bias, **more)


def windows(fields: Fields, num_layers: int, window: int | None, sliding: list[bool]) -> list[int | None]:
    """How far each layer attends: as ``layer_types`` says, else the layers that ``sliding`` names slide."""
    types = fields.texts("layer_types")
    if types is not None:
        if len(types) != num_layers:
            raise InputError(f"layer_types has {len(types)} entries for {num_layers} layers; give one for every layer")
        for kind in types:
            if kind not in {"full_attention", "sliding_attention"}:
                raise InputError(f"layer_types holds {shown(kind)}; write 'full_attention' or 'sliding_attention'")
        sliding = [kind == "sliding_attention" for kind in types]
    return [window if slides else None for slides in sliding]


def gated_model(
    fields: Fields,
    attention: Attention,
    layer_windows: Sequence[int | None],
    *,
    tied: bool,
    mlp_bias: bool = False,
    **residual: Any,
) -> Model:
    """A model of a gated MLP and one kind of attention, which slides in some layers: what the whole family shares."""
    attentions = [replace(attention, window=window) for window in layer_windows]
    mlp = Mlp(fields.size("intermediate_size"), gated=True, bias=mlp_bias)
    return dense_model(fields, attentions, mlp, tied=tied, **residual)


def dense_model(fields: Fields, attentions: Sequence[Attention], mlp: Mlp, *, tied: bool, **residual: Any) -> Model:
    """A model of one MLP, and an attention for every layer; ``residual``: fields of its blocks (RMSNorm if none)."""
    return Model(
        name=fields.name,
        hidden=fields.size("hidden_size"),
        vocab_size=fields.size("vocab_size"),
        context=fields.size("max_position_embeddings", "max_sequence_length"),
        layers=tuple(TransformerBlock(attention, mlp, **residual) for attention in attentions),
        tied_embeddings=fields.flag("tie_word_embeddings", default=tied),
        norm=residual.get("norm", "rmsnorm"),
        norm_bias=residual.get("norm_bias", False),
    )


def llama(fields: Fields) -> Model:
    """LlamaConfig: as many key/value heads as query heads and no biases where absent; untied."""
    layers = fields.num_layers("num_hidden_layers")
    mlp_bias = fields.flag("mlp_bias", default=False)
    return gated_model(fields, attention_of(fields), [None] * layers, tied=False, mlp_bias=mlp_bias)


def mistral(fields: Fields) -> Model:
    """MistralConfig: 8 key/value heads and a window of 4096 where absent (``null`` is no window); untied."""
    num_heads, num_kv_heads = heads(fields, default_kv_heads=8)
    window = fields.size_or_null("sliding_window", default=4096)
    attention = Attention(num_heads, num_kv_heads, head_dim(fields, num_heads))
    return gated_model(fields, attention, [window] * fields.num_layers("num_hidden_layers"), tied=False)


def qwen2(fields: Fields) -> Model:
    """Qwen2Config: biases on q, k and v alone; no window unless ``use_sliding_window``; untied."""
    num_heads, num_kv_heads = heads(fields)
    attention = Attention(num_heads, num_kv_heads, head_dim(fields, num_heads), qkv_bias=True)
    return gated_model(fields, attention, upper_windows(fields), tied=False)


def qwen3(fields: Fields) -> Model:
    """Qwen3Config: a norm on each head of q and k, heads of 128 where absent; windows as Qwen2; untied."""
    attention = attention_of(fields, default_head_dim=128, qk_norm=True)
    return gated_model(fields, attention, upper_windows(fields), tied=False)


def upper_windows(fields: Fields) -> list[int | None]:
    """With ``use_sliding_window`` the layers from ``max_window_layers`` (28) on slide over 4096."""
    num_layers = fields.num_layers("num_hidden_layers")
    if not fields.flag("use_sliding_window", default=False):
        return [None] * num_layers
    first = fields.config.get("max_window_layers")
    first = 28 if first is None else first
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise InputError(f"max_window_layers is {shown(first)}; write a whole number of layers")
    window = fields.size_or_null("sliding_window", default=4096)
    return windows(fields, num_layers, window, [index >= first for index in range(num_layers)])
