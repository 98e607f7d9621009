from pathlib import Path

import numpy as np
import pytest

from flopcast.trainer.regression.run import NAMES, compare, run, stored


def test_the_short_run_gives_the_stored_curve(tmp_path: Path) -> None:
    found = compare("short", run("short", tmp_path), stored("short"))
    assert found.passed, f"largest gap {found.largest_gap} at step {found.at_step}"
    assert len(found.losses) == 40
    assert found.losses[-1] < 2.0 < 6.0 < found.losses[0]


def test_a_small_fault_is_found(tmp_path: Path) -> None:
    # A second moment that forgets a little faster: what a wrong constant in an optimizer kernel looks like.
    found = compare("short", run("short", tmp_path, ["--optimizer.beta2=0.94"]), stored("short"))
    assert not found.passed


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_curve_agrees_with_itself_and_with_nothing_shorter_or_undefined(name: str) -> None:
    reference = stored(name)
    curve = reference["losses"]
    assert compare(name, curve, reference).passed
    assert not compare(name, curve[:-1], reference).passed
    assert not compare(name, [], reference).passed
    assert not compare(name, [*curve[:-1], float("nan")], reference).passed


def test_gaps_are_of_means_over_the_window() -> None:
    reference = {"losses": [1.0, 1.0, 1.0, 1.0], "window": 2, "tolerance": 0.25}
    found = compare("short", [1.5, 0.5, 1.0, 1.4], reference)
    assert found.largest_gap == pytest.approx(0.2)
    assert found.at_step == 4
    assert found.passed
    assert np.isinf(compare("short", [1.0], reference).largest_gap)
