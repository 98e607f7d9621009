"""The list of measurements of a profile: compute, memory, launches and the optimizer, on one device.

A measurement is a name and a function that returns records as :mod:`flopcast.kernels.microbenchmark` makes them. Every
rank measures the same list at the same time, as ranks of a job load a node.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from flopcast.kernels import microbenchmark
from flopcast.kernels.microbenchmark import ATTENTIONS, COPY_BYTES, GRID_GEMMS, OPTIMIZER_PARAMETERS, PLAMO_GEMMS
from flopcast.trainer.profiling import pieces

Record = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """What to measure on a kind of device: (m, n, k) of products, (B, S, Hq, Hkv, Dh) of attention, and so on.

    ``pieces``: (tokens, width) of memory-bound work. ``collective_bytes``: smallest and largest. ``units``: sides D of
    the D x D parameters that the engine gathers and reduces.
    """

    gemms: Sequence[tuple[int, int, int]]
    attentions: Sequence[tuple[int, int, int, int, int]]
    copies: Sequence[int]
    parameters: Sequence[int]
    pieces: Sequence[tuple[int, int]]
    collective_bytes: tuple[int, int]
    units: Sequence[int]
    samples: int


def _cube(rows: Sequence[int], sides: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    return tuple((m, n, k) for m in rows for n in sides for k in sides)


# A GPU runs models of billions of parameters, a CPU those of millions: the shapes are around theirs.
SIZES = {
    ("cuda", False): Sizes(
        PLAMO_GEMMS + GRID_GEMMS,
        ATTENTIONS,
        COPY_BYTES,
        OPTIMIZER_PARAMETERS,
        ((1024, 2048), (4096, 2048), (4096, 5120), (16384, 5120)),
        (2**13, 2**30),
        (512, 2048, 8192),
        20,
    ),
    ("cuda", True): Sizes(
        (*_cube((2048, 8192), (1024, 4096)), (8192, 16384, 4096), (8192, 4096, 16384), (8192, 50432, 2048)),
        ((4, 2048, 16, 16, 128), (1, 4096, 40, 5, 128)),
        COPY_BYTES[1:],
        OPTIMIZER_PARAMETERS[1:],
        ((4096, 2048), (8192, 4096)),
        (2**14, 2**28),
        (512, 4096),
        8,
    ),
    ("cpu", False): Sizes(
        (*_cube((128, 512, 2048), (128, 512, 2048)), (512, 8192, 512)),
        ((4, 128, 4, 2, 32), (4, 256, 8, 2, 32), (2, 256, 8, 2, 64), (2, 512, 8, 2, 64), (1, 1024, 8, 8, 64)),
        (2**16, 2**20, 2**24, 2**27),
        (2**16, 2**20, 2**23),
        ((256, 128), (512, 256), (512, 512), (2048, 512), (2048, 1024)),
        (2**12, 2**26),
        (64, 256, 512, 1024, 2048),
        10,
    ),
    ("cpu", True): Sizes(
        (*_cube((512,), (128, 512)), (512, 2048, 256), (128, 512, 2048)),
        ((2, 128, 4, 2, 32), (4, 256, 8, 2, 32), (2, 256, 8, 2, 64)),
        (2**18, 2**22, 2**25),
        (2**16, 2**20),
        ((512, 256), (1024, 512)),
        (2**12, 2**22),
        (64, 512),
        5,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """``name`` is what the progress bar shows and what a resumed profile finds again."""

    name: str
    run: Callable[[], list[Record]]


def measurements(device: torch.device, sizes: Sizes) -> Iterator[Measurement]:
    """Everything that one device measures by itself, in order."""
    samples = sizes.samples
    yield Measurement("launch", lambda: [*microbenchmark.launch(device), pieces.launch_of_layer(device)])
    for m, n, k in sizes.gemms:
        yield Measurement(f"gemm {m} {n} {k}", partial(microbenchmark.gemm, device, ((m, n, k),), samples=samples))
    for shape in sizes.attentions:
        name = "attention " + " ".join(str(size) for size in shape)
        yield Measurement(name, partial(microbenchmark.attention, device, (shape,), samples=samples))
        yield Measurement(f"{name} packed", partial(pieces.packed_attention, device, shape, samples))
    for size in sizes.copies:
        yield Measurement(f"copy {size}", partial(microbenchmark.copy, device, (size,), samples))
    for number in sizes.parameters:
        yield Measurement(f"optimizer {number}", partial(microbenchmark.optimizer, device, (number,), samples))
    for tokens, width in sizes.pieces:
        for piece in pieces.PIECES:
            name = f"kernel {piece} {tokens} {width}"
            yield Measurement(name, partial(pieces.measure, piece, tokens, width, device, samples))
