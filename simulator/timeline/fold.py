"""Which ranks differ: symmetric ranks are folded into one class, which is simulated once for all of them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from flopcast.errors import InputError
from flopcast.simulator.plan import Plan

# What tells data-parallel replicas apart at a stage: the speed of computation and of the NICs, the node if it jitters.
Trait: TypeAlias = tuple[float, float, int]


@dataclass(frozen=True)
class Disturbance:
    """What makes nodes differ. Nodes are counted from 0 in the order of ranks.

    ``slow_nodes``: share of its usual speed at which a node computes; ``slow_links``: share of its usual rate at which
    its NICs send. ``jitter``: standard deviation of the logarithm of a layer's time, drawn from ``seed`` anew for
    every layer of every pass on every node.
    """

    slow_nodes: Mapping[int, float] = field(default_factory=dict)
    slow_links: Mapping[int, float] = field(default_factory=dict)
    jitter: float = 0.0
    seed: int = 0

    def __bool__(self) -> bool:
        return bool(self.slow_nodes or self.slow_links or self.jitter)

    def check(self, num_nodes: int) -> None:
        """Raise InputError for a node that the job does not have, a share outside (0, 1] or a negative jitter."""
        for name, factors in (("--slow-node", self.slow_nodes), ("--slow-link", self.slow_links)):
            for node, factor in factors.items():
                if not 0 <= node < num_nodes:
                    raise InputError(f"{name} {node}={factor:g}: the job's nodes are 0 to {num_nodes - 1}")
                if not 0 < factor <= 1:
                    raise InputError(f"{name} {node}={factor:g}: give a share of its speed above 0 and up to 1")
        if not 0 <= self.jitter <= 1:
            raise InputError(f"--jitter is {self.jitter:g}; give a standard deviation from 0 to 1, e.g. 0.02")
        if self.seed < 0:
            raise InputError(f"--seed is {self.seed}; give 0 or more")


def parse_shares(option: str, words: Sequence[str]) -> dict[int, float]:
    """``["7=0.8"]`` to ``{7: 0.8}``; raises InputError for what is not NODE=SHARE and for a node given twice."""
    shares: dict[int, float] = {}
    for word in words:
        name, separator, share = word.partition("=")
        try:
            node, value = int(name), float(share if separator else "")
        except ValueError:
            raise InputError(f"{option} '{word}': give NODE=SHARE, e.g. 7=0.8") from None
        if node in shares:
            raise InputError(f"{option} {word}: node {node} has {shares[node]:g} already; give each node once")
        shares[node] = value
    return shares


@dataclass(frozen=True)
class Replicas:
    """Data-parallel replicas that behave alike: ``traits`` at each stage, of the first of them, ``index``.

    ``num`` of them. ``block``: which neighbours they split tensors with where such a group spans several nodes but
    not all; replicas of like blocks are alike.
    """

    index: int
    num: int
    traits: tuple[Trait, ...]
    block: int


def fold(plan: Plan, gpus_per_node: int, disturbance: Disturbance) -> list[Replicas]:
    """The classes of data-parallel replicas of a plan, in the order of their first ranks."""
    num_nodes = max(plan.num_gpus // gpus_per_node, 1)
    disturbance.check(num_nodes)
    if not disturbance:
        return [Replicas(0, plan.dp, ((1.0, 1.0, 0),) * plan.pp, 0)]
    width = plan.tp * plan.cp

    def trait(stage: int, replica: int) -> Trait:
        """Ranks of one replica and stage move in lock-step, at the pace of their slowest node."""
        begin = (stage * plan.dp + replica) * width
        nodes = range(begin // gpus_per_node, (begin + width - 1) // gpus_per_node + 1)
        speed = min(disturbance.slow_nodes.get(node, 1.0) for node in nodes)
        link = min(disturbance.slow_links.get(node, 1.0) for node in nodes)
        return speed, link, nodes[0] if disturbance.jitter else 0

    traits = [tuple(trait(stage, replica) for stage in range(plan.pp)) for replica in range(plan.dp)]
    size = _block_size(plan, gpus_per_node)
    blocks = [tuple(traits[start : start + size]) for start in range(0, plan.dp, size)]
    numbers = {block: number for number, block in enumerate(dict.fromkeys(blocks))}
    members: defaultdict[tuple[tuple[Trait, ...], int], list[int]] = defaultdict(list)
    for replica, key in enumerate(traits):
        members[key, numbers[blocks[replica // size]]].append(replica)
    return [Replicas(found[0], len(found), key, block) for (key, block), found in members.items()]


def _block_size(plan: Plan, gpus_per_node: int) -> int:
    """Replicas of the largest shard group that spans several nodes but not all data-parallel ranks; else one."""
    shards = (plan.parameter_shard, plan.gradient_shard, plan.optimizer_shard)
    partial = [k for k in shards if k < plan.shard_ranks and k * plan.tp > gpus_per_node]
    return max([1, *(k // plan.cp for k in partial)])
