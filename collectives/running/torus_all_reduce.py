"""The 2D-torus all-reduce of arXiv:1811.05233: reduce-scatter along a row, all-reduce along a column, all-gather.

On X columns and Y rows a rank sends 2 ((X-1)/X + (Y-1)/(XY)) S = 2 (N-1)/N S bytes, as in one ring over N = XY ranks,
in 2 (X + Y - 2) instead of 2 (N - 1) steps. With nodes as rows all but 1/X of the traffic stays in the node. The
tensor goes in chunks, and the three phases of neighbouring chunks run at the same time on the links of row and column.
"""

from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from flopcast.collectives.running.agreement import agree, reporting
from flopcast.collectives.running.pytorch import all_gather_single, reduce_scatter_single
from flopcast.errors import InputError

NAME = "torus_all_reduce"
CHUNK_BYTES = 32 * 2**20

_FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_WHOLE = (torch.int64, torch.int32, torch.uint8, torch.int8)


def torus_all_reduce(
    tensor: torch.Tensor,
    mesh: DeviceMesh,
    op: Literal["sum", "avg"] = "sum",
    *,
    chunk_bytes: int = CHUNK_BYTES,
    check: bool = True,
) -> None:
    """Reduce ``tensor`` in place over all ranks of ``mesh``, [Y rows, X columns]; every rank ends with the same bits.

    Any size and shape, contiguous; floating point or, for sums, whole numbers. An average is divided before it is
    summed, as NCCL's is, so that an fp16 one that fits its type never overflows on the way. Only the last chunk is
    padded, to a multiple of X elements. With ``check`` the ranks first compare what they bring, which costs two small
    messages, and raise the same InputError where it differs. Raises CollectiveError where a rank dies or does not come
    within the groups' timeout. A mesh of one rank changes nothing.
    """
    if mesh.ndim != 2:
        raise InputError(
            f"the mesh has {mesh.ndim} dimensions; a torus needs two: init_device_mesh(device, (rows, columns))"
        )
    columns = mesh.get_group(0)
    rows = mesh.get_group(1)
    if check:
        signature = ("sum", "avg").index(op) if op in ("sum", "avg") else 2
        agree(
            NAME,
            tensor,
            [rows, columns],
            problem=_problem(tensor, op, chunk_bytes),
            signature=signature + chunk_bytes * 4,
        )
    with reporting(NAME):
        # The memory alone: of a parameter too, as torch.distributed's own.
        _reduce(tensor.detach().view(-1), rows, columns, chunk_bytes, mesh.size() if op == "avg" else 1)


class _Chunk:
    """A part of the tensor on its way: ``whole`` [multiple of X] and this rank's ``shard`` [whole / X] of it."""

    def __init__(self, part: torch.Tensor, row_size: int) -> None:
        self.part = part
        padding = -part.numel() % row_size
        self.whole = torch.nn.functional.pad(part, (0, padding)) if padding else part
        self.shard = torch.empty(self.whole.numel() // row_size, dtype=part.dtype, device=part.device)
        self.work: dist.Work | None = None

    def wait(self) -> None:
        if self.work is not None:
            self.work.wait()
            self.work = None


def _reduce(
    flat: torch.Tensor, rows: dist.ProcessGroup, columns: dist.ProcessGroup, chunk_bytes: int, divisor: int
) -> None:
    """Chunk t is scattered while chunk t - 1 crosses the columns and chunk t - 2 is gathered."""
    row_size = rows.size()
    length = max(row_size, chunk_bytes // flat.element_size() // row_size * row_size)
    starts = range(0, flat.numel(), length)
    chunks: dict[int, _Chunk] = {}
    for step in range(len(starts) + 3):
        if step < len(starts):
            chunk = chunks[step] = _Chunk(flat[starts[step] : starts[step] + length], row_size)
            if divisor > 1:
                chunk.whole.div_(divisor)
            chunk.work = reduce_scatter_single(chunk.shard, chunk.whole, group=rows, async_op=True)
        if step - 1 in chunks:
            chunk = chunks[step - 1]
            chunk.wait()
            chunk.work = dist.all_reduce(chunk.shard, group=columns, async_op=True)
        if step - 2 in chunks:
            chunk = chunks[step - 2]
            chunk.wait()
            chunk.work = all_gather_single(chunk.whole, chunk.shard, group=rows, async_op=True)
        if step - 3 in chunks:
            chunk = chunks.pop(step - 3)
            chunk.wait()
            if chunk.whole is not chunk.part:
                chunk.part.copy_(chunk.whole[: chunk.part.numel()])


def _problem(tensor: torch.Tensor, op: str, chunk_bytes: int) -> str:
    """What is wrong with this rank's arguments, in words, or nothing."""
    if op not in ("sum", "avg"):
        return f"op is '{op}'; give sum or avg"
    if tensor.dtype not in _FLOATING + _WHOLE:
        return f"tensor is {tensor.dtype}; give a floating-point or whole-number type"
    if op == "avg" and tensor.dtype in _WHOLE:
        return f"op is 'avg' of {tensor.dtype}; average floating-point numbers, or ask for sum"
    if not tensor.is_contiguous():
        return "tensor is not contiguous; give tensor.contiguous()"
    if chunk_bytes < 1:
        return f"chunk_bytes is {chunk_bytes}; give at least 1"
    return ""
