"""``python -m cuda_stand_in profiling FILE``: ``flopcast profile --quick`` with shapes that a CPU can do."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cuda_stand_in import attention, compiler, nccl  # noqa: F401

from flopcast.kernels import timing
from flopcast.trainer import profile as profiling
from flopcast.trainer.profiling import measures, nodes

SMALL = replace(
    measures.SIZES["cuda", True],
    gemms=((32, 64, 48),),
    attentions=((1, 32, 2, 1, 16),),
    copies=(2**14,),
    parameters=(2**10,),
    pieces=((16, 128),),
    samples=2,
)


def main(arguments: Sequence[str]) -> None:
    measures.SIZES["cuda", True] = SMALL
    timing._SAMPLE_S = 1e-5
    host_time = timing.host_time
    timing.host_time = lambda function, device, **_: host_time(function, device, calls=1, samples=2)
    nodes.BUSY_SIDE, nodes.BUSY_PRODUCTS = 8, 1
    profiling.profile(Path(arguments[0]), quick=True, quiet=True)
