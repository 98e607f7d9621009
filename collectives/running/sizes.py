"""Message sizes as nccl-tests' users write them: ``-b 8K -e 2G -f 2``."""

import re

from flopcast.errors import InputError

MOST_SIZES = 10_000
_SUFFIX = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """``"8K"`` -> 8192: a whole number of bytes; K, M, G and T are powers of 1024, as in nccl-tests."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"size '{text}' is not a number of bytes; write for example 8, 8K, 1M or 2G")
    size = float(match.group(1)) * _SUFFIX[match.group(2).upper()]
    if size < 1 or size > 2**44:
        raise InputError(f"size '{text}' is {size:g} bytes; give 1 byte to 16T")
    return int(size)


def sweep(begin: int, end: int, factor: int, step: int | None = None) -> list[int]:
    """``begin``, ``begin * factor``, ... up to ``end``, in bytes; where there is a ``step``, so many bytes apart."""
    if begin > end:
        raise InputError(f"the sizes begin at {begin} and end at {end} bytes; give -b no larger than -e")
    if step is not None:
        if (end - begin) // step >= MOST_SIZES:
            raise InputError(
                f"steps of {step} bytes from {begin} to {end} are more than {MOST_SIZES} sizes; give a larger -i"
            )
        return list(range(begin, end + 1, step))
    if factor < 2:
        raise InputError(f"factor is {factor}; give a whole number of at least 2")
    sizes = [begin]
    while sizes[-1] * factor <= end:
        sizes.append(sizes[-1] * factor)
    return sizes
