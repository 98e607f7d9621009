"""The CUDA kernels of RMSNorm on tensors: same arguments and results as :mod:`flopcast.kernels.rmsnorm.reference`."""

import numpy as np
import torch
from torch import Tensor

from flopcast.kernels import launch
from flopcast.kernels.checks import element_type
from flopcast.kernels.rmsnorm import variant


def forward(
    x: Tensor, first: Tensor | None, second: Tensor | None, weight: Tensor, eps: float, round_before_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One launch that reads every row once."""
    hidden = x.shape[-1]
    y = launch.dense_like(x)
    s = torch.empty_like(y) if first is not None else x.new_empty(0)
    rstd = x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
    rows = rstd.numel()
    if rows:
        addends = (first is not None) + (second is not None)
        chosen = variant.forward(element_type(x), hidden, addends, round_before_weight)
        tensors = [launch.dense(t) for t in (x, first, second, weight)]
        numbers = (np.int32(rows), np.float32(eps))
        launch.launch(chosen, (-(-rows // chosen["ROWS"]), 1), (*tensors, s, y, rstd, *numbers), x.device)
    return y, s, rstd


def backward(
    stream: Tensor,
    weight: Tensor,
    dy: Tensor,
    residual_gradient: Tensor | None,
    rstd: Tensor,
    round_before_weight: bool,
) -> tuple[Tensor, Tensor]:
    """A persistent launch, then a small one that adds up the blocks' weight gradients [blocks, D] in fp32."""
    hidden, rows = stream.shape[-1], rstd.numel()
    dx = launch.dense_like(stream)
    if not rows:
        return dx, torch.zeros_like(weight)
    dw = torch.empty_like(weight)
    shared_bytes = min(variant.SHARED_BYTES, launch.most_shared_bytes(stream.device))
    with_residual = residual_gradient is not None
    chosen = variant.backward(element_type(stream), hidden, with_residual, round_before_weight, shared_bytes)
    resident = chosen["MIN_BLOCKS"] * launch.num_multiprocessors(stream.device)
    blocks = _balanced(-(-rows // chosen["ROWS"]), resident)
    partial = stream.new_empty(blocks, hidden, dtype=torch.float32)
    tensors = [launch.dense(t) for t in (stream, weight, dy, residual_gradient)]
    launch.launch(chosen, (blocks, 1), (*tensors, rstd, dx, partial, np.int32(rows)), stream.device)
    summed = variant.weight_gradient(element_type(stream), hidden)
    grid = (-(-hidden // variant.WEIGHT_GRADIENT_COLUMNS), 1)
    launch.launch(summed, grid, (partial, dw, np.int32(blocks)), stream.device)
    return dx, dw


def _balanced(turns: int, resident: int) -> int:
    """Blocks that take ``turns`` in as few waves as ``resident`` ones would, and equally many each or one less."""
    waves = -(-turns // resident)
    return -(-turns // waves)
