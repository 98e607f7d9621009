"""Why a space has no plan, or none that fits, and what would mend it: the sentences of a search that finds nothing."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from flopcast.errors import InputError
from flopcast.simulator.forecast import Row, forecast
from flopcast.simulator.plan import Plan, placement
from flopcast.simulator.recompute import recompute_in_words
from flopcast.simulator.request import usual_attention
from flopcast.simulator.space import MIN_TOKENS_PER_RANK, OF_TENSOR_PARALLEL, Space
from flopcast.simulator.units import format_gigabytes

# GPU counts on either side that are tried before giving up.
COUNTS_TRIED = 64
# Plans forecast at once while looking for one that fits.
CHUNK = 50_000
MULTIPLES = (2, 4, 8, 16, 32, 64, 128)
# Strategies that do what one does where there is one node, or one rank to shard over.
PLAINER = {
    "zero1": ("ddp",),
    "zero2": ("ddp",),
    "zero3": ("ddp",),
    "zero3-node": ("zero3", "ddp"),
    "hsdp": ("zero3", "ddp"),
}
# What a model without experts has nothing of that the fields about them could change.
WITHOUT_EXPERTS = {
    "whole_experts": "are none to hold whole",
    "overlap_expert": "is no exchange with them for overlap_expert to hide",
    "dispatcher": "are no tokens for a dispatcher to send to them",
    "dispatch_bits": "are no tokens to send to them in dispatch_bits",
}


def why_empty(space: Space) -> str:
    """The constraint that left no plan, and the nearest GPU count that has one; or a strategy's plainer name there."""
    if name := _known_as(space):
        given = space.values["strategy"][0]
        return (
            f"{space.model.name} on {_gpus(space.num_gpus)}: {given} does what {name} does there; use strategy={name}"
        )
    nearest = nearest_legal(space)
    mend = (
        f"the nearest number of GPUs with a legal plan is {nearest:,}"
        if nearest
        else "no number of GPUs nearby has one either, so change what is fixed or the global batch"
    )
    return f"{space.model.name} on {_gpus(space.num_gpus)} has no legal plan: {_constraint(space)}; {mend}"


def _known_as(space: Space) -> str | None:
    """Of a lone strategy the plainer one that does the same on the ranks there are, as zero3 on one node for hsdp."""
    if "strategy" not in space.fixed or len(space.values["strategy"]) > 1:
        return None
    given = space.values["strategy"][0]
    plainer = PLAINER.get(given.partition("+")[0], ())
    suffix = given[given.index("+") :] if "+" in given else ""
    names = (name + suffix * (name == "zero3") for name in plainer)
    return next((n for n in names if _alike(space, given, n) and has_plan(_under(space, n))), None)


def _alike(space: Space, one: str, other: str) -> bool:
    """Whether two strategies shard alike however the model is split."""
    gpus, node = space.num_gpus, space.cluster.gpus_per_node
    splits = [(tp, pp) for tp in space.tensor_sizes for pp in space.pipeline_sizes if tp * pp <= gpus]
    pairs = ([placement(name, gpus, node, *split) | {"strategy": ""} for name in (one, other)] for split in splits)
    return all(first == second for first, second in pairs)


def _under(space: Space, strategy: str) -> Space:
    return replace(space, values={**space.values, "strategy": [strategy]})


def nearest_legal(space: Space) -> int | None:
    """The number of GPUs nearest to the space's, whole nodes or parts of one, that has a legal plan."""
    for num_gpus in _counts(space):
        if has_plan(replace(space, num_gpus=num_gpus)):
            return num_gpus
    return None


def has_plan(space: Space) -> bool:
    """Whether any plan is legal."""
    return any(True for region in space.regions() for _ in region.parts(CHUNK))


def too_large(space: Space, smallest: Row, num_plans: int, mend: bool) -> str:
    """How much memory the smallest plan lacks, and with ``mend`` what would make room."""
    limit = space.cluster.gpu.memory_bytes
    plan = smallest.plan
    degrees = [f"{name} {plan[name]}" for name in ("tp", "cp", "pp", "ep") if plan[name] > 1]
    smallest_words = ", ".join(
        [smallest.strategy, *degrees, f"micro-batch {plan['micro_batch']}", f"recompute {recompute_in_words(plan)}"]
    )
    return (
        f"{space.model.name} fits {space.num_gpus:,} x {space.cluster.gpu.name} under none of {num_plans:,} plans: the "
        f"smallest ({smallest_words}) needs {format_gigabytes(smallest.memory_bytes)} GB per GPU, "
        f"{format_gigabytes(smallest.memory_bytes - limit)} GB more than the {format_gigabytes(limit)} there are"
    ) + (f"; {_mend(space)}" if mend else "")


