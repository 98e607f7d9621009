"""How training frameworks run a step where a published table does not say: facts of the software, not of a result."""

import re
from dataclasses import dataclass, replace

from flopcast.simulator.engines import Engine
from flopcast.simulator.plan import AttentionKernel, Dispatcher, Precision, Recompute


@dataclass(frozen=True)
class Framework:
    """What the software does unless it is told.

    ``overlap``: gradient and parameter communication runs beside computation. ``bucket_bytes``: how much at once.
    ``gradient_bits``: width of the reduction (None: PyTorch's, whose FSDP reduces in the type it computes in unless it
    is told otherwise, and DDP in the parameters' fp32). ``fused_kernels``: fused norms and rotary positions.
    ``jit_fused``: a compiler fuses activation and bias. ``overlap_tensor``, ``overlap_update``, ``sliced_update``: as
    in :class:`Plan`. ``sharding``: what a bare "megatron" means. ``recompute``, ``attention``: the software's defaults
    (None: the GPU's usual kernel). ``spills``: what does not fit goes to the host's memory.
    ``passes_by_stages``: a local batch is cut into as many micro-batches as the pipeline has stages.
    ``compiles_fp8``: what runs in 8 bits is compiled. ``one_stage_per_rank``: its pipelines are not interleaved, or
    only where it is told so. ``dispatcher``, ``whole_experts``: of a mixture, as in :class:`Plan`;
    ``replays_mixtures``: one in MXFP8 runs from CUDA graphs, its exchanges beside other micro-batches.
    ``engine``: how it holds its tensors; ``bf16_engine``: where that differs in bf16; ``later_engine``: since a month,
    "2025-04".
    """

    overlap: bool = True
    bucket_bytes: int = 25 * 2**20
    gradient_bits: int | None = None
    fused_kernels: bool = True
    jit_fused: bool = False
    overlap_tensor: bool = False
    overlap_update: bool = True
    sliced_update: bool = False
    sharding: str = "ddp"
    recompute: Recompute = "none"
    attention: AttentionKernel | None = None
    spills: bool = False
    passes_by_stages: bool = False
    compiles_fp8: bool = False
    one_stage_per_rank: bool = False
    dispatcher: Dispatcher = "alltoall"
    whole_experts: bool = False
    replays_mixtures: bool = False
    engine: Engine = "fsdp2"
    bf16_engine: Engine | None = None
    later_engine: tuple[str, Engine] | None = None

    def compiles(self, precision: Precision) -> bool:
        """Whether a compiler fuses pointwise work without being asked."""
        return self.jit_fused or (self.compiles_fp8 and precision == "fp8")

    def engine_in(self, precision: str) -> Engine:
        """The engine of a run whose table states this precision; where it states none nothing tells fp16 from bf16."""
        return self.bf16_engine if self.bf16_engine and "bf16" in precision.lower() else self.engine


# Megatron-Core as NeMo's and Megatron-Bridge's performance recipes run it: distributed optimizer with bf16 gradient
# reduction, both of its exchanges overlapped; sequence parallelism in chunks (ub_tp_comm_overlap); Transformer Engine's
# fused norms and JIT-fused activations, and its cuDNN attention, which it prefers on Hopper (NeMo,
# docs/source/features/memory_optimizations.rst). The recipes of the largest steps keep activations of 5 to 40 layers on
# the host (Megatron-Bridge, perf_recipes/llama, cpu_offloading_num_layers). Those of mixtures hold experts whole
# (expert_tensor_parallel_size = 1).
_MEGATRON_CORE = Framework(
    bucket_bytes=512 * 2**20,
    gradient_bits=16,
    jit_fused=True,
    overlap_tensor=True,
    sharding="zero1",
    attention="cudnn",
    spills=True,
    whole_experts=True,
    engine="megatron",
)

_NEMO = replace(_MEGATRON_CORE, engine="nemo")

# Megatron-LM's fork of 2021-2022: gradients are reduced after the last backward (megatron/model/distributed.py),
# fused masked softmax instead of flash attention, bias and GELU fused by PyTorch's JIT (BLOOM's paper,
# arXiv:2211.05100, "Fused CUDA Kernels"), checkpointed activations in the published examples.
_MEGATRON_DEEPSPEED = Framework(
    overlap=False,
    overlap_update=False,
    bucket_bytes=2**31,
    gradient_bits=16,
    jit_fused=True,
    recompute="full",
    attention="unfused",
    one_stage_per_rank=True,
    engine="deepspeed",
    bf16_engine="deepspeed-bf16",
)

_JAX = Framework(jit_fused=True, attention="cudnn")

