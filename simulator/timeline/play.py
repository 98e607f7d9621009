"""Plays one plan's step in SimPy and hands back what happened."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import simpy

from flopcast.simulator.cluster import Cluster
from flopcast.simulator.constants import Constants
from flopcast.simulator.forecast import Forecast, forecast, machine_constants
from flopcast.simulator.hardware import Hardware
from flopcast.simulator.model import Model
from flopcast.simulator.operation import Phase
from flopcast.simulator.plan import Plan
from flopcast.simulator.timeline.engine import Device, Link, Transfer
from flopcast.simulator.timeline.fold import Disturbance, Replicas, fold
from flopcast.simulator.timeline.passes import Passes, Segment, lay_out
from flopcast.simulator.timeline.program import Program, TransferKind, build
from flopcast.simulator.timeline.rank import Meeting, Place, Process, Rank
from flopcast.simulator.timeline.schedule import SCHEDULES, Action, one_ahead

CLOSED_FORM_TOLERANCE = 0.03


class DeadlockError(RuntimeError):
    """The schedule cannot go on: the message names the processes that wait and what each waits for."""


@dataclass(frozen=True)
class Timeline:
    """One optimizer step as it was played.

    ``ranks`` holds one entry per class of symmetric ranks, its first rank standing for all; ``step_s`` is in seconds.
    ``even_ranks`` and ``undisturbed_s`` are the same without slow nodes, slow links and jitter. ``num_steps`` counts
    the engine's events.
    """

    forecast: Forecast
    plan: Plan
    disturbance: Disturbance
    ranks: tuple[Rank, ...]
    step_s: float
    even_ranks: tuple[Rank, ...]
    undisturbed_s: float
    num_steps: int

    @property
    def closed_form_s(self) -> float:
        """The closed form's answer for the same plan, which knows no disturbance."""
        return float(self.forecast.step_s[0])

    @property
    def departs_from_closed_form(self) -> str | None:
        """Why the step differs from the closed form's by more than 3 %; None where it does not."""
        difference = self.step_s / self.closed_form_s - 1
        if abs(difference) <= CLOSED_FORM_TOLERANCE:
            return None
        causes = ["it knows no slow nodes, slow links and jitter"] if self.disturbance else []
        # Where it agrees with the undisturbed step, what it simplifies of the plan is not why they differ.
        if abs(self.undisturbed_s / self.closed_form_s - 1) > CLOSED_FORM_TOLERANCE:
            causes += _departures(self.plan, len(self.forecast.model.kinds))
        return f"{difference:+.1%}: " + ("; ".join(causes) or "no simplification of the closed form explains it")


def _departures(plan: Plan, num_kinds: int) -> Iterator[str]:
    """What the closed form leaves out for such a plan."""
    if plan.pp > 1:
        yield "it takes the stages between the first and the last, and each kind of layer on them, as evenly spread"
        if plan.virtual_pp > 1:
            yield "it knows a stage's model chunks by their layers only, while the slower ones hold up all beside them"
        if plan.parameter_shard > 1 or plan.shard_ranks > 1:
            yield "it takes gathers and reductions as those of a pass that runs through, while some fall into waits"
    if plan.overlap_expert:
        yield "it hides exchanges with experts, gathers and reductions behind a pair of passes as a whole"
    if num_kinds > 1 and plan.shard_ranks > 1:
        yield "it takes layers of several kinds as mixed, while each one's gathers and reductions run beside its own"
    if 1 < plan.gradient_shard < plan.shard_ranks:
        yield "it lets a gradient's second reduction run beside its first"


def play(
    model: Model,
    cluster: Cluster,
    plan: Plan,
    disturbance: Disturbance | None = None,
    schedule: Callable[[int, int, int, int], Sequence[Action]] | None = None,
) -> Timeline:
    """Play one optimizer step of ``model`` on ``cluster`` under ``plan``, event by event.

    ``schedule``: (stage, p, m, v) to the stage's actions; by default the plan's own. Raises InputError as
    :func:`forecast` does and for nodes that the job does not have; DeadlockError where the schedule cannot finish.
    """
    constants = machine_constants(cluster)
    disturbance = disturbance or Disturbance()
    found = forecast(model, cluster, plan)
    hardware = Hardware.of([cluster])
    program = build(model, found.operations, found.plans, hardware, constants)
    passes = Passes(model, program, plan)
    replicas = fold(plan, cluster.gpus_per_node, disturbance)
    orders = schedule or SCHEDULES[plan.schedule]
    game = _Game(plan, program, passes, replicas, disturbance, constants, orders)
    step_s = game.run()
    even = game
    if disturbance:
        nothing = Disturbance()
        even = _Game(plan, program, passes, fold(plan, cluster.gpus_per_node, nothing), nothing, constants, orders)
    return Timeline(
        forecast=found,
        plan=plan,
        disturbance=disturbance,
        ranks=tuple(game.ranks),
        step_s=step_s,
        even_ranks=tuple(even.ranks),
        undisturbed_s=even.run() if disturbance else step_s,
        num_steps=game.num_steps,
    )


