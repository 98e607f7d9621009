"""The gated product of an MLP as a differentiable op."""

from typing import Any

import torch
from torch import Tensor

from flopcast.errors import InputError
from flopcast.kernels.checks import check_element_type, check_first_derivative, check_same
from flopcast.kernels.registration import register
from flopcast.kernels.swiglu import kernel, reference


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The product gate * sigmoid(gate) * up of two tensors of one shape, of which the backward needs no more.

    fp32, fp16 or bf16, computed in fp32 and rounded once; on a GPU what is not contiguous, such as a half of one
    product, is copied first. Raises InputError. Source: Shazeer (arXiv:2002.05202).
    """
    check_element_type("swiglu", "gate", gate)
    check_same("swiglu", "up", up, "gate", gate)
    if up.shape != gate.shape:
        raise InputError(f"swiglu: up has shape {list(up.shape)}, gate {list(gate.shape)}; give them the same")
    if not torch.is_grad_enabled():  # autograd's bookkeeping takes the host a third of a call
        return torch.ops.flopcast.swiglu_forward(gate, up)  # type: ignore[no-any-return]
    return _SwiGLU.apply(gate, up)  # type: ignore[no-any-return, no-untyped-call]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return torch.ops.flopcast.swiglu_forward(gate, up)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        check_first_derivative("swiglu")
        (dy,) = gradients
        return torch.ops.flopcast.swiglu_backward(*ctx.saved_tensors, dy)  # type: ignore[no-any-return]


def _fake_forward(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


def _fake_backward(gate: Tensor, up: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


register("swiglu_forward(Tensor gate, Tensor up) -> Tensor", reference.forward, kernel.forward, _fake_forward)
register(
    "swiglu_backward(Tensor gate, Tensor up, Tensor gradient) -> (Tensor, Tensor)",
    reference.backward,
    kernel.backward,
    _fake_backward,
)
