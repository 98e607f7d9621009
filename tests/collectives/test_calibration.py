"""Calibration gives back the machine that made the rows."""

from dataclasses import replace

import numpy as np
import pytest

from flopcast.collectives import COLLECTIVES, Fabric, Group
from flopcast.collectives.calibration import calibrate, fit_alpha, fit_piecewise
from flopcast.errors import InputError

SIZES = 2.0 ** np.arange(10, 34)
FABRIC = Fabric(2, 450e9, True, 8, 50e9, 0, 8)


def model(name: str):
    return lambda size, group, fabric: COLLECTIVES[name].cost(size, group, fabric).time_s


@pytest.mark.parametrize("nodes", [1, 4])
def test_a_machine_is_found_again(nodes: int) -> None:
    group = Group(8 * nodes, 8)
    name = "nic_scale" if nodes > 1 else "nvlink_scale"
    true = replace(FABRIC, launch_scale=0.6, **{name: 0.8})
    rows = model("all_gather")(SIZES, group, true)
    found = calibrate(SIZES, rows, group, FABRIC, model("all_gather"))
    assert getattr(found.fabric, name) == pytest.approx(0.8, rel=0.02)
    assert np.max(np.abs(found.residuals)) < 0.05


def test_hops_take_what_launching_cannot() -> None:
    group = Group(16, 8)
    true = replace(FABRIC, launch_scale=2.4, hop_scale=20.0)
    small = SIZES[:6]
    rows = model("all_reduce")(small, group, true)
    found = fit_alpha(small, rows, group, FABRIC, model("all_reduce"))
    assert found.launch_scale == pytest.approx(2.5, rel=0.01)
    assert found.hop_scale == pytest.approx(20.0, rel=0.1)
    assert model("all_reduce")(small, group, found) == pytest.approx(rows, rel=0.02)


def test_noise_does_not_move_the_median() -> None:
    rng = np.random.default_rng(1)
    group = Group(8, 8)
    rows = model("all_reduce")(SIZES, group, replace(FABRIC, launch_scale=1.5)) * rng.normal(1, 0.02, SIZES.size)
    found = fit_alpha(SIZES[:8], rows[:8], group, FABRIC, model("all_reduce"))
    assert found.launch_scale == pytest.approx(1.5, rel=0.05)


def test_piecewise_is_exact_on_two_lines() -> None:
    edge = 2.0**20
    below = edge >= SIZES
    rows = np.where(below, 10e-6 + SIZES / 20e9, 40e-6 + SIZES / 200e9)
    found = fit_piecewise(SIZES, rows, [edge, 2.0**40])
    assert found.alpha_s == pytest.approx([10e-6, 40e-6], rel=1e-6)
    assert found.bytes_per_s == pytest.approx([20e9, 200e9], rel=1e-6)
    assert np.max(np.abs(found.residuals)) < 1e-9
    assert float(found.time_s(2.0**45)) == pytest.approx(40e-6 + 2.0**45 / 200e9)


def test_piecewise_keeps_latency_and_rate_positive() -> None:
    found = fit_piecewise(np.array([1e3, 1e6]), np.array([20e-6, 10e-6]), [1e9])
    assert found.alpha_s[0] > 0
    assert np.all(found.bytes_per_s > 0)
    steep = fit_piecewise(np.array([1e6, 2e6]), np.array([1e-6, 9e-6]), [1e9])
    assert steep.alpha_s[0] == 0


@pytest.mark.parametrize(
    ("sizes", "times", "message"),
    [([], [], "no rows"), ([1.0], [1.0, 2.0], "1 sizes but 2 times"), ([1.0], [0.0], "not a positive number")],
)
def test_bad_rows(sizes: list[float], times: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_piecewise(np.array(sizes), np.array(times), [1e9])


def test_bad_edges() -> None:
    with pytest.raises(InputError, match="increasing"):
        fit_piecewise(np.array([1.0]), np.array([1.0]), [2.0, 1.0])
