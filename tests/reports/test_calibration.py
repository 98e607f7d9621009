"""Calibrating a machine: constants that made the runs are found again, and bad runs are refused in one sentence."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import plan, small_model
from profiles import cpu_profile, gpu_profile
from scipy.stats import t as student_t

from flopcast.errors import InputError
from flopcast.reports.calibration import RUN_DEVIATION, Calibrating, band, calibrate, fit, predicted_s
from flopcast.reports.calibration_table import lines
from flopcast.reports.machine_runs import MachineRun, read_machine_runs, run_of_records
from flopcast.simulator.catalogue import load_cluster
from flopcast.simulator.model import Model
from flopcast.simulator.plan import Plan
from flopcast.simulator.profiled_cluster import cluster_of

MACHINE = cluster_of(cpu_profile(), Path(), "profile.json")
NAMES = ("compute_scale", "overlap_leak", "straggler")


def run(hidden: int, layers: int, ranks: int, measured_s: float = 1.0, **fields: Any) -> MachineRun:
    model = small_model(hidden=hidden, num_layers=layers, vocab_size=2048)
    given = plan("zero3" if ranks > 1 else "ddp", ranks, 2, **{"seq_len": 256, "micro_batch": 2, **fields})
    return MachineRun(f"{hidden}-{layers}-{ranks}", model, given, "Some CPU", measured_s, 0.01, 20)


def runs(**constants: float) -> list[MachineRun]:
    """Six runs that took what the forecast says with these constants."""
    shapes = [(256, 4, 1), (512, 4, 1), (256, 4, 2), (512, 6, 2), (1024, 4, 2), (512, 4, 2)]
    made = [run(*shape) for shape in shapes]
    return [replace(r, step_s=float(s)) for r, s in zip(made, predicted_s(made, MACHINE, constants), strict=True)]


def test_the_constants_behind_the_runs_are_found_again() -> None:
    true = {"compute_scale": 1.4, "overlap_leak": 0.8, "straggler": 0.1}
    found = calibrate(runs(**true), MACHINE, NAMES, device="Some CPU")
    assert found.fit.names == NAMES
    # What the runs leave open stays with the prior, so each lies within its own deviation or little more.
    for value, deviation, name in zip(found.fit.values, found.fit.deviations, NAMES, strict=True):
        assert abs(value - true[name]) < 1.5 * deviation
    assert np.abs(found.fit.predicted_s / found.measured_s - 1).max() < 0.01
    assert np.abs(found.left_out_errors).max() < 0.03


def test_the_covariance_is_that_of_the_linearised_problem() -> None:
    given = runs(dispatch_scale=2.0)
    found = fit(given, MACHINE, ["dispatch_scale"])
    step = 1e-3
    low, high = (
        np.log(predicted_s(given, MACHINE, {"dispatch_scale": found.values[0] * np.exp(sign * step)}))
        for sign in (-1, 1)
    )
    slope = (high - low) / (2 * step) / RUN_DEVIATION
    width = 0.25 * np.log(16 / 0.25)
    expected = found.values[0] / np.sqrt(slope @ slope + 1 / width**2)
    assert found.deviations[0] == pytest.approx(expected, rel=0.02)


def test_constants_stay_within_their_bounds() -> None:
    slow = [replace(r, step_s=50 * r.step_s) for r in runs()]
    found = fit(slow, MACHINE, (*NAMES, "dispatch_scale"))
    assert found.constants["compute_scale"] <= 3
    assert found.constants["dispatch_scale"] <= 16
    assert 0 <= found.constants["overlap_leak"] <= 1
    assert found.constants["straggler"] <= 0.3


def test_a_constant_at_its_bound_says_so() -> None:
    """Runs 50 times slower than computation at thrice its time allow; nothing exposed is a share like another."""
    words = "lies at its bound: the profile does not describe these runs"
    slow = calibrate([replace(r, step_s=50 * r.step_s) for r in runs()], MACHINE, NAMES, device="Some CPU")
    assert f"compute_scale {words}" in list(lines(slow))
    assert words not in "\n".join(lines(calibrate(runs(), MACHINE, NAMES, device="Some CPU")))


def test_only_what_the_runs_can_tell_apart_is_fitted() -> None:
    # On a CPU launches were timed with the work and nothing overlaps.
    assert calibrate([run(256, 4, 2), run(512, 4, 2)], MACHINE, device="Some CPU").fit.names == ("compute_scale",)
    assert calibrate(runs(), MACHINE, device="Some CPU").fit.names == ("compute_scale", "straggler")
    gpu = cluster_of(gpu_profile(), Path(), "profile.json")
    alone = [replace(run(256, 4, 1), device="h100-80gb"), replace(run(512, 4, 1), device="h100-80gb")]
    assert calibrate(alone, gpu).fit.names == ("compute_scale", "dispatch_scale")
    both = [replace(run(256, 4, 2), device="h100-80gb") for _ in range(3)]
    assert calibrate(both, gpu).fit.names == ("compute_scale", "dispatch_scale", "overlap_leak")


def test_too_few_runs_to_leave_one_out() -> None:
    two = calibrate([run(256, 4, 2), run(512, 4, 2)], MACHINE, NAMES[:2], device="Some CPU")
    assert np.isnan(two.left_out_s).all()
    assert two.section().band is None
    assert "too few runs to leave one out" in "\n".join(lines(two))


def test_the_band_is_students() -> None:
    logs = np.array([0.02, -0.05, 0.03, 0.01])
    low, high = band(np.exp(logs), np.ones(4)) or [0, 0]
    expected = student_t.ppf(0.9, 4) * np.sqrt(np.mean(logs**2)) * np.sqrt(1.25)
    assert (low, high) == pytest.approx((-expected, expected))
    assert band(np.ones(2), np.ones(2)) is None


def test_the_section_and_the_table_say_how_good_it_is() -> None:
    found: Calibrating = calibrate(runs(compute_scale=1.5), MACHINE, NAMES, device="Some CPU")
    section = found.section()
    assert section.ranges["num_gpus"] == [1.0, 2.0]
    assert section.ranges["tokens_per_pass"] == [512.0, 512.0]
    assert len(section.runs) == 6
    assert all(r.left_out_step_s is not None for r in section.runs)
    assert set(section.correlations) == {
        "compute_scale, overlap_leak",
        "compute_scale, straggler",
        "overlap_leak, straggler",
    }
    text = "\n".join(lines(found))
    for words in ("left out", "compute_scale = ", "calibrated for 1 to 2 GPUs", "80 % band from the runs left out"):
        assert words in text
    assert "calibrated for 512 tokens per GPU and pass\n" in text
    alone = calibrate([run(256, 4, 1), run(512, 4, 1)], MACHINE, NAMES[:1], device="Some CPU")
    assert "calibrated for 1 GPU" in lines(alone)


def test_what_cannot_be_calibrated_is_said() -> None:
    with pytest.raises(InputError, match="was not measured"):
        calibrate(runs(), load_cluster("dgx-h100"))
    with pytest.raises(InputError, match="is of 'A Different CPU' and the profile of 'Some CPU'"):
        calibrate([replace(run(256, 4, 1), device="A Different CPU")], MACHINE, device="Some CPU")
    with pytest.raises(InputError, match="run 'single' was computed in fp32, while profile and forecasts are of bf16"):
        calibrate([*runs(), replace(run(256, 4, 1), name="single", dtype="fp32")], MACHINE, device="Some CPU")
    with pytest.raises(InputError, match="1 run cannot set 2 constants"):
        calibrate([run(256, 4, 2)], MACHINE, NAMES[:2], device="Some CPU")
    with pytest.raises(InputError, match="did you mean 'straggler'"):
        calibrate(runs(), MACHINE, ["stragler"], device="Some CPU")


def records(given: Plan, seconds: list[float], **start: Any) -> list[dict[str, Any]]:
    first = {
        "event": "start",
        "model": {"name": "model.toml", "qk_norm": None},
        "plan": asdict(given),
        "device": "Some CPU",
    }
    return [{**first, **start}, *({"step": i + 1, "step_s": s} for i, s in enumerate(seconds))]


MODEL_FILE = (
    'name = "m"\nhidden = 64\nvocab_size = 256\ncontext = 64\nnum_layers = 2\n[[layers]]\nnum_heads = 2\n'
    "num_kv_heads = 2\nhead_dim = 32\nintermediate = 128\ngated = true\n"
)


def write_log(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def test_a_log_is_its_steps_after_the_warm_up(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(MODEL_FILE)
    given = plan("ddp", 1, 1, seq_len=64)
    folder = write_log(tmp_path / "first", records(given, [9, 8, 7, 1.0, 1.2, 1.1, 1.3, 50.0]))
    (found,) = read_machine_runs([folder])
    assert (found.name, found.model.hidden, found.plan) == ("first", 64, given)
    assert (found.step_s, found.num_steps) == (1.2, 5)
    assert found.spread == pytest.approx((1.3 - 1.1) / 1.2)
    (again,) = read_machine_runs([folder / "log.jsonl"])
    assert again == found
    assert found.dtype == ""
    assert run_of_records(records(given, [1.0] * 8, dtype="fp32"), "r", "r", tmp_path / "first").dtype == "fp32"


def test_a_resumed_run_counts_from_its_last_start() -> None:
    given = plan("ddp", 1, 1, seq_len=64)
    rows = records(given, [5.0] * 10) + records(given, [9, 9, 9, 2, 2, 2])
    assert run_of_records(rows, "r", "r", model=small_model()).step_s == 2


def test_a_rerun_without_enough_steps_leaves_the_run_before(tmp_path: Path) -> None:
    """A job that is queued again after its last step logs a start alone."""
    given = plan("ddp", 1, 1, seq_len=64)
    whole = records(given, [9, 9, 9, 2, 2, 2])
    alone = run_of_records(whole, "r", "r", model=small_model())
    assert run_of_records(whole + records(given, [], step=6), "r", "r", model=small_model()) == alone
    few = run_of_records(whole + records(given, [5.0] * 3, step=6), "r", "r", model=small_model())
    assert (few.step_s, few.name) == (2, "r, its start from step 0")
    with pytest.raises(InputError, match="no start has enough steps; its start from step 4, the last, has 1 steps"):
        run_of_records(records(given, [5.0] * 4) + records(given, [5.0], step=4), "r", "r", model=small_model())


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(MODEL_FILE)
    folder = write_log(tmp_path / "first", records(plan("ddp", 1, 1, seq_len=64), [1.0] * 8))
    with pytest.raises(InputError, match=r"log\.jsonl: is named twice"):
        read_machine_runs([folder, tmp_path / "first" / ".." / "first" / "log.jsonl"])


def model_of(name: str, qk_norm: bool | None, folder: Path) -> Model:
    rows = records(plan("ddp", 1, 1, seq_len=64), [1.0] * 8, model={"name": name, "qk_norm": qk_norm})
    return run_of_records(rows, "r", "r", folder).model


def test_the_model_of_a_log(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(MODEL_FILE)
    assert model_of("model.toml", None, tmp_path / "runs" / "one").hidden == 64
    assert model_of("plamo-13b", True, tmp_path).num_layers == 40
    with pytest.raises(InputError, match=r"r: .*absent\.toml"):
        model_of("absent.toml", None, tmp_path)


def test_logs_that_cannot_be_used_are_one_sentence(tmp_path: Path) -> None:
    given = plan("ddp", 1, 1, seq_len=64)
    cases = {
        "is not the log of a run": [{"step": 1, "step_s": 1.0}],
        "has 4 steps, of which 3 are warm-up": records(given, [1.0] * 4),
        "names no model": records(given, [1.0] * 8, model=None),
        "has no plan": records(given, [1.0] * 8, plan={"strategy": "ddp", "gpus": 4}),
        "lacks fields": records(given, [1.0] * 8, plan={"strategy": "ddp"}),
    }
    for words, rows in cases.items():
        with pytest.raises(InputError, match=words) as caught:
            run_of_records(rows, "r", "log.jsonl", model=None if "model" in words else small_model())
        assert str(caught.value).startswith("log.jsonl")
    with pytest.raises(InputError, match="no such file"):
        read_machine_runs([tmp_path / "absent.jsonl"])


def test_a_table_of_runs_is_read_as_the_published_ones(tmp_path: Path) -> None:
    columns = "id,source_key,gpu,n_gpus,n_layers,hidden,n_heads,ffn_hidden,seq_len,micro_batch"
    columns += ",global_batch_seqs,measured_step_s"
    path = tmp_path / "runs.csv"
    path.write_text(f"{columns}\na,mine,H100-80GB,8,12,1024,8,4096,2048,2,16,0.5\n")
    (found,) = read_machine_runs([path])
    assert (found.name, found.device, found.step_s, found.plan.num_gpus) == ("a", "h100-80gb", 0.5, 8)
    path.write_text(f"{columns}\na,mine,H100-80GB,8,12,1024,8,4096,2048,2,16,\n")
    with pytest.raises(InputError, match="run 'a' cannot be expressed"):
        read_machine_runs([path])