# Looked up by the first key that occurs in the framework's name, lower case; each says where the fact is from.
FRAMEWORKS: dict[str, Framework] = {
    # GPT-NeoX is built on the same two (its README).
    "neox": _MEGATRON_DEEPSPEED,
    "megatron-deepspeed": _MEGATRON_DEEPSPEED,
    # Megatron-LM before flash attention (arXiv:2104.04473), as its examples/sc21 runs it: in fp16, whose gradients
    # are accumulated and reduced in fp16, after the last backward (model/distributed.py, v2.5). Its section 4.2: bias +
    # GELU, bias + dropout + add, and scale + mask + softmax are fused.
    "megatron-lm (2021)": replace(_MEGATRON_DEEPSPEED, engine="megatron-2021", bf16_engine=None),
    # NeMo AutoModel is FSDP2 with Transformer Engine's kernels and DeepEP; reduces in fp32 (components/distributed/
    # config.py) and checkpoints activations in its benchmarks (examples/llm_benchmark).
    "automodel": Framework(gradient_bits=32, recompute="full", attention="cudnn", dispatcher="deepep"),
    # Most of its recipes for mixtures take Megatron Core's flex dispatcher, on DeepEP or HybridEP (perf_recipes). Up to
    # v0.4.2, NeMo 26.04, they capture no mixture's experts; from v0.5.0, NeMo 26.06, on those for MXFP8 set
    # cuda_graph_impl "full_iteration" and overlap_moe_expert_parallel_comm (DeepSeek-V3, gpt-oss and Qwen3 on GB200 and
    # GB300, and some on B200 and B300).
    "megatron-bridge": replace(_NEMO, dispatcher="deepep", engine="megatron-bridge"),
    # Before June 2023 without flash attention (commit a87702a522) or chunks of tensor-parallel communication; the
    # launcher's configurations of 22.12 reduce gradients after the last backward (overlap_grad_sync: False).
    **dict.fromkeys(
        ("nemo 22", "nemo megatron", "nemo-megatron"),
        replace(_MEGATRON_CORE, overlap=False, overlap_update=False, overlap_tensor=False, attention="unfused"),
    ),
    # The launcher's configurations of 2023 and 2024 leave fp8_params out, which is then off. Before 24.05 its images
    # are built on PyTorch's of 24.01 and before (NeMo's Dockerfile, v1.23.0 and v2.0.0rc0), with cuDNN 8.9.7, than
    # which 9.0 attends up to 50 % faster on Hopper (its release notes): before, about as FlashAttention-2 does.
    **dict.fromkeys(("nemo 23", "nemo 24.01", "nemo 24.03"), replace(_MEGATRON_CORE, attention="flash2")),
    "nemo 24.0": _MEGATRON_CORE,
    # NVIDIA's submissions of language models to MLPerf are NeMo's.
    **dict.fromkeys(("nemo", "mlperf"), _NEMO),
    "megatron-core": _MEGATRON_CORE,
    # Built on Megatron-LM; overlaps data-parallel exchanges as FSDP does and tensor-parallel ones in chunks of the
    # product, with flash attention 2, fused LayerNorm and GELU, interleaved (arXiv:2402.15627, sections 3.2 and 3.3).
    "megascale": replace(_MEGATRON_CORE, gradient_bits=None, attention="flash2", spills=False),
    # Megatron-LM's distributed optimizer; overlap is an option that examples of the time leave off.
    "megatron": Framework(overlap=False, overlap_update=False, bucket_bytes=2**31, jit_fused=True, engine="megatron"),
    # The same models with Liger-Kernel's fused norms, SwiGLU and loss: less memory, a step as long within 1.5 % (Stas
    # Bekman, ml-engineering, insights/when-to-upgrade-gpus).
    "liger": Framework(overlap_update=False, bucket_bytes=10**9, gradient_bits=16, fused_kernels=False, engine="liger"),
    # DeepSpeed reduces in the training precision, in buckets of 5e8 elements (reduce_bucket_size), beside the backward
    # pass under ZeRO-3 alone (overlap_comm's default, runtime/zero/config.py), and gathers what its optimizer has
    # updated before the next forward.
    "deepspeed": Framework(
        overlap=False,
        overlap_update=False,
        bucket_bytes=10**9,
        gradient_bits=16,
        fused_kernels=False,
        one_stage_per_rank=True,
        engine="huggingface",
    ),
    # Composer's FSDP1: mixed_precision DEFAULT reduces gradients in fp32; LayerNorm in low precision, eager GELU.
    **dict.fromkeys(("llm-foundry", "composer", "mosaic"), Framework(fused_kernels=False, gradient_bits=32)),
    # JAX trainers: XLA compiles the step as a whole, and attention is Transformer Engine's, which is cuDNN's (MaxText,
    # docs/run_maxtext/run_maxtext_single_host_gpu.md; Levanter, layers/attention.py; JAX-Toolbox for Pax). MaxText's
    # remat_policy is "full" unless it is told otherwise (configs/base.yml).
    "maxtext": replace(_JAX, recompute="full"),
    **dict.fromkeys(("jax", "levanter", "pax", "axlearn"), _JAX),
    # Its doc/en/install.md builds flash-attention v1.0.5, which its images hold too.
    "internevo": Framework(bucket_bytes=512 * 2**20, gradient_bits=16, attention="flash1", engine="internevo"),
    # nanotron's optim/zero.py gathers after the step and waits; its lists of slices are copied one by one
    # (ProcessGroupNCCL's collectives on lists of tensors).
    "nanotron": Framework(
        overlap_update=False,
        sliced_update=True,
        gradient_bits=32,
        attention="flash2",
        one_stage_per_rank=True,
        engine="nanotron",
    ),
    # Written in CUDA: activations and rotary positions are kernels of their own, attention is cuDNN's
    # (llmc/cudnn_att.cpp, src/kernels/cudnn_att.cpp), gradients are reduced in their own 16 bits (llmc/zero.cuh).
    "llm.c": Framework(gradient_bits=16, jit_fused=True, attention="cudnn", engine="llm.c"),
    # The same with states, residuals and weights on the host where they do not fit (its README, --offload-residual).
    **dict.fromkeys(
        ("llm.q", "llmq"),
        Framework(gradient_bits=16, jit_fused=True, attention="cudnn", spills=True, engine="llm.c"),
    ),
    # Norms, rotary positions, SwiGLU and loss are Triton kernels of its own (unsloth/kernels).
    "unsloth": Framework(),
    # torch.compile unless it is told otherwise (train.py: compile = True).
    "nanogpt": Framework(jit_fused=True),
    # Compiles what it can with nvFuser and takes cuDNN's attention first (thunder/__init__.py, add_default_executor).
    "thunder": Framework(jit_fused=True, attention="cudnn"),
    "lightning": Framework(gradient_bits=16, attention="flash1"),
    # pipeline_parallel_microbatches is pp where it is not given (parallelisms/pipelining_utils.py, December 2024);
    # docs/float8.md has torch.compile "required for competitive performance" in 8 bits.
    "torchtitan": Framework(
        fused_kernels=False,
        gradient_bits=32,
        attention="flash2",
        passes_by_stages=True,
        compiles_fp8=True,
        one_stage_per_rank=True,
        engine="torchtitan",
        later_engine=("2025-04", "torchtitan-2025"),
    ),
}

