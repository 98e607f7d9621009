"""Strategies side by side: each with the micro-batch and recomputation that fit and run fastest, unless pinned."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product
from typing import TYPE_CHECKING

import numpy as np

from flopcast.errors import InputError
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.forecast import (
    Forecast,
    Row,
    best_of,
    check_specifications,
    forecast,
    frame_of,
    shown_in_a_notebook,
)
from flopcast.simulator.model import Model
from flopcast.simulator.plan import CHOICES, QUANTISED, STRATEGIES, Plan, placement
from flopcast.simulator.plan_rules import nests
from flopcast.simulator.request import Request, check_attention, check_request, checked_seq_len, usual_attention
from flopcast.simulator.space import micro_batches
from flopcast.simulator.traffic import LayerTraffic, layer_traffic

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_STRATEGIES = (*STRATEGIES, *QUANTISED)
# The global batch that published models of 10 to 100 billion parameters train with (LLaMA: 4 Mi tokens).
DEFAULT_GLOBAL_BATCH_TOKENS = 4 * 2**20
# Above this published batches end (Llama 3: 16 Mi tokens; DeepSeek-V3's 60 Mi are the exception).
MOST_GLOBAL_BATCH_TOKENS = 4 * DEFAULT_GLOBAL_BATCH_TOKENS


@dataclass(frozen=True, repr=False)
class Comparison:
    """One row per strategy, as asked; ``left_out`` says why a strategy has none, ``chosen`` what was not given.

    ``seq_len`` and ``tokens_per_gpu`` (per optimizer step) are those of every row. ``layer_traffic``: one layer's
    forward collective, of the strategies that have one.
    """

    model: Model
    cluster: Cluster
    convention: str
    num_gpus: int
    seq_len: int
    tokens_per_gpu: int
    rows: tuple[Row, ...]
    layer_traffic: tuple[LayerTraffic, ...]
    left_out: dict[str, str]
    chosen: tuple[str, ...]

    @property
    def best(self) -> Row:
        """The fastest row that fits with memory to spare, else that fits, else the one that needs least memory."""
        return best_of(self.rows)

    def to_frame(self) -> "pd.DataFrame":
        """One row per strategy: the plan's fields, then the forecast; column names carry units."""
        return frame_of(self.rows)

    def __repr__(self) -> str:
        number = len(self.rows)
        return (
            f"<Comparison of {number} strateg{'ies' if number > 1 else 'y'}: {self.model.name} on {self.num_gpus:,} x "
            f"{self.cluster.gpu.name}, {self.cluster.name}>"
        )

    def _repr_html_(self) -> str:
        return shown_in_a_notebook(repr(self), self.rows)


def compare(model: Model, cluster: Cluster, request: Request) -> Comparison:
    """Forecast each strategy at its best.

    Raises InputError where no strategy is legal, or where one that was asked for by name is not.
    """
    check_specifications(model, cluster)
    if not isinstance(request, Request):
        raise InputError(f"request is {request!r}; give a Request, e.g. Request(8)")
    cluster.check_num_gpus(request.num_gpus)
    check_request(request)
    names = request.strategies
    if isinstance(names, str) or not isinstance(names, Sequence | None):
        raise InputError(f"strategies is {names!r}; give a list, [{str(names)!r}]")
    if not all(isinstance(name, str) for name in names or ()):
        raise InputError(f"strategies is {names!r}; give a list of names, e.g. ['zero3', 'tp8']")
    if request.attention:
        check_attention(request.attention, cluster)
    model.check_expert_parallel(request.ep or 1)
    seq_len = checked_seq_len(model, request.seq_len)
    tokens = request.tokens_per_gpu or default_tokens_per_gpu(request.num_gpus, seq_len)
    candidates: dict[str, list[Plan]] = {}
    left_out: dict[str, str] = {}
    for strategy in request.strategies or DEFAULT_STRATEGIES:
        try:
            candidates[strategy.lower()] = _candidates(strategy, model, cluster, request, seq_len, tokens)
        except InputError as error:
            if request.strategies:
                raise
            left_out[strategy] = str(error)
    if not candidates:
        by_reason: dict[str, list[str]] = {}
        for strategy, why in left_out.items():
            # Said once, and not of each by name.
            by_reason.setdefault(re.sub(r"^(plan|strategy) '[^']*': ", "", why), []).append(strategy)
        raise InputError("; ".join(f"{why} (so for {', '.join(names)})" for why, names in by_reason.items()))

    flat = [plan for plans in candidates.values() for plan in plans]
    found = forecast(model, cluster, flat, request.convention)
    ends = [*accumulate(len(plans) for plans in candidates.values())]
    best = tuple(_best(found, start, end) for start, end in pairwise([0, *ends]))
    return Comparison(
        model=model,
        cluster=cluster,
        convention=request.convention,
        num_gpus=request.num_gpus,
        seq_len=seq_len,
        tokens_per_gpu=tokens,
        rows=best,
        layer_traffic=tuple(_layer_traffic(model, best, tokens)),
        left_out=left_out,
        chosen=tuple(_chosen(model, request)),
    )


def _best(found: Forecast, start: int, end: int) -> Row:
    """Of the plans from ``start`` up to ``end`` the one that :func:`best_of` takes, which alone becomes a row."""
    fits, tight = found.fits[start:end], found.tight[start:end]
    if not fits.any():
        return found.row(start + int(np.argmin(found.memory.total[start:end])))
    preferred = fits & ~tight if np.any(fits & ~tight) else fits
    return found.row(start + int(np.argmin(np.where(preferred, found.step_s[start:end], np.inf))))


