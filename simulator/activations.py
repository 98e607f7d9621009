"""What a pipeline stage's micro-batches keep for their backward passes, and what it works in."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator import placement
from flopcast.simulator.blocks.computation import Workload
from flopcast.simulator.broadcast import largest, total
from flopcast.simulator.engines import has_habit
from flopcast.simulator.in_flight import left_in_flight, micro_batches_in_flight, put_off_weights
from flopcast.simulator.model import Model
from flopcast.simulator.operation import Array, Gemm, Operation, Section
from flopcast.simulator.plan import Plans
from flopcast.simulator.recompute import layers_in_full
from flopcast.simulator.sharding import layers_by_kind


@dataclass(frozen=True)
class Activations:
    """What a stage's micro-batches keep: all their layers, and the one whose backward is first.

    ``layers``: right after a forward; ``turned``: right after a backward, where weights' gradients are put off, and
    ``left``: after the step's last; ``one_put_off``: what those of one layer need. ``first_layer``, ``last_layer``:
    what these keep, alike unless only the first are computed again. ``workspace``: what the backward of a layer works
    in, of the first; ``workspace_of_last``: of those with which a backward begins. ``logits``: what the loss works in.
    ``results``: what a stage of a pipeline keeps of its own outputs, and the gradient it received. ``is_last``: whether
    it has the head.
    """

    layers: Array
    turned: Array
    left: Array
    first_layer: Array
    last_layer: Array
    one_put_off: Array
    workspace: Array
    workspace_of_last: Array
    logits: Array
    results: Array
    in_flight: Array
    is_last: NDArray[np.bool_]


def activations(model: Model, operations: Sequence[Operation], plans: Plans, stage: int | None) -> Activations:
    """Those of ``stage``, or where None of the stage that holds most under each plan."""
    layers, head = plans.zeros, plans.zeros
    workspace: defaultdict[str, Array] = defaultdict(lambda: plans.zeros)
    in_backward: defaultdict[str, Array] = defaultdict(lambda: plans.zeros)
    for operation in operations:
        if operation.section == "layer":
            layers = layers + operation.count * operation.saved_bytes
            kind = operation.name.split(".")[0]
            held_besides = (operation.count > 0) * operation.workspace_bytes
            workspace[kind] = workspace[kind] + held_besides
            if operation.phase == "backward":
                in_backward[kind] = in_backward[kind] + held_besides
        else:
            head = head + operation.count * operation.saved_bytes
    working = largest(workspace.values())
    number = total(layers_by_kind(model, plans, stage).values())
    load = Workload(plans, model.hidden, plans.num_gpus)
    # A stage keeps its results until their gradients have come, the last one the logits of one micro-batch.
    # Engines with buffers of their own let go of them.
    keeps = (plans.pp > 1) & ~has_habit("static_buffers", plans.engine)
    logits = keeps * 2.0 * load.tokens * model.vocab_size / plans.tp
    inputs, gradients = _kept_for_weights(operations, plans, "layer")
    put_off = np.where(has_habit("keeps_graph", plans.engine), np.maximum(layers, inputs), inputs) + gradients
    head_put_off = total(_kept_for_weights(operations, plans, "head"))
    one_put_off = plans.has(schedule="zero-bubble") * put_off / number
    first_layer = last_layer = layers / number
    working_last = working
    again = layers_in_full(plans, number) / number
    some = (again > 0) & (again < 1)
    if np.any(some):
        # The last layers keep everything. If that is one of a chunk, the backward of the one before it holds more.
        first_layer = np.where(some, load.residual_bytes, first_layer)
        last_layer = np.where(
            some, (last_layer - again * load.residual_bytes) / np.where(some, 1 - again, 1.0), last_layer
        )
        several = some & ((1 - again) * number / plans.virtual_pp > 1.5)
        working_last = np.where(several, largest(in_backward.values()), working)

    def held(index: NDArray[np.int64] | int, share: Array | float, is_last: NDArray[np.bool_] | bool) -> Activations:
        in_flight = micro_batches_in_flight(plans, index)
        forward, backward = put_off_weights(plans, index)
        waiting = share * put_off + is_last * head_put_off
        return Activations(
            layers=share * layers * in_flight + forward * waiting,
            turned=share * layers * left_in_flight(plans, index) + backward * waiting,
            left=backward * waiting,
            first_layer=first_layer,
            last_layer=last_layer,
            one_put_off=one_put_off,
            workspace=working,
            workspace_of_last=working_last,
            logits=np.where(is_last, head, 0.0),
            results=np.where(is_last, logits, keeps * (in_flight + 1) * load.residual_bytes),
            in_flight=share * in_flight,
            is_last=np.asarray(is_last),
        )

    if stage is not None:
        return held(stage, 1.0, stage == plans.pp - 1)
    # What is put off may be more than an activation: then the last of the fullest stages holds most, else the first.
    # But the second may have a layer more than that, and fewer micro-batches.
    late = plans.has(schedule="zero-bubble") & (put_off > layers)
    dealt = placement.num_dealt(model.num_layers, plans.pp, has_habit("counts_ends", plans.engine))
    num_full = np.where(dealt % plans.pp == 0, plans.pp - 1, dealt % plans.pp)
    first_share = 1 - (dealt > model.num_layers) / number
    second = (first_share < 1) & (first_share * micro_batches_in_flight(plans, 0) < micro_batches_in_flight(plans, 1))
    index = np.where(late, np.maximum(num_full - 1, 0), second)
    full = held(index, np.where(index == 0, first_share, 1.0), plans.pp == 1)
    if not np.any(plans.pp > 1):
        return full
    last_share = placement.layers_of_last_stage(model.num_layers, plans.pp) / number
    last = held(plans.pp - 1, last_share, True)
    of_loss = last.layers + last.results + np.maximum(head, working_last + head_gradient_bytes(model, plans))
    turned = np.maximum(last.turned, last.left + last.first_layer * last.in_flight)
    of_backward = turned + last.results + working_last + head_gradient_bytes(model, plans)
    most = np.maximum(full.layers, full.turned) + full.results + working_last
    last_is_worse = (plans.pp > 1) & (np.maximum(of_loss, of_backward) > most)
    pairs = {f.name: (getattr(last, f.name), getattr(full, f.name)) for f in fields(full)}
    return Activations(**{n: a if a is b else np.where(last_is_worse, a, b) for n, (a, b) in pairs.items()})


def _kept_for_weights(operations: Sequence[Operation], plans: Plans, section: Section) -> tuple[Array, Array]:
    """What the gradients of a section's weights need of one micro-batch: inputs, and gradients of results."""
    inputs, gradients = plans.zeros, plans.zeros
    for operation in operations:
        if operation.section == section and isinstance(operation.work, Gemm) and operation.work.of_weights:
            inputs = inputs + operation.count * operation.input_bytes
            gradients = gradients + operation.count * operation.work.result_gradient_bytes
    return inputs, gradients


def head_gradient_bytes(model: Model, plans: Plans) -> Array:
    """The 16-bit gradient of the logit layer's weight on one tensor-parallel rank."""
    return np.asarray(2.0 * model.vocab_size * model.hidden / plans.tp)
