"""What a comparison is asked, and what of it cannot be."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from flopcast.errors import InputError
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.model import Model
from flopcast.simulator.plain import make_plain
from flopcast.simulator.plan import CHOICES, MAY_BE_ZERO, AttentionKernel, Precision, Recompute, Schedule
from flopcast.simulator.plan import MOST as MOST_OF_PLAN

# What PyTorch's scaled_dot_product_attention runs on each architecture.
USUAL_ATTENTION: dict[str, AttentionKernel] = {
    "volta": "unfused",
    "ampere": "flash2",
    "hopper": "cudnn",
    "blackwell": "cudnn",
}
# The architectures that a kernel was written for; the others run everywhere.
ATTENTION_RUNS_ON: dict[str, tuple[str, ...]] = {
    "flash2": ("ampere", "hopper", "blackwell"),
    "flash3": ("hopper",),
    "flash4": ("hopper", "blackwell"),
}
MOST = MOST_OF_PLAN | {"tokens_per_gpu": 10**12}


@dataclass(frozen=True)
class Request:
    """What to compare; None is left to the comparison.

    ``num_gpus``: within one node, or whole nodes. ``tokens_per_gpu``: tokens per GPU and optimizer step, the same for
    every strategy, by default about 4 Mi over all GPUs. ``seq_len``: tokens per sequence. ``micro_batch``: sequences
    per rank and pass. ``ep``: ranks that share out the experts of a mixture. ``recompute``: none, selective, full;
    ``recompute_layers``: of full, the first layers of every model chunk alone; 0 is all.
    ``pp``, ``virtual_pp``, ``schedule``: the pipeline, if there is one. ``gradient_bits``: width at which gradients are
    reduced, 16 or 32. ``precision``: of the products, bf16 or fp8. ``attention``: its kernel, by default what PyTorch
    runs on that GPU. ``compiled``: torch.compile fuses all pointwise work; ``fused_kernels``: hand-written
    normalisation and rotary positions. ``strategies``: names, by default all. ``convention``: what MFU and HFU count,
    6n, causal or full.
    """

    num_gpus: int
    tokens_per_gpu: int | None = None
    seq_len: int | None = None
    micro_batch: int | None = None
    ep: int | None = None
    pp: int = 1
    virtual_pp: int = 1
    schedule: Schedule = "1f1b"
    recompute: Recompute | None = None
    recompute_layers: int = 0
    gradient_bits: int = 32
    precision: Precision = "bf16"
    attention: AttentionKernel | None = None
    compiled: bool = False
    fused_kernels: bool = True
    strategies: Sequence[str] | None = None
    convention: str = "causal"

    def __post_init__(self) -> None:
        make_plain(self)


def check_request(request: Request) -> None:
    """Raise InputError for a number out of range, or a word that is no choice."""
    for name in ("tokens_per_gpu", "micro_batch", "ep", "pp", "virtual_pp", "recompute_layers"):
        value = getattr(request, name)
        if value is not None:
            _check_range(name, value)
    for name, choices in ((name, CHOICES[name]) for name in ("recompute", "precision", "attention", "schedule")):
        value = getattr(request, name)
        if value is not None and (not isinstance(value, str) or value not in choices):
            raise InputError(f"--{name} is '{value}'; choose one of {', '.join(choices)}")
    if request.recompute_layers and request.recompute not in (None, "full"):
        raise InputError(
            f"--recompute-layers is {request.recompute_layers} with --recompute {request.recompute}, which computes no "
            "layer again in full; use --recompute full or leave --recompute-layers out"
        )
    if request.gradient_bits not in (16, 32):
        raise InputError(f"--gradient-bits is {request.gradient_bits}; choose 16 or 32")


def checked_seq_len(model: Model, seq_len: int | None) -> int:
    """The sequence length asked for, or the model's own; raises InputError where the model has no such positions."""
    length = model.context if seq_len is None else seq_len
    _check_range("seq_len", length)
    # OPT's table has two rows more than positions.
    most = min(model.context, model.num_positions)
    if model.positions == "learned" and length > most:
        raise InputError(f"--seq-len is {length} but {model.name} has {most} learned positions; use at most those")
    return length


def usual_attention(cluster: Cluster) -> AttentionKernel:
    """The kernel that PyTorch runs on the cluster's GPU where nobody names one."""
    return USUAL_ATTENTION.get(cluster.gpu.architecture, "flash2")


def check_attention(kernel: str, cluster: Cluster) -> None:
    """Raise InputError where the attention kernel does not run on the cluster's GPU."""
    runs_on, gpu = ATTENTION_RUNS_ON.get(kernel), cluster.gpu
    if runs_on and gpu.architecture != "other" and gpu.architecture not in runs_on:
        raise InputError(
            f"attention '{kernel}' runs on {', '.join(runs_on)} GPUs, and {gpu.name} is {gpu.architecture}; "
            f"leave it out, or use '{usual_attention(cluster)}'"
        )


def check_whole(option: str, value: object) -> None:
    """Raise InputError where the value of an option is no whole number."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"--{option} is {value!r}; it must be a whole number, e.g. 1024")


def _check_range(name: str, value: int) -> None:
    option = name.replace("_", "-")
    check_whole(option, value)
    least = int(name not in MAY_BE_ZERO)
    if value < least:
        raise InputError(f"--{option} is {value}; it must be at least {least}")
    if value > MOST[name]:
        raise InputError(f"--{option} is {value}; it must be at most {MOST[name]:,}")
