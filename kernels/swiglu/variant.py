"""Which threads work on which elements."""

from functools import cache

from flopcast.kernels.variant import ELEMENT_TYPES, Variant

THREADS = 256
UNROLLED = 2  # packs of 16 bytes that a thread takes of each tensor, all loaded before the first is used


@cache
def swiglu(kernel: str, dtype: str, vector: int) -> Variant:
    """``kernel``: swiglu_forward or swiglu_backward; ``vector`` elements per access."""
    constants = (("VECTOR", vector), ("THREADS", THREADS), ("UNROLLED", UNROLLED))
    return Variant("swiglu/swiglu.cu", kernel, (("ELEMENT", ELEMENT_TYPES[dtype]), *constants), THREADS)
