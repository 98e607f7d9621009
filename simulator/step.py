"""The closed form: seconds of one optimizer step, from its operations, for all plans at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator import placement
from flopcast.simulator.broadcast import Sum
from flopcast.simulator.constants import Constants
from flopcast.simulator.cost import Costs, host_seconds
from flopcast.simulator.hardware import Hardware
from flopcast.simulator.operation import Array, AttentionCore, Collective, Gemm, Operation
from flopcast.simulator.overlap import Compute, Links
from flopcast.simulator.plan import Plans

SERIAL = ("tensor", "context", "expert", "pipeline")
# What remains of 1F1B's bubble: ZB-H1 leaves (p-1)(F + B - W) of (p-1)(F + B + W) (arXiv:2401.10241, table 1).
ZERO_BUBBLE_SHARE = 1 / 3

CAUSES = ("gemm", "attention", "pointwise", "tensor", "expert", "pipeline")


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, arrays over plans, in parts that add up to ``total``.

    ``passes`` is every micro-batch's forward and backward on the stage that sets the pace; ``of_passes`` gives what
    of it is spent on one of CAUSES, or "launch", where the host holds the GPU up. The communications are what is
    exposed of them. ``of_passes("recompute")`` repeats a part of gemm, attention and pointwise, and is not added again.
    """

    passes: Array
    gather_communication: Array
    reduce_communication: Array
    bubble: Array
    optimizer: Array
    overhead: Array
    of_passes: Callable[[str], Array]

    @cached_property
    def total(self) -> Array:
        """Seconds of the step."""
        once = Sum([self.optimizer, self.overhead])
        for part in (self.passes, self.gather_communication, self.reduce_communication, self.bubble):
            once.add(part)
        return once.total

    @cached_property
    def parts(self) -> dict[str, Array]:
        """The disjoint parts, in the order a reader meets them."""
        communications = {cause: f"{cause}_communication" for cause in ("tensor", "expert", "pipeline")}
        causes = ("gemm", "attention", "pointwise", "launch", *communications)
        return {communications.get(cause, cause): self.of_passes(cause) for cause in causes} | {
            "gather_communication": self.gather_communication,
            "reduce_communication": self.reduce_communication,
            "bubble": self.bubble,
            "optimizer": self.optimizer,
            "overhead": self.overhead,
        }

    @property
    def exposed_communication(self) -> Array:
        """Seconds in which the GPU waits for communication, the pipeline's bubble not counted."""
        return sum((part for name, part in self.parts.items() if name.endswith("_communication")), np.zeros(1))


class _Pass:
    """Seconds of one pass over one micro-batch on one section of the model: by cause, to launch, and recomputed."""

    def __init__(self, zeros: Array) -> None:
        self.sums = {name: Sum([zeros]) for name in (*CAUSES, "launch", "recompute")}


class _Stage:
    """One direction of one micro-batch on one pipeline stage: the sections it has, each with its share."""

    def __init__(self, sections: Sequence[tuple[_Pass, Array]]) -> None:
        self.causes = {
            name: Sum(section.sums[name].total * share for section, share in sections).total
            for name in (*CAUSES, "launch", "recompute")
        }
        self.device = Sum(self.causes[cause] for cause in CAUSES).total
        self.busy = busy_seconds(self.device, self.causes["launch"])


def step_time(
    operations: Sequence[Operation],
    plans: Plans,
    num_layers: NDArray[np.int64],
    hardware: Hardware,
    constants: Constants,
) -> StepTime:
    """Seconds of one optimizer step under each plan.

    A stage's micro-batch takes max(device, dispatch) forward and backward plus exposed gathers and reductions; the
    slowest stage sets the pace, the others' share of the first and last micro-batch is the bubble:
    step = m t_slowest + (sum of stages - t_slowest) / v + once per step. ``num_layers`` is L of each plan's model.
    """
    zeros = plans.zeros
    passes = {(s, p): _Pass(zeros) for s in ("layer", "embedding", "head") for p in ("forward", "backward")}
    gathers = {key: Links(zeros) for key in ("first", "every", "later", "backward")}
    reduces = {key: Links(zeros) for key in ("every", "last")}
    optimizer = zeros
    cost = Costs(hardware, constants)
    for operation in operations:
        time = cost.seconds(operation)
        work = operation.work
        if operation.phase == "step":
            optimizer = optimizer + time * operation.count
            continue
        if isinstance(work, Collective) and work.purpose in ("gather", "reduce"):
            crosses = work.group.num_nodes > 1
            if work.purpose == "reduce":
                reduces[operation.when].add(time, operation.count, crosses)
            else:
                key = "backward" if operation.phase == "backward" else operation.when
                gathers[key].add(time, operation.count, crosses)
        section = "layer" if operation.section == "state" else operation.section
        target = passes[section, "forward" if operation.phase == "forward" else "backward"]
        _charge(target, operation, time * _exposed_share(operation, plans, constants), constants)

    return _combine(passes, gathers, reduces, optimizer, plans, num_layers, constants)


def _exposed_share(operation: Operation, plans: Plans, constants: Constants) -> Array | float:
    """Of communication within a layer, what its own chunks (tensor) or another model chunk (interleaved sends) hide."""
    work = operation.work
    if not isinstance(work, Collective) or work.purpose not in SERIAL:
        return 1.0
    if work.purpose == "pipeline":
        return np.where(plans.has(schedule="interleaved"), constants.overlap_leak, 1.0)
    if work.purpose == "expert":
        return 1.0
    return chunk_share(work, plans)


