"""The forecast beside what was run: the cost model's, or a machine's own measurements where it has them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flopcast.collectives import ALGORITHMS, COLLECTIVES, PROTOCOLS, Fabric, Group, all_reduce
from flopcast.collectives.columns import collective_name
from flopcast.collectives.running.results import Forecast
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
