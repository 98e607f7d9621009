"""The engine: work on a rank's compute stream and on its communicators, slowing each other where they overlap.

Work is fluid. While a rank computes and communicates at once, both run at 1 / (1 + leak) of their own speed, so that
overlapping the shorter of the two in full leaves the link's ``leak`` of it exposed, and the transfer has only the share
of its link that a training step leaves it. Transfers of different communicators on one link share it evenly; a transfer
runs at the pace of its slowest member.
"""

from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Literal

import simpy

Link = Literal["in-node", "between-nodes"]


class Activity:
    """So many seconds of work that proceed at a rate which may change; ``done`` succeeds at their end.

    ``times`` and ``works`` trace the progress: at ``times[i]`` so much work was done, linear in between.
    """

    __slots__ = ("_env", "_rate", "_version", "done", "times", "work", "works")

    def __init__(self, env: simpy.Environment, work: float) -> None:
        self._env = env
        self.work = work
        self._rate = 0.0
        self._version = 0
        self.done = env.event()
        self.times: list[float] = []
        self.works: list[float] = []

    def run_at(self, rate: float) -> None:
        """Proceed at ``rate`` from now on."""
        if rate == self._rate or self.done.triggered:
            return
        self._note()
        self._rate = rate
        self._version += 1
        end = self._env.timeout(max(self.work - self.works[-1], 0.0) / rate)
        assert end.callbacks is not None
        end.callbacks.append(partial(self._finish, self._version))

    def _note(self) -> None:
        now = self._env.now
        done = self.works[-1] + (now - self.times[-1]) * self._rate if self.times else 0.0
        self.times.append(now)
        self.works.append(done)

    def _finish(self, version: int, _: simpy.Event) -> None:
        if version == self._version:
            self.times.append(self._env.now)
            self.works.append(self.work)
            self.done.succeed()


class Device:
    """One GPU standing for its rank class: what computes on it, and the transfers under way on its links."""

    def __init__(self, env: simpy.Environment, leaks: Mapping[Link, float], link_shares: Mapping[Link, float]) -> None:
        self.env = env
        self.leaks = leaks
        self.link_shares = link_shares
        self.computing = False
        self.transfers: dict[Link, list[Transfer]] = {"in-node": [], "between-nodes": []}
        self._activity: Activity | None = None

    def compute(self, work: float) -> Activity:
        """Begin so many seconds of work on the compute stream, which must be free."""
        self._activity = Activity(self.env, work)
        if not self.computing:
            self._set_computing(True)
        self.adjust()
        return self._activity

    def rest(self) -> None:
        """The compute stream waits."""
        if self.computing:
            self._set_computing(False)

    def adjust(self) -> None:
        """Set the pace of the computation by what is communicated beside it."""
        if self._activity is not None and self.computing:
            leak = max((self.leaks[link] for link, transfers in self.transfers.items() if transfers), default=0.0)
            self._activity.run_at(1 / (1 + leak))

    def _set_computing(self, computing: bool) -> None:
        self.computing = computing
        for transfers in self.transfers.values():
            for transfer in transfers:
                transfer.count_computing(1 if computing else -1)


class Transfer:
    """One collective of one or several rank classes: it starts when all have come to it and ends for all at once."""

    def __init__(self, env: simpy.Environment, label: str, work: float, link: Link, num_members: int) -> None:
        self.label = label
        self.link: Link = link
        self.num_members = num_members
        self.num_posted = 0
        self.members: list[Communicator] = []
        self.started_s: float | None = None
        self._num_computing = 0
        self._activity = Activity(env, work)

    @property
    def done(self) -> simpy.Event:
        """Succeeds when the transfer is over."""
        return self._activity.done

    @property
    def ended_s(self) -> float:
        """When it was over."""
        return self._activity.times[-1]

    def join(self, member: "Communicator") -> None:
        """A member has reached this transfer."""
        self.members.append(member)
        if len(self.members) < self.num_members:
            return
        self.started_s = member.device.env.now
        self._num_computing = sum(m.device.computing for m in self.members)
        for m in self.members:
            m.device.transfers[self.link].append(self)
        assert self.done.callbacks is not None
        self.done.callbacks.append(self._leave)
        self._adjust_all()

    def count_computing(self, change: int) -> None:
        """A member has begun (1) or stopped (-1) computing."""
        before = self._num_computing
        self._num_computing += change
        if (before > 0) != (self._num_computing > 0):
            self.adjust()

    def adjust(self) -> None:
        """Set the pace by the computation beside it and the transfers it shares a link with."""
        sharing = max(len(m.device.transfers[self.link]) for m in self.members)
        device = self.members[0].device
        beside = device.link_shares[self.link] / (1 + device.leaks[self.link]) if self._num_computing else 1.0
        self._activity.run_at(beside / sharing)

    def _adjust_all(self) -> None:
        touched = dict.fromkeys(t for m in self.members for t in m.device.transfers[self.link])
        for transfer in touched:
            transfer.adjust()
        for member in self.members:
            member.device.adjust()

    def _leave(self, _: simpy.Event) -> None:
        for member in self.members:
            member.device.transfers[self.link].remove(self)
        for member in self.members:
            member.advance()
        self._adjust_all()


class Communicator:
    """One rank class's end of a communicator: its transfers run one after the other, in the order they were posted."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.waiting_for: Transfer | None = None
        self.reached: list[tuple[Transfer, float]] = []
        self._queue: deque[Transfer] = deque()
        self._busy = False
        self._waited_s = 0.0
        self._since_s = 0.0

    def post(self, transfer: Transfer) -> None:
        """Queue a transfer behind those posted before it."""
        self._queue.append(transfer)
        if not self._busy:
            self.advance()

    def waited_s(self) -> float:
        """Seconds so far in which this rank had come to a transfer and others had not."""
        waiting = self.waiting_for
        if waiting is None:
            return self._waited_s
        until = self.device.env.now if waiting.started_s is None else waiting.started_s
        return self._waited_s + until - self._since_s

    def advance(self) -> None:
        """Come to the next transfer, as none is under way any more."""
        self._waited_s = self.waited_s()
        self.waiting_for = None
        self._busy = bool(self._queue)
        if self._queue:
            transfer = self._queue.popleft()
            self._since_s = self.device.env.now
            self.waiting_for = transfer
            self.reached.append((transfer, self._since_s))
            transfer.join(self)
