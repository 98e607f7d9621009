"""NF4 with doubly quantised scales in PyTorch: the CPU path, and what the CUDA kernel must match bit for bit.

Every operation below is rounded to fp32 unless the text says otherwise, and the sum has a fixed order, so that any
other implementation can produce the same bytes. For a group of 256 blocks (fewer at the end):

    absmax[b] = max |x| over the finite elements of block b
    mean      = sum of absmax[b] / 256, over 256 values filled up with zeros, halves added: v[i] + v[i + 128], ...;
                times 256 / blocks, at most the largest finite fp32
    span      = max |absmax[b] - mean|, the absmax of the payload
    scale[b]  = (absmax[b] - mean) * (127 / span), rounded to the nearest even integer; 0 where span is 0
    s[b]      = scale[b] * (1 / 127) * span + mean, at most the largest finite value of x's type: what is multiplied by
    r[b]      = 1 / s[b], or 0 where s[b] is 0
    code      = number of THRESHOLDS at or below x * r[b], the product not rounded
    x         ~ VALUES[code] * s[b], rounded to the type asked for

What is tiny or huge is lifted by an exact power of two on the way to 127 / span and to r[b], which so never overflow.

A block that holds NaN or an infinity has scale -128, which stands for s[b] = mean (1 where that is 0); its codes 0,
14 and 15 are -inf, NaN and +inf, and its finite elements take the nearest of the codes 1 to 13. So what is not finite
comes out as it went in, the other elements of its block come out coarser, and no other block notices. Zeros and whole
blocks of zeros are exact.
"""

import math

import torch

from flopcast.errors import InputError
from flopcast.kernels.nf4 import format as layout

