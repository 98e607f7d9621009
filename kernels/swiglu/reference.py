"""SwiGLU in PyTorch, in fp32 whatever the element type: the CPU path, and what the CUDA kernels must match."""

from torch import Tensor


def forward(gate: Tensor, up: Tensor) -> Tensor:
    """The product gate * sigmoid(gate) * up, rounded once."""
    wide = gate.float()
    return (wide * wide.sigmoid() * up.float()).to(gate.dtype).contiguous()


def backward(gate: Tensor, up: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of ``gate`` and ``up``, with s = sigmoid(gate):  dy up s (1 + gate (1 - s))  and  dy gate s."""
    wide, dy = gate.float(), gradient.float()
    share = wide.sigmoid()
    slope = share * (1 + wide * (1 - share))
    gate_gradient, up_gradient = dy * up.float() * slope, dy * wide * share
    return gate_gradient.to(gate.dtype).contiguous(), up_gradient.to(gate.dtype).contiguous()
