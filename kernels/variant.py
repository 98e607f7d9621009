"""One compiled form of a kernel: its source, the constants it is compiled for, and its block.

The same description serves CuPy on a GPU, NVRTC where there is none, and the CPU emulator.
"""

import re
from dataclasses import dataclass
from functools import cache, cached_property
from math import gcd
from pathlib import Path

ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
ELEMENT_TYPES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}
ACCESS_BYTES = 16  # the widest load of one thread

_FOLDER = Path(__file__).resolve().parent
_INCLUDE = re.compile(r'^#include "([\w/]+\.cuh)"$', re.MULTILINE)


@dataclass(frozen=True)
class Variant:
    """``source`` is a .cu path below this folder; ``constants`` become -D options, in this order."""

    source: str
    kernel: str
    constants: tuple[tuple[str, int | str], ...]
    threads: int
    dynamic_shared_bytes: int = 0

    @property
    def defines(self) -> tuple[str, ...]:
        """Compiler options, e.g. ``("-DELEMENT=bfloat16", "-DHIDDEN=5120")``."""
        return tuple(f"-D{name}={int(value) if isinstance(value, bool) else value}" for name, value in self.constants)

    def __getitem__(self, name: str) -> int:
        """The value of one constant, e.g. ``variant["ROWS"]``."""
        return int(self._values[name])

    # Looked up at every launch, so worked out once.
    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.source, self.kernel, self.constants, self.threads, self.dynamic_shared_bytes))

    @cached_property
    def _values(self) -> dict[str, int | str]:
        return dict(self.constants)

    @property
    def text(self) -> str:
        """The source with its headers in place, so that no compiler needs an include path of ours."""
        return source_text(self.source)


@cache
def source_text(source: str) -> str:
    """The text of a .cu file with our own .cuh files, and theirs, in the place of their #include lines."""
    text = (_FOLDER / source).read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda match: source_text(match[1]), text)


def elements_per_access(dtype: str, *extents: int) -> int:
    """The most elements that one aligned access moves if every extent (in elements) is a multiple of it.

    A power of two, up to 16 bytes: 8 for bfloat16 rows of 5120, 1 for rows of an odd size.
    """
    return gcd(ACCESS_BYTES // ELEMENT_BYTES[dtype], *extents)
