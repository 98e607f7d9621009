"""Cross-entropy over a vocabulary that tensor-parallel ranks may share, with z-loss."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from flopcast.trainer.tensor_parallel import TensorParallel

IGNORED = -100  # a target that does not count, as in torch.nn.functional.cross_entropy


def cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    z_loss: float = 0.0,
    parallel: TensorParallel | None = None,
    first_row: int = 0,
    compiled: bool = False,
) -> torch.Tensor:
    """Mean over counted tokens of  log Z - logit[target] + z_loss (log Z)^2,  Z = sum of exp(logit) over V.

    ``logits`` [T, V or this rank's rows of V from ``first_row`` on], ``targets`` [T] int64, IGNORED ones left out; a
    scalar in fp32, 0 where no token counts. Shared logits cost two all-reduces of fp32: the maxima [T], then the sums
    and the targets' logits [2, T]. z-loss: Chowdhery et al. 2022, arXiv:2204.02311, section 5. 6 bytes per 16-bit
    logit are alive at the peak.

    ``compiled``: torch.compile fuses it into a pass or two over 16-bit logits that nobody shares, and their gradient
    takes their place: 2 bytes per logit are alive, and after the backward ``logits`` hold their gradient.
    """
    if compiled:
        return _Fused.apply(logits, targets, z_loss)  # type: ignore[no-any-return, no-untyped-call]
    group = parallel.group if parallel else None
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


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, z_loss: float) -> torch.Tensor:
        log_z, picked = _compiled(_log_z_and_picked)(logits, targets)
        counted = targets != IGNORED
        number = counted.sum().clamp(min=1)
        ctx.save_for_backward(logits, targets, log_z, counted / number)
        ctx.z_loss = z_loss
        return torch.where(counted, log_z - picked + z_loss * log_z.square(), 0.0).sum() / number

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, targets, log_z, share = ctx.saved_tensors
        weight = share * gradient
        _compiled(_gradient_in_place)(logits, targets, log_z, (1 + 2 * ctx.z_loss * log_z) * weight, weight)
        return logits, None, None


def _log_z_and_picked(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log of the sum of exponentials of each row in fp32, and the target's logit (any where there is no target)."""
    scores = logits.float()
    highest = scores.amax(-1)
    log_z = (scores - highest[:, None]).exp().sum(-1).log() + highest
    return log_z, scores.gather(1, targets.clamp(min=0)[:, None])[:, 0]


def _gradient_in_place(
    logits: torch.Tensor, targets: torch.Tensor, log_z: torch.Tensor, slope: torch.Tensor, weight: torch.Tensor
) -> None:
    """Write slope * softmax - weight * [this is the target] over the logits, rounded once."""
    columns = torch.arange(logits.shape[1], device=logits.device)
    gradient = (logits.float() - log_z[:, None]).exp() * slope[:, None]
    logits.copy_(gradient - torch.where(columns == targets[:, None], weight[:, None], 0.0))


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)
