"""The closed form: seconds of one optimizer step, from its operations, for all plans at once."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator import placement
from flopcast.simulator.broadcast import Sum
from flopcast.simulator.constants import Constants
from flopcast.simulator.cost import Costs
from flopcast.simulator.hardware import Hardware
from flopcast.simulator.operation import Array, AttentionCore, Collective, Gemm, Operation
from flopcast.simulator.overlap import Communication, Compute, Links, Passes, Passing, Traffic, Waits
from flopcast.simulator.pipeline import SCHEDULES, Pipeline, Stage
from flopcast.simulator.plan import Plans

SERIAL = ("tensor", "context", "expert", "pipeline")
CAUSES = ("gemm", "attention", "pointwise", "tensor", "expert")
SECTIONS = ("layer", "embedding", "head")
# "inputs" and "weight" make up a backward pass: zero bubble puts off what gives the gradients of the weights.
DIRECTIONS = ("forward", "inputs", "weight")
BACKWARD = ("inputs", "weight")


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

    @cached_property
    def device(self) -> Array:
        """Seconds of the device, once all is added."""
        return Sum(self.sums[cause].total for cause in CAUSES).total

    @cached_property
    def launch(self) -> Array:
        """Seconds of the host, once all is added."""
        return self.sums["launch"].total


class _Part:
    """One direction of one micro-batch on one pipeline stage: the sections it has, each with its share."""

    def __init__(self, sections: Sequence[tuple[_Pass, Array]], dispatch: Array) -> None:
        self._sections = sections
        self.device = Sum(section.device * share for section, share in sections).total
        self.busy = busy_seconds(self.device, dispatch * Sum(section.launch * share for section, share in sections).total)

    def spent(self, cause: str) -> Array:
        """Seconds of one of CAUSES or "recompute"."""
        return Sum(section.sums[cause].total * share for section, share in self._sections).total


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
    moved: list[tuple[Operation, Array]] = []
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
            moved.append((operation, time))
        section = "layer" if operation.section == "state" else operation.section
        direction = "forward" if operation.phase == "forward" else "weight" if operation.of_weights else "inputs"
        _charge(passes[section, direction], operation, time * _exposed_share(operation, plans, constants), constants)

    stages = _Stages(passes, plans, num_layers, constants)
    schedules = _Schedules(stages, _Moves(moved, zeros), sends, plans, constants)
    return _combine(stages, schedules, optimizer, plans, constants)


class _Moves:
    """Gathers and reductions by the passes they occur in: of all layers of the fullest stage, and of the root."""

    def __init__(self, moved: Sequence[tuple[Operation, Array]], zeros: Array) -> None:
        self._of: defaultdict[tuple[str, bool], Links] = defaultdict(lambda: Links(zeros))
        for operation, time in moved:
            work = operation.work
            assert isinstance(work, Collective)
            backward = work.purpose == "gather" and operation.phase == "backward"
            key = "backward" if backward else f"{work.purpose} {operation.when}"
            self._of[key, operation.section == "head"].add(time, operation.count, work.group.num_nodes > 1)

    def of_pace(self, plans: Plans, stages: "_Stages") -> Traffic:
        """Those of the stage that sets the pace.

        In a pipeline the root is the last stage's head or the first one's embedding: the one opens a backward pass and
        stands at the end of a forward, the other opens a forward and closes a backward.
        """
        if not np.any(plans.pp > 1):
            return self._traffic(lambda key: self._of[key, False] + self._of[key, True])
        several = plans.pp > 1
        is_last, is_first = several & stages.head_paces, several & ~stages.head_paces
        layers = stages.pace(stages.last_share, stages.last_share * 0 + 1)

        def both(key: str) -> Links:
            layer_at_end, root_at_end = (~is_last, ~is_first) if key == "backward" else (several | True, ~is_last)
            return self._of[key, False].of_layers(layers, layer_at_end) + self._of[key, True].of_root(root_at_end)

        return self._traffic(both)

    def of_middle(self, layers: Array) -> Traffic:
        """Those of a stage with a share of the fullest one's layers and nothing else."""
        return self._traffic(lambda key: self._of[key, False].of_layers(layers))

    @staticmethod
    def _traffic(links: Callable[[str], Links]) -> Traffic:
        every, reduce = links("gather every"), links("reduce every")
        return Traffic(
            first=links("gather first") + every,
            later=links("gather later") + every,
            backward=links("backward"),
            reduce=reduce,
            reduce_last=reduce + links("reduce last"),
        )


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
        self._passes, self._nothing = passes, plans.zeros
        self._parts: dict[tuple[str, ...], _Part] = {}
        self.dispatch = np.where(plans.compiled, constants.compiled_launch_share, 1.0)
        one, single = plans.zeros + 1, (plans.pp == 1) * 1.0
        fullest = placement.layers_of_fullest_stage(num_layers, plans.pp)
        last_share = placement.layers_of_last_stage(num_layers, plans.pp) / fullest
        self.last_share = last_share
        self._shares = {
            "first": {"layer": one, "embedding": one, "head": single},
            "middle": {"layer": one},
            "last": {"layer": last_share, "embedding": single, "head": one},
            "head": {"head": one},
        }
        full = np.where(num_layers % plans.pp == 0, plans.pp, num_layers % plans.pp)
        middles = np.maximum(plans.pp - 2, 0)
        num_full = np.clip(full - 1, 0, middles)
        self.between = {"num_full": num_full, "num_short": middles - num_full, "short": (fullest - 1) / fullest}
        self.mean_share = 1 - (middles - num_full) / np.maximum(middles, 1) / fullest
        self.ends = [(self.part(end, "forward"), self.part(end, *BACKWARD)) for end in ("last", "first")]
        last, first = (forward.busy + backward.busy for forward, backward in self.ends)
        self.head_paces = last > first

    def part(self, stage: str, *directions: str) -> _Part:
        """One direction of a pass, "inputs" and "weight" together being a whole backward."""
        key = (stage, *directions)
        if key not in self._parts:
            shares = self._shares[stage].items()
            sections = [(self._passes[name, d], share) for name, share in shares for d in directions]
            self._parts[key] = _Part(sections, self.dispatch)
        return self._parts[key]

    def pace(self, last: Array, first: Array) -> Array:
        """That of the two which sets the pace."""
        return np.where(self.head_paces, last, first)

    def kinds(self, forth: Array, back: Array, num_chunks: Array | int, split: bool) -> dict[str, Stage]:
        """The stages of a pipeline, which wait ``forth`` and ``back`` for a send to the next and the previous one."""
        more, once = num_chunks, num_chunks - 1
        sends = {
            "first": (more * forth, once * back), "middle": (more * forth, more * back), "last": (once * forth, more * back)
        }  # fmt: skip
        stages = {}
        for name, (there, again) in sends.items():
            forward = self.part(name, "forward").busy + there
            if split:
                inputs, weight = self.part(name, "inputs").busy, self.part(name, "weight").busy
            else:
                inputs, weight = self.part(name, *BACKWARD).busy, self._nothing
            stages[name] = Stage(forward, inputs + again, weight)
        return stages


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

    def where(self, here: NDArray[np.bool_], other: "_Exposed") -> "_Exposed":
        return _Exposed(*(np.where(here, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))


class _Schedules:
    """What the pipeline schedules among the plans cost, family by family."""

    def __init__(
        self, stages: _Stages, moves: _Moves, sends: dict[str, Array], plans: Plans, constants: Constants
    ) -> None:
        self._stages, self._moves, self._sends, self._plans, self._constants = stages, moves, sends, plans, constants
        self._traffic = moves.of_pace(plans, stages)
        self.busy = [stages.pace(*(end[d].busy for end in stages.ends)) for d in (0, 1)]
        self._whole = self._communication(self._traffic, *self.busy)

    def exposed(self) -> _Exposed:
        """Of every plan, whatever its schedule."""
        plans = self._plans
        found = [_Exposed.of(plans.zeros, self._whole.waits(1), plans.zeros, plans.grad_accum)]
        if np.any(plans.pp > 1):
            if np.all(plans.pp > 1):
                found = []
            whole, passing = self._whole, self._passing(BACKWARD)
            families: list[tuple[tuple[str, ...], Callable[[], _Exposed]]] = [
                (("1f1b", "gpipe"), lambda: self._family(("1f1b", "gpipe"), whole, passing)),
                (("interleaved",), lambda: self._family(("interleaved",), whole, passing)),
                (("zero-bubble",), self._zero_bubble),
            ]
            for names, family in families:
                here = (plans.pp > 1) & np.logical_or.reduce([plans.has(schedule=name) for name in names])
                if np.any(here):
                    found = [family().where(here, found[0]) if found else family()]
        return found[0]

    def _zero_bubble(self) -> _Exposed:
        stages = self._stages
        apart = (stages.pace(*(stages.part(end, d).busy for end in ("last", "first"))) for d in BACKWARD)
        own = self._communication(self._traffic, self.busy[0], *apart)
        return self._family(("zero-bubble",), own, self._passing(*((d,) for d in BACKWARD)))

    def _family(self, names: Sequence[str], own: Communication, passing: Passing) -> _Exposed:
        """Of schedules that share what their passes consist of."""
        stages, plans, m = self._stages, self._plans, self._plans.grad_accum
        is_interleaved = names == ("interleaved",)
        chunks = plans.virtual_pp if is_interleaved else 1
        # What of a send another chunk's passes hide is still to be waited for by the next stage.
        share = self._constants.overlap_leak if is_interleaved else 1.0
        host = stages.dispatch * self._constants.collective_launch_s
        forth, back = (busy_seconds(self._sends[d] * share, host) for d in ("forward", "backward"))
        sent = stages.pace((chunks - 1) * forth + chunks * back, chunks * forth + (chunks - 1) * back)
        waits = own.waits(chunks)
        pipeline = Pipeline(
            **stages.kinds(forth, back, chunks, names == ("zero-bubble",)),
            **stages.between,
            head=stages.part("head", "forward", *BACKWARD).busy,
            latency=self._sends["forward"] * (1 - share),
            waits=waits,
            passing=passing,
        )
        passes = m * (self.busy[0] + self.busy[1] + sent)
        found: Array | None = None
        for name in names:
            here = plans.has(schedule=name)
            if np.any(here):
                bubble = SCHEDULES[name](pipeline, plans) - passes
                found = bubble if found is None else np.where(here, bubble, found)
        assert found is not None
        return _Exposed.of(sent, waits, found, m)

    def _passing(self, *backward: tuple[str, ...]) -> Passing:
        """On a stage between the first and the last, whose backward consists of one part or two."""
        moved = self._moves.of_middle(self._stages.mean_share)
        forward, *again = (self._stages.part("middle", *d).busy for d in (("forward",), *backward))
        return self._communication(moved, forward, *again).passing()

    def _communication(
        self, moved: Traffic, forward: Array, inputs: Array, weight: Array | None = None
    ) -> Communication:
        beside = Compute(inputs, self._constants)
        apart = beside if weight is None else Compute(weight, self._constants)
        passes = Passes(Compute(forward, self._constants), beside, apart)
        return Communication(moved, passes, self._plans, self._constants)


def _combine(stages: _Stages, schedules: _Schedules, optimizer: Array, plans: Plans, constants: Constants) -> StepTime:
    m, busy, exposed = plans.grad_accum, schedules.busy, schedules.exposed()
    device = [stages.pace(*(end[d].device for end in stages.ends)) for d in (0, 1)]

    def of_passes(cause: str) -> Array:
        if cause == "pipeline":
            return np.asarray(m * exposed.sent)
        if cause == "launch":
            return np.asarray(m * (busy[0] + busy[1] - device[0] - device[1]))
        last, first = (end[0].spent(cause) + end[1].spent(cause) for end in stages.ends)
        return np.asarray(m * stages.pace(last, first))

    return StepTime(
        passes=m * (busy[0] + busy[1] + exposed.sent),
        gather_communication=exposed.gather,
        reduce_communication=exposed.reduce,
        bubble=exposed.bubble,
        optimizer=optimizer,
        overhead=plans.zeros + constants.step_overhead_s,
        of_passes=of_passes,
    )


def busy_seconds(device: Array, dispatch: Array) -> Array:
    """Time of a pass in which stretches are bound by the device and others by the host: (d^p + h^p)^(1/p), p = 4."""
    larger = np.maximum(np.maximum(device, dispatch), 1e-30)
    ratio = np.minimum(device, dispatch) / larger
    return np.asarray(larger * np.sqrt(np.sqrt(1 + (ratio * ratio) ** 2)))
