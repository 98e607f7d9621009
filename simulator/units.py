"""Quantities at the file's edge: "400 Gbit/s" becomes 5e10 bytes per second here, and is printed from here.

Inside the program every quantity is a float in SI base units. GB is 1e9 bytes and GiB is 2**30; "Gbit" and
"Gb" are 1e9 bits and "GB" 1e9 bytes, so the letter's case matters, as it does on a datasheet.
"""

import math
import re
from types import MappingProxyType
from typing import Literal

from flopcast.errors import InputError

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}


def _units(prefixes: dict[str, float], names: dict[str, float]) -> dict[str, float]:
    return {prefix + name: scale * base for prefix, scale in prefixes.items() for name, base in names.items()}


Kind = Literal["bandwidth", "memory", "compute", "power"]

# For each kind of quantity, every spelling of its unit and how many base units that is.
_UNITS = MappingProxyType(
    {
        "bandwidth": _units(
            {**_DECIMAL, **_BINARY},
            {"B/s": 1.0, "bit/s": 1 / 8, "b/s": 1 / 8, "bps": 1 / 8},
        ),
        "memory": _units({**_DECIMAL, **_BINARY}, {"B": 1.0}),
        "compute": _units(_DECIMAL, {"FLOP/s": 1.0, "FLOPS": 1.0}),
        "power": _units({"": 1.0, "k": 1e3, "M": 1e6}, {"W": 1.0}),
    }
)
_EXAMPLE = {"bandwidth": "300 GB/s", "memory": "40 GiB", "compute": "312 TFLOP/s", "power": "6.5 kW"}
# Outside this no hardware is: a unit is wrong, or some zeros too many.
_LEAST, _MOST = 1e-3, 1e24
_LISTED = {
    "bandwidth": "GB/s, GiB/s, Gbit/s or TB/s",
    "memory": "GB, GiB or MiB",
    "compute": "TFLOP/s or PFLOP/s",
    "power": "W or kW",
}
_NUMBER = r"[+-]?[0-9.,]*(?:[eE][+-]?[0-9]+)?|[+-]?(?i:inf|nan)"
_QUANTITY = re.compile(rf"\s*({_NUMBER})\s*([A-Za-z/]*)\s*", re.ASCII)


def parse_quantity(text: object, kind: Kind, example: str | None = None) -> float:
    """``"400 Gbit/s"`` -> 5e10: a positive finite quantity of that kind in SI base units.

    ``example``: what an error says to write, where the kind's own would be followed into another unit than is meant.
    Raises InputError for a number without a unit, a unit of another kind, zero, a negative, infinite or
    undefined number, and anything that is not text.
    """
    example = example or _EXAMPLE[kind]
    if isinstance(text, int | float) and not isinstance(text, bool):
        raise InputError(f'{text} has no unit; write it as text with one, such as "{example}"')
    if not isinstance(text, str):
        raise InputError(f'{shown(text)} is not a quantity; write text such as "{example}"')
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise InputError(f'{shown(text)} is not a number and a unit; write for example "{example}"')
    number, unit = match.groups()
    if not unit:
        raise InputError(f'{shown(text)} has no unit; write for example "{example}"')
    scale = _UNITS[kind].get(unit)
    if scale is None:
        raise InputError(f"{shown(text)}: unit {shown(unit)} is not a unit of {kind}; write {_LISTED[kind]}")
    try:
        value = float(number)
    except ValueError:
        raise InputError(f'{shown(text)} does not start with a number; write for example "{example}"') from None
    value *= scale
    if not math.isfinite(value) or value <= 0:
        raise InputError(f'{shown(text)} must be positive and finite; write for example "{example}"')
    if not _LEAST <= value <= _MOST:
        raise InputError(f'{shown(text)} is no hardware\'s {kind}; check the unit, and write for example "{example}"')
    return value


def parse_bandwidth(text: object) -> float:
    """``"300 GB/s"``, ``"400 Gbit/s"`` -> bytes per second."""
    return parse_quantity(text, "bandwidth")


def parse_network_rate(text: object) -> float:
    """``"400 Gbit/s"`` -> bytes per second; an error's example is in bits, as networks are sold."""
    return parse_quantity(text, "bandwidth", "200 Gbit/s")


def parse_memory(text: object) -> float:
    """``"40 GiB"``, ``"80 GB"`` -> bytes."""
    return parse_quantity(text, "memory")


def parse_compute(text: object) -> float:
    """``"312 TFLOP/s"`` -> floating-point operations per second."""
    return parse_quantity(text, "compute")


def parse_power(text: object) -> float:
    """``"6.5 kW"`` -> watts."""
    return parse_quantity(text, "power")


def shown(value: object, limit: int = 60) -> str:
    """A value as an error message quotes it: its repr on one line, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a deep nest
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def format_seconds(seconds: float) -> str:
    """A time in the unit that suits it: ``"850 us"``, ``"12.5 ms"``, ``"1.25 s"``, ``"41.7 days"``."""
    if not math.isfinite(seconds):
        return str(seconds)
    steps = ((1e-3, 1e-6, "us"), (1.0, 1e-3, "ms"), (120.0, 1.0, "s"), (7200.0, 60.0, "min"))
    rounded = abs(float(f"{seconds:.3g}"))
    for below, scale, unit in steps:
        if rounded < below:
            return f"{seconds / scale:.3g} {unit}"
    if abs(seconds) < 2 * 86400:
        return f"{seconds / 3600:.3g} h"
    return f"{_digits(seconds / 86400)} days"


def format_gigabytes(size_bytes: float) -> str:
    """A size in GB (1e9 bytes) at the decimals a reader can use: ``"37.8"``, ``"1,507"``."""
    return f"{size_bytes / 1e9:,.0f}" if size_bytes >= 100e9 else f"{size_bytes / 1e9:.1f}"


def format_rate(per_second: float, unit: str) -> str:
    """A rate in three digits with the prefix that suits it: ``1.44e10, "FLOP/s"`` -> ``"14.4 GFLOP/s"``."""
    rounded = abs(float(f"{per_second:.3g}"))
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if rounded >= scale:
            return f"{per_second / scale:.3g} {prefix}{unit}"
    return f"{per_second:.3g} {unit}"


def format_count(count: float) -> str:
    """A count in thousands, millions, billions or trillions: ``13_099_545_600`` -> ``"13.1 B"``."""
    for scale, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(count) >= 0.9995 * scale:
            return f"{_digits(count / scale)} {unit}"
    return f"{count:g}"


def _digits(value: float) -> str:
    return f"{value:,.1f}" if abs(value) < 99.95 else f"{value:,.0f}"
