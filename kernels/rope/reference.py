"""Rotary position embedding in PyTorch, in fp32: the CPU path, and what the CUDA kernel must match."""

import torch
from torch import Tensor

from flopcast.kernels.rope.positions import check_positions


def rope(
    q: Tensor, k: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None, backward: bool
) -> tuple[Tensor, Tensor]:
    """``q`` [B, S, Hq, Dh] and ``k`` [B, S, Hkv, Dh] turned by the angles of their positions, or back.

    first' = first * cos - second * sin;  second' = second * cos + first * sin, over the halves of the first 2 R
    elements of a head, R the width of the tables [P, R]; the others are copied. Backward turns the other way.
    """
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    _turn((q, q_out), (k, k_out), cosines, sines, positions, backward)
    return q_out, k_out


def rope_in_place(q: Tensor, k: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None) -> None:
    """The same, written over ``q`` and ``k``."""
    _turn((q, q), (k, k), cosines, sines, positions, False)


def _turn(
    q: tuple[Tensor, Tensor],
    k: tuple[Tensor, Tensor],
    cosines: Tensor,
    sines: Tensor,
    positions: Tensor | None,
    backward: bool,
) -> None:
    if positions is None:
        positions = torch.arange(q[0].shape[1], device=q[0].device)
    check_positions(positions, len(cosines))
    # [S, 1, R] or [B, S, 1, R], to stand beside every head.
    cosine, sine = (table[positions].unsqueeze(-2) for table in (cosines, sines))
    sine = -sine if backward else sine
    half = cosines.shape[1]
    for before, after in (q, k):
        first, second = before[..., :half].float(), before[..., half : 2 * half].float()
        # Both before either is written: in place, first and second are views of what is written.
        low, high = first * cosine - second * sine, second * cosine + first * sine
        after[..., :half], after[..., half : 2 * half] = low, high
        if after is not before:
            after[..., 2 * half :] = before[..., 2 * half :]
