"""``python -m cuda_stand_in profiling FILE WAITS``: ``flopcast profile --quick`` with shapes that a CPU can do.

WAITS: a JSON list of what the host has waited for where its own time was measured.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from builders import PROFILE_SHAPES
from cuda_stand_in import attention, compiler, nccl, waiting  # noqa: F401

from flopcast.kernels import timing
from flopcast.trainer import profile as profiling
from flopcast.trainer.profiling import measures, nodes


def main(arguments: Sequence[str]) -> None:
    measures.SIZES["cuda", True] = replace(measures.SIZES["cuda", True], **PROFILE_SHAPES)
    timing._SAMPLE_S = 1e-5
    host_time = timing.host_time
    waited: list[str] = []

    def timed(function: Callable[[int], object], device: torch.device, **_: int) -> timing.Timing:
        waiting.waits.clear()
        found = host_time(function, device, calls=1, samples=2)
        waited.extend(waiting.waits)
        return found

    timing.host_time = timed
    nodes.BUSY_SIDE, nodes.BUSY_PRODUCTS = 8, 1
    profiling.profile(Path(arguments[0]), quick=True, quiet=True)
    Path(arguments[1]).write_text(json.dumps(waited))