def mean_seconds(ranks: Sequence[Rank]) -> dict[str, float]:
    """Where the step's time goes, averaged over all GPUs."""
    total = sum(rank.place.num_ranks for rank in ranks)
    causes = dict.fromkeys(cause for rank in ranks for cause in rank.seconds)
    return {c: sum(rank.seconds[c] * rank.place.num_ranks for rank in ranks) / total for c in causes}


class _Game:
    """The processes of one step and where they meet."""

    def __init__(
        self,
        plan: Plan,
        program: Program,
        passes: Passes,
        replicas: Sequence[Replicas],
        disturbance: Disturbance,
        constants: Constants,
        schedule: Callable[[int, int, int, int], Sequence[Action]],
    ) -> None:
        self.env = simpy.Environment()
        self.num_steps = 0
        self._plan, self._program, self._passes = plan, program, passes
        self._constants, self._schedule = constants, schedule
        self._replicas = list(replicas)
        self._arrivals: dict[tuple[int, Action], simpy.Event] = {}
        self._meetings: dict[tuple[object, ...], Transfer] = {}
        self._leaks: dict[Link, float] = {"in-node": constants.nvlink_leak, "between-nodes": constants.network_leak}
        self._link_shares: dict[Link, float] = {
            "in-node": constants.nvlink_share,
            "between-nodes": constants.network_share,
        }
        self._groups: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {}
        self._sends: dict[tuple[Phase, Link | None, float], Segment] = {}
        self.ranks = [
            self._rank(number, stage, disturbance) for number in range(len(replicas)) for stage in range(plan.pp)
        ]

    def _rank(self, number: int, stage: int, disturbance: Disturbance) -> Rank:
        plan, replicas = self._plan, self._replicas[number]
        speed, link, node = replicas.traits[stage]
        width = plan.tp * plan.cp
        first = (stage * plan.dp + replicas.index) * width
        jitter: Callable[[], float] | None = None
        if disturbance.jitter:
            random = np.random.default_rng([disturbance.seed, node, stage])
            spread = disturbance.jitter
            jitter = lambda: float(np.exp(spread * random.standard_normal()))  # noqa: E731
        return Rank(
            self.env,
            Place(stage, first, replicas.num * width, speed, link, number),
            Device(self.env, self._leaks, self._link_shares),
            plan.prefetch,
            plan.parameter_shard > 1,
            plan.parameter_shard == 1 and not plan.overlap_update,
            self._meet,
            jitter,
        )

    def run(self) -> float:
        """Play to the end; returns the step's seconds."""
        processes = [self.env.process(self._live(rank)) for rank in self.ranks]
        done = simpy.AllOf(self.env, processes)
        try:
            self.env.run(until=done)
        except RuntimeError as error:
            if done.triggered:
                raise
            raise DeadlockError(self._who_waits()) from error
        assert all(sent.transfer.done.triggered for rank in self.ranks for sent in rank.sent)
        for rank in self.ranks:
            late = self.env.now - sum(rank.seconds.values())
            rank.seconds[self._late_cause] += late
        self.num_steps = next(self.env._eid)
        return float(self.env.now)

    @property
    def _late_cause(self) -> str:
        return "bubble" if self._plan.pp > 1 else "stragglers"

    def _live(self, rank: Rank) -> Process:
        plan, stage = self._plan, rank.place.stage
        for action, paired in self._order(stage):
            chunk = action.chunk * plan.pp + stage
            first, last = action.micro_batch == 0, action.micro_batch == plan.grad_accum - 1
            stations = self._passes.of(chunk, action.direction, first, last, paired, rank.place.speed)
            send = self._send(rank, chunk, action)
            yield from rank.run_pass(action, stations, self._arrival(rank, chunk, action), send)
        for norm in self._program.norms:
            yield from rank.run_collective(norm, "optimizer", self._late_cause)
        yield from rank.run_segment(self._passes.step(stage, rank.place.speed), 0)
        yield from rank.pause(self._constants.step_overhead_s, "overhead")

    def _order(self, stage: int) -> list[tuple[Action, bool]]:
        """The stage's passes, and whether each runs together with another micro-batch's."""
        plan = self._plan
        actions = self._schedule(stage, plan.pp, plan.grad_accum, plan.virtual_pp)
        return one_ahead(actions) if plan.overlap_expert else [(action, False) for action in actions]

    def _arrival(self, rank: Rank, chunk: int, action: Action) -> simpy.Event | None:
        """What the pass needs from the chunk before it (forward) or behind it (backward; the last: its own forward)."""
        if action.direction == "weight" or (action.direction == "forward" and chunk == 0):
            return None
        return self._message(rank.place.replica, Action(action.direction, action.micro_batch, chunk))

    def _message(self, replica: int, to: Action) -> simpy.Event:
        if (replica, to) not in self._arrivals:
            self._arrivals[replica, to] = self.env.event()
        return self._arrivals[replica, to]

    def _send(self, rank: Rank, chunk: int, action: Action) -> Process:
        """Hand the result to the next chunk: the sender waits for the exposed share, the receiver for all of it."""
        step = {"forward": 1, "backward": -1, "weight": 0}[action.direction]
        to = chunk + step
        if action.direction == "forward" and to == self._plan.pp * self._plan.virtual_pp:
            self._message(rank.place.replica, Action("backward", action.micro_batch, chunk)).succeed()
        if step == 0 or not 0 <= to < self._plan.pp * self._plan.virtual_pp:
            return
        message = self._message(rank.place.replica, Action(action.direction, action.micro_batch, to))
        phase: Phase = "forward" if action.direction == "forward" else "backward"
        segment, rest_s = self._send_of(rank, phase, to % self._plan.pp)
        yield from rank.run_segment(segment, action.micro_batch)
        if rest_s == 0:
            message.succeed()
            return
        arrival = self.env.timeout(rest_s)
        assert arrival.callbacks is not None

        def arrive(_: simpy.Event) -> None:
            message.succeed()

        arrival.callbacks.append(arrive)

    def _send_of(self, rank: Rank, phase: Phase, to_stage: int) -> tuple[Segment, float]:
        """The exposed part of a send, and the seconds until it arrives after that."""
        piece, share = self._program.send(phase, rank.place.stage, to_stage), self._program.exposed_send
        traits = self._replicas[rank.place.replica].traits
        rate = min(traits[rank.place.stage][1], traits[to_stage][1]) if piece.link == "between-nodes" else 1.0
        key = (phase, piece.link, rate)
        if key not in self._sends:
            exposed = replace(piece, seconds=piece.seconds * share / rate)
            self._sends[key] = lay_out([[exposed]], [0.0], 1.0)[0]
        return self._sends[key], piece.seconds * (1 - share) / rate

    def _meet(self, rank: Rank, meeting: Meeting, seconds: float) -> Transfer:
        """The transfer that this rank's class shares with the others of its group."""
        kind, layer, micro_batch, part = meeting
        members = self._members(rank, kind)
        key = (id(kind), layer, micro_batch, part, members[0])
        transfer = self._meetings.pop(key, None)
        if transfer is None:
            if kind.link == "between-nodes":
                seconds /= min(self._replicas[n].traits[stage][1] for n, stage in members)
            label = f"{kind.name} ({kind.collective} over {kind.group}) of layer {layer}, micro-batch {micro_batch}"
            transfer = Transfer(self.env, label, seconds, kind.link, len(members))
        transfer.num_posted += 1
        if transfer.num_posted < transfer.num_members:
            self._meetings[key] = transfer
        return transfer

    def _members(self, rank: Rank, kind: TransferKind) -> tuple[tuple[int, int], ...]:
        """The classes, as (replicas, stage), whose ranks share a group with this one's."""
        place = rank.place
        if kind.purpose == "norm" and kind.group != "tp":
            key = (-1, -1)
        elif kind.link == "in-node" or kind.group == "tp":
            return ((place.replica, place.stage),)
        else:
            partial = kind.group in ("nodes", "expert-nodes")
            key = (place.stage, self._replicas[place.replica].block if partial else -1)
        if key not in self._groups:
            stage, block = key
            self._groups[key] = tuple(
                (number, s)
                for number, replicas in enumerate(self._replicas)
                for s in range(self._plan.pp)
                if stage in (-1, s) and block in (-1, replicas.block)
            )
        return self._groups[key]

    def _who_waits(self) -> str:
        waiting = [
            f"rank {rank.place.rank} (stage {rank.place.stage}) waits for {rank.waits_for}"
            for rank in self.ranks
            if rank.waits_for
        ]
        for rank in self.ranks:
            for communicator in rank.communicators:
                transfer = communicator.waiting_for
                if transfer is not None and transfer.started_s is None:
                    missing = transfer.num_members - len(transfer.members)
                    waiting.append(f"rank {rank.place.rank}'s {transfer.label} waits for {missing} other rank classes")
        return "the schedule deadlocks: " + "; ".join(waiting)
