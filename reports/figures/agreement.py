"""Figure of forecasts beside measurements: predicted over measured, a row per group of runs."""

import pandas as pd
from matplotlib.figure import Figure

from flopcast.reports.figures.canvas import BAR, BLUE, GREY, INK, ORANGE, blank, in_style, rows_from_the_top

COLOURS = (GREY, ORANGE, BLUE)
TICKS = (0.02, 0.05, 0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
COARSE = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
MOST_TICKS = 7


def agreement_figure(frame: pd.DataFrame) -> Figure:
    """A dot per run, a bar at the median of several; on the line the forecast is the measurement.

    Columns: group, in the order of the rows from the top; reading, such as "null model" and "forecast", up to three,
    the best last; ratio, predicted over measured.
    """
    with in_style():
        groups = list(dict.fromkeys(frame["group"]))
        readings = list(dict.fromkeys(frame["reading"]))
        figure, (axes,) = blank(1.7 + 1.15 * BAR * len(groups))
        for place, (group, reading) in ((p, (g, r)) for p, g in enumerate(groups) for r in readings):
            ratios = frame.loc[(frame["group"] == group) & (frame["reading"] == reading), "ratio"]
            number = readings.index(reading)
            colour = COLOURS[number - len(readings)]
            height = place + 0.3 * (number - (len(readings) - 1) / 2)
            many = len(ratios) > 1
            label = reading if place == 0 else None
            axes.plot(
                ratios, [height] * len(ratios), "o", color=colour, alpha=0.25 if many else 1.0,
                markersize=4 if many else 8, markeredgewidth=0, label=None if many else label,
            )  # fmt: skip
            if many:
                axes.plot(
                    [ratios.median()], [height], "|", color=colour, markersize=11, markeredgewidth=3.5,
                    label=label and f"{label}: a dot per run, the median",
                )  # fmt: skip
        axes.axvline(1.0, color=INK, linewidth=1.2)
        rows_from_the_top(axes, groups)
        axes.set_xscale("log")
        low, high = min(frame["ratio"].min(), 0.9) / 1.03, max(frame["ratio"].max(), 1.1) * 1.03
        axes.set_xlim(low, high)
        ticks = [tick for tick in TICKS if low < tick < high]
        if len(ticks) > MOST_TICKS:
            ticks = [tick for tick in ticks if tick in COARSE]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("predicted seconds / measured seconds")
        figure.legend(loc="outside upper left", ncols=len(readings))
    return figure
