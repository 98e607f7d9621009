"""The closed loop replayed from committed samples: nothing is measured here."""

import json
from typing import Any

import pytest

from flopcast.reports.closed_loop import FILE, Loop, replay


@pytest.fixture(scope="module", params=["closed-loop-cpu.json", "closed-loop-cpu-repeat.json"])
def document(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(json.loads(FILE.with_name(request.param).read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def loop(document: dict[str, Any]) -> Loop:
    return replay(document)


def test_each_of_three_runs_is_forecast_by_a_calibration_on_the_others(loop: Loop) -> None:
    assert len(loop.rows) == 3
    for row in loop.rows:
        assert abs(row.error) < 0.20, row.sentence()
        assert row.error == pytest.approx(row.left_out_step_s / row.measured_step_s - 1)


def test_the_models_span_a_decade_of_step_time_or_nearly(loop: Loop) -> None:
    seconds = [row.measured_step_s for row in loop.rows]
    assert max(seconds) > 4 * min(seconds)


def test_the_committed_errors_are_what_the_samples_give(document: dict[str, Any], loop: Loop) -> None:
    for stored, row in zip(document["rows"], loop.rows, strict=True):
        assert stored["run"] == row.run
        assert stored["measured_step_s"] == pytest.approx(row.measured_step_s)
        assert stored["left_out_step_s"] == pytest.approx(row.left_out_step_s, rel=0.02)


def test_every_sample_has_its_spread(document: dict[str, Any]) -> None:
    for sample in document["profile"]["samples"]:
        assert sample["median_s"] > 0
        assert sample["spread"] >= 0
