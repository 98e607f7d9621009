"""OLMo 2 and 3: RMSNorm behind attention and MLP instead of before them, and over all heads of q and of k."""

from flopcast.simulator.huggingface.fields import Fields
from flopcast.simulator.huggingface.llama import attention_of, gated_model, windows
from flopcast.simulator.model import Model

NORMED = {"qk_norm": True, "qk_norm_per_head": True}


def olmo2(fields: Fields) -> Model:
    """Olmo2Config: as many key/value heads as query heads and no biases where absent; untied."""
    layers = fields.num_layers("num_hidden_layers")
    return gated_model(fields, attention_of(fields, **NORMED), [None] * layers, tied=False, post_norm=True)


def olmo3(fields: Fields) -> Model:
    """Olmo3Config: OLMo 2 of which three layers of four slide (``sliding_window``, 4096)."""
    num_layers = fields.num_layers("num_hidden_layers")
    window = fields.size_or_null("sliding_window", default=4096)
    slides = windows(fields, num_layers, window, [bool((index + 1) % 4) for index in range(num_layers)])
    return gated_model(fields, attention_of(fields, **NORMED), slides, tied=False, post_norm=True)
