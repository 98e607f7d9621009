"""Numbers as they are said of training runs: 1.4T tokens, 300B, 8,16 GPUs."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from cyclopts import App, ArgumentCollection, CoercionError, Token

SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_AMOUNT = re.compile(r"([+-]?(?:[0-9_.]+(?:e[+-]?[0-9]+)?|nan|inf))\s*([KMGBT]?)", re.ASCII | re.IGNORECASE)


def amount(_: Any, tokens: Sequence[Token]) -> float:
    """``1.4T``, ``300B``, ``1.4e12`` -> a number; raises ValueError, which the parser reports with the option."""
    match = _AMOUNT.fullmatch(tokens[0].value.strip())
    try:
        if match is None:
            raise ValueError
        return float(match[1]) * SUFFIXES[match[2].upper()]
    except ValueError:
        raise ValueError("write a number, e.g. 1.4e12, 1.4T or 300B") from None


def whole_numbers(_: Any, tokens: Sequence[Token]) -> list[int]:
    """``8 16`` and ``8,16`` alike -> [8, 16]; raises ValueError for anything else."""
    words = [word for token in tokens for word in token.value.split(",")]
    if not all(re.fullmatch(r"-?(?:0|[1-9][0-9]*)", word, re.ASCII) for word in words):
        raise ValueError("write whole numbers in digits alone, e.g. 512 1024")
    return [int(word) for word in words]


def whole_in_digits(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuse for every count of every command what is none: the parser itself would round 15.7 GPUs to 16."""
    for argument in arguments:
        if argument.parameter.converter is None and int in _types(argument.hint):
            for token in argument.tokens:
                try:
                    int(token.value)
                except ValueError:
                    raise CoercionError(argument=argument, token=token, target_type=int) from None


def _types(hint: Any) -> Iterable[Any]:
    """``list[int] | None`` -> list[int], int, None and itself."""
    yield hint
    for part in get_args(hint):
        yield from _types(part)