def default_tokens_per_gpu(num_gpus: int, seq_len: int) -> int:
    """Whole sequences per GPU that bring the global batch near 4 Mi tokens, at least one."""
    return whole_sequences(DEFAULT_GLOBAL_BATCH_TOKENS / (num_gpus * seq_len)) * seq_len


def whole_sequences(number: float) -> int:
    """The nearest whole number of sequences per GPU, at least one, and above 15 of four significant bits.

    So that it divides into micro-batches on any number of GPUs: 171 is 9 x 19, 176 is 16 x 11.
    """
    unit: int = 2 ** max(math.floor(math.log2(max(number, 1))) - 3, 0)
    return max(round(number / unit), 1) * unit


def _candidates(
    strategy: str, model: Model, cluster: Cluster, request: Request, seq_len: int, tokens: int
) -> list[Plan]:
    """Every micro-batch, recomputation, sequence and expert parallelism that the request leaves open."""
    pp = request.pp
    fields = placement(strategy, request.num_gpus, cluster.gpus_per_node, pp=pp)
    if fields["gather_bits"] == 4 and fields["parameter_shard"] == 1:
        raise InputError(f"strategy '{strategy}': one GPU holds all parameters, so there is no gather to quantise")
    tp = int(fields["tp"])
    ways = tp * pp
    if request.num_gpus % ways:
        pipeline = f" x pp={pp}" if pp > 1 else ""
        raise InputError(f"strategy '{strategy}': tp={tp}{pipeline} does not divide --gpus {request.num_gpus}")
    for block in model.kinds:
        block.check_tensor_parallel(tp)
    sequences, rest = divmod(tokens * ways, seq_len)
    if rest or not sequences:
        raise InputError(
            f"{tokens} tokens per GPU are {tokens * ways} per data-parallel rank, not a whole number of sequences of "
            f"{seq_len}; set --tokens-per-gpu to a multiple of {seq_len // math.gcd(seq_len, ways)}"
        )
    tried = [request.micro_batch] if request.micro_batch else micro_batches(seq_len, sequences)
    if sequences % tried[0]:
        raise InputError(
            f"--micro-batch is {request.micro_batch}: it does not divide the {sequences} sequences per data-parallel "
            f"rank and step ({tokens} tokens per GPU x {ways} / {seq_len}); choose a divisor"
        )
    if request.schedule == "interleaved" and not request.micro_batch:
        # It runs micro-batches by as many as there are stages; where none will do, the plan says so.
        tried = [b for b in tried if sequences // b % pp == 0] or tried
    usual = ["full"] if request.recompute_layers else list(CHOICES["recompute"])
    recomputes = [request.recompute] if request.recompute else usual
    attention = request.attention or usual_attention(cluster)
    return [
        Plan(
            **fields,  # type: ignore[arg-type]
            seq_len=seq_len,
            micro_batch=micro_batch,
            grad_accum=sequences // micro_batch,
            ep=ep,
            whole_experts=whole,
            virtual_pp=request.virtual_pp,
            schedule=request.schedule,
            recompute=recompute,  # type: ignore[arg-type]
            recompute_layers=request.recompute_layers,
            sequence_parallel=sequence_parallel,
            gradient_bits=request.gradient_bits,
            precision=request.precision,
            attention=attention,
            compiled=request.compiled,
            fused_kernels=request.fused_kernels,
        )
        for micro_batch, recompute, sequence_parallel, (ep, whole) in product(
            tried,
            recomputes,
            (False, True) if tp > 1 and seq_len % tp == 0 else (False,),
            _expert_parallel(model, fields, request.ep),
        )
        if sequence_parallel or tp == 1 or ep == 1 or seq_len % tp
    ]


def _expert_parallel(model: Model, fields: dict[str, int | str], asked: int | None) -> list[tuple[int, bool]]:
    """Ranks that share out experts, split or whole: those asked for, or all that experts, ranks and shards divide by.

    What is asked for stands even where nothing divides by it: the plan says why not.
    """
    tp = int(fields["tp"])
    ranks = int(fields["num_gpus"]) // (tp * int(fields["pp"]))
    shards = [int(fields[f"{name}_shard"]) for name in ("parameter", "gradient", "optimizer")]

    def sizes(folded: int) -> list[int]:
        most = math.gcd(model.num_experts, ranks * folded) if model.num_experts else 1
        divisors = [ep for ep in range(1, most + 1) if most % ep == 0]
        return [ep for ep in divisors if all(nests(ep, shard * folded) for shard in shards)]

    found = [(ep, False) for ep in sizes(1)] + [(ep, True) for ep in sizes(tp) if ep > 1 and tp > 1]
    return [(ep, whole) for ep, whole in found if asked in (None, ep)] or [(asked or 1, False)]


def _layer_traffic(model: Model, rows: Sequence[Row], tokens: int) -> list[LayerTraffic]:
    """The two rows of the report's table: tensor parallelism, and parameters gathered in the node."""
    tensor = [row for row in rows if row.plan["tp"] > 1]
    in_node = [row for row in rows if row.strategy == "zero3-node" and row.plan["parameter_shard"] > 1]
    return [layer_traffic(model, row.strategy, row.plan["tp"], tokens, row.plan["ep"]) for row in tensor + in_node]


def _chosen(model: Model, request: Request) -> list[str]:
    names = ["seq_len", "tokens_per_gpu", "micro_batch", "recompute", "attention"]
    names += ["ep"] if model.num_experts else []
    return [name for name in names if getattr(request, name) is None]
