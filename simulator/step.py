"""The closed form: seconds of one optimizer step, from its operations, for all plans at once."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator.broadcast import Sum, joined, only_axis
from flopcast.simulator.busy_links import Links
from flopcast.simulator.constants import Constants
from flopcast.simulator.cost import Costs, host_seconds
from flopcast.simulator.engines import has_habit
from flopcast.simulator.hardware import Hardware
from flopcast.simulator.operation import Array, AttentionCore, Collective, Gemm, Operation
from flopcast.simulator.overlap import Communication, Compute, Passes, Traffic, Waits
from flopcast.simulator.pipeline import SCHEDULES, Pipeline
from flopcast.simulator.plan import Plans
from flopcast.simulator.sends import Sends
from flopcast.simulator.stages import BACKWARD, DIRECTIONS, SECTIONS, Moves, Pass, Stages, hide_exchanges

SERIAL = ("tensor", "context", "expert", "pipeline")


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


def step_time(
    operations: Sequence[Operation],
    plans: Plans,
    num_layers: NDArray[np.int64],
    hardware: Hardware,
    constants: Constants,
) -> StepTime:
    """Seconds of one optimizer step under each plan.

    A stage's micro-batch takes (device^4 + host^4)^(1/4) forward and backward plus exposed gathers and reductions. Of
    m micro-batches a step takes m times those of the stage that sets the pace, what the pipeline's longest chain of
    passes takes beyond that (:mod:`flopcast.simulator.pipeline`), and what happens once. ``num_layers`` is L of each
    plan's model.
    """
    zeros = plans.zeros
    passes = {(section, direction): Pass(zeros) for section in SECTIONS for direction in DIRECTIONS}
    moved: list[tuple[Operation, Array]] = []
    sends = Sends(plans, hardware.gpus_per_node, constants)
    optimizer = zeros
    exchanges = Links(zeros)
    cost = Costs(hardware, constants)
    for operation in operations:
        if not operation.takes_time:
            continue
        work = operation.work
        time = cost.seconds(operation)
        if operation.phase == "step":
            optimizer = optimizer + time * operation.count
            continue
        if isinstance(work, Collective) and work.purpose == "pipeline":
            sends.add(operation, time)
            continue
        if isinstance(work, Collective) and work.purpose in ("gather", "reduce"):
            moved.append((operation, time))
        if isinstance(work, Collective) and work.purpose == "expert":
            exchanges.add(time, operation.count, work.group.num_nodes > 1)
        section = "layer" if operation.section == "state" else operation.section
        direction = "forward" if operation.phase == "forward" else "weight" if operation.of_weights else "inputs"
        _charge(passes[section, direction], operation, time * _exposed_share(operation, plans), constants)

    moves = Moves(moved, plans)
    alone = hide_exchanges(passes, exchanges, moves, plans, constants)
    stages = Stages(passes, plans, num_layers)
    schedules = _Schedules(stages, moves, sends, plans, constants)
    return _combine(stages, schedules, alone, optimizer, plans, constants)


def _exposed_share(operation: Operation, plans: Plans) -> Array | float:
    """Of tensor- and context-parallel communication, what its own chunks do not hide."""
    work = operation.work
    if not isinstance(work, Collective) or work.purpose not in ("tensor", "context"):
        return 1.0
    return chunk_share(work, plans)


def chunk_share(work: Collective, plans: Plans) -> Array:
    """What is exposed of communication among tensor- or context-parallel ranks: all, or one chunk of as many as ranks.

    Where it overlaps, each of n ranks' parts is sent while the part before it is multiplied, and one has nothing to
    hide behind (Wang et al., ASPLOS 2023, "Overlap communication with dependent computation via decomposition").
    """
    if work.purpose == "context":
        return np.where(has_habit("hides_context", plans.engine), 1.0 / plans.cp, 1.0)
    return np.where(plans.overlap_tensor, 1.0 / plans.tp, 1.0)


def exposed_interleaved_send(plans: Plans, constants: Constants) -> Array:
    """What a stage of several chunks waits for of a send: what the others lose to it, or all where the engine waits."""
    return np.where(has_habit("waits_for_sends", plans.engine), 1.0, constants.send_leak)


def _charge(target: Pass, operation: Operation, time: Array, constants: Constants) -> None:
    work = operation.work
    if operation.when not in ("every", "later"):
        return
    is_collective = isinstance(work, Collective)
    target.sums["launch"].add(operation.count * host_seconds(operation, constants))
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


@dataclass(frozen=True)
class _Exposed:
    """What depends on the schedule: the stage's sends, and the step's exposed gathers and reductions and its bubble."""

    sent: Array
    gather: Array
    reduce: Array
    bubble: Array

    @classmethod
    def of(cls, sent: Array, waits: Waits, bubble: Array, m: NDArray[np.int64]) -> "_Exposed":
        gather = waits.first + (m - 1) * waits.later + m * waits.backward
        reduce = waits.reduce_last if np.all(m == 1) else (m - 1) * waits.reduce + waits.reduce_last
        return cls(sent, gather, reduce, bubble)


class _Schedules:
    """What the pipeline schedules among the plans cost, family by family."""

    def __init__(self, stages: Stages, moves: Moves, sends: Sends, plans: Plans, constants: Constants) -> None:
        self._stages, self._moves, self._sends, self._plans, self._constants = stages, moves, sends, plans, constants
        self.busy = [stages.pace(*(end[d].busy for end in stages.ends)) for d in (0, 1)]
        self._traffic = {"first": moves.of_first(plans)}
        if np.any(plans.pp > 1):
            self._traffic["last"] = moves.of_last(stages)
        self._whole = self._own(BACKWARD)

    def exposed(self) -> _Exposed:
        """Of every plan, whatever its schedule."""
        plans, whole, several = self._plans, self._whole, self._plans.pp > 1
        found = [] if np.all(several) else [
            (~several, _Exposed.of(plans.zeros, whole["first"].waits(1), plans.zeros, plans.grad_accum))
        ]  # fmt: skip
        if np.any(several):
            others = self._others(BACKWARD)
            families: dict[tuple[str, ...], Callable[[Sequence[str]], list[_Exposed]]] = {
                ("1f1b", "gpipe"): lambda names: self._family(names, plans, whole, others),
                ("zero-bubble",): self._zero_bubble,
                ("interleaved",): lambda names: self._family(names, _interleaved_of(plans), whole, others),
            }
            for family, of in families.items():
                where = {name: several & plans.has(schedule=name) for name in family}
                names = [name for name, here in where.items() if np.any(here)]
                if names:
                    found += zip([where[name] for name in names], of(names), strict=True)
        return _Exposed(*(joined([(here, getattr(e, f.name)) for here, e in found]) for f in fields(_Exposed)))

    def _zero_bubble(self, names: Sequence[str]) -> list[_Exposed]:
        apart = [(d,) for d in BACKWARD]
        return self._family(names, self._plans, self._own(*apart), self._others(*apart))

    def _family(
        self, names: Sequence[str], plans: Plans, own: dict[str, Communication], others: Communication
    ) -> list[_Exposed]:
        """Of each of several schedules that share what their passes consist of, on the one that paces and on others."""
        stages, m = self._stages, plans.grad_accum
        is_interleaved = "interleaved" in names
        chunks = plans.virtual_pp if is_interleaved else 1
        # What of a send another chunk's passes hide is still to be waited for by the next stage.
        share = exposed_interleaved_send(plans, self._constants) if is_interleaved else 1.0
        forth, back = self._sends.waited("forward", share), self._sends.waited("backward", share)
        sent = stages.pace((chunks - 1) * forth.far + chunks * back.near, chunks * forth.near + (chunks - 1) * back.far)
        waits = {end: communication.waits(chunks) for end, communication in (*own.items(), ("middle", others))}
        pipeline = Pipeline(
            *stages.kinds(forth, back, chunks, "zero-bubble" in names, waits),
            stages.layers(chunks),
            head=stages.part("head", "forward", *BACKWARD).busy,
            latency=self._sends.latency(share),
            sends={"forward": forth, "backward": back},
            passing=others.passing(chunks),
        )
        found = _Exposed.of(sent, stages.waits_of_pace(waits), plans.zeros, m)
        own_time = m * (self.busy[0] + self.busy[1] + sent) + found.gather + found.reduce
        return [replace(found, bubble=SCHEDULES[name](pipeline, plans) - own_time) for name in names]

    def _own(self, *backward: tuple[str, ...]) -> dict[str, Communication]:
        """On the first and the last stage, whose backward consists of one part or two."""
        return {end: self._communication(end, moved, *backward) for end, moved in self._traffic.items()}

    def _others(self, *backward: tuple[str, ...]) -> Communication:
        """On a stage between the first and the last."""
        return self._communication("middle", self._moves.of_middle(self._stages.mean_share), *backward)

    def _communication(self, stage: str, moved: Traffic, *backward: tuple[str, ...]) -> Communication:
        stages = self._stages

        def compute(*directions: str) -> Compute:
            layer = end = stages.layer_busy(*directions)
            if stage != "middle":
                head = stages.part("head", *directions).busy
                end = head if stage == "last" else np.where(self._plans.pp > 1, layer, head)
            whole = stages.part("fullest" if stage == "first" else stage, *directions).busy
            return Compute(whole, self._constants, layer, end)

        again = [compute(*directions) for directions in backward]
        return Communication(moved, Passes(compute("forward"), again[0], again[-1]), self._plans, self._constants)


def _interleaved_of(plans: Plans) -> Plans:
    """Those of a space of plans that are interleaved, or all of them where that is no slice of it."""
    here = plans.has(schedule="interleaved")
    axis = only_axis(here)
    if axis is None or plans.virtual_pp.shape != here.shape:
        return plans
    some = copy(plans)
    some.schedule, some.virtual_pp = (np.compress(here.ravel(), c, axis) for c in (plans.schedule, plans.virtual_pp))
    return some


def _combine(
    stages: Stages, schedules: _Schedules, alone: Array, optimizer: Array, plans: Plans, constants: Constants
) -> StepTime:
    m, busy, exposed = plans.grad_accum, schedules.busy, schedules.exposed()
    return StepTime(
        passes=m * (busy[0] + busy[1] + exposed.sent) + alone,
        gather_communication=exposed.gather,
        reduce_communication=exposed.reduce,
        bubble=exposed.bubble,
        optimizer=optimizer,
        overhead=plans.zeros + constants.step_overhead_s,
        of_passes=partial(_of_passes, stages, m, busy, exposed.sent, alone),
    )


def _of_passes(
    stages: Stages, num_passes: NDArray[np.int64], busy: Sequence[Array], sent: Array, alone: Array, cause: str
) -> Array:
    """Seconds of the passes that are spent on a cause, and on sends between stages or launches."""
    if cause == "pipeline":
        return np.asarray(num_passes * sent)
    if cause == "launch":
        device = [stages.pace(*(end[d].device for end in stages.ends)) for d in (0, 1)]
        # Where the host is never waited for, rounding would leave a trace of either sign.
        return np.asarray(num_passes * np.maximum(busy[0] + busy[1] - device[0] - device[1], 0.0))
    last, first = (end[0].spent(cause) + end[1].spent(cause) for end in stages.ends)
    return np.asarray(num_passes * stages.pace(last, first) + (alone if cause == "expert" else 0.0))
