"""The CUDA kernel of rotary position embedding: the arguments and results of :mod:`flopcast.kernels.rope.reference`."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from flopcast.kernels import launch
from flopcast.kernels.checks import element_type
from flopcast.kernels.rope import variant
from flopcast.kernels.rope.positions import check_positions
from flopcast.kernels.variant import ACCESS_BYTES, Variant, elements_per_access

_FORWARD, _BACKWARD = np.float32(1), np.float32(-1)


def rope(
    q: Tensor, k: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None, backward: bool
) -> tuple[Tensor, Tensor]:
    """One launch for queries and keys, into new tensors."""
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    _launch(q, k, q_out, k_out, cosines, sines, positions, _BACKWARD if backward else _FORWARD)
    return q_out, k_out


def rope_in_place(q: Tensor, k: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None) -> None:
    """One launch that writes over ``q`` and ``k``, which may be views of one buffer."""
    _launch(q, k, q, k, cosines, sines, positions, _FORWARD)


def _launch(
    q: Tensor,
    k: Tensor,
    q_out: Tensor,
    k_out: Tensor,
    cosines: Tensor,
    sines: Tensor,
    positions: Tensor | None,
    direction: np.float32,
) -> None:
    shape = q.shape
    if not shape[0] * shape[1]:
        return
    table_rows, half = cosines.shape
    batch_stride = 0
    if positions is not None:
        check_positions(positions, table_rows)
        batch_stride = positions.stride(0) if positions.dim() == 2 else 0
    # In elements; of all together the lowest bit that is set says how well all are aligned.
    heads = q.data_ptr() | k.data_ptr() | q_out.data_ptr() | k_out.data_ptr()
    offset = (heads // q.element_size() | (cosines.data_ptr() | sines.data_ptr()) // 4) % ACCESS_BYTES
    strides = (q.stride(), k.stride(), q_out.stride(), k_out.stride())
    chosen, grid, behind = _chosen(element_type(q), shape, k.shape[2], half, offset, strides)
    numbers = (np.int64(batch_stride), np.int32(shape[1]), np.int32(table_rows), direction)
    launch.launch(chosen, grid, (q, k, q_out, k_out, cosines, sines, positions, *numbers, *behind), q.device)


@lru_cache(1024)
def _chosen(
    element: str,
    shape: tuple[int, ...],
    k_heads: int,
    half: int,
    offset: int,
    layouts: tuple[tuple[int, ...], ...],
) -> tuple[Variant, tuple[int, int], list[np.int64]]:
    """The variant for q of this shape, its grid, and the first three strides of q, k and their results for the kernel.

    A dimension of one passes 0: its stride says nothing and must not narrow the accesses.
    """
    batch, tokens, q_heads, head = shape
    heads = (q_heads, k_heads, q_heads, k_heads)
    strides = [
        stride if size > 1 else 0
        for number, layout in zip(heads, layouts, strict=True)
        for size, stride in zip((batch, tokens, number), layout[:3], strict=True)
    ]
    vector = elements_per_access(element, half, head - 2 * half, offset, *strides)
    chosen = variant.rope(element, q_heads, k_heads, head, half, vector)
    return chosen, (-(-tokens // chosen["TOKENS"]), batch), [np.int64(s) for s in strides]
