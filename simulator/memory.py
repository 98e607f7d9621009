"""Bytes of GPU memory at the peak of a step, by what they hold."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flopcast.kernels.nf4.cost import payload_bytes
from flopcast.simulator import placement
from flopcast.simulator.constants import Constants
from flopcast.simulator.model import Model
from flopcast.simulator.operation import Array, Operation
from flopcast.simulator.plan import Plans
from flopcast.simulator.sharding import Unit, units


@dataclass(frozen=True)
class Memory:
    """Bytes per GPU on the fullest pipeline stage, arrays over plans; the parts add up to ``total``.

    ``parameters``: working copies that outlive a layer. ``optimizer``: fp32 master, moments. ``gathered``: layers
    gathered ahead of use and their whole gradients before reduction. ``quantised``: NF4 payloads in flight.
    ``workspace``: one layer's activations while it is computed again. ``slack``: CUDA context, NCCL buffers and what
    the caching allocator cannot use.
    """

    parameters: Array
    gradients: Array
    optimizer: Array
    activations: Array
    workspace: Array
    gathered: Array
    quantised: Array
    logits: Array
    slack: Array

    @property
    def total(self) -> Array:
        """Peak bytes per GPU."""
        return np.asarray(np.sum(list(vars(self).values()), axis=0))


def memory(model: Model, operations: Sequence[Operation], plans: Plans, constants: Constants) -> Memory:
    """Peak memory per GPU under each plan: states of the fullest stage, and activations of the worse end stage.

    1F1B keeps p micro-batches in flight on the first stage and one on the last, which holds the logits instead.
    """
    stage_layers = placement.layers_of_fullest_stage(model.num_layers, plans.pp)
    parts = units(model, plans, stage_layers)
    elements = _sum(unit.count * unit.elements(plans) for unit in parts)
    p, g, o = plans.parameter_shard, plans.gradient_shard, plans.optimizer_shard
    sharded = _sum(unit.count * unit.padded_elements(plans, o) for unit in parts) / o
    copy = _sum(unit.count * unit.gather_bytes(plans, p) for unit in parts) / p
    parameters = np.select([p == 1, p < o], [2.0 * elements, copy], 0.0)
    gradients = plans.gradient_bits / 8 * _sum(unit.count * unit.padded_elements(plans, g) for unit in parts) / g

    activations, workspace, logits = _activations(operations, plans, model.num_layers)
    gathered, quantised = _in_flight(parts, plans)
    held = parameters + gradients + plans.state_bytes * sharded
    dynamic = activations + workspace + logits + gathered + quantised
    return Memory(
        parameters=parameters,
        gradients=gradients,
        optimizer=plans.state_bytes * sharded,
        activations=activations,
        workspace=workspace,
        gathered=gathered,
        quantised=quantised,
        logits=logits,
        slack=constants.reserved_bytes + constants.allocator_slack * (held + dynamic),
    )


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


def _activations(operations: Sequence[Operation], plans: Plans, num_layers: int) -> tuple[Array, Array, Array]:
    layers, head = np.zeros(len(plans)), np.zeros(len(plans))
    workspace: defaultdict[str, Array] = defaultdict(lambda: np.zeros(len(plans)))
    for operation in operations:
        if operation.section == "layer":
            layers = layers + operation.count * operation.saved_bytes
            kind = operation.name.split(".")[0]
            workspace[kind] = workspace[kind] + (operation.count > 0) * operation.workspace_bytes
        else:
            head = head + operation.count * operation.saved_bytes
    fullest = placement.layers_of_fullest_stage(num_layers, plans.pp)
    on_last = layers * placement.layers_of_last_stage(num_layers, plans.pp) / fullest
    on_first = layers * micro_batches_in_flight(plans)
    head_on_first = np.where(plans.pp == 1, head, 0.0)
    last_is_worse = on_last + head > on_first + head_on_first
    activations = np.where(last_is_worse, on_last, on_first)
    logits = np.where(last_is_worse, head, head_on_first)
    return activations, np.max(list(workspace.values()), axis=0), logits


def _in_flight(parts: Sequence[Unit], plans: Plans) -> tuple[Array, Array]:
    """Units gathered at the same time: the root, the layer in use and those prefetched; one layer's gradient twice.

    The gradient of the layer in use is whole in 16 bits, and again in the reduction's width as its input.
    """
    sharded = plans.parameter_shard > 1
    reduced = plans.gradient_shard > 1
    layers = [unit for unit in parts if unit.section == "layer"]
    roots = [unit for unit in parts if unit.section != "layer"]
    largest = np.max([unit.padded_elements(plans, plans.parameter_shard) for unit in layers], axis=0)
    root = _sum(unit.count * unit.padded_elements(plans, plans.parameter_shard) for unit in roots)
    gathered = sharded * 2.0 * (largest * (1 + plans.prefetch) + root)
    gathered = gathered + reduced * largest * (2.0 + plans.gradient_bits / 8)
    quantised = sharded * (plans.gather_bits == 4) * payload_bytes(largest) * (1.0 + plans.prefetch)
    return gathered, quantised


def _sum(parts: "object") -> Array:
    total: Array = sum(parts)  # type: ignore[call-overload]
    return total
