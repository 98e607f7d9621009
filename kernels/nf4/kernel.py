"""The CUDA kernels of the NF4 payload: the bytes and values of :mod:`flopcast.kernels.nf4.reference`."""

import numpy as np
from torch import Tensor

from flopcast.kernels import launch
from flopcast.kernels.checks import element_type
from flopcast.kernels.nf4 import format as layout
from flopcast.kernels.nf4 import variant

_MOST_PAYLOADS = 65535  # blocks in the second dimension of a grid


def quantise(values: Tensor, out: Tensor) -> None:
    """The payload of dense ``values`` into ``out``, uint8, which starts on 16 bytes."""
    aligned = values.data_ptr() % layout.ALIGNMENT == 0
    grid = (layout.num_groups(values.numel()), 1)
    chosen = variant.quantise(element_type(values), aligned)
    launch.launch(chosen, grid, (values, out, np.int64(values.numel())), values.device)


def dequantise(payloads: Tensor, numel: int, out: Tensor) -> None:
    """``payloads`` [rows, bytes] into ``out`` [rows, numel]; rows may lie apart, and each is dense."""
    rows = out.shape[0]
    row_bytes = out.stride(0) * out.element_size() if rows > 1 else 0
    aligned = (out.data_ptr() | row_bytes) % layout.ALIGNMENT == 0
    chosen = variant.dequantise(element_type(out), aligned)
    numbers = (np.int64(numel), np.int64(payloads.stride(0)), np.int64(out.stride(0)))
    for first in range(0, rows, _MOST_PAYLOADS):
        some, into = (payloads[first:], out[first:]) if first else (payloads, out)
        grid = (layout.num_groups(numel), min(rows - first, _MOST_PAYLOADS))
        launch.launch(chosen, grid, (some, into, *numbers), out.device)
