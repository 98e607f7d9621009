"""How latency and transfer combine in a pipelined collective."""

import numpy as np

from flopcast.collectives.cost import Floats


def overlapped(transfer_s: Floats, latency_s: Floats) -> Floats:
    """Time of the steps of a ring: ``T = t/2 + ((t/2)^3 + l^3)^(1/3)``, t the transfers and l the step latencies.

    NCCL sends each step's chunk as two slices (SLICESTEPS is half of CHUNKSTEPS in src/include/device.h, 2.30.7):
    while the second slice is on the wire the latency of the first one passes, so a step takes half its transfer
    plus the larger of the other half and the latency. The cubic mean is that larger one with its corner rounded.
    A ring of thousands of ranks is therefore bound by its rate, not by its latency, as soon as half a step's
    transfer outlasts a step's latency.
    """
    half = transfer_s / 2
    return np.asarray(half + np.cbrt(half * half * half + latency_s * latency_s * latency_s))


def fill(transfer_s: Floats, latency_s: Floats, chunks: float, limit: float) -> Floats:
    """Time to fill the pipeline: ``1 / (1/(chunks t) + 1/(limit l))``, t the transfer and l the latency of the path.

    A small message is a single chunk, and filling the pipeline costs ``chunks`` times its transfer; NCCL cuts
    larger ones until the chunks are as small as the path's latency allows, and filling costs ``limit`` latencies.
    """
    some = chunks * transfer_s
    most = limit * latency_s
    return np.asarray(some * most / np.maximum(some + most, 1e-30))
