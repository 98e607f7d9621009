"""From peak to achieved: where a played step's time went, and what the links and the compute stream were busy with."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator.blocks.residual import ResidualBlock
from flopcast.simulator.blocks.state_space import StateSpace
from flopcast.simulator.conventions import model_flop_per_token
from flopcast.simulator.forecast import Forecast
from flopcast.simulator.model import Model
from flopcast.simulator.operation import Gemm
from flopcast.simulator.timeline.events import Event, events_of
from flopcast.simulator.timeline.play import Timeline, mean_seconds
from flopcast.simulator.timeline.rank import Place

COMMUNICATIONS = tuple(f"{p}_communication" for p in ("tensor", "context", "expert", "pipeline", "gather", "reduce"))
ORDER = (
    *(
        "fp8",
        "gemm_efficiency",
        "attention_efficiency",
        "pointwise",
        "recompute",
        "launch",
        *COMMUNICATIONS,
        "contention",
    ),
    *("bubble", "stragglers", "optimizer", "overhead"),
)


@dataclass(frozen=True)
class Part:
    """One step of the waterfall."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Streams:
    """Shares of the time from a rank's first kernel to its last, as Holistic Trace Analysis has them.

    ``compute``: a computation runs. ``communication``: only a collective does. ``idle``: nothing does; the three add
    up to 1. ``overlap``: of the time of collectives, that beside a computation. ``speed``: the share of its usual speed
    at which the rank computes, ``link`` that at which its NICs send; ``stage``: of the pipeline.
    """

    rank: int
    num_ranks: int
    stage: int
    speed: float
    link: float
    compute: float
    communication: float
    idle: float
    overlap: float


@dataclass(frozen=True)
class ExposedCollective:
    """Seconds of one kind of collective, averaged over all GPUs: under way, and waited for by the compute stream."""

    collective: str
    group: str
    phase: str
    busy_s: float
    exposed_s: float


def waterfall(timeline: Timeline) -> list[Part]:
    """The step of the average GPU, from the model's FLOPs at peak ("ideal_at_peak") on; adds up to the step.

    The ideal is the causal convention's FLOPs over the dense 16-bit peak, so that it is MFU times the step. What
    products in 8 bits gain at their own peak ("fp8") is below zero. GEMM and attention efficiency are what kernels
    take beyond. Stragglers are what slow nodes, slow links and jitter add to the step; all other parts are those of
    the undisturbed one. Parts of no length are left out.
    """
    found, plan = timeline.forecast, timeline.plan
    seconds = defaultdict(float, mean_seconds(timeline.even_ranks))
    seconds["stragglers"] = timeline.step_s - timeline.undisturbed_s
    tokens = plan.seq_len * plan.global_batch_sequences / plan.num_gpus
    peak = found.cluster.gpu.tensor_flop_per_s
    products = model_flop_per_token(found.model, plan.seq_len, "6n").total * tokens / peak
    ideal = model_flop_per_token(found.model, plan.seq_len, "causal").total * tokens / peak
    seconds["fp8"] = -_gained_in_8_bits(found) * products
    # A state space's recurrence runs as matrix products.
    recurrences = 3 * _recurrence_flop_per_token(found.model, plan.seq_len) * tokens / peak
    seconds["gemm_efficiency"] = seconds.pop("gemm", 0.0) - products - recurrences - seconds["fp8"]
    seconds["attention_efficiency"] = seconds.pop("attention", 0.0) - (ideal - products - recurrences)
    assert set(seconds) <= set(ORDER), sorted(set(seconds) - set(ORDER))
    parts = [Part(name, seconds[name]) for name in ORDER if abs(seconds[name]) > 1e-12 * timeline.step_s]
    rest = timeline.step_s - ideal - sum(part.seconds for part in parts)
    assert abs(rest) < 1e-6 * timeline.step_s, f"{rest} s of the step are not accounted for"
    largest = max(range(len(parts)), key=lambda i: parts[i].seconds)
    parts[largest] = Part(parts[largest].name, parts[largest].seconds + rest)
    return [Part("ideal_at_peak", ideal), *parts]


