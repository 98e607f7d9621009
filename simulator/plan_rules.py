"""Which fields of a plan go together."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from flopcast.collectives.group import BoolArray, IntArray
from flopcast.errors import InputError

if TYPE_CHECKING:
    from flopcast.simulator.plan import Plan


def nests(ep: IntArray, shard: IntArray) -> BoolArray:
    """Whether the ranks that share out experts fill shards evenly, or shards them."""
    return (ep % shard == 0) | (shard % ep == 0)


# What a strategy's name says is sharded: a plan of that name that has one copy of it on every rank is another.
SHARDED_BY = {
    "zero1": "optimizer_shard",
    "zero2": "optimizer_shard",
    "zero3": "parameter_shard",
    "zero3-node": "optimizer_shard",
    "hsdp": "parameter_shard",
}


FIELDS_OF_NAME = (
    "take the fields that the name stands for, Plan(**placement('{}', num_gpus, gpus_per_node), seq_len=...)"
)


def check_combinations(plan: "Plan") -> None:
    """Raise InputError, one sentence that names the fields and the mend, for a plan that no software can run."""
    for faults in (_of_sizes, _of_bits, _of_pipeline, _of_overlap, _of_name):
        for fault in faults(plan):
            raise InputError(f"plan '{plan.strategy}': {fault}")


def _of_sizes(plan: "Plan") -> Iterator[str]:
    """What ranks divide into, and how shards and experts nest."""
    model_parallel = plan.tp * plan.cp * plan.pp
    if plan.num_gpus % model_parallel:
        yield (
            f"tp={plan.tp} x cp={plan.cp} x pp={plan.pp} = {model_parallel} does not divide num_gpus={plan.num_gpus}; "
            "choose factors that do"
        )
    ranks = plan.shard_ranks
    for name in ("parameter_shard", "gradient_shard", "optimizer_shard"):
        if ranks % getattr(plan, name):
            yield f"{name}={getattr(plan, name)} does not divide the {ranks} data-parallel ranks; choose a divisor"
    if plan.gradient_shard % plan.parameter_shard or plan.optimizer_shard % plan.gradient_shard:
        yield (
            f"parameter_shard={plan.parameter_shard}, gradient_shard={plan.gradient_shard}, "
            f"optimizer_shard={plan.optimizer_shard} must each be a multiple of the one before; raise the later ones"
        )
    if ranks * plan.folded % plan.ep:
        # Where it would, with tensor-parallel ranks among those that share out experts, that is worth saying.
        folding = " or set whole_experts" if ranks * plan.tp % plan.ep == 0 else ""
        beside = f" times tp={plan.tp}" if plan.whole_experts else ""
        yield f"ep={plan.ep} does not divide the {ranks} data-parallel ranks{beside}; choose a divisor{folding}"
    if plan.whole_experts and (plan.tp == 1 or plan.ep == 1):
        yield (
            f"whole_experts with tp={plan.tp}, ep={plan.ep} has no expert that would be split; "
            "raise both above 1 or turn it off"
        )
    for name in ("parameter_shard", "gradient_shard", "optimizer_shard"):
        shard = getattr(plan, name)
        if not nests(plan.ep, shard * plan.folded):
            yield f"{name}={shard} and ep={plan.ep} do not nest; choose an ep that divides it or is a multiple of it"
    if plan.ep > 1 and plan.tp > 1 and not plan.sequence_parallel:
        yield (
            f"ep={plan.ep} with tp={plan.tp} would send every token once per tensor-parallel rank; "
            "turn sequence_parallel on or set ep=1"
        )


def _of_bits(plan: "Plan") -> Iterator[str]:
    """What is sent in fewer bits, or to experts."""
    if plan.gather_bits not in (16, 4):
        yield f"gather_bits={plan.gather_bits}; choose 16, or 4 for the NF4 all-gather"
    if plan.gather_bits == 4 and plan.parameter_shard == 1:
        yield (
            "gather_bits=4 with parameter_shard=1 has no gather to quantise; shard the parameters, or leave out +q4 "
            "(gather_bits=16)"
        )
    if plan.dispatch_bits not in (16, 8):
        yield f"dispatch_bits={plan.dispatch_bits}; choose 16, or 8 beside precision=fp8"
    if plan.dispatch_bits == 8 and plan.precision != "fp8":
        yield f"dispatch_bits=8 with precision={plan.precision} would round what products take; use fp8 or 16 bits"
    if plan.ep == 1 and (plan.dispatcher != "alltoall" or plan.dispatch_bits != 16):
        yield (
            f"dispatcher={plan.dispatcher}, dispatch_bits={plan.dispatch_bits} with ep=1 send nothing; "
            "raise ep or leave them out"
        )
    if plan.gradient_bits not in (16, 32):
        yield f"gradient_bits={plan.gradient_bits}; choose 16 or 32"


def _of_pipeline(plan: "Plan") -> Iterator[str]:
    """Parts of a sequence, stages and their schedule."""
    if plan.sequence_parallel and plan.tp == 1:
        yield "sequence_parallel with tp=1 has nothing to split; raise tp or turn it off"
    if plan.seq_len % plan.cp or (plan.sequence_parallel and plan.seq_len // plan.cp % plan.tp):
        yield f"seq_len={plan.seq_len} does not divide over cp={plan.cp} (and tp={plan.tp} under sequence_parallel)"
    if plan.pp == 1 and plan.virtual_pp > 1:
        yield f"virtual_pp={plan.virtual_pp} with pp=1 has no pipeline to interleave; raise pp or set virtual_pp=1"
    if plan.pp == 1 and plan.virtual_pp == 1 and plan.schedule in ("gpipe", "zero-bubble"):
        yield f"schedule={plan.schedule} with pp=1 has no pipeline to schedule; raise pp or leave it out (1f1b)"
    if (plan.virtual_pp > 1) != (plan.schedule == "interleaved"):
        yield f"schedule={plan.schedule} with virtual_pp={plan.virtual_pp}; 'interleaved' is for virtual_pp > 1"
    if plan.schedule == "interleaved" and plan.grad_accum % plan.pp:
        yield f"schedule=interleaved needs grad_accum={plan.grad_accum} to be a multiple of pp={plan.pp}"


def _of_overlap(plan: "Plan") -> Iterator[str]:
    """What is hidden, replayed or computed again."""
    if plan.overlap_expert and (plan.ep == 1 or plan.grad_accum == 1):
        yield (
            f"overlap_expert with ep={plan.ep}, grad_accum={plan.grad_accum} has no exchange, or no other micro-batch, "
            "to hide; raise both above 1 or turn it off"
        )
    if plan.overlap_expert and plan.schedule != ("1f1b" if plan.pp == 1 else "interleaved"):
        yield (
            f"overlap_expert with pp={plan.pp} and schedule={plan.schedule}: forwards run together with backwards "
            "without a pipeline (1f1b) or in an interleaved one; change the schedule or turn it off"
        )
    if plan.overlap_expert and plan.recompute == "full":
        yield "overlap_expert with recompute=full would send the tokens once more in between; use selective or none"
    if plan.cuda_graphs == "partial" and plan.recompute == "full":
        yield (
            "cuda_graphs=partial with recompute=full would compute again what a graph has captured; use full graphs, "
            "or recompute selective or none"
        )
    if plan.cuda_graphs == "full" and plan.ep > 1 and plan.dispatcher == "alltoall":
        yield (
            f"cuda_graphs=full with ep={plan.ep} and dispatcher=alltoall: the host waits to know what it sends; use "
            "dispatcher=deepep, whose buffers may have fixed sizes (HybridEP), or partial graphs"
        )
    if plan.recompute_layers and plan.recompute != "full":
        yield (
            f"recompute_layers={plan.recompute_layers} with recompute={plan.recompute} has no layer that is computed "
            "again in full; use recompute=full or leave it out"
        )


def _of_name(plan: "Plan") -> Iterator[str]:
    """What the strategy's name promises."""
    ranks = plan.shard_ranks
    name, _, suffix = plan.strategy.lower().partition("+")
    for prefix, field in (("tp", "tp"), ("hsdp", "parameter_shard")):
        numbered = re.fullmatch(rf"{prefix}(\d+)", name)
        if numbered and int(numbered[1]) != getattr(plan, field):
            yield (
                f"{field}={getattr(plan, field)} is not that of the name; {FIELDS_OF_NAME.format(plan.strategy)}, "
                "or another name"
            )
    named = SHARDED_BY.get(name, "")
    # In a pipeline no software gathers once per micro-batch, whatever its sharding is called.
    applies = named == "optimizer_shard" or plan.pp == 1
    if named and applies and ranks > 1 and getattr(plan, named) == 1:
        if named == "parameter_shard" and plan.strategy.lower().startswith("hsdp") and plan.tp > 1:
            yield (
                f"{named}=1 with tp={plan.tp}: where tensor-parallel ranks fill a node, nothing is left to shard; "
                "take larger nodes, a smaller tp, or zero3"
            )
        yield (
            f"{named}=1 shards nothing over the {ranks} data-parallel ranks; "
            f"{FIELDS_OF_NAME.format(plan.strategy)}, or call it ddp"
        )
    if name == "zero3" and plan.pp == 1 and plan.parameter_shard != ranks:
        yield (
            f"parameter_shard={plan.parameter_shard} shards over some of the {ranks} data-parallel ranks; "
            f"{FIELDS_OF_NAME.format(plan.strategy)}, or call it hsdp or zero3-node"
        )
    if suffix == "q4" and plan.gather_bits == 16 and plan.parameter_shard > 1:
        yield f"gather_bits=16 gathers nothing in 4 bits; {FIELDS_OF_NAME.format(plan.strategy)}, or leave out +q4"
