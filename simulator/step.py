"""The closed form: seconds of one optimizer step, from its operations, for all plans at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator import placement
from flopcast.simulator.broadcast import Sum
from flopcast.simulator.constants import Constants
from flopcast.simulator.cost import Costs
from flopcast.simulator.hardware import Hardware
from flopcast.simulator.operation import Array, AttentionCore, Collective, Gemm, Operation
from flopcast.simulator.overlap import Compute, Exposed, Links
from flopcast.simulator.pipeline import Pipeline, Stage, step_seconds
from flopcast.simulator.plan import Plans

SERIAL = ("tensor", "context", "expert", "pipeline")
CAUSES = ("gemm", "attention", "pointwise", "tensor", "expert")
SECTIONS = ("layer", "embedding", "head")
# "inputs" and "weight" make up a backward pass: zero bubble puts off what gives the gradients of the weights.
DIRECTIONS = ("forward", "inputs", "weight")


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


class _Part:
    """One direction of one micro-batch on one pipeline stage: the sections it has, each with its share."""

    def __init__(self, sections: Sequence[tuple[_Pass, Array]], dispatch: Array) -> None:
        self.causes = {
            name: Sum(section.sums[name].total * share for section, share in sections).total
            for name in (*CAUSES, "launch", "recompute")
        }
        self.device = Sum(self.causes[cause] for cause in CAUSES).total
        self.busy = busy_seconds(self.device, dispatch * self.causes["launch"])


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
    passes = {(section, direction): _Pass(zeros) for section in SECTIONS for direction in DIRECTIONS}
    gathers = {key: Links(zeros) for key in ("first", "every", "later", "backward")}
    reduces = {key: Links(zeros) for key in ("every", "last")}
    sends = {"forward": zeros, "backward": zeros}
    optimizer = zeros
    cost = Costs(hardware, constants)
    for operation in operations:
        time = cost.seconds(operation)
        work = operation.work
        if operation.phase == "step":
            optimizer = optimizer + time * operation.count
            continue
        if isinstance(work, Collective) and work.purpose == "pipeline":
            sends[operation.phase] = time
            continue
        if isinstance(work, Collective) and work.purpose in ("gather", "reduce"):
            crosses = work.group.num_nodes > 1
            if work.purpose == "reduce":
                reduces[operation.when].add(time, operation.count, crosses)
            else:
                key = "backward" if operation.phase == "backward" else operation.when
                gathers[key].add(time, operation.count, crosses)
        section = "layer" if operation.section == "state" else operation.section
        direction = "forward" if operation.phase == "forward" else "weight" if operation.of_weights else "inputs"
        _charge(passes[section, direction], operation, time * _exposed_share(operation, plans, constants), constants)

    stages = _Stages(passes, plans, num_layers, constants)
    return _combine(stages, gathers, reduces, sends, optimizer, plans, constants)


def _exposed_share(operation: Operation, plans: Plans, constants: Constants) -> Array | float:
    """Of tensor-parallel communication, what its own chunks hide."""
    work = operation.work
    if not isinstance(work, Collective) or work.purpose not in ("tensor", "context"):
        return 1.0
    return np.where(plans.overlap_tensor, constants.tensor_overlap_share, 1.0)


def _charge(target: _Pass, operation: Operation, time: Array, constants: Constants) -> None:
    work = operation.work
    if operation.when not in ("every", "later"):
        return
    is_collective = isinstance(work, Collective)
    host = constants.collective_launch_s if is_collective else operation.num_kernels * constants.launch_s
    target.sums["launch"].add(operation.count * host)
    cause: str
    if isinstance(work, Collective):
        if work.purpose not in SERIAL:
            return
        cause = "expert" if work.purpose == "expert" else "tensor"
    elif isinstance(work, Gemm):
        cause = "gemm"
    else:
        cause = "attention" if isinstance(work, AttentionCore) else "pointwise"
    target.sums[cause].add(time * operation.count)
    if operation.phase == "recompute" and not is_collective:
        target.sums["recompute"].add(time * operation.count)


class _Stages:
    """The kinds of stage of each plan's pipeline; without one, the first is all there is."""

    def __init__(
        self,
        passes: dict[tuple[str, str], _Pass],
        plans: Plans,
        num_layers: NDArray[np.int64],
        constants: Constants,
    ) -> None:
        self._passes, self._plans, self._num_layers = passes, plans, num_layers
        self.dispatch = np.where(plans.compiled, constants.compiled_launch_share, 1.0)
        one, single = plans.zeros + 1, (plans.pp == 1) * 1.0
        fullest = placement.layers_of_fullest_stage(num_layers, plans.pp)
        last_share = placement.layers_of_last_stage(num_layers, plans.pp) / fullest
        self._shares = {
            "first": {"layer": one, "embedding": one, "head": single},
            "middle": {"layer": one},
            "last": {"layer": last_share, "embedding": single, "head": one},
            "head": {"head": one},
        }
        self.ends = [(self.part(end, "forward"), self.part(end, "inputs", "weight")) for end in ("last", "first")]
        last, first = (forward.busy + backward.busy for forward, backward in self.ends)
        self.head_paces = last > first

    def part(self, stage: str, *directions: str) -> _Part:
        """One direction of a pass, "inputs" and "weight" together being a whole backward."""
        shares = self._shares[stage].items()
        return _Part([(self._passes[name, d], share) for name, share in shares for d in directions], self.dispatch)

    def pace(self, last: Array, first: Array) -> Array:
        """That of the two which sets the pace."""
        return np.where(self.head_paces, last, first)

    def pipeline(self, forth: Array, back: Array, latency: Array, split: bool) -> Pipeline:
        """The stages of a pipeline, which wait ``forth`` and ``back`` for a send to the next and the previous one."""
        plans, v = self._plans, self._plans.virtual_pp
        sends = {"first": (v * forth, (v - 1) * back), "middle": (v * forth, v * back), "last": ((v - 1) * forth, v * back)}

        def stage(name: str) -> Stage:
            there, again = sends[name]
            backward = self.part(name, "inputs", "weight").busy + again
            inputs, weight = backward, 0.0 * backward
            if split:
                inputs, weight = self.part(name, "inputs").busy + again, self.part(name, "weight").busy
            return Stage(self.part(name, "forward").busy + there, backward, inputs, weight)

        full = np.where(self._num_layers % plans.pp == 0, plans.pp, self._num_layers % plans.pp)
        num_full = np.clip(full - 1, 0, np.maximum(plans.pp - 2, 0))
        fullest = placement.layers_of_fullest_stage(self._num_layers, plans.pp)
        return Pipeline(
            *(stage(name) for name in ("first", "middle", "last")),
            num_full=num_full,
            num_short=np.maximum(plans.pp - 2, 0) - num_full,
            short=(fullest - 1) / fullest,
            head=self.part("head", "forward", "inputs", "weight").busy,
            latency=latency,
        )


