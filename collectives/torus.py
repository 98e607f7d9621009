"""The 2-D torus all-reduce: rings along the rows of a grid, then along its columns.

Source: Mikami et al., "Massively Distributed SGD: ImageNet/ResNet-50 Training in a Flash", arXiv:1811.05233.
N = X Y ranks: reduce-scatter along the rows of X, all-reduce of a shard along the columns of Y, all-gather along
the rows. The bytes are those of one ring; the steps are 2 (X + Y - 2) instead of 2 (X Y - 1).
"""

import numpy as np

from flopcast.collectives import nccl
from flopcast.collectives.constants import Constants
from flopcast.collectives.cost import SIMPLE, TORUS, Candidate, Floats
from flopcast.collectives.group import Fabric, FloatArray, Group, IntArray
from flopcast.collectives.links import Links, links
from flopcast.collectives.pipeline import overlapped

# Rows of up to 2^8 nodes are tried.
MAX_ROW_POWER = 8


def steps(columns: IntArray, rows: IntArray) -> Floats:
    """Steps of one all-reduce: 2 (X - 1) along rows and 2 (Y - 1) along columns."""
    return np.asarray(2.0 * (np.asarray(columns) + np.asarray(rows) - 2))


def ring_steps(ranks: IntArray) -> Floats:
    """Steps of a plain ring over as many ranks: 2 (N - 1)."""
    return np.asarray(2.0 * (np.asarray(ranks) - 1))


def volume(columns: IntArray, rows: IntArray) -> Floats:
    """What a rank sends, over S: 2 ((X-1)/X + (Y-1)/(X Y)) = 2 (N-1)/N, the optimum of a ring."""
    x, y = np.asarray(columns, dtype=np.float64), np.asarray(rows, dtype=np.float64)
    return np.asarray(2 * ((x - 1) / x + (y - 1) / (x * y)))


def time(
    tensor_bytes: FloatArray,
    columns: IntArray,
    rows: IntArray,
    row_step_s: FloatArray,
    row_bytes_per_s: FloatArray,
    column_step_s: FloatArray,
    column_bytes_per_s: FloatArray,
) -> Floats:
    """T = 2(X-1) a_h + 2(X-1)/X S/B_h + 2(Y-1) a_v + 2(Y-1)/Y (S/X)/B_v, the paper's own formula (seconds)."""
    x, y = np.asarray(columns, dtype=np.float64), np.asarray(rows, dtype=np.float64)
    size = np.asarray(tensor_bytes, dtype=np.float64)
    along_rows = 2 * (x - 1) * row_step_s + 2 * (x - 1) / x * size / row_bytes_per_s
    along_columns = 2 * (y - 1) * column_step_s + 2 * (y - 1) / y * (size / x) / column_bytes_per_s
    return np.asarray(along_rows + along_columns)


def candidates(tensor_bytes: Floats, group: Group, fabric: Fabric, constants: Constants) -> list[Candidate]:
    """Tori whose rows are 1, 2, 4, ... whole nodes (X = g k over NVLink and NICs) and whose columns cross the rows.

    The g columns of a node run at once and share its NICs; each phase is one launch, with the corrections of a
    ring: its base, and the overlap of latency and transfer.
    """
    on = links(group, fabric, constants)
    return [_grid(tensor_bytes, 2.0**power, on) for power in range(MAX_ROW_POWER + 1)]


def _grid(tensor_bytes: Floats, row_nodes: float, on: Links) -> Candidate:
    """The torus with rows of ``row_nodes`` nodes; infinite where they do not divide the nodes."""
    x, y = on.ranks_per_node * row_nodes, on.nodes / row_nodes
    network_step = nccl.RING_NETWORK_STEP_S[SIMPLE] + on.crossing_s
    crossings = row_nodes - 1
    row_bytes = 2 * (x - 1) / x * tensor_bytes
    row_latency = 2 * ((x - 1 - crossings) * nccl.RING_NVLINK_STEP_S[SIMPLE] + crossings * network_step)
    row = overlapped(row_bytes / (on.ring_bus if row_nodes > 1 else on.bus), row_latency)
    # A rank's shard is S/X, and the node's g ranks run their columns at once.
    column_bytes = 2 * (y - 1) / y * tensor_bytes / row_nodes
    column = np.where(y > 1, overlapped(column_bytes / on.node_rate, 2 * (y - 1) * network_step), 0.0)
    phases = np.where(x > 1, 2.0, 0.0) + np.where(y > 1, 1.0, 0.0)
    time_s = phases * (on.launch_s + on.base_s) + row + column
    sent = column_bytes + (row_bytes if row_nodes > 1 else 0.0)
    return Candidate(TORUS, SIMPLE, np.where(on.nodes % row_nodes == 0, time_s, np.inf), np.asarray(sent))
