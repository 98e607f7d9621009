"""The processes of a run: one alone, or those that torchrun started, each with its device."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from flopcast.collectives.running.pytorch import leave_process_group
from flopcast.errors import InputError

# What gloo, NCCL and the store say when the other side of a connection is gone.
_LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|timed out|timeout|socket|recv|remote process|was aborted"
    r"|monitoredbarrier",
    re.I,
)


class TrainingStoppedError(RuntimeError):
    """The run cannot go on, through no fault of its settings: a loss that is not finite, a lost rank."""


class LostRankError(TrainingStoppedError):
    """Another rank is gone, or does not answer."""


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the process group of torchrun's environment, or one of this process alone; yields the device.

    CPU tensors travel by gloo and CUDA tensors by NCCL. Raises InputError where there are fewer GPUs than ranks.
    """
    device = _device()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend)
    else:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        yield device
    finally:
        leave_process_group()


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank >= torch.cuda.device_count():
        raise InputError(
            f"local rank {local_rank} has no GPU: this node has {torch.cuda.device_count()}; start as many processes "
            "per node, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def set_timeout(seconds: float) -> None:
    """How long every group of ranks made so far waits in a collective. PyTorch's own is 30 minutes, NCCL's 10."""
    # The private name that PyTorch 2.15 made public.
    set_of_group = getattr(dist, "set_timeout", None) or distributed_c10d._set_pg_timeout
    for group in distributed_c10d._world.pg_map:
        set_of_group(timedelta(seconds=seconds), group)


def gpus_per_node() -> int:
    """Ranks that torchrun started on this node; all of them without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))


def is_lost_rank(error: BaseException) -> bool:
    """Whether an error of a collective means that another rank is gone."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
        return True
    return isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None
