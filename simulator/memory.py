"""Bytes of GPU memory at the peak of a step, by what they hold."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from flopcast.kernels.nf4.format import payload_bytes
from flopcast.simulator.activations import Activations, activations, head_gradient_bytes
from flopcast.simulator.broadcast import Sum, largest, total
from flopcast.simulator.constants import Constants
from flopcast.simulator.engines import habit, has_habit
from flopcast.simulator.model import Model
from flopcast.simulator.operation import Array, Operation
from flopcast.simulator.placement import IntArray, layers_of_fullest_stage, num_dealt
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
    the pass before it has freed; the allocator holds them besides. ``outside``: what is held beside the allocator.
    """

    optimizer: Array
    moments: tuple[dict[str, Array], ...]
    in_one_piece: Array
    outside: Array
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
        return self.outside + self.reserved

    @cached_property
    def parts(self) -> dict[str, Array]:
        """What the peak consists of."""
        totals = self._moment_totals
        peak = largest(totals)
        held = {
            name: np.select([total == peak for total in totals], [moment[name] for moment in self.moments])
            for name in self.moments[0]
        }
        slack = self.outside + self.in_one_piece + self.allocator_slack * (self.optimizer + peak)
        return {**held, "optimizer": self.optimizer, "slack": slack}

    @cached_property
    def _moment_totals(self) -> list[Array]:
        return [Sum(moment.values()).total for moment in self.moments]


def memory(
    model: Model, operations: Sequence[Operation], plans: Plans, constants: Constants, stage: int | None = None
) -> Memory:
    """Peak memory per GPU under each plan: the worst of a step's moments (:func:`_moments`), states included.

    1F1B keeps p micro-batches in flight on the first stage and one on the last, which holds the logits instead; under
    zero bubble later stages keep besides what put-off weights' gradients need. The worse of the two counts, or
    ``stage``, whose ``operations`` are given then.
    """
    parts = units(model, plans, stage) if stage is not None else _of_fullest_stage(model, plans)
    sharded = total(u.count * u.sharded_elements(plans.optimizer_shard) for u in parts)
    update = habit("update_bytes", plans.engine) * (plans.state_bytes > 0) * sharded
    held = activations(model, operations, plans, stage)
    moments = _moments(model, plans, parts, held)
    in_one_piece = update + habit("bucket_bytes", plans.engine)
    outside = outside_bytes(plans.num_gpus, constants)
    return Memory(plans.state_bytes * sharded, tuple(moments), in_one_piece, outside, constants.allocator_slack)


def _of_fullest_stage(model: Model, plans: Plans) -> Sequence[Unit]:
    """Units of the fullest stage and the larger root. Where both roots count as a layer, a stage with one has a layer
    less: of the root no more is held besides than it has more elements than a layer.
    """
    parts = units(model, plans, None)
    counts = num_dealt(model.num_layers, plans.pp, has_habit("counts_ends", plans.engine)) > model.num_layers
    if not np.any(counts):
        return parts
    fullest = layers_of_fullest_stage(model.num_layers, plans.pp)
    layer = total(unit.count * unit.elements for unit in parts if unit.section == "layer") / fullest

    def held(unit: Unit) -> Unit:
        return replace(unit, count=unit.count * np.where(counts, np.maximum(1 - layer / unit.elements, 0.0), 1.0))

    return [unit if unit.section == "layer" else held(unit) for unit in parts]


def outside_bytes(num_gpus: IntArray, constants: Constants) -> Array:
    """What a GPU holds beside PyTorch's allocator: CUDA's context and, among several GPUs, NCCL's buffers."""
    return constants.context_bytes + np.where(num_gpus > 1, constants.nccl_bytes, 0.0)


