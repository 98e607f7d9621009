"""Gradient buckets: which of a unit's gradients are ready to be reduced after which part of its backward pass."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple, TypeAlias

from flopcast.simulator.timeline.passes import Station
from flopcast.simulator.timeline.program import TransferKind

# Equal parts of a backward pass after which gradients may be ready.
MOST_PARTS = 256
ROUNDING = 1e-9


class Bucket(NamedTuple):
    """A share of the gradients of some parameters, and the reductions it goes through, one after the other."""

    kinds: Sequence[TransferKind]
    share: float


# What is ready after each part.
Ready: TypeAlias = list[list[Bucket]]
NOTHING: Ready = [[]]


def ready(station: Station, most: int) -> Ready:
    """The buckets that are ready after each of several equal parts of a unit's backward pass.

    A unit that fills several has them ready one after the other, played in at most ``most`` parts; where a bucket
    holds several units it is ready with the last of them. A layer and its experts fill buckets of their own.
    """
    shares = [
        (list(kinds), _shares(station, kinds[0].calls, most))
        for kinds in (list(same) for _, same in groupby(station.reductions, lambda kind: kind.parameters))
    ]
    num_parts = max((len(parts) for _, parts in shares), default=1)
    found: Ready = [[] for _ in range(num_parts)]
    for kinds, parts in shares:
        for index, share in enumerate(parts, start=1):
            if share:
                found[-(-index * num_parts // len(parts)) - 1].append(Bucket(kinds, share))
    return found


def _shares(station: Station, calls: float, most: int) -> list[float]:
    if calls >= 1:
        parts = min(round(calls), most)
        return [1 / parts] * parts
    full_before = int(station.reduced_before * calls + ROUNDING)
    done = station.reduced_before + 1
    full = done * calls if done == station.num_of_kind else int(done * calls + ROUNDING)
    return [(full - full_before) / calls]
