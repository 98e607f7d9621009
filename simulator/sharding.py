"""How many elements and bytes a unit of parameters has on a rank, and travels as, under a plan: padding included."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from flopcast.kernels.nf4.format import aligned, payload_bytes
from flopcast.simulator import placement
from flopcast.simulator.broadcast import total
from flopcast.simulator.engines import has_habit
from flopcast.simulator.model import Block, Model, ParameterTensor
from flopcast.simulator.operation import Array, Section
from flopcast.simulator.placement import IntArray
from flopcast.simulator.plan import Plans


@dataclass(frozen=True)
class Unit:
    """Parameters that are gathered and reduced together: one layer, its experts, or everything outside the layers.

    Arrays are over the N ``plans``.

    ``count`` is how many such units the fullest pipeline stage holds. ``kv_heads_per_rank`` as in :class:`Block`.
    ``of_experts``: expert parallelism has left each rank 1/ep of them already, so that a shard of s ranks splits them
    s/ep ways (torchtitan and Megatron Core likewise); where ep >= s they stay whole. Of whole experts s data-parallel
    ranks are tp times as many.
    """

    plans: Plans
    name: str
    section: Section
    tensors: tuple[ParameterTensor, ...]
    count: Array
    kv_heads_per_rank: Callable[[int], int]
    of_experts: bool = False

    def ways(self, shard: IntArray) -> IntArray:
        """In how many parts a shard over so many of the data-parallel ranks leaves these parameters on each rank."""
        if not self.of_experts:
            return shard
        return np.where(shard > 1, np.maximum(shard * self.plans.folded // self.plans.ep, 1), 1)

    @property
    def ranks(self) -> IntArray:
        """Ranks that hold the same of these parameters where nothing is sharded."""
        ranks = self.plans.shard_ranks
        return ranks * self.plans.folded // self.plans.ep if self.of_experts else ranks

    @property
    def stride(self) -> IntArray:
        """How far apart those ranks lie."""
        return self.plans.expert_tp * self.plans.ep if self.of_experts else self.plans.tp

    def group_name(self, ways: IntArray) -> NDArray[np.str_]:
        """What the group of so many of these ranks is called: "world" where it is all of them, else "node"."""
        names = ("expert-world", "expert-node") if self.of_experts else ("world", "node")
        return np.where(ways == self.ranks, *names)

    @cached_property
    def local_shapes(self) -> list[tuple[ParameterTensor, IntArray, IntArray]]:
        """Of each tensor: its dim 0 and the product of its other dims on one rank, not sharded."""
        tp = self.plans.expert_tp if self.of_experts else self.plans.tp
        shapes = [(tensor, *_local_shape(tensor, tp, self.kv_heads_per_rank)) for tensor in self.tensors]
        return [(t, rows // self.plans.ep, rest) for t, rows, rest in shapes] if self.of_experts else shapes

    @cached_property
    def elements(self) -> IntArray:
        """Elements on one rank, not sharded."""
        return total(rows * rest for _, rows, rest in self.local_shapes)

    def padded_elements(self, shard: IntArray) -> IntArray:
        """Elements when each tensor's dim 0 is split evenly :meth:`ways`: sum of n ceil(dim0 / n) rest.

        PyTorch FSDP2 pads every parameter so (torch 2.13, torch/distributed/fsdp/_fully_shard/_fsdp_param.py).
        """
        ways = self.ways(shard)
        return total(-(-rows // ways) * ways * rest for _, rows, rest in self.local_shapes)

    @property
    def num_matrices(self) -> int:
        """Weights that are modules of their own: experts that are stacked here are so many."""
        return sum(tensor.num_experts for tensor in self.tensors if len(tensor.shape) > 1)

    @cached_property
    def gathered_elements(self) -> IntArray:
        """Elements as they are gathered over the optimizer's shards."""
        return self.padded_elements(self.plans.optimizer_shard)

    def sharded_elements(self, shard: IntArray) -> Array:
        """Elements of one rank's part of :meth:`padded_elements`."""
        return np.asarray(self.padded_elements(shard) / self.ways(shard))

    @property
    def shared_gradient_elements(self) -> IntArray:
        """Elements per rank whose gradient tensor-parallel ranks compute a share each: they add them up once a step.

        Shared tensors, key/value heads that several ranks hold, and under sequence parallelism all that are whole.
        """
        parts = []
        optimizer_ways = self.ways(self.plans.optimizer_shard)
        for tensor, rows, rest in self.local_shapes:
            adds = {
                "shared": self.plans.tp > 1,
                "kv": (self.plans.tp > 1) & (self.plans.tp * rows > tensor.shape[0]),
                "whole": self.plans.sequence_parallel,
            }.get(tensor.split, self.plans.zeros > 0)
            parts.append(adds * (-(-rows // optimizer_ways) * rest))
        return total(parts)

    @property
    def gathered_in_8_bits(self) -> NDArray[np.bool_]:
        """Whether the matrices of this unit, all but a per mille of it, are cast to 8 bits before they are gathered."""
        products = self.plans.has(precision="fp8") & (self.section == "layer")
        return np.asarray(products & (self.plans.optimizer_shard > 1) & has_habit("gathers_fp8", self.plans.engine))

    def gather_bytes(self, shard: IntArray) -> IntArray:
        """Bytes of the gathered tensor: 2 per padded element, 1 where an engine casts before, or NF4 payloads.

        There one-dimensional tensors travel raw, and every tensor's part starts on 16 bytes.
        """
        raw = np.where(self.gathered_in_8_bits, 1, 2) * self.padded_elements(shard)
        if not np.any(self.plans.gather_bits == 4):
            return raw
        parts = []
        ways = self.ways(shard)
        for tensor, rows, rest in self.local_shapes:
            per_rank = -(-rows // ways) * rest
            parts.append(ways * (aligned(2 * per_rank) if len(tensor.shape) == 1 else payload_bytes(per_rank)))
        return np.where(self.plans.gather_bits == 4, total(parts), raw)


def layers_by_kind(model: Model, plans: Plans, stage: int | None) -> dict[Block, Array]:
    """Layers of each kind on a stage, for a list of plans; without ``stage`` on the fullest, mixed as in the model."""
    if stage is None:
        share = placement.layers_of_fullest_stage(model.num_layers, plans.pp) / model.num_layers
        return {block: number * share for block, number in model.kinds.items()}
    stages = layers_of_stage(model.num_layers, plans, stage)
    held = [Counter(model.layers[n] for n in layers) for layers in stages]
    return {block: np.array([float(counter[block]) for counter in held]) for block in model.kinds}


def layers_of_stage(num_layers: int, plans: Plans, stage: int) -> list[range]:
    """The layers of one stage under each of a list of plans, taken to follow each other."""
    counts_ends = has_habit("counts_ends", plans.engine)
    return [
        placement.layers_of_chunks(num_layers, int(pp), 1, bool(counts))[stage]
        for pp, counts in zip(plans.pp, counts_ends, strict=True)
    ]


@lru_cache(maxsize=1)
def units(model: Model, plans: Plans, stage: int | None) -> tuple[Unit, ...]:
    """One unit for each kind of layer, another for its experts, and the root: embedding, final norm, head.

    In a pipeline the root is what ``stage`` holds of it, or the larger of what the first and the last stage hold.
    """
    names = model.kind_names
    layers = []
    for block, number in layers_by_kind(model, plans, stage).items():
        tensors = block.tensors(model.hidden)
        by_all = tuple(t for t in tensors if t.num_experts == 1)
        experts = tuple(t for t in tensors if t.num_experts > 1)
        layers.append(Unit(plans, names[block], "layer", by_all, number, block.kv_heads_per_rank))
        if experts:
            name = f"{names[block]}.experts"
            layers.append(Unit(plans, name, "layer", experts, number, block.kv_heads_per_rank, of_experts=True))
    root = model.root_tensors()
    first = tuple(t for t in root if t.name.startswith(("embedding", "positions")))
    last = tuple(t for t in root if t not in first)
    if model.tied_embeddings:
        last = (*last, first[0])
    whole = (plans.pp == 1).astype(np.float64)
    none = model.layers[0].kv_heads_per_rank
    roots = [Unit(plans, "root", "head", root, whole, none)]
    if stage is None:
        larger = max((first, last), key=lambda part: sum(t.num_parameters for t in part))
        roots += [Unit(plans, "stage_root", "head", larger, 1 - whole, none)]
    else:
        roots += [Unit(plans, "first_root", "embedding", first, (1 - whole) * (stage == 0), none)]
        roots += [Unit(plans, "last_root", "head", last, (1 - whole) * (stage == plans.pp - 1), none)]
    return (*layers, *roots)


def _local_shape(
    tensor: ParameterTensor, tp: IntArray, kv_heads_per_rank: Callable[[int], int]
) -> tuple[IntArray, IntArray]:
    rows = np.full_like(tp, tensor.shape[0])
    rest = np.full_like(tp, tensor.num_parameters // tensor.shape[0])
    if tensor.split == "rows":
        rows = -(-rows // tp)
    elif tensor.split == "columns":
        rest = -(-rest // tp)
    elif tensor.split == "kv":
        head_rows = tensor.shape[0] // kv_heads_per_rank(1)
        values, where = np.unique(tp, return_inverse=True)
        rows = np.array([head_rows * kv_heads_per_rank(int(t)) for t in values], dtype=np.int64)[where]
    return rows, rest
