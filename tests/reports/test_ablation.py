"""The ablation of mechanisms: each one changes the forecast of some run, and the table is what the fits say."""

from dataclasses import replace
from typing import Any

import numpy as np
import published
import pytest

from flopcast.reports.ablation import ABLATIONS, Ablation, Outcome, table
from flopcast.reports.global_fit import RunSet, fit
from flopcast.reports.runs import Run, express
from flopcast.simulator.constants import default_constants
from flopcast.simulator.operation import Array


@pytest.fixture(scope="module")
def some() -> list[Run]:
    """A few runs of every source."""
    by_source: dict[str, list[dict[Any, Any]]] = {}
    for cells in published.rows():
        by_source.setdefault(cells["source_key"], []).append(cells)
    chosen = [express(cells) for rows in by_source.values() for cells in rows[:: max(len(rows) // 5, 1)]]
    return [run for run in chosen if run.plan is not None]


@pytest.fixture(scope="module")
def whole_s(some: list[Run]) -> Array:
    return RunSet.of(some).predicted_s()


@pytest.mark.parametrize("ablation", ABLATIONS[1:], ids=lambda ablation: ablation.mechanism)
def test_leaving_it_out_changes_the_forecast(ablation: Ablation, some: list[Run], whole_s: Array) -> None:
    changed = [replace(run, plan=ablation.changed(run.plan)) for run in some if run.plan is not None]
    constants = default_constants().with_values(**ablation.held)
    assert np.any(np.abs(RunSet.of(changed).predicted_s(constants) / whole_s - 1) > 1e-3)


def test_what_is_held_is_not_fitted(some: list[Run]) -> None:
    constants = fit(RunSet.of(some[::2]), held={"launch_s": 0.0})
    assert constants.launch_s == 0
    assert constants.gemm_share_ampere != default_constants().gemm_share_ampere


def test_the_table_puts_the_dearest_first() -> None:
    rows = table([Outcome("none", 0.06, 0.08), Outcome("one", 0.07, 0.09), Outcome("two", 0.10, 0.20)])
    assert rows[2:] == ["| nothing: the forecast | 6.0 | 8.0 |", "| two | 10.0 | 20.0 |", "| one | 7.0 | 9.0 |"]
