"""Figures of the same training on fewer and on more GPUs: how long it takes, and how efficient each plan is."""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from flopcast.reports.figures.canvas import BLUE, GREY, INK, SERIES, blank, in_style
from flopcast.simulator.search import SearchResult

MARKERS = "osD^vP"
MOST_TICKS = 5
FEW_DECADES = 100.0


def scaling_figure(
    frame: pd.DataFrame, best: pd.DataFrame, num_gpus: int, strategies: list[str], unit: str = "days"
) -> Figure:
    """Left: time of the best plan beside ideal scaling from its first point. Right: MFU of up to six strategies.

    ``frame``: columns num_gpus, strategy, fits, mfu (a fraction). ``best``: num_gpus, and time in
    ``unit``, one row per count. A line marks ``num_gpus``; plans that do not fit have no point.
    """
    with in_style():
        figure, (left, right) = blank(4.9, columns=2)
        counts, time = best["num_gpus"], best["time"]
        left.plot(counts, time.iloc[0] * counts.iloc[0] / counts, color=GREY, linestyle="--", label="ideal")
        left.plot(counts, time, "o-", color=BLUE, label="forecast")
        left.set(yscale="log", title=f"{unit} of training", xlabel="GPUs")
        left.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        if time.max() < FEW_DECADES * time.min():
            left.yaxis.set_minor_formatter(lambda value, _: f"{value:,g}" if f"{value:e}"[0] in "25" else "")
        else:
            left.yaxis.set_minor_locator(NullLocator())
        left.legend(loc="lower left")
        drawn = strategies[: len(SERIES)]
        most = frame.loc[frame["strategy"].isin(drawn) & frame["fits"], "mfu"].max()
        for place, strategy in enumerate(drawn):
            rows = frame[(frame["strategy"] == strategy) & frame["fits"]]
            right.plot(
                rows["num_gpus"], 100 * rows["mfu"], "-", marker=MARKERS[place], color=SERIES[place], label=strategy
            )
        right.set(title="MFU, %", xlabel="GPUs", ylim=(0, 110 * most if most > 0 else None))
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=3)
        for axes in (left, right):
            axis_of_counts(axes, sorted(set(counts)))
            axes.axvline(num_gpus, color=INK, linewidth=1, linestyle=":")
    return figure


def search_scaling(result: SearchResult) -> Figure:
    """Left: seconds of the best plan's step on each GPU count with its band, beside ideal scaling. Right: its MFU."""
    rows = [found.rows[0] for found in result.found]
    counts = [found.num_gpus for found in result.found]
    with in_style():
        figure, (left, right) = blank(4.6, columns=2)
        left.plot(counts, [rows[0].step_s * counts[0] / n for n in counts], color=GREY, linestyle="--", label="ideal")
        left.fill_between(counts, [r.low_s for r in rows], [r.high_s for r in rows], color=BLUE, alpha=0.2, linewidth=0)
        left.plot(counts, [row.step_s for row in rows], "o-", color=BLUE, label="forecast, 80 % band")
        left.set(yscale="log", title="seconds per step", xlabel="GPUs")
        left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        left.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
        left.legend(loc="lower left")
        right.plot(counts, [100 * row.mfu for row in rows], "o-", color=BLUE)
        right.set(title="MFU, %", xlabel="GPUs", ylim=(0, 115 * max(row.mfu for row in rows)))
        for axes in (left, right):
            axis_of_counts(axes, counts)
        figure.suptitle(
            f"{result.model.name} on {result.cluster.gpu.name}: the best plan by {result.request.objective}", x=0.01,
            ha="left", fontsize=14,
        )  # fmt: skip
    return figure


def axis_of_counts(axes: Axes, counts: list[int]) -> None:
    """A logarithmic axis of GPUs with a tick at every count, or at some of many."""
    axes.set_xscale("log")
    ticks = counts[:: math.ceil(len(counts) / MOST_TICKS)]
    axes.set_xticks(ticks, [f"{count:,}" for count in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color=GREY, alpha=0.3, linewidth=0.8)
