"""A cluster: GPUs in nodes, nodes on a network, and what running it costs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from flopcast.errors import InputError
from flopcast.simulator.plain import check_counts, check_figures, check_flags, make_plain

if TYPE_CHECKING:
    from flopcast.simulator.calibrated import Calibrated
    from flopcast.simulator.measured import Measured


MOST_GPUS = 10_000_000


@dataclass(frozen=True)
class Gpu:
    """One GPU, by its datasheet (dense figures, never the sparse ones).

    ``tensor_flop_per_s`` is the 16-bit tensor-core peak, ``fp8_flop_per_s`` the 8-bit one (0: it has none).
    ``power_w`` is the board's limit: two cards of one chip differ by it in what they sustain. ``matmul_flop_per_s`` is
    what large 16-bit products were measured to sustain (0: nobody did, and it is the architecture's share of the peak);
    ``sustained_share`` is what this card reaches of that share, measured (0: as its power limit says).
    """

    name: str
    architecture: str
    tensor_flop_per_s: float
    memory_bytes: float
    memory_bytes_per_s: float
    power_w: float
    fp8_flop_per_s: float = 0.0
    matmul_flop_per_s: float = 0.0
    sustained_share: float = 0.0

    def __post_init__(self) -> None:
        make_plain(self)
        where = f"GPU '{self.name}'"
        check_figures(self, where, ("tensor_flop_per_s", "memory_bytes", "memory_bytes_per_s", "power_w"))
        check_figures(self, where, ("fp8_flop_per_s", "matmul_flop_per_s", "sustained_share"), zero=True)


@dataclass(frozen=True)
class Costs:
    """What a capacity plan adds to a cluster; None where the user has not said."""

    gpu_hour_price: float | None = None
    node_power_w: float | None = None
    node_mtbf_hours: float | None = None
    checkpoint_bytes_per_s: float | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        check_figures(self, "costs", [name for name, value in vars(self).items() if value is not None])


@dataclass(frozen=True)
class Cluster:
    """Nodes of ``gpus_per_node`` GPUs; bandwidths are one way: NVLink per GPU, ``nic_bytes_per_s`` per NIC.

    ``num_nodes`` is how many there are (None: as many as asked for). ``sources`` maps a field's path in the file to
    its citation; ``assumptions`` are the figures that are not published, one sentence each. ``measured``: what a
    profile of its devices corrects; ``calibration``: the range of the runs that its constants were fitted to.
    """

    name: str
    gpu: Gpu
    gpus_per_node: int
    nvlink_bytes_per_s: float
    nvswitch: bool
    nics_per_node: int
    nic_bytes_per_s: float
    fabric: str
    sharp: bool = False
    num_nodes: int | None = None
    costs: Costs = Costs()
    assumptions: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    measured: "Measured | None" = field(default=None, compare=False)
    calibration: "Calibrated | None" = field(default=None, compare=False)

    def __post_init__(self) -> None:
        make_plain(self)
        where = f"cluster '{self.name}'"
        if not isinstance(self.gpu, Gpu):
            raise InputError(f"{where}: gpu is {self.gpu!r}; give a Gpu, e.g. load_cluster('dgx-h100').gpu")
        check_counts(self, where, ("gpus_per_node", *(() if self.num_nodes is None else ("num_nodes",))))
        check_counts(self, where, ("nics_per_node",), least=0)
        check_figures(self, where, ("nvlink_bytes_per_s",))
        check_figures(self, where, ("nic_bytes_per_s",), zero=True)
        check_flags(self, where, ("nvswitch", "sharp"))

    def __repr__(self) -> str:
        node = f"{self.gpus_per_node} x {self.gpu.name}"
        nics = f", {self.nics_per_node} x {self.nic_bytes_per_s * 8e-9:g} Gbit/s {self.fabric}"
        return f"<Cluster {self.name}: nodes of {node}{nics if self.nics_per_node else ''}>"

    @property
    def node_bytes_per_s(self) -> float:
        """What all NICs of a node carry, one way."""
        return self.nics_per_node * self.nic_bytes_per_s

    def check_num_gpus(self, num_gpus: int) -> None:
        """Raise InputError unless the GPUs lie within one node or fill whole nodes that exist."""
        node = self.gpus_per_node
        if not isinstance(num_gpus, int | np.integer):
            raise InputError(f"--gpus is {num_gpus!r}; give one whole number, e.g. {node}")
        if num_gpus < 1:
            raise InputError(f"--gpus is {num_gpus}; ask for at least 1")
        if num_gpus > MOST_GPUS:
            raise InputError(f"--gpus is {num_gpus}; ask for at most {MOST_GPUS:,}")
        if num_gpus > node and num_gpus % node:
            below = num_gpus // node * node
            raise InputError(
                f"--gpus is {num_gpus}: {self.name} has nodes of {node}, so use at most {node} or a multiple of {node} "
                f"(nearest: {below} or {below + node})"
            )
        if self.num_nodes is not None and num_gpus > self.num_nodes * node and self.nics_per_node == 0:
            raise InputError(
                f"--gpus is {num_gpus}: {self.name} is one node of {node}; use at most {node}, or describe the network "
                "between nodes in its file"
            )
        if self.num_nodes is not None and num_gpus > self.num_nodes * node:
            nodes = f"{self.num_nodes:,} node{'s' if self.num_nodes > 1 else ''}"
            raise InputError(
                f"--gpus is {num_gpus}: {self.name} has {nodes}, so at most {self.num_nodes * node:,} GPUs"
            )
