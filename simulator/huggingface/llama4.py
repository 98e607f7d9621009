"""Llama 4: one expert per token beside a shared one, attention in chunks but for every fourth layer."""

from dataclasses import replace

from flopcast.errors import InputError
from flopcast.simulator.blocks.experts import Experts
from flopcast.simulator.blocks.residual import FeedForward
from flopcast.simulator.blocks.transformer import Mlp
from flopcast.simulator.huggingface.dense import layers_that_turn
from flopcast.simulator.huggingface.fields import Fields
from flopcast.simulator.huggingface.gemma import TEXT_ALONE
from flopcast.simulator.huggingface.llama import attention_of
from flopcast.simulator.huggingface.mixture import mixture_model
from flopcast.simulator.model import Model
from flopcast.simulator.units import shown


def llama4_text(fields: Fields) -> Model:
    """Llama4TextConfig: 8 key/value heads of 128, 16 experts of which a token uses 1 where absent; untied.

    The layers of ``moe_layers``, or every ``interleave_moe_layer_step``-th (all), have experts and a shared one of as
    many features (``intermediate_size``), the others an MLP of ``intermediate_size_mlp``. Those with rotary positions
    attend within chunks (8192). The norm on q and k has no parameters.
    """
    attention = attention_of(fields, default_kv_heads=8, default_head_dim=128)
    chunk = fields.size_or_null("attention_chunk_size", default=8192)
    turns = layers_that_turn(fields)
    mixers = [replace(attention, rotary_share=float(t), chunk=chunk if t else None) for t in turns]
    return mixture_model(fields, mixers, _feed_forwards(fields, len(turns)))


def llama4(fields: Fields) -> Model:
    """Llama4Config: its ``text_config`` alone, for the tower that sees images is no part of a forecast."""
    text = fields.inside("text_config")
    if not text.config:
        raise InputError("text_config is missing; a llama4 config.json needs it, so add it")
    model = llama4_text(Fields(text.config, "llama4_text", fields.name))
    return replace(model, assumptions=(*model.assumptions, TEXT_ALONE))


def _feed_forwards(fields: Fields, num_layers: int) -> list[FeedForward]:
    size = fields.size("intermediate_size")
    experts = Experts(
        fields.size("num_local_experts", default=16),
        fields.size("num_experts_per_tok", default=1),
        size,
        shared_intermediate=size,
    )
    step = fields.size("interleave_moe_layer_step", default=1)
    sparse = fields.config.get("moe_layers")
    if not sparse:
        sparse = list(range(step - 1, num_layers, step))
    if not isinstance(sparse, list) or any(isinstance(i, bool) or not isinstance(i, int) for i in sparse):
        raise InputError(f"moe_layers is {shown(sparse)}; write a list of layers, counted from 0")
    if len(set(sparse)) == num_layers:
        return [experts] * num_layers
    mlp = Mlp(fields.size("intermediate_size_mlp", default=16384))
    return [experts if index in sparse else mlp for index in range(num_layers)]
