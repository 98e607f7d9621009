"""Compiling kernels with NVRTC where there is no GPU, and reading what the compiler says of them.

Needs ``cuda-core`` and ``nvidia-cuda-nvrtc`` from PyPI; no driver.
"""

import csv
import re
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, TextIO

from flopcast.kernels.cross_entropy import variant as cross_entropy
from flopcast.kernels.nf4 import variant as nf4
from flopcast.kernels.rmsnorm import variant as rmsnorm
from flopcast.kernels.rope import variant as rope
from flopcast.kernels.swiglu import variant as swiglu
from flopcast.kernels.variant import Variant

TABLE = Path(__file__).resolve().parent / "resources.csv"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")

_RESOURCES = re.compile(
    r"Function properties for (?P<name>\w+)[^\d]+"
    r"(?P<stack>\d+) bytes stack frame, (?P<spilled>\d+) bytes spill stores, \d+ bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture; ``shared_bytes`` are static, per block."""

    cubin: bytes
    registers: int
    shared_bytes: int
    stack_bytes: int
    spilled_bytes: int


def compile_offline(variant: Variant, architecture: str) -> Compiled:
    """Compile for ``architecture`` ("sm_90") with the flags that CuPy adds; raises what the compiler raises."""
    # By name: the packages are optional, and static checks of what imports what should not see them here.
    core = import_module("cuda.core")
    log = _Log()
    options = core.ProgramOptions(
        std="c++17",
        arch=architecture,
        ftz=True,
        define_macro=[tuple(option.removeprefix("-D").split("=")) for option in variant.defines],
        ptxas_options=["-v", "-warn-spills"],
    )
    code = core.Program(variant.text, "c++", options).compile("cubin", logs=log).code
    for found in _RESOURCES.finditer(log.text):
        if found["name"] == variant.kernel:
            return Compiled(
                code, int(found["registers"]), int(found["shared"] or 0), int(found["stack"]), int(found["spilled"])
            )
    raise RuntimeError(f"no resources of {variant.kernel} in the compiler's log: {log.text}")


class Resources(NamedTuple):
    """A row of the committed table; registers are per thread, the rest in bytes per block."""

    kernel: str
    constants: str
    architecture: str
    threads: int
    registers: int
    static_shared_bytes: int
    dynamic_shared_bytes: int
    nvrtc: str


def tabulated() -> list[Variant]:
    """The variants of the table: PLaMo-13B's shapes, the benchmark's, GPT-3's widths and the extremes."""
    variants = []
    for dtype, hidden in [
        *(("bfloat16", hidden) for hidden in (64, 128, 2048, 4096, 5119, 5120, 8192, 9216, 12288, 16384)),
        *(("float16", hidden) for hidden in (5120, 16383)),
        *(("float32", hidden) for hidden in (5120, 16384)),
    ]:
        variants += [rmsnorm.forward(dtype, hidden, addends) for addends in (0, 2)]
        variants += [rmsnorm.backward(dtype, hidden, residual) for residual in (False, True)]
    variants.append(rmsnorm.weight_gradient("bfloat16", 5120))
    variants += [rope.rope("bfloat16", 40, 5, 128, 64, 8), rope.rope("float32", 40, 5, 128, 64, 4)]
    for size, vector in ((50432, 8), (101, 1)):
        names = ("cross_entropy_statistics", "cross_entropy_gradient")
        variants += [cross_entropy.cross_entropy(name, "bfloat16", size, vector) for name in names]
    variants += [swiglu.swiglu(name, "bfloat16", 8) for name in ("swiglu_forward", "swiglu_backward")]
    variants += [rope.rope("float16", 71, 1, 64, 32, 8), rope.rope("bfloat16", 64, 64, 96, 12, 4)]
    for dtype in ("float32", "float16", "bfloat16"):
        for function in (nf4.quantise, nf4.dequantise):
            variants += [function(dtype, aligned) for aligned in (True, False)]
    return variants


def resources(variant: Variant, architecture: str) -> Resources:
    """Compile, and refuse what must not be: a stack frame or a spilled register makes a memory-bound kernel slow."""
    compiled = compile_offline(variant, architecture)
    constants = " ".join(option.removeprefix("-D") for option in variant.defines)
    if compiled.stack_bytes or compiled.spilled_bytes:
        raise RuntimeError(
            f"{variant.kernel} for {architecture} ({constants}) has a stack frame of {compiled.stack_bytes} bytes and "
            f"spills {compiled.spilled_bytes}"
        )
    return Resources(
        variant.kernel,
        constants,
        architecture,
        variant.threads,
        compiled.registers,
        compiled.shared_bytes,
        variant.dynamic_shared_bytes,
        version("nvidia-cuda-nvrtc"),
    )


def write_table(file: TextIO) -> None:
    """The table as CSV: ``python -m flopcast.kernels.compilation > kernels/resources.csv``."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Resources._fields)
    writer.writerows(resources(variant, architecture) for variant in tabulated() for architecture in ARCHITECTURES)


class _Log:
    """Collects the compiler's log."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


if __name__ == "__main__":
    write_table(sys.stdout)
