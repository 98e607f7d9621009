"""Tornado figure: how half and twice of each figure of the question change the days of training."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from flopcast.reports.figures.canvas import BAR, BLUE, INK, ORANGE, blank, in_style, rows_from_the_top
from flopcast.reports.frames import rows_of

COLOURS = {"half": ORANGE, "twice": BLUE}


def sensitivity_figure(frame: pd.DataFrame, days: float) -> Figure:
    """Two bars per figure from ``days``, the widest on top; a change under which nothing is possible has none.

    Columns: figure, change (half, twice), value (what it then is), days.
    """
    with in_style():
        reach = (frame["days"] - days).abs().fillna(0).groupby(frame["figure"]).max().sort_values(ascending=False)
        figure, (axes,) = blank(1.6 + 1.2 * BAR * len(reach))
        for row in rows_of(frame.dropna(subset=["days"])):
            place = list(reach.index).index(row.figure)
            axes.barh(place, row.days - days, left=days, height=0.62, color=COLOURS[row.change])
        rows_from_the_top(axes, list(reach.index))
        values = frame.set_index(["figure", "change"])["value"]
        for place, name in enumerate(reach.index):
            found = frame[(frame["figure"] == name) & frame["days"].notna()]
            left, right = found["days"].min(), found["days"].max()
            for row in rows_of(found):
                at_left = row.days == left and (row.days < days or left != right)
                edge = min(left, days) if at_left else max(right, days)
                axes.annotate(
                    values[name, row.change], (edge, place), (-5 if at_left else 5, 0), textcoords="offset points",
                    va="center", ha="right" if at_left else "left", fontsize="small",
                )  # fmt: skip
        low, high = min(frame["days"].min(), days), max(frame["days"].max(), days)
        margin = 0.4 * max(high - low, 0.02 * days)
        axes.set_xlim(low - margin, high + margin)
        axes.axvline(days, color=INK, linewidth=1.2)
        axes.set_xlabel("days of training")
        handles = [Patch(color=colour, label=change) for change, colour in COLOURS.items()]
        figure.legend(handles=handles, loc="outside upper right", ncols=2)
    return figure
