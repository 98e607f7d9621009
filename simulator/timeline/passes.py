"""Passes: what a stage runs for one action of its schedule, laid out as segments between which it communicates."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator.engines import ENGINES
from flopcast.simulator.model import Model
from flopcast.simulator.placement import layers_of_chunks
from flopcast.simulator.plan import Plan
from flopcast.simulator.stages import busy_seconds
from flopcast.simulator.timeline.program import Piece, Program, TransferKind, UnitProgram
from flopcast.simulator.timeline.schedule import Direction

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Segment:
    """Pieces that follow each other on the compute stream without a wait, the host's delays between them included.

    Piece i runs from ``starts[i]`` to ``ends[i]`` seconds of work. ``by_cause`` holds the seconds at full speed;
    ``slowed_s`` what a slow node adds to them. ``exposed`` are the seconds by (collective, group, phase).
    """

    pieces: tuple[Piece, ...]
    starts: Floats
    ends: Floats
    seconds: float
    by_cause: dict[str, float]
    slowed_s: float
    exposed: dict[tuple[str, str, str], float]


@dataclass(frozen=True)
class Station:
    """A unit's place in a pass: it waits for ``gathers``, runs ``segment``, then posts ``reductions``.

    ``exchanges`` run beside it and what follows, in a pass that is run together with another.

    ``layer`` is the layer's index in the model, -1 for the embedding and the head. ``reduced_before`` counts the
    units of the same kind that the pass has reduced already, for buckets that hold several.
    """

    layer: int
    segment: Segment
    gathers: tuple[TransferKind, ...]
    reductions: tuple[TransferKind, ...]
    exchanges: tuple[TransferKind, ...]
    reduced_before: int
    num_of_kind: int


@dataclass
class _Draft:
    layer: int
    kind: str
    pieces: list[Piece]
    gathers: list[TransferKind]
    reductions: list[TransferKind]
    exchanges: list[TransferKind]


class Passes:
    """The passes of every stage of one plan, each laid out once and played as often as it occurs."""

    def __init__(self, model: Model, program: Program, plan: Plan) -> None:
        pp, virtual_pp = plan.pp, plan.virtual_pp
        names = model.kind_names
        self._kinds = [names[block] for block in model.layers]
        self._program = program
        self._pp = pp
        self._num_chunks = pp * virtual_pp
        self._layers = layers_of_chunks(model.num_layers, pp, virtual_pp, ENGINES[plan.engine].counts_ends)
        self._split = plan.schedule == "zero-bubble"
        self._num_recomputed = plan.recompute_layers or model.num_layers
        self._known: dict[tuple[object, ...], tuple[Station, ...]] = {}

    def of(
        self, chunk: int, direction: Direction, first: bool, last: bool, paired: bool, speed: float
    ) -> tuple[Station, ...]:
        """The stations of a pass through model chunk ``chunk`` (counted over all stages).

        ``first`` and ``last`` say whether the micro-batch is the step's first or last, ``paired`` whether the pass is
        run together with another micro-batch's; ``speed`` is the node's.
        """
        key = (chunk, direction, first, last, paired, speed)
        if key not in self._known:
            drafts = self._drafts(chunk, direction, first, last, paired)
            segments = lay_out([draft.pieces for draft in drafts], [_host_s(draft) for draft in drafts], speed)
            total: defaultdict[str, int] = defaultdict(int)
            for draft in drafts:
                total[draft.kind] += 1
            before: defaultdict[str, int] = defaultdict(int)
            stations = []
            for draft, segment in zip(drafts, segments, strict=True):
                done, before[draft.kind] = before[draft.kind], before[draft.kind] + 1
                gathers, reductions = tuple(draft.gathers), tuple(draft.reductions)
                exchanges, number = tuple(draft.exchanges), total[draft.kind]
                stations.append(Station(draft.layer, segment, gathers, reductions, exchanges, done, number))
            self._known[key] = tuple(stations)
        return self._known[key]

    def step(self, stage: int, speed: float) -> Segment:
        """Gradient clipping and the optimizer on one stage."""
        pieces: list[Piece] = []
        for chunk in range(stage, self._num_chunks, self._pp):
            for layer in self._layers[chunk]:
                pieces += self._unit(self._kinds[layer]).step
        for unit in self._root(stage, self._pp):
            pieces += unit.step
        return lay_out([pieces], [0.0], speed)[0]

    def _unit(self, name: str) -> UnitProgram:
        return self._program.units.get(name, UnitProgram())

    def _root(self, chunk: int, num: int) -> list[UnitProgram]:
        """What the first and the last of ``num`` stages hold besides layers, as a unit of parameters."""
        if chunk not in (0, num - 1):
            return []
        return [self._unit("root" if self._pp == 1 else "stage_root")]

    def _drafts(self, chunk: int, direction: Direction, first: bool, last: bool, paired: bool) -> list[_Draft]:
        forward = direction == "forward"
        occurs = {"every": True, "first": first, "later": not first, "last": last}
        root = self._root(chunk, self._num_chunks)
        single = self._num_chunks == 1

        def draft(layer: int, kind: str, units: Sequence[UnitProgram], gathered: bool, reduced: bool) -> _Draft:
            again = layer < self._layers[chunk].start + self._num_recomputed

            def kept(piece: Piece) -> bool:
                if not occurs[piece.when] or (paired and piece.kind == "expert"):
                    return False
                if piece.phase == "recompute" and not again:
                    return False
                name = piece.name.rpartition(".")[2]
                if (name == "dequantise" and not gathered) or (name == "accumulate" and not reduced):
                    return False
                return not self._split or forward or (direction == "weight") == piece.of_weights

            pieces = [p for unit in units for p in (unit.forward if forward else unit.backward) if kept(p)]
            gathers, reductions = [], []
            if gathered and direction != "weight":
                gathers = [g for u in units for g in u.gathers if occurs[g.when] and (g.phase == "forward") == forward]
            if reduced and not forward and not (self._split and direction == "backward"):
                reductions = [r for u in units for r in u.reductions if occurs[r.when]]
            exchanges = [e for u in units for e in u.exchanges if paired and (e.phase == "forward") == forward]
            return _Draft(layer, kind, pieces, gathers, reductions, exchanges)

        drafts = []
        if chunk == 0:
            units = [*root, self._unit("embedding")]
            drafts.append(draft(-1, "embedding", units, gathered=forward or not single, reduced=True))
        for layer in self._layers[chunk]:
            kind = self._kinds[layer]
            drafts.append(draft(layer, kind, [self._unit(kind)], gathered=True, reduced=True))
        if chunk == self._num_chunks - 1:
            units = [*root, self._unit("head")]
            drafts.append(draft(-1, "head", units, gathered=not (forward and single), reduced=not single))
        if not forward:
            drafts.reverse()
        return drafts


def _host_s(draft: _Draft) -> float:
    moved_s = sum(kind.host_s * kind.calls for kind in (*draft.gathers, *draft.reductions))
    return moved_s + sum(e.host_s for e in draft.exchanges)


def lay_out(runs: Sequence[Sequence[Piece]], host_before: Sequence[float], speed: float) -> list[Segment]:
    """Segments of one pass, with the gaps in which the host holds the device up.

    A pass takes what :func:`busy_seconds` says of its device and host time. What that adds to the device's time falls
    on the pieces that take longer to launch than to run, if any do. ``host_before``: what the host does before each
    segment besides. Computation takes 1/``speed`` of its time, collectives do not change.
    """
    spent = [[p.seconds if p.link else p.seconds / speed for p in pieces] for pieces in runs]
    late = [
        [max(p.host_s - s, 0.0) for p, s in zip(pieces, times, strict=True)]
        for pieces, times in zip(runs, spent, strict=True)
    ]
    device = sum(map(sum, spent))
    host = sum(host_before) + sum(p.host_s for pieces in runs for p in pieces)
    gaps = float(busy_seconds(np.array([device]), np.array([host]))[0]) - device
    if not any(map(any, late)):
        late = [[p.host_s for p in pieces] for pieces in runs]
    lateness = sum(map(sum, late))
    scale = gaps / lateness if lateness else 0.0
    return [_segment(p, s, np.array(w) * scale) for p, s, w in zip(runs, spent, late, strict=True)]


def _segment(pieces: Sequence[Piece], spent: Sequence[float], gaps: Floats) -> Segment:
    ends = np.cumsum(np.array(spent) + gaps)
    by_cause: defaultdict[str, float] = defaultdict(float)
    exposed: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    for piece, seconds in zip(pieces, spent, strict=True):
        by_cause[piece.cause] += piece.seconds
        if piece.link:
            exposed[piece.collective, piece.group, piece.phase] += seconds
    by_cause["launch"] = float(np.sum(gaps))
    return Segment(
        pieces=tuple(pieces),
        starts=ends - spent,
        ends=ends,
        seconds=float(ends[-1]) if len(ends) else 0.0,
        by_cause=dict(by_cause),
        slowed_s=sum(spent) - sum(piece.seconds for piece in pieces),
        exposed=dict(exposed),
    )
