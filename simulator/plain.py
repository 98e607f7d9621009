"""NumPy's numbers as Python's."""

from dataclasses import fields
from typing import Any

import numpy as np


def make_plain(record: Any) -> None:
    """Give a frozen dataclass Python's numbers in place of NumPy's, whose narrow integers overflow in silence."""
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, np.generic):
            object.__setattr__(record, field.name, value.item())
