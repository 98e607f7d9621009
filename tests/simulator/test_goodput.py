"""Failures and checkpoints against a simulation of them, a numerical optimum and arithmetic by hand."""

from dataclasses import replace

import numpy as np
import pytest
from builders import cluster, plan, small_model
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from flopcast.errors import InputError
from flopcast.simulator.cluster import Costs
from flopcast.simulator.forecast import Row, forecast
from flopcast.simulator.goodput import daly_interval_s, expected_wall_s, run_cost, young_interval_s


def simulated_wall_s(
    work_s: float, interval_s: float, checkpoint_s: float, restart_s: float, mtbf_s: float, seed: int
) -> float:
    """One run, segment by segment, with exponential failures, which may strike a restart too."""
    random = np.random.default_rng(seed)
    wall, done = 0.0, 0.0
    to_failure = random.exponential(mtbf_s)
    while done < work_s:
        needed = min(interval_s, work_s - done) + checkpoint_s
        if to_failure >= needed:
            wall, to_failure, done = wall + needed, to_failure - needed, done + interval_s
            continue
        wall += to_failure
        to_failure = random.exponential(mtbf_s)
        while to_failure < restart_s:
            wall += to_failure
            to_failure = random.exponential(mtbf_s)
        wall, to_failure = wall + restart_s, to_failure - restart_s
    return wall


@pytest.mark.parametrize(
    ("interval_s", "checkpoint_s", "restart_s", "mtbf_s"),
    [(1000.0, 20.0, 100.0, 5000.0), (300.0, 60.0, 400.0, 1500.0)],
)
def test_expected_wall_time_is_that_of_simulated_failures(
    interval_s: float, checkpoint_s: float, restart_s: float, mtbf_s: float
) -> None:
    work_s = 400 * interval_s
    runs = [simulated_wall_s(work_s, interval_s, checkpoint_s, restart_s, mtbf_s, seed) for seed in range(60)]
    expected = expected_wall_s(work_s, interval_s, checkpoint_s, restart_s, mtbf_s)
    assert expected == pytest.approx(np.mean(runs), abs=4 * np.std(runs) / np.sqrt(len(runs)))


@given(checkpoint_s=st.floats(1, 600), ratio=st.floats(20, 1e5))
def test_the_interval_is_the_one_that_loses_least(checkpoint_s: float, ratio: float) -> None:
    mtbf_s = ratio * checkpoint_s
    best = minimize_scalar(
        lambda tau: expected_wall_s(1.0, tau, checkpoint_s, 0.0, mtbf_s), bounds=(1e-3, 10 * mtbf_s), method="bounded"
    )
    found = daly_interval_s(checkpoint_s, mtbf_s)
    assert expected_wall_s(1.0, found, checkpoint_s, 0.0, mtbf_s) <= best.fun * (1 + 1e-5)
    assert found < young_interval_s(checkpoint_s, mtbf_s)


def test_young_and_daly_by_hand() -> None:
    assert young_interval_s(50.0, 10_000.0) == 1000.0
    # share = 50/20000 = 1/400, its root 1/20: 1000 (1 + 1/60 + 1/3600) - 50
    assert daly_interval_s(50.0, 10_000.0) == pytest.approx(1000 * (1 + 1 / 60 + 1 / 3600) - 50)
    assert daly_interval_s(200.0, 100.0) == 100.0


def row() -> Row:
    return forecast(small_model(), cluster(), plan("zero3", 16)).rows()[0]


def test_a_run_without_failures_is_tokens_over_throughput() -> None:
    costs = Costs(gpu_hour_price=2.0, node_power_w=5000.0, node_mtbf_hours=1e12, checkpoint_bytes_per_s=1e15)
    found = run_cost(small_model(), replace(cluster(), costs=costs), row(), 1e12)
    seconds = 1e12 / (row().tokens_per_s_per_gpu * 16)
    assert found.wall_s == pytest.approx(seconds, rel=1e-4)
    assert found.days == pytest.approx(seconds / 86400, rel=1e-4)
    assert found.gpu_hours == pytest.approx(16 * seconds / 3600, rel=1e-4)
    assert found.money == pytest.approx(2 * found.gpu_hours)
    assert found.energy_j == pytest.approx(2 * 5000 * found.wall_s)
    assert len(found.assumed) == 1  # the time of a restart, which a cluster file does not give


