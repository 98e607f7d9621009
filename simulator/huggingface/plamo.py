"""PLaMo: attention and a gated MLP side by side behind one RMSNorm; PLaMo 2: state spaces between windows."""

from flopcast.errors import InputError
from flopcast.simulator.blocks.residual import MixedBlock
from flopcast.simulator.blocks.state_space import StateSpace
from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.huggingface.fields import Fields
from flopcast.simulator.model import Block, Model
from flopcast.simulator.units import shown

# PLaMo 2's max_position_embeddings (10485760) says that nothing limits the context; it was trained with the window's.
UNLIMITED = 1_000_000


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


def plamo2(fields: Fields) -> Model:
    """Plamo2Config (pfnet/plamo-2-1b, modeling_plamo.py): state spaces, and attention in every ``mamba_step``-th layer.

    Attention slides over ``attention_window_size`` (2048) tokens except in the layers of ``full_attention_idx``; every
    head of q and k has a norm of its own; each layer has four norms. Heads of 128, steps of max(64, hidden / 16)
    features, a convolution over 4 tokens, states of 64, chunks of 256; tied where absent. The context is the window
    where ``max_position_embeddings`` says no more than that there is no limit.
    """
    hidden, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    num_kv_heads = fields.size("num_key_value_heads")
    fields.divided("num_attention_heads", num_heads, "num_key_value_heads", num_kv_heads)
    size = fields.size("hidden_size_per_head", default=128)
    window = fields.size("attention_window_size", default=2048)
    mlp = Mlp(fields.size("intermediate_size"), gated=True)
    state_space = StateSpace(
        num_heads=fields.size("mamba_num_heads"),
        head_dim=size,
        state_dim=fields.size("mamba_d_state", default=64),
        rank=max(64, hidden // 16),
        convolution=fields.size("mamba_d_conv", default=4),
        chunk=fields.size("mamba_chunk_size", default=256),
    )

    def attention(attended: int | None) -> Block:
        mixer = Attention(
            num_heads, num_kv_heads, size, qk_norm=True, qk_norm_per_head=True, fused_qkv=True, window=attended
        )
        return TransformerBlock(mixer, mlp, num_norms=4)

    sliding, full, recurrent = attention(window), attention(None), MixedBlock(state_space, mlp, num_norms=4)
    everywhere = _full_attention(fields)

    def layer(index: int, num_layers: int) -> Block:
        if _is_state_space(fields, index, num_layers):
            return recurrent
        return full if index in everywhere else sliding

    num_layers = fields.num_layers("num_hidden_layers")
    context = fields.size("max_position_embeddings", default=window)
    return Model(
        name=fields.name,
        hidden=hidden,
        vocab_size=fields.size("vocab_size"),
        context=window if context > UNLIMITED else context,
        layers=tuple(layer(index, num_layers) for index in range(num_layers)),
        tied_embeddings=fields.flag("tie_word_embeddings", default=True),
    )


def _is_state_space(fields: Fields, index: int, num_layers: int) -> bool:
    """All layers but one in ``mamba_step`` (2), which is the middle one; in a model of few layers, the last."""
    if not fields.flag("mamba_enabled", default=True):
        return False
    step = fields.size("mamba_step", default=2)
    if num_layers <= step // 2:
        return index != num_layers - 1
    return index % step != step // 2


def _full_attention(fields: Fields) -> list[int]:
    indices = fields.config.get("full_attention_idx") or []
    if not isinstance(indices, list) or any(isinstance(i, bool) or not isinstance(i, int) for i in indices):
        raise InputError(f"full_attention_idx is {shown(indices)}; write a list of layers, counted from 0")
    return indices
