"""The GPU run's bookkeeping: a step that fails or outlasts its time is told and leaves the rest."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "reports" / "benchmarks" / "gpu_run.py"


@pytest.fixture
def gpu_run() -> ModuleType:
    specification = importlib.util.spec_from_file_location("gpu_run", FILE)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_a_failed_or_endless_step_does_not_stop_the_others(
    gpu_run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps(out: Path, folder: Path, tiny: bool) -> dict[str, tuple[list[str], float]]:
        def python(code: str) -> list[str]:
            return [sys.executable, "-c", code]

        return {
            "fails": (python("raise SystemExit(3)"), 1.0),
            "endless": (python("import time; print('begun', flush=True); time.sleep(600)"), 0.1),
            "writes": (python(f"open({str(folder / 'profile.json')!r}, 'w').write('{{}}')"), 1.0),
        }

    monkeypatch.setattr(gpu_run, "steps", steps)
    found = gpu_run.run(tmp_path, seconds=60.0)
    assert {name: step["exit_code"] for name, step in found.items()} == {"fails": 3, "endless": None, "writes": 0}
    assert json.loads((tmp_path / "gpu_run.json").read_text()) == found
    assert (tmp_path / "profile.json").read_text() == "{}"
    assert "begun" in (tmp_path / "gpu_run.log").read_text()


def test_its_commands_are_those_of_the_trainer_and_the_closed_loop(gpu_run: ModuleType, tmp_path: Path) -> None:
    whole, tiny = (gpu_run.steps(tmp_path, tmp_path, small) for small in (False, True))
    assert list(whole) == list(tiny) == ["throughput", "closed loop"]
    assert "flopcast.trainer.throughput" in whole["throughput"][0]
    assert whole["closed loop"][0][2:4] == ["--machine", "gpu"]
    assert gpu_run.CLOSED_LOOP.is_file()
    from flopcast.simulator.catalogue import load_model

    assert load_model(str(tmp_path / "plamo-tiny.toml")).num_layers == 2