def _moments(model: Model, plans: Plans, parts: Sequence[Unit], held: Activations) -> list[dict[str, Array]]:
    """What is held, beside the optimizer's state, at the moments of a step that can be its peak.

    The loss: every layer's activations and the logits. The backward of the last layers: nearly every layer's
    activations, what one layer's backward works in or the gradients that it leaves, the root and the layers ahead
    gathered, the last layer's gradient on its way into the reduction. The backward of the first layer and of the
    second, for which the first is gathered: no activations but theirs, every gradient. The reduction of the root's
    gradients, with which a step's last backward ends, and the end of the backward before it, where copies stay and
    gradients are added up. Where the head's matrix is the embedding's, autograd's sum of the gradients of both, out of
    place, at either end.

    Written down from FSDP2 (torch 2.13), which drops each replicated copy in the last backward of a step as soon as it
    has been used, and adds up gradients that are not reduced yet in the reduction's width. In a pipeline whose
    gradients are not sharded both wait until the last micro-batch has gone backward; then comes one layer after
    another, the root first (PipelineStage.perform_reduce_grad). Other engines keep buffers of both
    (:class:`flopcast.simulator.engines.Habits`).
    """
    p, g, o = plans.parameter_shard, plans.gradient_shard, plans.optimizer_shard
    static = has_habit("static_buffers", plans.engine)
    pipeline = plans.pp > 1
    accumulates = (plans.grad_accum > 1) | pipeline | static
    # A lone micro-batch is reduced straight to the optimizer's shards, whatever the strategy's name.
    g = np.where(accumulates, g, o)
    width = np.where(has_habit("separate_gradients", plans.engine), 6.0, plans.gradient_bits / 8)
    layers = [unit for unit in parts if unit.section == "layer"]
    roots = [unit for unit in parts if unit.section != "layer"]
    layer = largest(_layer_elements(layers, plans))
    gathered_layer = layer * np.where(layers[0].gathered_in_8_bits, 0.5, 1.0)
    root = total(unit.count * unit.gathered_elements for unit in roots)
    whole = total(unit.count * unit.gathered_elements for unit in parts)
    gradients = width * total(unit.count * unit.sharded_elements(g) for unit in parts)
    kept_bytes = total(unit.count * unit.gather_bytes(o) / unit.ways(p) for unit in parts)
    share_of_layers = 1 - root / whole
    head = held.is_last * head_gradient_bytes(model, plans)
    sharded, in_node, replicated = p > 1, (p > 1) & (p < o), p == 1
    nothing = plans.zeros
    # Between micro-batches a replicated copy stays; where gradients are sharded too, that is when the most is held.
    kept = pipeline | (accumulates & (plans.gradient_shard > 1))

    shards = 2.0 * static * total(unit.count * unit.sharded_elements(p) for unit in parts)
    live = np.minimum(whole, habit("live_elements", plans.engine))

    def gathered(elements: Array) -> Array:
        return np.asarray(sharded * 2.0 * np.maximum(elements, live))

    def copies(released: Array) -> Array:
        """Working copies that outlive a layer's use, ``released`` elements having been given up."""
        left = np.where(static, whole, np.maximum(whole - released, 0.0))
        return np.asarray(np.where(replicated | in_node, kept_bytes * left / whole, shards))

    def moment(**parts: Array) -> dict[str, Array]:
        names = ("parameters", "gradients", "activations", "workspace", "gathered", "quantised", "logits")
        return {name: parts.get(name, nothing) for name in names}

    # A layer's 16-bit gradients grow as what it works in shrinks.
    growing = ~static * np.maximum(2.0 * layer - held.workspace, 0.0)
    growing_of_last = ~static * np.maximum(2.0 * layer - held.workspace_of_last, 0.0)
    # Where the reduction waits for the last backward, none is under way before.
    late = pipeline & (plans.gradient_shard == 1) & ~static
    in_whole = static | pipeline
    several = (plans.grad_accum > 1) & ~in_whole
    # Of gradients added up whole the reduction takes the place, and a layer's copy is given up before it.
    added = several & (g == 1)
    reduction = np.where(late, 0.0, ~static * width * layer)
    last_unit = np.where(late, np.maximum(root, layer), root)
    # In the last backward gradients become what the optimizer takes, layer by layer, and the root's at its end.
    shares = width * total(unit.count * unit.sharded_elements(o) for unit in parts)
    reduced = shares * np.where(accumulates & (g > 1), 1.0, share_of_layers)
    payloads = sharded * (plans.gather_bits == 4) * payload_bytes(layer.astype(np.int64)) * 1.0
    num_layers = total(unit.count for unit in layers if not unit.of_experts)
    # No more layers are gathered ahead than there are.
    prefetch = np.minimum(plans.prefetch, np.maximum(num_layers - 1, 0))
    moments = [
        moment(
            parameters=copies(np.where(sharded, root, 0.0)),
            gradients=np.where(accumulates, gradients, 0.0),
            activations=held.layers + held.results,
            gathered=gathered(root + ~static * gathered_layer),
            logits=held.logits,
        ),
        moment(
            parameters=copies(np.where(sharded, root + layer * (1 + prefetch), np.where(kept | added, 0.0, layer))),
            gradients=np.where(accumulates, gradients, gradients * layer / whole),
            activations=held.results + np.maximum(held.layers - held.last_layer, held.turned - held.one_put_off),
            workspace=held.workspace_of_last,
            gathered=gathered(root + gathered_layer * (1 + prefetch))
            + np.where(added, np.maximum(~static * width / o - 2.0, 0.0) * layer, reduction)
            + growing_of_last
            + head,
            quantised=payloads,
        ),
    ]
    second_layer = np.where(plans.recompute_layers == 1, held.last_layer, held.first_layer)
    for first in (1, 2):
        left = np.minimum(first, num_layers)
        kept_of_them = held.first_layer + np.where(left > 1, second_layer, 0.0)
        ahead = prefetch * (left > 1)
        last = (root + left * layer) / whole
        added_up = np.where(added, last * gradients + (1 - last) * shares, gradients)
        moments.append(
            moment(
                parameters=copies(
                    np.where(accumulates & in_node, root + layer * (1 + ahead), whole - root - left * layer)
                ),
                gradients=np.where(accumulates, added_up, gradients * np.maximum(1 - last, 0.0)),
                activations=kept_of_them * held.in_flight + np.maximum(held.left - held.one_put_off, 0.0),
                workspace=held.workspace,
                gathered=gathered(root + gathered_layer * (1 + ahead))
                + reduction * (num_layers > left)
                + growing
                + head,
            )
        )
    into_shards = width + np.where(late, 0.0, np.maximum(2.0, width / g))
    moments.append(
        moment(
            parameters=copies(np.where(pipeline & ~sharded, last_unit, whole)),
            gradients=np.where(in_whole, np.where(accumulates, gradients, gradients * share_of_layers), reduced),
            gathered=~static * into_shards * last_unit,
        )
    )
    # The root's gradients are added up after the backward, so that the second micro-batch is the first to find some.
    # The first has its own cast one by one.
    own = np.where(plans.grad_accum > 2, 2.0 * root, head)
    found = gradients * np.where(plans.grad_accum > 2, 1.0, share_of_layers)
    moments.append(
        moment(
            parameters=several * copies(nothing),
            gradients=several * np.where(g == 1, gradients, found),
            gathered=np.where(several, np.where(g == 1, own, into_shards * root), 0.0),
        )
    )
    if model.tied_embeddings:
        sums = np.where(in_whole, 0.0, gathered(root) + 3 * head)
        moments += [
            moment(
                parameters=several * copies(np.where(sharded, root, 0.0)),
                gradients=several * found,
                gathered=np.where(several, sums + reduction * (g > 1), 0.0),
            ),
            moment(
                parameters=~in_whole * copies(np.where(sharded, whole, whole - root)),
                gradients=~in_whole * (reduced + several * (g == 1) * width * root),
                gathered=np.asarray(sums + ~in_whole * reduction),
            ),
        ]
    return moments


def _layer_elements(units_of_layers: Sequence[Unit], plans: Plans) -> list[Array]:
    """Gathered elements of one layer of each kind, its experts included."""
    by_kind: defaultdict[str, Array] = defaultdict(lambda: plans.zeros)
    for unit in units_of_layers:
        kind = unit.name.partition(".")[0]
        by_kind[kind] = by_kind[kind] + unit.gathered_elements
    return list(by_kind.values())