def _combine(
    stages: _Stages,
    gathers: dict[str, Links],
    reduces: dict[str, Links],
    sends: dict[str, Array],
    optimizer: Array,
    plans: Plans,
    constants: Constants,
) -> StepTime:
    m, v = plans.grad_accum, plans.virtual_pp
    busy = [stages.pace(*(end[d].busy for end in stages.ends)) for d in (0, 1)]
    device = [stages.pace(*(end[d].device for end in stages.ends)) for d in (0, 1)]
    forward, backward = (Compute(seconds, constants) for seconds in busy)
    exposed = Exposed(gathers, reduces, (forward, backward, backward), plans, constants)
    gather, reduce, bubble, sent = exposed.gather, exposed.reduce, plans.zeros, plans.zeros
    if np.any(plans.pp > 1):
        split, others = plans.has(schedule="zero-bubble"), exposed.others
        if np.any(split):
            apart = [stages.pace(*(stages.part(end, d).busy for end in ("last", "first"))) for d in ("inputs", "weight")]
            inputs, weight = (Compute(seconds, constants) for seconds in apart)
            put_off = Exposed(gathers, reduces, (forward, inputs, weight), plans, constants)
            gather, reduce = np.where(split, put_off.gather, gather), np.where(split, put_off.reduce, reduce)
            others = np.where(split, put_off.others, others)
        # What of a send another chunk's passes hide is still to be waited for by the next stage.
        share = np.where(plans.has(schedule="interleaved"), constants.overlap_leak, 1.0)
        host = stages.dispatch * constants.collective_launch_s
        forth, back = (busy_seconds(sends[d] * share, host) for d in ("forward", "backward"))
        sent = np.where(plans.pp > 1, stages.pace((v - 1) * forth + v * back, v * forth + (v - 1) * back), 0.0)
        pipeline = stages.pipeline(forth, back, sends["forward"] * (1 - share), bool(np.any(split)))
        longest = step_seconds(pipeline, plans) - m * (busy[0] + busy[1] + sent)
        bubble = np.where(plans.pp > 1, longest + (plans.pp - 1) * others / v, 0.0)

    def of_passes(cause: str) -> Array:
        if cause == "pipeline":
            return np.asarray(m * sent)
        if cause == "launch":
            return np.asarray(m * (busy[0] + busy[1] - device[0] - device[1]))
        last, first = (end[0].causes[cause] + end[1].causes[cause] for end in stages.ends)
        return np.asarray(m * stages.pace(last, first))

    return StepTime(
        passes=m * (busy[0] + busy[1] + sent),
        gather_communication=gather,
        reduce_communication=reduce,
        bubble=bubble,
        optimizer=optimizer,
        overhead=plans.zeros + constants.step_overhead_s,
        of_passes=of_passes,
    )


def busy_seconds(device: Array, dispatch: Array) -> Array:
    """Time of a pass in which stretches are bound by the device and others by the host: (d^p + h^p)^(1/p), p = 4."""
    larger = np.maximum(np.maximum(device, dispatch), 1e-30)
    ratio = np.minimum(device, dispatch) / larger
    return np.asarray(larger * np.sqrt(np.sqrt(1 + (ratio * ratio) ** 2)))
