"""The compiled forms of the NF4 kernels: the element type, and whether values start on 16 bytes."""

from functools import cache

from flopcast.kernels.variant import ELEMENT_TYPES, Variant


@cache
def quantise(dtype: str, aligned: bool) -> Variant:
    """One block of 256 threads per group of 16384 elements."""
    return Variant("nf4/quantise.cu", "nf4_quantise", _constants(dtype, aligned), 256)


@cache
def dequantise(dtype: str, aligned: bool) -> Variant:
    """One block of 256 threads per group of 16384 elements."""
    return Variant("nf4/dequantise.cu", "nf4_dequantise", _constants(dtype, aligned), 256)


def _constants(dtype: str, aligned: bool) -> tuple[tuple[str, int | str], ...]:
    return (("ELEMENT", ELEMENT_TYPES[dtype]), ("ALIGNED", aligned))
