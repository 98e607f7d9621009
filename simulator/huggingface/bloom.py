"""BLOOM: GPT with ALiBi positions and a norm on the embedding."""

from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.huggingface.fields import Fields
from flopcast.simulator.model import Model

ASSUMED_CONTEXT = 2048


def bloom(fields: Fields) -> Model:
    """BloomConfig: MLP of four times the hidden size; tied. Without ``seq_length``, 2048 is assumed."""
    hidden = fields.size("hidden_size", "n_embed")
    num_heads = fields.size("n_head", "num_attention_heads")
    size = fields.divided("hidden_size", hidden, "n_head", num_heads)
    context = fields.optional_size("seq_length")
    block = TransformerBlock(
        Attention(num_heads, num_heads, size, qkv_bias=True, output_bias=True, fused_qkv=True),
        Mlp(4 * hidden, gated=False, bias=True),
        norm="layernorm",
        norm_bias=True,
    )
    assumption = f"context: {ASSUMED_CONTEXT} tokens is assumed (BLOOM's own; the config.json has no seq_length)"
    return Model(
        name=fields.name,
        hidden=hidden,
        vocab_size=fields.size("vocab_size"),
        context=context or ASSUMED_CONTEXT,
        layers=(block,) * fields.num_layers("n_layer", "num_hidden_layers"),
        tied_embeddings=fields.flag("tie_word_embeddings", default=True),
        positions="alibi",
        norm="layernorm",
        norm_bias=True,
        embedding_norm=True,
        assumptions=() if context else (assumption,),
    )
