"""The error of memory on published runs: by counter, stored by source, and not allowed to get worse."""

import json
from pathlib import Path

import numpy as np
import published
import pytest

from flopcast.reports.global_fit import fit_memory
from flopcast.reports.memory_accuracy import MemoryAccuracy, memory_accuracy, memory_table
from flopcast.reports.memory_rows import MemoryRows, counters
from flopcast.reports.runs import Run, express
from flopcast.simulator.constants import default_constants

STORED = Path(__file__).parent / "memory_by_source.json"
WORSE_BY_AT_MOST = 0.005


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    return [express(cells) for cells in published.rows() if cells["measured_mem_GB"] > 0]


@pytest.fixture(scope="module")
def stated(runs: list[Run]) -> MemoryRows:
    return MemoryRows.of(runs)


@pytest.fixture(scope="module")
def result(stated: MemoryRows) -> MemoryAccuracy:
    return memory_accuracy(stated)


def test_no_source_got_worse(result: MemoryAccuracy) -> None:
    stored = json.loads(STORED.read_text())
    found = result.sources["median"]
    assert set(found.index) == set(stored)
    worse = {s: (float(found[s]), stored[s]) for s in stored if found[s] > stored[s] + WORSE_BY_AT_MOST}
    assert not worse, f"median |error| of memory rose; mend it or store the new figures with the reason: {worse}"


def test_the_median_row_is_within_eight_per_cent(result: MemoryAccuracy) -> None:
    assert result.overall["median_of_rows"] < 0.08
    assert result.overall["median"] < 0.08


def test_every_source_says_its_counter(result: MemoryAccuracy) -> None:
    assert set(counters()) == set(result.sources.index)
    assert result.sources.loc["torchtitan", "counter"] == "reserved"


def test_counters_differ_by_slack_and_by_what_the_card_holds(stated: MemoryRows) -> None:
    constants = default_constants().with_values(context_bytes=0.5e9, nccl_bytes=2.5e9, allocator_slack=0.25)
    ratio = stated.predicted_bytes(constants) - stated.pieces_bytes * (stated.counters != "allocated")
    held = stated.allocated_bytes
    by = stated.counters
    np.testing.assert_allclose(ratio[by == "allocated"], held[by == "allocated"])
    np.testing.assert_allclose(ratio[by == "reserved"], 1.25 * held[by == "reserved"])
    np.testing.assert_allclose(ratio[by == "card"], 1.25 * held[by == "card"] + 3e9)
    np.testing.assert_allclose(ratio[by == "unsaid"], 1.25 * held[by == "unsaid"] + 3e9)


def test_a_fit_finds_the_constants_that_made_the_peaks(runs: list[Run]) -> None:
    made = default_constants().with_values(nccl_bytes=1.8e9, allocator_slack=0.08)
    chosen = [run for run in runs if run.measured_memory_bytes and not run.skipped][::3]
    peaks = MemoryRows.of(chosen).predicted_bytes(made)
    before = [run.measured_memory_bytes for run in chosen]
    try:
        for run, peak in zip(chosen, peaks, strict=True):
            run.measured_memory_bytes = float(peak)
        found = fit_memory(chosen)
    finally:
        for run, size in zip(chosen, before, strict=True):
            run.measured_memory_bytes = size
    # The prior holds on to what it expects.
    assert found.nccl_bytes == pytest.approx(1.8e9, rel=0.15)
    assert found.nccl_bytes > 1.55e9
    assert found.allocator_slack == pytest.approx(0.08, abs=0.015)
    assert found.launch_s == default_constants().launch_s


def test_json_and_table_hold_the_same_figures(result: MemoryAccuracy) -> None:
    document = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert set(document) == {"rows", "sources", "overall"}
    assert set(document["rows"][0]) == {"id", "source", "counter", "measured_bytes", "predicted_bytes", "error"}
    row = document["rows"][0]
    assert row["error"] == pytest.approx(row["predicted_bytes"] / row["measured_bytes"] - 1)
    assert memory_table(result).row_count == len(result.sources) + 2


def test_a_table_that_states_no_memory() -> None:
    nothing = memory_accuracy(MemoryRows.of([]))
    assert nothing.as_json() == {"rows": [], "sources": [], "overall": {"rows": 0.0}}
