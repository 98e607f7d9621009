"""The constants in a Hugging Face ``config.json``: base and scaling of RoPE, epsilon of the norms, the activation.

What a config.json leaves out is the default of its class in transformers 5.23, as for its shapes.
"""

from collections.abc import Mapping
from typing import Any

from flopcast.errors import InputError
from flopcast.trainer.numerics import Activation, Numerics, RopeScaling

_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_EPSILON = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
_BASE = ("rope_theta", "rotary_emb_base")
_ACTIVATION = ("hidden_act", "activation_function", "activation")
# Epsilon and activation where the file is silent; of all others, of LLaMA's family.
_DEFAULTS = {
    "falcon": (1e-5, "gelu"),
    "gpt2": (1e-5, "gelu_new"),
    "gpt_neox": (1e-5, "gelu"),
    "opt": (1e-5, "relu"),
    "phi": (1e-5, "gelu_new"),
    "phi3": (1e-5, "silu"),
}
_LLAMA = (1e-6, "silu")
# These scale the embedding, add one to the norms' weights and some cap the logits.
_UNLIKE = ("gemma", "gemma2", "gemma3", "gemma3_text")


def numerics_of(config: Mapping[str, Any], origin: str) -> Numerics:
    """The constants of a parsed ``config.json``; ``origin`` names it in errors.

    Raises InputError for what the trainer cannot compute: another activation, RoPE scaled in another way than LLaMA
    3's, a family with arithmetic of its own, a constant that is not a positive number.
    """
    kind = str(config.get("model_type"))
    if kind in _UNLIKE:
        raise InputError(f"{origin}: a '{kind}' scales its embedding and shifts its norms; the trainer has neither")
    epsilon, activation = _DEFAULTS.get(kind, _LLAMA)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise InputError(f"{origin}: the parameters of RoPE are {rope!r}; write an object, or leave them out")
    named = _first(config, _ACTIVATION, activation)
    if named not in _ACTIVATIONS:
        raise InputError(f"{origin}: {_ACTIVATION[0]} is '{named}'; the trainer has {', '.join(_ACTIVATIONS)}")
    return Numerics(
        rope_theta=_number(_first(rope, _BASE[:1], _first(config, _BASE, 10000.0)), _BASE[0], origin),
        norm_eps=_number(_first(config, _EPSILON, epsilon), _EPSILON[0], origin),
        activation=_ACTIVATIONS[named],
        rope_scaling=_scaling(rope, config, origin),
    )


def _scaling(rope: Mapping[str, Any], config: Mapping[str, Any], origin: str) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise InputError(
            f"{origin}: rotary positions are scaled ('{kind}'); the trainer knows the default and llama3, so take the "
            "scaling out of the file to train without it"
        )

    def number(name: str, default: Any = None) -> float:
        return _number(rope.get(name, default), f"{name} of RoPE's scaling", origin)

    context = config.get("max_position_embeddings")
    return RopeScaling(
        factor=number("factor"),
        low_freq_factor=number("low_freq_factor"),
        high_freq_factor=number("high_freq_factor"),
        original_context=number("original_max_position_embeddings", context),
    )


def _first(table: Mapping[str, Any], names: tuple[str, ...], default: Any) -> Any:
    return next((table[name] for name in names if table.get(name) is not None), default)


def _number(value: Any, name: str, origin: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise InputError(f"{origin}: {name} is {value!r}; write a positive number")
    return float(value)
