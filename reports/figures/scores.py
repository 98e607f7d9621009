"""Figure of language scores: a bar per model, to either side of the average model."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flopcast.reports.figures.canvas import BAR, BLUE, INK, ORANGE, blank, in_style, rows_from_the_top


def scores_figure(scores: pd.Series) -> Figure:
    """Mean standardised scores by model, in the order given from the top."""
    with in_style():
        figure, (axes,) = blank(1.0 + BAR * len(scores))
        colours = [BLUE if score >= 0 else ORANGE for score in scores]
        axes.barh(range(len(scores)), scores, height=0.62, color=colours)
        for place, score in enumerate(scores):
            side = 1 if score >= 0 else -1
            axes.annotate(
                f"{score:+.2f}", (score, place), (5 * side, 0), textcoords="offset points", va="center",
                ha="left" if side > 0 else "right",
            )  # fmt: skip
        rows_from_the_top(axes, [str(model) for model in scores.index])
        reach = 1.4 * max(scores.abs().max(), 0.1)
        axes.set_xlim(-reach, reach)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.axvline(0, color=INK, linewidth=1.2)
        axes.set_xlabel("standard deviations above the average model")
    return figure
