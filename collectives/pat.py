"""PAT: all-gather and reduce-scatter with one rank per node in log2(n) rounds, the cure for long rings."""

import numpy as np

from flopcast.collectives import nccl
from flopcast.collectives.cost import PAT, SIMPLE, Candidate, Floats
from flopcast.collectives.links import Links


def pat(bus_bytes: Floats, on: Links) -> list[Candidate]:
    """T = launch + 8 us + log2(N) (4 us + fabric) + 2.8 us n + (n-1)/n S / (0.75 B), all NCCL's own figures."""
    latency = nccl.PAT_BASE_S + on.hops * (nccl.PAT_NETWORK_STEP_S + on.crossing_s) + nccl.PAT_RANK_S * on.ranks
    time = on.launch_s + latency + bus_bytes / (nccl.PAT_SHARE * on.ring_bus)
    able = on.multi & (on.ranks_per_node == 1)
    return [Candidate(PAT, SIMPLE, np.where(able, time, np.inf), bus_bytes)]
