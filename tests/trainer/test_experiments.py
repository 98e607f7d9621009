import json
from pathlib import Path

import numpy as np
import pytest
from training_runs import write_config

from flopcast.errors import InputError
from flopcast.trainer.experiments import compare, main, sentence, smoothed, variant_flags
from flopcast.trainer.log import steps
from flopcast.trainer.settings import read_settings


def test_gaps_are_paired_by_seed() -> None:
    base = np.array([[5.0, 2.0], [5.0, 3.0], [5.0, 4.0]])
    losses = {"base": base, "q4": base + np.array([[9.0, 0.1], [9.0, 0.2], [9.0, 0.3]])}
    validation = {"base": np.array([2.5, 3.5, 4.5]), "q4": np.array([2.5, 3.5, 4.5])}
    own, q4 = compare(losses, validation)
    # Two steps: the last tenth is the last one. The seeds differ by 1, the pairs by 0.1.
    assert own.training.gap == 0.0
    assert q4.training.gaps == pytest.approx([0.1, 0.2, 0.3])
    assert q4.training.gap == pytest.approx(0.2)
    assert q4.training.gap_std == pytest.approx(0.1)
    assert q4.training.base_std == pytest.approx(1.0)
    assert q4.validation is not None
    assert q4.validation.gap == 0.0
    assert sentence(q4) == (
        "q4: training +0.2000 +- 0.1000, validation +0.0000 +- 0.0000 nats (mean and deviation over 3 seeds)"
    )


def test_one_seed_has_no_spread() -> None:
    (only,) = compare({"base": np.ones((1, 5))}, {"base": np.array([])})
    assert only.training.gap_std is None
    assert only.validation is None


def test_smoothing_is_a_running_mean() -> None:
    curve = np.array([[1.0, 2.0, 6.0, 3.0]])
    assert smoothed(curve, 2).tolist() == [[1.5, 4.0, 4.5]]
    assert smoothed(curve, 1) == pytest.approx(curve)


def test_a_variant_changes_one_thing(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    write_config(config, tmp_path)
    base = read_settings(config, variant_flags("base", "zero3")).model_dump()
    changed = {}
    for name in ("qk-norm", "z-loss", "q4"):
        variant = read_settings(config, variant_flags(name, "zero3")).model_dump()
        changed[name] = [
            (field, value)
            for section in ("model", "plan", "optimizer", "data")
            for field, value in variant[section].items()
            if value != base[section][field]
        ]
    assert changed == {"qk-norm": [("qk_norm", True)], "z-loss": [("z_loss", 1e-4)], "q4": [("strategy", "zero3+q4")]}
    with pytest.raises(InputError, match="variant 'q5' is unknown"):
        variant_flags("q5", "zero3")
    for name in ("base", "q4"):
        assert variant_flags(name, "hsdp+q4") == variant_flags(name, "hsdp")


@pytest.mark.usefixtures("forked_ranks")
def test_one_command_runs_compares_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "run.toml"
    write_config(config, tmp_path, data__validation_sequences=4, evaluation__every=3)
    command = [str(config), "--variants", "qk-norm", "--seeds", "5", "--output", str(tmp_path / "runs")]
    command += ["--result", str(tmp_path / "result"), "--optimizer.num_steps=3"]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("base: training +0.0000")
    found = json.loads((tmp_path / "result.json").read_text())
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")
    curves = {v: [r["loss"] for r in steps(tmp_path / "runs" / f"{v}-seed-5").values()] for v in ("base", "qk-norm")}
    assert found["losses"] == {v: [[round(loss, 5) for loss in curve]] for v, curve in curves.items()}
    assert curves["base"] != curves["qk-norm"]
    assert found["gaps"][1]["training"]["gap"] == pytest.approx(curves["qk-norm"][-1] - curves["base"][-1])
    # Complete runs are not run again.
    before = (tmp_path / "runs" / "base-seed-5" / "log.jsonl").stat().st_mtime_ns
    assert main(command) == 0
    assert (tmp_path / "runs" / "base-seed-5" / "log.jsonl").stat().st_mtime_ns == before
