"""Phi-1, Phi-1.5, Phi-2 (``phi``) and Phi-3 (``phi3``, a LLaMA with its matrices fused)."""

from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.huggingface.fields import Fields
from flopcast.simulator.huggingface.llama import gated_model, head_dim, heads
from flopcast.simulator.model import Model


def phi(fields: Fields) -> Model:
    """PhiConfig: one LayerNorm before attention and MLP side by side, half of the head rotated; untied.

    Biases everywhere, on the head too.
    """
    fields.refuse("qk_layernorm", False, "norms on q and k are not supported for phi; write false")
    num_heads, num_kv_heads = heads(fields)
    block = TransformerBlock(
        Attention(
            num_heads,
            num_kv_heads,
            head_dim(fields, num_heads),
            qkv_bias=True,
            output_bias=True,
            rotary_share=fields.rotary_share("partial_rotary_factor", default=0.5),
        ),
        Mlp(fields.size("intermediate_size"), gated=False, bias=True),
        parallel=True,
        num_norms=1,
        norm="layernorm",
        norm_bias=True,
    )
    return Model(
        name=fields.name,
        hidden=fields.size("hidden_size"),
        vocab_size=fields.size("vocab_size"),
        context=fields.size("max_position_embeddings"),
        layers=(block,) * fields.num_layers("num_hidden_layers"),
        tied_embeddings=fields.flag("tie_word_embeddings", default=False),
        norm="layernorm",
        norm_bias=True,
        head_bias=True,
    )


def phi3(fields: Fields) -> Model:
    """Phi3Config: no biases, no window where absent; untied."""
    num_heads, num_kv_heads = heads(fields)
    attention = Attention(
        num_heads,
        num_kv_heads,
        head_dim(fields, num_heads),
        rotary_share=fields.rotary_share("partial_rotary_factor"),
    )
    window = fields.optional_size("sliding_window")
    return gated_model(fields, attention, [window] * fields.num_layers("num_hidden_layers"), tied=False)
