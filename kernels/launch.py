"""Launching a variant on PyTorch's tensors and stream through CuPy, without copies."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch

from flopcast.kernels.variant import ACCESS_BYTES, Variant

_NUMBERS = frozenset((np.int32, np.int64, np.float32))


def launch(
    variant: Variant, grid: tuple[int, int], arguments: Sequence[torch.Tensor | np.generic | None], device: torch.device
) -> None:
    """Launch on the current stream of ``device``; None is a null pointer, a tensor its address.

    Numbers are NumPy scalars of the type that the kernel declares: CuPy passes a Python float as a double.
    """
    index = device.index
    if index != torch.cuda.current_device():
        with torch.cuda.device(index):
            return launch(variant, grid, arguments, device)
    # In place, and by the exact type: for a score of arguments calls or isinstance would take a microsecond.
    values = [0 if a is None else a if type(a) in _NUMBERS else a.data_ptr() for a in arguments]  # type: ignore[union-attr]
    # The raw stream is one C call; torch.cuda.current_stream() builds an object, which takes twenty times as long.
    stream = _stream(torch._C._cuda_getCurrentRawStream(index))
    _function(variant, index)(grid, (variant.threads,), values, variant.dynamic_shared_bytes, stream)
    return None


@cache
def num_multiprocessors(device: torch.device) -> int:
    """Of the GPU, for the size of a persistent grid."""
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def most_shared_bytes(device: torch.device) -> int:
    """Shared memory that one block may ask for: 163 KiB on an A100, 227 on an H100, 99 on a GPU for graphics."""
    found = torch.cuda.get_device_properties(device)
    return int(getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block))


def dense(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Dense memory that starts on 16 bytes: nearly always the tensor itself."""
    if tensor is None:
        return None
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % ACCESS_BYTES == 0 else tensor.clone()


def dense_like(tensor: torch.Tensor) -> torch.Tensor:
    """New dense memory for as many elements; torch.empty takes a microsecond longer to read a shape."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def load(variant: Variant, device_index: int) -> dict[str, int]:
    """Compile and load for one device; the registers per thread and the bytes of local memory that it came to need."""
    kernel = _kernel(variant, device_index)
    return {"registers": int(kernel.num_regs), "local_bytes": int(kernel.local_size_bytes)}


@cache
def _kernel(variant: Variant, device_index: int) -> Any:
    """Compiled and loaded once per device; CuPy also keeps the binary on disk (CUPY_CACHE_DIR)."""
    cupy = import_module("cupy")
    with cupy.cuda.Device(device_index):
        module = cupy.RawModule(code=variant.text, options=("--std=c++17", *variant.defines), backend="nvrtc")
        kernel = module.get_function(variant.kernel)
        # The 48 KiB that come unasked hold static shared memory too: rows of 6144 go just beyond them.
        if variant.dynamic_shared_bytes:
            kernel.max_dynamic_shared_size_bytes = variant.dynamic_shared_bytes
        return kernel


@cache
def _function(variant: Variant, device_index: int) -> Any:
    """The driver's handle, which launches with less ado than the kernel that holds it."""
    cupy = import_module("cupy")
    with cupy.cuda.Device(device_index):
        return _kernel(variant, device_index).kernel


@dataclass(frozen=True)
class _TorchStream:
    """A raw stream under the CUDA stream protocol."""

    pointer: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


# Kept for good: CuPy's Stream.from_external may destroy the stream in __del__, and it is PyTorch's, which makes few.
@cache
def _stream(pointer: int) -> Any:
    cuda = import_module("cupy").cuda
    # CuPy 14 warns of ExternalStream and takes the protocol in its place, which CuPy 13 lacks.
    of_protocol = getattr(cuda.Stream, "from_external", None)
    return cuda.ExternalStream(pointer) if of_protocol is None else of_protocol(_TorchStream(pointer))
