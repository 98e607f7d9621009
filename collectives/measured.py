"""Forecasts for rows of a table of measured collectives, in the columns of nccl-tests' users.

Columns used: gpu, gpus_per_node, n_nodes, interconnect, nics_per_node, nic_gbit, fabric, sharp, collective, bytes,
nccl_version, notes; with ``calibrated`` also time_us and series. A missing value is an empty string or not-a-number,
and a column may be missing or called otherwise (:mod:`flopcast.collectives.columns`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flopcast.collectives import COLLECTIVES, all_reduce, settings
from flopcast.collectives.calibration import fit_alpha
from flopcast.collectives.columns import tidy
from flopcast.collectives.constants import DEFAULT, Constants
from flopcast.collectives.cost import Floats
from flopcast.collectives.group import FABRICS, Fabric, Group
from flopcast.collectives.machines import gpu

# The first pattern found in a fabric's name, lower case, tells it; none is InfiniBand, an unknown one Ethernet.
_FABRICS = (
    (r"efa", "efa"),
    (r"tcpx|fastrak|gpudirect-tcp", "gpudirect-tcp"),
    (r"slingshot|cxi|hsn", "slingshot"),
    (r"roce", "roce"),
    (r"^$|\bib|infiniband|[fehnx]dr|quantum", "infiniband"),
    (r"", "ethernet"),
)
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
    found = tidy(columns)
    count = len(found["bytes"])
    num_nodes, nics, nic = found["n_nodes"], found["nics_per_node"], found["nic_gbit"] * 1e9 / 8
    multi = num_nodes > 1

    reason = np.full(count, "", dtype="<U160")
    reason[found["gpu"] == ""] = "no GPU is given"
    reason[found["gpus_per_node"] * num_nodes == 1] = "one rank alone exchanges nothing"
    reason[multi & ~(nic > 0)] = "several nodes but no NIC rate (nic_gbit) is given"
    reason[~np.isin(found["collective"], list(COLLECTIVES))] = "the collective is not one that the model knows"
    reason[~(found["bytes"] >= 0)] = "no number of bytes, 0 or more, is given"
    reason = np.where(found["unreadable"] == "", reason, found["unreadable"])

    gpus, nodes = found["gpus_per_node"].astype(np.int64), num_nodes.astype(np.int64)
    # Where only the NIC rate is known: one NIC per GPU, as in the reference designs of eight-GPU nodes.
    nics_per_node = np.where(nics >= 1, nics, gpus).astype(np.int64)
    named = list(zip(found["gpu"], found["interconnect"], (int(count) for count in gpus), strict=True))
    machines = {each: gpu(*each) for each in set(named)}
    rows = [machines[each] for each in named]
    # Boards of four join their GPUs by NVLinks between each two; a larger one has a switch.
    switched = (gpus > 4) | (np.char.find(np.char.upper(found["interconnect"]), "NVSWITCH") >= 0)
    words = zip(found["fabric"], found["interconnect"], found["notes"], strict=True)
    fabric = Fabric(
        architecture=np.array([row.architecture for row in rows], dtype=np.int64),
        nvlink_bytes_per_s=np.array([row.rate(int(count)) for row, count in zip(rows, gpus, strict=True)]),
        nvswitch=switched & ~np.array([settings.without_nvls(note) for note in found["notes"]], dtype=np.bool_),
        nics_per_node=np.where(multi, nics_per_node, 0),
        nic_bytes_per_s=np.where(multi & (nic > 0), nic, np.where(multi, 1.0, 0.0)),
        fabric=np.array([_fabric(name) for name in found["fabric"]], dtype=np.int64),
        gpus_per_node=gpus,
        sharp=found["sharp"] == 1,
        nccl_minor=np.array([settings.nccl_minor(version) for version in found["nccl_version"]], dtype=np.int64),
        min_channels=np.array([settings.min_channels(note) for note in found["notes"]], dtype=np.int64),
        nvls_chunk_bytes=np.array([settings.nvls_chunk_bytes(row) for row in words], dtype=np.int64),
        gpus_per_process=np.array(
            [settings.gpus_per_process(*row) for row in zip(found["notes"], gpus, strict=True)], dtype=np.int64
        ),
    )
    return Table(
        collective=found["collective"],
        tensor_bytes=np.nan_to_num(found["bytes"]),
        group=Group(gpus * nodes, gpus),
        fabric=fabric,
        algorithm=np.array([settings.algorithm(note) for note in found["notes"]], dtype=np.str_),
        skip_reason=reason,
    )


def forecast_rows(
    columns: Mapping[str, NDArray[Any]],
    constants: Constants = DEFAULT,
    *,
    calibrated: bool = False,
) -> tuple[Floats, NDArray[np.str_]]:
    """Seconds of every row, not-a-number where it is skipped, and the reason for skipping it ("" otherwise).

    From specifications alone, NCCL's version and what the notes say of its settings
    (:mod:`flopcast.collectives.settings`); ``calibrated`` fits each series' launch time and hops to its own smallest
    rows.
    """
    table = read(columns)
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
        found: Floats = COLLECTIVES[name].cost(size, group, fabric, constants).time_s
        if name == "all_reduce" and algorithm:
            forced = all_reduce.forced(size, group, fabric, constants, algorithm).time_s
            # What was asked for and cannot run NCCL replaces by what can.
            return np.where(np.isfinite(forced), forced, found)
        return found

    return call


def _calibrate(columns: Mapping[str, NDArray[Any]], table: Table, constants: Constants) -> Fabric:
    """The fabric of every row with the launch and hop corrections of its series."""
    found = tidy(columns)
    count = len(table.tensor_bytes)
    series, measured, out_of_place = found["series"], found["time_us"] * 1e-6, found["in_place"] != 1
    launch, hop = np.ones(count), np.ones(count)
    for name in sorted(set(series)):
        for collective in sorted(set(table.collective[series == name])):
            mine = (series == name) & (table.collective == collective) & (table.skip_reason == "")
            chosen = smallest(table.tensor_bytes, mine & out_of_place & (measured > 0))
            if chosen.size == 0:
                continue
            fitted = fit_alpha(
                table.tensor_bytes[chosen],
                measured[chosen],
                rows_of(table.group, chosen),
                rows_of(table.fabric, chosen),
                _cost(str(collective), str(table.algorithm[chosen[0]]), constants),
            )
            launch[mine], hop[mine] = fitted.launch_scale, fitted.hop_scale
    return replace(table.fabric, launch_scale=launch, hop_scale=hop)


def smallest(tensor_bytes: Floats, allowed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The rows of at least 1 KiB that an alpha is fitted to: up to six, none above 32 times the smallest."""
    rows = np.flatnonzero(allowed & (tensor_bytes >= 1024))
    rows = rows[np.argsort(tensor_bytes[rows], kind="stable")][:SMALL_ROWS]
    if rows.size == 0 or tensor_bytes[rows[0]] > SMALL_BYTES:
        return rows[:0]
    return np.asarray(rows[tensor_bytes[rows] <= SMALL_SPAN * tensor_bytes[rows[0]]])


def _fabric(name: str) -> int:
    """The code of a fabric as tables write it."""
    return FABRICS.index(next(fabric for pattern, fabric in _FABRICS if re.search(pattern, name.lower())))
