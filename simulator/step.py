"""The closed form: seconds of one optimizer step, from its operations, for all plans at once."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator import placement
from flopcast.simulator.constants import Constants
from flopcast.simulator.cost import seconds
from flopcast.simulator.hardware import Hardware
from flopcast.simulator.operation import Array, AttentionCore, Collective, Gemm, Operation
from flopcast.simulator.plan import Plans

SERIAL = ("tensor", "context", "pipeline")
# What remains of 1F1B's bubble: ZB-H1 leaves (p-1)(F + B - W) of (p-1)(F + B + W) (arXiv:2401.10241, table 1).
ZERO_BUBBLE_SHARE = 1 / 3


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step by cause, arrays over plans; the parts add up to ``total``.

    ``gemm``, ``attention`` and ``pointwise`` include recomputation, whose part of them ``recompute`` repeats (it is
    not added again). ``launch`` is where the host holds the GPU up; the communications are what is exposed of them.
    """

    gemm: Array
    attention: Array
    pointwise: Array
    launch: Array
    tensor_communication: Array
    pipeline_communication: Array
    gather_communication: Array
    reduce_communication: Array
    bubble: Array
    optimizer: Array
    overhead: Array
    recompute: Array

    @property
    def parts(self) -> dict[str, Array]:
        """The disjoint parts, in the order a reader meets them."""
        return {name: value for name, value in vars(self).items() if name != "recompute"}

    @property
    def total(self) -> Array:
        """Seconds of the step."""
        return np.asarray(np.sum(list(self.parts.values()), axis=0))

    @property
    def exposed_communication(self) -> Array:
        """Seconds in which the GPU waits for communication, the pipeline's bubble not counted."""
        return (
            self.tensor_communication
            + self.pipeline_communication
            + self.gather_communication
            + self.reduce_communication
        )


class _Pass:
    """Seconds of one pass over one micro-batch on one section of the model, by cause."""

    def __init__(self, num_plans: int) -> None:
        self.by_cause: defaultdict[str, Array] = defaultdict(lambda: np.zeros(num_plans))
        self.launch = np.zeros(num_plans)
        self.recompute = np.zeros(num_plans)

    @property
    def device(self) -> Array:
        return sum(self.by_cause.values(), np.zeros_like(self.launch))


class _Links:
    """Seconds of collectives that may be hidden, apart by the links they keep busy, which work side by side.

    ``end_inside``, ``end_between``: those of one layer and of the root, which open a forward or close a backward.
    """

    def __init__(self, num_plans: int) -> None:
        self.inside = np.zeros(num_plans)
        self.between = np.zeros(num_plans)
        self.end_inside = np.zeros(num_plans)
        self.end_between = np.zeros(num_plans)

    def add(self, time: Array, count: Array, crosses_nodes: NDArray[np.bool_]) -> None:
        end = np.where(count > 0, np.minimum(time, time * count), 0.0)
        self.between = self.between + np.where(crosses_nodes, time * count, 0.0)
        self.inside = self.inside + np.where(crosses_nodes, 0.0, time * count)
        self.end_between = self.end_between + np.where(crosses_nodes, end, 0.0)
        self.end_inside = self.end_inside + np.where(crosses_nodes, 0.0, end)

    def __add__(self, other: "_Links") -> "_Links":
        links = _Links(len(self.inside))
        for name in vars(links):
            setattr(links, name, getattr(self, name) + getattr(other, name))
        return links

    def exposed(self, compute: Array, prefetch: NDArray[np.int64], constants: Constants) -> Array:
        """What of them the computation beside them does not hide.

        E + max(0, C - s T) + leak min(C / s, T): the ends E have nothing to hide behind; of the rest C, what
        goes on beside the computation T has the share s of NVLink or the network that the step leaves it, what is
        left over has all of it. Without prefetch nothing is hidden, and with it no more is exposed than without.
        """
        ends = self.end_inside + self.end_between
        inside, between = self._hidden
        left = np.maximum(inside - constants.nvlink_share * compute, between - constants.network_share * compute)
        overlapped = ends + np.maximum(left, 0.0) + self.contention(compute, constants)
        alone = self.inside + self.between
        return np.where(prefetch > 0, np.minimum(overlapped, alone), alone)

    def contention(self, compute: Array, constants: Constants) -> Array:
        """What running beside them costs the computation: leak min(C / s, T)."""
        inside, between = self._hidden
        beside = np.maximum(inside / constants.nvlink_share, between / constants.network_share)
        return constants.overlap_leak * np.minimum(beside, compute)

    @property
    def _hidden(self) -> tuple[Array, Array]:
        return np.maximum(self.inside - self.end_inside, 0.0), np.maximum(self.between - self.end_between, 0.0)


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
    size = len(plans)
    passes = {(s, p): _Pass(size) for s in ("layer", "embedding", "head") for p in ("forward", "backward")}
    gathers = {key: _Links(size) for key in ("first", "every", "later", "backward")}
    reduces = {key: _Links(size) for key in ("every", "last")}
    optimizer = np.zeros(size)
    for operation in operations:
        time = np.asarray(seconds(operation, hardware, constants))
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
    return np.where(plans.overlap_tensor, constants.tensor_overlap_share, 1.0)


