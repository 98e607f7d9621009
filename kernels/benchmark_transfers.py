"""What the kernel benchmark times of the NF4 payload: there and back, ours beside the reference."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flopcast.kernels.benchmark_cases import OURS
from flopcast.kernels.nf4 import op as nf4
from flopcast.kernels.nf4 import reference as nf4_reference
from flopcast.kernels.nf4.format import payload_bytes


@dataclass(frozen=True)
class Transfer:
    """One way through the NF4 payload: made from ``numel`` 16-bit values, or values made from it."""

    name: str
    functions: dict[str, Callable[[Tensor, Tensor], None]]


def transfers(dtype: torch.dtype) -> list[Transfer]:
    """Quantise and dequantise, ours beside the reference; arguments are the values and the payload."""

    def quantised(values: Tensor, payload: Tensor) -> None:
        nf4.quantise(values, out=payload)

    def dequantised(values: Tensor, payload: Tensor) -> None:
        nf4.dequantise(payload, values.numel(), dtype, out=values)

    def eager_quantised(values: Tensor, payload: Tensor) -> None:
        nf4_reference.quantise(values, out=payload)

    def eager_dequantised(values: Tensor, payload: Tensor) -> None:
        nf4_reference.dequantise(payload, values.numel(), dtype, out=values)

    return [
        Transfer("nf4_quantise", {OURS: quantised, "eager": eager_quantised}),
        Transfer("nf4_dequantise", {OURS: dequantised, "eager": eager_dequantised}),
    ]


def moved_bytes(numel: int, dtype: torch.dtype) -> float:
    """What either way must move: the values once and the payload once."""
    return float(numel * dtype.itemsize + int(payload_bytes(numel)))
