"""RMSNorm in PyTorch, in fp32 whatever the element type: the CPU path, and what the CUDA kernels must match."""

import torch
from torch import Tensor


def forward(
    x: Tensor, first: Tensor | None, second: Tensor | None, weight: Tensor, eps: float, round_before_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``y``, ``s`` and ``rstd`` [..., 1] of rows ``x`` [..., D]; ``s`` is empty where nothing is added.

    s = x [+ first [+ second]], rounded to the element type;  rstd = 1 / sqrt(mean(s^2) + eps) in fp32;
    y = s * rstd * weight, where round_before_weight rounds s * rstd first (as Hugging Face's LlamaRMSNorm does).
    """
    stream = x.float()
    for branch in (first, second):
        if branch is not None:
            stream = stream + branch.float()
    s = x.new_empty(0) if first is None else stream.to(x.dtype)
    stream = x.float() if first is None else s.float()
    rstd = torch.rsqrt(stream.square().mean(-1, keepdim=True) + eps)
    normed = stream * rstd
    if round_before_weight:
        normed = normed.to(x.dtype).float()
    return (normed * weight.float()).to(x.dtype).contiguous(), s.contiguous(), rstd


def backward(
    stream: Tensor,
    weight: Tensor,
    dy: Tensor,
    residual_gradient: Tensor | None,
    rstd: Tensor,
    round_before_weight: bool,
) -> tuple[Tensor, Tensor]:
    """``dx`` [..., D] and ``dw`` [D].

    dx = rstd * (dy * weight - xhat * mean(dy * weight * xhat)) [+ residual_gradient], with xhat = stream * rstd;
    dw = sum over rows of dy * xhat.
    """
    xhat = stream.float() * rstd
    dxhat = dy.float() * weight.float()
    dx = rstd * (dxhat - xhat * (dxhat * xhat).mean(-1, keepdim=True))
    if residual_gradient is not None:
        dx = dx + residual_gradient.float()
    normed = xhat.to(stream.dtype).float() if round_before_weight else xhat
    dw = (dy.float() * normed).reshape(-1, stream.shape[-1]).sum(0)
    return dx.to(stream.dtype).contiguous(), dw.to(weight.dtype)
