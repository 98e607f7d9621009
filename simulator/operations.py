"""What happens in one training step: one list of operations for a representative rank, whatever the plan."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flopcast.collectives.group import Group
from flopcast.kernels.nf4.cost import conversion_bytes
from flopcast.kernels.pointwise import Pass
from flopcast.kernels.rmsnorm import cost as norm_cost
from flopcast.simulator import placement
from flopcast.simulator.blocks.computation import (
    Computation,
    Workload,
    embedding_exit,
    head_entry,
    linear,
    pointwise,
    shared_loss,
)
from flopcast.simulator.cuda_graphs import graph_launches, replayed
from flopcast.simulator.engines import habit, has_habit
from flopcast.simulator.model import Model
from flopcast.simulator.operation import (
    Array,
    Collective,
    Gemm,
    HostUpdate,
    Operation,
    Phase,
    Pointwise,
    Section,
    SmallCopies,
    When,
)
from flopcast.simulator.placement import IntArray
from flopcast.simulator.plan import Plans
from flopcast.simulator.recompute import checkpoint, expand, selectively, shares_in_full
from flopcast.simulator.sends import send_operations
from flopcast.simulator.sharding import Unit, layers_by_kind, units

# Cross-entropy, bytes per logit where its passes are compiled into one; engines say what theirs move (engines.py).
LOSS_FUSED = (Pass(4, 2), Pass(6, 2))
EMBEDDING_FORWARD, EMBEDDING_BACKWARD = Pass(4, 1), Pass(8, 2)
# AdamW with a 16-bit copy of the parameters: read fp32 parameter, gradient and two moments; write all but the gradient.
OPTIMIZER_BYTES_PER_PARAMETER = 30
CLIP_BYTES_PER_PARAMETER = 8
# Where the host updates: an fp32 gradient goes there, a 16-bit parameter comes back.
HOST_LINK_BYTES_PER_PARAMETER = 6
# Launches around a sharded collective: pack, the collective, unpack.
GATHER_KERNELS = 3.0
# Tensors that engines which exchange slices hold in one.
FUSED_TENSORS = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "up"}


def step_operations(
    model: Model, plans: Plans, gpus_per_node: NDArray[np.int64], stage: int | None = None
) -> list[Operation]:
    """Every operation of one optimizer step of ``model`` under each of the N plans, on nodes of G GPUs.

    The rank stands on the pipeline stage with most layers; what the first and the last stage have besides (section
    "embedding", "head") is listed once and given to its stage by the readings. With ``stage``, counted from 0, the list
    is exactly that stage's.
    """
    load = Workload(plans, model.hidden, gpus_per_node, rotary=model.positions == "rotary")
    operations: list[Operation] = []
    names = model.kind_names
    shares = shares_in_full(model, plans, stage)
    for block, count in layers_by_kind(model, plans, stage).items():
        in_full = shares[block]
        operations.append(checkpoint(f"{names[block]}.checkpoint", load, count, in_full))
        operations += graph_launches(f"{names[block]}.graph", plans, count)
        num_products = 0
        for piece in block.computations(load):
            num_products += isinstance(piece.forward, Gemm)
            kept = selectively(piece, plans, num_products % 2 == 1)
            operations += expand(f"{names[block]}.{piece.name}", "layer", piece, count, plans, in_full, kept)
    for section, piece in _vocabulary(model, load):
        here = plans.zeros + 1
        if stage is not None:
            here = here * (stage == (0 if section == "embedding" else plans.pp - 1))
        operations += expand(f"{section}.{piece.name}", section, piece, here, plans)
    parts = units(model, plans, stage)
    for unit in parts:
        operations += _gathers(unit, gpus_per_node)
        operations += _reductions(unit, gpus_per_node)
        operations += _update(unit, gpus_per_node)
    operations += _shared_gradients(parts, plans, gpus_per_node)
    operations += send_operations(load, stage)
    operations += _gradient_norm(plans, gpus_per_node)
    return replayed([operation for operation in operations if np.any(operation.count)], plans)


def _vocabulary(model: Model, load: Workload) -> list[tuple[Section, Computation]]:
    plans = load.plans
    elements = load.residual_tokens * model.hidden
    never = plans.zeros > 0
    embedding = pointwise("lookup", elements, never, (EMBEDDING_FORWARD,) * 2, (EMBEDDING_BACKWARD,) * 2, 0.0)
    fused = plans.fused_kernels | plans.compiled
    vocabulary = model.vocab_size / plans.tp
    logits = load.tokens * vocabulary
    whole_bytes, parallel_bytes = habit("logit_bytes", plans.engine), habit("parallel_logit_bytes", plans.engine)
    logit_bytes = np.where((plans.tp > 1) & (parallel_bytes > 0), parallel_bytes, whole_bytes)
    in_one_pass = habit("compiled_logit_bytes", plans.engine) * (plans.compiled & (plans.tp == 1))
    logit_bytes = np.where(in_one_pass > 0, in_one_pass, logit_bytes)
    norm_forward, norm_backward = (norm_cost.FORWARD,) * 2, (norm_cost.BACKWARD,) * 2
    compiled = plans.compiled & ~has_habit("jit_only", plans.engine)
    loss_forward, loss_backward = (
        (LOSS_FUSED[way], Pass(habit(f"loss_{name}_bytes", plans.engine), 4))
        for way, name in enumerate(("forward", "backward"))
    )
    head = [
        pointwise("norm", elements, fused, norm_forward, norm_backward, load.residual_bytes),
        linear(load, "logits", model.hidden, vocabulary, load.residual_bytes, model.head_bias),
        pointwise("loss", logits, compiled, loss_forward, loss_backward, logits * logit_bytes),
        *head_entry(load),
        *shared_loss(load),
    ]
    lookup = [embedding, *embedding_exit(load)]
    return [*(("embedding", piece) for piece in lookup), *(("head", piece) for piece in head)]


def _gathers(unit: Unit, gpus_per_node: NDArray[np.int64]) -> Iterator[Operation]:
    """All-gathers of parameters: from the master shard once a step, or from the working copy in every pass.

    parameter shard p, optimizer shard o. p = o > 1 (zero3, hsdp): over p, forward and backward of every micro-batch.
    1 < p < o (zero3-node): the first forward over o, every other pass over p, padded as for o. p = 1 < o (zero1,
    zero2): once over o. All are counted among the ranks that hold the unit's parameters.
    """
    plans = unit.plans
    p, o = unit.ways(plans.parameter_shard), unit.ways(plans.optimizer_shard)
    once = o > p
    # The node's copy is cut from what was gathered over the optimizer's shards, and keeps its padding.
    tensor_bytes = unit.gather_bytes(plans.optimizer_shard).astype(np.float64)
    elements = unit.gathered_elements.astype(np.float64)
    occasions: list[tuple[IntArray, Phase, When, NDArray[np.bool_]]] = [
        (o, "forward", "first", once),
        (p, "forward", "every", (p > 1) & ~once),
        (p, "forward", "later", (p > 1) & once),
        (p, "backward", "every", p > 1),
    ]
    nothing = plans.zeros
    for shard, phase, when, present in occasions:
        if not np.any(present):
            continue
        count = unit.count * present
        group = placement.group(shard, unit.stride, gpus_per_node, plans.num_gpus)
        calls = np.where(has_habit("gathers_matrices", plans.engine) & (p > 1), unit.num_matrices, 1)
        work = Collective("all_gather", tensor_bytes / calls, group, unit.group_name(shard), "gather")
        launches = nothing + GATHER_KERNELS
        name = f"{unit.name}.gather"
        yield Operation(name, unit.section, phase, when, count * calls, launches, work, nothing, nothing)
        quantised = count * (plans.gather_bits == 4)
        if not np.any(quantised):
            continue
        # What is gathered in the node was quantised when it was gathered over all.
        fresh = np.where(shard == o, conversion_bytes(elements / shard), 0.0)
        restore = Pointwise(fresh + conversion_bytes(elements), counted=True)
        name = f"{unit.name}.dequantise"
        yield Operation(name, unit.section, phase, when, quantised, nothing + 2.0, restore, nothing, nothing)


def _reductions(unit: Unit, gpus_per_node: NDArray[np.int64]) -> Iterator[Operation]:
    """Gradient reductions: to the gradient shard every micro-batch, to the optimizer shard and the replicas once.

    gradient shard g, optimizer shard o, W ranks: g > 1 reduce-scatters over g after every backward; what is still
    missing (g = 1: over o; 1 < g < o: over o/g of 1/g) and the all-reduce over the W/o replicas follow the last.
    All are counted among the ranks that hold the unit's parameters. An engine that reduces whole all-reduces over all W
    as often, and each rank keeps its part.
    """
    plans = unit.plans
    whole = has_habit("reduces_whole", plans.engine) & (plans.parameter_shard == 1)
    g, o = (np.where(whole, 1, unit.ways(shard)) for shard in (plans.gradient_shard, plans.optimizer_shard))
    every = whole & (plans.gradient_shard > 1)
    world, stride = unit.ranks, unit.stride
    element_bytes = plans.gradient_bits / 8

    def among(size: NDArray[np.int64], apart: NDArray[np.int64] | int = 1) -> Group:
        return placement.group(size, stride * apart, gpus_per_node, plans.num_gpus)

    padded = unit.padded_elements(plans.gradient_shard) * element_bytes
    name = unit.group_name(g)
    yield from _reduction(unit, "reduce_scatter", "every", padded, among(g), name, g > 1)
    once = unit.gathered_elements * element_bytes
    name = unit.group_name(o)
    yield from _reduction(unit, "reduce_scatter", "last", once, among(o), name, (g == 1) & (o > 1))
    second = among(o // g, g)
    yield from _reduction(unit, "reduce_scatter", "last", padded / g, second, "across-nodes", (g > 1) & (g < o))
    exact = unit.elements * element_bytes
    replicated = np.where(o > 1, once / o, exact)
    names = np.where(o > 1, "across-nodes", unit.group_name(world))
    rest = among(world // o, o)
    yield from _reduction(unit, "all_reduce", "every", replicated, rest, names, every & (o < world))
    yield from _reduction(unit, "all_reduce", "last", replicated, rest, names, ~every & (o < world))


def _reduction(
    unit: Unit,
    collective: Literal["reduce_scatter", "all_reduce"],
    when: When,
    unit_bytes: Array,
    group: Group,
    group_name: NDArray[np.str_] | str,
    present: NDArray[np.bool_],
) -> Iterator[Operation]:
    """One call per unit, or per bucket where replicated gradients are all-reduced or a bucket holds several units."""
    if not np.any(present):
        return
    plans = unit.plans
    total = unit.count * unit_bytes
    bucket = plans.bucket_bytes if collective == "all_reduce" else np.maximum(plans.bucket_bytes, unit_bytes)
    buckets = np.maximum(np.ceil(total / bucket - 1e-9), (total > 0) * 1.0)
    gathered = (unit.ways(plans.parameter_shard) > 1) & ~has_habit("gathers_matrices", plans.engine)
    calls = np.where(gathered, unit.count, buckets) * present
    tensor_bytes = np.where(calls > 0, total, 0.0) / np.where(calls > 0, calls, 1.0)
    work = Collective(collective, tensor_bytes, group, group_name, "reduce")
    kernels = plans.zeros + GATHER_KERNELS
    name = f"{unit.name}.{collective}"
    nothing = plans.zeros
    yield Operation(name, unit.section, "backward", when, calls, kernels, work, nothing, nothing)


def _update(unit: Unit, gpus_per_node: NDArray[np.int64]) -> Iterator[Operation]:
    plans = unit.plans
    nothing = plans.zeros
    local = unit.elements / unit.ways(plans.optimizer_shard)

    def state(
        name: str, phase: Phase, when: When, bytes_: Array, present: NDArray[np.bool_], kernels: float
    ) -> Operation:
        work = Pointwise(bytes_, counted=True)
        return Operation(
            f"{unit.name}.{name}",
            "state",
            phase,
            when,
            unit.count * present,
            nothing + kernels,
            work,
            nothing,
            nothing,
        )

    yield _slices(unit)
    yield _host_update(unit, local, gpus_per_node)
    everywhere, on_device = plans.zeros == 0, plans.state_bytes > 0
    yield state("optimizer", "step", "step", local * OPTIMIZER_BYTES_PER_PARAMETER, on_device, 4.0)
    yield state("clip", "step", "step", local * CLIP_BYTES_PER_PARAMETER, everywhere, 2.0)
    # Replicated gradients are added to the accumulator in its own width: read both, write one.
    added = unit.elements * (2 + plans.gradient_bits / 4)
    replicated = (unit.ways(plans.gradient_shard) == 1) & ((plans.grad_accum > 1) | (plans.gradient_bits == 32))
    apart = replicated & ~has_habit("accumulates_in_products", plans.engine)
    yield state("accumulate", "backward", "every", added, apart, 4.0)


def _host_update(unit: Unit, local: Array, gpus_per_node: NDArray[np.int64]) -> Operation:
    """Where the states lie on the host: its memory serves every GPU of the node (ZeRO-Offload, arXiv:2101.06840)."""
    plans = unit.plans
    sharing = np.minimum(plans.num_gpus, gpus_per_node)
    work = HostUpdate(local * OPTIMIZER_BYTES_PER_PARAMETER * sharing, local * HOST_LINK_BYTES_PER_PARAMETER)
    nothing = plans.zeros
    count = unit.count * (plans.state_bytes == 0)
    return Operation(f"{unit.name}.host_optimizer", "state", "step", "step", count, nothing, work, nothing, nothing)


def _slices(unit: Unit) -> Operation:
    """Where replicated parameters are updated in slices: of every tensor one copy per rank, of its gradients too."""
    plans = unit.plans
    shard = unit.ways(plans.optimizer_shard)
    present = plans.sliced_update & (shard > 1) & (plans.parameter_shard == 1)
    tensors = {FUSED_TENSORS.get(tensor.name, tensor.name) for tensor in unit.tensors}
    copies = SmallCopies(2.0 * len(tensors) * shard.astype(np.float64))
    nothing = plans.zeros
    count = unit.count * present
    return Operation(f"{unit.name}.slices", "state", "step", "step", count, nothing, copies, nothing, nothing)


def _shared_gradients(parts: Sequence[Unit], plans: Plans, gpus_per_node: NDArray[np.int64]) -> Iterator[Operation]:
    """Gradients of which each tensor-parallel rank computed a share: one fp32 all-reduce after the last backward."""
    bytes_ = plans.zeros
    for unit in parts:
        bytes_ = bytes_ + 4.0 * unit.count * unit.shared_gradient_elements
    group = placement.group(plans.tp, np.ones_like(plans.tp), gpus_per_node, plans.num_gpus)
    work = Collective("all_reduce", bytes_, group, "tp", "norm")
    nothing = plans.zeros
    present = np.where(bytes_ > 0, 1.0, 0.0)
    yield Operation("shared_gradients", "state", "step", "step", present, 3 * present, work, nothing, nothing)


def _gradient_norm(plans: Plans, gpus_per_node: NDArray[np.int64]) -> Iterator[Operation]:
    ones = plans.zeros + 1
    group = placement.group(plans.num_gpus, np.ones_like(plans.tp), gpus_per_node, plans.num_gpus)
    work = Collective("all_reduce", 4 * ones, group, "world", "norm")
    yield Operation("gradient_norm", "state", "step", "step", ones, ones, work, 0 * ones, 0 * ones)
