"""Figures that only the notebooks draw: marks where the numbers are, nothing cut, a unit on every axis."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from flopcast.reports.evaluation.standardised import language_score
from flopcast.reports.evaluation.tables import language_scores
from flopcast.reports.figures.agreement import agreement_figure
from flopcast.reports.figures.canvas import WIDTH
from flopcast.reports.figures.scores import scores_figure
from flopcast.reports.figures.volume import volume_figure


def ratios() -> pd.DataFrame:
    rows = [("a", "null model", 3.0), ("a", "null model", 0.4), ("a", "forecast", 0.9), ("a", "forecast", 1.1)]
    return pd.DataFrame([*rows, ("b", "forecast", 1.02)], columns=["group", "reading", "ratio"])


def volumes() -> pd.DataFrame:
    frame = pd.DataFrame({"strategy": ["ddp", "ddp", "tp8", "tp8"], "billion parameters": [7.0, 70.0, 7.0, 70.0]})
    return frame.assign(inter_node_bytes=[28e9, 280e9, 0.0, 35e9])


FIGURES = {
    "agreement": lambda: agreement_figure(ratios()),
    "volume": lambda: volume_figure(volumes(), "billion parameters"),
    "scores": lambda: scores_figure(language_score(language_scores().drop(columns="published_mean"))),
}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut(name: str) -> None:
    figure: Figure = FIGURES[name]()
    figure.canvas.draw()
    assert figure.get_size_inches()[0] == WIDTH
    (axes,) = figure.axes
    box = axes.get_tightbbox()
    assert box is not None
    assert -1 <= box.x0 <= box.x1 <= figure.bbox.x1 + 1
    assert -1 <= box.y0 <= box.y1 <= figure.bbox.y1 + 1
    assert axes.get_xlabel()


def test_medians_stand_at_the_median_and_single_runs_have_none() -> None:
    (axes,) = agreement_figure(ratios()).axes
    drawn = [np.asarray(line.get_xdata(), dtype=float) for line in axes.lines]
    assert any(len(x) == 1 and x[0] == pytest.approx(1.7) for x in drawn)
    assert sum(len(x) == 1 and x[0] == pytest.approx(1.02) for x in drawn) == 1
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_lines_are_gigabytes_and_nothing_sent_is_no_point() -> None:
    (axes,) = volume_figure(volumes(), "billion parameters").axes
    ddp, tensor = axes.lines
    assert np.asarray(ddp.get_ydata()) == pytest.approx([28, 280])
    assert np.asarray(tensor.get_xdata()) == pytest.approx([70])


def test_bars_are_the_scores() -> None:
    scores = pd.Series({"a": 0.5, "b": -0.5})
    (axes,) = scores_figure(scores).axes
    assert [bar.get_width() for bar in axes.patches] == [0.5, -0.5]  # type: ignore[attr-defined]
