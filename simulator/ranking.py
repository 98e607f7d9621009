"""The best plans of a stream of forecasts: of every placement the best that fits, and the front of time and memory."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator.operation import Array
from flopcast.simulator.plan import FIELDS, Plans
from flopcast.simulator.region import SHARDING

# The fastest plan is sought on GPUs of at most so many times the memory: with more than that none is to be had.
MORE_MEMORY = 2.0
# Intervals of memory with a least time each, by which nearly all plans are seen not to be on the front.
INTERVALS = 4096
MOST_CANDIDATES = 20_000


class Candidates:
    """Plans put by, each with its time and memory; grown piece by piece."""

    def __init__(self) -> None:
        self._plans: list[Plans] = []
        self._step_s: list[Array] = []
        self._memory_bytes: list[Array] = []

    def add(self, plans: Plans, places: NDArray[np.int64], step_s: Array, memory_bytes: Array) -> None:
        """The plans at those places of the flattened forecast."""
        self._plans.append(plans.pick(np.unravel_index(places, plans.shape)))
        self._step_s.append(step_s.ravel()[places])
        self._memory_bytes.append(memory_bytes.ravel()[places])

    def __len__(self) -> int:
        return sum(len(plans) for plans in self._plans)

    def keep(self, places: NDArray[np.int64]) -> None:
        """Only these, in that order."""
        self._plans, self._step_s, self._memory_bytes = (
            [self.plans(places)],
            [self.step_s[places]],
            [self.memory_bytes[places]],
        )

    @property
    def step_s(self) -> Array:
        """Seconds of each."""
        return np.concatenate([np.empty(0), *self._step_s])

    @property
    def memory_bytes(self) -> Array:
        """Bytes per GPU of each."""
        return np.concatenate([np.empty(0), *self._memory_bytes])

    def column(self, name: str) -> NDArray[np.int64]:
        """One field of each."""
        return np.concatenate([getattr(plans, name) for plans in self._plans])

    def plans(self, order: Sequence[int] | NDArray[np.int64]) -> Plans:
        """Those plans, in that order."""
        return Plans(**{name: self.column(name)[order] for name in FIELDS})


class Ranking:
    """The best of the legal plans seen so far within ``limit_bytes`` per GPU, by time or by memory.

    ``fastest`` is sought within :data:`MORE_MEMORY` times that, ``smallest`` without limit.
    """

    def __init__(self, limit_bytes: float, by_memory: bool) -> None:
        self._limit_bytes, self._by_memory = limit_bytes, by_memory
        self.num_plans = self.num_fitting = 0
        self.best, self.fastest, self.smallest, self.front = Candidates(), Candidates(), Candidates(), Candidates()
        self._least_s = np.full(INTERVALS, np.inf)

    def add(self, plans: Plans, legal: NDArray[np.bool_], step_s: Array, memory_bytes: Array) -> None:
        """What is legal of one piece of a space, every array of its shape."""
        fits = legal & (memory_bytes <= self._limit_bytes)
        self.num_plans += int(np.count_nonzero(legal))
        num_fitting = int(np.count_nonzero(fits))
        self.num_fitting += num_fitting
        within = legal & (memory_bytes <= MORE_MEMORY * self._limit_bytes)
        for of, where, values in ((self.fastest, within, step_s), (self.smallest, legal, memory_bytes)):
            least = np.where(where, values, np.inf).argmin()
            if where.flat[least]:
                of.add(plans, np.array([least]), step_s, memory_bytes)
        if num_fitting:
            self._add_best(plans, fits, step_s, memory_bytes)
            self._add_front(plans, fits, step_s, memory_bytes)
            self._forget()

    def _add_best(self, plans: Plans, fits: NDArray[np.bool_], step_s: Array, memory_bytes: Array) -> None:
        """Of every layout and sharding the best schedule and work; the lesser other figure decides between equals."""
        placements = plans.shape[: SHARDING + 1]
        first, second = (memory_bytes, step_s) if self._by_memory else (step_s, memory_bytes)
        score = np.where(fits, first, np.inf).reshape(*placements, -1)
        least = score.min(axis=-1, keepdims=True)
        equal = np.where(score <= least * (1 + 1e-9), second.reshape(score.shape), np.inf)
        inner = np.arange(np.prod(placements)) * score.shape[-1] + equal.argmin(axis=-1).ravel()
        self.best.add(plans, inner[np.isfinite(least).ravel()], step_s, memory_bytes)

    def _add_front(self, plans: Plans, fits: NDArray[np.bool_], step_s: Array, memory_bytes: Array) -> None:
        interval = np.clip(memory_bytes * (INTERVALS / self._limit_bytes), 0, INTERVALS - 1).astype(np.int32)
        # Beaten by a plan of a lower interval: no need to look closer.
        ahead = np.flatnonzero(fits & (step_s < self._least_s[interval]))
        ahead = ahead[on_front(step_s.ravel()[ahead], memory_bytes.ravel()[ahead])]
        self.front.add(plans, ahead, step_s, memory_bytes)
        lower = np.full(INTERVALS + 1, np.inf)
        np.minimum.at(lower, interval.ravel()[ahead] + 1, step_s.ravel()[ahead])
        self._least_s = np.minimum(self._least_s, np.minimum.accumulate(lower)[:INTERVALS])

    @property
    def least_bytes(self) -> float:
        """Memory of the plan that needs least, whether it fits or not."""
        return float(self.smallest.memory_bytes.min(initial=np.inf))

    def best_of_placements(self) -> Plans:
        """The best plan of each placement, the best placement first."""
        places = self._best_places()
        plans = self.best.plans(places)
        # One cp splits sequences in several ways, by how many a micro-batch has.
        return self.best.plans(places[_first_of_each(plans.strategy, plans.tp, plans.cp, plans.pp, plans.ep)])

    def best_in_full_precision(self) -> Plans | None:
        """The best plan that reduces gradients in 32 bits and gathers parameters in 16, alone; None if none does."""
        exact = (self.best.column("gradient_bits") == 32) & (self.best.column("gather_bits") == 16)
        order = self._order()
        places = order[exact[order]]
        return self.best.plans(places[:1]) if places.size else None

    def front_plans(self) -> Plans:
        """The plans that no other beats in both time and memory, the fastest first."""
        return self.front.plans(on_front(self.front.step_s, self.front.memory_bytes))

    def _order(self) -> NDArray[np.int64]:
        first, second = self.best.step_s, self.best.memory_bytes
        return np.lexsort((first, second) if self._by_memory else (second, first))

    def _best_places(self, *also: str) -> NDArray[np.int64]:
        """The best of each placement, told apart by the columns ``also`` as well."""
        order = self._order()
        plans = self.best.plans(order)
        # Sequences split over cp ranks where whole ones could be dealt out are a slower way to do that.
        split = plans.cp // np.gcd(plans.cp, plans.micro_batch)
        told_apart = (plans.tp, split, plans.pp, plans.ep, *(getattr(plans, name) for name in also))
        return np.asarray(order[_first_of_each(plans.strategy, *told_apart)])

    def _forget(self) -> None:
        """Drop what has been overtaken, once it is much."""
        if len(self.best) > MOST_CANDIDATES:
            self.best.keep(self._best_places("gradient_bits"))
        if len(self.front) > MOST_CANDIDATES:
            self.front.keep(on_front(self.front.step_s, self.front.memory_bytes))


def _first_of_each(strategy: NDArray[np.str_], *columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places where a strategy and values of the columns come first together."""
    seen: dict[tuple[object, ...], int] = {}
    for place, (name, *layout) in enumerate(zip(strategy, *(column.tolist() for column in columns), strict=True)):
        # hsdp is one strategy, whatever number of nodes it spans.
        seen.setdefault((re.sub(r"^hsdp\d+", "hsdp", name), *layout), place)
    return np.array([*seen.values()], dtype=np.int64)


def on_front(step_s: Array, memory_bytes: Array) -> NDArray[np.int64]:
    """Places of the plans that no other beats, less memory than every faster one, the fastest first."""
    order = np.lexsort((memory_bytes, step_s))  # fastest first
    memory = memory_bytes[order]
    least_before = np.concatenate([[np.inf], np.minimum.accumulate(memory)[:-1]])
    return np.asarray(order[memory < least_before])
