"""GLM-4 and its mixtures (``glm4_moe``: GLM-4.5 to 4.7): RMSNorm, half of a head turned, biases on q, k and v."""

from dataclasses import replace

from flopcast.simulator.blocks.transformer import Attention
from flopcast.simulator.huggingface.deepseek import feed_forwards, without_further_tokens
from flopcast.simulator.huggingface.fields import Fields
from flopcast.simulator.huggingface.llama import gated_model, head_dim, heads
from flopcast.simulator.huggingface.mixture import mixture_model
from flopcast.simulator.model import Model


def glm(fields: Fields) -> Model:
    """GlmConfig: 2 key/value heads of 128 where absent; untied."""
    return gated_model(fields, _attention(fields, 2), [None] * fields.num_layers("num_hidden_layers"), tied=False)


def glm4(fields: Fields) -> Model:
    """Glm4Config: as GlmConfig, with two more norms, behind attention and MLP; untied."""
    layers = fields.num_layers("num_hidden_layers")
    return gated_model(fields, _attention(fields, 2), [None] * layers, tied=False, num_norms=4)


def glm4_moe(fields: Fields) -> Model:
    """Glm4MoeConfig: one leading dense layer, 128 experts of 1408 of which a token uses 8, one shared, where absent.

    The layers that predict further tokens (``num_nextn_predict_layers``) are no part of the model, as in transformers.
    """
    defaults = {"moe_intermediate_size": 1408, "n_routed_experts": 128, "num_experts_per_tok": 8, "n_shared_experts": 1}
    given = {name: value for name, value in fields.config.items() if value is not None}
    fields = Fields({**defaults, **given}, fields.kind, fields.name)
    attention = replace(_attention(fields, None), qk_norm=fields.flag("use_qk_norm", default=False))
    parts = feed_forwards(fields, default_dense=1)
    return without_further_tokens(fields, mixture_model(fields, [attention] * len(parts), parts))


def _attention(fields: Fields, default_kv_heads: int | None) -> Attention:
    """A dense GLM has biases and heads of 128 where absent, a mixture of them neither."""
    dense = default_kv_heads is not None
    num_heads, num_kv_heads = heads(fields, default_kv_heads)
    return Attention(
        num_heads,
        num_kv_heads,
        head_dim(fields, num_heads, default=128 if dense else None),
        qkv_bias=fields.flag("attention_bias", default=dense),
        rotary_share=fields.rotary_share("partial_rotary_factor", default=0.5),
    )
