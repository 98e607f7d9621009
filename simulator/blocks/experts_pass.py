"""What a mixture of experts computes and sends on one micro-batch.

Tokens are taken to fall evenly on the experts, as the routers' balancing losses and biases aim for.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from flopcast.kernels.pointwise import Pass
from flopcast.kernels.rmsnorm import cost as norm_cost
from flopcast.simulator.blocks import experts_exchange as exchange
from flopcast.simulator.blocks import experts_in_turn
from flopcast.simulator.blocks.computation import ACTIVATION_BYTES, Computation, Workload, linear, pointwise
from flopcast.simulator.blocks.transformer_pass import GATED_EAGER, GATED_FUSED, mlp
from flopcast.simulator.engines import has_habit
from flopcast.simulator.operation import Array, Gemm

if TYPE_CHECKING:
    from flopcast.simulator.blocks.experts import Experts

# Bytes per router logit, in fp32: softmax, choice of the largest, weights, the balancing loss; and backward.
ROUTE_FORWARD, ROUTE_BACKWARD = Pass(24, 6), Pass(16, 4)
# Launches where each is an operation of its own: Megatron Core 0.13, moe/moe_utils.py, topk_softmax_with_capacity, 11,
# and the balancing loss with scores of its own, 14; backward those that have one.
EAGER_ROUTE_KERNELS = 25, 10


def computations(experts: "Experts", load: Workload, own_input: bool) -> list[Computation]:
    """Router, dispatch, the experts' grouped products, combination, shared experts.

    With expert parallelism over ep ranks each holds E/ep experts and an all-to-all of every token's k copies brings
    them there, another brings the results back, and both happen again backward (GShard, arXiv:2006.16668;
    DeepSpeed-MoE, arXiv:2201.05596). With tensor parallelism besides, a rank sends the copies of its share of the
    sequence, and the ranks that split an expert gather what arrived (Megatron Core's ``MoEAlltoAllTokenDispatcher``);
    where they hold whole experts every one has the copies of its own share to work on.
    """
    plans, hidden = load.plans, load.hidden
    spread = plans.ep > 1
    routed = np.where(spread, load.residual_tokens, load.tokens)
    copies = _copies(experts, load)
    inner = experts.intermediate / plans.expert_tp
    never = plans.zeros > 0
    fused = plans.compiled

    normed = load.normed_bytes if own_input else 0.0
    no_fp8 = never
    parts = [
        Computation(
            "router",
            Gemm(routed, plans.zeros + experts.num_experts, plans.zeros + hidden, no_fp8),
            (
                Gemm(routed, plans.zeros + hidden, plans.zeros + experts.num_experts, no_fp8),
                Gemm(plans.zeros + hidden, plans.zeros + experts.num_experts, routed, no_fp8, of_weights=True),
            ),
            1.0,
            3.0 if experts.bias else 2.0,
            saved_bytes=normed,
            result_bytes=routed * experts.num_experts * ACTIVATION_BYTES,
            input_bytes=normed,
        ),
        _route(experts, load, routed),
        exchange.permute(experts, load, "permute", routed),
        exchange.counts(experts, load),
        exchange.all_to_all(experts, load, "dispatch", routed),
        exchange.within_an_expert(load, "exchange.gather", "all_gather", "reduce_scatter", copies),
        exchange.sort(experts, load, "sort", copies),
        grouped(experts, load, "experts.gate", hidden, inner, copies * hidden * ACTIVATION_BYTES),
        grouped(experts, load, "experts.up", hidden, inner, 0.0, shares_input=True),
        *experts_in_turn.clamp(experts, load, copies * inner),
        replace(
            pointwise(
                "experts.activation",
                copies * inner,
                fused,
                (GATED_FUSED[0], GATED_EAGER[0]),
                (GATED_FUSED[1], GATED_EAGER[1]),
                copies * inner * 2 * ACTIVATION_BYTES,
                0.0,
                # As an MLP's, the matrix gradient being that of every expert's projection down.
                3 * copies * inner * ACTIVATION_BYTES
                + load.residual_bytes
                + experts.num_experts / plans.ep * inner * hidden * ACTIVATION_BYTES,
            ),
            dynamic=True,
        ),
        grouped(experts, load, "experts.down", inner, hidden, copies * inner * ACTIVATION_BYTES),
        *experts_in_turn.biases(experts, load, copies * hidden),
        exchange.sort(experts, load, "unsort", copies),
        exchange.within_an_expert(load, "exchange.scatter", "reduce_scatter", "all_gather", copies),
        exchange.all_to_all(experts, load, "combine", routed),
        exchange.permute(experts, load, "unpermute", routed),
    ]
    return parts + _shared(experts, load)


def _route(experts: "Experts", load: Workload, routed: Array) -> Computation:
    """The choice of experts: a score per token and expert, in fp32.

    The probabilities are kept. They weigh what the activation gives, so that no result of an expert needs keeping.
    """
    elements, never = routed * experts.num_experts, load.plans.zeros > 0
    fused = pointwise("route", elements, never, (ROUTE_FORWARD,) * 2, (ROUTE_BACKWARD,) * 2, elements * 4)
    eager = has_habit("eager_router", load.plans.engine)
    forward, backward = EAGER_ROUTE_KERNELS
    return replace(
        fused,
        forward_kernels=np.where(eager, forward, fused.forward_kernels),
        backward_kernels=np.where(eager, backward, fused.backward_kernels),
    )


def _copies(experts: "Experts", load: Workload) -> Array:
    """Rows that the experts of a rank work on, or that the ranks which split them share."""
    return np.asarray(load.tokens * experts.experts_per_token / load.plans.folded)


def grouped(
    experts: "Experts",
    load: Workload,
    name: str,
    num_in: Array | float,
    num_out: Array | float,
    input_bytes: Array | float,
    shares_input: bool = False,
) -> Computation:
    """One product per expert of the rank: T k ep / E rows each, forward and two backward.

    In one kernel, or in one for each expert, which then has its weight to look after too.
    """
    plans = load.plans
    copies = _copies(experts, load)
    # With fewer copies than experts some have nothing to do.
    busy = np.minimum(experts.num_experts / plans.ep, copies)
    rows, inner, outer = copies / busy, num_in + plans.zeros, num_out + plans.zeros
    fp8 = plans.has(precision="fp8")
    # Of two halves of one projection the second comes with the first.
    each = experts_in_turn.in_turn(load) * (0.0 if shares_input else experts.num_experts / plans.ep)
    return Computation(
        name,
        Gemm(rows, outer, inner, fp8, busy, shares_input=shares_input),
        (Gemm(rows, inner, outer, fp8, busy), Gemm(inner, outer, rows, fp8, busy, of_weights=True)),
        forward_kernels=1.0,
        backward_kernels=3.0 if experts.bias else 2.0,
        forward_inner=each * (experts_in_turn.PRODUCT[0] + fp8),
        backward_inner=each * (experts_in_turn.PRODUCT[1] + fp8),
        dynamic=True,
        saved_bytes=input_bytes,
        input_bytes=input_bytes,
        result_bytes=copies * outer * ACTIVATION_BYTES,
    )


def _shared(experts: "Experts", load: Workload) -> list[Computation]:
    """Their input is the router's, which is kept already; their result is added to that of the others."""
    if experts.shared is None:
        return []
    parts = mlp(experts.shared, load, own_input=False, prefix="shared.")
    if experts.shared_gate:
        parts.append(linear(load, "shared_gate", load.hidden, 1.0, 0.0, bias=False, shares_input=True))
    never = load.plans.zeros > 0
    elements = load.tokens * load.hidden
    forward, backward = (norm_cost.EAGER_ADD_FORWARD,) * 2, (Pass(0, 0),) * 2
    return [*parts, pointwise("shared.add", elements, never, forward, backward, 0.0)]