def _charge(target: _Pass, operation: Operation, time: Array, constants: Constants) -> None:
    work = operation.work
    occurs = operation.count if operation.when in ("every", "later") else operation.count * 0.0
    is_collective = isinstance(work, Collective)
    host = constants.collective_launch_s if is_collective else operation.num_kernels * constants.launch_s
    target.launch = target.launch + occurs * host
    if isinstance(work, Collective):
        if work.purpose not in SERIAL:
            return
        cause = "pipeline" if work.purpose == "pipeline" else "tensor"
    elif isinstance(work, Gemm):
        cause = "gemm"
    else:
        cause = "attention" if isinstance(work, AttentionCore) else "pointwise"
    target.by_cause[cause] += time * occurs
    if operation.phase == "recompute" and not isinstance(work, Collective):
        target.recompute = target.recompute + time * occurs


def _combine(
    passes: dict[tuple[str, str], _Pass],
    gathers: dict[str, _Links],
    reduces: dict[str, _Links],
    optimizer: Array,
    plans: Plans,
    num_layers: NDArray[np.int64],
    constants: Constants,
) -> StepTime:
    single = plans.pp == 1
    dispatch = np.where(plans.compiled, constants.compiled_launch_share, 1.0)
    fullest = -(-num_layers // plans.pp)
    last = placement.layers_of_last_stage(num_layers, plans.pp) / fullest

    def stage(direction: str, layers: Array, embedding: Array, head: Array) -> tuple[Array, Array, dict[str, Array]]:
        shares = {"layer": layers, "embedding": embedding, "head": head}
        chosen = [(passes[section, direction], share) for section, share in shares.items()]
        causes = {
            cause: sum((p.by_cause[cause] * share for p, share in chosen), np.zeros(len(plans)))
            for cause in ("gemm", "attention", "pointwise", "tensor", "pipeline", "recompute")
            if cause != "recompute"
        }
        causes["recompute"] = sum((p.recompute * share for p, share in chosen), np.zeros(len(plans)))
        device = sum((p.device * share for p, share in chosen), np.zeros(len(plans)))
        launch = dispatch * sum((p.launch * share for p, share in chosen), np.zeros(len(plans)))
        return device, busy_seconds(device, launch), causes

    one, zero = np.ones(len(plans)), np.zeros(len(plans))
    directions = ("forward", "backward")
    first_stage = [stage(d, one, one, single * 1.0) for d in directions]
    last_stage = [stage(d, last, single * 1.0, one) for d in directions]
    middle = [stage(d, one, zero, zero) for d in directions]
    time_first, time_last, time_middle = (sum(s[1] for s in stages) for stages in (first_stage, last_stage, middle))
    head_paces = time_last > time_first
    others = np.where(single, 0.0, np.minimum(time_first, time_last) + np.maximum(plans.pp - 2, 0) * time_middle)
    share = np.where(plans.has(schedule="zero-bubble"), ZERO_BUBBLE_SHARE, 1.0)
    m = plans.grad_accum

    def of_pace(pick: int, cause: str) -> Array:
        return np.where(head_paces, last_stage[pick][2][cause], first_stage[pick][2][cause])

    causes = {
        c: m * (of_pace(0, c) + of_pace(1, c))
        for c in ("gemm", "attention", "pointwise", "tensor", "pipeline", "recompute")
    }
    device = [np.where(head_paces, last_stage[d][0], first_stage[d][0]) for d in (0, 1)]
    busy = [np.where(head_paces, last_stage[d][1], first_stage[d][1]) for d in (0, 1)]

    def hidden_behind(links: _Links, compute: Array) -> Array:
        return links.exposed(compute, plans.prefetch, constants)

    # Backward gathers and reductions run side by side with the same computation.
    both = gathers["backward"] + reduces["every"]
    final = both + reduces["last"]
    backward_every, backward_final = hidden_behind(both, busy[1]), hidden_behind(final, busy[1])
    gather_alone = hidden_behind(gathers["backward"], busy[1])
    gather = (
        hidden_behind(gathers["first"], busy[0])
        + m * hidden_behind(gathers["every"], busy[0])
        + (m - 1) * hidden_behind(gathers["later"], busy[0])
        + m * gather_alone
    )
    reduce = (m - 1) * (backward_every - gather_alone) + (backward_final - gather_alone)
    # On its way through the other stages a micro-batch waits for their gathers, unless the parameters stay gathered,
    # and the last one is slowed by their reductions, or waits for them where nothing overlaps.
    waits = np.where(
        plans.parameter_shard > 1,
        hidden_behind(gathers["first"], busy[0]) + hidden_behind(gathers["every"], busy[0]) + gather_alone,
        0.0,
    )
    reduced = reduces["every"] + reduces["last"]
    alone = np.where(plans.parameter_shard > 1, reduced.inside + reduced.between, 0.0)
    slowed = np.where(plans.prefetch > 0, reduced.contention(busy[1], constants), alone)
    others = others + np.maximum(plans.pp - 1, 0) * (waits + slowed)
    return StepTime(
        gemm=causes["gemm"],
        attention=causes["attention"],
        pointwise=causes["pointwise"],
        launch=m * (busy[0] + busy[1] - device[0] - device[1]),
        tensor_communication=causes["tensor"],
        pipeline_communication=causes["pipeline"],
        gather_communication=gather,
        reduce_communication=reduce,
        bubble=others * share / plans.virtual_pp,
        optimizer=optimizer,
        overhead=np.full(len(plans), constants.step_overhead_s),
        recompute=causes["recompute"],
    )


def busy_seconds(device: Array, dispatch: Array) -> Array:
    """Time of a pass in which stretches are bound by the device and others by the host: (d^p + h^p)^(1/p), p = 4."""
    larger = np.maximum(np.maximum(device, dispatch), 1e-30)
    return np.asarray(larger * ((device / larger) ** 4 + (dispatch / larger) ** 4) ** 0.25)
