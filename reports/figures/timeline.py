"""Figures of a played step: its streams over time with a layer enlarged, and the waterfall from peak to achieved."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from flopcast.reports.timeline import LABELS
from flopcast.simulator.timeline import Timeline, waterfall
from flopcast.simulator.timeline.events import Event, events_of
from flopcast.simulator.timeline.rank import Rank

STYLE = Path(__file__).with_name("style.mplstyle")
COLOURS = {
    "gemm": "#0072B2",
    "attention": "#56B4E9",
    "pointwise": "#009E73",
    "gather": "#E69F00",
    "reduce": "#D55E00",
    "tensor": "#CC79A7",
    "context": "#F0E442",
    "expert": "#882255",
    "pipeline": "#000000",
    "norm": "#999999",
    "forward pass": "#BBBBBB",
    "backward pass": "#555555",
}
NAMES = {
    "gemm": "matrix products",
    "attention": "attention",
    "pointwise": "pointwise, optimizer",
    "gather": "parameter gathers",
    "reduce": "gradient reductions",
    "tensor": "tensor parallel",
    "context": "context parallel",
    "expert": "expert parallel",
    "pipeline": "pipeline sends",
    "norm": "gradient norm",
    "forward pass": "forward pass",
    "backward pass": "backward pass",
}
STREAMS = ("compute", "in-node", "between-nodes")
MOST_STAGES = 16
# Of the rows of a part, or their labels overlap.
MOST_LABELS = 8


def draw(timeline: Timeline) -> Figure:
    """The whole step above; below, the first micro-batch's middle layer forward and backward, and the waterfall.

    With pipeline stages the upper part shows every stage's passes, else the streams of the first rank class.
    """
    with style.context(STYLE):
        figure = Figure(figsize=(12, 10), layout="constrained")
        grid = figure.add_gridspec(3, 2, height_ratios=(1.1, 1.0, 2.2))
        found = _seen(timeline.ranks[0])
        shown = _whole_step(figure.add_subplot(grid[0, :]), timeline, found)
        for column, phase in enumerate(("forward", "backward")):
            shown |= _layer(figure.add_subplot(grid[1, column]), found, phase)
        _waterfall(figure.add_subplot(grid[2, :]), timeline)
        handles = [Patch(color=COLOURS[kind], label=NAMES[kind]) for kind in COLOURS if kind in shown]
        figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure


def _whole_step(axes: Axes, timeline: Timeline, found: Sequence[Event]) -> set[str]:
    chain = [rank for rank in timeline.ranks if rank.place.replica == 0]
    if len(chain) > 1:
        picked = chain if len(chain) <= MOST_STAGES else chain[:: -(-len(chain) // MOST_STAGES)]
        rows = {f"stage {rank.place.stage}": _passes(events_of(rank)) for rank in picked}
    else:
        rows = {stream: [e for e in found if e.stream == stream] for stream in _streams(found)}
        if len(timeline.ranks) > 1:
            busiest = max(
                timeline.ranks[1:], key=lambda rank: sum(play.segment.seconds * play.factor for play in rank.plays)
            )
            rows[f"compute, rank {busiest.place.rank}"] = [e for e in _seen(busiest) if e.stream == "compute"]
    behind = " and those behind it in the pipeline" if len(chain) > 1 else ""
    axes.set_title(f"One step, {timeline.step_s:.3f} s: rank {timeline.ranks[0].place.rank}{behind}")
    axes.set_xlabel("s")
    shown = _rows(axes, rows, 1.0)
    axes.set_xlim(0, timeline.step_s)
    return shown


def _seen(rank: Rank) -> list[Event]:
    """What lasts long enough to be drawn."""
    return [event for event in events_of(rank) if event.end_s > event.start_s]


def _streams(found: Sequence[Event]) -> list[str]:
    """Those that a rank uses."""
    return [stream for stream in STREAMS if any(event.stream == stream for event in found)]


def _passes(found: Sequence[Event]) -> list[Event]:
    """Each pass over a micro-batch as one event."""

    def key(event: Event) -> tuple[str, int]:
        return "forward pass" if event.phase == "forward" else "backward pass", event.micro_batch

    computed = [e for e in found if e.stream == "compute" and e.phase != "step"]
    runs = [(kind, list(run)) for (kind, _), run in groupby(computed, key)]
    return [run[0]._replace(kind=kind, end_s=run[-1].end_s) for kind, run in runs]


def _layer(axes: Axes, found: Sequence[Event], phase: str) -> set[str]:
    """One layer of the first micro-batch, with everything that goes on meanwhile."""
    phases = ("forward",) if phase == "forward" else ("recompute", "backward")
    mine = [e for e in found if e.stream == "compute" and e.layer >= 0 and e.micro_batch == 0 and e.phase in phases]
    middle = sorted({e.layer for e in mine})[len({e.layer for e in mine}) // 2]
    start = min(e.start_s for e in mine if e.layer == middle)
    end = max(e.end_s for e in mine if e.layer == middle)
    rows = {s: [e for e in found if e.stream == s and e.end_s > start and e.start_s < end] for s in _streams(found)}
    axes.set_title(f"Layer {middle} {phase}")
    axes.set_xlabel("ms from its start")
    shown = _rows(axes, rows, 1e3, start)
    axes.set_xlim(0, (end - start) * 1e3)
    return shown


def _rows(axes: Axes, rows: dict[str, list[Event]], scale: float, origin: float = 0.0) -> set[str]:
    shown = set()
    for row, events in enumerate(rows.values()):
        for kind in COLOURS:
            spans = [((e.start_s - origin) * scale, (e.end_s - e.start_s) * scale) for e in events if e.kind == kind]
            if spans:
                shown.add(kind)
                axes.broken_barh(spans, (row - 0.4, 0.8), facecolors=COLOURS[kind], linewidth=0)
    every = -(-len(rows) // MOST_LABELS)
    axes.set_yticks(range(0, len(rows), every), list(rows)[::every])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    return shown


def _waterfall(axes: Axes, timeline: Timeline) -> None:
    parts = [p for p in waterfall(timeline) if abs(p.seconds) >= 0.001 * timeline.step_s]
    done = 0.0
    for row, part in enumerate(parts):
        axes.barh(
            row, part.seconds, left=done, color="#009E73" if row == 0 or part.seconds < 0 else "#D55E00", height=0.7
        )
        done += part.seconds
        percent = f"{100 * part.seconds / timeline.step_s:.1f} %"
        axes.text(max(done, done - part.seconds) + 0.005 * timeline.step_s, row, percent, va="center")
    axes.set_yticks(range(len(parts)), [LABELS[part.name] for part in parts])
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.set_xlim(0, 1.09 * timeline.step_s)
    axes.set_xlabel("s")
    axes.set_title("From peak to achieved, the average GPU")
