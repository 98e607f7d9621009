"""One of two ranks that train a tiny model for two steps, on the stand-in and on the CPU; writes what it came to.

``python -m cuda_stand_in training FOLDER STRATEGY ...`` with RANK and WORLD_SIZE as torchrun sets them.
FOLDER/rank-R.json then holds, for each strategy on "cuda" and on "cpu", by step ``losses``, ``norms`` and,
of the stand-in, the host's ``waits``, the kernels' ``launches`` and the calls of ``attention``.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from cuda_stand_in import attention, compiler, nccl, waiting  # noqa: F401
from training_runs import run_settings

from flopcast.trainer import loop
from flopcast.trainer.log import steps

STEPS = 2
NOTES = {"waits": waiting.waits, "launches": compiler.launches, "attention": attention.calls}


def train(folder: Path, device: str, strategy: str) -> dict[str, list[Any]]:
    """The run's steps, each with what was noted of it."""
    found: dict[str, list[Any]] = {name: [] for name in NOTES}
    take_step = loop.Run._optimizer_step

    def observed(run: loop.Run, *arguments: Any) -> bool:
        for notes in NOTES.values():
            notes.clear()
        stopping = take_step(run, *arguments)
        for name, notes in NOTES.items():
            found[name].append([*notes])
        return stopping

    os.environ["STAND_IN_STORE"] = str(folder / "store")
    settings = run_settings(
        folder, optimizer__num_steps=STEPS, plan__dtype="bf16", plan__micro_batch=1, plan__strategy=strategy
    )
    with (
        patch.object(loop.Run, "_optimizer_step", observed),
        patch.object(torch.cuda, "is_available", lambda: device == "cuda"),
        patch.object(loop, "set_timeout"),  # PyTorch sets one on its own backends alone
    ):
        loop.train(settings)
    logged = steps(folder / "run").values()
    return {**found, "losses": [s["loss"] for s in logged], "norms": [s["gradient_norm"] for s in logged]}


def main(arguments: Sequence[str]) -> None:
    folder, strategies, rank = Path(arguments[0]), arguments[1:], os.environ["RANK"]
    found: dict[str, dict[str, Any]] = {s: {} for s in strategies}
    for strategy in strategies:
        for device in ("cuda", "cpu"):
            place = folder / f"{strategy}-{device}"
            place.mkdir(exist_ok=True)
            found[strategy][device] = train(place, device, strategy)
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
