"""What a mixture of experts computes and sends on one micro-batch.

Tokens are taken to fall evenly on the experts, as the routers' balancing losses and biases aim for.
"""

from typing import TYPE_CHECKING

import numpy as np

from flopcast.kernels.pointwise import Pass
from flopcast.kernels.rmsnorm import cost as norm_cost
from flopcast.simulator import placement
from flopcast.simulator.blocks.computation import ACTIVATION_BYTES, Computation, Workload, linear, pointwise
from flopcast.simulator.blocks.transformer_pass import GATED_EAGER, GATED_FUSED, mlp
from flopcast.simulator.operation import Array, Collective, Gemm

if TYPE_CHECKING:
    from flopcast.simulator.blocks.experts import Experts

# Bytes per router logit, in fp32: softmax, choice of the largest, weights, the balancing loss; and backward.
ROUTE_FORWARD, ROUTE_BACKWARD = Pass(24, 6), Pass(16, 4)
# Rows put in their experts' order, or back and summed: one read and one write of each copy.
PERMUTE_FORWARD, PERMUTE_BACKWARD = Pass(4, 2), Pass(4, 2)
SCALED_FP8_BYTES = 1 + 4 / 128  # 8 bits and an fp32 scale for 128 of them
COUNT_BYTES = 8  # how many tokens an expert gets, as a rank tells the others


def computations(experts: "Experts", load: Workload, own_input: bool) -> list[Computation]:
    """Router, dispatch, the experts' grouped products, combination, shared experts.

    With expert parallelism over ep ranks each holds E/ep experts and an all-to-all of every token's k copies brings
    them there, another brings the results back, and both happen again backward (GShard, arXiv:2006.16668;
    DeepSpeed-MoE, arXiv:2201.05596). With tensor parallelism besides, a rank sends the copies of its share of the
    sequence, and the ranks that split an expert gather what arrived (Megatron Core's ``MoEAlltoAllTokenDispatcher``);
    where they hold whole experts every one has the copies of its own share to work on.
    """
    plans, hidden, k = load.plans, load.hidden, experts.experts_per_token
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
        # The probabilities, in fp32, are kept; they weigh what the activation gives, so that no result needs keeping.
        pointwise(
            "route",
            routed * experts.num_experts,
            never,
            (ROUTE_FORWARD,) * 2,
            (ROUTE_BACKWARD,) * 2,
            routed * experts.num_experts * 4,
        ),
        pointwise("permute", routed * k * hidden, never, (PERMUTE_FORWARD,) * 2, (PERMUTE_BACKWARD,) * 2, 0.0),
        _counts(experts, load),
        _all_to_all(experts, load, "dispatch", routed),
        _within_an_expert(load, "exchange.gather", "all_gather", "reduce_scatter", copies),
        grouped(experts, load, "experts.gate", hidden, inner, copies * hidden * ACTIVATION_BYTES),
        grouped(experts, load, "experts.up", hidden, inner, 0.0),
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
        grouped(experts, load, "experts.down", inner, hidden, copies * inner * ACTIVATION_BYTES),
        _within_an_expert(load, "exchange.scatter", "reduce_scatter", "all_gather", copies),
        _all_to_all(experts, load, "combine", routed),
        pointwise("unpermute", routed * k * hidden, never, (PERMUTE_FORWARD,) * 2, (PERMUTE_BACKWARD,) * 2, 0.0),
    ]
    return parts + _shared(experts, load)


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
) -> Computation:
    """One product per expert of the rank, in one kernel: T k ep / E rows each, forward and two backward."""
    plans = load.plans
    copies = _copies(experts, load)
    # With fewer copies than experts some have nothing to do.
    busy = np.minimum(experts.num_experts / plans.ep, copies)
    rows, inner, outer = copies / busy, num_in + plans.zeros, num_out + plans.zeros
    fp8 = plans.has(precision="fp8")
    return Computation(
        name,
        Gemm(rows, outer, inner, fp8, busy),
        (Gemm(rows, inner, outer, fp8, busy), Gemm(inner, outer, rows, fp8, busy, of_weights=True)),
        forward_kernels=1.0,
        backward_kernels=3.0 if experts.bias else 2.0,
        saved_bytes=input_bytes,
        input_bytes=input_bytes,
        result_bytes=copies * outer * ACTIVATION_BYTES,
    )


def _all_to_all(experts: "Experts", load: Workload, name: str, tokens: Array) -> Computation:
    """Every copy of a token, or every result, to the rank it belongs to; its gradient the other way.

    DeepEP sends one copy to each node, or to each rank where there is one node, and adds up results before it sends
    them back; what it forwards inside of a node goes on meanwhile. What goes to experts may have 8 bits.
    """
    plans = load.plans
    group = placement.group(plans.ep, plans.expert_tp, load.gpus_per_node, plans.num_gpus)
    places = np.where(group.num_nodes > 1, group.num_nodes, plans.ep)
    numbers, where = np.unique(places, return_inverse=True)
    expected = np.array([experts.expected_places(int(n)) for n in numbers])[where].reshape(places.shape)
    copies = tokens * np.where(plans.has(dispatcher="deepep"), expected, experts.experts_per_token)
    narrow = np.where(plans.dispatch_bits == 8, SCALED_FP8_BYTES, ACTIVATION_BYTES)

    def work(element_bytes: Array | float) -> Collective:
        return Collective("all_to_all", copies * load.hidden * element_bytes, group, "ep", "expert")

    to_experts, back = work(narrow), work(ACTIVATION_BYTES)
    there, again = (to_experts, back) if name == "dispatch" else (back, to_experts)
    return Computation(name, there, (again,), 1.0, 1.0, present=plans.ep > 1)


def _counts(experts: "Experts", load: Workload) -> Computation:
    """How many rows go where, before they do: the host needs it to post the dispatch."""
    plans = load.plans
    group = placement.group(plans.ep, plans.expert_tp, load.gpus_per_node, plans.num_gpus)
    counted = plans.zeros + COUNT_BYTES * experts.num_experts
    work = Collective("all_to_all", counted, group, "ep", "expert")
    return Computation("dispatch_counts", work, (), 1.0, 0.0, present=plans.ep > 1)


def _within_an_expert(load: Workload, name: str, collective: str, back: str, copies: Array) -> Computation:
    """Between the tensor-parallel ranks that split an expert: what has arrived, and the sums of the results."""
    plans = load.plans
    group = placement.group(plans.expert_tp, np.ones_like(plans.tp), load.gpus_per_node, plans.num_gpus)

    def work(kind: str) -> Collective:
        return Collective(kind, copies * load.hidden * ACTIVATION_BYTES, group, "tp", "tensor")

    return Computation(name, work(collective), (work(back),), 1.0, 1.0, present=(plans.ep > 1) & (plans.expert_tp > 1))


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
