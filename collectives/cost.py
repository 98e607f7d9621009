"""The answer of the cost model (:class:`Cost`) and the choice of the cheapest algorithm and protocol."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from flopcast.collectives.constants import Constants
from flopcast.collectives.group import Fabric, FloatArray, Group
from flopcast.errors import InputError

Floats: TypeAlias = NDArray[np.float64]
Checked = TypeVar("Checked", Group, Fabric)

ALGORITHMS = ("ring", "tree", "nvls", "nvls-tree", "collnet", "pat", "hierarchical", "torus")
PROTOCOLS = ("LL", "LL128", "Simple")
RING, TREE, NVLS, NVLS_TREE, COLLNET, PAT, HIERARCHICAL, TORUS = range(len(ALGORITHMS))
LL, LL128, SIMPLE = range(len(PROTOCOLS))

# Arrays are worked through in blocks that stay in a core's cache.
BLOCK = 8192


@dataclass(frozen=True)
class Cost:
    """What a collective costs and how it would run; every field is an array over cases.

    ``time_s`` seconds of one call; ``algorithm`` and ``protocol`` codes of ``ALGORITHMS`` and ``PROTOCOLS``;
    ``wire_bytes_per_s_per_nic`` the mean rate at which each NIC of the node sends, all the groups that speak at
    once counted (0 for a group inside one node).
    """

    time_s: Floats
    algorithm: NDArray[np.int64]
    protocol: NDArray[np.int64]
    wire_bytes_per_s_per_nic: Floats


@dataclass(frozen=True)
class Candidate:
    """One way to run a collective: its time (infinite where it cannot be chosen) and what a node then sends."""

    algorithm: NDArray[np.int64] | int
    protocol: int
    time_s: Floats
    node_bytes: Floats

    def where(self, chosen: NDArray[np.bool_]) -> "Candidate":
        """The same, with an infinite time where it is not to be ``chosen``."""
        return replace(self, time_s=np.where(chosen, self.time_s, np.inf))


Evaluation: TypeAlias = Callable[[Floats, Group, Fabric, Constants], Sequence[Candidate]]


def checked_bytes(tensor_bytes: FloatArray) -> Floats:
    """``tensor_bytes`` as floats; negative or not-a-number sizes are refused."""
    size = np.asarray(tensor_bytes, dtype=np.float64)
    bad = ~((size >= 0) & np.isfinite(size))
    if bad.any():
        raise InputError(f"tensor_bytes is {size[bad].flat[0]}: give a finite number of bytes, 0 or more")
    return size


def _check_network(group: Group, fabric: Fabric) -> None:
    multi = group.num_nodes > 1
    for name in ("nics_per_node", "nic_bytes_per_s"):
        value = np.asarray(getattr(fabric, name))
        if np.any(multi & (value <= 0)):
            raise InputError(f"fabric.{name} is 0 but the group spans several nodes: give the node's NICs and rate")
    if np.any(np.asarray(group.ranks_per_node) * np.asarray(group.groups_per_node) > np.asarray(fabric.gpus_per_node)):
        raise InputError(
            "group.ranks_per_node times groups_per_node exceeds fabric.gpus_per_node: "
            "lower one of the first two or raise the last"
        )


def choose(candidates: Sequence[Candidate], group: Group, fabric: Fabric, shape: tuple[int, ...]) -> Cost:
    """The cheapest candidate of each case; a group of one rank costs nothing and sends nothing."""
    time_s = np.full(shape, np.inf)
    algorithm = np.zeros(shape, dtype=np.int64)
    protocol = np.zeros(shape, dtype=np.int64)
    node_bytes = np.zeros(shape)
    for candidate in candidates:
        better = candidate.time_s < time_s
        time_s = np.where(better, candidate.time_s, time_s)
        algorithm = np.where(better, candidate.algorithm, algorithm)
        protocol = np.where(better, candidate.protocol, protocol)
        node_bytes = np.where(better, candidate.node_bytes, node_bytes)
    time_s = np.where(np.asarray(group.size) == 1, 0.0, time_s)
    nics = np.maximum(np.asarray(fabric.nics_per_node), 1)
    busy = (group.num_nodes > 1) & (time_s > 0)
    rate = node_bytes * np.asarray(group.groups_per_node) / nics / np.where(busy, time_s, 1.0)
    return Cost(time_s, algorithm, protocol, np.where(busy, rate, 0.0))


def evaluate(
    evaluation: Evaluation, tensor_bytes: FloatArray, group: Group, fabric: Fabric, constants: Constants
) -> Cost:
    """Cost every case with ``evaluation``, broadcasting all inputs against each other, block by block."""
    size = checked_bytes(tensor_bytes)
    _check_network(group, fabric)
    shape = np.broadcast_shapes(size.shape, *(_shape(item) for item in (group, fabric)))
    if int(np.prod(shape)) <= BLOCK:
        return choose(evaluation(size, group, fabric, constants), group, fabric, shape)
    size, group, fabric = np.broadcast_to(size, shape).reshape(-1), _flat(group, shape), _flat(fabric, shape)
    parts = []
    for start in range(0, size.size, BLOCK):
        window = slice(start, start + BLOCK)
        block_group, block_fabric = _cut(group, window), _cut(fabric, window)
        found = evaluation(size[window], block_group, block_fabric, constants)
        parts.append(choose(found, block_group, block_fabric, size[window].shape))
    return Cost(
        *(np.concatenate([getattr(part, field.name) for part in parts]).reshape(shape) for field in fields(Cost))
    )


def _shape(item: Group | Fabric) -> tuple[int, ...]:
    return np.broadcast_shapes(*(np.shape(getattr(item, field.name)) for field in fields(item)))


def _flat(item: Checked, shape: tuple[int, ...]) -> Checked:
    """The same group or fabric with every array broadcast to ``shape`` and flattened; scalars stay scalars."""
    return _with(item, lambda value: np.broadcast_to(np.asarray(value), shape).reshape(-1))


def _cut(item: Checked, window: slice) -> Checked:
    return _with(item, lambda value: np.asarray(value)[window])


def _with(item: Checked, change: Callable[[object], object]) -> Checked:
    """A copy with every array field changed; made without ``__init__``, for its values were checked before."""
    made = object.__new__(type(item))
    for field in fields(item):
        value = getattr(item, field.name)
        object.__setattr__(made, field.name, change(value) if np.ndim(value) else value)
    return made
