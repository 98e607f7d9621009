"""``python -m cuda_stand_in profiling FILE``: ``flopcast profile --quick`` with shapes that a CPU can do."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from builders import PROFILE_SHAPES
from cuda_stand_in import attention, compiler, nccl  # noqa: F401

from flopcast.kernels import timing
from flopcast.trainer import profile as profiling
from flopcast.trainer.profiling import measures, nodes


def main(arguments: Sequence[str]) -> None:
    measures.SIZES["cuda", True] = replace(measures.SIZES["cuda", True], **PROFILE_SHAPES)
    timing._SAMPLE_S = 1e-5
    host_time = timing.host_time
    timing.host_time = lambda function, device, **_: host_time(function, device, calls=1, samples=2)
    nodes.BUSY_SIDE, nodes.BUSY_PRODUCTS = 8, 1
    profiling.profile(Path(arguments[0]), quick=True, quiet=True)
