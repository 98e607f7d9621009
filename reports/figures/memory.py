"""Figure of the memory of one GPU by what holds it, a bar per strategy."""

import pandas as pd
from matplotlib.figure import Figure

from flopcast.reports.figures.canvas import (
    BAR,
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    blank,
    in_style,
    rows_from_the_top,
)

COLOURS = (BLUE, VERMILION, ORANGE, GREEN, SKY, PURPLE, GREY, YELLOW)
CUT_AT_CARDS = 1.75


def memory_figure(frame: pd.DataFrame, gpu_memory_bytes: float) -> Figure:
    """Stacked bars beside a line at the card's memory; a bar far beyond it is cut and carries its size.

    Index: strategies, in order from the top; a column of bytes per category, in the order they are stacked.
    """
    with in_style():
        figure, (axes,) = blank(1.8 + BAR * len(frame))
        totals = frame.sum(axis=1) / 1e9
        card = gpu_memory_bytes / 1e9
        right = min(1.12 * max(totals.max(), card), CUT_AT_CARDS * card)
        done = pd.Series(0.0, index=frame.index)
        for place, category in enumerate(frame.columns):
            size = frame[category] / 1e9
            colour = COLOURS[place % len(COLOURS)]
            axes.barh(
                range(len(frame)), size, left=done, height=0.72, color=colour, edgecolor=PAPER, linewidth=0.6,
                label=category,
            )  # fmt: skip
            done = done + size
        axes.axvline(card, color=INK, linewidth=1.6, linestyle=(0, (4, 2)))
        axes.annotate(
            f"the card: {card:.0f} GB", (card, 1), (4, 3), xycoords=("data", "axes fraction"),
            textcoords="offset points", annotation_clip=False,
        )  # fmt: skip
        for place, total in enumerate(totals):
            if total > right:
                axes.annotate(
                    f"{total:,.0f} GB ▸", (right, place), (-6, 0), textcoords="offset points", va="center", ha="right",
                    bbox={"boxstyle": "round,pad=0.25", "facecolor": PAPER, "edgecolor": "none"},
                )  # fmt: skip
        rows_from_the_top(axes, [str(name) for name in frame.index])
        axes.set_xlim(0, right)
        axes.set_xlabel("GB per GPU at the peak of a step")
        figure.legend(loc="outside upper left", ncols=4, columnspacing=1.4, handlelength=1.2)
    return figure
