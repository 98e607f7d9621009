"""Which threads work on a token, by its heads."""

from functools import cache

from flopcast.kernels.variant import ELEMENT_TYPES, Variant

_BLOCK = 256  # threads that a block has at least, where a token has fewer packs than that
_WIDEST_BLOCK = 512
_RESIDENT_THREADS = 1536  # per multiprocessor: 40 registers each


@cache
def rope(dtype: str, q_heads: int, k_heads: int, head: int, half: int, vector: int) -> Variant:
    """``half`` pairs of a head's ``head`` elements are turned, ``vector`` elements per access."""
    items = (q_heads + k_heads) * (half + (head - 2 * half)) // vector
    tokens = max(1, _BLOCK // items)
    threads = min(_WIDEST_BLOCK, -(-tokens * items // 32) * 32)
    shape = (("HALF", half), ("HEAD", head), ("Q_HEADS", q_heads), ("K_HEADS", k_heads))
    layout = (
        ("VECTOR", vector),
        ("TOKENS", tokens),
        ("THREADS", threads),
        ("MIN_BLOCKS", _RESIDENT_THREADS // threads),
    )
    return Variant("rope/rope.cu", "rope", (("ELEMENT", ELEMENT_TYPES[dtype]), *shape, *layout), threads)
