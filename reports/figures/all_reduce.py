"""Figure of an all-reduce's time against GPUs: the 2-D torus beside the ring and the hierarchical one.

``python -m flopcast.reports.figures.all_reduce FILE.svg`` draws the gradients of ResNet-50 on ABCI (V), where the
torus was published (arXiv:1811.05233).
"""

import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flopcast.collectives import all_reduce
from flopcast.collectives.group import Group
from flopcast.reports.figures.canvas import save
from flopcast.simulator.catalogue import load_cluster
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.hardware import Hardware

STYLE = Path(__file__).with_name("style.mplstyle")
ALGORITHMS = {"torus": ("#0072B2", "-"), "hierarchical": ("#E69F00", "--"), "ring": ("#D55E00", ":")}
# Lines that end nearer together than this factor share the space for their names.
APART = 1.25
RESNET_50_BYTES = 25_557_032 * 2  # 16-bit gradients


def all_reduce_times(cluster: Cluster, tensor_bytes: float, num_gpus: np.ndarray) -> pd.DataFrame:
    """Columns num_gpus, algorithm, time_s: each algorithm on whole nodes of the cluster, ``tensor_bytes`` per GPU."""
    fabric = Hardware.of([cluster]).fabric
    group = Group(num_gpus, np.full_like(num_gpus, cluster.gpus_per_node))
    parts = []
    for algorithm in ALGORITHMS:
        found = all_reduce.cost(np.full(len(num_gpus), tensor_bytes), group, fabric, algorithm=algorithm)
        parts.append(pd.DataFrame({"num_gpus": num_gpus, "algorithm": algorithm, "time_s": found.time_s}))
    return pd.concat(parts, ignore_index=True)


def all_reduce_figure(times: pd.DataFrame, title: str) -> Figure:
    """Time against GPUs, both logarithmic, a line per algorithm labelled at its end."""
    with style.context(STYLE):
        figure = Figure()
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        last = times[times["num_gpus"] == times["num_gpus"].max()].set_index("algorithm")["time_s"]
        for algorithm, (colour, dashes) in ALGORITHMS.items():
            rows = times[times["algorithm"] == algorithm]
            axes.plot(rows["num_gpus"], rows["time_s"] * 1e3, dashes, color=colour, marker="o", label=algorithm)
            axes.annotate(
                algorithm,
                (rows["num_gpus"].iloc[-1], rows["time_s"].iloc[-1] * 1e3),
                xytext=(8, 0),
                textcoords="offset points",
                color=colour,
                va=_beside(last, algorithm),
            )
        axes.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="all-reduce, ms", title=title)
        ticks = sorted(times["num_gpus"].unique())[::2]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        low, high = times["time_s"].min() * 1e3, times["time_s"].max() * 1e3
        marks = [digit * 10**power for power in range(6) for digit in (1, 2, 5)]
        marks = [mark for mark in marks if low / 2 < mark < high * 2]
        axes.set_yticks(marks, [f"{mark:,}" for mark in marks])
        axes.margins(x=0.18)
        axes.grid(axis="y", alpha=0.3)
    return figure


def _beside(last: pd.Series, algorithm: str) -> Literal["bottom", "center", "top"]:
    """Where a line's name stands: names of lines that end close together make room for each other."""
    others = last.drop(algorithm) / last[algorithm]
    close = others[(others > 1 / APART) & (others < APART)]
    if close.empty:
        return "center"
    # Of equals the one that comes first stands above.
    places = list(last.index)
    below = [ratio < 1 or (ratio == 1 and places.index(algorithm) < places.index(n)) for n, ratio in close.items()]
    return "bottom" if all(below) else "top"


def main(path: Path) -> None:
    """Write the figure of the published setting."""
    gpus = 4 * 2 ** np.arange(2, 11)
    times = all_reduce_times(load_cluster("abci-v"), RESNET_50_BYTES, gpus)
    figure = all_reduce_figure(times, "51 MB of gradients on ABCI (V): 4 V100 and 2 x 100 Gbit/s per node")
    save(figure, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
