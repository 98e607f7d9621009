"""One rank of a cluster that is not there: PyTorch's fake process group, fake tensors, and a log of what they do.

Every operation runs on shapes alone, so that the engine's own code for hundreds of ranks and billions of parameters
executes in one process in seconds. What it asks of the network is read where every collective must pass, in PyTorch's
dispatcher, and memory is counted from the storages that its operations make and drop.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import TorchDispatchMode

from flopcast.errors import InputError

# Each collective of the dispatcher: our name for it, and which argument is the full tensor.
_COLLECTIVES = {
    "c10d::allreduce_": ("all_reduce", 0),
    "c10d::_allgather_base_": ("all_gather", 0),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", 1),
    "c10d::broadcast_": ("broadcast", 0),
    "c10d::send": ("point_to_point", 0),
}
# What moves no data that a forecast could count, and the other end of what another rank sends.
_SILENT = ("c10d::barrier", "c10d::monitored_barrier_", "c10d::recv_")


@contextmanager
def fake_cluster(num_ranks: int, rank: int = 0) -> Iterator[None]:
    """Make this process one of ``num_ranks`` while it holds. Raises InputError inside a process group."""
    if dist.is_initialized():
        raise InputError("a process group is already running; verify in a process of its own, not under torchrun")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=num_ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Tensors made while it holds have a shape and no memory."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@dataclass(frozen=True)
class Issued:
    """One collective that the engine issued: bytes of the full tensor, and the ranks of its group.

    ``to``: of a send, the place in the group of the rank that receives it.
    """

    collective: str
    tensor_bytes: int
    ranks: tuple[int, ...]
    phase: str
    to: int | None = None


@dataclass
class Recorder(TorchDispatchMode):
    """While entered: every collective in ``issued``, and the bytes of all storages made since, now and at the peak.

    A collective belongs to the backward while autograd runs it, else to the forward, or to ``phase`` where that is set.
    What DTensor makes to learn the shape of an operation's result, tensors of the whole shape, is none of the engine's.
    """

    issued: list[Issued] = field(default_factory=list)
    phase: str = ""
    live_bytes: int = 0
    peak_bytes: int = 0
    _sizes: dict[int, int] = field(default_factory=dict)
    _looking: bool = True

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __enter__(self) -> "Recorder":
        self._resize = torch.UntypedStorage.resize_
        recorder = self

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            result = recorder._resize(storage, size)
            recorder.see(storage)
            return result

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
        # DTensor of torch 2.13 enters this lock, by default one that does nothing, around all that it only tries.
        self._lock = getattr(ShardingPropagator, "_fake_mode_lock", nullcontext())
        ShardingPropagator._fake_mode_lock = _LookingAway(self)  # type: ignore[assignment]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        ShardingPropagator._fake_mode_lock = self._lock
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # comes back as what it does to this rank's part
        if operator is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # as FakeTensorMode would answer: two calls of three ask for it
        name = operator.name().split(".")[0]
        if name.startswith(("c10d::", "_c10d_functional::")):
            self._log(name, args)
        if name == "aten::_local_scalar_dense" and isinstance(args[0], FakeTensor):
            return 1  # the one number asked for: a pipeline's stages vote whether the shapes they were given hold
        result = operator(*args, **(kwargs or {}))
        if not self._looking:
            return result
        for value in result if isinstance(result, list | tuple) else (result,):
            if isinstance(value, torch.Tensor):
                self.see(value.untyped_storage())
        return result

    def see(self, storage: torch.UntypedStorage) -> None:
        """Count a storage at its present size, and forget it when it is dropped."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self._sizes:
            weakref.finalize(storage, self._forget, key)
        self.live_bytes += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def reset_peak(self) -> None:
        """Measure the peak from here on."""
        self.peak_bytes = self.live_bytes

    def _forget(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key, 0)

    def _log(self, name: str, args: Any) -> None:
        if name in _SILENT:
            return
        if name not in _COLLECTIVES:
            raise NotImplementedError(f"the engine issued {name}, which is not counted; add it to _COLLECTIVES")
        collective, which = _COLLECTIVES[name]
        tensors = args[which] if isinstance(args[which], list) else [args[which]]
        group = next(arg for arg in args if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type()))
        ranks = tuple(dist.get_process_group_ranks(dist.ProcessGroup.unbox(group)))
        in_backward = torch._C._current_graph_task_id() != -1
        phase = self.phase or ("backward" if in_backward else "forward")
        to = args[2] if collective == "point_to_point" else None
        self.issued.append(Issued(collective, sum(t.nbytes for t in tensors), ranks, phase, to))


@dataclass
class _LookingAway:
    """While entered, the recorder counts no tensors."""

    recorder: Recorder

    def __enter__(self) -> None:
        self.recorder._looking = False

    def __exit__(self, *exception: Any) -> None:
        self.recorder._looking = True
