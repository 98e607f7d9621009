"""Falcon: LayerNorm, multi-query or grouped-query attention beside the MLP."""

from flopcast.errors import InputError
from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.huggingface.fields import Fields
from flopcast.simulator.model import Model


def falcon(fields: Fields) -> Model:
    """FalconConfig: multi-query, parallel, rotary, no biases, context 2048 where absent; tied.

    ``new_decoder_architecture`` (40B, 180B) has ``num_kv_heads`` key/value heads and two norms; without it
    (7B) there is one key/value head and one norm, or as many heads as queries where ``multi_query`` is false.
    """
    hidden, num_heads = fields.size("hidden_size", "n_embed"), fields.size("num_attention_heads")
    grouped = fields.flag("new_decoder_architecture", default=False)
    parallel = fields.flag("parallel_attn", default=True)
    bias = fields.flag("bias", default=False)
    size = fields.divided("hidden_size", hidden, "num_attention_heads", num_heads)
    num_kv_heads = _kv_heads(fields, num_heads, grouped)
    num_norms = fields.size("num_ln_in_parallel_attn", default=2 if grouped else 1) if parallel else 2
    if num_norms > 2:
        raise InputError(f"num_ln_in_parallel_attn is {num_norms}; write 1 or 2")
    block = TransformerBlock(
        Attention(
            num_heads,
            num_kv_heads,
            size,
            qkv_bias=bias,
            output_bias=bias,
            fused_qkv=num_kv_heads == num_heads,
        ),
        Mlp(fields.size("ffn_hidden_size", default=4 * hidden), gated=False, bias=bias),
        parallel=parallel,
        num_norms=num_norms,
        norm="layernorm",
        norm_bias=True,
    )
    return Model(
        name=fields.name,
        hidden=hidden,
        vocab_size=fields.size("vocab_size"),
        context=fields.size("max_position_embeddings", default=2048),
        layers=(block,) * fields.num_layers("num_hidden_layers"),
        tied_embeddings=fields.flag("tie_word_embeddings", default=True),
        positions="alibi" if fields.flag("alibi", default=False) else "rotary",
        norm="layernorm",
        norm_bias=True,
    )


def _kv_heads(fields: Fields, num_heads: int, grouped: bool) -> int:
    if grouped:
        num_kv_heads = fields.size("num_kv_heads", default=num_heads)
        fields.divided("num_attention_heads", num_heads, "num_kv_heads", num_kv_heads)
        return num_kv_heads
    return 1 if fields.flag("multi_query", default=True) else num_heads
