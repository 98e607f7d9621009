"""Which path the kernels take on this machine, and why."""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Literal


@dataclass(frozen=True)
class Backend:
    """``name`` is "cupy" (the CUDA kernels), "reference" (the same functions in PyTorch) or "none" (no PyTorch)."""

    name: Literal["cupy", "reference", "none"]
    reason: str


@cache
def backend() -> Backend:
    """The path that an op takes for a tensor on the GPU; tensors on the CPU always take the reference.

    Found once per process. PyTorch and CuPy are imported here, not before.
    """
    if find_spec("torch") is None:
        return Backend("none", "PyTorch is not installed: pip install '.[train]' in flopcast's folder")
    torch = import_module("torch")
    if not torch.cuda.is_available():
        return Backend("reference", "PyTorch sees no CUDA device")
    if torch.version.hip:
        return Backend("reference", "the kernels are CUDA and this PyTorch is built for ROCm")
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return Backend("reference", f"the kernels need compute capability 8.0 and this GPU has {capability}")
    if find_spec("cupy") is None:
        return Backend("reference", "CuPy is not installed: pip install '.[gpu-cuda13]' (or 12) in flopcast's folder")
    try:
        cupy = import_module("cupy")
        cupy.RawKernel('extern "C" __global__ void probe() {}', "probe").compile()
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        return Backend("reference", f"CuPy cannot compile here: {type(error).__name__}: {first_line}")
    return Backend("cupy", f"CuPy {cupy.__version__} on {torch.cuda.get_device_name()}")
