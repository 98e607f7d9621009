"""Figure of a search: the front of time and memory that no plan beats in both, before every placement."""

import re
from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from flopcast.reports.figures.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    VERMILION,
    blank,
    in_style,
)
from flopcast.reports.placements import described
from flopcast.reports.search import memory_steps
from flopcast.simulator.search import SearchResult

COLOURS = {"ddp": GREY, "zero1": BLUE, "zero2": SKY, "zero3": GREEN, "zero3-node": ORANGE, "hsdp": VERMILION}
# Slower than the fastest by more than this a plan is not worth a place in the figure.
SLOWEST = 3.0
APART = 1.06


def draw(result: SearchResult) -> Figure:
    """The front by strategy (hollow: 4-bit gathers), its plans named at shares of the memory, before all placements.

    Of several GPU counts it is the winner's. Memory in GB per GPU, time in seconds per step, both logarithmic.
    """
    found, _ = result.winner
    best, front = found.best, found.front
    memory_gb, step_s = front.memory.total / 1e9, front.step_s
    with in_style():
        figure, (axes,) = blank(5.6)
        axes.scatter(best.memory.total / 1e9, best.step_s, s=9, color=GREY, alpha=0.35, label="best of a placement")
        axes.plot(memory_gb, step_s, color=INK, linewidth=1.0, drawstyle="steps-pre", zorder=2)
        strategies = np.array([re.sub(r"^hsdp\d+", "hsdp", name) for name in front.plans.strategy])
        for name, colour in COLOURS.items():
            for suffix, face in (("", colour), ("+q4", PAPER)):
                here = strategies == name + suffix
                if np.any(here):
                    axes.scatter(
                        memory_gb[here], step_s[here], s=42, facecolors=face, edgecolors=colour, linewidths=1.5,
                        label=name + suffix, zorder=3,
                    )  # fmt: skip
        axes.axvline(result.cluster.gpu.memory_bytes / 1e9, color=PURPLE, linestyle="--", label="the GPU's memory")
        rows = front.rows()
        named: list[int] = []
        for place in memory_steps(result, found):
            # Names of plans that lie close together would cover each other.
            if named and step_s[place] < APART * step_s[named[-1]]:
                continue
            named.append(place)
            axes.annotate(
                described(rows[place]), (memory_gb[place], step_s[place]), xytext=(-6, -7), textcoords="offset points",
                ha="right", va="top", fontsize=10,
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="GB per GPU", ylabel="seconds per step")
        axes.set_ylim(0.85 * float(step_s[0]), SLOWEST * float(step_s[0]))
        shown = memory_gb[step_s <= SLOWEST * step_s[0]]
        axes.set_xlim(0.35 * float(shown.min()), 1.3 * result.cluster.gpu.memory_bytes / 1e9)
        axes.set_title(
            f"{result.model.name} on {found.num_gpus:,} x {result.cluster.gpu.name}: {found.num_plans:,} plans"
        )
        for axis, digits in ((axes.xaxis, "235"), (axes.yaxis, "2345678")):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_minor_formatter(_beginning_with(digits))
        axes.grid(color=GREY, alpha=0.3, linewidth=0.8)
        figure.legend(loc="outside right upper")
    return figure


def _beginning_with(digits: str) -> Callable[[float, float], str]:
    """Labels of the ticks whose first digit is one of those."""
    return lambda value, _: f"{value:g}" if f"{value:e}"[0] in digits else ""
