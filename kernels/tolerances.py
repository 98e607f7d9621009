"""How far a kernel's result may be from float64 of the same inputs, by its element type."""

from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """Of a value of size one: up to two roundings to the type, and sums in fp32 in between."""

    rtol: float
    atol: float


TOLERANCES = {
    torch.float32: Tolerance(4e-6, 4e-6),
    torch.float16: Tolerance(2**-10, 1e-3),
    torch.bfloat16: Tolerance(2**-7, 8e-3),
}


def assert_near(found: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    """Raise AssertionError unless ``found`` is ``expected`` within its type's tolerance, NaN where that is NaN.

    ``scale`` is the size of the terms that were summed, where the sum may be much smaller.
    """
    rtol, atol = TOLERANCES[found.dtype]
    torch.testing.assert_close(found.double(), expected.double(), rtol=rtol, atol=atol * scale, equal_nan=True)
