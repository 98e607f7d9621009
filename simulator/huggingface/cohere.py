"""Command R (``cohere``), R7B and A (``cohere2``): attention and MLP side by side behind one LayerNorm."""

from dataclasses import replace

from flopcast.simulator.blocks.transformer import Mlp
from flopcast.simulator.huggingface.fields import Fields
from flopcast.simulator.huggingface.llama import attention_of, dense_model, windows
from flopcast.simulator.model import Model

BESIDE = {"parallel": True, "num_norms": 1, "norm": "layernorm", "norm_bias": False}


def cohere(fields: Fields) -> Model:
    """CohereConfig: no biases, a norm on each head of q and k with ``use_qk_norm``, context 8192; tied."""
    normed = fields.flag("use_qk_norm", default=False)
    attention = attention_of(fields, qk_norm=normed, qk_norm_per_head=normed)
    layers = fields.num_layers("num_hidden_layers")
    return dense_model(fields, [attention] * layers, Mlp(fields.size("intermediate_size")), tied=True, **BESIDE)


def cohere2(fields: Fields) -> Model:
    """Cohere2Config: three layers of four slide (``sliding_window``, 4096), and they alone have positions; tied."""
    num_layers = fields.num_layers("num_hidden_layers")
    window = fields.size_or_null("sliding_window", default=4096)
    period = fields.size("sliding_window_pattern", default=4)
    slides = windows(fields, num_layers, window, [bool((index + 1) % period) for index in range(num_layers)])
    attention = attention_of(fields)
    attentions = [replace(attention, window=w, rotary_share=float(w is not None)) for w in slides]
    return dense_model(fields, attentions, Mlp(fields.size("intermediate_size")), tied=True, **BESIDE)
