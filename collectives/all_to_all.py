"""All-to-all: every rank sends a different n-th of its tensor to every other rank."""

import numpy as np

from flopcast.collectives import nccl
from flopcast.collectives.constants import DEFAULT, Constants
from flopcast.collectives.cost import RING, SIMPLE, Candidate, Cost, Floats, checked_bytes, evaluate
from flopcast.collectives.group import Fabric, FloatArray, Group
from flopcast.collectives.links import links
from flopcast.collectives.pipeline import fill, overlapped


def cost(tensor_bytes: FloatArray, group: Group, fabric: Fabric, constants: Constants = DEFAULT) -> Cost:
    """Every rank sends S/n to each of the n - 1 others; ``tensor_bytes`` S is one rank's tensor, as nccl-tests has it.

    T = launch + p base + overlapped(max(S (g-1)/n / B_NVLink, S (n-g)/n / B_NIC of one rank), p (n-1) a_peer) + fill:
    a rank's messages leave by its own NIC, which they cannot exchange for another (nccl-tests issue 267). PCIe cards
    send to peers and to NICs through one slot, which the sum of both passes. A process sets up the sends of its p GPUs
    in turn (group.cc). The algorithm is reported as "ring", protocol Simple: NCCL runs it as plain sends and receives
    and has no model of it.
    """
    return evaluate(_candidates, tensor_bytes, group, fabric, constants)


def sent_bytes(tensor_bytes: FloatArray, group: Group) -> tuple[Floats, Floats]:
    """(inside, between): bytes one node's ranks send: g (g-1) S/n and g (n-g) S/n."""
    ranks, per_node = np.asarray(group.size, dtype=np.float64), np.asarray(group.ranks_per_node, dtype=np.float64)
    message = checked_bytes(tensor_bytes) / ranks
    return np.asarray(per_node * (per_node - 1) * message), np.asarray(per_node * (ranks - per_node) * message)


def _candidates(tensor_bytes: Floats, group: Group, fabric: Fabric, constants: Constants) -> list[Candidate]:
    on = links(group, fabric, constants)
    message = tensor_bytes / on.ranks
    inside = message * (on.ranks_per_node - 1) / (on.bus * constants.copy_share)
    # nic_rate already holds the share of its line rate that a NIC reaches in a ring; sends reach less.
    between = message * (on.ranks - on.ranks_per_node) / (on.nic_rate * constants.point_to_point_share)
    slot = np.where(on.pcie, message * (on.ranks - 1) / (on.bus * constants.copy_share), inside)
    transfer = np.maximum(slot, np.where(on.multi, between, 0.0))
    crossing = np.where(on.multi, nccl.RING_NETWORK_STEP_S[SIMPLE] + on.crossing_s, 0.0)
    peers = on.per_process * (on.ranks - 1) * constants.all_to_all_peer_s
    filling = fill(transfer, on.base_s, constants.ring_fill_chunks, constants.ring_fill_limit)
    time = on.launch_s + on.per_process * constants.all_to_all_base_s + crossing + overlapped(transfer, peers) + filling
    sent = on.ranks_per_node * (on.ranks - on.ranks_per_node) * message
    return [Candidate(RING, SIMPLE, np.asarray(time), sent)]
