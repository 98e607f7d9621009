"""Tensors of a device "cuda" in host memory, by the library that ``device.cpp`` became.

Every operator runs PyTorch's kernel for the CPU on the same memory, with autograd and the dispatcher above it as on a
GPU. As there, tensors of two devices do not mix, and what the host must wait for is noted in ``waiting.waits``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from cuda_stand_in.waiting import wait
from torch import Tensor

native = torch.ops.cuda_stand_in

INDEXING = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")
# The size of what they return is known to the device alone.
OF_UNKNOWN_SIZE = ("aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal")


class Call:
    """One call of an operator: its tensors as the host's, and what the host makes of them as the device's."""

    def __init__(self, operator: Any) -> None:
        self.operator, self.schema = operator, operator._schema
        self.name: str = operator._schema.name
        self.device: torch.device | None = None
        self.target: torch.device | None = None
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def run(self, arguments: Sequence[Any], options: dict[str, Any]) -> Any:
        self._note_waits(arguments)
        declared = self.schema.arguments
        # A number in the place of a tensor is wrapped by the bindings, not by the dispatcher.
        wrapped = [
            torch.tensor(a) if isinstance(a, int | float) and str(d.type) == "Tensor" else a
            for a, d in zip(arguments, declared, strict=False)
        ]
        on_host = {name: self._to_host(value) for name, value in options.items()}
        if on_host.get("pin_memory"):
            on_host["pin_memory"] = False
        made = self.operator(*(self._to_host(a) for a in wrapped), **on_host)
        for ours, host in self.pairs:
            if host.shape != ours.shape or host.stride() != ours.stride() or _address(host) != _address(ours):
                _take_over(ours, host)
        returns = self.schema.returns
        if len(returns) < 2:
            return self._to_device(made, returns[0]) if returns else None
        return tuple(self._to_device(m, r) for m, r in zip(made, returns, strict=True))

    def _to_host(self, value: Any) -> Any:
        if isinstance(value, torch.device):
            self.target = value
            return torch.device("cpu")
        if isinstance(value, list | tuple):
            return [self._to_host(v) for v in value]
        if not isinstance(value, Tensor):
            return value
        if not value.is_cuda:
            if value.dim() and self.name in INDEXING:
                wait(f"{self.name} by a host tensor")
            elif value.dim() and self.name.startswith("aten::"):
                raise RuntimeError(
                    f"{self.name}: expected all tensors on one device, {list(value.shape)} is on the CPU"
                )
            return value
        if self.device is None:
            self.device = value.device
        elif value.device != self.device:
            raise RuntimeError(f"{self.name}: tensors on {self.device} and {value.device}")
        host = native.to_host(value)
        self.pairs.append((value, host))
        return host

    def _to_device(self, made: Any, declared: Any) -> Any:
        if isinstance(made, list | tuple):
            return [self._to_device(m, declared) for m in made]
        if not isinstance(made, Tensor):
            return made
        for ours, host in self.pairs:
            if made is host:
                return ours
            if _address(host) and _address(host) == _address(made):
                return native.view_of(ours, made)
        device = self.target or self.device or torch.device("cuda")
        return made if device.type == "cpu" else native.to_device(made, index_of(device))

    def _note_waits(self, arguments: Sequence[Any]) -> None:
        by_mask = self.name in INDEXING and any(
            isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in arguments[1]
        )
        if self.name in OF_UNKNOWN_SIZE or by_mask:
            wait(self.name)


def _note_copy(source: Tensor, target: torch.device, non_blocking: bool) -> None:
    """A copy is waited for unless it asks not to be and the host's end is page-locked; one to the host is read next."""
    if source.is_cuda and target.type == "cpu" and not non_blocking:
        wait(f"a copy of {list(source.shape)} to the host")
    if not source.is_cuda and target.type == "cuda":
        if not is_pinned(source):
            wait(f"a copy of {list(source.shape)} from pageable memory")
        elif not non_blocking:
            wait(f"a blocking copy of {list(source.shape)} to the device")


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _take_over(ours: Tensor, host: Tensor) -> None:
    """The sizes that an operator gave its result, and its memory where it took other."""
    if _address(host) == _address(ours):
        ours.set_(ours.untyped_storage(), host.storage_offset(), host.shape, host.stride())
    else:
        ours.resize_(host.shape)
        native.to_host(ours).copy_(host)


def index_of(device: torch.device | str | int | None) -> int:
    """Of the device named, or of the current one."""
    if isinstance(device, int):
        return device
    index = None if device is None else torch.device(device).index
    return int(native.current_device()) if index is None else index


def _fallback(operator: Any, *arguments: Any, **options: Any) -> Any:
    return Call(operator).run(arguments, options)


def _empty_strided(
    size: Sequence[int], stride: Sequence[int], dtype: Any = None, device: Any = None, **form: Any
) -> Tensor:
    made: Tensor = native.empty_strided(size, stride, dtype or torch.get_default_dtype(), index_of(device))
    return made


def _empty(size: Sequence[int], dtype: Any = None, device: Any = None, **form: Any) -> Tensor:
    memory_format = form.get("memory_format") or torch.contiguous_format
    stride = torch.empty(size, device="meta", memory_format=memory_format).stride()
    return _empty_strided(size, stride, dtype, device=device)


def _item(tensor: Tensor) -> Any:
    wait("item")
    return native.to_host(tensor).item()


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    _note_copy(source, target.device, non_blocking)
    target_host, source_host = (native.to_host(t) if t.is_cuda else t for t in (target, source))
    target_host.copy_(source_host)
    return target


def _pinned(tensor: Tensor, device: Any = None) -> Tensor:
    made = tensor.clone()
    made._is_page_locked = True  # type: ignore[attr-defined]
    return made


def is_pinned(tensor: Tensor, device: Any = None) -> bool:
    """Whether it came of ``pin_memory``."""
    return getattr(tensor, "_is_page_locked", False)


def _resize_storage(self: torch.UntypedStorage, size: int) -> None:
    if self.device.type == "cuda":
        native.resize_storage(torch.empty(0, dtype=torch.uint8, device=self.device).set_(self), size)
    else:
        _resize_host_storage(self, size)


_every = torch.library.Library("_", "IMPL")
_every.fallback(_fallback, "CUDA")
_aten = torch.library.Library("aten", "IMPL")
for _name, _function in (
    ("empty.memory_format", _empty),
    ("empty_strided", _empty_strided),
    ("_local_scalar_dense", _item),
    ("copy_", _copy),
):
    _aten.impl(_name, _function, "CUDA")
_resize_host_storage = torch.UntypedStorage.resize_
torch.UntypedStorage.resize_ = _resize_storage  # type: ignore[assignment]
torch.Tensor.pin_memory = _pinned  # type: ignore[assignment]
torch.Tensor.is_pinned = is_pinned  # type: ignore[assignment]
torch.Tensor.record_stream = lambda tensor, stream: None  # type: ignore[assignment]
