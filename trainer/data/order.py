"""The order in which sequences are read: a mixture of sources, the same on any number of ranks, and resumable.

The n-th sequence comes from the source that is furthest behind its share, so after n sequences every source has given
its weight times n to within one sequence (the number of sources at most). Inside a source, each pass over its sequences
is a permutation of its own, computed entry by entry (a Feistel network), so that nothing but counts has to be kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

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
        total = sum(weights)
        self._names, self._sizes, self._seed = list(names), list(sizes), seed
        self._shares = np.array(weights, dtype=np.float64) / total
        self._taken = np.zeros(len(sizes), dtype=np.int64)

    def next(self, num_samples: int) -> list[Sample]:
        """The next samples of the mixture."""
        return [self._one() for _ in range(num_samples)]

    def _one(self) -> Sample:
        behind = self._shares * (self._taken.sum() + 1) - self._taken
        source = int(np.argmax(behind))
        epoch, place = divmod(int(self._taken[source]), self._sizes[source])
        self._taken[source] += 1
        key = _mix(self._seed, source, epoch)
        return Sample(source, permuted(place, self._sizes[source], key), epoch)

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs: how many sequences each source has given, as JSON holds it."""
        return {
            "seed": self._seed,
            "taken": dict(zip(self._names, self._taken.tolist(), strict=True)),
            "sizes": dict(zip(self._names, self._sizes, strict=True)),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state` was taken. Raises InputError where the sources or the seed are others."""
        sizes = dict(zip(self._names, self._sizes, strict=True))
        if state["seed"] != self._seed:
            raise InputError(f"seed is {self._seed}, but the checkpoint was made with {state['seed']}; use that one")
        if state["sizes"] != sizes:
            raise InputError(
                f"the data has sequences {sizes}, but the checkpoint was made with {state['sizes']}; "
                "go on with the same sources and seq_len"
            )
        self._taken = np.array([state["taken"][name] for name in self._names], dtype=np.int64)


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
