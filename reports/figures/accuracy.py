"""Figure of the forecast's accuracy: predicted against measured step times, a colour and marker per source."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from flopcast.errors import InputError
from flopcast.reports.figures.canvas import GREY, INK, SERIES, blank, in_style

COLOURS = (*SERIES, INK)
MARKERS = "os^Dv<>P"
HEIGHT = 6.4  # inches
TOLERANCE = 1.2


def accuracy_figure(rows: pd.DataFrame) -> Figure:
    """Log-log over all runs; on the line the forecast is the measurement, in the strip it is within a fifth of it.

    Columns: source, measured_step_s, predicted_step_s. The legend has each source's number of runs and its median
    error, the largest source first, which is also drawn first. Raises InputError where there is none.
    """
    if rows.empty:
        raise InputError("--figure: no run of the table can be forecast, so there is nothing to draw; leave it out")
    with in_style():
        figure, (axes,) = blank(HEIGHT)
        seconds = rows[["measured_step_s", "predicted_step_s"]].to_numpy(dtype=np.float64)
        ends = np.array([seconds.min() / 1.3, seconds.max() * 1.3])
        axes.fill_between(ends, ends / TOLERANCE, ends * TOLERANCE, color=GREY, alpha=0.2, linewidth=0)
        axes.plot(ends, ends, color=INK, linewidth=1.0)
        for place, source in enumerate(rows["source"].value_counts().index):
            own = rows[rows["source"] == source]
            error = (own["predicted_step_s"] / own["measured_step_s"] - 1).abs().median()
            axes.plot(
                own["measured_step_s"], own["predicted_step_s"], MARKERS[place % len(MARKERS)],
                color=COLOURS[place % len(COLOURS)], alpha=0.55, markersize=5, markeredgewidth=0,
                label=f"{source}: {len(own)}, {error:.0%}",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
        axes.set_xlabel("measured step, seconds")
        axes.set_ylabel("predicted step, seconds")
        axes.grid(color=GREY, alpha=0.3, linewidth=0.8)
        legend = axes.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1.0), title="source: runs, median |error|", borderaxespad=0.0
        )
        legend.get_title().set_fontweight("bold")
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1.0)
    return figure
