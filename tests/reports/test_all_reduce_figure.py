"""The figure of all-reduce algorithms: its lines are the cost model's times, and say what the paper says."""

from pathlib import Path

import numpy as np
import pytest

from flopcast.reports.figures.all_reduce import RESNET_50_BYTES, all_reduce_figure, all_reduce_times, main
from flopcast.simulator.catalogue import load_cluster


def test_lines_are_the_times_and_the_torus_wins_at_scale(tmp_path: Path) -> None:
    gpus = 4 * 2 ** np.arange(2, 11)
    times = all_reduce_times(load_cluster("abci-v"), RESNET_50_BYTES, gpus)
    last = times[times["num_gpus"] == gpus[-1]].set_index("algorithm")["time_s"]
    assert last["torus"] < 0.5 * last["ring"]
    assert last["torus"] < 0.5 * last["hierarchical"]
    axes = all_reduce_figure(times, "title").axes[0]
    assert [line.get_label() for line in axes.lines] == ["torus", "hierarchical", "ring"]
    for line in axes.lines:
        expected = times[times["algorithm"] == line.get_label()]["time_s"] * 1e3
        assert np.asarray(line.get_ydata()) == pytest.approx(expected.to_numpy())
    assert axes.get_xlabel() == "GPUs"
    assert "ms" in axes.get_ylabel()
    main(tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")


def test_the_documentation_says_what_the_figure_shows() -> None:
    gpus = 4 * 2 ** np.arange(2, 11)
    times = all_reduce_times(load_cluster("abci-v"), RESNET_50_BYTES, gpus)
    milliseconds = times.pivot(index="num_gpus", columns="algorithm", values="time_s") * 1e3
    torus, last = milliseconds["torus"], milliseconds.iloc[-1]
    text = " ".join((Path(__file__).parents[2] / "docs" / "collectives.md").read_text().split())
    assert (
        f"the torus stays at {torus.min():.0f} to {torus.max():.0f} ms up to {gpus[-1]:,} GPUs, where the ring needs "
        f"{last['ring']:.0f} ms and the hierarchical one {last['hierarchical']:.0f} ms"
    ) in text
