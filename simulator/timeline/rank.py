"""One rank class as a SimPy process: it runs its schedule, waits for what it needs and posts what others need."""

from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import simpy

from flopcast.simulator.timeline.buckets import MOST_PARTS, NOTHING, Bucket, Ready, ready
from flopcast.simulator.timeline.engine import Communicator, Device, Transfer
from flopcast.simulator.timeline.passes import Segment, Station
from flopcast.simulator.timeline.program import TransferKind
from flopcast.simulator.timeline.schedule import Action

Process: TypeAlias = Generator[simpy.Event, object, None]
# Where a transfer of this rank meets those of the other classes: (kind, layer, micro-batch, part).
Meeting: TypeAlias = tuple[TransferKind, int, int, int]


@dataclass(frozen=True)
class Play:
    """A segment as it ran: of ``works[i]`` seconds of work all but the rest were done at ``times[i]``."""

    segment: Segment
    layer: int
    micro_batch: int
    factor: float
    times: Sequence[float]
    works: Sequence[float]


@dataclass(frozen=True)
class Sent:
    """A transfer as this class saw it: ``calls`` of its kind."""

    kind: TransferKind
    layer: int
    micro_batch: int
    calls: float
    transfer: Transfer


@dataclass(frozen=True)
class Reductions:
    """A unit's reductions that have been posted: the ``first`` scatter of each bucket, and ``all``."""

    first: list[Sent]
    all: list[Sent]


@dataclass(frozen=True)
class Place:
    """Where a class stands: ``stage`` of the pipeline, ``rank`` its first, ``num_ranks`` folded into it.

    ``speed``, ``link``: the shares of their usual rates at which it computes and its NICs send.
    """

    stage: int
    rank: int
    num_ranks: int
    speed: float
    link: float
    replica: int


