"""The memory-bound pieces of a layer: the kernels of ``kernels/`` where they run, else PyTorch op by op."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from flopcast.kernels.backend import backend
from flopcast.kernels.rmsnorm import op as rms_norm_op
from flopcast.kernels.rmsnorm.variant import LARGEST_HIDDEN, SMALLEST_HIDDEN
from flopcast.kernels.rope import op as rope_op
from flopcast.kernels.swiglu import op as swiglu_op
from flopcast.trainer.numerics import Activation


@dataclass(frozen=True)
class Angles:
    """Rotary angles: fp32 tables [P, pairs], and the row of every token, int64 [B, S] (0 to S - 1 where None)."""

    cosines: torch.Tensor
    sines: torch.Tensor
    positions: torch.Tensor | None = None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def kernels_run() -> bool:
    """Whether a GPU's tensors take the kernels here. torch.compile cannot trace the search for CuPy, and need not."""
    return backend().name == "cupy"


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, fused: bool) -> torch.Tensor:
    """X / sqrt(mean(x^2) + eps) * weight over the last dimension, in fp32, rounded once to the type of ``x``."""
    if fused and SMALLEST_HIDDEN <= x.shape[-1] <= LARGEST_HIDDEN:
        return rms_norm_op.rms_norm(x, weight, eps)
    return F.rms_norm(x, weight.shape, weight, eps)


def rope(q: torch.Tensor, k: torch.Tensor, angles: Angles, fused: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The first 2 pairs features of every head of q and k [B, S, H, Dh] turned by their tokens' angles.

    Feature i pairs with i + pairs (the "rotate half" form of Hugging Face's LLaMA and PLaMo); the rest stays.
    """
    if fused:
        return rope_op.rope(q, k, angles.cosines, angles.sines, angles.positions)
    rows = slice(q.shape[1]) if angles.positions is None else angles.positions
    cosines, sines = angles.cosines[rows].unsqueeze(-2), angles.sines[rows].unsqueeze(-2)
    return _turned(q, cosines, sines), _turned(k, cosines, sines)


def _turned(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    pairs = cosines.shape[-1]
    first, second, rest = torch.split(x, [pairs, pairs, x.shape[-1] - 2 * pairs], dim=-1)
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    return torch.cat([*(part.to(x.dtype) for part in turned), rest], dim=-1)


def gated(gate: torch.Tensor, up: torch.Tensor, activation: Activation, fused: bool = False) -> torch.Tensor:
    """activation(gate) * up (SwiGLU with SiLU: Shazeer 2020, arXiv:2002.05202), keeping only its two inputs."""
    if fused and activation == "silu" and kernels_run() and gate.is_cuda:
        return swiglu_op.swiglu(gate, up)
    return _Gated.apply(gate, up, activation)  # type: ignore[no-any-return, no-untyped-call]


def gated_by_parts(gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """The same as :func:`gated`, left to autograd."""
    return activate(gate, activation) * up


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activate(gate, activation) * up

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            leaf = gate.detach().requires_grad_()
            active = activate(leaf, ctx.activation)
        (gate_gradient,) = torch.autograd.grad(active, leaf, gradient * up)
        return gate_gradient, active.detach().mul_(gradient), None


def activate(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    """The activation by name."""
    if activation == "silu":
        return F.silu(x)
    if activation == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")
