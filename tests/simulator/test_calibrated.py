"""A calibrated machine's forecast: its constants, its band, and that it says where it leaves what was calibrated."""

from pathlib import Path

import numpy as np
import pytest
from builders import plan, small_model
from profiles import DATE, cpu_profile

from flopcast.reports.comparison import as_json
from flopcast.simulator.band import band
from flopcast.simulator.calibrated import MACHINE_CONSTANTS, Calibrated, with_constants
from flopcast.simulator.compare import compare
from flopcast.simulator.constants import default_constants
from flopcast.simulator.forecast import forecast
from flopcast.simulator.measured import Measured
from flopcast.simulator.plan import Plans
from flopcast.simulator.profile import Calibration, CalibrationRun, FittedConstant, Profile, parse_profile, to_json
from flopcast.simulator.profiled_cluster import cluster_of
from flopcast.simulator.request import Request

MODEL = small_model()
RUNS = [CalibrationRun(name="one", measured_step_s=1.0, predicted_step_s=1.1, left_out_step_s=None)]


def calibration(band: list[float] | None = None, **values: float) -> Calibration:
    constants = {
        name: FittedConstant(
            value=value, deviation=0.1, low=MACHINE_CONSTANTS[name].low, high=MACHINE_CONSTANTS[name].high, unit=""
        )
        for name, value in values.items()
    }
    parameters = float(MODEL.num_parameters)
    ranges = {"num_gpus": [2.0, 2.0], "num_parameters": [parameters, parameters], "seq_len": [512.0, 1024.0]}
    return Calibration(constants=constants, ranges=ranges, runs=RUNS, band=band, date=DATE)


def profile(found: Calibration) -> Profile:
    return cpu_profile().model_copy(update={"calibration": found})


def plans(**fields: int) -> Plans:
    return Plans.of([plan("ddp", 2, 2, **{"seq_len": 512, **fields})])


def test_a_profile_carries_its_calibration() -> None:
    given = profile(calibration([-0.1, 0.1], dispatch_scale=2.0))
    assert parse_profile(to_json(given), "profile.json") == given


def test_constants_scale_the_dispatch_and_replace_the_leak() -> None:
    measured = Measured(dispatch_s=1e-5, constants={"launch_s": 4e-5})
    found = with_constants(measured, {"dispatch_scale": 3.0, "overlap_leak": 0.7, "compute_scale": 1.2})
    assert found.dispatch_s == pytest.approx(3e-5)
    assert found.constants["launch_s"] == pytest.approx(12e-5)
    assert found.constants["collective_launch_s"] == pytest.approx(3 * default_constants().collective_launch_s)
    assert found.constants["inner_launch_s"] == pytest.approx(3 * default_constants().inner_launch_s)
    assert (found.constants["nvlink_leak"], found.constants["network_leak"], found.compute_scale) == (0.7, 0.7, 1.2)


def test_stragglers_add_their_share_to_the_step() -> None:
    plain, slowed = (
        forecast(MODEL, cluster_of(profile(calibration(straggler=share)), Path(), "p"), plans()).step_s
        for share in (0.0, 0.1)
    )
    # The expected largest of two normals is 1/sqrt(pi).
    assert float(slowed[0] / plain[0]) == pytest.approx(1 + 0.1 / np.sqrt(np.pi), rel=5e-3)


def test_inside_the_range_the_band_is_that_of_the_runs_left_out() -> None:
    machine = cluster_of(profile(calibration([-0.05, 0.08])), Path(), "p")
    found = forecast(MODEL, machine, plans(seq_len=1024))
    low, high = found.band_s
    assert float(low[0] / found.step_s[0]) == pytest.approx(np.exp(-0.05))
    assert float(high[0] / found.step_s[0]) == pytest.approx(np.exp(0.08))


def test_each_doubling_outside_widens_the_band_by_its_width() -> None:
    found = Calibrated.of(calibration([-0.05, 0.08]))
    for seq_len, doublings in ((512, 0), (2048, 1), (4096, 2), (256, 1)):
        outside = found.doublings_outside(MODEL, plans(seq_len=seq_len))
        assert float(outside.flat[0]) == pytest.approx(doublings, abs=0.02)
        low, high = found.widened(band(plans(), 2), MODEL, plans(seq_len=seq_len))
        assert float(low.flat[0]) == pytest.approx(np.exp(-0.05 * (1 + doublings)), rel=2e-3)
        assert float(high.flat[0]) == pytest.approx(np.exp(0.08 * (1 + doublings)), rel=2e-3)


def test_the_band_of_a_far_plan_ends_at_ten_times_the_forecast_either_way() -> None:
    far = plans(seq_len=2**20)
    low, high = Calibrated.of(calibration([-1.4, 1.4])).widened(band(plans(), 2), MODEL, far)
    assert (float(low.flat[0]), float(high.flat[0])) == pytest.approx((0.1, 10.0))
    low, high = Calibrated.of(calibration([-3.0, 0.1])).widened(band(plans(), 2), MODEL, far)
    assert (float(low.flat[0]), float(high.flat[0])) == pytest.approx((np.exp(-3.0), np.exp(0.1 * 11)), rel=0.02)


def test_without_runs_left_out_the_published_band_is_widened() -> None:
    found = Calibrated.of(calibration(None))
    published = band(plans(), 2)
    for widened, given in zip(found.widened(published, MODEL, plans()), published, strict=True):
        assert widened == pytest.approx(given)
    low, _ = found.widened(published, MODEL, plans(seq_len=2048))
    assert float(low.flat[0]) < float(published[0].flat[0])


def test_the_answer_says_what_lies_outside_and_what_was_measured() -> None:
    machine = cluster_of(profile(calibration([-0.05, 0.08])), Path(), "p")
    request = Request(2, tokens_per_gpu=4096, seq_len=2048, strategies=["ddp"])
    document = as_json(compare(MODEL, machine, request))
    assert any(words.startswith("matrix products") for words in document["cluster"]["measured"])
    (note,) = document["outside_calibration"]
    assert note.startswith("2,048 tokens per sequence: outside the 1 runs calibrated on (512 to 1,024)")
    inside = Request(2, tokens_per_gpu=4096, seq_len=1024, strategies=["ddp"])
    assert as_json(compare(MODEL, machine, inside))["outside_calibration"] == []