class Rank:
    """The process of one class. ``seconds`` sums where its time went; at the end they add up to the step."""

    def __init__(
        self,
        env: simpy.Environment,
        place: Place,
        device: Device,
        prefetch: int,
        sharded: bool,
        waits_for_update: bool,
        meet: Callable[["Rank", Meeting, float], Transfer],
        jitter: Callable[[], float] | None,
    ) -> None:
        self.env = env
        self.place = place
        self.device = device
        self.plays: list[Play] = []
        self.sent: list[Sent] = []
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.exposed: defaultdict[tuple[str, str, str], float] = defaultdict(float)
        self.waits_for: str | None = None
        self._prefetch = prefetch
        self._sharded = sharded
        self._waits_for_update = waits_for_update
        self._meet = meet
        self._jitter = jitter
        self._communicators: dict[tuple[str, str], Communicator] = {}
        self._exchanges: list[Sent] = []

    @property
    def communicators(self) -> list[Communicator]:
        """Those this class has used."""
        return list(self._communicators.values())

    def run_pass(
        self, action: Action, stations: tuple[Station, ...], arrival: simpy.Event | None, send: Process
    ) -> Process:
        """One pass: gathers run ``prefetch`` stations ahead of use, reductions behind; it ends with the last of them.

        Parameters that stay gathered are asked for all at once, and waited for where the update is not hidden. Without
        prefetch nothing overlaps: gathers come before and reductions after the computation they belong to, that of a
        layer where parameters are sharded and that of the whole pass where not. ``send`` hands the result on as soon
        as it is computed. Exchanges with experts beside a pair of passes are waited for at the end of the second.
        """
        mb = action.micro_batch
        ahead = self._prefetch if self._sharded else len(stations)
        gathered: dict[int, list[Sent]] = {}
        for k in range(min(ahead, len(stations))):
            gathered[k] = self._gather(stations[k], mb)
            if not self._prefetch or self._waits_for_update:
                yield from self._wait_for_all(gathered[k])
        if arrival is not None:
            yield from self._wait(arrival, "bubble", f"{action.direction} of micro-batch {mb} from its neighbour")
        reductions: list[Reductions] = []

        put_off: list[tuple[Station, int, list[Bucket]]] = []

        def reduce(station: Station, part: int, buckets: list[Bucket]) -> Process:
            if not ahead or self._prefetch:
                if reductions and self._sharded:
                    yield from self._wait_for_all(reductions[-1].first)
                reductions.append(self._reduce(station, mb, part, buckets))
            else:
                put_off.append((station, part, buckets))
            if not ahead:
                yield from self._wait_for_all(reductions[-1].all)

        for k, station in enumerate(stations):
            if not ahead:
                gathered[k] = self._gather(station, mb)
            yield from self._wait_for_all(gathered.pop(k))
            if ahead and k + ahead < len(stations):
                gathered[k + ahead] = self._gather(stations[k + ahead], mb)
            self._exchanges += [self._post(kind, station.layer, mb, 0, kind.calls) for kind in station.exchanges]
            parts = ready(station, max(MOST_PARTS // len(stations), 1))
            yield from self._compute(station.segment, station.layer, mb, parts, partial(reduce, station))
        if action.direction == "backward":
            yield from self._wait_for_all(self._exchanges)
            self._exchanges = []
        yield from send
        reductions += [self._reduce(station, mb, part, buckets) for station, part, buckets in put_off]
        for posted in reductions:
            yield from self._wait_for_all(posted.all)

    def run_segment(self, segment: Segment, micro_batch: int) -> Process:
        """A segment by itself: a send, the optimizer."""
        yield from self._compute(segment, -1, micro_batch, NOTHING, None)

    def run_collective(self, kind: TransferKind, cause: str, late_cause: str) -> Process:
        """A collective that nothing runs beside; waiting for others there is put down to ``late_cause``."""
        sent = self._post(kind, -1, 0, 0, 1.0)
        yield from self._wait(sent.transfer.done, cause, sent.transfer.label, sent, late_cause)

    def pause(self, seconds: float, cause: str) -> Process:
        """The device does nothing for so long."""
        self.device.rest()
        self.seconds[cause] += seconds
        yield self.env.timeout(seconds)

    def _compute(
        self,
        segment: Segment,
        layer: int,
        micro_batch: int,
        parts: Ready,
        reduce: Callable[[int, list[Bucket]], Process] | None,
    ) -> Process:
        """Run a segment in equal parts; after each, the buckets of gradients that are then ready are reduced."""
        factor = self._jitter() if self._jitter else 1.0
        work = segment.seconds * factor
        times: list[float] = []
        works: list[float] = []
        for part, buckets in enumerate(parts):
            begin = self.env.now
            activity = self.device.compute(work / len(parts))
            yield activity.done
            times += activity.times
            works += [part * activity.work + done for done in activity.works]
            self.seconds["contention"] += self.env.now - begin - activity.work
            if buckets and reduce:
                yield from reduce(part, buckets)
        self.plays.append(Play(segment, layer, micro_batch, factor, times, works))
        for cause, spent in segment.by_cause.items():
            self.seconds[cause] += spent
        for key, spent in segment.exposed.items():
            self.exposed[key] += spent * factor
        self.seconds["stragglers"] += segment.slowed_s + work - segment.seconds

    def _gather(self, station: Station, micro_batch: int) -> list[Sent]:
        return [self._post(kind, station.layer, micro_batch, 0, kind.calls) for kind in station.gathers]

    def _reduce(self, station: Station, micro_batch: int, part: int, buckets: list[Bucket]) -> Reductions:
        """Post the reductions of a unit's buckets: their scatters one after the other, as on one stream.

        The second reduction of a bucket follows its first, beside the next bucket's.
        """
        posted = Reductions([], [])

        def post(rest: Sequence[Bucket], place: int, _: simpy.Event | None = None) -> None:
            """Reduction ``place`` of the first bucket; those that may begin with its end are posted then."""
            kinds, share = rest[0]
            kind = kinds[place]
            sent = self._post(kind, station.layer, micro_batch, part, share * kind.calls)
            posted.all.append(sent)
            if kind.scatters and place == 0:
                posted.first.append(sent)
            callbacks = sent.transfer.done.callbacks
            assert callbacks is not None
            if place + 1 < len(kinds):
                callbacks.append(partial(post, rest[:1], place + 1))
            if place == 0 and len(rest) > 1:
                if kind.scatters:
                    callbacks.append(partial(post, rest[1:], 0))
                else:
                    post(rest[1:], 0)

        post(buckets, 0)
        return posted

    def _post(self, kind: TransferKind, layer: int, micro_batch: int, part: int, calls: float) -> Sent:
        transfer = self._meet(self, (kind, layer, micro_batch, part), kind.seconds * calls)
        name = (kind.group, kind.link)
        if name not in self._communicators:
            self._communicators[name] = Communicator(self.device)
        self._communicators[name].post(transfer)
        sent = Sent(kind, layer, micro_batch, calls, transfer)
        self.sent.append(sent)
        return sent

    def _wait_for_all(self, chain: list[Sent]) -> Process:
        for sent in chain:  # which may grow meanwhile: a bucket's end posts what follows it
            yield from self._wait(sent.transfer.done, f"{sent.kind.purpose}_communication", sent.transfer.label, sent)

    def _wait(
        self,
        event: simpy.Event,
        cause: str,
        label: str,
        sent: Sent | None = None,
        late_cause: str = "stragglers",
    ) -> Process:
        """Wait; what a collective spends waiting for other classes is put down to ``late_cause``."""
        if event.processed:
            return
        if not event.triggered:
            self.device.rest()
        begin = self.env.now
        communicator = self._communicators[sent.kind.group, sent.kind.link] if sent else None
        waited = communicator.waited_s() if communicator else 0.0
        self.waits_for = label
        yield event
        self.waits_for = None
        spent = self.env.now - begin
        late = min(communicator.waited_s() - waited, spent) if communicator else 0.0
        self.seconds[late_cause] += late
        self.seconds[cause] += spent - late
        if sent:
            self.exposed[sent.kind.collective, sent.kind.group, sent.kind.phase] += spent - late
