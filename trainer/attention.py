"""Causal attention over shared key/value heads, and the order in which a checkpoint lists its query heads."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

from flopcast.kernels.rope.positions import vouch_for
from flopcast.simulator.blocks.transformer import Attention
from flopcast.trainer.transfer import to_device

# The kernel for sequences of many lengths, as selective recompute meets it in the dispatcher.
VARIED_LENGTH_OPERATOR = torch.ops.torch_attn._varlen_attn.default
# What the kernel for sequences of many lengths computes in.
VARIED_LENGTH_DTYPES = (torch.bfloat16, torch.float16)
# Whether it shares key/value heads by itself: PyTorch 2.13 does, 2.11 has no such argument.
SHARES_HEADS = "enable_gqa" in inspect.signature(varlen_attn).parameters


@dataclass(frozen=True)
class Documents:
    """The documents of packed sequences: ``positions`` [B, S] in each token's document and ``numbers`` [B, S] of it.

    ``bounds``, int32 [documents + 1], are where each document begins in the tokens laid end to end, and where the last
    one ends.
    """

    positions: torch.Tensor
    numbers: torch.Tensor
    bounds: torch.Tensor

    @classmethod
    def of(cls, positions: torch.Tensor) -> "Documents":
        """From positions [B, S] that count from 0 in every document. Waits for the GPU where they are on one."""
        begins = positions == 0
        begins[:, 0] = True
        starts = begins.flatten().nonzero().flatten()
        end = torch.full_like(starts[:1], positions.numel())
        return cls(positions, begins.cumsum(1), torch.cat([starts, end]).int())

    def to(self, device: torch.device) -> "Documents":
        """The same on ``device``, which is not waited for."""
        moved = Documents(*(to_device(t, device) for t in (self.positions, self.numbers, self.bounds)))
        if moved.positions is not self.positions:
            vouch_for(moved.positions, int(self.positions.max()) + 1)
        return moved


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window: int | None = None,
    documents: Documents | None = None,
) -> torch.Tensor:
    """softmax(Q K^T / sqrt(Dh)) V under the causal mask: [B, S, Hq, Dh] from q of that shape and k, v [B, S, Hkv, Dh].

    Query head i uses key/value head i // (Hq/Hkv). ``window``: a token sees itself and the window - 1 before it.
    Tokens see only their own document. On a GPU a flash kernel runs in every case; elsewhere windows and documents are
    a mask.
    """
    length = q.shape[1]
    windowed = window is not None and window < length
    if q.is_cuda and q.dtype in VARIED_LENGTH_DTYPES and (windowed or documents is not None):
        return _by_length(q, k, v, window if windowed else None, documents)
    mask = _mask(length, window if windowed else None, documents, q.device)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)


def _by_length(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None, documents: Documents | None
) -> torch.Tensor:
    """Every document, or every sequence, as a sequence of its own."""
    batch, length = q.shape[:2]
    if documents is not None:
        bounds = documents.bounds
    else:
        bounds = torch.arange(0, batch * length + 1, length, dtype=torch.int32, device=q.device)
    shared = q.shape[2] != k.shape[2]
    if shared and not SHARES_HEADS:
        k, v = [heads.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for heads in (k, v)]
    sharing: dict[str, Any] = {"enable_gqa": shared} if SHARES_HEADS else {}
    out = varlen_attn(
        q.flatten(0, 1),
        k.flatten(0, 1),
        v.flatten(0, 1),
        bounds,
        bounds,
        length,
        length,
        window_size=(-1 if window is None else window - 1, 0),
        **sharing,
    )
    assert isinstance(out, torch.Tensor)
    return out.view(q.shape)


def _mask(length: int, window: int | None, documents: Documents | None, device: torch.device) -> torch.Tensor | None:
    """Boolean [B or 1, 1, S, S], True where a query (rows) sees a key; None where only causality hides keys."""
    if documents is None and window is None:
        return None
    place = torch.arange(length, device=device)
    distance = place[:, None] - place[None, :]
    seen = distance >= 0
    if window is not None:
        seen &= distance < window
    if documents is None:
        return seen[None, None]
    return seen & (documents.numbers[:, None, :, None] == documents.numbers[:, None, None, :])


def published_heads(attention: Attention) -> list[int]:
    """For each query head as the trainer holds it, its number in the published checkpoint.

    The trainer groups the heads that share a key/value head. A tiled checkpoint (PLaMo) has query head i use
    key/value head i mod Hkv, so the heads of group g are g, g + Hkv, g + 2 Hkv, ...
    """
    if attention.kv_layout == "grouped":
        return list(range(attention.num_heads))
    group = attention.num_heads // attention.num_kv_heads
    return [g + attention.num_kv_heads * member for g in range(attention.num_kv_heads) for member in range(group)]


def permuted_heads(matrix: torch.Tensor, order: list[int], head_dim: int, dim: int) -> torch.Tensor:
    """``matrix`` with the heads of ``head_dim`` features along ``dim`` (0 of q, 1 of o) taken in ``order``."""
    heads = matrix.reshape(*matrix.shape[:dim], len(order), head_dim, *matrix.shape[dim + 1 :])
    return heads.index_select(dim, torch.tensor(order, device=matrix.device)).reshape(matrix.shape)
