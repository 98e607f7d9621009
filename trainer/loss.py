"""Cross-entropy over a vocabulary that tensor-parallel ranks may share, with z-loss."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from flopcast.kernels.cross_entropy import op, reference
from flopcast.trainer.tensor_parallel import TensorParallel

IGNORED = -100  # a target that does not count, as in torch.nn.functional.cross_entropy


def cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    z_loss: float = 0.0,
    parallel: TensorParallel | None = None,
    first_row: int = 0,
    *,
    compiled: bool = False,
    fused: bool = False,
) -> torch.Tensor:
    """Mean over counted tokens of  log Z - logit[target] + z_loss (log Z)^2,  Z = sum of exp(logit) over V.

    ``logits`` [T, V or this rank's rows of V from ``first_row`` on], ``targets`` [T] int64, IGNORED ones left out; a
    scalar in fp32, 0 where no token counts. Shared logits cost two all-reduces of fp32: the maxima [T], then the sums
    and the targets' logits [2, T]. z-loss: Chowdhery et al. 2022, arXiv:2204.02311, section 5. 6 bytes per 16-bit
    logit are alive at the peak.

    Of logits that nobody shares, ``compiled`` gives two passes to torch.compile and ``fused`` to the kernels of
    ``kernels/cross_entropy``. The gradient then takes the logits' place: 2 bytes per 16-bit logit are alive, and after
    the backward ``logits`` hold their gradient.
    """
    group = parallel.group if parallel else None
    if group is None and (compiled or fused):
        return _InPlace.apply(logits, targets, z_loss, compiled)  # type: ignore[no-any-return, no-untyped-call]
    return _CrossEntropy.apply(logits, targets, z_loss, group, first_row)  # type: ignore[no-any-return, no-untyped-call]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        targets: torch.Tensor,
        z_loss: float,
        group: dist.ProcessGroup | None,
        first_row: int,
    ) -> torch.Tensor:
        scores = logits.to(torch.float32, copy=True)
        highest = scores.amax(-1)
        if group is not None:
            dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
        scores -= highest[:, None]
        row = targets - first_row
        here = (row >= 0) & (row < scores.shape[1])
        row = torch.where(here, row, 0)
        picked = torch.where(here, scores.gather(1, row[:, None])[:, 0], 0.0)
        totals = torch.stack([scores.exp_().sum(-1), picked])
        if group is not None:
            dist.all_reduce(totals, group=group)
        total, picked = totals.unbind()
        log_total = total.log()
        log_z = log_total + highest
        counted = targets != IGNORED
        number = counted.sum().clamp(min=1)
        loss = torch.where(counted, log_total - picked + z_loss * log_z.square(), 0.0).sum() / number
        scores /= total[:, None]
        ctx.save_for_backward(scores, row, here, counted / number, 1 + 2 * z_loss * log_z)
        ctx.dtype = logits.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        scores, row, here, share, steepness = ctx.saved_tensors
        scores = scores.mul_(steepness[:, None])
        scores.scatter_add_(1, row[:, None], -here[:, None].to(scores.dtype))
        scores.mul_((share * gradient)[:, None])
        return scores.to(ctx.dtype), None, None, None, None


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, z_loss: float, compiled: bool) -> torch.Tensor:
        first_pass = _compiled(reference.log_z_and_picked) if compiled else op.log_z_and_picked
        log_z, picked = first_pass(logits, targets)
        counted = targets != IGNORED
        number = counted.sum().clamp(min=1)
        ctx.save_for_backward(logits, targets, log_z, counted / number)
        ctx.z_loss, ctx.compiled = z_loss, compiled
        return torch.where(counted, log_z - picked + z_loss * log_z.square(), 0.0).sum() / number

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        logits, targets, log_z, share = ctx.saved_tensors
        weight = share * gradient
        second_pass = _compiled(reference.gradient_in_place) if ctx.compiled else op.gradient_in_place
        second_pass(logits, targets, log_z, (1 + 2 * ctx.z_loss * log_z) * weight, weight)
        return logits, None, None, None


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)
