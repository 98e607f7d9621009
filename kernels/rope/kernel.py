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


def rope(
    q: Tensor, k: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None, backward: bool
) -> tuple[Tensor, Tensor]:
    """One launch for queries and keys, into new tensors."""
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    _launch(q, k, q_out, k_out, cosines, sines, positions, -1.0 if backward else 1.0)
    return q_out, k_out


def rope_in_place(q: Tensor, k: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None) -> None:
    """One launch that writes over ``q`` and ``k``, which may be views of one buffer."""
    _launch(q, k, q, k, cosines, sines, positions, 1.0)


def _launch(
    q: Tensor,
    k: Tensor,
    q_out: Tensor,
    k_out: Tensor,
    cosines: Tensor,
    sines: Tensor,
    positions: Tensor | None,
    direction: float,
) -> None:
    batch, tokens = q.shape[:2]
    if not batch * tokens:
        return
    if positions is not None:
        check_positions(positions, len(cosines))
    tensors = (q, k, q_out, k_out)
    # In elements; of all together the lowest bit that is set says how well all are aligned.
    heads = q.data_ptr() | k.data_ptr() | q_out.data_ptr() | k_out.data_ptr()
    offset = heads // q.element_size() | (cosines.data_ptr() | sines.data_ptr()) // cosines.element_size()
    layouts = tuple((t.shape, t.stride()) for t in tensors)
    chosen, strides = _chosen(element_type(q), layouts, cosines.shape[1], offset % ACCESS_BYTES)
    batch_stride = positions.stride(0) if positions is not None and positions.dim() == 2 else 0
    arguments = (
        *(*tensors, cosines, sines, positions, np.int64(batch_stride)),
        *(np.int32(tokens), np.int32(len(cosines)), np.float32(direction)),
        *strides,
    )
    launch.launch(chosen, (-(-tokens // chosen["TOKENS"]), batch), arguments, q.device)


@lru_cache(1024)
def _chosen(
    element: str, layouts: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...], half: int, offset: int
) -> tuple[Variant, list[np.int64]]:
    """The variant for tensors of these shapes and strides, and their first three strides as the kernel takes them.

    A dimension of one passes 0: its stride says nothing and must not narrow the accesses.
    """
    strides = [s if n > 1 else 0 for shape, stride in layouts for n, s in zip(shape[:3], stride[:3], strict=True)]
    (_, _, q_heads, head), (_, _, k_heads, _) = layouts[0][0], layouts[1][0]
    vector = elements_per_access(element, half, head - 2 * half, offset, *strides)
    return variant.rope(element, q_heads, k_heads, head, half, vector), [np.int64(s) for s in strides]
