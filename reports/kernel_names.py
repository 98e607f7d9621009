"""What a GPU kernel does, by its name: the class of operation it belongs to."""

import re

COLLECTIVES = (
    ("all-gather", re.compile(r"all_?gather", re.I)),
    ("reduce-scatter", re.compile(r"reduce_?scatter", re.I)),
    ("all-reduce", re.compile(r"all_?reduce", re.I)),
    # NCCL has one kernel for both.
    ("send, receive, all-to-all", re.compile(r"send|recv|all_?to_?all", re.I)),
)
OTHER_COLLECTIVES = "other collectives"
# NCCL, RCCL and MSCCL, and PyTorch's symmetric memory.
COMMUNICATES = re.compile(r"^(void )?\w*[nrs]ccl|multimem_|(one|two)_shot_all", re.I)
# Transformer Engine's overlap with tensor-parallel products, DeepEP's exchange of experts' tokens, vLLM.
NAMED_OTHERWISE = (
    ("reduce-scatter", re.compile(r"userbuffers\w*_rs", re.I)),
    ("all-gather", re.compile(r"userbuffers\w*_ag", re.I)),
    ("send, receive, all-to-all", re.compile(r"userbuffers_(push|pull)|deep_ep::", re.I)),
    ("all-reduce", re.compile(r"cross_device_reduce", re.I)),
)
# FSDP2's packing, FlashAttention, cuDNN, AOTriton and CK, cuBLAS, CUTLASS, DeepGEMM and Tensile, Inductor, PyTorch; the
# first that matches decides. Inductor names a kernel after all that it fuses; what it generates is pointwise, if not a
# template.
COMPUTATIONS = (
    ("copy", re.compile(r"^Mem(cpy|set)|^Copy(Host|Device)To|^FillBuffer|chunk_cat|split_with_sizes_copy|CopyFunctor")),
    ("optimizer", re.compile(r"multi_tensor|adam|lpnorm|FusedOptimizer|^triton_for_fused|muon", re.I)),
    ("pointwise", re.compile(r"^triton_(poi|red|per)_fused|quantize_with", re.I)),
    ("attention", re.compile(r"flash|fmha|attention|attn|sdpa|mha_|^bwd_(kernel|preprocess)", re.I)),
    (
        "gemm",
        re.compile(
            r"(?<!fb)gemm|gemv|cutlass(?!::\w+_t\b)|xmma|nvjet|cublas|wgmma|triton_(tem|mm)|_mm_|splitK|^Cijk_"
            r"|(?<![a-z])bmm_|(?<!finalize_)matmul|gemmk1|dot_kernel",
            re.I,
        ),
    ),
)
REST = "pointwise"
COMMUNICATIONS = (*(name for name, _ in COLLECTIVES), OTHER_COLLECTIVES)
ORDER = ("gemm", "attention", "pointwise", "optimizer", "copy", *COMMUNICATIONS)


def operation_class(kernel: str, collective: str = "") -> str:
    """The class of a kernel by its name; what no library's name betrays is pointwise.

    ``collective``: what torch.distributed calls it ("_allgather_base"), for libraries that have one kernel for all of
    them (RCCL's ``ncclDevKernel_Generic``); "" where that is not known.
    """
    named = next((name for name, pattern in NAMED_OTHERWISE if pattern.search(kernel)), None)
    if named is not None:
        return named
    if COMMUNICATES.search(kernel):
        called = (kernel, collective)
        found = (name for text in called for name, pattern in COLLECTIVES if pattern.search(text))
        return next(found, OTHER_COLLECTIVES)
    return next((name for name, pattern in COMPUTATIONS if pattern.search(kernel)), REST)


def is_collective(operations: str) -> bool:
    """Whether a class is one of communication between GPUs."""
    return operations in COMMUNICATIONS
