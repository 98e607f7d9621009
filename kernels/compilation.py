"""Compiling kernels with NVRTC where there is no GPU, and reading what the compiler says of them.

Needs ``cuda-core`` and ``nvidia-cuda-nvrtc`` from PyPI; no driver.
"""

import re
from dataclasses import dataclass
from importlib import import_module

from flopcast.kernels.variant import Variant

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
        define_macro=[(name, str(int(value) if isinstance(value, bool) else value)) for name, value in variant.constants],
        ptxas_options=["-v", "-warn-spills"],
    )
    code = core.Program(variant.text, "c++", options).compile("cubin", logs=log).code
    for found in _RESOURCES.finditer(log.text):
        if found["name"] == variant.kernel:
            return Compiled(
                code, int(found["registers"]), int(found["shared"] or 0), int(found["stack"]), int(found["spilled"])
            )
    raise RuntimeError(f"no resources of {variant.kernel} in the compiler's log: {log.text}")


class _Log:
    """Collects the compiler's log."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text
