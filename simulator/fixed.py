"""What a request fixes of the plans it searches: "pp=1", "tp=2,4", checked field by field."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

from flopcast.errors import InputError, nearest
from flopcast.simulator.plan import CHOICES, FIELDS, FLAGS, LEAST, MOST, placement

# What has an option of its own.
OPTIONS = {"num_gpus": "--gpus", "seq_len": "--seq-len"}
BITS = {"gradient_bits": (16, 32), "gather_bits": (16, 4), "dispatch_bits": (16, 8)}
WORDS = {"true": True, "false": False}
# What others call a field, for whoever types that: options of Megatron-LM, DeepSpeed and torchtitan.
KNOWN_AS = {
    "dtype": "precision",
    "tensor_model_parallel_size": "tp",
    "tensor_parallel": "tp",
    "pipeline_model_parallel_size": "pp",
    "pipeline_parallel": "pp",
    "context_parallel_size": "cp",
    "context_parallel": "cp",
    "expert_model_parallel_size": "ep",
    "expert_parallel": "ep",
    "virtual_pipeline_model_parallel_size": "virtual_pp",
    "micro_batch_size": "micro_batch",
    "gradient_accumulation_steps": "grad_accum",
    "activation_checkpointing": "recompute",
}


def parse_fixed(items: Iterable[str]) -> dict[str, list[Any]]:
    """``["pp=1", "tp=2,4"]`` -> ``{"pp": [1], "tp": [2, 4]}``; raises InputError for what is no field or no value."""
    found: dict[str, list[Any]] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not text:
            raise InputError(f"--fix {item}: write a field of a plan, '=' and values, e.g. --fix pp=1 or --fix tp=2,4")
        if name in found:
            raise InputError(f"--fix {name} is given twice; write its values in one, e.g. --fix {name}=A,B")
        _known(name)
        found[name] = [_value(name, word.strip()) for word in text.split(",")]
    return found


def checked(fixed: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """The same values, each a legal one of its field."""
    if not isinstance(fixed, Mapping):
        raise InputError(f"fixed is {fixed!r}; give lists of values by field, e.g. {{'tp': [1, 2]}}")
    found: dict[str, list[Any]] = {}
    for name, values in fixed.items():
        _known(name)
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise InputError(f"fixed {name} is {values!r}; give a list of values, [{values!r}]")
        found[name] = list(values)
        if not found[name]:
            raise InputError(f"fixed {name} is empty; give at least one value, or leave {name} out")
        for value in found[name]:
            _check(name, value)
    return found


def _known(name: str) -> None:
    if not isinstance(name, str):
        raise InputError(f"fixed has {name!r}; give names of a plan's fields, e.g. 'tp'")
    if name in OPTIONS:
        raise InputError(f"--fix {name}: use {OPTIONS[name]}")
    if name not in FIELDS:
        known_as = KNOWN_AS.get(name.strip("-").replace("-", "_").lower())
        offer = f"it is called '{known_as}' here" if known_as else nearest(name, list(FIELDS))
        raise InputError(f"--fix {name}: a plan has no such field; {offer}")


def _value(name: str, word: str) -> Any:
    if name == "strategy" or name in CHOICES:
        value: Any = word.lower()
    elif name in FLAGS:
        if word.lower() not in WORDS:
            raise InputError(f"--fix {name}={word}: write true or false")
        value = WORDS[word.lower()]
    else:
        try:
            value = int(word)
        except ValueError:
            raise InputError(f"--fix {name}={word}: write a whole number") from None
    _check(name, value)
    return value


def _check(name: str, value: Any) -> None:
    if name == "strategy":
        if not isinstance(value, str):
            raise InputError(f"--fix strategy={value!r}: it must be a name, e.g. zero3")
        if "tp" in value:
            raise InputError(
                f"--fix strategy={value}: it stands for tp={value[2:]} strategy=zero1; fix those (strategy=ddp where "
                "that is all GPUs)"
            )
        placement(value, 1, 1)
    elif name in CHOICES and value not in CHOICES[name]:
        raise InputError(f"--fix {name}={value}: choose of {', '.join(CHOICES[name])}")
    elif name in BITS:
        allowed = BITS[name]
        if value not in allowed:
            raise InputError(f"--fix {name}={value}: choose {allowed[0]} or {allowed[1]}")
    elif name in FLAGS:
        if not isinstance(value, bool):
            raise InputError(f"--fix {name}={value!r}: choose True or False")
    elif name not in CHOICES:
        if isinstance(value, bool) or not isinstance(value, Integral) or value < LEAST[name]:
            raise InputError(f"--fix {name}={value}: it must be a whole number of at least {LEAST[name]}")
        if int(value) > MOST[name]:
            raise InputError(f"--fix {name}={value}: it must be at most {MOST[name]:,}")
