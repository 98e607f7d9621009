"""Cells of tables as people write them: text, and numbers with their units."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flopcast.collectives.cost import Floats

# "Gbps" and "Gbit/s" are bits; "GBps", "GB/s" and, as scripts write nccl-tests' columns, "gbps" are bytes.
BITS = re.compile(r"[MGT]b(?:it)?(?:ps|/s|s\b)")
_INFINIBAND_GBIT = {"SDR": 10, "DDR": 20, "QDR": 40, "FDR": 56, "EDR": 100, "HDR": 200, "NDR": 400, "XDR": 800}
# Commas count as thousands only where they group them: "8500,5" is no number here. Nor is "8 500".
_NUMBER = re.compile(
    r"\s*((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?)(?!\s*[0-9.,])\s*(.*)", re.IGNORECASE
)
_MICROSECONDS = (
    (re.compile(r"(?:[u\u00b5\u03bc]s|usecs?|micros(?:ec(?:ond)?s?)?)"), 1.0),
    (re.compile(r"(?:ms|msecs?|millis(?:ec(?:ond)?s?)?)"), 1e3),
    (re.compile(r"(?:s|secs?|seconds?)"), 1e6),
    (re.compile(r"(?:ns|nsecs?|nanos(?:ec(?:ond)?s?)?)"), 1e-3),
)
_RATE = re.compile(r"([KMGT]?)(i?)(b|bits?|bytes?)? *(?:(?:p|/|per )?s(?:ec(?:ond)?)?)?", re.IGNORECASE)
# The unit behind a number, without the remark that may follow.
_UNIT = re.compile(r"[^\W\d_]+(?: ?/ ?s(?:ec)?\b)?")
# No size, time or count is larger: a number of bytes still fits 64 bits.
MOST = 2.0**62
_MISSING = ("", "-", "--", "?", "n/a", "na", "none", "nan")
_YES = {"yes": 1.0, "true": 1.0, "in-place": 1.0, "in_place": 1.0, "no": 0.0, "false": 0.0, "out-of-place": 0.0}


def text_of(cell: Any) -> str:
    """A cell as text; empty where it is missing."""
    if cell is None or (isinstance(cell, float) and np.isnan(cell)):
        return ""
    return str(cell).strip()


def is_missing(text: str) -> bool:
    """Whether a cell says that there is nothing to say."""
    return text.lower() in _MISSING


def numbers(name: str, cells: NDArray[Any], scale: float = 1.0) -> Floats:
    """The cells of the column ``name`` as float64, not-a-number where there is none, or one that nothing can have.

    ``scale``: what brings a number without a unit of its own to the unit of ``name``.
    """
    if cells.dtype.kind in "iufb":
        return _possible(cells.astype(np.float64) * scale)
    read = _READERS.get(name, _plain)
    found = [read(text_of(cell)) for cell in cells]
    return _possible(np.array([value * (scale if unit is None else unit) for value, unit in found], dtype=np.float64))


def _possible(values: Floats) -> Floats:
    return np.where(np.abs(values) <= MOST, values, np.nan)


def microseconds_of(unit: str) -> float | None:
    """Microseconds in a ``unit`` such as "us", "µs", "msec", "ns"; None where it is not one of time."""
    return next((scale for pattern, scale in _MICROSECONDS if pattern.fullmatch(unit.strip().lower())), None)


def gigabytes_per_s_of(unit: str) -> float | None:
    """Gigabytes (1e9 bytes) per second in a ``unit`` such as "GB/s", "MiB/s", "Gbps"; None where it is not one."""
    # A heading's own punctuation may have taken the stroke's place, as in "busbw_GB_s".
    unit = unit.strip().replace("_", "/").replace(" /", "/").replace("/ ", "/")
    match = _RATE.fullmatch(unit)
    if not match or not (match.group(1) or match.group(3)):
        return None
    base = 1024.0 if match.group(2) else 1000.0
    are_bits = BITS.match(unit) or (match.group(3) or "").lower().startswith("bit")
    return (0.125 if are_bits else 1.0) * base ** " KMGT".index(match.group(1).upper() or " ") / 1e9


def gbit(text: str) -> float:
    """``400``, ``400 Gbit/s``, ``50 GB/s``, ``8x400G`` and ``NDR`` as Gbit/s of one NIC."""
    words = re.sub(r"^\s*[0-9]+\s*[x*]\s*(?=[0-9A-Z])", "", text)
    value, unit = _quantity(words)
    if not np.isnan(value):
        return value * (8.0 if re.match(r"Gi?B\b|GB/", unit) else 1e3 if unit.startswith("T") else 1.0)
    return next((float(rate) for name, rate in _INFINIBAND_GBIT.items() if name in words.upper()), np.nan)


def _quantity(text: str) -> tuple[float, str]:
    """The number at the beginning of ``text``, not-a-number where there is none, and what follows it."""
    match = _NUMBER.match(text)
    return (float(match.group(1).replace(",", "")), match.group(2)) if match else (np.nan, "")


def _with_unit(text: str, scale_of: Callable[[str], float | None]) -> tuple[float, float | None]:
    """A quantity and the scale of its unit, None where it has none; no number where the unit is not known."""
    value, rest = _quantity(text)
    unit = _UNIT.match(rest)
    scale = scale_of(unit.group().strip()) if unit else None
    return (np.nan, None) if unit and scale is None else (value, scale)


def _plain(text: str) -> tuple[float, None]:
    """The number at the beginning of ``text``, or yes and no as 1 and 0."""
    value, _ = _quantity(text)
    return _YES.get(text.lower(), value), None


def _bytes(text: str) -> tuple[float, float | None]:
    """``512M``, ``1 GiB``: powers of 1024, as nccl-tests counts."""
    value, unit = _quantity(text)
    return value, 1024.0 ** ("KMGT".find(unit[0].upper()) + 1) if unit else None


def _microseconds(text: str) -> tuple[float, float | None]:
    """``25.3ms``."""
    return _with_unit(text, microseconds_of)


def _gigabytes_per_s(text: str) -> tuple[float, float | None]:
    """``310 GB/s``, ``2800 Gbps``."""
    return _with_unit(text, gigabytes_per_s_of)


_READERS: dict[str, Callable[[str], tuple[float, float | None]]] = {
    "bytes": _bytes,
    "nic_gbit": lambda text: (gbit(text), None),
    "time_us": _microseconds,
    "algbw_GBps": _gigabytes_per_s,
    "busbw_GBps": _gigabytes_per_s,
}
