"""Figure of strategies side by side: step time with its band."""

import pandas as pd
from matplotlib.figure import Figure

from flopcast.reports.figures.canvas import BAR, BLUE, GREY, blank, in_style, rows_from_the_top
from flopcast.reports.frames import rows_of


def strategies_figure(frame: pd.DataFrame) -> Figure:
    """A point and its 80 % band per strategy, in the frame's order, hollow and grey where the plan does not fit.

    Columns: strategy, step_s, low_s, high_s, mfu (a fraction), fits, tight (its memory).
    """
    with in_style():
        figure, (axes,) = blank(1.1 + BAR * len(frame))
        for place, row in enumerate(rows_of(frame)):
            colour = BLUE if row.fits else GREY
            axes.hlines(place, row.low_s, row.high_s, color=colour, linewidth=3, alpha=0.45)
            axes.plot(row.step_s, place, "o", color=colour, markersize=8, fillstyle="full" if row.fits else "none")
            note = f"{100 * row.mfu:.0f} % MFU{', tight' if row.tight else ''}" if row.fits else "does not fit"
            axes.annotate(note, (row.high_s, place), xytext=(8, 0), textcoords="offset points", va="center")
        rows_from_the_top(axes, list(frame["strategy"]))
        axes.set_xlim(0, (1.32 if frame["tight"].any() else 1.22) * frame["high_s"].max())
        axes.set_xlabel("seconds per step; the line holds four in five comparable runs")
    return figure
