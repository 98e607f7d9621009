"""MPT: LayerNorm, fused q, k, v, ALiBi or learned positions, with or without biases."""

from flopcast.errors import InputError
from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.huggingface.fields import Fields
from flopcast.simulator.model import Model, Positions
from flopcast.simulator.units import shown


def mpt(fields: Fields) -> Model:
    """MptConfig: no biases (norms included), ALiBi, an MLP of four times the hidden size where absent; tied.

    Without ALiBi and RoPE the positions are learned unless ``learned_pos_emb`` is false
    (llm-foundry, models/mpt/configuration_mpt.py).
    """
    hidden, num_heads = fields.size("d_model", "hidden_size"), fields.size("n_heads", "num_attention_heads")
    size = fields.divided("d_model", hidden, "n_heads", num_heads)
    detail = fields.inside("attn_config")
    detail.refuse("qk_ln", False, "norms on all of q and k are not supported; write false")
    detail.refuse("qk_gn", False, "norms on the heads of q and k are not supported for mpt; write false")
    bias = not fields.flag("no_bias", default=True)
    num_kv_heads = _kv_heads(detail, num_heads)
    context = fields.size("max_seq_len")
    positions = _positions(fields, detail)
    inner = hidden * fields.number("expansion_ratio", default=4)
    if inner != int(inner):
        raise InputError(f"expansion_ratio times d_model is {inner}; choose a ratio that makes it whole")
    block = TransformerBlock(
        Attention(
            num_heads,
            num_kv_heads,
            size,
            qkv_bias=bias,
            output_bias=bias,
            fused_qkv=num_kv_heads == num_heads,
        ),
        Mlp(int(inner), gated=False, bias=bias),
        norm="layernorm",
        norm_bias=bias,
    )
    return Model(
        name=fields.name,
        hidden=hidden,
        vocab_size=fields.size("vocab_size"),
        context=context,
        layers=(block,) * fields.num_layers("n_layers", "num_hidden_layers"),
        tied_embeddings=fields.flag("tie_word_embeddings", default=True),
        positions=positions,
        num_positions=context if positions == "learned" else 0,
        norm="layernorm",
        norm_bias=bias,
    )


def _kv_heads(detail: Fields, num_heads: int) -> int:
    """One key/value head for multi-query attention, ``kv_n_heads`` for grouped, else the query heads."""
    kind = detail.config.get("attn_type") or "multihead_attention"
    if kind == "multihead_attention":
        return num_heads
    if kind == "multiquery_attention":
        return 1
    if kind != "grouped_query_attention":
        raise InputError(
            f"attn_type is {shown(kind)}; write 'multihead_attention', 'multiquery_attention' or "
            "'grouped_query_attention'"
        )
    num_kv_heads = detail.size("kv_n_heads")
    detail.divided("n_heads", num_heads, "kv_n_heads", num_kv_heads)
    return num_kv_heads


def _positions(fields: Fields, detail: Fields) -> Positions:
    if detail.flag("rope", default=False):
        return "rotary"
    if detail.flag("alibi", default=True):
        return "alibi"
    return "learned" if fields.flag("learned_pos_emb", default=True) else "none"
