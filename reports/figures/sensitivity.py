"""Tornado figure: how half and twice of each figure of the question change the days of training."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from flopcast.reports.figures.canvas import BAR, BLUE, INK, ORANGE, blank, in_style, rows_from_the_top
from flopcast.reports.frames import rows_of

COLOURS = {"half": ORANGE, "twice": BLUE}


def sensitivity_figure(frame: pd.DataFrame, asked: float, unit: str = "days") -> Figure:
    """Two bars per figure from ``asked``, the time as asked, the widest on top.

    A change under which nothing is possible has none. Columns: figure, change (half,
    twice), value (what it then is), time in ``unit``.
    """
    with in_style():
        reach = (frame["time"] - asked).abs().fillna(0).groupby(frame["figure"]).max().sort_values(ascending=False)
        figure, (axes,) = blank(1.6 + 1.2 * BAR * len(reach))
        for row in rows_of(frame.dropna(subset=["time"])):
            place = list(reach.index).index(row.figure)
            axes.barh(place, row.time - asked, left=asked, height=0.62, color=COLOURS[row.change])
        rows_from_the_top(axes, list(reach.index))
        values = frame.set_index(["figure", "change"])["value"]
        for place, name in enumerate(reach.index):
            found = frame[(frame["figure"] == name) & frame["time"].notna()]
            left, right = found["time"].min(), found["time"].max()
            # Half and twice that change nothing alike have no side of their own.
            sides: dict[bool, list[str]] = {}
            for row in rows_of(found):
                at_left = row.time == left and (row.time < asked or left != right)
                sides.setdefault(at_left, []).append(values[name, row.change])
            for at_left, words in sides.items():
                edge = min(left, asked) if at_left else max(right, asked)
                axes.annotate(
                    " or ".join(words), (edge, place), (-5 if at_left else 5, 0), textcoords="offset points",
                    va="center", ha="right" if at_left else "left", fontsize="small",
                )  # fmt: skip
        low, high = min(frame["time"].min(), asked), max(frame["time"].max(), asked)
        margin = 0.4 * max(high - low, 0.02 * asked)
        axes.set_xlim(low - margin, high + margin)
        axes.axvline(asked, color=INK, linewidth=1.2)
        axes.set_xlabel(f"{unit} of training")
        handles = [Patch(color=colour, label=change) for change, colour in COLOURS.items()]
        figure.legend(handles=handles, loc="outside upper right", ncols=2)
    return figure
