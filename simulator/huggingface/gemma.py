"""Gemma: RMSNorm, rotary positions, GeGLU, tied embeddings; from Gemma 2 on more norms, and windows."""

from dataclasses import replace

from flopcast.errors import InputError
from flopcast.simulator.huggingface.fields import Fields
from flopcast.simulator.huggingface.llama import attention_of, gated_model, windows
from flopcast.simulator.model import Model

TEXT_ALONE = "vision_config: training the language model alone is assumed; the tower that sees images is left out"


def gemma(fields: Fields) -> Model:
    """GemmaConfig: heads of 256 where absent; tied."""
    attention = attention_of(fields, default_kv_heads=16, default_head_dim=256)
    return gated_model(fields, attention, [None] * fields.num_layers("num_hidden_layers"), tied=True)


def gemma2(fields: Fields) -> Model:
    """Gemma2Config: four norms; the first layer and every other slide (``sliding_window``, 4096); tied."""
    return _alternating(fields, period=2, qk_norm=False)


def gemma3_text(fields: Fields) -> Model:
    """Gemma3TextConfig: four norms, norms on q and k; all but every sixth layer slide (4096); tied."""
    return _alternating(fields, period=fields.size("sliding_window_pattern", default=6), qk_norm=True)


def gemma3(fields: Fields) -> Model:
    """Gemma3Config: its ``text_config`` alone, for the tower that sees images is no part of a forecast.

    What that leaves out is as in Gemma3TextConfig: 8 heads of 256, 4 for keys and values, 262208 words.
    """
    text = fields.inside("text_config")
    if not text.config:
        raise InputError("text_config is missing; a gemma3 config.json needs it, so add it")
    absent = {"num_attention_heads": 8, "vocab_size": 262_208, "max_position_embeddings": 131_072}
    model = gemma3_text(Fields({**absent, **text.config}, "gemma3_text", fields.name))
    return replace(model, assumptions=(*model.assumptions, TEXT_ALONE))


def _alternating(fields: Fields, period: int, qk_norm: bool) -> Model:
    num_layers = fields.num_layers("num_hidden_layers")
    window = fields.size_or_null("sliding_window", default=4096)
    sliding = [bool((index + 1) % period) for index in range(num_layers)]
    attention = attention_of(fields, default_kv_heads=4, default_head_dim=256, qk_norm=qk_norm)
    return gated_model(fields, attention, windows(fields, num_layers, window, sliding), tied=True, num_norms=4)
