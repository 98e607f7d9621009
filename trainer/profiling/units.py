"""Gathering and reducing one sharded unit through the engine: the collective with the casts and copies around it.

On a GPU these run beside it on streams of their own; where the host is the device they add to it.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from flopcast.kernels.timing import summary

Record = dict[str, Any]
ENGINE = "fsdp2"
WARM_UP = 2


class Unit(nn.Module):
    """One parameter of D x D elements, hardly used, so that what is timed is what sharding does with it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, size))

    def forward(self) -> torch.Tensor:
        """A number that depends on the whole parameter's shape and one row of its values."""
        return self.weight[0].sum()


def measure(size: int, device: torch.device, samples: int, nodes: int) -> list[Record]:
    """All-gather in bf16 and reduce-scatter in fp32 of ``size`` x ``size`` elements; the mean over ranks of each call.

    Collective over all ranks.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    with torch.device(device):
        unit = Unit(size)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    fully_shard(unit, mesh=mesh, reshard_after_forward=False, mp_policy=policy)
    assert isinstance(unit, FSDPModule)
    losses: list[torch.Tensor] = []

    def gather() -> None:
        unit.unshard()

    def reduce() -> None:
        losses.pop().backward()  # type: ignore[no-untyped-call]

    gathered, reduced = [], []
    for _ in range(samples + WARM_UP):
        unit.reshard()
        gathered.append(_seconds(gather, device))
        losses.append(unit())
        reduced.append(_seconds(reduce, device))
        unit.zero_grad()
    return [
        _record("all_gather", 2 * size**2, gathered, device, nodes),
        _record("reduce_scatter", 4 * size**2, reduced, device, nodes),
    ]


def _seconds(function: Callable[[], None], device: torch.device) -> float:
    dist.barrier()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def _record(name: str, num_bytes: int, seconds: list[float], device: torch.device, nodes: int) -> Record:
    mean = torch.tensor(seconds[WARM_UP:], dtype=torch.float64, device=device)
    dist.all_reduce(mean)
    timed = summary((mean / dist.get_world_size()).tolist())
    ranks = dist.get_world_size()
    arguments = {"collective": name, "bytes": num_bytes, "ranks": ranks, "nodes": nodes, "through": ENGINE}
    return {"kind": "collective", "arguments": arguments, **vars(timed), "bytes": float(num_bytes)}
