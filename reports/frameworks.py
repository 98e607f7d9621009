"""How training frameworks run a step where a published table does not say: facts of the software, not of a result."""

from dataclasses import dataclass

from flopcast.simulator.plan import AttentionKernel, Recompute


@dataclass(frozen=True)
class Framework:
    """What the software does unless it is told.

    ``overlap``: gradient and parameter communication runs beside computation. ``bucket_bytes``: how much at once.
    ``gradient_bits``: width of the reduction. ``fused_kernels``: fused norms and rotary positions. ``jit_fused``: a
    compiler fuses activation, bias and loss. ``overlap_tensor``: as in :class:`Plan`. ``sharding``: what a bare
    "megatron" means. ``recompute``, ``attention``: the software's defaults (None: the GPU's usual kernel).
    """

    overlap: bool = True
    bucket_bytes: int = 25 * 2**20
    gradient_bits: int = 32
    fused_kernels: bool = True
    jit_fused: bool = False
    overlap_tensor: bool = False
    sharding: str = "ddp"
    recompute: Recompute = "none"
    attention: AttentionKernel | None = None


# Looked up by the first key that occurs in the framework's name, lower case; each says where the fact is from.
FRAMEWORKS: dict[str, Framework] = {
    # Megatron-LM's fork of 2021-2022: gradients are reduced after the last backward (megatron/model/distributed.py),
    # fused masked softmax instead of flash attention, checkpointed activations in the published examples.
    "megatron-deepspeed": Framework(
        overlap=False, bucket_bytes=2**31, gradient_bits=16, recompute="full", attention="unfused"
    ),
    # Megatron-LM before flash attention (arXiv:2104.04473): fp32 main gradients all-reduced after the last backward.
    # Its section 4.2: bias + GELU, bias + dropout + add, and scale + mask + softmax are fused.
    "megatron-lm (2021)": Framework(
        overlap=False, bucket_bytes=2**31, jit_fused=True, recompute="full", attention="unfused"
    ),
    # NeMo's performance recipes: distributed optimizer with bf16 gradient reduction, overlapped; sequence parallelism
    # with userbuffer overlap (ub_tp_comm_overlap); Transformer Engine's fused norms and JIT-fused activations.
    "nemo": Framework(
        bucket_bytes=512 * 2**20, gradient_bits=16, jit_fused=True, overlap_tensor=True, sharding="zero1"
    ),
    # Megatron-Core's distributed optimizer; overlap is an option that examples of the time leave off.
    "megatron": Framework(overlap=False, bucket_bytes=2**31, jit_fused=True),
    # DeepSpeed reduces in the training precision, in buckets of 5e8 elements (reduce_bucket_size).
    "deepspeed": Framework(bucket_bytes=10**9, gradient_bits=16, fused_kernels=False),
    # Composer's FSDP1: mixed_precision DEFAULT reduces gradients in fp32; LayerNorm in low precision, eager GELU.
    "llm-foundry": Framework(fused_kernels=False),
    "internevo": Framework(bucket_bytes=512 * 2**20, gradient_bits=16),
    "nanotron": Framework(attention="flash2"),
    "lightning": Framework(gradient_bits=16, attention="flash1"),
    "torchtitan": Framework(fused_kernels=False, attention="flash2"),
}


def framework_of(name: str) -> Framework:
    """The facts of the framework a run names, or the defaults of PyTorch's own engine."""
    lowered = name.lower()
    return next((facts for key, facts in FRAMEWORKS.items() if key in lowered), Framework())
