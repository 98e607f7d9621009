"""The NF4 payload: how parameters travel as 4-bit codes with doubly quantised scales, byte for byte.

One payload holds ``num_elements`` values; blocks of 64 share a scale, groups of 256 blocks share an absmax and a mean:

    offset                             bytes           content
    0                                  32 blocks       codes, two to a byte, the even element in the low nibble
    32 blocks                          8 groups        (absmax, mean) of every group: two little-endian fp32
    32 blocks + 8 groups               blocks          8-bit scales, two's complement
    32 blocks + 8 groups + blocks      0 to 15         zeros, up to a multiple of 16 bytes

A payload that starts on 16 bytes has its codes and constants so aligned that a GPU reads 16 and 8 bytes at once, and
payloads that lie end to end all start on 16 bytes. What the numbers mean is in :mod:`flopcast.kernels.nf4.reference`.
Source: QLoRA (arXiv:2305.14314, section 3, NormalFloat and double quantisation), which has no mean and no layout.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

BLOCK = 64  # elements that share one 8-bit scale
SCALES_PER_GROUP = 256  # blocks that share one fp32 absmax and one fp32 mean
GROUP = BLOCK * SCALES_PER_GROUP
ALIGNMENT = 16  # bytes
SCALE_LEVELS = 127  # a scale is -127..127 of these
NOT_FINITE = -128  # the scale of a block that held NaN or an infinity

# The sixteen values of NormalFloat4 (QLoRA, appendix E), the quantiles of a Gaussian scaled to [-1, 1].
VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
# A ratio's code is the number of thresholds at or below it: the nearest value. Each is halfway between two, to 2^-22,
# and an odd multiple of 2^-23: there a sum rounded to multiples of 2^-22 changes, as the CUDA kernel's does.
THRESHOLDS = tuple((2 * round((low + high) * 2**21) - 1) / 2**23 for low, high in pairwise(VALUES))

# In a block that is not finite three codes have another meaning, and its finite values use the codes between.
MINUS_INFINITY, NAN, PLUS_INFINITY = 0, 14, 15


def num_blocks(num_elements: int) -> int:
    """Blocks of 64 that hold ``num_elements`` values, the last one filled up with zeros."""
    return -(-num_elements // BLOCK)


def num_groups(num_elements: int) -> int:
    """Groups of 256 blocks, the last one perhaps shorter."""
    return -(-num_blocks(num_elements) // SCALES_PER_GROUP)


def constants_offset(num_elements: int) -> int:
    """Byte at which the (absmax, mean) pairs start: behind the codes."""
    return num_blocks(num_elements) * BLOCK // 2


def scales_offset(num_elements: int) -> int:
    """Byte at which the 8-bit scales start: behind the constants."""
    return constants_offset(num_elements) + 8 * num_groups(num_elements)


def aligned(num_bytes: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """``num_bytes`` rounded up to a multiple of 16: what a raw segment takes in a payload of several segments."""
    return -(-np.asarray(num_bytes, dtype=np.int64) // ALIGNMENT) * ALIGNMENT


def payload_bytes(num_elements: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Bytes that ``num_elements`` parameters travel as: codes, a scale per block, 8 bytes per 256 blocks, padding.

    blocks = ceil(n / 64); bytes = 32 blocks + 8 ceil(blocks / 256) + blocks, rounded up to 16: 0.5161 bytes per
    parameter when n is large.
    """
    blocks = -(-np.asarray(num_elements, dtype=np.int64) // BLOCK)
    return aligned(blocks * (BLOCK // 2) + 8 * -(-blocks // SCALES_PER_GROUP) + blocks)
