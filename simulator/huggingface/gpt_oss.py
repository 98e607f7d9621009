"""gpt-oss: experts and attention with biases, scores learned for every softmax, every other layer in a short window."""

from dataclasses import replace

from flopcast.simulator.blocks.experts import Experts
from flopcast.simulator.blocks.transformer import Attention
from flopcast.simulator.huggingface.fields import Fields
from flopcast.simulator.huggingface.llama import head_dim, heads, windows
from flopcast.simulator.huggingface.mixture import mixture_model
from flopcast.simulator.model import Model


def gpt_oss(fields: Fields) -> Model:
    """GptOssConfig: 8 key/value heads of 64, 128 experts of which a token uses 4, a window of 128 where absent."""
    num_heads, num_kv_heads = heads(fields, default_kv_heads=8)
    bias = fields.flag("attention_bias", default=True)
    size = head_dim(fields, num_heads, default=64)
    attention = Attention(num_heads, num_kv_heads, size, qkv_bias=bias, output_bias=bias, sinks=True)
    experts = Experts(
        fields.size("num_local_experts", "num_experts", default=128),
        fields.size("num_experts_per_tok", "experts_per_token", default=4),
        fields.size("intermediate_size"),
        bias=True,
    )
    num_layers = fields.num_layers("num_hidden_layers")
    window = fields.size_or_null("sliding_window", default=128)
    slides = windows(fields, num_layers, window, [index % 2 == 0 for index in range(num_layers)])
    return mixture_model(fields, [replace(attention, window=w) for w in slides], [experts] * num_layers)
