"""What a run must have done to fit into its GPUs, where its table leaves that open: it did take place."""

from collections.abc import Iterator
from dataclasses import replace

from flopcast.simulator.batch import Case, memory_of
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.engines import ENGINES
from flopcast.simulator.model import Model
from flopcast.simulator.plan import Plan, Recompute

# The columns that are inferred, and not merely defaulted, where they are blank.
INFERRED = ("sharding", "micro_batch", "sequence_parallel", "recompute")
# Beyond this factor of the GPU's memory a run was not like that. The forecast of memory is seldom wrong by a fifth, but
# states of 16 bits, a loss in chunks, or tensors freed by hand, of which tables say nothing, may save as much again.
BEYOND_DOUBT = 2.0


def made_to_fit(model: Model, cluster: Cluster, plan: Plan, blank: set[str]) -> tuple[Plan, list[str]]:
    """The plan with what is ``blank`` (of INFERRED) as it must have been, and a sentence for each change.

    A plan that may fit, and one that nothing makes fit, stays as it is.
    """
    # Of most runs nothing is left open that would save memory; to forecast theirs takes longer than to read them.
    changes = list(_changes(plan, blank))
    if not changes or _share_of_memory(model, cluster, plan) <= BEYOND_DOUBT:
        return plan, []
    for changed, said in changes:
        if _share_of_memory(model, cluster, changed) <= BEYOND_DOUBT:
            return changed, [f"{words}: else it would not fit" for words in said]
    return plan, []


def _share_of_memory(model: Model, cluster: Cluster, plan: Plan) -> float:
    return float(memory_of([Case(model, cluster, plan)]).total[0]) / cluster.gpu.memory_bytes


def _changes(plan: Plan, blank: set[str]) -> Iterator[tuple[Plan, list[str]]]:
    """Plans that need less and less, the usual ways first, each kept for the next: what costs no time before what does.

    A replica that is too large is sharded; activations are split over tensor-parallel ranks, then come in smaller
    micro-batches, then are computed again: under Megatron those of attention before whole layers.
    """
    said: list[str] = []
    if "sharding" in blank and plan.parameter_shard == 1 < plan.shard_ranks:
        ranks = plan.shard_ranks
        sharded = replace(plan, parameter_shard=ranks, gradient_shard=ranks, optimizer_shard=ranks)
        for other, words in _activations(plan, blank):
            yield other, words
        plan, said = sharded, ["sharding zero3"]
        yield plan, said
    for other, words in _activations(plan, blank):
        yield other, [*said, *words]


def _activations(plan: Plan, blank: set[str]) -> Iterator[tuple[Plan, list[str]]]:
    said: list[str] = []
    if "sequence_parallel" in blank and plan.tp > 1 and not plan.sequence_parallel:
        plan, said = replace(plan, sequence_parallel=True), ["sequence_parallel 1"]
        yield plan, said
    smaller = plan
    while "micro_batch" in blank and smaller.micro_batch % 2 == 0:
        smaller = replace(smaller, micro_batch=smaller.micro_batch // 2, grad_accum=smaller.grad_accum * 2)
        yield smaller, [*said, f"micro_batch {smaller.micro_batch}"]
    kinds: tuple[Recompute, ...] = ("selective", "full") if ENGINES[plan.engine].recomputes_attention else ("full",)
    if "recompute" in blank and plan.recompute == "none":
        for kind in kinds:
            yield replace(plan, recompute=kind), [*said, f"recompute {kind}"]
        if smaller is not plan:
            said = [*said, f"micro_batch {smaller.micro_batch}"]
            for kind in kinds:
                yield replace(smaller, recompute=kind), [*said, f"recompute {kind}"]
