"""What a layer keeps for its backward, and what it computes again, under each plan's recompute and engine."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flopcast.errors import InputError
from flopcast.simulator import placement
from flopcast.simulator.blocks.computation import Computation, Workload
from flopcast.simulator.engines import has_habit
from flopcast.simulator.model import Block, Model
from flopcast.simulator.operation import Array, Gemm, Operation, Pointwise, Section
from flopcast.simulator.placement import IntArray
from flopcast.simulator.plan import Plans
from flopcast.simulator.sharding import layers_of_stage


def recompute_in_words(plan: Mapping[str, Any]) -> str:
    """What a plan, given by its fields, recomputes: "none", "selective", "full", "full (10 layers)"."""
    layers = plan["recompute_layers"]
    return str(plan["recompute"]) + (f" ({layers} layer{'s' if layers > 1 else ''})" if layers else "")


def selectively(piece: Computation, plans: Plans, odd: bool) -> tuple[Array, NDArray[np.bool_]]:
    """What selective recompute keeps of a piece of a layer, and whether it runs it again; ``odd`` products stay.

    It keeps results, or everything outside of attention: :class:`flopcast.simulator.engines.Habits`. Its time is that
    of the memory-bound work under either meaning, and of the products that do not stay.
    """
    nothing = plans.zeros
    dropped = isinstance(piece.forward, Gemm) & ~np.asarray(odd) & has_habit("alternate_products", plans.engine)
    outside = has_habit("recomputes_attention", plans.engine)
    kept = np.where(dropped, nothing, piece.result_bytes)
    whole = nothing if piece.in_attention else nothing + piece.saved_bytes
    return np.where(outside, whole, kept), piece.selective | dropped


def check_layers_in_full(model: Model, plans: Plans) -> None:
    """Raise InputError where more layers are to be computed again than the largest chunk of the model has."""
    if not np.any(plans.recompute_layers) or len(plans.shape) > 1:
        return
    most = -(-model.num_layers // (plans.pp * plans.virtual_pp))
    for asked, layers in zip(plans.recompute_layers, most, strict=True):
        if asked > layers:
            held = model.name if layers == model.num_layers else f"a stage's chunk of {model.name}"
            raise InputError(
                f"recompute_layers={asked} but {held} has {layers} layer{'s' if layers > 1 else ''}; use at most as "
                "many, or leave it out for all"
            )


def layers_in_full(plans: Plans, num_layers: IntArray | int) -> Array:
    """Layers of a pipeline stage of ``num_layers`` that are computed again in full: the first k of its v model chunks.

    min(k v, layers): Megatron-LM's TransformerBlock, of which every chunk has one, checkpoints the layers below
    recompute_num_layers (core/recompute.py at d98e8a6, recompute_method "block").
    """
    every = np.asarray(num_layers * 1.0)
    k = plans.recompute_layers
    some = np.where(k > 0, np.minimum(k * plans.virtual_pp, every), every) if np.any(k) else every
    return np.asarray(plans.has(recompute="full") * some)


def shares_in_full(model: Model, plans: Plans, stage: int | None) -> dict[Block, Array]:
    """Of each kind of layer on a stage the share that is computed again in full; without ``stage`` of the fullest.

    Those of a stage are counted layer by layer; on the fullest kinds are mixed as in the model.
    """
    if stage is None or not np.any(plans.recompute_layers):
        fullest = placement.layers_of_fullest_stage(model.num_layers, plans.pp)
        share = np.asarray(layers_in_full(plans, fullest) / fullest)
        return {block: share for block in model.kinds}
    stages = layers_of_stage(model.num_layers, plans, stage)
    held = [Counter(model.layers[n] for n in layers) for layers in stages]
    number = layers_in_full(plans, np.array([len(layers) for layers in stages])).astype(int)
    again = [Counter(model.layers[n] for n in layers[:k]) for layers, k in zip(stages, number, strict=True)]
    return {
        block: np.array([a[block] / max(h[block], 1) for a, h in zip(again, held, strict=True)])
        for block in model.kinds
    }


def share_in_full(plans: Plans, num_layers: int) -> Array:
    """Of all of a model's layers, those that are computed again in full; where pp does not divide, stages differ."""
    fullest = placement.layers_of_fullest_stage(num_layers, plans.pp)
    short = fullest * plans.pp - num_layers
    counted = (plans.pp - short) * layers_in_full(plans, fullest) + short * layers_in_full(plans, fullest - 1)
    return np.asarray(counted / num_layers)


def expand(
    name: str,
    section: Section,
    piece: Computation,
    count: Array,
    plans: Plans,
    in_full: Array | float = 0.0,
    kept_selectively: tuple[Array, NDArray[np.bool_]] | None = None,
) -> Iterator[Operation]:
    """Forward, backward and, where the plan recomputes it, the forward once more; outside of layers all is kept.

    ``in_full``: of the layers that the piece is in, the share that is computed again in full.
    """
    count = count * piece.present
    nothing = plans.zeros
    whole = nothing + piece.saved_bytes
    saved, working, again = whole, nothing, nothing
    if kept_selectively is not None:
        kept, redone = kept_selectively
        full, selective = plans.has(recompute="full"), plans.has(recompute="selective")
        saved = np.where(selective, kept, (1 - in_full) * whole)
        working = np.where(full, whole, whole - saved)
        again = count * (in_full * piece.recomputed + (selective & redone))
    forward_kernels = nothing + piece.forward_kernels
    fixed = section == "layer" and not piece.dynamic
    if piece.forward is not None:
        work = (forward_kernels, piece.forward)
        launched: dict[str, Any] = {"inner_launches": piece.forward_inner, "fixed": fixed}
        yield Operation(name, section, "forward", "every", count, *work, saved, working, **launched)
        if kept_selectively is not None:
            yield Operation(name, section, "recompute", "every", again, *work, nothing, nothing, **launched)
    for index, gradient in enumerate(piece.backward):
        kernels = nothing + piece.backward_kernels / len(piece.backward)
        suffix = f".{index + 1}" if len(piece.backward) > 1 else ""
        held = nothing + piece.backward_bytes / len(piece.backward)
        needed = piece.input_bytes if isinstance(gradient, Gemm) and gradient.of_weights else 0.0
        launched = {"inner_launches": piece.backward_inner / len(piece.backward), "fixed": fixed}
        held_of = (nothing, held, needed)
        yield Operation(name + suffix, section, "backward", "every", count, kernels, gradient, *held_of, **launched)


def checkpoint(name: str, load: Workload, count: Array, in_full: Array) -> Operation:
    """What recompute keeps of a layer besides: its input, unless all but attention is kept anyway."""
    nothing = load.plans.zeros
    all_but_attention = has_habit("recomputes_attention", load.plans.engine)
    selective = load.plans.has(recompute="selective") & ~all_but_attention
    saved = load.residual_bytes * (in_full + selective)
    # The input of the layer that is computed again is among what that computes.
    among = -load.residual_bytes * (load.plans.has(recompute="full") | selective)
    return Operation(name, "layer", "forward", "every", count, nothing, Pointwise(nothing), saved, among)
