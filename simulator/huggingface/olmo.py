"""OLMo 2 and 3: RMSNorm behind attention and MLP instead of before them, and over all heads of q and of k."""

from flopcast.simulator.blocks.transformer import Attention
from flopcast.simulator.huggingface.fields import Fields
from flopcast.simulator.huggingface.llama import gated_model, head_dim, heads, windows
from flopcast.simulator.model import Model


def olmo2(fields: Fields) -> Model:
    """Olmo2Config: as many key/value heads as query heads and no biases where absent; untied."""
    layers = fields.num_layers("num_hidden_layers")
    return gated_model(fields, _attention(fields), [None] * layers, tied=False, post_norm=True)


def olmo3(fields: Fields) -> Model:
    """Olmo3Config: OLMo 2 of which three layers of four slide (``sliding_window``, 4096)."""
    num_layers = fields.num_layers("num_hidden_layers")
    window = fields.optional_size("sliding_window") if "sliding_window" in fields.config else 4096
    slides = windows(fields, num_layers, window, [bool((index + 1) % 4) for index in range(num_layers)])
    return gated_model(fields, _attention(fields), slides, tied=False, post_norm=True)


def _attention(fields: Fields) -> Attention:
    num_heads, num_kv_heads = heads(fields)
    bias = fields.flag("attention_bias", default=False)
    return Attention(
        num_heads,
        num_kv_heads,
        head_dim(fields, num_heads),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        qk_norm_per_head=True,
    )
