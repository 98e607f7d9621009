"""The best plans of a stream of forecasts: of every placement the best that fits, and the front of time and memory."""

import re
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator.operation import Array
from flopcast.simulator.plan import Plan, Plans
from flopcast.simulator.region import SHARDING

# What tells one placement from another, with the strategy; everything else about it is chosen by the search.
PLACEMENT = ("tp", "cp", "pp", "ep")
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

    def plans(self, order: Sequence[int] | NDArray[np.int64]) -> Plans:
        """Those plans, in that order."""
        names = [field.name for field in fields(Plan)]
        return Plans(**{name: np.concatenate([getattr(p, name) for p in self._plans])[order] for name in names})


class Ranking:
    """The best of the legal plans seen so far on GPUs of ``limit_bytes``, by time or by memory."""

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
        for of, values in ((self.fastest, step_s), (self.smallest, memory_bytes)):
            least = np.where(legal, values, np.inf).argmin()
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
        interval = (memory_bytes * (INTERVALS / self._limit_bytes)).astype(np.int32)
        np.clip(interval, 0, INTERVALS - 1, out=interval)
        # Beaten by a plan of a lower interval: no need to look closer.
        ahead = np.flatnonzero(fits & (step_s < self._least_s[interval]))
        ahead = ahead[on_front(step_s.ravel()[ahead], memory_bytes.ravel()[ahead])]
        self.front.add(plans, ahead, step_s, memory_bytes)
        lower = np.full(INTERVALS + 1, np.inf)
        np.minimum.at(lower, interval.ravel()[ahead] + 1, step_s.ravel()[ahead])
        self._least_s = np.minimum(self._least_s, np.minimum.accumulate(lower)[:INTERVALS])

    def best_of_placements(self) -> Plans:
        """The best plan of each placement, the best placement first."""
        places = self._best_places()
        return self.best.plans(places)

    def front_plans(self) -> Plans:
        """The plans that no other beats in both time and memory, the fastest first."""
        return self.front.plans(on_front(self.front.step_s, self.front.memory_bytes))

    def _best_places(self) -> NDArray[np.int64]:
        first, second = self.best.step_s, self.best.memory_bytes
        order = np.lexsort((first, second) if self._by_memory else (second, first))
        plans = self.best.plans(order)
        columns = zip(*(getattr(plans, name).tolist() for name in PLACEMENT), plans.strategy, strict=True)
        seen: dict[tuple[object, ...], int] = {}
        for place, (*layout, strategy) in zip(order, columns, strict=True):
            # hsdp is one strategy, whatever number of nodes it spans.
            seen.setdefault((*layout, re.sub(r"^hsdp\d+", "hsdp", strategy)), place)
        return np.array([*seen.values()], dtype=np.int64)

    def _forget(self) -> None:
        """Drop what has been overtaken, once it is much."""
        if len(self.best) > MOST_CANDIDATES:
            self.best.keep(self._best_places())
        if len(self.front) > MOST_CANDIDATES:
            self.front.keep(on_front(self.front.step_s, self.front.memory_bytes))


def on_front(step_s: Array, memory_bytes: Array) -> NDArray[np.int64]:
    """Places of the plans that no other beats, less memory than every faster one, the fastest first."""
    order = np.lexsort((memory_bytes, step_s))  # fastest first
    memory = memory_bytes[order]
    least_before = np.concatenate([[np.inf], np.minimum.accumulate(memory)[:-1]])
    return np.asarray(order[memory < least_before])