# Software that runs PyTorch's own engine as it is, which is what every other name is taken for.
# Models of Hugging Face or of plain modules run norms and rotary positions eagerly there, unless they are compiled.
PYTORCH = re.compile(
    r"pytorch|fsdp|\bddp\b|\b(torch|torchtune|torchrun|hf|trl)\b|hugging|accelerate|transformers|olmo"
    r"|axolotl|llama-?factory|xtuner|open_?lm|lingua|picotron|veomni|torchacc"
)


def is_known(name: str) -> bool:
    """Whether the name is of software whose facts are held here."""
    lowered = name.lower()
    return bool(PYTORCH.search(lowered)) or "flopcast" in lowered or any(key in lowered for key in FRAMEWORKS)


# A year, and the month where it stands behind it: 2025, 2025-04, 202504.
MONTH = re.compile(r"(?<!\d)(20[23]\d)(?:[-/.]?(0[1-9]|1[0-2]))?(?!\d)")


# A release of NeMo's container, "26.06", or one of Megatron-Bridge itself, "v0.5.0", which is in it.
CONTAINER, BRIDGE = re.compile(r"(?<![\d.])(2\d)\.(\d\d)(?!\d)"), re.compile(r"\bv?0\.(\d+)(?!\d)")
REPLAYS_SINCE = (26, 6)


def _bridge_release(name: str) -> tuple[int, int]:
    """The container that a name of Megatron-Bridge states; (0, 0) where it states none."""
    if found := CONTAINER.search(name):
        return int(found[1]), int(found[2])
    own = BRIDGE.search(name)
    return REPLAYS_SINCE if own and int(own[1]) >= 5 else (0, 0)


def framework_of(name: str, tp: int = 1, dated: str = "") -> Framework:
    """The facts of the framework a run names, or the defaults of PyTorch's own engine.

    An unknown one that splits its layers over tensor-parallel ranks is taken to hold activations as Megatron does,
    whose way of splitting them it is (arXiv:2205.05198). The latest year or month in the name or in ``dated``, such as
    the table's source, says how old the software is.
    """
    lowered = name.lower()
    if "megatron" in lowered and "deepspeed" in lowered:
        return _MEGATRON_DEEPSPEED
    unknown = Framework(engine="megatron" if tp > 1 else "fsdp2", fused_kernels=not PYTORCH.search(lowered))
    facts = next((facts for key, facts in FRAMEWORKS.items() if key in lowered), unknown)
    if "megatron-bridge" in lowered:
        facts = replace(facts, replays_mixtures=_bridge_release(lowered) >= REPLAYS_SINCE)
    if facts.later_engine is None:
        return facts
    since, engine = facts.later_engine
    months = [f"{year}-{month or 12}" for year, month in MONTH.findall(f"{name} {dated}")]
    return replace(facts, engine=engine) if max(months, default="") >= since else facts
