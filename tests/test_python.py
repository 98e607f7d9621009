"""The public names as one meets them in a notebook: completion, short texts, tables."""

import pytest

import flopcast
from flopcast import Comparison, Request, SearchRequest, compare, forecast, load_cluster, load_model, run_cost, search
from flopcast.simulator.plan import Plan


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare(load_model("pythia-1b"), load_cluster("abci-a"), Request(16))


def test_completion_offers_every_public_name() -> None:
    assert set(flopcast.__all__) <= set(dir(flopcast))
    for name in flopcast.__all__:
        assert getattr(flopcast, name).__doc__


def test_the_best_is_the_fastest_that_fits(comparison: Comparison) -> None:
    roomy = [row for row in comparison.rows if row.fits and not row.tight]
    assert comparison.best.step_s == min(row.step_s for row in roomy)
    cost = run_cost(comparison.model, comparison.cluster, comparison.best, 1e12)
    assert cost.gpu_hours == pytest.approx(cost.days * 24 * 16)


def test_a_comparison_is_a_table_with_the_plan_and_its_forecast(comparison: Comparison) -> None:
    frame = comparison.to_frame()
    assert list(frame["strategy"]) == [row.strategy for row in comparison.rows]
    assert list(frame["step_s"]) == [row.step_s for row in comparison.rows]
    alone = forecast(comparison.model, comparison.cluster, Plan(**comparison.best.plan)).to_frame()
    assert list(alone.columns) == list(frame.columns)
    assert frame["memory_bytes"].dtype == float
    assert frame["fits"].dtype == bool


def test_results_show_themselves_in_a_line_and_as_a_table(comparison: Comparison) -> None:
    model, cluster = comparison.model, comparison.cluster
    found = search(model, cluster, SearchRequest([8, 16], top=2))
    many = forecast(model, cluster, [Plan(**row.plan) for row in comparison.rows])
    for result, rows in ((comparison, len(comparison.rows)), (many, len(comparison.rows)), (found, 4)):
        assert len(repr(result)) < 120
        assert model.name in repr(result)
        html = result._repr_html_()
        assert html.count("<tr") == rows + 1
        assert "&lt;" in html.partition("<table")[0]
    assert repr(model) == "<Model Pythia-1B: 16 layers of 2,048, 1,011,781,632 parameters>"
