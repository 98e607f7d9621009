"""The space of plans that a search looks through: every legal placement of one global batch on a number of GPUs.

A space is a handful of regions, each a product of four axes, so that the forecast of a region computes every quantity
on the axes it depends on and no others (:class:`flopcast.simulator.plan.Plans`):

    axis 0, layout     tp, cp and ep (a region has one pp)
    axis 1, sharding   strategy, gradient_bits, bucket_bytes where parameters are replicated, prefetch where sharded
    axis 2, schedule   schedule, virtual_pp
    axis 3, work       micro_batch, sequence_parallel, whole_experts, overlap_tensor, overlap_expert, recompute, and
                       what the request varies besides

Within a region a mask tells which plans are legal.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flopcast.errors import InputError
from flopcast.simulator import placement
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.engines import has_habit
from flopcast.simulator.model import Model
from flopcast.simulator.plan import CHOICES, Column, Plan, Plans, as_column
from flopcast.simulator.plan_rules import nests
from flopcast.simulator.region import AXES, LAYOUT, SCHEDULE, SHARDING, WORK, Region

# Context parallelism leaves every rank at least so many tokens of a sequence.
MIN_TOKENS_PER_RANK = 512
# The most sequences, or tokens of short sequences, that a plan is tried with in one pass.
MOST_SEQUENCES, MOST_TOKENS = 32, 2**17
# PyTorch DDP's default, and steps from it to Megatron's single bucket.
BUCKETS = (25 * 2**20, 100 * 2**20, 400 * 2**20, 2**31)
REPLICATED, SHARDED = ("ddp", "zero1", "zero2"), ("zero3", "zero3-node", "hsdp")
# The fields of a plan that follow from others: a request may ask for a value of them, and keeps the plans that have it.
DERIVED = ("grad_accum", "gather_bits", "parameter_shard", "gradient_shard", "optimizer_shard")
# What only several tensor-parallel ranks can do.
OF_TENSOR_PARALLEL = ("sequence_parallel", "whole_experts", "overlap_tensor")


def micro_batches(seq_len: int, num_sequences: int) -> list[int]:
    """Divisors of the sequences, up to 32 of them, and where they are short up to 131,072 tokens."""
    most = max(MOST_SEQUENCES, MOST_TOKENS // seq_len)
    return [size for size in divisors(num_sequences) if size <= most]


@dataclass(frozen=True)
class Space:
    """Every legal plan for ``num_sequences`` of ``seq_len`` tokens per step.

    ``values``: for each field that is not left to the axes above the values to try, one where it is fixed; a field
    that is in neither has its default. Of a :data:`DERIVED` field they are a condition. ``fixed`` are those of them
    that a user asked for.
    """

    model: Model
    cluster: Cluster
    num_gpus: int
    seq_len: int
    num_sequences: int
    values: Mapping[str, Sequence[Any]]
    fixed: tuple[str, ...] = ()

    def regions(self) -> Iterator[Region]:
        """One region for each pp, with and without tensor parallelism, whole experts, and sharded parameters."""
        for pp, several, whole in product(self.pipeline_sizes, (False, True), (False, True)):
            layouts = [
                (tp, cp, ep)
                for tp, cp, p, ep in self.layouts
                if p == pp and (tp > 1) == several and self._shares_out(tp, pp, ep, whole)
            ]
            for group in (REPLICATED, SHARDED):
                sharding = self._sharding(group, pp)
                schedules, work = self._schedules(pp), self._work(several, whole)
                if layouts and sharding and schedules and work:
                    # What of a layer's work is done again then depends on the chunks: they need no axis of their own.
                    apart = [[s] for s in schedules] if any(self.values.get("recompute_layers", ())) else [schedules]
                    for each in apart:
                        yield self._region(layouts, sharding, each, work, pp)

    @cached_property
    def tensor_sizes(self) -> list[int]:
        """Divisors of the GPUs that the model's heads and matrices divide by."""
        return [tp for tp in self.tried("tp", divisors(self.num_gpus)) if self._splits(tp)]

    @cached_property
    def context_sizes(self) -> list[int]:
        """Divisors of the sequence that leave every rank enough of it."""
        found = [cp for cp in divisors(self.seq_len) if self.seq_len // cp >= MIN_TOKENS_PER_RANK or cp == 1]
        return self.tried("cp", found)

    @cached_property
    def pipeline_sizes(self) -> list[int]:
        """Divisors of the GPUs up to a stage per layer; stages may be uneven."""
        return [
            pp for pp in self.tried("pp", divisors(self.num_gpus))
            if pp <= self.model.num_layers and self.num_gpus % pp == 0
        ]  # fmt: skip

    @cached_property
    def expert_sizes(self) -> list[int]:
        """Divisors of the experts, 1 for a model without."""
        return [ep for ep in self.tried("ep", divisors(self.model.num_experts or 1)) if self._spreads(ep)]

    @cached_property
    def layouts(self) -> list[tuple[int, int, int, int]]:
        """(tp, cp, pp, ep): tp x cp x pp divides the GPUs, ep the ranks that share out experts."""
        sizes = product(self.tensor_sizes, self.context_sizes, self.pipeline_sizes, self.expert_sizes)
        return [
            (tp, cp, pp, ep)
            for tp, cp, pp, ep in sizes
            if self.num_gpus % (tp * cp * pp) == 0
            and self.seq_len % cp == 0
            and any(self._shares_out(tp, pp, ep, whole) for whole in self.tried("whole_experts", (False, True)))
        ]

    def _shares_out(self, tp: int, pp: int, ep: int, whole: bool) -> bool:
        ranks = self.num_gpus // (tp * pp)
        return ranks * tp % ep == 0 and tp > 1 and ep > 1 if whole else ranks % ep == 0

    def _spreads(self, ep: int) -> bool:
        try:
            self.model.check_expert_parallel(ep)
        except InputError:
            return False
        return True

    def _splits(self, tp: int) -> bool:
        try:
            for block in self.model.kinds:
                block.check_tensor_parallel(tp)
        except InputError:
            return False
        return self.num_gpus % tp == 0

    def tried(self, name: str, values: Sequence[Any]) -> list[Any]:
        """What is tried of a field: what the request says, or else ``values``."""
        return list(self.values.get(name, values))

    def _schedules(self, pp: int) -> list[tuple[str, int]]:
        """1F1B, GPipe, zero bubble, and interleaved in every number of chunks that divides the fullest stage."""
        if pp == 1:
            found = [("1f1b", 1)]
        else:
            per_stage = int(placement.layers_of_fullest_stage(self.model.num_layers, np.array(pp)))
            dealt = placement.num_dealt(self.model.num_layers, pp, counts_ends=True)
            chunks = [v for v in divisors(per_stage) if v > 1 and pp * v <= dealt]
            found = [("1f1b", 1), ("gpipe", 1), ("zero-bubble", 1), *(("interleaved", v) for v in chunks)]
        schedules, virtual = self.values.get("schedule"), self.values.get("virtual_pp")
        return [
            (name, v) for name, v in found
            if (schedules is None or name in schedules) and (virtual is None or v in virtual)
        ]  # fmt: skip

    def _sharding(self, group: tuple[str, ...], pp: int) -> list[dict[str, Any]]:
        """What stands for a plan's sharding: a strategy, of hsdp over how many nodes, and what goes with it."""
        widths = self.tried("gradient_bits", (16, 32))
        if group == REPLICATED:
            buckets = self.tried("bucket_bytes", BUCKETS)
            tried = [*product(group, (1,), (16,), buckets, self.tried("prefetch", (1,)), widths)]
        else:
            nodes = [2**k for k in range(1, self.num_gpus.bit_length())]
            kinds = [
                *((name, 1) for name in group),
                *(("hsdp", n) for n in nodes if n * self._node * pp < self.num_gpus),
            ]
            bucket = self.tried("bucket_bytes", BUCKETS[:1])
            prefetches = self.tried("prefetch", (0, 1))
            tried = [(*kind, *rest) for kind, *rest in product(kinds, (16, 4), bucket, prefetches, widths)]
        names = ("strategy", "nodes", "gather_bits", "bucket_bytes", "prefetch", "gradient_bits")
        return [dict(zip(names, values, strict=True)) for values in tried]

    def _work(self, several: bool, whole: bool) -> list[dict[str, Any]]:
        """What stands for a plan's work, ``several`` tensor-parallel ranks or one, experts split or ``whole``."""
        switch = (False, True) if several else (False,)
        axes: dict[str, Sequence[Any]] = {
            "micro_batch": micro_batches(self.seq_len, self.num_sequences),
            "sequence_parallel": switch,
            "whole_experts": (False, True),
            "overlap_tensor": (False,),
            "overlap_expert": (False,),
            "recompute": CHOICES["recompute"],
        }
        free = (
            *("cuda_graphs", "precision", "attention", "fused_kernels", "compiled", "state_bytes", "engine"),
            *("dispatcher", "dispatch_bits", "overlap_update", "sliced_update", "recompute_layers"),
        )
        axes = {name: self.tried(name, values) for name, values in axes.items()}
        axes |= {name: self.values[name] for name in free if name in self.values}
        axes["whole_experts"] = [value for value in axes["whole_experts"] if value == whole]
        if not several:
            axes |= {name: [v for v in axes[name] if not v] for name in OF_TENSOR_PARALLEL}
        return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]

    @property
    def _node(self) -> int:
        return min(self.cluster.gpus_per_node, self.num_gpus)

    def _region(
        self,
        layouts: Sequence[tuple[int, int, int]],
        sharding: Sequence[dict[str, Any]],
        schedules: Sequence[tuple[str, int]],
        work: Sequence[dict[str, Any]],
        pp: int,
    ) -> Region:
        defaults = {
            field.name: _along(LAYOUT, field.name, [field.default])
            for field in fields(Plan)
            if isinstance(field.default, int | str)
        }
        columns: dict[str, Any] = {
            **defaults,
            "num_gpus": _along(LAYOUT, "num_gpus", [self.num_gpus]),
            "seq_len": _along(LAYOUT, "seq_len", [self.seq_len]),
            "pp": _along(LAYOUT, "pp", [pp]),
            **{
                name: _along(LAYOUT, name, sizes)
                for name, sizes in zip(("tp", "cp", "ep"), zip(*layouts, strict=True), strict=True)
            },
            "schedule": _along(SCHEDULE, "schedule", [name for name, _ in schedules]),
            "virtual_pp": _along(SCHEDULE, "virtual_pp", [v for _, v in schedules]),
            **{name: _along(WORK, name, [entry[name] for entry in work]) for name in work[0]},
        }
        for name in ("gather_bits", "bucket_bytes", "prefetch", "gradient_bits"):
            columns[name] = _along(SHARDING, name, [entry[name] for entry in sharding])
        ranks = self.num_gpus // (columns["tp"] * pp)
        replica_sequences = self.num_sequences // np.maximum(ranks // columns["cp"], 1)
        columns["grad_accum"] = np.maximum(replica_sequences // columns["micro_batch"], 1)
        strategy, shards, apart = self._shards(sharding, columns["tp"], ranks)
        plans = Plans(**{**columns, "strategy": strategy, **shards})
        return Region(plans, self._conditions(plans, apart))

    def _shards(
        self, sharding: Sequence[dict[str, Any]], tp: NDArray[np.int64], ranks: NDArray[np.int64]
    ) -> tuple[NDArray[np.str_], dict[str, Column], NDArray[np.bool_]]:
        """Names and shard sizes by layout and sharding, and where a name means what no other name does there."""
        one = np.ones_like(ranks)
        node = np.minimum(np.maximum(self._node // tp, 1), ranks)
        names, sizes, apart = [], [], []
        for entry in sharding:
            strategy, number = entry["strategy"], entry["nodes"]
            over = node * number
            sizes.append(
                {
                    "ddp": (one, one, one),
                    "zero1": (one, one, ranks),
                    "zero2": (one, ranks, ranks),
                    "zero3": (ranks, ranks, ranks),
                    "zero3-node": (node, ranks, ranks),
                    "hsdp": (over, over, over),
                }[strategy]
            )
            within = (over > 1) & (over < ranks) & (ranks % over == 0)
            apart.append({"ddp": one > 0, "zero3-node": within, "hsdp": within}.get(strategy, ranks > 1))
            suffix = "+q4" if entry["gather_bits"] == 4 else ""
            names.append([f"{strategy}{'' if number == 1 else n}{suffix}" for n in over.flat])
        p, g, o = (np.concatenate([np.minimum(s[i], ranks) for s in sizes], axis=SHARDING) for i in range(3))
        strategy = np.array(names).T.reshape(len(ranks), len(sharding), 1, 1)
        shards = {"parameter_shard": p, "gradient_shard": g, "optimizer_shard": o}
        return strategy, shards, np.concatenate(apart, axis=SHARDING)

    def _conditions(self, plans: Plans, apart: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
        several = plans.grad_accum > 1
        conditions = {
            "the global batch divides over data-parallel ranks and micro-batches": (
                plans.dp * plans.micro_batch * plans.grad_accum == self.num_sequences
            ),
            "ep nests with the sizes of the shards": np.logical_and.reduce(
                [
                    np.asarray(nests(plans.ep, plans.folded * shard))
                    for shard in (plans.parameter_shard, plans.gradient_shard, plans.optimizer_shard)
                ]
            ),
            "ep with tp has sequence_parallel": (plans.ep == 1) | (plans.tp == 1) | plans.sequence_parallel,
            "sequence_parallel divides a rank's tokens by tp": (
                ~plans.sequence_parallel | (self.seq_len // plans.cp % plans.tp == 0)
            ),
            "schedule=interleaved has grad_accum a multiple of pp": (
                (plans.virtual_pp == 1) | (plans.grad_accum % plans.pp == 0)
            ),
            "a chunk of a stage has a layer, or embedding or head where they count as one": (
                plans.pp * plans.virtual_pp
                <= placement.num_dealt(self.model.num_layers, plans.pp, has_habit("counts_ends", plans.engine))
            ),
            "dispatcher=deepep has ep": plans.has(dispatcher="alltoall") | (plans.ep > 1),
            "dispatch_bits=8 has ep and precision=fp8": (
                (plans.dispatch_bits == 16) | ((plans.ep > 1) & plans.has(precision="fp8"))
            ),
            "overlap_expert has ep and several micro-batches": ~plans.overlap_expert | ((plans.ep > 1) & several),
            "overlap_expert has no pipeline or an interleaved one": (
                ~plans.overlap_expert
                | plans.has(schedule="interleaved")
                | ((plans.pp == 1) & plans.has(schedule="1f1b"))
            ),
            "cuda_graphs=partial does not recompute all": ~(
                plans.has(cuda_graphs="partial") & plans.has(recompute="full")
            ),
            "cuda_graphs=full has no all-to-all that the host waits for": ~(
                plans.has(cuda_graphs="full") & (plans.ep > 1) & plans.has(dispatcher="alltoall")
            ),
            "overlap_expert does not recompute all": ~plans.overlap_expert | ~plans.has(recompute="full"),
            "recompute_layers has recompute=full and is no more than a model chunk has": (
                (plans.recompute_layers == 0)
                | (
                    plans.has(recompute="full")
                    & (plans.recompute_layers <= -(-self.model.num_layers // (plans.pp * plans.virtual_pp)))
                )
            ),
            # Autograd would compute a layer again for each of its weights.
            "schedule=zero-bubble recomputes nothing where autograd's graph puts off the weights": (
                ~plans.has(schedule="zero-bubble")
                | plans.has(recompute="none")
                | ~has_habit("keeps_graph", plans.engine)
            ),
            # A single micro-batch passes through a pipeline in one way only, and is reduced once.
            "a schedule other than 1f1b has several micro-batches": several | plans.has(schedule="1f1b"),
            "a strategy is unlike the others: several ranks to shard over, several nodes for one in the node": apart,
            "zero2 is unlike zero1: several micro-batches, or gradients to be widened": (
                several | (plans.gradient_bits == 32) | (plans.gradient_shard == 1) | (plans.parameter_shard > 1)
            ),
        }
        for name in DERIVED:
            if name in self.values:
                wanted = as_column(name, self.values[name])
                conditions[f"{name} is {' or '.join(map(str, wanted))}"] = np.isin(getattr(plans, name), wanted)
        if "strategy" in self.values:
            wanted = as_column("strategy", self.values["strategy"])
            conditions[f"strategy is {' or '.join(map(str, wanted))}"] = np.isin(plans.strategy, wanted)
        return conditions


def divisors(number: int) -> list[int]:
    """Every divisor, in order."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def _along(axis: int, name: str, values: Sequence[Any]) -> Column:
    shape = [1] * len(AXES)
    shape[axis] = len(values)
    return as_column(name, values).reshape(shape)
