"""NCCL's part of torch.distributed for tensors of the stand-in: gloo on their memory, and AVG, which gloo has not."""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from cuda_stand_in.device import native
from torch import Tensor
from torch._C._distributed_c10d import AllreduceOptions, ProcessGroupGloo, ReduceOp, _create_work_from_future
from torch.futures import Future

NAME = "nccl-stand-in"


def _host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return native.to_host(value) if value.is_cuda else value
    return [_host(v) for v in value]


def _done(value: Any) -> Any:
    future: Future[Any] = Future()
    future.set_result(value)
    return _create_work_from_future(future)


class Group(dist.ProcessGroup):
    """Done when it returns; what is waited for is the other ranks, not the device."""

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self.gloo = ProcessGroupGloo(store, rank, size, timeout)

    def getBackendName(self) -> str:  # noqa: N802
        return NAME

    @property
    def group_name(self) -> str:
        return dist.distributed_c10d._world.pg_names[self]

    def _reduced(self, tensor: Tensor, operation: Any) -> None:
        kind = operation.op if isinstance(operation, ReduceOp) else operation
        options = AllreduceOptions()
        options.reduceOp = ReduceOp.SUM if kind == ReduceOp.AVG else kind
        host = _host(tensor)
        self.gloo.allreduce([host], options).wait()
        if kind == ReduceOp.AVG:
            host.div_(self.size())

    def allreduce(self, tensors: Sequence[Tensor], opts: Any = None) -> Any:
        for tensor in tensors:
            self._reduced(tensor, opts.reduceOp if opts else ReduceOp.SUM)
        return _done(tensors)

    allreduce_coalesced = allreduce

    def allgather(self, out: Any, tensors: Any, opts: Any = None) -> Any:
        self.gloo.allgather(_host(out), _host(tensors)).wait()
        return _done(out)

    def _allgather_base(self, out: Tensor, tensor: Tensor, opts: Any = None) -> Any:
        parts = [[*_host(out).view(-1).chunk(self.size())]]
        self.gloo.allgather(parts, [_host(tensor).reshape(-1)]).wait()
        return _done(out)

    def _reduce_scatter_base(self, out: Tensor, tensor: Tensor, opts: Any) -> Any:
        whole = _host(tensor).clone()
        self._reduced(whole, opts.reduceOp)
        _host(out).view(-1).copy_(whole.view(-1).chunk(self.size())[self.rank()])
        return _done(out)

    all_gather_single, reduce_scatter_single = _allgather_base, _reduce_scatter_base

    def barrier(self, opts: Any = None) -> Any:
        self.gloo.barrier().wait()
        return _done(None)


def _create(store: Any, rank: int, size: int, timeout: timedelta) -> Group:
    return Group(store, rank, size, timeout)


def _init_process_group(backend: str | None = None, **options: Any) -> None:
    assert backend in ("nccl", "gloo", "cpu:gloo,cuda:nccl"), backend
    if "store" not in options:
        size = int(os.environ["WORLD_SIZE"])
        store = dist.FileStore(os.environ["STAND_IN_STORE"], size)
        options = {"store": store, "rank": int(os.environ["RANK"]), "world_size": size}
    _init(NAME, **options)


dist.Backend.register_backend(NAME, _create, devices=["cpu", "cuda"])
_init = dist.init_process_group
dist.init_process_group = _init_process_group
