"""Compiles a kernel's own source for the CPU and runs it there, one fibre per CUDA thread (see cuda_on_cpu.h)."""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flopcast.kernels.variant import Variant

Argument = NDArray[Any] | np.generic | int | None
ORDERS = {"forward": 0, "reverse": 1, "random": 2}

_HEADER = Path(__file__).resolve().parent / "cuda_on_cpu.h"
_KERNEL = re.compile(r'extern "C" __global__ void(?: __launch_bounds__\([^{;]*?\))? (\w+)\(([^)]*)\) \{')
# Stale shared memory and wrong indices must show in the numbers, so nothing is optimised on undefined behaviour.
_FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-shared", "-w")
_SANITIZERS = ("-fsanitize=address,alignment", "-fsanitize-sections=shared_memory", "-fno-sanitize-recover=all", "-g")


class EmulationError(RuntimeError):
    """The kernel did what no kernel may, e.g. a barrier that not all threads reach."""


def compiler() -> str | None:
    """The C++ compiler that builds kernels for the CPU, or None where there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


class Emulated:
    """One kernel, callable with arrays (or their addresses) and NumPy scalars in the order of its CUDA parameters."""

    def __init__(self, library: ctypes.CDLL, variant: Variant) -> None:
        self._launch = getattr(library, f"emulate_{variant.kernel}")
        self._launch.restype = ctypes.c_char_p
        self._variant = variant

    def __call__(self, grid: tuple[int, int], arguments: Sequence[Argument], order: str = "forward") -> None:
        """Run all blocks of ``grid``; None is a null pointer. Raises EmulationError for a deadlock."""
        values = [_value(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        failure = self._launch(
            *(ctypes.c_uint(n) for n in (*grid, self._variant.threads)),
            ctypes.c_size_t(self._variant.dynamic_shared_bytes),
            pointers,
            ORDERS[order],
            ctypes.c_uint64(1),
        )
        if failure is not None:
            raise EmulationError(f"{self._variant.kernel}: {failure.decode()}")


def load(variant: Variant, folder: Path | None = None, sanitized: bool = False, text: str | None = None) -> Emulated:
    """Build ``variant`` (or ``text`` in the place of its source) unless ``folder`` has that very build, and load it.

    ``folder`` is by default in the system's temporary directory. A sanitized build loads only into a process that
    started with the sanitizer's library preloaded. Raises RuntimeError with the compiler's words where it refuses.
    """
    return Emulated(ctypes.CDLL(str(build(variant, folder, sanitized, text))), variant)


def build(variant: Variant, folder: Path | None = None, sanitized: bool = False, text: str | None = None) -> Path:
    """The shared object, built once for each distinct source, constants and flags."""
    program = _program(text or variant.text)
    flags = (*_FLAGS, *(_SANITIZERS if sanitized else ()), *variant.defines)
    digest = hashlib.sha256("\0".join((program, _header(), *flags)).encode()).hexdigest()[:24]
    folder = folder or Path(tempfile.gettempdir()) / f"flopcast-emulator-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{Path(variant.source).stem}-{digest}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            source, made = Path(scratch) / "kernel.cpp", Path(scratch) / "kernel.so"
            source.write_text(program, encoding="utf-8")
            command = [compiler() or "g++", *flags, f"-I{_HEADER.parent}", str(source), "-o", str(made)]
            environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
            if done.returncode != 0:
                raise RuntimeError(f"{variant.source} does not compile for the CPU: {done.stderr[:2000]}")
            made.replace(target)
    return target


def _program(text: str) -> str:
    """The shim, the kernels, and a C entry point for each kernel that unpacks its arguments."""
    entries = [
        f'extern "C" const char* emulate_{name}(unsigned grid_x, unsigned grid_y, unsigned threads, size_t shared, '
        "void** arguments, int order, uint64_t random) {\n"
        f"    return emulator::launch([](void** a) {{ emulator::call({name}, a, "
        f"std::make_index_sequence<{parameters.count(',') + 1}>()); }}, "
        "grid_x, grid_y, threads, shared, arguments, order, random);\n}\n"
        for name, parameters in _KERNEL.findall(text)
    ]
    return '#include "cuda_on_cpu.h"\n' + text + "\n" + "".join(entries)


@cache
def _header() -> str:
    return _HEADER.read_text(encoding="utf-8")


def _value(argument: Argument) -> Any:
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, int):
        return ctypes.c_void_p(argument)
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    kinds = {"float32": ctypes.c_float, "int32": ctypes.c_int32, "int64": ctypes.c_int64}
    return kinds[argument.dtype.name](argument.item())
