"""The events of a played step as arrays and as a DataFrame."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flopcast.simulator.timeline.play import Timeline
from flopcast.simulator.timeline.rank import Rank

if TYPE_CHECKING:
    import pandas as pd


class Event(NamedTuple):
    """Something that one rank class did: work on its compute stream, or a collective on one of its links.

    ``stream``: "compute", "in-node" or "between-nodes". ``kind``: gemm, attention, pointwise, or the purpose of a
    collective. A collective lasts from when this rank came to it, as its kernel does, which waits
    for the others. ``layer`` is -1 outside the layers. ``bytes``: memory traffic, or the full tensor of a collective.
    """

    rank: int
    stream: str
    name: str
    start_s: float
    end_s: float
    bytes: float
    flop: float
    kind: str
    phase: str
    layer: int
    micro_batch: int
    collective: str
    group: str
    group_size: int


def events_of(rank: Rank) -> list[Event]:
    """Every event of one rank class, by start."""
    return sorted((*_computed(rank), *_communicated(rank)), key=lambda event: (event.start_s, event.stream))


def events(timeline: Timeline) -> "pd.DataFrame":
    """One row per event of every rank class: the fields of :class:`Event`, times in seconds from the step's start."""
    import pandas as pd

    rows = [event for rank in timeline.ranks for event in events_of(rank)]
    columns = zip(*rows, strict=True)
    return pd.DataFrame(dict(zip(Event._fields, columns, strict=True)))


def _computed(rank: Rank) -> Iterable[Event]:
    for play in rank.plays:
        segment = play.segment
        edges = np.concatenate([segment.starts, segment.ends]) * play.factor
        times = np.interp(edges, play.works, play.times).tolist()
        half = len(segment.pieces)
        for index, piece in enumerate(segment.pieces):
            if piece.seconds == 0:
                continue
            yield Event(
                rank.place.rank, piece.link or "compute", piece.name, times[index], times[half + index],
                piece.bytes, piece.flop, piece.kind, piece.phase, play.layer, play.micro_batch,
                piece.collective, piece.group, piece.group_size,
            )  # fmt: skip


def _communicated(rank: Rank) -> Iterable[Event]:
    reached = {id(transfer): at for communicator in rank.communicators for transfer, at in communicator.reached}
    for sent in rank.sent:
        kind, transfer = sent.kind, sent.transfer
        yield Event(
            rank.place.rank, kind.link, kind.name, reached[id(transfer)], transfer.ended_s,
            kind.bytes * sent.calls, 0.0, kind.purpose, kind.phase, sent.layer, sent.micro_batch,
            kind.collective, kind.group, kind.group_size,
        )  # fmt: skip
