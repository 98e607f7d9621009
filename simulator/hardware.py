"""The machine as the cost functions see it: numbers per case, so that one call may cost plans of many clusters."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flopcast.collectives.group import Fabric, architecture_code, fabric_code
from flopcast.errors import InputError
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.measured import Measured
from flopcast.simulator.operation import Array


@dataclass(frozen=True)
class Hardware:
    """Of each case (plan): ``architecture`` a code into ARCHITECTURES, peaks, memory, and what carries collectives.

    ``measured``: how this machine differs from the formulas, where all cases are of one machine that was measured.
    """

    architecture: NDArray[np.int64]
    power_w: Array
    tensor_flop_per_s: Array
    fp8_flop_per_s: Array
    matmul_flop_per_s: Array
    sustained_share: Array
    memory_bytes: Array
    memory_bytes_per_s: Array
    gpus_per_node: NDArray[np.int64]
    fabric: Fabric
    measured: Measured | None = None

    @classmethod
    def of(cls, clusters: Sequence[Cluster]) -> "Hardware":
        """The hardware of each case's cluster; one cluster is a sequence of length 1, which broadcasts."""

        def column(values: Sequence[float]) -> Array:
            return np.array(values, dtype=np.float64)

        architecture = np.array([architecture_code(c.gpu.architecture) for c in clusters])
        gpus_per_node = np.array([c.gpus_per_node for c in clusters], dtype=np.int64)
        fabric = Fabric(
            architecture=architecture,
            nvlink_bytes_per_s=column([c.nvlink_bytes_per_s for c in clusters]),
            nvswitch=np.array([c.nvswitch for c in clusters]),
            nics_per_node=np.array([c.nics_per_node for c in clusters], dtype=np.int64),
            nic_bytes_per_s=column([c.nic_bytes_per_s for c in clusters]),
            fabric=np.array([fabric_code(c.fabric) for c in clusters]),
            gpus_per_node=gpus_per_node,
            sharp=np.array([c.sharp for c in clusters]),
        )
        measured = _measured(clusters)
        if measured is not None:
            fabric = replace(fabric, **measured.fabric_scales)
        return cls(
            architecture,
            column([c.gpu.power_w for c in clusters]),
            column([c.gpu.tensor_flop_per_s for c in clusters]),
            column([c.gpu.fp8_flop_per_s for c in clusters]),
            column([c.gpu.matmul_flop_per_s for c in clusters]),
            column([c.gpu.sustained_share for c in clusters]),
            column([c.gpu.memory_bytes for c in clusters]),
            column([c.gpu.memory_bytes_per_s for c in clusters]),
            gpus_per_node,
            fabric,
            measured,
        )


def _measured(clusters: Sequence[Cluster]) -> Measured | None:
    """The measurements that all clusters share. Raises InputError where only some have them."""
    found = {id(cluster.measured): cluster for cluster in clusters}
    if len(found) > 1:
        names = " and ".join(sorted({cluster.name for cluster in found.values()}))
        raise InputError(f"{names} cannot be forecast in one call: a profile corrects one machine; forecast them apart")
    return clusters[0].measured
