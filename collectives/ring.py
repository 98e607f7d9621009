"""The ring: every rank sends to its neighbour; bandwidth-optimal, latency linear in the ranks."""

from collections.abc import Callable

import numpy as np

from flopcast.collectives import nccl
from flopcast.collectives.constants import Constants
from flopcast.collectives.cost import LL, LL128, RING, SIMPLE, Candidate, Floats
from flopcast.collectives.links import Links
from flopcast.collectives.pipeline import fill, overlapped


def ring(
    bus_bytes: Floats,
    passes: int,
    on: Links,
    constants: Constants,
    *,
    bus_share: float = 1.0,
    channel_bytes_per_s: float = nccl.RING_CHANNEL_BYTES_PER_S,
    ll_share: float = 1.0,
    chain: bool = False,
) -> list[Candidate]:
    """The three protocols of a ring whose ranks each send ``bus_bytes`` in ``passes`` turns of n - 1 steps.

    T = launch + base + overlapped(bus_bytes / B, steps * latency) + fill;  steps = passes (n - 1), of which
    passes (N - 1) cross between nodes. Latencies per step are NCCL's, plus what the fabric adds to a crossing.
    ``bus_share`` is what the collective reaches of the rate inside a node, ``channel_bytes_per_s`` what one channel
    between nodes moves at most. LL moves ``constants.ll_share`` of the ring's rate (``ll_share`` of that again for
    collectives other than all-reduce) and overlaps nothing. LL128 moves 0.92 of the ring's rate, or the share of the
    NVLink rate that its copying through registers allows; inside a node its lines arrive one by one and nothing has to
    fill, while a NIC sends whole chunks as under Simple. In a ``chain`` (broadcast, reduce) the steps pass before the
    first byte arrives: they are what fills it, and latency and transfer add up.
    """
    crossings = np.where(on.multi, passes * (on.nodes - 1), 0.0)
    inside = passes * (on.ranks - 1) - crossings
    between = np.minimum(on.channel_rate, on.ring_channels * channel_bytes_per_s)
    bus = np.minimum(on.chain_bus * bus_share, np.where(on.multi, between, np.inf))
    transfer = bus_bytes / bus

    def latency(protocol: int) -> Floats:
        network = nccl.RING_NETWORK_STEP_S[protocol] + on.crossing_s
        return np.asarray(inside * nccl.RING_NVLINK_STEP_S[protocol] + crossings * network)

    combined: Callable[[Floats, Floats], Floats] = np.add if chain else overlapped

    def filling(transfer: Floats) -> Floats:
        filled = fill(transfer, on.base_s, constants.ring_fill_chunks, constants.ring_fill_limit)
        return np.zeros_like(filled) if chain else filled

    based = on.launch_s + on.base_s
    ll = transfer / (constants.ll_share * ll_share)
    ll128 = bus_bytes / np.minimum(nccl.LL128_PAYLOAD * bus, on.ll128_share * on.bus)
    times = {
        LL: on.launch_s + latency(LL) + ll,
        LL128: np.where(on.ll128, based + combined(ll128, latency(LL128)) + on.multi * filling(ll128), np.inf),
        SIMPLE: based + combined(transfer, latency(SIMPLE)) + filling(transfer),
    }
    return [Candidate(RING, protocol, np.asarray(time), bus_bytes) for protocol, time in times.items()]
