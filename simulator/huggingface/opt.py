"""OPT: GPT with separate q, k, v and positions that start at 2."""

from flopcast.errors import InputError
from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.huggingface.fields import Fields
from flopcast.simulator.model import Model

# OPTLearnedPositionalEmbedding holds two rows more than there are positions (transformers, modeling_opt.py).
POSITION_OFFSET = 2


def opt(fields: Fields) -> Model:
    """OPTConfig: biases, norms before (else there is no final norm) and tied embeddings where absent."""
    hidden, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    width = fields.size("word_embed_proj_dim", default=hidden)
    if width != hidden:
        raise InputError(f"word_embed_proj_dim is {width}, not hidden_size = {hidden}; projections are not supported")
    fields.refuse("layer_norm_elementwise_affine", True, "norms without weights are not supported")
    bias = fields.flag("enable_bias", default=True)
    norm_first = fields.flag("do_layer_norm_before", default=True)
    size = fields.divided("hidden_size", hidden, "num_attention_heads", num_heads)
    context = fields.size("max_position_embeddings")
    block = TransformerBlock(
        Attention(num_heads, num_heads, size, qkv_bias=bias, output_bias=bias),
        Mlp(fields.size("ffn_dim"), gated=False, bias=bias),
        norm="layernorm",
        norm_bias=True,
    )
    return Model(
        name=fields.name,
        hidden=hidden,
        vocab_size=fields.size("vocab_size"),
        context=context,
        layers=(block,) * fields.num_layers("num_hidden_layers"),
        tied_embeddings=fields.flag("tie_word_embeddings", default=True),
        positions="learned",
        num_positions=context + POSITION_OFFSET,
        norm="layernorm",
        norm_bias=True,
        final_norm=norm_first and not fields.flag("_remove_final_layer_norm", default=False),
    )
