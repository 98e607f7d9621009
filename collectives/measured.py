"""Forecasts for rows of a table of measured collectives, in the columns of nccl-tests' users.

Columns used: gpu, gpus_per_node, n_nodes, interconnect, nics_per_node, nic_gbit, fabric, sharp, collective, bytes,
notes; with ``calibrated`` also time_us and series. A missing value is an empty string or not-a-number.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flopcast.collectives import COLLECTIVES, all_reduce
from flopcast.collectives.calibration import fit_alpha
from flopcast.collectives.constants import DEFAULT, Constants
from flopcast.collectives.cost import Floats
from flopcast.collectives.group import FABRICS, Fabric, Group
from flopcast.collectives.machines import gpu

NAMES = {"sendrecv": "point_to_point", "alltoall": "all_to_all"}
_FABRIC_WORDS = {
    "ib": "infiniband",
    "rocev2": "roce",
    "tcpx": "gpudirect-tcp",
    "tcpxo": "gpudirect-tcp",
    "slingshot-11": "slingshot",
    "tcp": "ethernet",
}
# The smallest rows that a calibration may use: none of a series that starts above this.
SMALL_BYTES = 8 * 2**20
SMALL_ROWS = 6
SMALL_SPAN = 32


@dataclass(frozen=True)
class Table:
    """Rows turned into arguments of the cost model; ``algorithm`` is what the run's notes say it forced, or ""."""

    collective: NDArray[np.str_]
    tensor_bytes: Floats
    group: Group
    fabric: Fabric
    algorithm: NDArray[np.str_]
    skip_reason: NDArray[np.str_]


def read(columns: Mapping[str, NDArray[Any]]) -> Table:
    """The arrays behind the columns; a row that cannot be forecast gets a reason and harmless values."""
    count = len(columns["bytes"])
    gpus_per_node, num_nodes = _numbers(columns, "gpus_per_node"), _numbers(columns, "n_nodes")
    nic = _numbers(columns, "nic_gbit") * 1e9 / 8
    nics = _numbers(columns, "nics_per_node")
    words = {name: _words(columns, name, count) for name in ("gpu", "interconnect", "fabric", "collective", "notes")}
    collective = np.array([NAMES.get(name, name) for name in words["collective"]], dtype=np.str_)
    multi = num_nodes > 1

    reason = np.full(count, "", dtype="<U80")
    reason[words["gpu"] == ""] = "no GPU is given"
    reason[~((gpus_per_node >= 1) & (num_nodes >= 1))] = "gpus_per_node or n_nodes is missing"
    reason[multi & ~(nic > 0)] = "several nodes but no NIC rate (nic_gbit) is given"
    reason[~np.isin(collective, list(COLLECTIVES))] = "the collective is not one that the model knows"
    reason[~(_numbers(columns, "bytes") >= 0)] = "bytes is missing"

    gpus = np.where(gpus_per_node >= 1, gpus_per_node, 1).astype(np.int64)
    nodes = np.where(num_nodes >= 1, num_nodes, 1).astype(np.int64)
    # Where only the NIC rate is known: one NIC per GPU, as in the reference designs of eight-GPU nodes.
    nics_per_node = np.where(nics >= 1, nics, gpus).astype(np.int64)
    machines = {pair: gpu(*pair) for pair in set(zip(words["gpu"], words["interconnect"], strict=True))}
    rows = [machines[pair] for pair in zip(words["gpu"], words["interconnect"], strict=True)]
    fabric = Fabric(
        architecture=np.array([row.architecture for row in rows], dtype=np.int64),
        nvlink_bytes_per_s=np.array([row.nvlink_bytes_per_s for row in rows]),
        nvswitch=(gpus >= 8) & (np.char.find(words["notes"], "NCCL_NVLS_ENABLE=0") < 0),
        nics_per_node=np.where(multi, nics_per_node, 0),
        nic_bytes_per_s=np.where(multi & (nic > 0), nic, np.where(multi, 1.0, 0.0)),
        fabric=np.array([_fabric(name) for name in words["fabric"]], dtype=np.int64),
        gpus_per_node=gpus,
        sharp=_numbers(columns, "sharp") == 1 if "sharp" in columns else np.zeros(count, dtype=np.bool_),
    )
    return Table(
        collective=collective,
        tensor_bytes=np.nan_to_num(_numbers(columns, "bytes")),
        group=Group(gpus * nodes, gpus),
        fabric=fabric,
        algorithm=np.array([_forced(note) for note in words["notes"]], dtype=np.str_),
        skip_reason=reason,
    )


def forecast_rows(
    columns: Mapping[str, NDArray[Any]],
    constants: Constants = DEFAULT,
    *,
    calibrated: bool = False,
    settings: bool = True,
) -> tuple[Floats, NDArray[np.str_]]:
    """Seconds of every row, not-a-number where it is skipped, and the reason for skipping it ("" otherwise).

    From specifications alone; ``calibrated`` fits each series' launch time and hops to its own smallest rows.
    ``settings`` honours what the notes say the run forced (NCCL_ALGO, NCCL_NVLS_ENABLE=0).
    """
    table = read(columns)
    if not settings:
        table = replace(table, algorithm=np.full_like(table.algorithm, ""))
    if calibrated:
        table = replace(table, fabric=_calibrate(columns, table, constants))
    return times(table, constants), table.skip_reason


