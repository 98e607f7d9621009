"""What ranks that share every layer exchange: Megatron-LM's conjugate pairs, with and without sequence parallelism.

Between ``enter`` and ``leave`` a rank works on all tokens with its share of the matrices; outside, on all tokens or,
under sequence parallelism, on its share of them. One pair costs one all-reduce each way, or an all-gather and a
reduce-scatter each way (Shoeybi et al. 2019, arXiv:1909.08053, figure 3; Korthikanti et al. 2022, arXiv:2205.05198,
figure 5). Without a group both do nothing.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from flopcast.collectives.running.pytorch import all_gather_single, reduce_scatter_single


@dataclass(frozen=True)
class TensorParallel:
    """The ranks that share a layer: none by default. ``sequence`` splits the residual stream's tokens over them."""

    group: dist.ProcessGroup | None = None
    sequence: bool = False

    @property
    def size(self) -> int:
        """Ranks that share a layer."""
        return 1 if self.group is None else self.group.size()

    @property
    def rank(self) -> int:
        """The place of this rank among them."""
        return 0 if self.group is None else self.group.rank()

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """[B, S or S/tp, D] to the same [B, S, D] on every rank; gradients are summed over the ranks."""
        if self.group is None:
            return x
        return _Enter.apply(x, self.group, self.sequence)  # type: ignore[no-any-return, no-untyped-call]

    def leave(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks of partial results [B, S, D], as [B, S or S/tp, D]."""
        if self.group is None:
            return x
        return _Leave.apply(x, self.group, self.sequence)  # type: ignore[no-any-return, no-untyped-call]

    def own_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """The tokens that this rank holds of [B, S, ...] under sequence parallelism, else all."""
        return x.chunk(self.size, dim=1)[self.rank] if self.sequence else x


def local(parameter: torch.Tensor) -> torch.Tensor:
    """The part of a parameter on this rank; what its gradient lacks is added once, after the last backward."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup, sequence: bool) -> torch.Tensor:
        ctx.group, ctx.sequence = group, sequence
        return _gathered(x, group) if sequence else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return (_scattered if ctx.sequence else _summed)(gradient, ctx.group), None, None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup, sequence: bool) -> torch.Tensor:
        ctx.group, ctx.sequence = group, sequence
        return (_scattered if sequence else _summed)(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _gathered(gradient, ctx.group) if ctx.sequence else gradient, None, None


def _summed(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _gathered(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """[B, S/n, D] on every rank to [B, S, D]."""
    batch, length, size = x.shape
    parts = x.new_empty(group.size(), batch, length, size)
    all_gather_single(parts.view(-1), x.contiguous().view(-1), group=group)
    return parts.transpose(0, 1).reshape(batch, group.size() * length, size)


def _scattered(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The sum over the ranks of [B, S, D], of which each keeps [B, S/n, D]."""
    batch, length, size = x.shape
    parts = x.reshape(batch, group.size(), length // group.size(), size).transpose(0, 1).contiguous()
    total = x.new_empty(parts.shape[1:])
    reduce_scatter_single(total.view(-1), parts.view(-1), group=group)
    return total