def chunk_share(work: Collective, plans: Plans) -> Array:
    """What is exposed of communication among tensor- or context-parallel ranks: all, or one chunk of as many as ranks.

    Where it overlaps, each of n ranks' parts is sent while the part before it is multiplied, and one has nothing to
    hide behind (Wang et al., ASPLOS 2023, "Overlap communication with dependent computation via decomposition").
    """
    ranks = plans.cp if work.purpose == "context" else plans.tp
    return np.where(plans.overlap_tensor, 1.0 / ranks, 1.0)


def _charge(target: _Pass, operation: Operation, time: Array, constants: Constants) -> None:
    work = operation.work
    if operation.when not in ("every", "later"):
        return
    is_collective = isinstance(work, Collective)
    target.sums["launch"].add(operation.count * host_seconds(operation, constants))
    cause: str
    if isinstance(work, Collective):
        if work.purpose not in SERIAL:
            return
        cause = work.purpose if work.purpose in ("expert", "pipeline") else "tensor"
    elif isinstance(work, Gemm):
        cause = "gemm"
    else:
        cause = "attention" if isinstance(work, AttentionCore) else "pointwise"
    target.sums[cause].add(time * operation.count)
    if operation.phase == "recompute" and not is_collective:
        target.sums["recompute"].add(time * operation.count)


def _combine(
    passes: dict[tuple[str, str], _Pass],
    gathers: dict[str, Links],
    reduces: dict[str, Links],
    optimizer: Array,
    plans: Plans,
    num_layers: NDArray[np.int64],
    constants: Constants,
) -> StepTime:
    single = (plans.pp == 1) * 1.0
    last_share = placement.layers_of_last_stage(num_layers, plans.pp) / -(-num_layers // plans.pp)
    one = plans.zeros + 1

    def stage(layers: Array, embedding: Array, head: Array) -> tuple[_Stage, _Stage]:
        shares = {"layer": layers, "embedding": embedding, "head": head}
        forward, backward = (
            _Stage([(passes[section, direction], share) for section, share in shares.items()])
            for direction in ("forward", "backward")
        )
        return forward, backward

    first, last, middle = stage(one, one, single), stage(last_share, single, one), stage(one, 0 * one, 0 * one)
    time_first, time_last, time_middle = (forward.busy + backward.busy for forward, backward in (first, last, middle))
    head_paces = time_last > time_first
    others = np.where(single > 0, 0.0, np.minimum(time_first, time_last) + np.maximum(plans.pp - 2, 0) * time_middle)
    m = plans.grad_accum

    def of_passes(cause: str) -> Array:
        if cause == "launch":
            device = np.where(head_paces, last[0].device + last[1].device, first[0].device + first[1].device)
            return np.asarray(m * (busy[0] + busy[1] - device))
        ends = [stages[0].causes[cause] + stages[1].causes[cause] for stages in (last, first)]
        return np.asarray(m * np.where(head_paces, *ends))

    busy = [np.where(head_paces, last[d].busy, first[d].busy) for d in (0, 1)]
    forward, backward = (Compute(seconds, constants) for seconds in busy)

    def exposed(links: Links, beside: Compute) -> Array:
        return links.exposed(beside, plans.prefetch, constants)

    # Backward gathers and reductions run side by side with the same computation.
    both = gathers["backward"] + reduces["every"]
    backward_every, backward_final = exposed(both, backward), exposed(both + reduces["last"], backward)
    gather_every = exposed(gathers["every"], forward)
    gather_first = np.where(plans.overlap_update, exposed(gathers["first"], forward), gathers["first"].alone)
    gather_alone = exposed(gathers["backward"], backward)
    gather = Sum([gather_first, m * (gather_every + gather_alone), (m - 1) * exposed(gathers["later"], forward)]).total
    reduce = (m - 1) * (backward_every - gather_alone) + (backward_final - gather_alone)
    # On its way through the other stages a micro-batch waits for their gathers, unless the parameters stay gathered,
    # and the last one is slowed by their reductions, or waits for them where nothing overlaps.
    sharded = plans.parameter_shard > 1
    waits = np.where(sharded, gather_first + gather_every + gather_alone, 0.0)
    reduced = reduces["every"] + reduces["last"]
    slowed = np.where(
        plans.prefetch > 0, reduced.contention(backward, constants), np.where(sharded, reduced.alone, 0.0)
    )
    others = others + np.maximum(plans.pp - 1, 0) * (waits + slowed)
    share = np.where(plans.has(schedule="zero-bubble"), ZERO_BUBBLE_SHARE, 1.0) / plans.virtual_pp
    return StepTime(
        passes=m * (busy[0] + busy[1]),
        gather_communication=gather,
        reduce_communication=reduce,
        bubble=others * share,
        optimizer=optimizer,
        overhead=plans.zeros + constants.step_overhead_s,
        of_passes=of_passes,
    )


def busy_seconds(device: Array, dispatch: Array) -> Array:
    """Time of a pass in which stretches are bound by the device and others by the host: (d^p + h^p)^(1/p), p = 4."""
    larger = np.maximum(np.maximum(device, dispatch), 1e-30)
    ratio = np.minimum(device, dispatch) / larger
    return np.asarray(larger * np.sqrt(np.sqrt(1 + (ratio * ratio) ** 2)))
