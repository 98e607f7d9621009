"""What a run must have done to fit into its GPUs, where its table leaves that open: it did take place."""

from collections.abc import Iterator
from dataclasses import replace

from flopcast.simulator.batch import Case
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.engines import ENGINES
from flopcast.simulator.model import Model
from flopcast.simulator.plan import Plan

# A forecast of memory is within this factor of nine runs out of ten; what is beyond it did not run so.
BEYOND_DOUBT = 1.25


def made_to_fit(model: Model, cluster: Cluster, plan: Plan, blank: set[str]) -> tuple[Plan, list[str]]:
    """The plan with what is ``blank`` (of sharding and recompute) as it must have been, and a sentence for each change.

    A plan that may fit, and one that nothing makes fit for certain, stays as it is.
    """
    if not blank or _share_of_memory(model, cluster, plan) <= BEYOND_DOUBT:
        return plan, []
    for changed, said in _changes(plan, blank):
        if _share_of_memory(model, cluster, changed) <= 1:
            return changed, said
    return plan, []


def _share_of_memory(model: Model, cluster: Cluster, plan: Plan) -> float:
    return float(Case(model, cluster, plan).memory().total[0]) / cluster.gpu.memory_bytes


def _changes(plan: Plan, blank: set[str]) -> Iterator[tuple[Plan, list[str]]]:
    """Recomputation first, then sharding, then both; Megatron's attention alone before whole layers."""
    kinds = ("selective", "full") if ENGINES[plan.engine].recomputes_attention else ("full",)
    recomputed = [(replace(plan, recompute=kind), [f"recompute {kind}: else it would not fit"]) for kind in kinds]
    if "recompute" in blank:
        yield from recomputed
    if "sharding" in blank and plan.shard_ranks > 1:
        ranks = dict.fromkeys(("parameter_shard", "gradient_shard", "optimizer_shard"), plan.shard_ranks)
        said = ["sharding zero3: else it would not fit"]
        yield replace(plan, **ranks), said
        if "recompute" in blank:
            yield from ((replace(other, **ranks), [*said, *words]) for other, words in recomputed)
