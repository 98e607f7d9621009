"""The gradients' norm and clipping, right on every mesh, in one all-reduce of one number."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate

from flopcast.trainer.transfer import to_device


@dataclass(frozen=True)
class Gradient:
    """A parameter's gradient on this rank, and how many ranks hold the same one."""

    local: torch.Tensor
    copies: int


def gradients(parameters: Iterable[torch.Tensor]) -> list[Gradient]:
    """The gradients of sharded parameters; empty shards are left out."""
    found = []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        copies = 1
        if isinstance(gradient, DTensor):
            sizes = zip(gradient.device_mesh.shape, gradient.placements, strict=True)
            for size, placement in sizes:
                copies *= size if isinstance(placement, Replicate) else 1
            gradient = gradient.to_local()
        if gradient.numel():
            found.append(Gradient(gradient, copies))
    return found


def clip(found: Sequence[Gradient], max_norm: float, device: torch.device) -> torch.Tensor:
    """sqrt(sum of squares) over every parameter of the model; gradients are scaled down to ``max_norm`` (0: never).

    A scalar in fp32, the same on every rank. Every rank of the job takes part.
    """
    total = torch.zeros((), dtype=torch.float32, device=device)
    if found:
        squares = torch.stack(torch._foreach_norm([g.local for g in found])).square()
        copies = to_device(torch.tensor([float(g.copies) for g in found]), device)
        total = total + (squares / copies).sum()
    dist.all_reduce(total)
    norm = total.sqrt()
    if max_norm and found:
        torch._foreach_mul_([g.local for g in found], (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def sum_over_tensor_ranks(parameters: Sequence[torch.Tensor], group: dist.ProcessGroup) -> None:
    """Add up, in one all-reduce, the gradients of which each tensor-parallel rank computed its own share."""
    locals_ = [g.local for g in gradients(parameters)]
    if not locals_:
        return
    flat = torch.cat([gradient.flatten() for gradient in locals_])
    dist.all_reduce(flat, group=group)
    parts = torch.split(flat, [gradient.numel() for gradient in locals_])
    torch._foreach_copy_(locals_, [part.view_as(own) for part, own in zip(parts, locals_, strict=True)])
