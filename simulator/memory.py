"""Bytes of GPU memory at the peak of a step, by what they hold."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flopcast.kernels.nf4.cost import payload_bytes
from flopcast.simulator import placement
from flopcast.simulator.broadcast import Sum, largest
from flopcast.simulator.constants import Constants
from flopcast.simulator.engines import habit, has_habit
from flopcast.simulator.model import Model
from flopcast.simulator.operation import Array, Operation
from flopcast.simulator.plan import Plans
from flopcast.simulator.sharding import Unit, units


@dataclass(frozen=True)
class Memory:
    """Bytes per GPU on the fullest pipeline stage, arrays over plans; :attr:`parts` add up to ``total``.

    Of the ``moments`` of a step, each what is held then beside the optimizer's state, the largest is the peak. Parts:
    ``parameters``: working copies that outlive a layer. ``optimizer``: fp32 master, moments. ``gathered``: layers
    gathered ahead of use and their whole gradients before reduction. ``quantised``: NF4 payloads in flight.
    ``workspace``: one layer's activations while it is computed again. ``slack``: CUDA context, NCCL buffers and what
    the caching allocator cannot use. ``in_one_piece``: tensors of the update so large that they find no room in what
    the pass before it has freed; the allocator holds them besides.
    """

    optimizer: Array
    moments: tuple[dict[str, Array], ...]
    in_one_piece: Array
    reserved_bytes: float
    allocator_slack: float

    @cached_property
    def allocated(self) -> Array:
        """Peak bytes of tensors: ``torch.cuda.max_memory_allocated``."""
        return self.optimizer + largest(self._moment_totals)

    @cached_property
    def reserved(self) -> Array:
        """Peak bytes that the caching allocator holds for them: ``torch.cuda.max_memory_reserved``."""
        return (1 + self.allocator_slack) * self.allocated + self.in_one_piece

    @cached_property
    def total(self) -> Array:
        """Peak bytes per GPU, as nvidia-smi counts them: CUDA's context and NCCL's buffers included."""
        return self.reserved_bytes + self.reserved

    @cached_property
    def parts(self) -> dict[str, Array]:
        """What the peak consists of."""
        totals = self._moment_totals
        peak = largest(totals)
        held = {
            name: np.select([total == peak for total in totals], [moment[name] for moment in self.moments])
            for name in self.moments[0]
        }
        slack = self.reserved_bytes + self.in_one_piece + self.allocator_slack * (self.optimizer + peak)
        return {**held, "optimizer": self.optimizer, "slack": slack}

    @cached_property
    def _moment_totals(self) -> list[Array]:
        return [Sum(moment.values()).total for moment in self.moments]


def memory(model: Model, operations: Sequence[Operation], plans: Plans, constants: Constants) -> Memory:
    """Peak memory per GPU under each plan: the worst of four moments of a step (:func:`_moments`), states included.

    1F1B keeps p micro-batches in flight on the first stage and one on the last, which holds the logits instead.
    """
    stage_layers = placement.layers_of_fullest_stage(model.num_layers, plans.pp)
    parts = units(model, plans, stage_layers)
    sharded = _sum(u.count * u.sharded_elements(plans, plans.optimizer_shard) for u in parts)
    update = habit("update_bytes", plans.engine) * (plans.state_bytes > 0) * sharded
    moments = _moments(model, operations, plans, parts, np.asarray(stage_layers, dtype=np.float64))
    in_one_piece = update + habit("bucket_bytes", plans.engine)
    return Memory(
        plans.state_bytes * sharded, tuple(moments), in_one_piece, constants.reserved_bytes, constants.allocator_slack
    )


def _moments(
    model: Model, operations: Sequence[Operation], plans: Plans, parts: Sequence[Unit], stage_layers: Array
) -> list[dict[str, Array]]:
    """What is held, beside the optimizer's state, at the four moments of a step that can be its peak.

    The loss: every layer's activations and the logits. The backward of the last layers: nearly every layer's
    activations, what one layer's backward works in, the root and the layers ahead gathered, the last layer's gradient
    on its way into the reduction. The backward of the first layer: no activations but its own, every gradient. The
    reduction of the root's gradients. Written down from FSDP2 (torch 2.13), which drops each replicated copy in the
    last backward of a step as soon as it has been used, and adds up gradients that are not reduced yet in the
    reduction's width. Other engines keep buffers of both (:class:`flopcast.simulator.engines.Habits`).
    """
    p, g, o = plans.parameter_shard, plans.gradient_shard, plans.optimizer_shard
    static = has_habit("static_buffers", plans.engine)
    accumulates = (plans.grad_accum > 1) | static
    # A lone micro-batch is reduced straight to the optimizer's shards, whatever the strategy's name.
    g = np.where(accumulates, g, o)
    width = np.where(has_habit("separate_gradients", plans.engine), 6.0, plans.gradient_bits / 8)
    layers = [unit for unit in parts if unit.section == "layer"]
    roots = [unit for unit in parts if unit.section != "layer"]
    layer = largest(_layer_elements(layers, plans))
    root = _sum(unit.count * unit.padded_elements(plans, o) for unit in roots)
    whole = _sum(unit.count * unit.padded_elements(plans, o) for unit in parts)
    gradients = width * _sum(unit.count * unit.sharded_elements(plans, g) for unit in parts)
    kept_bytes = _sum(unit.count * unit.gather_bytes(plans, o) / unit.ways(plans, p) for unit in parts)
    share_of_layer = layer / whole
    head = 2.0 * model.vocab_size * model.hidden / plans.tp

    activations, workspace, logits, in_flight = _activations(operations, plans, model.num_layers)
    one_layer = activations / (stage_layers * in_flight)
    sharded, in_node, replicated = p > 1, (p > 1) & (p < o), p == 1
    nothing = plans.zeros
    reduced = plans.shard_ranks > 1
    # Between micro-batches a replicated copy stays; where gradients are sharded too, that is when the most is held.
    kept = accumulates & (plans.gradient_shard > 1)

    shards = 2.0 * static * _sum(unit.count * unit.sharded_elements(plans, p) for unit in parts)
    live = np.minimum(whole, habit("live_elements", plans.engine))

    def gathered(elements: Array) -> Array:
        return np.asarray(sharded * 2.0 * np.maximum(elements, live))

    def copies(released: Array) -> Array:
        """Working copies that outlive a layer's use, ``released`` elements having been given up."""
        left = np.where(static, whole, np.maximum(whole - released, 0.0))
        return np.select([replicated, in_node], [2.0 * left, kept_bytes * left / whole], shards)

    def moment(**held: Array) -> dict[str, Array]:
        names = ("parameters", "gradients", "activations", "workspace", "gathered", "quantised", "logits")
        return {name: held.get(name, nothing) for name in names}

    in_flight_gradients = reduced & ~static
    reduction = in_flight_gradients * width * layer
    payloads = sharded * (plans.gather_bits == 4) * payload_bytes(layer.astype(np.int64)) * 1.0
    return [
        moment(
            parameters=copies(np.where(sharded, root, 0.0)),
            gradients=np.where(accumulates, gradients, 0.0),
            activations=activations,
            gathered=gathered(root),
            logits=logits,
        ),
        moment(
            parameters=copies(np.where(sharded, root + layer * (1 + plans.prefetch), np.where(kept, 0.0, layer))),
            gradients=np.where(accumulates, gradients, gradients * share_of_layer),
            activations=activations - one_layer,
            workspace=workspace,
            gathered=gathered(root + layer * (1 + plans.prefetch)) + reduction + head,
            quantised=payloads,
        ),
        moment(
            parameters=copies(np.where(accumulates & in_node, root + layer, whole - root - layer)),
            gradients=np.where(accumulates, gradients, gradients * np.maximum(1 - (root + layer) / whole, 0.0)),
            activations=one_layer * in_flight,
            workspace=workspace,
            gathered=gathered(root + layer) + reduction + head,
        ),
        moment(
            parameters=copies(np.where(sharded, whole, whole - root)),
            gradients=np.where(accumulates, gradients, gradients * (1 - root / whole)),
            gathered=in_flight_gradients * (width + np.maximum(2.0, width / g)) * root,
        ),
    ]


