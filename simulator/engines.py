"""What training software keeps and moves beyond what the plan's arithmetic needs: facts of the code, one row each."""

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Engine = Literal[
    "fsdp2",
    "torchtitan",
    "torchtitan-2025",
    "huggingface",
    "liger",
    "megatron",
    "nemo",
    "megatron-bridge",
    "megatron-2021",
    "deepspeed",
    "deepspeed-bf16",
    "nanotron",
    "internevo",
    "llm.c",
]


@dataclass(frozen=True)
class Habits:
    """What an engine moves and how it holds its tensors. The defaults are this package's trainer on PyTorch's FSDP2.

    What it moves: ``loss_forward_bytes`` and ``loss_backward_bytes`` per logit, read and written by the loss, the cast
    of the logits included; ``norm_forward_bytes`` and ``norm_backward_bytes`` per element of a norm that is no 16-bit
    kernel. ``jit_only``: its compiler fuses activations and not the loss. ``folds_residual``: its fused norms add to
    the residual stream. ``query_copies``, ``kv_copies``: how often queries, and keys and values, are laid out anew
    before attention; ``repeats_heads``: keys and values are copied to every query head that shares them;
    ``hides_context``: context-parallel ranks pass them around behind the scores of the part before, and their gradients
    in 16 bits, where PyTorch gathers them first (see blocks/scores.py); ``splits_gate``: one product makes both halves
    of a gated projection, whose gradients are joined. ``accumulates_in_products``: the product that makes a weight's
    gradient adds it to the accumulator. ``waits_for_sends``: interleaved stages wait for what they send, too;
    ``sends_parts``: of a tensor-parallel group each rank sends its part, which is gathered on the other side.
    ``gathers_fp8``: matrices that are multiplied in 8 bits are gathered and held so. ``gathers_matrices``: what is
    gathered for a pass is gathered matrix by matrix, and its gradients are reduced in buckets, where others do both
    layer by layer. ``reduces_whole``: of parameters that are not sharded each rank receives the whole gradient, to
    keep its part. ``eager_router``: a mixture's router runs operation by operation.
    ``counts_ends``: a pipeline whose stages only so have as many deals out embedding and head as a layer each.
    ``experts_in_turn``: a rank's experts are multiplied one after the other, and get their biases so.

    What it holds: ``logit_bytes`` per logit, at the peak of the loss; ``parallel_logit_bytes`` where tensor-parallel
    ranks share the vocabulary, if it differs; ``compiled_logit_bytes`` where a compiler makes one pass of the loss and
    every rank has the whole vocabulary, if it differs. ``keeps_intermediates``: autograd keeps what every eager
    operation needs (SiLU's result, a norm's fp32 input), for want of fused backwards. ``regathers_inputs``: inputs that
    are split over the sequence are kept so, and gathered again in backward. ``static_buffers``: 16-bit parameters and
    gradients stay allocated through the step; else they are dropped in the last backward as they are used.
    ``separate_gradients``: 16-bit gradients stand beside fp32 accumulators. ``live_elements``: gathered parameters are
    released only when there are more of them. ``keeps_graph``: weights' gradients that are put off keep all that the
    backward pass before them had. ``update_bytes``: per parameter of the optimizer's shard, and ``bucket_bytes``
    besides: buffers that reduction and update allocate in one piece each.

    What selective recompute keeps: the layer's input and the results of every matrix product and of attention; with
    ``alternate_products`` of every other product, the first included; with ``recomputes_attention`` everything but what
    lies inside of attention.
    """

    loss_forward_bytes: int = 14
    loss_backward_bytes: int = 18
    jit_only: bool = False
    norm_forward_bytes: int = 0
    norm_backward_bytes: int = 0
    folds_residual: bool = False
    query_copies: int = 0
    kv_copies: int = 0
    repeats_heads: bool = False
    hides_context: bool = False
    splits_gate: bool = False
    accumulates_in_products: bool = False
    waits_for_sends: bool = False
    sends_parts: bool = False
    gathers_fp8: bool = False
    gathers_matrices: bool = False
    reduces_whole: bool = False
    eager_router: bool = False
    counts_ends: bool = False
    experts_in_turn: bool = False
    logit_bytes: int = 6
    parallel_logit_bytes: int = 0
    compiled_logit_bytes: int = 0
    keeps_intermediates: bool = False
    regathers_inputs: bool = False
    static_buffers: bool = False
    separate_gradients: bool = False
    live_elements: int = 0
    keeps_graph: bool = False
    update_bytes: int = 0
    bucket_bytes: int = 0
    alternate_products: bool = False
    recomputes_attention: bool = False


