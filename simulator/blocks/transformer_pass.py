"""What attention and an MLP compute on one micro-batch."""

from typing import TYPE_CHECKING

import numpy as np

from flopcast.kernels.pointwise import Pass
from flopcast.kernels.rmsnorm import cost as norm_cost
from flopcast.kernels.rope import cost as rope_cost
from flopcast.simulator.blocks.computation import ACTIVATION_BYTES, Computation, Workload, linear, pointwise
from flopcast.simulator.blocks.scores import context_parallel, scores
from flopcast.simulator.engines import habit, has_habit
from flopcast.simulator.operation import Array, Pointwise

if TYPE_CHECKING:
    from flopcast.simulator.blocks.transformer import Attention, Mlp

# Bytes per output element of the activation: gated is silu(gate) * up, plain is gelu(up).
GATED_FUSED, GATED_EAGER = (Pass(6, 1), Pass(10, 1)), (Pass(10, 2), Pass(18, 3))
# The gradients of two halves that were split off one product, joined again: both read and written.
JOIN_BYTES = 8
PLAIN_FUSED, PLAIN_EAGER = (Pass(4, 1), Pass(6, 1)), (Pass(4, 1), Pass(6, 1))


def attention(a: "Attention", load: Workload) -> list[Computation]:
    """Projections, norms and rotation of queries and keys, the scores, and the projection of their result."""
    plans, tokens = load.plans, load.tokens
    kv = load.per_tensor_rank(a.kv_heads_per_rank) * a.head_dim
    query = a.num_heads * a.head_dim / plans.tp
    normed = load.normed_bytes
    if a.fused_qkv:
        parts = [linear(load, "qkv", load.hidden, query + 2 * kv, normed, a.qkv_bias)]
    else:
        parts = [linear(load, "q", load.hidden, query, normed, a.qkv_bias)]
        parts += [linear(load, name, load.hidden, kv, 0.0, a.qkv_bias, shares_input=True) for name in ("k", "v")]

    fused = plans.fused_kernels | plans.compiled
    turned = tokens * (query + kv)
    if a.qk_norm:
        forward, backward = (
            (norm_cost.FORWARD, norm_cost.EAGER_FORWARD),
            (norm_cost.BACKWARD, norm_cost.EAGER_BACKWARD),
        )
        parts.append(pointwise("qk_norm", turned, fused, forward, backward, turned * ACTIVATION_BYTES))
    if a.rotary_share and load.rotary:
        forward, backward = (
            (rope_cost.FORWARD, rope_cost.EAGER_FORWARD),
            (rope_cost.BACKWARD, rope_cost.EAGER_BACKWARD),
        )
        parts.append(pointwise("rope", turned * a.rotary_share, fused, forward, backward, 0.0))
    parts.append(_copies(load, query, 2 * kv))
    # What attention reads, keeps and exchanges: of heads that are shared, a copy for each query head.
    keys_and_values = np.where(has_habit("repeats_heads", plans.engine), 2 * query, 2 * kv)
    parts += context_parallel(load, tokens * keys_and_values * ACTIVATION_BYTES)
    qkv_bytes = tokens * (query + keys_and_values) * ACTIVATION_BYTES
    parts += scores(load, a.num_heads, a.head_dim, a.head_dim, qkv_bytes, a.reach)
    return [*parts, linear(load, "o", query, load.hidden, 0.0, a.output_bias)]


def _copies(load: Workload, query: Array, keys_and_values: Array) -> Computation:
    """Queries, keys and values laid out anew as often as the engine does, and their gradients about as often.

    Keys and values that are repeated for every query head are read once and written as often as there are such heads;
    backward the gradients are read so, and summed.
    """
    of_query, of_kv = habit("query_copies", load.plans.engine), habit("kv_copies", load.plans.engine)
    elements = 2 * (query * of_query + keys_and_values * of_kv)
    repeated = has_habit("repeats_heads", load.plans.engine) & (2 * query > keys_and_values)
    elements = elements + repeated * (2 * query + keys_and_values)
    each_way = Pointwise(ACTIVATION_BYTES * load.tokens * elements, counted=True)
    launches = of_query + of_kv + 2.0 * repeated
    return Computation("copies", each_way, (each_way,), launches, launches, selective=True, present=launches > 0)


def mlp(m: "Mlp", load: Workload, own_input: bool, prefix: str = "") -> list[Computation]:
    """The projections up, the activation and the projection down; their names begin with ``prefix``."""
    inner = m.intermediate / load.plans.tp
    elements = load.tokens * inner
    fused = load.plans.compiled
    normed = load.normed_bytes if own_input else 0.0
    names = ("gate", "up") if m.gated else ("up",)
    first = linear(load, prefix + names[0], load.hidden, inner, normed, m.bias, shares_input=not own_input)
    parts = [first, *(linear(load, prefix + n, load.hidden, inner, 0.0, m.bias, shares_input=True) for n in names[1:])]
    forward, backward = zip(*((GATED_FUSED, GATED_EAGER) if m.gated else (PLAIN_FUSED, PLAIN_EAGER)), strict=True)
    if m.gated:
        joined = JOIN_BYTES * habit("splits_gate", load.plans.engine)
        backward = (GATED_FUSED[1], Pass(GATED_EAGER[1].bytes_per_element + joined, GATED_EAGER[1].num_kernels))
    eager = m.gated & has_habit("keeps_intermediates", load.plans.engine) & ~load.plans.compiled
    projected = elements * (len(names) + eager) * ACTIVATION_BYTES
    # Backward, with attention's tensors still alive: the gradients of its result, its inputs and the residual stream,
    # and the matrix gradient of the projection down; the projection's input has just been freed.
    temporaries = ((3 if m.gated else 1) - eager) * elements * ACTIVATION_BYTES
    held = temporaries + load.residual_bytes + inner * load.hidden * ACTIVATION_BYTES
    parts.append(pointwise(f"{prefix}activation", elements, fused, forward, backward, projected, 0.0, held))
    return [*parts, linear(load, f"{prefix}down", inner, load.hidden, elements * ACTIVATION_BYTES, m.bias)]
