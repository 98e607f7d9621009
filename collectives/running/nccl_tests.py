"""What nccl-tests' logs say, whatever their format: rows, ranks, and the names of collectives."""

import math
from dataclasses import dataclass

from flopcast.collectives.running.results import Row
from flopcast.errors import InputError, nearest

# How the table of measurements calls what nccl-tests' programs are called, "_perf" taken off.
COLLECTIVES = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "all_to_all": "all_to_all",
    "broadcast": "broadcast",
    "reduce": "reduce",
    "sendrecv": "sendrecv",
    # These have no file in the cost model; a table of measurements says what stands for them.
    "gather": "gather",
    "scatter": "scatter",
    "hypercube": "hypercube",
}
# What only this benchmark runs and prints.
OWN = ("quantised_all_gather", "torus_all_reduce")


@dataclass(frozen=True)
class Log:
    """Rows of one log and what it says of its machine: hosts and devices in rank order, the NCCL version or "".

    Ranks that the log leaves out of its list sit with the rank before them. ``gpus_per_process`` is what ``-g`` said.
    """

    rows: tuple[Row, ...]
    hosts: tuple[str, ...]
    devices: tuple[str, ...]
    nccl_version: str
    gpus_per_process: int = 1

    @property
    def num_nodes(self) -> int:
        """Different hosts, 1 where the log names none."""
        return max(1, len(set(self.hosts)))


def number(text: str, name: str, where: str) -> float:
    """A finite number; InputError names the cell otherwise."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: {name} is '{text}'; expected a number")
    return value


def time(text: str, unit_s: float, where: str) -> float:
    """A time in seconds; InputError names one that no clock can have shown."""
    value = number(text, "time", where)
    if value <= 0:
        raise InputError(f"{where}: time is {text}; expected more than 0, remove the row")
    return value * unit_s


def collective_named(name: str) -> str:
    """``alltoall``, ``alltoall_perf`` -> ``all_to_all``, as a user names it; InputError for an unknown one."""
    bare = name.removesuffix("_perf")
    if bare in OWN:
        return bare
    if bare not in COLLECTIVES:
        raise InputError(f"collective '{name}' is unknown; {nearest(bare, [*COLLECTIVES, *OWN])}")
    return COLLECTIVES[bare]


def collective_of(program: str, where: str, named: str | None) -> tuple[str, bool]:
    """``build/alltoall_perf`` -> ``all_to_all``, True; ``named``, False for a program of another name."""
    name = program.rsplit("/", 1)[-1].removesuffix(".exe").removesuffix("_mpi").removesuffix("_perf")
    if name in OWN:
        return name, True
    if name in COLLECTIVES:
        return COLLECTIVES[name], True
    if named is None:
        raise InputError(
            f"{where}: the program is '{program}'; expected one of nccl-tests', "
            "or name the collective, such as all_reduce"
        )
    return named, False


def version_of(code: int) -> str:
    """22907 -> "2.29.7"; before 2.9 the code had a digit less."""
    if code < 10000:
        return f"{code // 1000}.{code // 100 % 10}.{code % 100}"
    return f"{code // 10000}.{code // 100 % 100}.{code % 100}"
