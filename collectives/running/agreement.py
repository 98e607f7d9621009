"""Bad input on one rank becomes the same error on every rank, and a dead rank an error instead of a hang.

A collective whose ranks bring different sizes or types hangs, or mixes bytes up without a word. Before the data, every
rank therefore sends five numbers; all of them see all of them, so all raise the same sentence or none does.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from flopcast.collectives.running.pytorch import all_gather_single
from flopcast.errors import InputError

DTYPES = (
    *(torch.float32, torch.bfloat16, torch.float16, torch.float64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)
# How backends word a broken or silent connection.
_LOST = re.compile(r"connect|closed|reset|refused|broken pipe|time ?out|timed out|abort", re.IGNORECASE)
_UNKNOWN_DTYPE = len(DTYPES)


class CollectiveError(RuntimeError):
    """A collective that could not finish: a rank has died or did not come in time, or the backend refused it."""


@contextmanager
def reporting(collective: str) -> Iterator[None]:
    """Turns what the backend raises into one sentence that names the collective and this rank.

    The backend raises within the group's timeout (``init_process_group(timeout=...)``); gloo at once when a
    connection breaks, NCCL through its watchdog, which may end the process itself.
    """
    try:
        yield
    except (CollectiveError, torch.OutOfMemoryError, NotImplementedError):
        raise
    except RuntimeError as error:
        rank = dist.get_rank() if dist.is_initialized() else os.environ.get("RANK", "0")
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        lost = isinstance(error, dist.DistError) or _LOST.search(reason)
        cause = (
            "another rank has died, or did not come within the timeout; look at the rank that ended first"
            if lost
            else "the backend refused"
        )
        raise CollectiveError(f"{collective} failed on rank {rank}: {cause} ({reason})") from error


def agree(
    collective: str,
    tensor: torch.Tensor,
    groups: list[dist.ProcessGroup | None],
    *,
    problem: str = "",
    signature: int = 0,
) -> None:
    """Raise InputError on every rank unless all bring the same size, type and ``signature`` and none has a problem.

    ``groups`` are asked one after the other; along the rows and then the columns of a mesh every rank hears of every
    other. ``problem`` is what this rank found wrong with its own input, in words; the others learn which rank it is.
    An empty tensor is a problem too. ``signature`` stands for whatever else must be the same (at most 62 bits).
    """
    if not problem and tensor.numel() == 0:
        problem = "tensor is empty; give at least one element"
    dtype = DTYPES.index(tensor.dtype) if tensor.dtype in DTYPES else _UNKNOWN_DTYPE
    mine = [dist.get_rank(), bool(problem), tensor.numel(), dtype, signature]
    heard = torch.tensor([mine], dtype=torch.int64, device=tensor.device)
    for group in groups:
        everyone = torch.empty(
            (dist.get_world_size(group) * len(heard), len(mine)), dtype=torch.int64, device=tensor.device
        )
        with reporting(collective):
            all_gather_single(everyone, heard, group=group)
        heard = everyone
    rows = sorted(tuple(row) for row in heard.tolist())
    if problem:
        raise InputError(f"{collective}: {problem}")
    bad = [row[0] for row in rows if row[1]]
    if bad:
        raise InputError(f"{collective}: rank {bad[0]} has bad input; its own message says what")
    first = rows[0]
    for row in rows:
        if row[2:] == first[2:]:
            continue
        what = "another layout or operation" if row[2:4] == first[2:4] else _brought(row)
        raise InputError(
            f"{collective}: rank {row[0]} brings {what} and rank {first[0]} {_brought(first)}; "
            "give every rank the same size, type and options"
        )


def _brought(row: tuple[int, ...]) -> str:
    dtype = str(DTYPES[row[3]]) if row[3] < _UNKNOWN_DTYPE else "another type"
    return f"{row[2]} elements of {dtype}"
