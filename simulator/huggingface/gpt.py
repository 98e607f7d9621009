"""GPT-2, StarCoder, GPT-J and GPT-NeoX: LayerNorm, a plain MLP, biases nearly everywhere."""

from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.huggingface.fields import Fields
from flopcast.simulator.model import Model


def gpt2(fields: Fields) -> Model:
    """GPT2Config: MLP of four times the hidden size where ``n_inner`` is absent; learned positions; tied."""
    return _learned_positions(fields, multi_query=False)


def gpt_bigcode(fields: Fields) -> Model:
    """GPTBigCodeConfig (StarCoder): GPT-2 whose heads share one key/value head unless ``multi_query`` is false."""
    return _learned_positions(fields, multi_query=fields.flag("multi_query", default=True))


def _learned_positions(fields: Fields, multi_query: bool) -> Model:
    fields.refuse("add_cross_attention", False, "cross attention is not supported; write false")
    hidden, num_heads = fields.size("n_embd", "hidden_size"), fields.size("n_head", "num_attention_heads")
    size = fields.divided("n_embd", hidden, "n_head", num_heads)
    num_positions = fields.size("n_positions", "n_ctx", "max_position_embeddings")
    # One key/value head cannot be split with the heads of queries, as a matrix of all three would be.
    num_kv_heads, fused = (1, False) if multi_query else (num_heads, True)
    attention = Attention(num_heads, num_kv_heads, size, qkv_bias=True, output_bias=True, fused_qkv=fused)
    mlp = Mlp(fields.size("n_inner", default=4 * hidden), gated=False, bias=True)
    block = TransformerBlock(attention, mlp, norm="layernorm", norm_bias=True)
    return Model(
        name=fields.name,
        hidden=hidden,
        vocab_size=fields.size("vocab_size"),
        context=num_positions,
        layers=(block,) * fields.num_layers("n_layer", "num_hidden_layers"),
        tied_embeddings=fields.flag("tie_word_embeddings", default=True),
        positions="learned",
        num_positions=num_positions,
        norm="layernorm",
        norm_bias=True,
    )


def gptj(fields: Fields) -> Model:
    """GPTJConfig: parallel behind one norm, no biases in attention, 64 features of a head turned; untied."""
    hidden, num_heads = fields.size("n_embd", "hidden_size"), fields.size("n_head", "num_attention_heads")
    size = fields.divided("n_embd", hidden, "n_head", num_heads)
    share = min(fields.size("rotary_dim", default=64) / size, 1.0)
    block = TransformerBlock(
        Attention(num_heads, num_heads, size, rotary_share=share),
        Mlp(fields.size("n_inner", default=4 * hidden), gated=False, bias=True),
        parallel=True,
        num_norms=1,
        norm="layernorm",
        norm_bias=True,
    )
    return Model(
        name=fields.name,
        hidden=hidden,
        vocab_size=fields.size("vocab_size"),
        context=fields.size("n_positions", "n_ctx", "max_position_embeddings"),
        layers=(block,) * fields.num_layers("n_layer", "num_hidden_layers"),
        tied_embeddings=fields.flag("tie_word_embeddings", default=False),
        norm="layernorm",
        norm_bias=True,
        head_bias=True,
    )


def gpt_neox(fields: Fields) -> Model:
    """GPTNeoXConfig: parallel, attention biases, a quarter of the head rotated where absent; untied."""
    hidden, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    bias = fields.flag("attention_bias", default=True)
    attention = Attention(
        num_heads,
        num_heads,
        fields.divided("hidden_size", hidden, "num_attention_heads", num_heads),
        qkv_bias=bias,
        output_bias=bias,
        fused_qkv=True,
        rotary_share=fields.rotary_share("rotary_pct", default=0.25),
    )
    block = TransformerBlock(
        attention,
        Mlp(fields.size("intermediate_size"), gated=False, bias=True),
        parallel=fields.flag("use_parallel_residual", default=True),
        norm="layernorm",
        norm_bias=True,
    )
    return Model(
        name=fields.name,
        hidden=hidden,
        vocab_size=fields.size("vocab_size"),
        context=fields.size("max_position_embeddings"),
        layers=(block,) * fields.num_layers("num_hidden_layers"),
        tied_embeddings=fields.flag("tie_word_embeddings", default=False),
        norm="layernorm",
        norm_bias=True,
    )
