"""Rotary position embedding as an op: queries and keys together, differentiable, or in place without a gradient."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flopcast.errors import InputError
from flopcast.kernels.checks import check_dense_rows, check_element_type, check_first_derivative, check_same
from flopcast.kernels.registration import register
from flopcast.kernels.rope import kernel, reference

_MOST_BATCHES = 65535  # blocks in the second dimension of a grid


def rotary_tables(
    head_dim: int,
    num_positions: int,
    base: float = 10000.0,
    device: torch.device | str = "cpu",
    scaling: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """``(cosines, sines)``, fp32 [num_positions, head_dim / 2], of the angles position * base^(-2 i / head_dim).

    ``head_dim`` may be less than the heads have: the elements behind it are then not turned (GPT-NeoX's rotary_pct).
    ``scaling`` of the frequencies [head_dim / 2] stretches them over a longer context.
    Source: Su et al. (arXiv:2104.09864, equation 15).
    """
    if head_dim % 2 or head_dim < 2:
        raise InputError(f"rotary_tables: head_dim is {head_dim}; pairs of elements are turned, so it must be even")
    if num_positions < 0:
        raise InputError(f"rotary_tables: num_positions is {num_positions}; give at least 0")
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    frequencies = frequencies if scaling is None else scaling(frequencies)
    angles = torch.arange(num_positions, dtype=torch.float64).unsqueeze(1) * frequencies
    return angles.cos().float().to(device), angles.sin().float().to(device)


def rope(
    q: Tensor, k: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``q`` [B, S, Hq, Dh] and ``k`` [B, S, Hkv, Dh] with each head's two halves turned by its token's angle.

    ``cosines`` and ``sines`` are fp32 [P, R], 2 R <= Dh; ``positions``, int64 [S] or [B, S], picks their rows: for
    packed documents it starts again at 0 with each (by default 0 to S - 1). q and k may be strided, as views of one QKV
    buffer are, with a dense last dimension; fp32, fp16 or bf16, computed in fp32. Raises InputError.
    """
    _check("rope", q, k, cosines, sines, positions)
    if not torch.is_grad_enabled():  # autograd's bookkeeping takes the host a third of a call
        return torch.ops.flopcast.rope(q, k, cosines, sines, positions, False)  # type: ignore[no-any-return]
    return _Rope.apply(q, k, cosines, sines, positions)  # type: ignore[no-any-return, no-untyped-call]


def rope_(q: Tensor, k: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None = None) -> None:
    """:func:`rope` written over ``q`` and ``k``, for inference: it has no gradient. Raises InputError."""
    _check("rope_", q, k, cosines, sines, positions)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        raise InputError("rope_: q or k requires a gradient, which working in place does not give; use rope")
    for name, tensor in (("q", q), ("k", k)):
        if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            raise InputError(f"rope_: {name} is expanded, its elements share memory; call .contiguous() on it first")
    torch.ops.flopcast.rope_in_place(q, k, cosines, sines, positions)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cosines, sines, positions)
        return torch.ops.flopcast.rope(q, k, cosines, sines, positions, False)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        check_first_derivative("rope")
        dq, dk = [g if g.stride(-1) == 1 else g.contiguous() for g in gradients]
        turned = torch.ops.flopcast.rope(dq, dk, *ctx.saved_tensors, True)
        return (*turned, None, None, None)


def _check(op: str, q: Tensor, k: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None) -> None:
    check_element_type(op, "q", q)
    if q.dim() != 4 or k.dim() != 4:
        raise InputError(f"{op}: q is {list(q.shape)}, k {list(k.shape)}; both are [batch, tokens, heads, head size]")
    check_same(op, "k", k, "q", q)
    (batch, tokens, q_heads, head), (k_batch, k_tokens, k_heads, k_head) = q.shape, k.shape
    if (batch, tokens, head) != (k_batch, k_tokens, k_head):
        raise InputError(
            f"{op}: q is {list(q.shape)}, k {list(k.shape)}; they may differ in their number of heads only"
        )
    if q_heads < 1 or k_heads < 1 or q_heads % k_heads:
        raise InputError(f"{op}: {q_heads} query heads do not share {k_heads} key heads evenly")
    check_dense_rows(op, "q", q)
    check_dense_rows(op, "k", k)
    if batch > _MOST_BATCHES:
        raise InputError(f"{op}: a batch of {batch} is more than {_MOST_BATCHES}; fold it into the tokens")
    if cosines.dim() != 2 or cosines.dtype != torch.float32 or cosines.shape != sines.shape:
        raise InputError(
            f"{op}: the tables are {cosines.dtype} {list(cosines.shape)} and {list(sines.shape)}; "
            "make both float32 [P, R]"
        )
    check_same(op, "sines", sines, "cosines", cosines)
    if not (cosines.is_contiguous() and sines.is_contiguous()):
        raise InputError(f"{op}: the tables are not contiguous; call .contiguous() on them once")
    rows, half = cosines.shape
    if not 2 <= 2 * half <= head:
        raise InputError(f"{op}: {half} angles turn {2 * half} elements, a head has {head}")
    if cosines.device != q.device:
        raise InputError(f"{op}: the tables are on {cosines.device} and q on {q.device}; move them")
    if positions is not None:
        _check_positions(op, positions, q, batch, tokens)
    elif tokens > rows:
        raise InputError(f"{op}: {tokens} tokens need as many rows, the tables have {rows}")


def _check_positions(op: str, positions: Tensor, q: Tensor, batch: int, tokens: int) -> None:
    if positions.dtype != torch.int64 or positions.device != q.device:
        raise InputError(f"{op}: positions are {positions.dtype} on {positions.device}; give torch.int64 on {q.device}")
    if positions.shape not in ((tokens,), (batch, tokens)):
        raise InputError(f"{op}: positions have shape {list(positions.shape)}; give [{tokens}] or [{batch}, {tokens}]")
    if positions.stride(-1) != 1 and tokens > 1:
        raise InputError(f"{op}: the last dimension of positions has stride {positions.stride(-1)}; call .contiguous()")


def _fake(
    q: Tensor, k: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None, backward: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k)


def _fake_in_place(q: Tensor, k: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None) -> None:
    return None


register(
    "rope(Tensor q, Tensor k, Tensor cosines, Tensor sines, Tensor? positions, bool backward) -> (Tensor, Tensor)",
    reference.rope,
    kernel.rope,
    _fake,
)
register(
    "rope_in_place(Tensor(a!) q, Tensor(b!) k, Tensor cosines, Tensor sines, Tensor? positions) -> ()",
    reference.rope_in_place,
    kernel.rope_in_place,
    _fake_in_place,
)