# Cast, maximum, difference, exponential, sum and quotient on fp32; backward the gradient in place, and its cast.
_SIX_PASSES: dict[str, Any] = {"loss_forward_bytes": 38, "loss_backward_bytes": 14}

_TORCHTITAN = Habits(
    repeats_heads=True,
    logit_bytes=14,
    parallel_logit_bytes=18,
    loss_backward_bytes=22,
    keeps_intermediates=True,
    alternate_products=True,
    keeps_graph=True,
    gathers_fp8=True,
)

_MEGATRON = Habits(
    **_SIX_PASSES,
    hides_context=True,
    jit_only=True,
    accumulates_in_products=True,
    eager_router=True,
    counts_ends=True,
    experts_in_turn=True,
    regathers_inputs=True,
    static_buffers=True,
    recomputes_attention=True,
)

_NEMO = replace(_MEGATRON, gathers_fp8=True)

ENGINES: dict[Engine, Habits] = {
    # 16-bit logits and one fp32 copy, in which the loss and its gradient are computed, or compiled in the logits' own
    # memory. A pipeline's first backward runs with retain_graph (torch/distributed/pipelining/_backward.py, 2.13): what
    # a forward saved stays until the second.
    "fsdp2": Habits(compiled_logit_bytes=2, keeps_graph=True, counts_ends=True),
    # fp32 log-softmax, its gradient and that of the logits, and the hole of the deleted 16-bit ones (train.py); a
    # parallel loss adds its exponentials (torch/distributed/tensor/parallel/loss.py); selective_ac_option "op" saves
    # every second mm (parallelisms/parallelize_llama.py, December 2024). Its fp8 recipes set
    # enable_fsdp_float8_all_gather (train_configs/llama3_405b.toml, docs/float8.md, August 2024), and what was gathered
    # stays in 8 bits (torchao/float8/fsdp_utils.py). Until January 2026 keys and values went through repeat_kv
    # (models/llama/model.py).
    "torchtitan": _TORCHTITAN,
    # Since April 2025 (pull request 1033, components/loss.py) a run that compiles its layers compiles the loss too,
    # which then reads 16-bit logits and writes their gradient; eager runs are as before. Its stages count embedding and
    # head (distributed/pipeline_parallel.py).
    "torchtitan-2025": replace(_TORCHTITAN, compiled_logit_bytes=4, counts_ends=True),
    # LlamaForCausalLM returns fp32 logits and shifts a copy, beside log-softmax, its gradient and theirs. DeepSpeed's
    # ZeRO-3 keeps 1e9 parameters gathered (stage3_max_live_parameters) and a 16-bit shard beside the fp32 master, whose
    # gradients it casts to fp32 for the update (runtime/zero/stage3.py). It gathers before each module's forward and
    # backward (partitioned_param_coordinator.py, fetch_sub_module), which of a transformer is a linear layer; vectors
    # stay whole (stage3_param_persistence_threshold). ZeRO-1 and -2 all-reduce (use_multi_rank_bucket_allreduce, since
    # 0.12.4); before, one reduction per part sent as much as a reduce-scatter does.
    "huggingface": Habits(
        logit_bytes=16,
        loss_forward_bytes=22,
        loss_backward_bytes=34,
        keeps_intermediates=True,
        static_buffers=True,
        gathers_matrices=True,
        reduces_whole=True,
        live_elements=10**9,
        update_bytes=4,
    ),
    # Liger-Kernel's fused linear cross-entropy works in chunks and never holds the logits; norms and SwiGLU are fused.
    "liger": Habits(gathers_matrices=True, reduces_whole=True, logit_bytes=0, static_buffers=True, live_elements=10**9),
    # Contiguous parameter and gradient buffers (distributed/param_and_grad_buffer.py); the loss in place on one fp32
    # copy (tensor_parallel/cross_entropy.py); sharded inputs kept, attention alone computed again (arXiv:2205.05198,
    # sections 4.2.2 and 5). Weight gradients are accumulated by wgrad_gemm_accum_fp32 unless
    # --no-gradient-accumulation-fusion forbids it (arguments.py, since February 2022). Context parallelism is
    # Transformer Engine's ring (AttnFuncWithCPAndKVP2P, on two streams).
    "megatron": _MEGATRON,
    # NeMo's and Megatron-Bridge's recipes in 8 bits set fp8_param_gather (nemo/collections/llm/recipes/precision/
    # mixed_precision.py, src/megatron/bridge/training/mixed_precision.py), as MLPerf's do (FP8_PARAMS).
    "nemo": _NEMO,
    # Its benchmarks take the loss of Transformer Engine (perf_recipes/_common.py, cross_entropy_fusion_impl "te", since
    # v0.2.0): 16-bit logits are read for the sum and once more, their gradient takes their place (common/triton/
    # cross_entropy.py, until July 2026; in fp32 since) and is multiplied by the loss's in backward.
    # Its recipes of mixtures fuse the router (moe_router_fusion).
    "megatron-bridge": replace(_NEMO, loss_forward_bytes=6, loss_backward_bytes=4, logit_bytes=2, eager_router=False),
    # Megatron-LM v2.5: a hook adds every gradient to its buffer (model/distributed.py); sends are in parts
    # (scatter_gather_tensors_in_pipeline), and waited for before anything is computed (p2p_communication.py).
    "megatron-2021": Habits(**_SIX_PASSES, jit_only=True, waits_for_sends=True, sends_parts=True, static_buffers=True),
    # DeepSpeed's ZeRO-1 in fp16 flattens its part of the gradients, casts it to fp32, and reduces through a bucket of
    # 5e8 elements (runtime/zero/stage_1_and_2.py).
    "deepspeed": Habits(
        **_SIX_PASSES,
        jit_only=True,
        static_buffers=True,
        gathers_matrices=True,
        recomputes_attention=True,
        update_bytes=6,
        bucket_bytes=10**9,
    ),
    # BF16_Optimizer (deepspeed/runtime/bf16_optimizer.py): 4 bytes per parameter more, on every data-parallel rank, all
    # of which are all-reduced (runtime/pipe/engine.py, _bf16_reduce_grads).
    "deepspeed-bf16": Habits(
        **_SIX_PASSES,
        gathers_matrices=True,
        reduces_whole=True,
        jit_only=True,
        static_buffers=True,
        separate_gradients=True,
        recomputes_attention=True,
    ),
    # An fp32 cast of the logits and a copy of it (parallel/tensor_parallel/functional.py); DDP's 16-bit buckets beside
    # one fp32 gradient buffer (optim/gradient_accumulator.py). In models/llama.py: act(gate) * up as two operations on
    # halves of one product; q, k, v transposed to the batch first, keys and values then joined and permuted.
    "nanotron": Habits(
        **_SIX_PASSES,
        query_copies=1,
        kv_copies=3,
        splits_gate=True,
        logit_bytes=10,
        keeps_intermediates=True,
        static_buffers=True,
        separate_gradients=True,
    ),
    # internlm/model/modeling_internlm.py: the norms take an fp32 cast of the residual stream, and norm and sum are
    # computed again in backward (dropout_selective_checkpoint); the loss is flash-attention's, in place on fp32 logits.
    "internevo": Habits(
        loss_forward_bytes=10,
        loss_backward_bytes=14,
        norm_forward_bytes=12,
        norm_backward_bytes=28,
        static_buffers=True,
    ),
    # llmc/fused_classifier.cuh reads 16-bit logits and writes their gradient in their place, in one kernel; residual
    # sums are folded into norms (train_gpt2.cu, fused_residual_forward5); matmul_backward adds to the gradients.
    # IST-DASLab's llm.q is built on all three.
    "llm.c": Habits(
        loss_forward_bytes=4,
        loss_backward_bytes=0,
        jit_only=True,
        accumulates_in_products=True,
        folds_residual=True,
        logit_bytes=2,
        static_buffers=True,
    ),
}
assert tuple(ENGINES) == get_args(Engine)


def has_habit(name: str, engine: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which plans' engines have a habit."""
    return habit(name, engine) > 0


def habit(name: str, engine: NDArray[np.int64]) -> NDArray[np.float64]:
    """One habit of each plan's engine, given as codes into the keys of :data:`ENGINES`; flags as 0 and 1."""
    return np.array([getattr(habits, name) for habits in ENGINES.values()], dtype=np.float64)[engine]
