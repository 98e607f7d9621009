"""How the copies of a token get to its experts and back: put in their order, sent, and sorted where they arrive."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator import placement
from flopcast.simulator.blocks.computation import ACTIVATION_BYTES, Computation, Workload
from flopcast.simulator.operation import Array, Collective, Pointwise

if TYPE_CHECKING:
    from flopcast.simulator.blocks.experts import Experts

SCALED_FP8_BYTES = 1 + 4 / 128  # 8 bits and an fp32 scale for 128 of them
COUNT_BYTES = 8  # how many tokens an expert gets, as a rank tells the others
# What is launched before anything is sent, of Megatron Core (moe/token_dispatcher.py): sums of the router's choice over
# experts and ranks and their copies to the host, which waits for them; DeepEP counts in one kernel, beside its indices.
PREPARE_KERNELS, DEEPEP_PREPARE_KERNELS = 12, 5
# The map of rows, then the rows; backward the map is there.
FORWARD_KERNELS, BACKWARD_KERNELS = 2.0, 1.0


def permute(experts: "Experts", load: Workload, name: str, routed: Array) -> Computation:
    """Rows put in their experts' order, or back: each is read once and written for each of its experts, or summed.

    Transformer Engine's fused kernels (common/permutation). DeepEP brings a row to a rank once, to be copied there.
    """
    ranks = _expected(experts, load.plans.ep)
    sources = np.where(load.plans.has(dispatcher="deepep"), ranks, 1.0)
    return _moved(load, name, routed * (sources + experts.experts_per_token), load.plans.ep > 0)


def sort(experts: "Experts", load: Workload, name: str, copies: Array) -> Computation:
    """What comes from several ranks put in the order of a rank's several experts, or back: read and written once.

    Megatron Core's ``sort_chunks_by_idxs``; DeepEP's copies have their order from the permutation.
    """
    plans = load.plans
    several = (plans.ep > 1) & (plans.ep < experts.num_experts)
    return _moved(load, name, 2 * copies, several & plans.has(dispatcher="alltoall"))


def _moved(load: Workload, name: str, rows: Array, present: NDArray[np.bool_]) -> Computation:
    work = Pointwise(rows * load.hidden * ACTIVATION_BYTES, counted=True)
    return Computation(
        name, work, (work,), FORWARD_KERNELS, BACKWARD_KERNELS, selective=True, present=present, dynamic=True
    )


def _expected(experts: "Experts", places: NDArray[np.int64]) -> Array:
    """Of so many places, on how many a token's experts lie."""
    numbers, where = np.unique(places, return_inverse=True)
    return np.array([experts.expected_places(int(n)) for n in numbers])[where].reshape(places.shape)


def all_to_all(experts: "Experts", load: Workload, name: str, tokens: Array) -> Computation:
    """Every copy of a token, or every result, to the rank it belongs to; its gradient the other way.

    DeepEP sends one copy to each node, or to each rank where there is one node, and adds up results before it sends
    them back; what it forwards inside of a node goes on meanwhile. What goes to experts may have 8 bits.
    """
    plans = load.plans
    group = placement.group(plans.ep, plans.expert_tp, load.gpus_per_node, plans.num_gpus)
    places = np.where(group.num_nodes > 1, group.num_nodes, plans.ep)
    copies = tokens * np.where(plans.has(dispatcher="deepep"), _expected(experts, places), experts.experts_per_token)
    narrow = np.where(plans.dispatch_bits == 8, SCALED_FP8_BYTES, ACTIVATION_BYTES)

    def work(element_bytes: Array | float) -> Collective:
        return Collective("all_to_all", copies * load.hidden * element_bytes, group, "ep", "expert")

    to_experts, back = work(narrow), work(ACTIVATION_BYTES)
    there, again = (to_experts, back) if name == "dispatch" else (back, to_experts)
    return Computation(name, there, (again,), 1.0, 1.0, present=plans.ep > 1, dynamic=True)


def counts(experts: "Experts", load: Workload) -> Computation:
    """How many rows go where, before they do: the host needs it to post the dispatch."""
    plans = load.plans
    group = placement.group(plans.ep, plans.expert_tp, load.gpus_per_node, plans.num_gpus)
    counted = plans.zeros + COUNT_BYTES * experts.num_experts
    work = Collective("all_to_all", counted, group, "ep", "expert")
    prepare = np.where(plans.has(dispatcher="deepep"), DEEPEP_PREPARE_KERNELS, PREPARE_KERNELS)
    return Computation("dispatch_counts", work, (), 1.0 + prepare, 0.0, present=plans.ep > 1)


def within_an_expert(load: Workload, name: str, collective: str, back: str, copies: Array) -> Computation:
    """Between the tensor-parallel ranks that split an expert: what has arrived, and the sums of the results."""
    plans = load.plans
    group = placement.group(plans.expert_tp, np.ones_like(plans.tp), load.gpus_per_node, plans.num_gpus)

    def work(kind: str) -> Collective:
        return Collective(kind, copies * load.hidden * ACTIVATION_BYTES, group, "tp", "tensor")

    present = (plans.ep > 1) & (plans.expert_tp > 1)
    return Computation(name, work(collective), (work(back),), 1.0, 1.0, present=present, dynamic=True)