def _mend(space: Space) -> str:
    fixed = {name: values for name, values in space.values.items() if name in space.fixed}
    for name in fixed:
        others = {other: values for other, values in space.values.items() if other != name}
        if name == "attention":  # the search would take the usual kernel, not a plan's default
            others[name] = [usual_attention(space.cluster)]
        if _fits(replace(space, values=others)):
            return f"leave {name} to the search and it fits"
    for times in MULTIPLES:
        more = replace(space, num_gpus=space.num_gpus * times)
        try:
            space.cluster.check_num_gpus(more.num_gpus)
        except InputError:
            break
        if _fits(more):
            return f"{more.num_gpus:,} GPUs would hold it"
    return "GPUs with more memory, a shorter sequence or a smaller model would help"


def _fits(space: Space) -> bool:
    for region in space.regions():
        for piece in region.parts(CHUNK):
            cast = forecast(space.model, space.cluster, piece.plans)
            if np.any(piece.legal & (cast.memory.total <= space.cluster.gpu.memory_bytes)):
                return True
    return False


def _constraint(space: Space) -> str:
    """The first condition, in the order they are checked, after which no plan is left."""
    gpus, model = _gpus(space.num_gpus), space.model
    if not space.tensor_sizes:
        tried = space.tried("tp", [1])
        reasons = [reason for tp in tried if (reason := _splits(space, tp))]
        return reasons[0] if reasons else f"tp={_listed(tried)} does not divide {gpus}"
    if not space.context_sizes:
        return f"cp leaves a rank fewer than {MIN_TOKENS_PER_RANK} of {space.seq_len} tokens"
    if not space.pipeline_sizes:
        tried = space.tried("pp", [1])
        return f"pp={_listed(tried)} does not divide {gpus} or exceeds the {model.num_layers} layers of {model.name}"
    if not space.expert_sizes and not model.num_experts:
        return f"{model.name} has no experts, so ep is 1"
    if not space.expert_sizes:
        return f"ep={_listed(space.tried('ep', [1]))} does not divide the {model.num_experts} experts of {model.name}"
    asked = [name for name in OF_TENSOR_PARALLEL if space.tried(name, [False]) == [True]]
    for name, nothing in WITHOUT_EXPERTS.items():
        usual = getattr(Plan, name)
        if not model.num_experts and usual not in space.tried(name, [usual]):
            return f"{model.name} has no experts, so there {nothing}"
    if "whole_experts" in asked and max(space.expert_sizes) == 1:
        return "whole_experts=true is for several ranks that share out experts and ep is 1"
    if asked and max(space.tensor_sizes) == 1:
        return f"{asked[0]}=true is for several tensor-parallel ranks and tp is 1"
    if not space.layouts:
        return f"no tp x cp x pp of those left divides {gpus}, cp {space.seq_len} tokens and ep the rest of the GPUs"
    regions = list(space.regions())
    if not regions:
        return "no pipeline size left has that schedule and virtual_pp, which divides a stage's layers"
    left = [np.ones((1, 1, 1, 1), dtype=bool) for _ in regions]
    for name in regions[0].conditions:
        left = [before & region.conditions[name] for before, region in zip(left, regions, strict=True)]
        if not any(np.any(where) for where in left):
            return f"no plan is left where {name}"
    raise AssertionError("the space is not empty")


def _splits(space: Space, tp: int) -> str:
    try:
        for block in space.model.kinds:
            block.check_tensor_parallel(tp)
    except InputError as error:
        return str(error)
    return ""


def _counts(space: Space) -> Iterator[int]:
    """Other GPU counts of the cluster, nearest first."""
    node, own = space.cluster.gpus_per_node, space.num_gpus
    around = range(max(own // node - COUNTS_TRIED // 2, 1), own // node + COUNTS_TRIED)
    counts = [*range(1, node), *(node * nodes for nodes in around)]
    for count in sorted(counts, key=lambda count: abs(count - own))[:COUNTS_TRIED]:
        try:
            space.cluster.check_num_gpus(count)
        except InputError:
            continue
        if count != own:
            yield count


def _gpus(number: int) -> str:
    return "1 GPU" if number == 1 else f"{number} GPUs"


def _listed(values: list[object]) -> str:
    return " or ".join(map(str, values))