def _recurrence_flop_per_token(model: Model, seq_len: int) -> float:
    """Forward FLOPs per token that no parameter accounts for, and no attention does."""
    return sum(
        number * block.score_flop_per_token(seq_len, causal=True)
        for block, number in model.kinds.items()
        if isinstance(block, ResidualBlock) and isinstance(block.parts()[0], StateSpace)
    )


def _gained_in_8_bits(found: Forecast) -> float:
    """What share of the products' time at the 16-bit peak those at the 8-bit peak save."""
    flop = {True: 0.0, False: 0.0}
    for operation in found.operations:
        if isinstance(operation.work, Gemm):
            flop[bool(operation.work.fp8.flat[0])] += float((operation.work.flop * operation.count).flat[0])
    gpu = found.cluster.gpu
    saved = 1 - gpu.tensor_flop_per_s / gpu.fp8_flop_per_s if gpu.fp8_flop_per_s else 0.0
    return saved * flop[True] / sum(flop.values())


def exposed_communication_s(timeline: Timeline) -> float:
    """Seconds that the average GPU waits for collectives or is slowed by them, as the closed form counts them.

    Those of the undisturbed step: what stragglers add is not communication's.
    """
    seconds = mean_seconds(timeline.even_ranks)
    return sum(seconds.get(cause, 0.0) for cause in (*COMMUNICATIONS, "contention"))


def exposed_collectives(timeline: Timeline) -> list[ExposedCollective]:
    """Every kind of collective of the undisturbed step, the most exposed first."""
    total = sum(rank.place.num_ranks for rank in timeline.even_ranks)
    busy: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    exposed: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    for rank in timeline.even_ranks:
        share = rank.place.num_ranks / total
        for key, spent in rank.exposed.items():
            exposed[key] += spent * share
        for play in rank.plays:
            for key, spent in play.segment.exposed.items():
                busy[key] += spent * play.factor * share
        for sent in rank.sent:
            begun = sent.transfer.started_s
            assert begun is not None
            busy[sent.kind.collective, sent.kind.group, sent.kind.phase] += (sent.transfer.ended_s - begun) * share
    rows = [ExposedCollective(*key, busy[key], exposed[key]) for key in busy]
    return sorted(rows, key=lambda row: (-row.exposed_s, row.collective, row.group, row.phase))


def streams(timeline: Timeline) -> list[Streams]:
    """What each rank class's GPU was busy with."""
    return [_shares(rank.place, [e for e in events_of(rank) if e.end_s > e.start_s]) for rank in timeline.ranks]


def _shares(place: Place, found: Sequence[Event]) -> Streams:
    computing = _union([e for e in found if e.stream == "compute"])
    communicating = _union([e for e in found if e.stream != "compute"])
    any_kernel = _union(found)
    whole = max(e.end_s for e in found) - min(e.start_s for e in found)
    both = computing + communicating - any_kernel
    return Streams(
        rank=place.rank,
        num_ranks=place.num_ranks,
        stage=place.stage,
        speed=place.speed,
        link=place.link,
        compute=computing / whole,
        communication=(any_kernel - computing) / whole,
        idle=1 - any_kernel / whole,
        overlap=both / communicating if communicating else 0.0,
    )


def _union(found: Sequence[Event]) -> float:
    """Seconds covered by at least one event."""
    if not found:
        return 0.0
    edges: NDArray[np.float64] = np.array(sorted((e.start_s, e.end_s) for e in found))
    reach = np.maximum.accumulate(edges[:, 1])
    gaps = np.maximum(edges[1:, 0] - reach[:-1], 0.0)
    return float(reach[-1] - edges[0, 0] - np.sum(gaps))
