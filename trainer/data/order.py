"""The order in which sequences are read: a mixture of sources, the same on any number of ranks, and resumable.

The n-th sequence comes from the source that is furthest behind its share, so after n sequences every source has given
its weight times n to within one sequence (the number of sources at most). Inside a source, each pass over its sequences
is a permutation of its own, computed entry by entry (a Feistel network), so that nothing but counts has to be kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flopcast.errors import InputError

ROUNDS = 6
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Sample:
    """Sequence ``index`` of the source with that number; ``epoch`` counts the passes over the source before it."""

    source: int
    index: int
    epoch: int


class Order:
    """Draws samples for whole optimizer steps; every rank draws all of them and keeps its own."""

    def __init__(self, names: Sequence[str], weights: Sequence[float], sizes: Sequence[int], seed: int) -> None:
        """``weights``: shares of the mixture, made to sum to one. ``sizes``: sequences of each source."""
        self._names, self._seed = list(names), seed
        self._weights, self._sizes = dict(zip(names, weights, strict=True)), dict(zip(names, sizes, strict=True))
        # A source's place decides what its permutations are and who comes first of equals.
        self._places = list(names)
        self._taken = np.zeros(len(sizes), dtype=np.int64)
        self._taken_before = np.zeros_like(self._taken)  # under other weights than these
        self._shares = self._make_shares()

    def _make_shares(self) -> NDArray[np.float64]:
        weights = [self._weights[name] for name in self._places]
        return np.array(weights, dtype=np.float64) / sum(weights)

    def next(self, num_samples: int) -> list[Sample]:
        """The next samples of the mixture."""
        return [self._one() for _ in range(num_samples)]

    def _one(self) -> Sample:
        taken = self._taken - self._taken_before
        place = int(np.argmax(self._shares * (taken.sum() + 1) - taken))
        name = self._places[place]
        epoch, entry = divmod(int(self._taken[place]), self._sizes[name])
        self._taken[place] += 1
        key = _mix(self._seed, place, epoch)
        return Sample(self._names.index(name), permuted(entry, self._sizes[name], key), epoch)

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs, as JSON holds it: above all how many sequences each source has given.

        The names stand in the order of the run's first start, which the settings of a later one may change.
        """
        return {
            "seed": self._seed,
            "taken": dict(zip(self._places, self._taken.tolist(), strict=True)),
            "taken_before": dict(zip(self._places, self._taken_before.tolist(), strict=True)),
            "sizes": {name: self._sizes[name] for name in self._places},
            "weights": {name: self._weights[name] for name in self._places},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state` was taken; other weights than then are the shares of what is still to come.

        Raises InputError where the sources or the seed are others.
        """
        if state["seed"] != self._seed:
            raise InputError(f"seed is {self._seed}, but the checkpoint was made with {state['seed']}; use that one")
        if state["sizes"] != self._sizes:
            raise InputError(
                f"the data has sequences {self._sizes}, but the checkpoint was made with {state['sizes']}; "
                "go on with the same sources, seq_len and validation_sequences"
            )
        self._places = list(state["taken"])
        self._shares = self._make_shares()
        self._taken = self._counts(state["taken"])
        theirs = state.get("weights")  # checkpoints of earlier versions have the weights of the settings
        if theirs is None or _same_shares(theirs, self._weights):
            self._taken_before = self._counts(state.get("taken_before", dict.fromkeys(self._places, 0)))
        else:
            self._taken_before = self._taken.copy()

    def _counts(self, table: dict[str, int]) -> NDArray[np.int64]:
        return np.array([table[name] for name in self._places], dtype=np.int64)


def _same_shares(ours: dict[str, float], theirs: dict[str, float]) -> bool:
    return all(math.isclose(ours[n] * sum(theirs.values()), theirs[n] * sum(ours.values())) for n in ours)


def permuted(place: int, size: int, key: int) -> int:
    """Entry ``place`` of the permutation of 0..size - 1 that belongs to ``key``.

    A Feistel network permutes the smallest even number of bits that holds ``size``; an entry outside is permuted again
    until it lies inside (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002, method 2).
    """
    half = max(((size - 1).bit_length() + 1) // 2, 1)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for round_ in range(ROUNDS):
            left, right = right, left ^ (_mix(key, round_, right) & mask)
        place = left << half | right
        if place < size:
            return place


def _mix(*numbers: int) -> int:
    """A 64-bit hash of whole numbers (SplitMix64's finaliser, folded over them)."""
    value = 0x9E3779B97F4A7C15
    for number in numbers:
        value = (value ^ number) + 0x9E3779B97F4A7C15 & _MASK
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
        value ^= value >> 31
    return value
