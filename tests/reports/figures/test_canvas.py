"""Every figure of a report: nothing is cut, nothing overlaps, every axis says its unit."""

from collections.abc import Callable
from itertools import pairwise

import pandas as pd
import pytest
from builders import cluster, small_model
from matplotlib.axes import Axes
from matplotlib.axis import Tick
from matplotlib.figure import Figure
from matplotlib.text import Text

from flopcast import Request, load_cluster, load_model
from flopcast.reports.document.comparison import memory, remedies, strategies, traffic, why
from flopcast.reports.document.outlook import scaling, sensitivity
from flopcast.reports.document.section import Section
from flopcast.reports.document.study import Study, study
from flopcast.reports.figures.canvas import WIDTH
from flopcast.reports.figures.scaling import scaling_figure
from flopcast.reports.figures.sensitivity import sensitivity_figure

SECTIONS = (strategies, why, memory, traffic, remedies, scaling, sensitivity)
UNITS = ("seconds", "GB", "GPUs", "days", "hours", "minutes", "%")


@pytest.fixture(scope="module", params=["plamo-13b", "llama-3-70b", "small"])
def studied(request: pytest.FixtureRequest) -> Study:
    if request.param == "small":
        return study(small_model(), cluster(), Request(16))
    machine = "abci-a" if request.param == "plamo-13b" else "dgx-h100"
    return study(load_model(request.param), load_cluster(machine), Request(480), 2e12)


def tick_labels(axes: Axes) -> list[list[Text]]:
    """Of the horizontal and the vertical axis, those labels that are drawn: within the view."""
    both = []
    for places, labels, view in (
        (axes.get_xticks(), axes.get_xticklabels(), axes.get_xlim()),
        (axes.get_yticks(), axes.get_yticklabels(), axes.get_ylim()),
    ):
        low, high = sorted(view)
        pairs = zip(places, labels, strict=False)  # panels that share an axis label it once
        both.append([label for place, label in pairs if low <= place <= high and label.get_text()])
    return both


def drawn(figure: Figure) -> list[Text]:
    """Every text that a reader sees."""
    ticks = {label for tick in figure.findobj(Tick) for label in (tick.label1, tick.label2)}
    seen = [label for axes in figure.axes for labels in tick_labels(axes) for label in labels]
    others = [text for text in figure.findobj(Text) if text not in ticks and text.get_visible()]
    return [text for text in seen + others if text.get_text().strip()]


@pytest.mark.parametrize("section", SECTIONS, ids=[section.__name__ for section in SECTIONS])
def test_nothing_is_cut_and_no_ticks_overlap(section: Callable[[Study], Section], studied: Study) -> None:
    (picture,) = section(studied).pictures
    figure = picture.figure
    figure.canvas.draw()
    assert figure.get_size_inches()[0] == WIDTH
    assert len(drawn(figure)) > 6
    for text in drawn(figure):
        box = text.get_window_extent()
        assert -1 <= box.x0 <= box.x1 <= figure.bbox.x1 + 1, text
        assert -1 <= box.y0 <= box.y1 <= figure.bbox.y1 + 1, text
    for axes in figure.axes:
        assert any(unit in axes.get_xlabel() + axes.get_title() for unit in UNITS)
        across, down = ([label.get_window_extent() for label in labels] for labels in tick_labels(axes))
        assert all(left.x1 < right.x0 for left, right in pairwise(across))
        assert all(a.y1 < b.y0 or b.y1 < a.y0 for a, b in pairwise(down))


def test_a_figure_that_changes_nothing_is_labelled_once() -> None:
    """Half and twice of it end at one place."""
    frame = pd.DataFrame(
        [
            *(("peak", change, value, days) for change, value, days in (("half", "1 x", 20.0), ("twice", "4 x", 5.0))),
            *(("NVLink", change, value, 10.0) for change, value in (("half", "150 GB/s"), ("twice", "600 GB/s"))),
        ],
        columns=["figure", "change", "value", "time"],
    )
    figure = sensitivity_figure(frame, 10.0)
    labels = [text for text in drawn(figure) if "GB/s" in text.get_text()]
    assert [label.get_text() for label in labels] == ["150 GB/s or 600 GB/s"]


def test_no_point_of_a_panel_is_cut_at_its_top() -> None:
    frame = pd.DataFrame({"num_gpus": [8, 16], "strategy": "ddp", "fits": True, "mfu": [0.45, 0.45]})
    figure = scaling_figure(frame, frame.assign(time=[2.0, 1.0]), 8, ["ddp"])
    assert figure.axes[1].get_ylim()[1] == pytest.approx(1.1 * 45)
