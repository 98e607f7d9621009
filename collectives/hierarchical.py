"""The hierarchical all-reduce: reduce in each node, all-reduce between one rank per node, broadcast in each node."""

import numpy as np

from flopcast.collectives import nccl
from flopcast.collectives.constants import Constants
from flopcast.collectives.cost import HIERARCHICAL, SIMPLE, Candidate, Floats
from flopcast.collectives.group import Fabric, FloatArray, Group, IntArray
from flopcast.collectives.links import links
from flopcast.collectives.pipeline import overlapped


def time(
    tensor_bytes: FloatArray,
    columns: IntArray,
    rows: IntArray,
    row_step_s: FloatArray,
    row_bytes_per_s: FloatArray,
    column_step_s: FloatArray,
    column_bytes_per_s: FloatArray,
) -> Floats:
    """T = 2(X-1) a_h + 2(X-1)/X S/B_h + 2(Y-1) a_v + 2(Y-1)/Y S/B_v: the torus but for S in place of S/X.

    Source: arXiv:1811.05233, which compares the two: one rank of each row carries the whole tensor between rows.
    """
    x, y = np.asarray(columns, dtype=np.float64), np.asarray(rows, dtype=np.float64)
    size = np.asarray(tensor_bytes, dtype=np.float64)
    along_rows = 2 * (x - 1) * row_step_s + 2 * (x - 1) / x * size / row_bytes_per_s
    along_columns = 2 * (y - 1) * column_step_s + 2 * (y - 1) / y * size / column_bytes_per_s
    return np.asarray(along_rows + along_columns)


def candidates(tensor_bytes: Floats, group: Group, fabric: Fabric, constants: Constants) -> list[Candidate]:
    """X = g ranks over NVLink; between nodes the tensor of one rank per node, through that rank's own NICs."""
    on = links(group, fabric, constants)
    x, y = on.ranks_per_node, on.nodes
    row_transfer = 2 * (x - 1) / x * tensor_bytes / on.bus
    row = overlapped(row_transfer, 2 * (x - 1) * nccl.RING_NVLINK_STEP_S[SIMPLE])
    network_step = nccl.RING_NETWORK_STEP_S[SIMPLE] + on.crossing_s
    sent = 2 * (y - 1) / y * tensor_bytes
    # One rank of the node speaks for all: it has the NICs of that rank, and only the other groups to share with.
    column = np.where(on.multi, overlapped(sent / on.own_rate, 2 * (y - 1) * network_step), 0.0)
    phases = np.where(x > 1, 2.0, 0.0) + np.where(on.multi, 1.0, 0.0)
    return [Candidate(HIERARCHICAL, SIMPLE, phases * (on.launch_s + on.base_s) + row + column, sent)]
