"""CUDA graphs: of what is captured once and replayed in every pass the host launches the graph alone."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from flopcast.simulator.operation import Array, Operation, Phase, Pointwise
from flopcast.simulator.plan import Plans


def graph_launches(name: str, plans: Plans, num_layers: Array) -> Iterator[Operation]:
    """Where every layer's fixed part is a graph, its launch in each forward and each backward pass.

    Transformer Engine's ``make_graphed_callables`` captures both of every layer (Megatron Core's cuda_graph_impl
    "transformer_engine"). That of a graph of all passes, once a step, is not counted.
    """
    partial = plans.has(cuda_graphs="partial")
    if not np.any(partial):
        return
    nothing = plans.zeros
    phases: tuple[Phase, Phase] = ("forward", "backward")
    for phase in phases:
        yield Operation(
            name, "layer", phase, "every", num_layers * partial, nothing + 1.0, Pointwise(nothing), nothing, nothing
        )


def replayed(operations: Sequence[Operation], plans: Plans) -> list[Operation]:
    """The operations, each with where a graph launches it: of its layer, or of all forward and backward passes."""
    partial, full = plans.has(cuda_graphs="partial"), plans.has(cuda_graphs="full")
    if not np.any(partial | full):
        return list(operations)
    return [
        operation if operation.phase == "step" else replace(operation, replayed=full | (partial & operation.fixed))
        for operation in operations
    ]
