"""RMSNorm as differentiable ops: alone, or with the residual stream summed on the way in."""

from typing import Any

import torch
from torch import Tensor

from flopcast.errors import InputError
from flopcast.kernels.checks import (
    check_dense_rows,
    check_element_type,
    check_first_derivative,
    check_same,
    check_tensor,
)
from flopcast.kernels.registration import register
from flopcast.kernels.rmsnorm import kernel, reference
from flopcast.kernels.rmsnorm.variant import check_hidden

DEFAULT_EPS = 1e-6


def rms_norm(x: Tensor, weight: Tensor, eps: float = DEFAULT_EPS, round_before_weight: bool = False) -> Tensor:
    """Rows ``x`` [..., D] over their root mean square, times ``weight`` [D]: y = x / sqrt(mean(x^2) + eps) * weight.

    fp32, fp16 or bf16, computed in fp32. It rounds once, as torch.nn.functional.rms_norm does; ``round_before_weight``
    rounds x / rms to the element type first, as Hugging Face's LlamaRMSNorm does. D is 64 to 16384. Raises InputError.
    Source: Zhang and Sennrich (arXiv:1910.07467, equation 4).
    """
    _check("rms_norm", x, (), weight, eps)
    if not torch.is_grad_enabled():  # autograd's bookkeeping takes the host a third of a call
        return torch.ops.flopcast.rms_norm_forward(x, None, None, weight, eps, round_before_weight)[0]  # type: ignore[no-any-return]
    return _RMSNorm.apply(x, weight, eps, round_before_weight)  # type: ignore[no-any-return, no-untyped-call]


def add_rms_norm(
    residual: Tensor,
    branches: tuple[Tensor, ...],
    weight: Tensor,
    eps: float = DEFAULT_EPS,
    round_before_weight: bool = False,
) -> tuple[Tensor, Tensor]:
    """``(y, s)``: the residual stream s = residual + one or two branches, and y = rms_norm(s), both [..., D].

    The sum is formed in fp32, rounded once and normalised as it was stored. Two branches are the boundary of a block
    that runs attention and MLP side by side, as PLaMo-13B's does. Raises InputError.
    """
    if not 1 <= len(branches) <= 2:
        raise InputError(f"add_rms_norm: {len(branches)} branches are given; add one or two to the residual stream")
    _check("add_rms_norm", residual, branches, weight, eps)
    first, second = (*branches, None)[:2]
    if not torch.is_grad_enabled():
        y, s, _ = torch.ops.flopcast.rms_norm_forward(residual, first, second, weight, eps, round_before_weight)
        return y, s
    return _AddRMSNorm.apply(residual, first, second, weight, eps, round_before_weight)  # type: ignore[no-any-return, no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, round_before_weight: bool) -> Tensor:
        y, _, rstd = torch.ops.flopcast.rms_norm_forward(x, None, None, weight, eps, round_before_weight)
        ctx.save_for_backward(x, weight, rstd)
        ctx.round_before_weight = round_before_weight
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        check_first_derivative("rms_norm")
        x, weight, rstd = ctx.saved_tensors
        (dy,) = gradients
        dx, dw = torch.ops.flopcast.rms_norm_backward(x, weight, dy, None, rstd, ctx.round_before_weight)
        return dx, dw, None, None


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,
        first: Tensor,
        second: Tensor | None,
        weight: Tensor,
        eps: float,
        round_before_weight: bool,
    ) -> tuple[Tensor, Tensor]:
        y, s, rstd = torch.ops.flopcast.rms_norm_forward(residual, first, second, weight, eps, round_before_weight)
        ctx.save_for_backward(s, weight, rstd)
        ctx.round_before_weight, ctx.three = round_before_weight, second is not None
        ctx.set_materialize_grads(False)  # the stream's gradient is None where only y is used, and need not be read
        return y, s

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        check_first_derivative("add_rms_norm")
        s, weight, rstd = ctx.saved_tensors
        dy, ds = gradients
        if dy is None:  # only the stream is used: the sum hands its gradient on
            return ds, ds, ds if ctx.three else None, None, None, None
        # What flows back along the residual stream is added in the same pass, and reaches all summands alike.
        dx, dw = torch.ops.flopcast.rms_norm_backward(s, weight, dy, ds, rstd, ctx.round_before_weight)
        return dx, dx, dx if ctx.three else None, dw, None, None


def _check(name: str, x: Tensor, branches: tuple[Tensor, ...], weight: Tensor, eps: float) -> None:
    check_element_type(name, "x", x)
    check_tensor(name, "weight", weight)
    if not 0 <= eps < float("inf"):
        raise InputError(f"{name}: eps is {eps}; it is added to a mean of squares, so give a number of at least 0")
    if x.dim() == 0:
        raise InputError(f"{name}: x has no dimension; give rows of shape [..., hidden]")
    hidden = x.shape[-1]
    check_hidden(int(hidden))
    check_dense_rows(name, "x", x)
    if weight.dim() != 1 or weight.shape[0] != hidden:
        raise InputError(f"{name}: weight has shape {list(weight.shape)}; rows of {hidden} need [{hidden}]")
    check_same(name, "weight", weight, "x", x)
    for branch in branches:
        check_tensor(name, "a branch", branch)
        check_dense_rows(name, "a branch", branch)
        check_same(name, "a branch", branch, "the residual", x)
        if branch.shape != x.shape:
            raise InputError(f"{name}: a branch has shape {list(branch.shape)}; the residual's is {list(x.shape)}")


def _fake_forward(
    x: Tensor, first: Tensor | None, second: Tensor | None, weight: Tensor, eps: float, round_before_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y, rstd = x.new_empty(x.shape), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    return y, x.new_empty(0) if first is None else torch.empty_like(y), rstd


def _fake_backward(
    stream: Tensor,
    weight: Tensor,
    dy: Tensor,
    residual_gradient: Tensor | None,
    rstd: Tensor,
    round_before_weight: bool,
) -> tuple[Tensor, Tensor]:
    return stream.new_empty(stream.shape), torch.empty_like(weight)


register(
    "rms_norm_forward(Tensor x, Tensor? first, Tensor? second, Tensor weight, float eps, bool round_before_weight)"
    " -> (Tensor, Tensor, Tensor)",
    reference.forward,
    kernel.forward,
    _fake_forward,
)
register(
    "rms_norm_backward(Tensor stream, Tensor weight, Tensor dy, Tensor? residual_gradient, Tensor rstd,"
    " bool round_before_weight) -> (Tensor, Tensor)",
    reference.backward,
    kernel.backward,
    _fake_backward,
)