# Elements worked through at once: fp32 temporaries of 512 KiB, which stay in a core's cache.
CHUNK = 8 * layout.GROUP
# Cells that [-1, 1] is cut into to find a code: none holds two thresholds.
CELLS = 255

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def quantise(tensor: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """The payload of ``tensor``: uint8 [payload_bytes(numel)], written into ``out`` where that is given.

    ``tensor`` is fp32, bf16 or fp16 of any shape, read in row-major order. Raises InputError for other types, for an
    empty tensor and for an ``out`` that does not fit.
    """
    if tensor.dtype not in DTYPES:
        raise InputError(f"tensor has dtype {tensor.dtype}; NF4 quantises float32, bfloat16 or float16")
    if tensor.numel() == 0:
        raise InputError("tensor is empty; give at least one element to quantise")
    numel = tensor.numel()
    size = int(layout.payload_bytes(numel))
    if out is None:
        out = torch.empty(size, dtype=torch.uint8, device=tensor.device)
    elif out.shape != (size,) or out.dtype != torch.uint8:
        raise InputError(f"out is {out.dtype} {list(out.shape)}; the payload is torch.uint8 [{size}]")
    flat = tensor.detach().reshape(-1)
    codes, constants, scales = _fields(out, numel)
    out[layout.scales_offset(numel) + layout.num_blocks(numel) :] = 0
    for start in range(0, numel, CHUNK):
        part = flat[start : start + CHUNK].float()
        blocks = layout.num_blocks(part.numel())
        first, group = start // layout.BLOCK, start // layout.GROUP
        x = torch.nn.functional.pad(part, (0, blocks * layout.BLOCK - part.numel())).view(blocks, layout.BLOCK)
        scale, pair = _scales(x)
        constants[group : group + len(pair)] = pair
        scales[first : first + blocks] = scale
        nibbles = _codes(x, scale, _decoded(scale, pair, tensor.dtype)).view(torch.int16)
        packed = (nibbles | nibbles >> 4).to(torch.uint8)
        codes[first * layout.BLOCK // 2 : (first + blocks) * layout.BLOCK // 2] = packed.view(-1)
    return out


def dequantise(payload: torch.Tensor, numel: int, dtype: torch.dtype, out: torch.Tensor | None = None) -> torch.Tensor:
    """The values of a payload: uint8 [..., payload_bytes(numel)] becomes ``dtype`` [..., numel].

    Leading dimensions are several payloads of the same ``numel``; ``out``, of the shape of the result and perhaps
    strided, is written where it is given. Raises InputError for a payload of another size or type.
    """
    size = int(layout.payload_bytes(numel))
    if payload.dtype != torch.uint8 or payload.dim() == 0 or payload.shape[-1] != size or numel < 1:
        raise InputError(
            f"payload is {payload.dtype} {list(payload.shape)}; {numel} elements travel as torch.uint8 [..., {size}]"
        )
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype}; NF4 dequantises to float32, bfloat16 or float16")
    shape = (*payload.shape[:-1], numel)
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=payload.device)
    elif out.shape != shape or out.dtype != dtype:
        raise InputError(f"out is {out.dtype} {list(out.shape)}; the values are {dtype} {list(shape)}")
    rows = payload.reshape(-1, size) if payload.dim() != 2 else payload
    target = out.view(-1, numel) if out.dim() != 2 else out
    rows_at_once = max(1, CHUNK // numel)
    pairs = _pairs(payload.device)
    for row in range(0, len(rows), rows_at_once):
        for start in range(0, numel, CHUNK):
            _dequantise_into(target[row : row + rows_at_once], rows[row : row + rows_at_once], numel, start, pairs)
    return out


def _dequantise_into(target: torch.Tensor, payload: torch.Tensor, numel: int, start: int, pairs: torch.Tensor) -> None:
    """Elements ``start`` to ``start + CHUNK`` of every row."""
    length = min(CHUNK, numel - start)
    blocks, groups = layout.num_blocks(length), layout.num_groups(length)
    first, group = start // layout.BLOCK, start // layout.GROUP
    codes, constants, scales = _fields(payload, numel)
    scale = scales[:, first : first + blocks]
    packed = codes[:, first * layout.BLOCK // 2 : (first + blocks) * layout.BLOCK // 2].int()
    marked = (scale == layout.NOT_FINITE).int().unsqueeze(-1)
    pair = packed.view(len(payload), blocks, -1) + 256 * marked
    values = pairs.index_select(0, pair.view(-1)).view(torch.float32).view(len(payload), blocks, layout.BLOCK)
    values *= _decoded(scale, constants[:, group : group + groups], target.dtype).unsqueeze(-1)
    target[:, start : start + length] = values.view(len(payload), -1)[:, :length]


def _pairs(device: torch.device) -> torch.Tensor:
    """The two fp32 values of every byte as one int64 [512]; from 256 on those of a block that is not finite."""
    special = {layout.MINUS_INFINITY: -math.inf, layout.NAN: math.nan, layout.PLUS_INFINITY: math.inf}
    unusual = [special.get(code, value) for code, value in enumerate(layout.VALUES)]
    rows = [(table[byte & 15], table[byte >> 4]) for table in (layout.VALUES, unusual) for byte in range(256)]
    return torch.tensor(rows, dtype=torch.float32, device=device).view(torch.int64).view(-1)


def _fields(payload: torch.Tensor, numel: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views of a payload [..., bytes]: codes [..., 32 blocks], constants [..., groups, 2], scales [..., blocks]."""
    behind_codes, behind_constants = layout.constants_offset(numel), layout.scales_offset(numel)
    constants = payload[..., behind_codes:behind_constants].view(torch.float32)
    scales = payload[..., behind_constants : behind_constants + layout.num_blocks(numel)].view(torch.int8)
    return payload[..., :behind_codes], constants.view(*payload.shape[:-1], -1, 2), scales


def _scales(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of fp32 blocks [blocks, 64]: int8 scales [blocks] and (span, mean) of every group [groups, 2]."""
    blocks, per_group = len(x), layout.SCALES_PER_GROUP
    groups = -(-blocks // per_group)
    absmax = x.abs().amax(1)
    finite = absmax.isfinite()
    if not finite.all():
        absmax = _finite(x).abs().amax(1)

    def by_group(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(values, (0, groups * per_group - blocks)).view(groups, per_group)

    count = torch.full((groups, 1), per_group, dtype=torch.float32, device=x.device)
    count[-1] = blocks - (groups - 1) * per_group
    total = by_group(absmax) * (1 / per_group)
    while total.shape[1] > 1:
        half = total.shape[1] // 2
        total = total[:, :half] + total[:, half:]
    mean = (total * (per_group / count)).clamp(max=torch.finfo(torch.float32).max)

    def by_block(values: torch.Tensor) -> torch.Tensor:
        return values.expand(-1, per_group).reshape(-1)[:blocks]

    residual = absmax - by_block(mean)
    span = by_group(residual.abs()).amax(1, keepdim=True)
    lift = _lift(span)
    # A number over a tensor is to PyTorch the number times the reciprocal, which is rounded once more.
    levels = torch.where(span == 0, 0.0, torch.full_like(span, layout.SCALE_LEVELS) / (span * lift))
    scale = torch.round(residual * by_block(lift) * by_block(levels)).to(torch.int8)
    return torch.where(finite, scale, layout.NOT_FINITE).to(torch.int8), torch.cat((span, mean), dim=1)


def _lift(x: torch.Tensor) -> torch.Tensor:
    """The power of two that makes what is tiny or huge neither, so that its reciprocal is an ordinary number."""
    size = x.abs()
    return torch.where(size < 2.0**-64, 2.0**64, torch.where(size > 2.0**64, 2.0**-64, 1.0))


def _decoded(scale: torch.Tensor, constants: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What to multiply by, fp32 [..., blocks], from int8 scales [..., blocks] and constants [..., groups, 2]."""
    spread = constants.repeat_interleave(layout.SCALES_PER_GROUP, dim=-2)[..., : scale.shape[-1], :]
    span, mean = spread[..., 0], spread[..., 1]
    s = (scale.float() * (1 / layout.SCALE_LEVELS) * span + mean).clamp(max=torch.finfo(dtype).max)
    return torch.where(scale == layout.NOT_FINITE, torch.where(mean == 0, 1.0, mean), s)


def _codes(x: torch.Tensor, scale: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """uint8 codes [blocks, 64] of fp32 blocks, nearest under the scale that the receiver will decode."""
    marked = (scale == layout.NOT_FINITE).unsqueeze(1)
    unusual = bool(marked.any())
    finite = _finite(x) if unusual else x
    lift = _lift(s)
    if bool((lift != 1).any()):
        finite = finite * torch.where(s == 0, 0.0, lift).unsqueeze(1)
    r = torch.where(s == 0, 0.0, 1 / (s * lift)).unsqueeze(1)
    code = _num_thresholds_not_above(finite, r)
    if not unusual:
        return code
    lowest = torch.where(marked, layout.MINUS_INFINITY + 1, 0).to(torch.uint8)
    highest = torch.where(marked, layout.NAN - 1, 15).to(torch.uint8)
    code = code.clamp(lowest, highest)
    code = torch.where(x == math.inf, layout.PLUS_INFINITY, code)
    code = torch.where(x == -math.inf, layout.MINUS_INFINITY, code)
    return torch.where(x.isnan(), layout.NAN, code)


def _num_thresholds_not_above(x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """For every element of ``x`` [blocks, 64] how many of ``THRESHOLDS`` are at or below x * r, uint8; r [blocks, 1].

    A table tells how many thresholds lie in lower cells, and which one, if any, in the same: one comparison with that
    decides. As ``_cell`` never falls when its argument rises, this is exact, and far faster than a binary search.
    """
    # All comparisons are written as fp32, in place: PyTorch's CPU kernels that return bool take five times as long.
    ratio = (x * r).clamp_(-1, 1)
    thresholds = torch.tensor(layout.THRESHOLDS, dtype=torch.float32, device=x.device)
    own = _cell(thresholds)
    below = (own < torch.arange(CELLS + 1, device=x.device).unsqueeze(1)).sum(1).float()
    in_cell = torch.full((CELLS + 1,), math.inf, device=x.device)
    in_cell[own] = thresholds
    cell = _cell(ratio).view(-1)
    nearest = in_cell.index_select(0, cell).view(x.shape)
    level = torch.eq(ratio, nearest, out=torch.empty_like(ratio))
    code = ratio.ge_(nearest).add_(below.index_select(0, cell).view(x.shape))
    # Rounding may have brought the product up to a threshold, never past one.
    if level.sum() > 0:
        code -= level * (x.double() * r.double() < nearest)
    return code.to(torch.int32).to(torch.uint8)


def _cell(ratio: torch.Tensor) -> torch.Tensor:
    """The cell, 0 to ``CELLS``, that a ratio from -1 to 1 falls into."""
    return torch.add(ratio, 1).mul_(CELLS / 2).to(torch.int32)


def _finite(x: torch.Tensor) -> torch.Tensor:
    """``x`` with zeros in place of NaN and the infinities."""
    return torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
