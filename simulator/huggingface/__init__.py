"""A Hugging Face ``config.json``, as it is, becomes a model; what is not in it is asked for, never guessed.

A field that a config.json commonly omits takes the default of its class in transformers 5.23
(``src/transformers/models/<type>/configuration_<type>.py``); every family's function says which. An unknown
``model_type`` is refused.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from flopcast.errors import InputError, nearest
from flopcast.simulator.huggingface import (
    bloom,
    cohere,
    deepseek,
    dense,
    falcon,
    gemma,
    glm,
    gpt,
    gpt_oss,
    llama,
    llama4,
    mixture,
    mpt,
    olmo,
    opt,
    phi,
    plamo,
)
from flopcast.simulator.huggingface.fields import Fields
from flopcast.simulator.model import Model
from flopcast.simulator.textfile import read_text
from flopcast.simulator.units import shown

__all__ = ["known_types", "model_from_config", "read_config"]

# In what weights are published that were trained so, and what is said of them: DeepSeek-V3's, gpt-oss's.
NARROW = ("fp8", "mxfp4")
IN_NARROW_WEIGHTS = (
    "quantization_config: {} is of the published weights; training them in full, with products in 16 bits unless fp8 "
    "is asked for, is assumed"
)
EXPECTED = "a Hugging Face config.json"

_FAMILIES: Mapping[str, Callable[[Fields], Model]] = {
    "arcee": dense.arcee,
    "bloom": bloom.bloom,
    "cohere": cohere.cohere,
    "cohere2": cohere.cohere2,
    "deepseek": deepseek.deepseek,
    "deepseek_v2": deepseek.deepseek_v2,
    "deepseek_v3": deepseek.deepseek_v3,
    "ernie4_5": dense.ernie4_5,
    "exaone4": dense.exaone4,
    "falcon": falcon.falcon,
    "gemma": gemma.gemma,
    "gemma2": gemma.gemma2,
    "gemma3": gemma.gemma3,
    "gemma3_text": gemma.gemma3_text,
    "glm": glm.glm,
    "glm4": glm.glm4,
    "glm4_moe": glm.glm4_moe,
    "gpt2": gpt.gpt2,
    "gpt_bigcode": gpt.gpt_bigcode,
    "gpt_neox": gpt.gpt_neox,
    "gpt_oss": gpt_oss.gpt_oss,
    "gptj": gpt.gptj,
    "granite": dense.granite,
    "granitemoe": mixture.granitemoe,
    "kimi_k2": deepseek.deepseek_v3,
    "llama": llama.llama,
    "llama4": llama4.llama4,
    "llama4_text": llama4.llama4_text,
    "minimax_m2": mixture.minimax_m2,
    "mistral": llama.mistral,
    "mixtral": mixture.mixtral,
    "mpt": mpt.mpt,
    "nemotron": dense.nemotron,
    "olmo2": olmo.olmo2,
    "olmo3": olmo.olmo3,
    "olmoe": mixture.olmoe,
    "opt": opt.opt,
    "phi": phi.phi,
    "phi3": phi.phi3,
    "plamo": plamo.plamo,
    "plamo2": plamo.plamo2,
    "qwen2": llama.qwen2,
    "qwen2_moe": mixture.qwen2_moe,
    "qwen3": llama.qwen3,
    "qwen3_moe": mixture.qwen3_moe,
    "seed_oss": dense.seed_oss,
    "smollm3": dense.smollm3,
    "stablelm": dense.stablelm,
    "starcoder2": dense.starcoder2,
}

_MIXTURES = (
    *(
        "deepseek",
        "deepseek_v2",
        "deepseek_v3",
        "glm4_moe",
        "gpt_oss",
        "granitemoe",
        "kimi_k2",
        "llama4",
        "llama4_text",
    ),
    *("minimax_m2", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe"),
)
# Fields that give the number of experts of a layer, by family.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts", "n_expert")


def known_types() -> list[str]:
    """Every ``model_type`` that can be read."""
    return sorted(_FAMILIES)


def read_config(path: str | Path) -> Model:
    """The model that a ``config.json``, or a folder that holds one, describes.

    It is named after the folder, or after a file of another name. Raises InputError, one line, for anything
    wrong.
    """
    path = Path(path)
    try:
        if path.is_dir():
            inside = path / "config.json"
            if not inside.is_file():
                raise InputError(f"{path}: is a directory without a config.json; name {EXPECTED}")
            path = inside
        name = path.resolve().parent.name if path.name == "config.json" else path.stem
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); name {EXPECTED}") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(path)!r}: is not a file name; name {EXPECTED}") from None
    return model_from_config(_parse(read_text(path, EXPECTED), str(path)), name or "model", str(path))


def model_from_config(config: object, name: str, origin: str = "config.json") -> Model:
    """The model of a parsed ``config.json``; ``origin`` names the file in errors."""
    if not isinstance(config, dict):
        raise InputError(f"{origin}: holds {_article(config)}; {EXPECTED} is an object in braces")
    kind = config.get("model_type")
    if kind is None:
        raise InputError(f'{origin}: model_type is missing; add it, such as "model_type": "llama"')
    if not isinstance(kind, str):
        raise InputError(f"{origin}: model_type is {shown(kind)}; write one of {', '.join(known_types())}")
    if kind not in _MIXTURES:
        _refuse_experts(config, kind, origin)
    family = _FAMILIES.get(kind)
    if family is None:
        inside = "; its text_config may be one of them" if isinstance(config.get("text_config"), dict) else ""
        known = ", ".join(known_types())
        offer = nearest(kind, known_types())
        also = f" ({offer})" if offer.startswith("did you") else ""
        raise InputError(f"{origin}: model_type {shown(kind)} is not supported{also}; known types: {known}{inside}")
    method = _narrow_weights(config, origin)
    try:
        model = family(Fields(config, kind, name))
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None
    return replace(model, assumptions=(*model.assumptions, IN_NARROW_WEIGHTS.format(method))) if method else model


def _narrow_weights(config: Mapping[str, object], origin: str) -> str | None:
    """In which of the :data:`NARROW` forms weights are held, if in any; what nobody trains is refused."""
    quantised = config.get("quantization_config")
    if quantised is None:
        return None
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    if method in NARROW:
        return str(method)
    raise InputError(
        f"{origin}: quantization_config (quant_method {shown(method)}) is of weights that are not trained, but for "
        "adapters beside them, which are not forecast; take it out to forecast training the model itself"
    )


def _refuse_experts(config: Mapping[str, object], kind: str, origin: str) -> None:
    """Refuse experts in a family that is not read with them, rather than leave them out."""
    for field in _EXPERTS:
        value = config.get(field)
        if isinstance(value, int) and not isinstance(value, bool) and value > 1:
            known = ", ".join(_MIXTURES)
            raise InputError(
                f"{origin}: {field} is {shown(value)}; experts are read for model_type {known}, not for {shown(kind)}"
            )


def _parse(text: str, origin: str) -> object:
    """The JSON document; a name that stands twice in one object is refused: which value counts is a guess."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        seen: dict[str, object] = {}
        for key, value in pairs:
            if key in seen:
                raise InputError(f"{origin}: {shown(key)} stands twice in one object; keep one")
            seen[key] = value
        return seen

    def refuse(problem: str) -> NoReturn:
        raise InputError(f"{origin}: is not JSON: {problem}") from None

    try:
        return json.loads(text, object_pairs_hook=unique)
    except InputError:
        raise
    except json.JSONDecodeError as error:
        refuse(f"{error.msg} (line {error.lineno}, column {error.colno})")
    except RecursionError:
        refuse("its lists or objects nest too deeply")
    except ValueError:
        refuse("it holds a number of too many digits")


def _article(value: object) -> str:
    names = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
