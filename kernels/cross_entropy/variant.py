"""Which threads work on a row of logits."""

from functools import cache

from flopcast.kernels.variant import ELEMENT_TYPES, Variant

_WIDEST_BLOCK = 512
_UNROLLED = 4  # packs that a thread loads before the first is used
_RESIDENT_THREADS = 1536  # per multiprocessor: 40 registers each


@cache
def cross_entropy(kernel: str, dtype: str, vocabulary: int, vector: int) -> Variant:
    """A block to a row, ``vector`` elements per access, for cross_entropy_statistics or cross_entropy_gradient."""
    threads = min(_WIDEST_BLOCK, -(-vocabulary // vector // 32) * 32)
    layout = (("VOCABULARY", vocabulary), ("VECTOR", vector), ("THREADS", threads), ("UNROLLED", _UNROLLED))
    constants = (("ELEMENT", ELEMENT_TYPES[dtype]), *layout, ("MIN_BLOCKS", min(32, _RESIDENT_THREADS // threads)))
    return Variant("cross_entropy/cross_entropy.cu", kernel, constants, threads)
