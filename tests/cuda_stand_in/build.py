"""The stand-in's C++, compiled once for each PyTorch, or the reason why it cannot be. Does not import torch."""

import hashlib
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from flopcast.kernels.emulator.loader import compiler

SOURCE = Path(__file__).resolve().with_name("device.cpp")
TORCH = "2.13."  # whose private interfaces device.cpp is written for
# Not optimised: tensors are small.
FLAGS = ("-std=c++20", "-O0", "-fPIC", "-shared", "-w")


def _torch() -> Path:
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def unavailable() -> str | None:
    """Why there is no stand-in here, in words; None where there is one."""
    if sys.platform != "linux":
        return "the stand-in for CUDA is built for Linux"
    if not version("torch").startswith(TORCH):
        return f"the stand-in for CUDA is written for torch {TORCH}x, this is {version('torch')}"
    if (_torch() / "lib" / "libtorch_cuda.so").exists() or (_torch() / "lib" / "libtorch_hip.so").exists():
        return "the stand-in for CUDA goes into a PyTorch without CUDA"
    if compiler() is None:
        return "no g++ to build the stand-in for CUDA with"
    return None


def library() -> Path:
    """The shared object in the system's temporary directory. Raises RuntimeError with the compiler's words."""
    root = _torch()
    include = (f"-I{root}/include", f"-I{root}/include/torch/csrc/api/include")
    libraries = (f"-L{root}/lib", f"-Wl,-rpath,{root}/lib", "-lc10", "-ltorch_cpu")
    parts = (SOURCE.read_text(encoding="utf-8"), version("torch"), *FLAGS, *include, *libraries)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"flopcast-cuda-stand-in-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{digest}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / "device.so"
            command = [compiler() or "g++", *FLAGS, *include, str(SOURCE), "-o", str(made), *libraries]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{SOURCE.name} does not compile: {done.stderr[:2000]}")
            made.replace(target)
    return target
