"""What all ranks must come to together: an error of one is the error of all."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from flopcast.errors import InputError

Result = TypeVar("Result")


def everywhere(action: Callable[[], Result], group: dist.ProcessGroup | None = None) -> Result:
    """Run ``action`` on every rank; where it raises InputError on any, raise the first rank's message on all.

    Collective: every rank must call it. The messages travel as bytes, so ``group`` must move CPU tensors.
    """
    message, result = "", None
    try:
        result = action()
    except InputError as error:
        message = str(error)
    for rank, text in enumerate(gather_text(message, group)):
        if text:
            raise InputError(text if text == message else f"rank {rank}: {text}")
    return result  # type: ignore[return-value]


def on_first_rank(action: Callable[[], object], group: dist.ProcessGroup | None = None) -> None:
    """Run ``action`` on rank 0 while the others wait; its InputError is raised on all."""
    everywhere(action if dist.get_rank() == 0 else lambda: None, group)


def gather_text(text: str, group: dist.ProcessGroup | None = None) -> list[str]:
    """Every rank's text, in the order of the ranks."""
    data = text.encode()
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor([len(data)]), group=group)
    longest = max(int(size) for size in sizes)
    if not longest:
        return [""] * len(sizes)
    mine = torch.zeros(longest, dtype=torch.uint8)
    mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else mine[:0]
    everyones = [torch.zeros_like(mine) for _ in sizes]
    dist.all_gather(everyones, mine, group=group)
    return [bytes(t[: int(n)].tolist()).decode() for t, n in zip(everyones, sizes, strict=True)]
