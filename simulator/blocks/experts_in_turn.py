"""What Megatron Core does to a rank's experts one after the other, and on their biases in operations of their own."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flopcast.kernels.pointwise import Pass
from flopcast.simulator.blocks.computation import ACTIVATION_BYTES, Computation, Workload
from flopcast.simulator.engines import has_habit
from flopcast.simulator.operation import Array, Pointwise

if TYPE_CHECKING:
    from flopcast.simulator.blocks.experts import Experts

# Launches per expert of a product, forward and backward, in 16 bits: its kernels, and as much again for a buffer, a
# view and a hook of each weight (Transformer Engine 2.9, module/grouped_linear.py and common/gemm,
# multi_stream_cublas_gemm).
PRODUCT = 2.0, 3.0
# Each half of the activation's input is clamped and both are joined; backward each is compared with its limits, and
# gradients pass where it is within (fusions/fused_bias_geglu.py, weighted_bias_quick_geglu_impl).
CLAMP_FORWARD, CLAMP_BACKWARD = Pass(16, 4), Pass(30, 9)


class Round(NamedTuple):
    """Bytes per element of what is gone through, kernels for all of it, and kernels for each expert."""

    bytes_per_element: float
    num_kernels: float
    per_expert: float


# Each expert's bias is weighed and added to its rows, which are joined; backward the gradients of bias and weights are
# a product and a sum each (moe/experts.py, _apply_bias). Forward and backward, with the router's weights in 16 bits,
# and in fp32 as DeepEP takes them, which adds casts.
BIAS = Round(12, 1, 2), Round(16, 2, 4)
WIDE_BIAS = Round(28, 2, 2), Round(40, 3, 6)


def in_turn(load: Workload) -> NDArray[np.bool_]:
    """Where the engine goes through a rank's experts.

    Where all passes are replayed the host cannot know each expert's rows, and one kernel works on all of them.
    """
    return np.asarray(has_habit("experts_in_turn", load.plans.engine) & ~load.plans.has(cuda_graphs="full"))


def clamp(experts: "Experts", load: Workload, elements: Array) -> list[Computation]:
    """Before an activation of so many elements: its input held within limits, and kept besides."""
    if not experts.bias:
        return []
    forward, backward = (
        Pointwise(elements * way.bytes_per_element, counted=True) for way in (CLAMP_FORWARD, CLAMP_BACKWARD)
    )
    return [
        Computation(
            "experts.clamp",
            forward,
            (backward,),
            CLAMP_FORWARD.num_kernels,
            CLAMP_BACKWARD.num_kernels,
            saved_bytes=2 * elements * ACTIVATION_BYTES,
            selective=True,
            present=in_turn(load),
            dynamic=True,
        )
    ]


def biases(experts: "Experts", load: Workload, elements: Array) -> list[Computation]:
    """Behind the projection down to so many elements: its bias, weighed as the expert's result is."""
    if not experts.bias:
        return []
    wide, local = load.plans.has(dispatcher="deepep"), experts.num_experts / load.plans.ep
    ways = zip(WIDE_BIAS, BIAS, strict=True)
    forward, backward = ([np.where(wide, *costs) for costs in zip(*way, strict=True)] for way in ways)
    return [
        Computation(
            "experts.bias",
            Pointwise(elements * forward[0], counted=True),
            (Pointwise(elements * backward[0], counted=True),),
            forward[1],
            backward[1],
            forward_inner=forward[2] * local,
            backward_inner=backward[2] * local,
            present=in_turn(load),
            dynamic=True,
        )
    ]
