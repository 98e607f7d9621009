"""Figure of the bytes that a node sends between nodes in a step, as something of the job grows."""

import pandas as pd
from matplotlib.figure import Figure

from flopcast.reports.figures.canvas import GREY, SERIES, blank, in_style

COLOURS = (*SERIES, GREY)
MARKERS = "osD^vPX"
DASHES = ("-", "--", "-.", ":")


def volume_figure(frame: pd.DataFrame, grows: str) -> Figure:
    """A line per strategy over ``frame[grows]``, both axes logarithmic; ``grows`` names the axis.

    Columns: strategy, ``grows`` (numbers, few enough to be ticks), inter_node_bytes. A strategy that sends nothing has
    no point.
    """
    with in_style():
        figure, (axes,) = blank(4.6)
        for place, (strategy, rows) in enumerate(frame.groupby("strategy", sort=False)):
            sent = rows[rows["inter_node_bytes"] > 0]
            axes.plot(
                sent[grows], sent["inter_node_bytes"] / 1e9, color=COLOURS[place % len(COLOURS)],
                marker=MARKERS[place % len(MARKERS)], linestyle=DASHES[place % len(DASHES)], label=str(strategy),
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel=grows, ylabel="GB per node and step, between nodes")
        ticks = sorted(frame[grows].unique())
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.grid(color=GREY, alpha=0.3, linewidth=0.8)
        figure.legend(loc="outside right upper")
    return figure
