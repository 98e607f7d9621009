"""What a transformer block computes on one micro-batch."""

from typing import TYPE_CHECKING

import numpy as np

from flopcast.kernels.pointwise import Pass
from flopcast.kernels.rmsnorm import cost as norm_cost
from flopcast.kernels.rope import cost as rope_cost
from flopcast.simulator import placement
from flopcast.simulator.blocks.computation import (
    ACTIVATION_BYTES,
    Computation,
    Workload,
    linear,
    pointwise,
    tensor_parallel,
)
from flopcast.simulator.operation import Array, AttentionCore, Collective, Pointwise

if TYPE_CHECKING:
    from flopcast.simulator.blocks.transformer import TransformerBlock

# Bytes per output element of the activation: gated is silu(gate) * up, plain is gelu(up).
GATED_FUSED, GATED_EAGER = (Pass(6, 1), Pass(10, 1)), (Pass(10, 2), Pass(18, 3))
PLAIN_FUSED, PLAIN_EAGER = (Pass(4, 1), Pass(6, 1)), (Pass(4, 1), Pass(6, 1))
# Unfused attention, bytes per score: write, mask and softmax, dropout, read; and the same with gradients backward.
SCORES_FORWARD, SCORES_BACKWARD, SCORES_SAVED = 12, 16, 5
# Products of a flash backward (it redoes Q K^T) and of an unfused one, over the two of the forward.
FLASH_BACKWARD, UNFUSED_BACKWARD = 2.5, 2.0
FLASH_KERNELS, UNFUSED_KERNELS = (1.0, 3.0), (5.0, 8.0)


def computations(block: "TransformerBlock", load: Workload) -> list[Computation]:
    """Every piece of the block; a sequential one sums over tensor-parallel ranks twice, a parallel one once."""
    parts = [*_norms(block, load), *_attention(block, load), *_mlp(block, load)]
    for index in range(block.num_tensor_parallel_sums):
        # A norm behind the sum (Gemma 2) reads it again in backward.
        last = index + 1 == block.num_tensor_parallel_sums and block.num_norms < 4
        parts += tensor_parallel(load, f"tensor_parallel{index + 1}", last)
    return parts


def _norms(block: "TransformerBlock", load: Workload) -> list[Computation]:
    elements = load.residual_tokens * load.hidden
    fused = load.plans.fused_kernels | load.plans.compiled
    rms = block.norm == "rmsnorm"
    forward = (norm_cost.FORWARD, norm_cost.EAGER_FORWARD if rms else norm_cost.LAYER_NORM_FORWARD)
    backward = (norm_cost.BACKWARD, norm_cost.EAGER_BACKWARD if rms else norm_cost.LAYER_NORM_BACKWARD)
    stream = load.residual_bytes
    # A parallel block whose norms share one input keeps that input once; a sequential one keeps one per norm.
    inputs = 1 if block.parallel else block.num_norms
    kept = [stream if index < inputs else 0.0 for index in range(block.num_norms)]
    norms = [pointwise(f"norm{i + 1}", elements, fused, forward, backward, k, k) for i, k in enumerate(kept)]
    folded = (norm_cost.ADD_FORWARD, norm_cost.ADD_BACKWARD)
    # A parallel block adds both branches at one boundary; a sequential one has a boundary for each.
    second = (norm_cost.SECOND_ADD_FORWARD, norm_cost.SECOND_ADD_BACKWARD) if block.parallel else folded
    eager = (norm_cost.EAGER_ADD_FORWARD, norm_cost.EAGER_ADD_BACKWARD)
    adds = [
        pointwise(f"residual{i + 1}", elements, fused, (forward, eager[0]), (backward, eager[1]), 0.0)
        for i, (forward, backward) in enumerate((folded, second))
    ]
    return norms + adds


def _attention(block: "TransformerBlock", load: Workload) -> list[Computation]:
    a, plans, tokens = block.attention, load.plans, load.tokens
    kv = load.per_tensor_rank(a.kv_heads_per_rank) * a.head_dim
    query = a.num_heads * a.head_dim / plans.tp
    normed = load.tokens * load.hidden * ACTIVATION_BYTES  # gathered first where the sequence is split
    if a.fused_qkv:
        parts = [linear(load, "qkv", load.hidden, query + 2 * kv, normed, a.qkv_bias)]
    else:
        parts = [linear(load, "q", load.hidden, query, normed, a.qkv_bias)]
        parts += [linear(load, name, load.hidden, kv, 0.0, a.qkv_bias) for name in ("k", "v")]

    fused = plans.fused_kernels | plans.compiled
    turned = tokens * (query + kv)
    if a.qk_norm:
        forward, backward = (
            (norm_cost.FORWARD, norm_cost.EAGER_FORWARD),
            (norm_cost.BACKWARD, norm_cost.EAGER_BACKWARD),
        )
        parts.append(pointwise("qk_norm", turned, fused, forward, backward, turned * ACTIVATION_BYTES))
    if a.rotary_share:
        forward, backward = (
            (rope_cost.FORWARD, rope_cost.EAGER_FORWARD),
            (rope_cost.BACKWARD, rope_cost.EAGER_BACKWARD),
        )
        parts.append(pointwise("rope", turned * a.rotary_share, fused, forward, backward, 0.0))
    parts += _context_parallel(load, tokens * 2 * kv * ACTIVATION_BYTES)
    parts += _core(block, load, query, tokens * (query + 2 * kv) * ACTIVATION_BYTES)
    return [*parts, linear(load, "o", query, load.hidden, 0.0, a.output_bias)]


