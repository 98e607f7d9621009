"""Dense models that differ from LLaMA in a detail or two: norms, biases, how much of a head turns, which layers do."""

from dataclasses import replace
from typing import Any

from flopcast.errors import InputError
from flopcast.simulator.blocks.transformer import Attention, Mlp
from flopcast.simulator.huggingface.fields import Fields
from flopcast.simulator.huggingface.llama import attention_of, dense_model, gated_model, head_dim, heads, windows
from flopcast.simulator.model import Model
from flopcast.simulator.units import shown


def granite(fields: Fields) -> Model:
    """GraniteConfig: LLaMA; its multipliers of embedding, residual, scores and logits cost nothing."""
    attention = attention_of(fields)
    mlp_bias = fields.flag("mlp_bias", default=False)
    return gated_model(fields, attention, _nowhere(fields), tied=False, mlp_bias=mlp_bias)


def seed_oss(fields: Fields) -> Model:
    """SeedOssConfig: biases on q, k and v alone, heads of 128 where absent; untied."""
    num_heads, num_kv_heads = heads(fields)
    attention = Attention(
        num_heads,
        num_kv_heads,
        head_dim(fields, num_heads, default=128),
        qkv_bias=fields.flag("attention_bias", default=True),
        output_bias=fields.flag("attention_out_bias", default=False),
    )
    mlp_bias = fields.flag("mlp_bias", default=False)
    return gated_model(fields, attention, _nowhere(fields), tied=False, mlp_bias=mlp_bias)


def ernie4_5(fields: Fields) -> Model:
    """Ernie4_5Config: biases everywhere or, where absent, nowhere; heads of 128; tied."""
    num_heads, num_kv_heads = heads(fields)
    bias = fields.flag("use_bias", default=False)
    size = head_dim(fields, num_heads, default=128)
    attention = Attention(num_heads, num_kv_heads, size, qkv_bias=bias, output_bias=bias)
    return gated_model(fields, attention, _nowhere(fields), tied=True, mlp_bias=bias)


def smollm3(fields: Fields) -> Model:
    """SmolLM3Config: 4 key/value heads where absent; every fourth layer has no positions; tied.

    ``no_rope_layers`` holds a 1 for a layer that has them; with ``use_sliding_window`` the others slide.
    """
    attention = attention_of(fields, default_kv_heads=4)
    turns = layers_that_turn(fields)
    window = fields.optional_size("sliding_window") if fields.flag("use_sliding_window", default=False) else None
    slides = windows(fields, len(turns), window, [not turn for turn in turns])
    attentions = [replace(attention, window=w, rotary_share=float(t)) for w, t in zip(slides, turns, strict=True)]
    mlp = Mlp(fields.size("intermediate_size"), bias=fields.flag("mlp_bias", default=False))
    return dense_model(fields, attentions, mlp, tied=True)


def exaone4(fields: Fields) -> Model:
    """Exaone4Config: norms behind attention and MLP, and on each head of q and k; untied.

    With ``sliding_window`` (4096) three layers of four slide, and they alone have positions.
    """
    num_heads, num_kv_heads = heads(fields, default_kv_heads=32)
    num_layers = fields.num_layers("num_hidden_layers")
    window = fields.size_or_null("sliding_window", default=4096)
    slides = windows(fields, num_layers, window, [bool((i + 1) % _period(fields)) for i in range(num_layers)])
    attention = Attention(num_heads, num_kv_heads, head_dim(fields, num_heads), qk_norm=True)
    attentions = [replace(attention, window=w, rotary_share=float(window is None or w is not None)) for w in slides]
    return dense_model(fields, attentions, Mlp(fields.size("intermediate_size")), tied=False, post_norm=True)


def arcee(fields: Fields) -> Model:
    """ArceeConfig: LLaMA with a plain MLP (squared ReLU); untied."""
    mlp = Mlp(fields.size("intermediate_size"), gated=False, bias=fields.flag("mlp_bias", default=False))
    return dense_model(fields, [attention_of(fields)] * fields.num_layers("num_hidden_layers"), mlp, tied=False)


def nemotron(fields: Fields) -> Model:
    """NemotronConfig: LayerNorm, a plain MLP (squared ReLU), no biases, half a head turned where absent; untied."""
    share = fields.rotary_share("partial_rotary_factor", "rope_percent", default=0.5)
    attention = attention_of(fields, rotary_share=share)
    mlp = Mlp(fields.size("intermediate_size"), gated=False, bias=fields.flag("mlp_bias", default=False))
    layers = fields.num_layers("num_hidden_layers")
    return dense_model(fields, [attention] * layers, mlp, tied=False, norm="layernorm", norm_bias=True)


def starcoder2(fields: Fields) -> Model:
    """Starcoder2Config: LayerNorm, a plain MLP, 2 key/value heads and no window where absent; biases; tied."""
    num_heads, num_kv_heads = heads(fields, default_kv_heads=2)
    bias = fields.flag("use_bias", default=True)
    attention = Attention(
        num_heads,
        num_kv_heads,
        head_dim(fields, num_heads),
        qkv_bias=bias,
        output_bias=bias,
        window=fields.optional_size("sliding_window"),
    )
    mlp = Mlp(fields.size("intermediate_size"), gated=False, bias=bias)
    layers = fields.num_layers("num_hidden_layers")
    return dense_model(fields, [attention] * layers, mlp, tied=True, norm="layernorm", norm_bias=True)


def stablelm(fields: Fields) -> Model:
    """StableLmConfig: LayerNorm, 32 key/value heads and a quarter of a head turned where absent; untied.

    ``use_parallel_residual`` puts attention and MLP side by side behind one norm.
    """
    fields.refuse("qk_layernorm", False, "norms on q and k are not supported for stablelm; write false")
    num_heads, num_kv_heads = heads(fields, default_kv_heads=32)
    parallel = fields.flag("use_parallel_residual", default=False)
    attention = Attention(
        num_heads,
        num_kv_heads,
        head_dim(fields, num_heads),
        qkv_bias=fields.flag("use_qkv_bias", default=False),
        rotary_share=fields.rotary_share("partial_rotary_factor", default=0.25),
    )
    norms: dict[str, Any] = {"num_norms": 1 if parallel else 2, "norm": "layernorm", "norm_bias": True}
    return gated_model(fields, attention, _nowhere(fields), tied=False, parallel=parallel, **norms)


def layers_that_turn(fields: Fields) -> list[bool]:
    """Which layers have rotary positions: those with a 1 in ``no_rope_layers``, else all but every fourth."""
    num_layers = fields.num_layers("num_hidden_layers")
    given = fields.config.get("no_rope_layers")
    if not given:
        every = fields.size("no_rope_layer_interval", default=4)
        return [bool((index + 1) % every) for index in range(num_layers)]
    if not isinstance(given, list) or len(given) != num_layers or any(entry not in (0, 1) for entry in given):
        raise InputError(f"no_rope_layers is {shown(given)}; write a 1 or a 0 for each of the {num_layers} layers")
    return [bool(entry) for entry in given]


def _nowhere(fields: Fields) -> list[int | None]:
    return [None] * fields.num_layers("num_hidden_layers")


def _period(fields: Fields) -> int:
    """EXAONE writes "LLLG" as well as 4: three local layers, one global."""
    pattern = fields.config.get("sliding_window_pattern")
    return len(pattern) if isinstance(pattern, str) and pattern else fields.size("sliding_window_pattern", default=4)
