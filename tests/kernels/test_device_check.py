import json

import pytest
import torch

from flopcast.kernels import block_benchmark, device_check, device_correctness, timing

CPU = torch.device("cpu")
# torch.compile instantiates torch.autograd.Function itself, and PyTorch warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.fixture(autouse=True)
def small_cache(monkeypatch):
    monkeypatch.setattr(timing, "CPU_CACHE_BYTES", 2**12)
    monkeypatch.setattr(timing, "_SAMPLE_S", 1e-5)


def test_a_rehearsal_on_the_cpu_runs_every_step(tmp_path, capsys):
    assert device_check.main([str(tmp_path / "out"), "--device", "cpu", "--quick"]) == 0
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"device_check.json", "kernels.csv", "kernels.json", "kernels.png"}
    document = json.loads((tmp_path / "out" / "device_check.json").read_text())
    assert all("result" in step for step in document["steps"].values())
    assert document["environment"]["backend"] == "reference"
    assert "checks hold" in capsys.readouterr().err


def test_a_step_that_fails_does_not_stop_the_rest(tmp_path, monkeypatch, capsys):
    def broken(*arguments):
        raise RuntimeError("the device fell off the bus")

    monkeypatch.setattr(device_correctness, "run", broken)
    monkeypatch.setattr(device_check.benchmark, "run", broken)
    assert device_check.main([str(tmp_path), "--device", "cpu", "--quick"]) == 1
    document = json.loads((tmp_path / "device_check.json").read_text())
    assert "the device fell off the bus" in document["steps"]["correctness"]["failed"]
    assert "result" in document["steps"]["block"]
    assert "correctness: RuntimeError: the device fell off the bus" in capsys.readouterr().err


def test_a_check_that_does_not_hold_is_told(monkeypatch):
    def off(*arguments, **options):
        raise AssertionError("off by one")

    monkeypatch.setattr(device_correctness, "assert_near", off)
    records = device_correctness.run(CPU, (64,), 5)
    wrong = [r for r in records if not r["ok"]]
    assert wrong
    assert all(r["reason"] == "AssertionError: off by one" for r in wrong)
    assert device_check.failures({"steps": {"correctness": {"result": records}}})


def test_what_is_not_a_number_fails_its_step_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(block_benchmark, "run", lambda *_, **__: {"difference": float("nan"), "saved": 0.1})
    document = device_check.run(tmp_path, CPU, quick=True)
    assert [name for name, step in document["steps"].items() if "failed" in step] == ["block"]
    (told,) = device_check.failures(document)
    assert told.startswith("block: ValueError: Out of range float values are not JSON compliant")
    assert (tmp_path / "kernels.csv").exists()


def test_the_checks_of_large_tensors_hold_for_small_ones(monkeypatch):
    monkeypatch.setattr(device_correctness, "MANY", 2**16)
    for check in (device_correctness._large_rows, device_correctness._large_heads, device_correctness._large_nf4):
        check(CPU)


def test_spent_time_is_said(tmp_path):
    document = device_check.run(tmp_path, CPU, seconds=-1, quick=True)
    assert {step["skipped"] for step in document["steps"].values()} == {"the time was spent"}


def test_the_block_is_the_same_both_ways():
    found = block_benchmark.run(CPU, tokens=16, hidden=256, intermediate=64, kv_heads=1, samples=1)
    assert found["difference"] < 0.02
    assert found["saved"] < 1
