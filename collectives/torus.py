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
from flopcast.collectives.links import links
from flopcast.collectives.pipeline import overlapped


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
    """The torus whose rows are the nodes (X = g over NVLink) and whose columns cross them (Y = N over the NICs).

    The g columns of a node run at once and share its NICs; each phase is one launch, with the corrections of a
    ring: its base and the overlap of latency and transfer.
    """
    on = links(group, fabric, constants)
    x, y = on.ranks_per_node, on.nodes
    row_transfer = 2 * (x - 1) / x * tensor_bytes / on.bus
    row = overlapped(row_transfer, 2 * (x - 1) * nccl.RING_NVLINK_STEP_S[SIMPLE])
    network_step = nccl.RING_NETWORK_STEP_S[SIMPLE] + on.crossing_s
    sent = 2 * (y - 1) / y * tensor_bytes
    column = np.where(on.multi, overlapped(sent / on.node_rate, 2 * (y - 1) * network_step), 0.0)
    phases = np.where(x > 1, 2.0, 0.0) + np.where(on.multi, 1.0, 0.0)
    return [Candidate(TORUS, SIMPLE, phases * (on.launch_s + on.base_s) + row + column, sent)]
