"""The regret of the forecast's pick on the published sweeps."""

from pathlib import Path

import pandas as pd
import pytest

from flopcast.reports.runs import PUBLISHED_RUNS
from flopcast.reports.search_regret import Regret, regret


@pytest.fixture(scope="module")
def found() -> Regret:
    return regret()


def test_the_sweeps_of_the_playbook_flagperf_and_bloom(found: Regret) -> None:
    sources = found.sources
    assert {"playbook", "flagperf", "bloom-prequel"} <= set(sources.index)
    # The pick is far better than a plan drawn at random: that is what the ranking is worth.
    for source in ("playbook", "flagperf", "bloom-prequel"):
        assert sources["median"][source] < 0.5 * sources["random_median"][source]
        assert sources["median"][source] < 0.05
    assert (found.sweeps["regret"] >= 0).all()
    assert (found.sweeps["num_runs"] >= 2).all()


def test_a_sweep_by_hand(found: Regret, tmp_path: Path) -> None:
    """Of FlagPerf's largest sweep: the measured step of the pick over the least."""
    sweep = found.sweeps[found.sweeps["source"] == "flagperf"].iloc[0]
    table = pd.read_csv(PUBLISHED_RUNS)
    measured = table.set_index("id")["measured_step_s"]
    assert sweep["regret"] == pytest.approx(measured[sweep["picked"]] / measured[sweep["fastest"]] - 1)
    alone = table[table["source_key"] == "flagperf"]
    path = tmp_path / "runs.csv"
    alone.to_csv(path, index=False)
    assert len(regret(path).sweeps) == found.sources["sweeps"]["flagperf"]