def test_what_the_cluster_leaves_open_is_said_and_no_price_is_made_up() -> None:
    found = run_cost(small_model(), cluster(), row(), 1e12)
    assert found.money is None
    said = " ".join(found.assumed)
    assert all(name in said for name in ("node_mtbf_hours", "checkpoint_bandwidth", "node_power", "restart"))
    assert 0.9 < found.goodput < 1
    assert found.checkpoint_bytes == 12 * small_model().num_parameters


def test_a_part_of_a_node_draws_its_share_of_power() -> None:
    model, machine = small_model(), cluster()
    one, eight = (
        run_cost(model, machine, forecast(model, machine, plan("ddp", num_gpus)).rows()[0], 1e12) for num_gpus in (1, 8)
    )
    assert one.energy_j / one.gpu_hours == pytest.approx(eight.energy_j / eight.gpu_hours)


def test_the_assumed_storage_grows_with_the_machine() -> None:
    model, machine = small_model(), cluster()
    few, many = (
        run_cost(model, machine, forecast(model, machine, plan("zero3", num_gpus)).rows()[0], 1e12)
        for num_gpus in (16, 8 * 384)
    )
    assert few.checkpoint_bytes / few.checkpoint_s == pytest.approx(10e9)
    # arXiv:2104.04473, section 5.10: 273 GB/s from 384 nodes.
    assert many.checkpoint_bytes / many.checkpoint_s == pytest.approx(273e9, rel=0.02)


def test_a_slower_step_costs_in_proportion_and_more() -> None:
    base = run_cost(small_model(), cluster(), row(), 1e12)
    slow = run_cost(small_model(), cluster(), row(), 1e12, step_s=2 * row().step_s)
    assert slow.compute_s == pytest.approx(2 * base.compute_s)


def test_a_cluster_that_never_finishes_is_refused() -> None:
    costs = Costs(node_mtbf_hours=0.01)
    with pytest.raises(InputError, match=r"node_mtbf_hours is 0\.01: a failure comes every 18 s"):
        run_cost(small_model(), replace(cluster(), costs=costs), row(), 1e12)


def test_a_budget_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="must be positive"):
        run_cost(small_model(), cluster(), row(), -1)


def test_a_budget_of_less_than_a_step_is_said_to_be_one() -> None:
    batch = 16 * plan("zero3", 16).seq_len
    run_cost(small_model(), cluster(), row(), batch)
    with pytest.raises(InputError, match=f"--tokens is 1: less than one step of {batch:,}; raise it"):
        run_cost(small_model(), cluster(), row(), 1)


@pytest.mark.parametrize("step_s", [0, 0.0, -1.0, float("nan"), float("inf")])
def test_a_step_that_takes_no_time_is_refused(step_s: float) -> None:
    with pytest.raises(InputError, match=r"step_s is .*; it must be a positive number of seconds"):
        run_cost(small_model(), cluster(), row(), 1e12, step_s=step_s)


def test_a_budget_in_words_is_refused() -> None:
    with pytest.raises(InputError, match=r"num_tokens is '1.4T'; it must be a number, e.g. 1.4e12"):
        run_cost(small_model(), cluster(), row(), "1.4T")  # type: ignore[arg-type]


def test_states_on_the_host_are_in_the_checkpoint_too() -> None:
    on_host = forecast(small_model(), cluster(), plan("zero1", 16, state_bytes=0)).rows()[0]
    assert run_cost(small_model(), cluster(), on_host, 1e12).checkpoint_bytes == 12 * small_model().num_parameters
