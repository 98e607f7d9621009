"""Figure of the bytes that one node's GPUs send in a step, between nodes and within, a bar per strategy."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from flopcast.reports.figures.canvas import BAR, ORANGE, SKY, blank, in_style, rows_from_the_top


def traffic_figure(frame: pd.DataFrame) -> Figure:
    """Two panels with scales of their own. Columns: strategy, inter_node_bytes, intra_node_bytes."""
    with in_style():
        figure, panels = blank(1.5 + BAR * len(frame), columns=2, share_y=True)
        columns = (("inter_node_bytes", "between nodes", ORANGE), ("intra_node_bytes", "in the node", SKY))
        for axes, (column, title, colour) in zip(panels, columns, strict=True):
            size = frame[column] / 1e9
            axes.barh(range(len(frame)), size, height=0.72, color=colour)
            for place, value in enumerate(size):
                axes.annotate(f"{value:,.0f}", (value, place), (4, 0), textcoords="offset points", va="center")
            rows_from_the_top(axes, list(frame["strategy"]))
            axes.set_xlim(0, 1.25 * max(size.max(), 1e-9))
            axes.xaxis.set_major_locator(MaxNLocator(4) if size.max() > 0 else FixedLocator([0]))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            axes.set_title(title)
            axes.set_xlabel("GB per step")
    return figure
