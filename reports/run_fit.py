"""What a run must have done to fit into its GPUs, where its table leaves that open: it did take place."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flopcast.errors import InputError
from flopcast.simulator.batch import Case, by_model, memory_of
from flopcast.simulator.engines import ENGINES
from flopcast.simulator.plan import Plan, Recompute

# The columns that are inferred, and not merely defaulted, where they are blank.
INFERRED = ("sharding", "micro_batch", "sequence_parallel", "recompute")
# Beyond this factor of the GPU's memory a run was not like that. The forecast of memory is seldom wrong by a fifth, but
# states of 16 bits, a loss in chunks, or tensors freed by hand, of which tables say nothing, may save as much again.
BEYOND_DOUBT = 2.0


def made_to_fit(cases: Sequence[Case], blanks: Sequence[set[str]]) -> list[tuple[Plan, list[str]]]:
    """Each plan with what is blank of its (of INFERRED) as it must have been, and a sentence for each change.

    A plan that may fit, and one that nothing makes fit, stays as it is.
    """
    found: list[tuple[Plan, list[str]]] = [(case.plan, []) for case in cases]
    # Of most runs nothing is left open that would save memory; to forecast theirs takes longer than to read them.
    changes = {i: list(_changes(case.plan, blanks[i])) for i, case in enumerate(cases)}
    left_open = [i for i in changes if changes[i]]
    for i, share in zip(left_open, _shares_of_memory([cases[i] for i in left_open]), strict=True):
        if share <= BEYOND_DOUBT:
            continue
        for changed, said in changes[i]:
            if _shares_of_memory([replace(cases[i], plan=changed)])[0] <= BEYOND_DOUBT:
                found[i] = changed, [f"{words}: else it would not fit" for words in said]
                break
    return found


def _shares_of_memory(cases: Sequence[Case]) -> NDArray[np.float64]:
    shares = np.zeros(len(cases))
    for members in by_model(cases).values():
        of_model = [cases[i] for i in members]
        shares[members] = memory_of(of_model).total / [case.cluster.gpu.memory_bytes for case in of_model]
    return shares


def _changes(plan: Plan, blank: set[str]) -> Iterator[tuple[Plan, list[str]]]:
    """Plans that need less and less, the usual ways first, each kept for the next: what costs no time before what does.

    A replica that is too large is sharded; activations are split over tensor-parallel ranks, then come in smaller
    micro-batches, then are computed again: under Megatron those of attention before whole layers.
    """
    said: list[str] = []
    if "sharding" in blank and plan.parameter_shard == 1 < plan.shard_ranks:
        ranks = plan.shard_ranks
        yield from _activations(plan, blank)
        for sharded in _legal(plan, parameter_shard=ranks, gradient_shard=ranks, optimizer_shard=ranks):
            plan, said = sharded, ["sharding zero3"]
            yield plan, said
    for other, words in _activations(plan, blank):
        yield other, [*said, *words]


def _activations(plan: Plan, blank: set[str]) -> Iterator[tuple[Plan, list[str]]]:
    said: list[str] = []
    if "sequence_parallel" in blank and plan.tp > 1 and not plan.sequence_parallel:
        for split in _legal(plan, sequence_parallel=True):
            plan, said = split, ["sequence_parallel 1"]
            yield plan, said
    smaller = plan
    while "micro_batch" in blank and smaller.micro_batch % 2 == 0:
        smaller = replace(smaller, micro_batch=smaller.micro_batch // 2, grad_accum=smaller.grad_accum * 2)
        yield smaller, [*said, f"micro_batch {smaller.micro_batch}"]
    kinds: tuple[Recompute, ...] = ("selective", "full") if ENGINES[plan.engine].recomputes_attention else ("full",)
    if "recompute" in blank and plan.recompute == "none":
        for before in [plan] if smaller is plan else [plan, smaller]:
            words = [] if before is plan else [f"micro_batch {smaller.micro_batch}"]
            for kind in kinds:
                for changed in _legal(before, recompute=kind):
                    yield changed, [*said, *words, f"recompute {kind}"]


def _legal(plan: Plan, **fields: Any) -> list[Plan]:
    """The plan with those fields, or nothing where no software runs it so."""
    try:
        return [replace(plan, **fields)]
    except InputError:
        return []
