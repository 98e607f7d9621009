"""PLaMo: attention and a gated MLP side by side behind one RMSNorm; key/value heads are tiled."""

from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.huggingface.fields import Fields
from flopcast.simulator.model import Model


def plamo(fields: Fields) -> Model:
    """PlamoConfig (pfnet/plamo-13b): ``n_shared_head`` query heads share one key/value head; untied.

    The published config.json also says ``num_key_value_heads: 40``; the model's code does not read it, so
    neither does this.
    """
    hidden, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    num_kv_heads = fields.divided("num_attention_heads", num_heads, "n_shared_head", fields.size("n_shared_head"))
    size = fields.divided("hidden_size", hidden, "num_attention_heads", num_heads)
    block = TransformerBlock(
        Attention(num_heads, num_kv_heads, size, kv_layout="tiled"),
        Mlp(fields.size("intermediate_size"), gated=True),
        parallel=True,
        num_norms=1,
    )
    return Model(
        name=fields.name,
        hidden=hidden,
        vocab_size=fields.size("vocab_size"),
        context=fields.size("max_position_embeddings"),
        layers=(block,) * fields.num_layers("num_hidden_layers"),
        tied_embeddings=fields.flag("tie_word_embeddings", default=False),
    )
