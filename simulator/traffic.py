"""Bytes per collective, group and tier: what the engine issues, and what crosses NVLink and the NICs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flopcast.collectives import COLLECTIVES
from flopcast.simulator.model import Model
from flopcast.simulator.operation import Array, Collective, Operation
from flopcast.simulator.plan import Plans


@dataclass(frozen=True)
class Traffic:
    """Bytes that the GPUs of one node send in one optimizer step, arrays over plans, ring accounting."""

    intra_node_bytes: Array
    inter_node_bytes: Array


@dataclass(frozen=True)
class CollectiveTotal:
    """All calls of one collective over one kind of group in one phase; bytes of full tensors, padding included."""

    collective: str
    group: str
    phase: str
    count: int
    tensor_bytes: int


def traffic(operations: Sequence[Operation], plans: Plans) -> Traffic:
    """What one node sends in one step: of every call, (n-1)/n of the tensor per rank, twice for an all-reduce.

    Of a ring's g ranks in a node one sends to the next node, the rest over NVLink; every group of the node counts.
    """
    intra, inter = plans.zeros, plans.zeros
    for operation in operations:
        work = operation.work
        if isinstance(work, Collective):
            inside, between = COLLECTIVES[work.collective].sent_bytes(work.tensor_bytes, work.group)
            calls = operation.times(plans.grad_accum) * work.group.groups_per_node
            intra = intra + inside * calls
            inter = inter + between * calls
    return Traffic(intra, inter)


def collective_totals(operations: Sequence[Operation], plans: Plans) -> list[CollectiveTotal]:
    """The one plan's calls and bytes by collective, group and phase, as an engine's log of collectives would sum them.

    Only what the engine moves because of sharding and tensor parallelism: gathers, reductions, tensor-parallel sums.
    A group of one rank moves nothing.
    """
    totals: dict[tuple[str, str, str], list[float]] = {}
    for operation in operations:
        work = operation.work
        if not isinstance(work, Collective) or operation.count[0] == 0 or np.max(work.group.size) == 1:
            continue
        group = work.group_name if isinstance(work.group_name, str) else str(work.group_name[0])
        phase = "backward" if operation.phase == "recompute" else operation.phase
        times = operation.times(plans.grad_accum)[0]
        total = totals.setdefault((work.collective, group, phase), [0.0, 0.0])
        total[0] += times
        total[1] += times * work.tensor_bytes[0]
    return [
        CollectiveTotal(collective, group, phase, round(count), round(tensor_bytes))
        for (collective, group, phase), (count, tensor_bytes) in totals.items()
    ]


@dataclass(frozen=True)
class LayerTraffic:
    """Communication to execute one transformer layer's forward, by the PLaMo-13B report's accounting."""

    strategy: str
    collective: str
    elements: int
    tensor_bytes: int
    moved_bytes: int


def layer_traffic(model: Model, strategy: str, tp: int, tokens_per_gpu: int, ep: int = 1) -> LayerTraffic:
    """One row of the report's table: the tensor of one layer's forward collective at 16 bits.

    Tensor parallel: the sums over tp ranks of activations, elements = sums x tp x tokens per GPU x D, moved twice
    (an all-reduce is a reduce-scatter and an all-gather). Sharded parameters: the layer's parameters, moved once, those
    of a rank's experts with expert parallelism. The layer is the kind that the model has most of.
    """
    block = max(model.kinds, key=lambda kind: model.kinds[kind])
    if tp > 1:
        elements = block.num_tensor_parallel_sums * tp * tokens_per_gpu * model.hidden
        return LayerTraffic(strategy, "all_reduce", elements, 2 * elements, 4 * elements)
    elements = sum(
        tensor.num_parameters // (ep if tensor.num_experts > 1 else 1) for tensor in block.tensors(model.hidden)
    )
    return LayerTraffic(strategy, "all_gather", elements, 2 * elements, 2 * elements)
