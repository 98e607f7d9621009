"""Who takes part in a collective (:class:`Group`) and what carries it (:class:`Fabric`)."""

from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from flopcast.errors import InputError, nearest

FloatArray: TypeAlias = "NDArray[np.float64] | float"
IntArray: TypeAlias = "NDArray[np.int64] | int"
BoolArray: TypeAlias = "NDArray[np.bool_] | bool"

ARCHITECTURES = ("volta", "ampere", "hopper", "blackwell", "other")
HOPPER, BLACKWELL = ARCHITECTURES.index("hopper"), ARCHITECTURES.index("blackwell")
# NCCL 2.27, of PyTorch 2.8 and 2.9.
USUAL_NCCL_MINOR = 27
FABRICS = ("infiniband", "roce", "efa", "gpudirect-tcp", "slingshot", "ethernet")


def architecture_code(name: str) -> int:
    """The code of a GPU architecture: its place in ``ARCHITECTURES``."""
    if name not in ARCHITECTURES:
        raise InputError(f"architecture '{name}' is unknown; {nearest(name, list(ARCHITECTURES))}")
    return ARCHITECTURES.index(name)


def hopper_or_later(architecture: IntArray) -> NDArray[np.bool_]:
    """Which codes of ``ARCHITECTURES`` are of Hopper or Blackwell."""
    code = np.asarray(architecture)
    return np.asarray((code == HOPPER) | (code == BLACKWELL))


def fabric_code(name: str) -> int:
    """The code of a network fabric: its place in ``FABRICS``."""
    if name not in FABRICS:
        raise InputError(f"fabric '{name}' is unknown; {nearest(name, list(FABRICS))}")
    return FABRICS.index(name)


def _refuse(bad: NDArray[np.bool_], field: str, value: object, mend: str) -> None:
    """Raise :class:`InputError` with the first offending value, if there is one."""
    if bad.any():
        shown = np.broadcast_to(np.asarray(value), bad.shape)[bad].flat[0]
        raise InputError(f"{field} is {shown}: {mend}")


@dataclass(frozen=True)
class Group:
    """The ranks of one collective and where they sit; every field is a scalar or an array over cases.

    ``size`` ranks in all, ``ranks_per_node`` of them in each node the group touches (a divisor of ``size``), and
    ``groups_per_node`` such groups in one node speaking at the same time: under tensor parallelism 8 in nodes of
    8 GPUs, each data-parallel group has one rank per node and eight groups share the node's NICs.
    """

    size: IntArray
    ranks_per_node: IntArray
    groups_per_node: IntArray = 1

    def __post_init__(self) -> None:
        size, per_node = np.asarray(self.size), np.asarray(self.ranks_per_node)
        for field in fields(self):
            value = np.asarray(getattr(self, field.name))
            _refuse(~(value >= 1), f"group.{field.name}", value, "give a whole number of at least 1")
            _refuse(value != np.floor(value), f"group.{field.name}", value, "give a whole number of at least 1")
        _refuse(
            np.asarray(size % per_node != 0),
            "group.size",
            size,
            "not divisible by ranks_per_node; give each node of the group the same number of ranks",
        )

    @property
    def num_nodes(self) -> NDArray[np.int64]:
        """Nodes the group spans."""
        return np.asarray(np.asarray(self.size) // np.asarray(self.ranks_per_node), dtype=np.int64)


@dataclass(frozen=True)
class Fabric:
    """What carries a collective: the links inside a node and the NICs between nodes.

    Every field is a scalar or an array over cases, so that one call costs rows of many machines.

    ``architecture`` is a code of ``ARCHITECTURES``, ``fabric`` one of ``FABRICS``. ``nvlink_bytes_per_s`` is one
    way per GPU by the datasheet (A100 300e9, H100 450e9, B200 900e9); for a node without NVLink give its PCIe
    rate (32e9 for generation 4 x16) and the architecture "other". ``nic_bytes_per_s`` is the line rate of one NIC,
    one way (400 Gbit/s is 50e9). A machine of one node needs no NIC.

    ``nccl_minor`` is x of NCCL 2.x, whose channels changed with it (2.20, 2.27, 2.28 and 2.29), and ``min_channels``
    what NCCL_MIN_CTAS or NCCL_MIN_NCHANNELS asks for, 1 where nothing does. ``nvls_chunk_bytes`` is
    NCCL_NVLS_CHUNKSIZE, which AWS's plugin and Google's gIB set to 512 KiB.

    ``gpus_per_process`` is 1 where every GPU has a process of its own, as under torchrun and MPI; one process for
    several (nccl-tests' ``-g``) sets them going one after another.

    The ``_scale`` fields are this machine's corrections of the global constants, 1 until a calibration sets them:
    ``launch_scale`` the time to launch, ``hop_scale`` what its fabric adds per node crossing, ``nvlink_scale``
    and ``nic_scale`` the share of each rate that it reaches.
    """

    architecture: IntArray
    nvlink_bytes_per_s: FloatArray
    nvswitch: BoolArray
    nics_per_node: IntArray
    nic_bytes_per_s: FloatArray
    fabric: IntArray
    gpus_per_node: IntArray
    sharp: BoolArray = False
    gpus_per_process: IntArray = 1
    nccl_minor: IntArray = USUAL_NCCL_MINOR
    min_channels: IntArray = 1
    nvls_chunk_bytes: IntArray = 128 * 2**10
    launch_scale: FloatArray = 1.0
    hop_scale: FloatArray = 1.0
    nvlink_scale: FloatArray = 1.0
    nic_scale: FloatArray = 1.0

    def __post_init__(self) -> None:
        for name, table in (("architecture", ARCHITECTURES), ("fabric", FABRICS)):
            code = np.asarray(getattr(self, name))
            bad = ~((code >= 0) & (code < len(table)))
            _refuse(bad, f"fabric.{name}", code, f"give a code from 0 to {len(table) - 1} ({', '.join(table)})")
        for name in (
            "nvlink_bytes_per_s",
            "gpus_per_node",
            "gpus_per_process",
            "nccl_minor",
            "min_channels",
            "nvls_chunk_bytes",
            "launch_scale",
            "hop_scale",
            "nvlink_scale",
            "nic_scale",
        ):
            value = np.asarray(getattr(self, name))
            _refuse(~((value > 0) & np.isfinite(value)), f"fabric.{name}", value, "give a positive number")
        for name in ("nics_per_node", "nic_bytes_per_s"):
            value = np.asarray(getattr(self, name))
            mend = "give a positive number, or 0 for a machine of one node"
            _refuse(~((value >= 0) & np.isfinite(value)), f"fabric.{name}", value, mend)
