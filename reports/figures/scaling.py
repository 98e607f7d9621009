"""Figure of the same training on fewer and on more GPUs: days, and the efficiency of each strategy."""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flopcast.reports.figures.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    blank,
    in_style,
)

COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)
MARKERS = "osD^vP"
MOST_TICKS = 5


def scaling_figure(frame: pd.DataFrame, fastest: pd.DataFrame, num_gpus: int, strategies: list[str]) -> Figure:
    """Left: days of the fastest plan beside ideal scaling from its first point. Right: MFU of up to six strategies.

    ``frame``: columns num_gpus, strategy, fits, mfu (a fraction). ``fastest``: num_gpus, days, one row per count.
    A line marks ``num_gpus``; plans that do not fit have no point.
    """
    with in_style():
        figure, (left, right) = blank(4.9, columns=2)
        counts, days = fastest["num_gpus"], fastest["days"]
        left.plot(counts, days.iloc[0] * counts.iloc[0] / counts, color=GREY, linestyle="--", label="ideal")
        left.plot(counts, days, "o-", color=BLUE, label="forecast")
        left.set(yscale="log", title="days of training", xlabel="GPUs")
        left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        left.legend(loc="lower left")
        for place, strategy in enumerate(strategies[: len(COLOURS)]):
            rows = frame[(frame["strategy"] == strategy) & frame["fits"]]
            right.plot(
                rows["num_gpus"], 100 * rows["mfu"], "-", marker=MARKERS[place], color=COLOURS[place], label=strategy
            )
        right.set(title="MFU, %", xlabel="GPUs", ylim=(0, None))
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=3)
        for axes in (left, right):
            _counts(axes, sorted(set(counts)), num_gpus)
    return figure


def _counts(axes: Axes, counts: list[int], num_gpus: int) -> None:
    axes.set_xscale("log")
    ticks = counts[:: math.ceil(len(counts) / MOST_TICKS)]
    axes.set_xticks(ticks, [f"{count:,}" for count in ticks])
    axes.minorticks_off()
    axes.grid(color=GREY, alpha=0.3, linewidth=0.8)
    axes.axvline(num_gpus, color=INK, linewidth=1, linestyle=":")
