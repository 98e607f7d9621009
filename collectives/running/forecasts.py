"""The forecast beside what was run: the cost model's, or a machine's own measurements where it has them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from flopcast.collectives import ALGORITHMS, COLLECTIVES, PROTOCOLS, Fabric, Group, all_reduce, settings
from flopcast.collectives.columns import collective_name
from flopcast.collectives.running.nccl_tests import Log
from flopcast.collectives.running.results import Forecast, Row
from flopcast.errors import InputError


@dataclass(frozen=True)
class Machine:
    """The machine that ``--cluster`` names.

    ``measured_s``: seconds of a collective (its name in the cost model, bytes of the tensor, group) by measurements of
    this very machine, None where it has none. It is a function because profiles are the simulator's.
    """

    fabric: Fabric
    measured_s: Callable[[str, float, Group], float | None] | None = None

    def check(self, ranks_per_node: int, num_nodes: int) -> None:
        """Raise InputError where this is no machine that so many ranks on each of so many hosts can be on."""
        gpus = int(np.max(self.fabric.gpus_per_node))
        if ranks_per_node > gpus:
            raise InputError(
                f"--cluster has {gpus} GPU{'s' * (gpus > 1)} per node, but {ranks_per_node} ranks were started on each "
                f"host; start {gpus} per host, or name the cluster that this is"
            )
        if num_nodes > 1 and not (np.all(self.fabric.nics_per_node) and np.all(self.fabric.nic_bytes_per_s)):
            raise InputError(
                f"--cluster has no network, but the ranks are on {num_nodes} hosts; give it a [network], or name the "
                "cluster that this is"
            )

    def forecast(self, name: str, num_bytes: float, group: Group) -> Forecast:
        """Seconds, algorithm and protocol of a collective, by the cost model's name or nccl-tests', or of our torus."""
        if name == "torus_all_reduce":
            cost, measured_s = all_reduce.cost(num_bytes, group, self.fabric, algorithm="torus"), None
        else:
            known = collective_name(name)
            cost = COLLECTIVES[known].cost(num_bytes, group, self.fabric)
            measured_s = self.measured_s(known, num_bytes, group) if self.measured_s else None
        chosen = f"{ALGORITHMS[int(cost.algorithm.flat[0])]}/{PROTOCOLS[int(cost.protocol.flat[0])]}"
        return Forecast(float(cost.time_s.flat[0]) if measured_s is None else measured_s, chosen)


def with_forecasts(log: Log, machine: Machine, name: str) -> tuple[Row, ...]:
    """The rows of the log ``name`` with the forecast for its ranks, NCCL version and GPUs per process on ``machine``.

    A row of 0 bytes or of a collective that the cost model does not know keeps none. Raises InputError where the log
    does not say who its ranks are, or they cannot be on that machine.
    """
    mend = "leave --cluster out, or give a log that lists all of them ('#  Rank  0 ... on HOST')"
    if len(log.hosts) < 2:
        said = "no ranks" if not log.hosts else "one rank, which exchanges nothing"
        raise InputError(f"{name}: lists {said}, so it has no forecast; {mend}")
    counts = {host: log.hosts.count(host) for host in log.hosts}
    ranks_per_node = len(log.hosts) // log.num_nodes
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} on {host}" for host, count in list(counts.items())[:3])
        raise InputError(f"{name}: lists unequal numbers of ranks ({listed}), so it has no forecast; {mend}")
    machine.check(ranks_per_node, log.num_nodes)
    fabric = replace(machine.fabric, gpus_per_process=log.gpus_per_process)
    if log.nccl_version:
        fabric = replace(fabric, nccl_minor=settings.nccl_minor(log.nccl_version))
    told, group = replace(machine, fabric=fabric), Group(len(log.hosts), ranks_per_node)

    def forecast(row: Row) -> Forecast | None:
        known = row.collective == "torus_all_reduce" or collective_name(row.collective) in COLLECTIVES
        return told.forecast(row.collective, float(row.num_bytes), group) if known and row.num_bytes else None

    return tuple(replace(row, forecast=forecast(row)) for row in log.rows)
