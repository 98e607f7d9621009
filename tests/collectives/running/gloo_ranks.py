"""Gloo ranks on this machine, forked after the imports, which cost as much as what they do."""

import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist


def run(work: Callable[..., None], num_ranks: int, folder: Path, timeout_s: float, *arguments: Any) -> None:
    """``work(rank, num_ranks, folder, *arguments)`` in each of them, joined to one group; ends when all have."""
    forking = multiprocessing.get_context("fork")
    fixed = (num_ranks, folder, timeout_s, work, arguments)
    ranks = [forking.Process(target=_joined, args=(rank, *fixed)) for rank in range(num_ranks)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()


def _joined(
    rank: int, num_ranks: int, folder: Path, timeout_s: float, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=timeout_s),
    )
    work(rank, num_ranks, folder, *arguments)
