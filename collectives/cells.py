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
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?)\s*(.*)", re.IGNORECASE)
_YES = {"yes": 1.0, "true": 1.0, "in-place": 1.0, "in_place": 1.0, "no": 0.0, "false": 0.0, "out-of-place": 0.0}


def text_of(cell: Any) -> str:
    """A cell as text; empty where it is missing."""
    if cell is None or (isinstance(cell, float) and np.isnan(cell)):
        return ""
    return str(cell).strip()


def numbers(name: str, cells: NDArray[Any]) -> Floats:
    """The cells of the column ``name`` as float64, not-a-number where there is none."""
    if cells.dtype.kind in "iufb":
        return cells.astype(np.float64)
    read = _READERS.get(name, _plain)
    return np.array([read(text_of(cell)) for cell in cells], dtype=np.float64)


def _quantity(text: str) -> tuple[float, str]:
    """The number at the beginning of ``text``, not-a-number where there is none, and what follows it."""
    match = _NUMBER.match(text.replace(",", ""))
    return (float(match.group(1)), match.group(2)) if match else (np.nan, "")


def _plain(text: str) -> float:
    """The number at the beginning of ``text``, or yes and no as 1 and 0."""
    value, _ = _quantity(text)
    return _YES.get(text.lower(), value)


def _bytes(text: str) -> float:
    """``512M``, ``1 GiB``: powers of 1024, as nccl-tests counts."""
    value, unit = _quantity(text)
    return value * 1024.0 ** ("KMGT".find(unit[0].upper()) + 1 if unit else 0)


def gbit(text: str) -> float:
    """``400``, ``400 Gbit/s``, ``50 GB/s``, ``8x400G`` and ``NDR`` as Gbit/s of one NIC."""
    words = re.sub(r"^\s*[0-9]+\s*[x*]\s*(?=[0-9A-Z])", "", text)
    match = _NUMBER.match(words)
    if match:
        value, unit = float(match.group(1)), match.group(2)
        return value * (8.0 if re.match(r"Gi?B\b|GB/", unit) else 1e3 if unit.startswith("T") else 1.0)
    return next((float(rate) for name, rate in _INFINIBAND_GBIT.items() if name in words.upper()), np.nan)


def _microseconds(text: str) -> float:
    """``25.3ms``; microseconds where no unit is given."""
    value, unit = _quantity(text)
    return value * {"n": 1e-3, "m": 1e3, "s": 1e6}.get(unit[:1].lower(), 1.0)


def _gigabytes_per_s(text: str) -> float:
    """``310 GB/s``, ``2800 Gbps``; gigabytes per second where no unit is given."""
    value, unit = _quantity(text)
    return value * (0.125 if BITS.match(unit) else 1.0) * {"T": 1e3, "M": 1e-3}.get(unit[:1].upper(), 1.0)


_READERS: dict[str, Callable[[str], float]] = {
    "bytes": _bytes,
    "nic_gbit": gbit,
    "time_us": _microseconds,
    "algbw_GBps": _gigabytes_per_s,
    "busbw_GBps": _gigabytes_per_s,
}