def _core(block: "TransformerBlock", load: Workload, query: Array, qkv_bytes: Array) -> list[Computation]:
    """softmax(Q K^T) V. A flash kernel skips what the causal mask hides; unfused computes and stores every score.

    FLOPs forward: 4 T keys Hq Dh / tp, with keys = S/2 on average under the causal mask (w - w^2/2S in a window w).
    """
    a, plans = block.attention, load.plans
    unfused = plans.has(attention="unfused")
    length = plans.seq_len.astype(np.float64)
    window = np.minimum(length, a.window or np.inf)
    keys = np.where(unfused, length, window - window**2 / (2 * length))
    flop = 4 * load.tokens * keys * query
    scores = load.tokens * length * a.num_heads / plans.tp

    def core(share: Array | float, backward: bool) -> AttentionCore:
        return AttentionCore(flop * share, plans.attention, np.full_like(length, a.head_dim), window, backward)

    attended = load.tokens * query * ACTIVATION_BYTES  # also the input of the output projection
    log_sum = 4 * load.tokens * a.num_heads / plans.tp
    kept = qkv_bytes + attended + np.where(unfused, 0.0, log_sum)
    products = np.where(unfused, UNFUSED_BACKWARD, FLASH_BACKWARD)
    return [
        Computation(
            "attention",
            core(1.0, backward=False),
            (core(products, backward=True),),
            np.where(unfused, UNFUSED_KERNELS[0], FLASH_KERNELS[0]),
            np.where(unfused, UNFUSED_KERNELS[1], FLASH_KERNELS[1]),
            kept,
            kept,
            selective=unfused,
        ),
        Computation(
            "scores",
            Pointwise(scores * SCORES_FORWARD, counted=True),
            (Pointwise(scores * SCORES_BACKWARD, counted=True),),
            0.0,
            0.0,
            scores * SCORES_SAVED,
            selective=True,
            present=unfused,
        ),
    ]


def _context_parallel(load: Workload, kv_bytes: Array) -> list[Computation]:
    """Every context-parallel rank needs all keys and values: gathered forward, their gradients summed backward."""
    plans = load.plans
    group = placement.group(plans.cp, plans.tp, load.gpus_per_node, plans.num_gpus)

    def work(collective: str) -> Collective:
        return Collective(collective, kv_bytes * plans.cp, group, "cp", "context")

    backward = (work("all_gather"), work("reduce_scatter"))
    return [Computation("context", work("all_gather"), backward, 1.0, 2.0, present=plans.cp > 1)]


def _mlp(block: "TransformerBlock", load: Workload) -> list[Computation]:
    mlp = block.mlp
    inner = mlp.intermediate / load.plans.tp
    elements = load.tokens * inner
    fused = load.plans.compiled
    # A parallel block's MLP reads the norm that attention already keeps, unless it has one of its own.
    own_input = not block.parallel or block.num_norms > 1
    normed = load.tokens * load.hidden * ACTIVATION_BYTES if own_input else 0.0
    names = ("gate", "up") if mlp.gated else ("up",)
    parts = [linear(load, name, load.hidden, inner, normed if name == names[0] else 0.0, mlp.bias) for name in names]
    forward, backward = zip(*((GATED_FUSED, GATED_EAGER) if mlp.gated else (PLAIN_FUSED, PLAIN_EAGER)), strict=True)
    projected = elements * len(names) * ACTIVATION_BYTES
    # Backward, with attention's tensors still alive: the gradients of its result, its inputs and the residual stream,
    # and the matrix gradient of the projection down; the projection's input has just been freed.
    temporaries = (3 if mlp.gated else 1) * elements * ACTIVATION_BYTES
    held = temporaries + load.residual_bytes + inner * load.hidden * ACTIVATION_BYTES
    parts.append(pointwise("activation", elements, fused, forward, backward, projected, projected, held))
    return [*parts, linear(load, "down", inner, load.hidden, elements * ACTIVATION_BYTES, mlp.bias)]
