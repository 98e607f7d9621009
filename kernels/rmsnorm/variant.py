"""Which threads work on a row, by its size."""

from functools import cache

from flopcast.errors import InputError
from flopcast.kernels.variant import ELEMENT_BYTES, ELEMENT_TYPES, Variant, elements_per_access

SMALLEST_HIDDEN, LARGEST_HIDDEN = 64, 16384
WEIGHT_GRADIENT_COLUMNS = 32  # that one block of the second reduction sums
_SMALL_BLOCK = 128  # threads of a block that holds several rows
_WIDEST_BLOCK = 1024
SHARED_BYTES = 156 * 1024  # of the 164 KiB of shared memory of an A100's multiprocessor
# Threads per multiprocessor in backward: 48 registers each hold two rows' packs and the weight gradient.
_RESIDENT_THREADS = 1280
# Where a thread has several packs of eight, whose weight gradient alone fills 16 registers or more: 80 each, up to 128.
_LONG_ROW_BLOCK, _LONG_ROW_RESIDENT_THREADS = 512, 768


def check_hidden(hidden: int) -> None:
    """Refuse rows outside 64..16384 elements: shorter ones leave lanes idle, longer ones spill registers."""
    if not SMALLEST_HIDDEN <= hidden <= LARGEST_HIDDEN:
        raise InputError(
            f"rms_norm: hidden size {hidden} is not supported; rows have {SMALLEST_HIDDEN} to {LARGEST_HIDDEN} elements"
        )


@cache
def forward(dtype: str, hidden: int, addends: int = 0, round_before_weight: bool = False) -> Variant:
    """A warp or part of one for rows of up to 128 packs, a block for longer ones: 5120 bf16 is 320 threads of two."""
    check_hidden(hidden)
    vector = elements_per_access(dtype, hidden)
    packs = hidden // vector
    if packs <= 128:
        lanes, rows = _lanes_in_warp(packs)
    else:
        words = max(1, vector * ELEMENT_BYTES[dtype] // 4)
        fitting = (d for d in (2, 4, 8, 16) if packs <= 512 * d and d * words <= 16)
        depth = next(fitting, -(-packs // _WIDEST_BLOCK))
        lanes, rows = _whole_warps(-(-packs // depth)), 1
    threads = lanes * rows
    layout = (("VECTOR", vector), ("LANES", lanes), ("ROWS", rows), ("MIN_BLOCKS", max(1, 1024 // threads)))
    more = (("ADDENDS", addends), ("ROUND_BEFORE_WEIGHT", round_before_weight))
    constants = (("ELEMENT", ELEMENT_TYPES[dtype]), ("HIDDEN", hidden), *layout, *more)
    return Variant("rmsnorm/forward.cu", "rms_norm_forward", constants, threads)


@cache
def backward(
    dtype: str,
    hidden: int,
    residual_gradient: bool = False,
    round_before_weight: bool = False,
    shared_bytes: int = SHARED_BYTES,
) -> Variant:
    """One pack per thread while a block can hold the row; the row after it is staged in shared memory if two fit.

    ``shared_bytes``: of a multiprocessor, to be dealt out among its blocks.
    """
    check_hidden(hidden)
    vector = elements_per_access(dtype, hidden)
    packs = hidden // vector
    long = packs > _WIDEST_BLOCK and vector == 8
    if packs <= 64:
        lanes, rows = _lanes_in_warp(packs)
    else:
        depth = -(-packs // (_LONG_ROW_BLOCK if long else _WIDEST_BLOCK))
        lanes, rows = _whole_warps(-(-packs // depth)), 1
    access = vector * ELEMENT_BYTES[dtype]
    stages = 4 * -(-packs // lanes) * lanes * rows * access  # two stages of two tensors
    staged = access >= 4 and stages <= shared_bytes
    gathered = 4 * rows * hidden if rows > 1 or not staged else 0
    shared = stages * staged + gathered
    resident = _LONG_ROW_RESIDENT_THREADS if long else _RESIDENT_THREADS
    min_blocks = max(1, min(resident // (lanes * rows), shared_bytes // shared))
    layout = (("VECTOR", vector), ("LANES", lanes), ("ROWS", rows), ("MIN_BLOCKS", min_blocks))
    more = (("RESIDUAL_GRADIENT", residual_gradient), ("STAGED", staged), ("ROUND_BEFORE_WEIGHT", round_before_weight))
    constants = (("ELEMENT", ELEMENT_TYPES[dtype]), ("HIDDEN", hidden), *layout, *more)
    return Variant("rmsnorm/backward.cu", "rms_norm_backward", constants, lanes * rows, shared)


@cache
def weight_gradient(dtype: str, hidden: int) -> Variant:
    """The second reduction of backward: it stands in the same source, compiled for the same row."""
    variant = backward(dtype, hidden)
    return Variant(variant.source, "rms_norm_weight_gradient", variant.constants, _WIDEST_BLOCK)


def _lanes_in_warp(packs: int) -> tuple[int, int]:
    """The power of two of lanes that a short row takes, and the rows that fill a block."""
    lanes = min(32, 1 << (packs - 1).bit_length())
    return lanes, _SMALL_BLOCK // lanes


def _whole_warps(threads: int) -> int:
    return -(-threads // 32) * 32
