"""A plan: where parameters, gradients, optimizer state and work are placed. :class:`Plans` holds many, as arrays."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from flopcast.errors import InputError, nearest
from flopcast.simulator.engines import Engine
from flopcast.simulator.plain import make_plain
from flopcast.simulator.plan_rules import check_combinations

Recompute = Literal["none", "selective", "full"]
Precision = Literal["bf16", "fp8"]
Schedule = Literal["1f1b", "gpipe", "interleaved", "zero-bubble"]
Dispatcher = Literal["alltoall", "deepep"]
CudaGraphs = Literal["none", "partial", "full"]
AttentionKernel = Literal["unfused", "triton", "flash1", "flash2", "flash3", "flash4", "cudnn"]
Column: TypeAlias = NDArray[np.int64] | NDArray[np.bool_] | NDArray[np.str_]

FLAGS = (
    *("sequence_parallel", "whole_experts", "overlap_tensor", "overlap_expert", "overlap_update", "sliced_update"),
    *("fused_kernels", "compiled"),
)

# The choices of each named field, in the order of the integer codes that Plans holds.
CHOICES: dict[str, tuple[str, ...]] = {
    "recompute": get_args(Recompute),
    "precision": get_args(Precision),
    "schedule": get_args(Schedule),
    "dispatcher": get_args(Dispatcher),
    "cuda_graphs": get_args(CudaGraphs),
    "attention": get_args(AttentionKernel),
    "engine": get_args(Engine),
}
STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "zero3-node", "hsdp", "tp8")
# What others call a strategy, for whoever types that.
KNOWN_AS = {
    "dp": "ddp",
    "fsdp": "zero3",
    "fsdp2": "zero3",
    "full-shard": "zero3",
    "zero-3": "zero3",
    "zero-2": "zero2",
    "shard-grad-op": "zero2",
    "zero-1": "zero1",
    "distributed-optimizer": "zero1",
    "hybrid-shard": "hsdp",
    "hpz": "zero3-node",
    "zero++": "zero3-node",
}
QUANTISABLE = ("zero3", "zero3-node", "hsdp")
QUANTISED = tuple(f"{name}+q4" for name in QUANTISABLE)
# Of the other numbers of a plan none is below 1.
MAY_BE_ZERO = ("recompute_layers", "prefetch", "state_bytes")


@dataclass(frozen=True)
class Plan:
    """One placement of a training step on ``num_gpus`` GPUs.

    Ranks are laid out tensor parallel first, then context, data, pipeline (Megatron's order). The three shard sizes
    count ranks of the data-parallel group (context-parallel ranks included): 1 is replicated, ``shard_ranks`` over all.

    ``ep`` of those ranks, neighbours, share out the experts of a mixture: each holds 1/ep of them, whose copies the
    shards then count among the shard_ranks / ep ranks that hold the same. Tensor-parallel ranks split every expert, or
    hold ``whole_experts`` and are among those that share them out, so that ep may be as large as tp x shard_ranks
    (Megatron Core's expert_tensor_parallel_size=1; arXiv:2504.14960).

    ``dispatcher``: how their tokens get there, a copy to each expert ("alltoall") or one to each node that has any of
    a token's experts, forwarded inside it meanwhile ("deepep": DeepSeek-V3, arXiv:2412.19437, section 3.2.2; Megatron
    Core's flex dispatcher). ``dispatch_bits``: width of what is sent to experts, activations and then gradients of
    their results: 16, or 8 with a scale per 128 (section 3.3.3); what comes back has 16.

    ``seq_len``: tokens per sequence. ``micro_batch``: sequences per rank and pass. ``grad_accum``: passes per optimizer
    step. ``gradient_bits``: width at which gradients are reduced. ``gather_bits``: 16, or 4 for the NF4 all-gather.
    ``fused_kernels``: normalisation and rotary positions run in the hand-written kernels of ``kernels/``, else eagerly;
    ``overlap_tensor``: tensor-parallel communication runs in chunks beside its products (asynchronous TP, userbuffers);
    ``overlap_expert``: tokens go to experts and back beside another micro-batch's computation, each forward but the
    first being run together with a backward (Megatron Core's overlap_moe_expert_parallel_comm, DeepSeek's DualPipe);
    ``overlap_update``: parameters updated in shards (zero1, zero2) are gathered beside the next forward (Megatron's
    overlap_param_gather), not all before it; ``sliced_update``: they and their gradients are exchanged tensor by tensor
    in lists of one slice per rank, each copied apart (nanotron's ZeRO-1); ``compiled``: torch.compile fuses all
    pointwise work. ``cuda_graphs``: what is replayed in place of being launched: nothing, of every layer what has the
    same sizes in every pass ("partial": all but a mixture's exchanges and experts), or all passes ("full").
    ``prefetch``: units whose gather may run ahead of use; 0 leaves all of them exposed.
    ``bucket_bytes``: size of a gradient bucket where parameters are replicated (PyTorch DDP's 25 MiB, Megatron's all).
    ``state_bytes``: optimizer bytes per parameter on the GPU (fp32 master, momentum and variance: 12; on the host: 0).
    ``recompute_layers``: where recompute is full, the first layers of every model chunk that are computed again, the
    rest being kept (Megatron-LM's --recompute-method block with --recompute-num-layers); 0 is all of them.
    ``engine``: the software whose habits of moving and holding tensors are forecast (simulator/engines.py).
    """

    strategy: str
    num_gpus: int
    seq_len: int
    micro_batch: int = 1
    grad_accum: int = 1
    tp: int = 1
    cp: int = 1
    ep: int = 1
    pp: int = 1
    virtual_pp: int = 1
    schedule: Schedule = "1f1b"
    sequence_parallel: bool = False
    whole_experts: bool = False
    overlap_tensor: bool = False
    overlap_expert: bool = False
    overlap_update: bool = True
    sliced_update: bool = False
    parameter_shard: int = 1
    gradient_shard: int = 1
    optimizer_shard: int = 1
    recompute: Recompute = "none"
    recompute_layers: int = 0
    precision: Precision = "bf16"
    gradient_bits: int = 32
    gather_bits: int = 16
    dispatcher: Dispatcher = "alltoall"
    dispatch_bits: int = 16
    attention: AttentionKernel = "flash2"
    fused_kernels: bool = True
    compiled: bool = False
    cuda_graphs: CudaGraphs = "none"
    prefetch: int = 1
    bucket_bytes: int = 25 * 2**20
    state_bytes: int = 12
    engine: Engine = "fsdp2"

    def __post_init__(self) -> None:
        make_plain(self)
        _check_fields(self)
        check_combinations(self)

    @property
    def shard_ranks(self) -> int:
        """Ranks that parameters, gradients and optimizer state may be split over: data times context parallel."""
        return self.num_gpus // (self.tp * self.pp)

    @property
    def folded(self) -> int:
        """Ranks among which experts are shared out for every data-parallel rank: the tensor-parallel ones, or 1."""
        return self.tp if self.whole_experts else 1

    @property
    def dp(self) -> int:
        """Data-parallel replicas, each of which reads its own sequences."""
        return self.shard_ranks // self.cp

    @property
    def global_batch_sequences(self) -> int:
        """Sequences per optimizer step over all GPUs."""
        return self.dp * self.micro_batch * self.grad_accum


FIELDS = tuple(field.name for field in fields(Plan))
# The least and the most that each number of a plan may be: more is a slip, and would not fit the arithmetic.
LEAST = {name: int(name not in MAY_BE_ZERO) for name in FIELDS if name not in {"strategy", *CHOICES, *FLAGS}}
MOST = dict.fromkeys(LEAST, 10**6) | {
    **dict.fromkeys(("num_gpus", "parameter_shard", "gradient_shard", "optimizer_shard"), 10**8),
    **{"seq_len": 10**9, "grad_accum": 10**12, "bucket_bytes": 10**12},
}
MOST_TOKENS_PER_STEP = 10**15


def placement(strategy: str, num_gpus: int, gpus_per_node: int, tp: int = 1, pp: int = 1) -> dict[str, int | str]:
    """The fields of :class:`Plan` that a strategy's name stands for, on nodes of ``gpus_per_node`` GPUs.

    Raises InputError for an unknown name, for "+q4" on a strategy that gathers nothing, and for a ``tp`` that is not
    that of a tpN.
    """
    if not isinstance(strategy, str):
        raise InputError(f"strategy is {strategy!r}; it must be a name, e.g. 'zero3'")
    name, plus, suffix = strategy.lower().partition("+")
    tensor, hybrid = (re.fullmatch(rf"{prefix}([1-9]\d{{0,4}})", name) for prefix in ("tp", "hsdp"))
    name = "hsdp" if hybrid else name
    if plus and (suffix != "q4" or name not in QUANTISABLE):
        raise InputError(
            f"strategy '{strategy}': '+q4' is for strategies that gather parameters in every pass: "
            + ", ".join(QUANTISED)
        )
    if tensor:
        if tp not in (1, int(tensor[1])):
            raise InputError(f"strategy '{strategy}' and tp={tp} contradict each other; leave tp out")
        tp = int(tensor[1])
    elif name not in STRATEGIES:
        known_as = KNOWN_AS.get(name.replace("_", "-"))
        offer = f"it is called '{known_as}' here" if known_as else nearest(name, [*STRATEGIES, *QUANTISED])
        raise InputError(f"strategy '{strategy}' is unknown; {offer}")
    for what, value in (("num_gpus", num_gpus), ("gpus_per_node", gpus_per_node), ("tp", tp), ("pp", pp)):
        if not isinstance(value, int | np.integer) or value < 1:
            raise InputError(f"{what} is {value!r}; it must be a whole number of at least 1")
    num_gpus, gpus_per_node, tp, pp = int(num_gpus), int(gpus_per_node), int(tp), int(pp)
    world = max(num_gpus // (tp * pp), 1)
    node = min(max(gpus_per_node // tp, 1), world)
    hybrid_ranks = int(hybrid[1]) if hybrid else node
    shards = {
        "ddp": (1, 1, 1),
        "zero1": (1, 1, world),
        "zero2": (1, world, world),
        "zero3": (world, world, world),
        "zero3-node": (node, world, world),
        "hsdp": (hybrid_ranks,) * 3,
    }.get(name, (1, 1, world))
    return {
        "strategy": strategy.lower(),
        "num_gpus": num_gpus,
        "tp": tp,
        "pp": pp,
        "parameter_shard": shards[0],
        "gradient_shard": shards[1],
        "optimizer_shard": shards[2],
        "gather_bits": 4 if suffix else 16,
    }


def _check_fields(plan: Plan) -> None:
    for name, choices in CHOICES.items():
        if not isinstance(chosen := getattr(plan, name), str) or chosen not in choices:
            raise InputError(f"plan {name} is '{chosen}'; choose one of {', '.join(choices)}")
    for name in FLAGS:
        if not isinstance(flag := getattr(plan, name), bool):
            raise InputError(f"plan {name} is {flag!r}; it must be True or False")
    if not isinstance(plan.strategy, str):
        raise InputError(f"plan strategy is {plan.strategy!r}; it must be a name, e.g. 'zero3'")
    for name, least in LEAST.items():
        if not isinstance(value := getattr(plan, name), int) or value < least:
            raise InputError(f"plan {name} is {value!r}; it must be a whole number of at least {least}")
        if value > MOST[name]:
            raise InputError(f"plan {name} is {value}; it must be at most {MOST[name]:,}")
    tokens = plan.num_gpus * plan.seq_len * plan.micro_batch * plan.grad_accum
    if tokens > MOST_TOKENS_PER_STEP * plan.tp * plan.cp * plan.pp:
        raise InputError(
            f"plan seq_len={plan.seq_len} x micro_batch={plan.micro_batch} x grad_accum={plan.grad_accum} on "
            f"{plan.num_gpus} GPUs is more than {MOST_TOKENS_PER_STEP:,} tokens per step; lower one of them"
        )


def as_column(name: str, values: Iterable[Any]) -> Column:
    """Values of one field of :class:`Plan` as :class:`Plans` holds them."""
    if name in CHOICES:
        codes = {choice: code for code, choice in enumerate(CHOICES[name])}
        return np.array([codes[value] for value in values], dtype=np.int64)
    kind = np.str_ if name == "strategy" else np.bool_ if name in FLAGS else np.int64
    return np.array(list(values), dtype=kind)


class Plans:
    """Many plans as arrays: every field of :class:`Plan` under its own name, named choices as codes into CHOICES.

    The arrays broadcast against each other to ``shape``: all of length N for a list of N plans; for a space of plans
    each along the axes it varies on, and 1 along the others. What is computed from them then has the axes that it
    depends on and no more. ``zeros`` is a constant in such a computation, of the shape of ``num_gpus``. ``folded``
    as in :class:`Plan`; ``expert_tp``: ranks that split an expert.
    """

    strategy: NDArray[np.str_]
    num_gpus: NDArray[np.int64]
    seq_len: NDArray[np.int64]
    micro_batch: NDArray[np.int64]
    grad_accum: NDArray[np.int64]
    tp: NDArray[np.int64]
    cp: NDArray[np.int64]
    ep: NDArray[np.int64]
    pp: NDArray[np.int64]
    virtual_pp: NDArray[np.int64]
    schedule: NDArray[np.int64]
    sequence_parallel: NDArray[np.bool_]
    whole_experts: NDArray[np.bool_]
    overlap_tensor: NDArray[np.bool_]
    overlap_expert: NDArray[np.bool_]
    overlap_update: NDArray[np.bool_]
    sliced_update: NDArray[np.bool_]
    parameter_shard: NDArray[np.int64]
    gradient_shard: NDArray[np.int64]
    optimizer_shard: NDArray[np.int64]
    recompute: NDArray[np.int64]
    recompute_layers: NDArray[np.int64]
    precision: NDArray[np.int64]
    gradient_bits: NDArray[np.int64]
    gather_bits: NDArray[np.int64]
    dispatcher: NDArray[np.int64]
    dispatch_bits: NDArray[np.int64]
    attention: NDArray[np.int64]
    fused_kernels: NDArray[np.bool_]
    compiled: NDArray[np.bool_]
    cuda_graphs: NDArray[np.int64]
    prefetch: NDArray[np.int64]
    bucket_bytes: NDArray[np.int64]
    state_bytes: NDArray[np.int64]
    engine: NDArray[np.int64]

    def __init__(self, **columns: Column) -> None:
        if columns.keys() != set(FIELDS) or not all(isinstance(column, np.ndarray) for column in columns.values()):
            raise InputError("Plans takes an array for every field of a plan; of Plan objects make one by Plans.of")
        for name, column in columns.items():
            setattr(self, name, column)
        self.shape = np.broadcast_shapes(*(column.shape for column in columns.values()))
        self.shard_ranks = self.num_gpus // (self.tp * self.pp)
        self.dp = self.shard_ranks // self.cp
        self.folded = np.where(self.whole_experts, self.tp, 1)
        self.expert_tp = self.tp // self.folded

    def __len__(self) -> int:
        if len(self.shape) != 1:
            raise InputError(f"the plans lie along axes, {self.shape}, and are no list; take one of them by Plans.pick")
        return int(self.shape[0])

    def __repr__(self) -> str:
        return f"<Plans: {' x '.join(f'{number:,}' for number in self.shape)}>"

    @property
    def zeros(self) -> NDArray[np.float64]:
        """Zero for every plan."""
        return np.zeros(self.num_gpus.shape)

    @classmethod
    def of(cls, plans: Iterable[Plan]) -> "Plans":
        """The plans as arrays, in their order. Raises InputError where there are none, or something else."""
        rows = list(plans) if isinstance(plans, Iterable) else [plans]
        for row in rows:
            if not isinstance(row, Plan):
                raise InputError(f"plans has {row!r}; give a Plan, a list of them, or Plans")
        if not rows:
            raise InputError("there are no plans; give at least one Plan")
        return cls(**{name: as_column(name, [getattr(row, name) for row in rows]) for name in FIELDS})

    def pick(self, where: tuple[NDArray[np.int64], ...]) -> "Plans":
        """The list of plans at those places of ``shape``, one index array for each axis."""
        return Plans(**{name: np.broadcast_to(getattr(self, name), self.shape)[where] for name in FIELDS})

    def describe(self, index: int) -> dict[str, Any]:
        """One plan's fields as plain values, named choices by name."""
        described: dict[str, Any] = {}
        for name in FIELDS:
            value = getattr(self, name)[index]
            if name in CHOICES:
                value = CHOICES[name][value]
            described[name] = str(value) if isinstance(value, str) else value.item()
        return described

    def has(self, **choice: str) -> NDArray[np.bool_]:
        """Where a named field has that choice, e.g. ``plans.has(recompute="full")``."""
        ((field, value),) = choice.items()
        if value not in CHOICES.get(field, ()):
            raise InputError(f"plans have no {field}={value!r}; ask for a named choice, e.g. recompute='full'")
        return np.asarray(getattr(self, field) == CHOICES[field].index(value))
