"""Figure of what the hand-written kernels and the 4-bit all-gather bring: a bar for each choice."""

import pandas as pd
from matplotlib.figure import Figure

from flopcast.reports.document.numbers import digits
from flopcast.reports.figures.canvas import BAR, BLUE, GREY, blank, in_style, rows_from_the_top
from flopcast.reports.frames import rows_of


def effects_figure(frame: pd.DataFrame) -> Figure:
    """Bars of step time and the change against the first, which has neither. Columns: choice, step_s, fits."""
    with in_style():
        figure, (axes,) = blank(1.0 + 1.15 * BAR * len(frame))
        first = frame["step_s"].iloc[0]
        for place, row in enumerate(rows_of(frame)):
            axes.barh(place, row.step_s, height=0.66, color=GREY if place == 0 else BLUE)
            note = f"{digits(row.step_s)} s"
            if place:
                note += f"  ({100 * (row.step_s / first - 1):+.1f} %)"
            if not row.fits:
                note += ", does not fit"
            axes.annotate(note, (row.step_s, place), (6, 0), textcoords="offset points", va="center")
        rows_from_the_top(axes, list(frame["choice"]))
        axes.set_xlim(0, 1.34 * frame["step_s"].max())
        axes.set_xlabel("seconds per step")
    return figure
