"""CuPy as flopcast uses it: every launch is checked as the driver would, and run from its source by the emulator."""

import fcntl
import os
import re
import sys
import tempfile
import threading
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from cuda_stand_in.streams import Device

from flopcast.kernels.emulator import loader
from flopcast.kernels.variant import Variant

launches: list[str] = []
SHARED_BYTES = 48 * 1024  # that a kernel may have without asking for more
MOST_SHARED_BYTES = 227 * 1024
NUMBERS = {"int": np.int32, "long long": np.int64, "float": np.float32}
_running = threading.Lock()


@cache
def _loaded(variant: Variant, code: str) -> loader.Emulated:
    """Built by one rank, while the others that want the same wait."""
    with (Path(tempfile.gettempdir()) / f"flopcast-cuda-stand-in-{os.getuid()}" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return loader.load(variant, text=code)


class Kernel:
    """A kernel of a module, and the function that launches it."""

    num_regs = local_size_bytes = 0

    def __init__(self, code: str, name: str, options: tuple[str, ...] = ()) -> None:
        (parameters,) = (found for kernel, found in loader._KERNEL.findall(code) if kernel == name)
        self.types = [" ".join(p.split()[:-1]).replace("const ", "") for p in parameters.split(",") if p.strip()]
        self.code, self.name = code, name
        self.constants = tuple(re.match("-D(.*)=(.*)", o).groups() for o in options if o.startswith("-D"))  # type: ignore[union-attr]
        self.max_dynamic_shared_size_bytes = SHARED_BYTES

    @property
    def kernel(self) -> "Kernel":
        return self

    def compile(self) -> None:
        pass

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], values: list[Any], shared: int, stream: "Stream"
    ) -> None:
        assert all(1 <= n <= most for n, most in zip(grid, (2**31 - 1, 65535), strict=True)), (self.name, grid)
        assert 1 <= block[0] <= 1024, (self.name, block)
        assert shared <= self.max_dynamic_shared_size_bytes <= MOST_SHARED_BYTES, (self.name, shared)
        assert stream.pointer == torch._C._cuda_getCurrentRawStream(0), "not the current stream"
        assert len(values) == len(self.types), (self.name, len(values))
        for value, declared in zip(values, self.types, strict=True):
            assert type(value) is (int if "*" in declared else NUMBERS[declared]), (self.name, declared, type(value))
        launches.append(self.name)
        variant = Variant("kernel.cu", self.name, self.constants, block[0], shared)
        with _running:
            _loaded(variant, self.code)((grid[0], grid[1]), values)


class Module:
    """The kernels of one source."""

    def __init__(self, *, code: str, options: tuple[str, ...], backend: str) -> None:
        assert backend == "nvrtc"
        self.code, self.options = code, options

    def get_function(self, name: str) -> Kernel:
        return Kernel(self.code, name, self.options)


class Stream:
    """A stream of PyTorch's."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer

    @classmethod
    def from_external(cls, stream: Any) -> "Stream":
        version, pointer = stream.__cuda_stream__()
        assert version == 0
        return cls(pointer)


_cupy: Any = ModuleType("cupy")
_cupy.__spec__ = ModuleSpec("cupy", None)
_cupy.__version__ = "14.0.0"
_cupy.RawKernel, _cupy.RawModule = Kernel, Module
_cupy.cuda = SimpleNamespace(Stream=Stream, Device=Device)
sys.modules["cupy"] = _cupy
