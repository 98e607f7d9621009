"""Which plan the report names at another number of GPUs, its search answered by hand."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from builders import cluster, small_model

from flopcast import Request, compare
from flopcast.reports.document import further, on_more

COMPARISON = compare(small_model(), cluster(), Request(8))
ROW = replace(COMPARISON.best, step_s=1.0, fits=True, tight=False)


@pytest.mark.parametrize(
    ("strategy", "placed", "expected"),
    [
        (None, ROW, "placed"),
        (replace(ROW, tight=True), replace(ROW, step_s=1.2), "placed"),
        (replace(ROW, tight=True), replace(ROW, step_s=1.2, tight=True), "strategy"),
        (ROW, replace(ROW, step_s=0.85), "placed"),
        (ROW, replace(ROW, step_s=0.95), "strategy"),
        (ROW, None, "strategy"),
        (None, None, "neither"),
    ],
)
def test_a_placement_is_named_where_it_is_needed_or_saves_a_tenth(
    monkeypatch: pytest.MonkeyPatch, strategy: Any, placed: Any, expected: str
) -> None:
    found = None if placed is None else SimpleNamespace(found=[SimpleNamespace(rows=[placed])])
    monkeypatch.setattr(on_more, "_strategy", lambda *_: strategy)
    monkeypatch.setattr(on_more, "further", lambda *_: found)
    answer = {"strategy": strategy, "placed": placed and further.named(placed), "neither": None}[expected]
    assert on_more._best(COMPARISON, Request(8)) == answer


@pytest.mark.parametrize(("fits", "times", "searched"), [(False, 100, True), (True, 100, False), (True, 2, True)])
def test_far_more_gpus_are_searched_only_where_nothing_fits(
    monkeypatch: pytest.MonkeyPatch, fits: bool, times: int, searched: bool
) -> None:
    """A strategy that fits, at half the recommended plan's rate per GPU."""
    placement = replace(ROW, strategy="placement")
    monkeypatch.setattr(further, "split_alike", lambda *_: None)
    monkeypatch.setattr(further, "best_placement", lambda *_: placement)
    slow = replace(ROW, fits=fits, tokens_per_s_per_gpu=ROW.tokens_per_s_per_gpu / 2)
    compared: Any = SimpleNamespace(best=slow, cluster=cluster(), num_gpus=8 * times, tokens_per_gpu=4096)
    assert further.at_another_count(None, ROW, Request(8), compared) == (placement if searched else None)