def micro_batches_in_flight(plans: Plans) -> Array:
    """Micro-batches whose activations the first stage holds at once, in units of a whole stage's layers.

    1F1B: min(p, m). GPipe: m. Interleaved: p (1 + (p-1)/(p v)) (arXiv:2205.05198, section 4.2.3).
    Zero bubble (ZB-H1): as 1F1B.
    """
    p, m, v = plans.pp, plans.grad_accum, plans.virtual_pp
    one_f_one_b = np.minimum(p, m).astype(np.float64)
    interleaved = np.minimum(p * (1 + (p - 1) / (p * v)), m)
    flight = np.select([plans.has(schedule="gpipe"), plans.has(schedule="interleaved")], [m, interleaved], one_f_one_b)
    return np.where(p == 1, 1.0, flight)


def _activations(operations: Sequence[Operation], plans: Plans, num_layers: int) -> tuple[Array, Array, Array, Array]:
    """Activations kept by layers, what one layer's backward works in, the logits, and micro-batches in flight."""
    layers, head = plans.zeros, plans.zeros
    workspace: defaultdict[str, Array] = defaultdict(lambda: plans.zeros)
    for operation in operations:
        if operation.section == "layer":
            layers = layers + operation.count * operation.saved_bytes
            kind = operation.name.split(".")[0]
            workspace[kind] = workspace[kind] + (operation.count > 0) * operation.workspace_bytes
        else:
            head = head + operation.count * operation.saved_bytes
    fullest = placement.layers_of_fullest_stage(num_layers, plans.pp)
    last_share = placement.layers_of_last_stage(num_layers, plans.pp) / fullest
    in_flight = micro_batches_in_flight(plans)
    head_on_first = np.where(plans.pp == 1, head, 0.0)
    last_is_worse = layers * last_share + head > layers * in_flight + head_on_first
    return (
        np.where(last_is_worse, layers * last_share, layers * in_flight),
        largest(workspace.values()),
        np.where(last_is_worse, head, head_on_first),
        np.where(last_is_worse, last_share, in_flight),
    )


def _layer_elements(units_of_layers: Sequence[Unit], plans: Plans) -> list[Array]:
    """Gathered elements of one layer of each kind, its experts included."""
    by_kind: defaultdict[str, Array] = defaultdict(lambda: plans.zeros)
    for unit in units_of_layers:
        kind = unit.name.partition(".")[0]
        by_kind[kind] = by_kind[kind] + unit.padded_elements(plans, plans.optimizer_shard)
    return list(by_kind.values())


def _sum(parts: "object") -> Array:
    total: Array = sum(parts)  # type: ignore[call-overload]
    return total
