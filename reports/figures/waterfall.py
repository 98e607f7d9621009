"""Figure of a step from peak to achieved: each loss begins where the one before it ends."""

from textwrap import fill

import pandas as pd
from matplotlib.figure import Figure

from flopcast.reports.figures.canvas import BAR, GREEN, VERMILION, blank, in_style, rows_from_the_top

LEAST_SHARE = 0.002
CHARACTERS = 24


def waterfall_figure(frame: pd.DataFrame) -> Figure:
    """The ideal first, then what is lost (or gained) and to what; parts under 0.2 % of the step are left out.

    Columns: part (in words), seconds. The first row is the ideal at peak; all rows add up to the step.
    """
    with in_style():
        step = frame["seconds"].sum()
        done = frame["seconds"].cumsum()
        shown = frame.assign(start=done - frame["seconds"])[frame["seconds"].abs() >= LEAST_SHARE * step]
        figure, (axes,) = blank(1.0 + 1.25 * BAR * len(shown))
        for place, (start, seconds) in enumerate(zip(shown["start"], shown["seconds"], strict=True)):
            axes.barh(place, seconds, left=start, height=0.62, color=GREEN if place == 0 or seconds < 0 else VERMILION)
            note = f"{100 * seconds / step:.1f} %"
            end = max(start, start + seconds)
            axes.annotate(note, (end, place), (5, 0), textcoords="offset points", va="center")
        rows_from_the_top(axes, [fill(part, CHARACTERS) for part in shown["part"]])
        axes.set_xlim(0, 1.14 * step)
        axes.set_xlabel("seconds of the step")
    return figure
