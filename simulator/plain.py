"""Dataclasses of plain numbers: NumPy's become Python's, and what is no number is refused."""

import math
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import numpy as np

from flopcast.errors import InputError


def make_plain(record: Any) -> None:
    """Give a frozen dataclass Python's numbers in place of NumPy's, whose narrow integers overflow in silence."""
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, np.generic):
            object.__setattr__(record, field.name, value.item())


def check_figures(record: Any, where: str, names: Iterable[str], zero: bool = False) -> None:
    """Raise InputError where a field is no positive number; with ``zero``, it may be 0."""
    for name in names:
        value = getattr(record, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not (0 < value < math.inf or (zero and value == 0)):
            raise InputError(f"{where}: {name} is {value!r}; it must be a positive number{', or 0' if zero else ''}")


def check_counts(record: Any, where: str, names: Iterable[str], least: int = 1) -> None:
    """Raise InputError where a field is no whole number of at least ``least``."""
    for name in names:
        value = getattr(record, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{where}: {name} is {value!r}; it must be a whole number of at least {least}")


def check_flags(record: Any, where: str, names: Iterable[str]) -> None:
    """Raise InputError where a field is neither True nor False."""
    for name in names:
        if not isinstance(value := getattr(record, name), bool):
            raise InputError(f"{where}: {name} is {value!r}; it must be True or False")