def times(table: Table, constants: Constants) -> Floats:
    """Seconds of every row of ``table`` that is not skipped."""
    time_s = np.full(table.tensor_bytes.shape, np.nan)
    fine = table.skip_reason == ""
    for name, algorithm in sorted(set(zip(table.collective[fine], table.algorithm[fine], strict=True))):
        here = np.flatnonzero(fine & (table.collective == name) & (table.algorithm == algorithm))
        time_s[here] = _cost(str(name), str(algorithm), constants)(
            table.tensor_bytes[here], rows_of(table.group, here), rows_of(table.fabric, here)
        )
    return time_s


def rows_of(item: Any, rows: NDArray[np.int64]) -> Any:
    """The same group or fabric with only some of its rows; scalars stay scalars."""
    return replace(
        item,
        **{
            field.name: np.asarray(getattr(item, field.name))[rows]
            for field in fields(item)
            if np.ndim(getattr(item, field.name))
        },
    )


def _cost(name: str, algorithm: str, constants: Constants) -> Callable[[Floats, Group, Fabric], Floats]:
    def call(size: Floats, group: Group, fabric: Fabric) -> Floats:
        if name == "all_reduce" and algorithm:
            return all_reduce.cost(size, group, fabric, constants, algorithm=algorithm).time_s
        found: Floats = COLLECTIVES[name].cost(size, group, fabric, constants).time_s
        return found

    return call


def _calibrate(columns: Mapping[str, NDArray[Any]], table: Table, constants: Constants) -> Fabric:
    """The fabric of every row with the launch and hop corrections of its series."""
    count = len(table.tensor_bytes)
    series, measured = _words(columns, "series", count), _numbers(columns, "time_us") * 1e-6
    out_of_place = _numbers(columns, "in_place") != 1 if "in_place" in columns else np.ones(count, dtype=np.bool_)
    launch, hop = np.ones(count), np.ones(count)
    for name in sorted(set(series)):
        for collective in sorted(set(table.collective[series == name])):
            mine = (series == name) & (table.collective == collective) & (table.skip_reason == "")
            chosen = smallest(table.tensor_bytes, mine & out_of_place & (measured > 0))
            if chosen.size == 0:
                continue
            found = fit_alpha(
                table.tensor_bytes[chosen],
                measured[chosen],
                rows_of(table.group, chosen),
                rows_of(table.fabric, chosen),
                _cost(str(collective), str(table.algorithm[chosen[0]]), constants),
            )
            launch[mine], hop[mine] = found.launch_scale, found.hop_scale
    return replace(table.fabric, launch_scale=launch, hop_scale=hop)


def smallest(tensor_bytes: Floats, allowed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The rows of at least 1 KiB that an alpha is fitted to: up to six, none above 32 times the smallest."""
    rows = np.flatnonzero(allowed & (tensor_bytes >= 1024))
    rows = rows[np.argsort(tensor_bytes[rows], kind="stable")][:SMALL_ROWS]
    if rows.size == 0 or tensor_bytes[rows[0]] > SMALL_BYTES:
        return rows[:0]
    return np.asarray(rows[tensor_bytes[rows] <= SMALL_SPAN * tensor_bytes[rows[0]]])


def _numbers(columns: Mapping[str, NDArray[Any]], name: str) -> Floats:
    """A numeric column; anything that is not a number becomes not-a-number."""
    values = np.asarray(columns[name])
    if values.dtype.kind in "iufb":
        return values.astype(np.float64)
    found = np.full(values.shape, np.nan)
    for place, value in enumerate(values):
        try:
            found[place] = float(value)
        except (TypeError, ValueError):
            continue
    return found


def _words(columns: Mapping[str, NDArray[Any]], name: str, count: int) -> NDArray[np.str_]:
    """A column of words; a missing value or column becomes empty."""
    if name not in columns:
        return np.full(count, "", dtype="<U1")
    return np.array(
        [value.strip() if isinstance(value, str) else "" for value in columns[name].tolist()], dtype=np.str_
    )


def _fabric(name: str) -> int:
    """The code of a fabric as tables write it; InfiniBand where nothing is said, Ethernet where it is unknown."""
    word = name.lower()
    word = _FABRIC_WORDS.get(word, word) or "infiniband"
    return FABRICS.index(word) if word in FABRICS else FABRICS.index("ethernet")


def _forced(note: str) -> str:
    """The algorithm that the notes of a run say it forced with NCCL_ALGO, or ""."""
    found = re.search(r"NCCL_ALGO=(?:ALLREDUCE:)?(RING|TREE|NVLSTREE|NVLS)\b", note.upper())
    return {"RING": "ring", "TREE": "tree", "NVLSTREE": "nvls-tree", "NVLS": "nvls"}[found.group(1)] if found else ""
