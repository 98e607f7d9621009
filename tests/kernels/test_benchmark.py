import csv
import json

import pytest
import torch

from flopcast.errors import InputError
from flopcast.kernels import benchmark, roofline, timing
from flopcast.kernels.benchmark_cases import operations


@pytest.fixture(autouse=True)
def small_cache(monkeypatch):
    monkeypatch.setattr(timing, "CPU_CACHE_BYTES", 2**12)
    monkeypatch.setattr(timing, "_SAMPLE_S", 1e-5)


@pytest.fixture(scope="module")
def result():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "CPU_CACHE_BYTES", 2**12)
        patch.setattr(timing, "_SAMPLE_S", 1e-5)
        providers = ("flopcast", "eager", "torch", "liger", "quack")
        return benchmark.run("cpu", tokens=(16,), hidden=(256,), samples=2, providers=providers)


def rows(result, **wanted):
    return [r for r in result["rows"] if all(r.get(k) == v for k, v in wanted.items())]


def test_every_op_and_pass_has_our_row(result):
    for op in ("rms_norm", "add_rms_norm", "add_add_rms_norm", "rope"):
        for which in ("forward", "backward"):
            (row,) = rows(result, op=op, provider="flopcast", tokens=16, **{"pass": which})
            assert row["median_s"] > 0
            assert 0 <= row["error"] < 0.01
            assert row["of_copy"] == pytest.approx(row["bytes"] / row["median_s"] / result["copy_bytes_per_s"])
        assert rows(result, op=op, provider="flopcast", **{"pass": "host"})
    for op in ("nf4_quantise", "nf4_dequantise"):
        (row,) = rows(result, op=op, provider="flopcast", tokens=16)
        assert row["error"] == 0


def test_who_is_not_installed_is_a_row_with_the_reason(result):
    missing = rows(result, op="rms_norm", provider="quack", tokens=16)
    assert [r["skipped"] for r in missing] == ["quack-kernels is not installed"]


def test_the_environment_says_which_path_ran(result):
    assert result["environment"]["backend"] == "reference"
    assert result["environment"]["backend_reason"]
    assert result["environment"]["date"].endswith("+00:00")


@pytest.mark.parametrize(
    ("name", "which", "per_token", "once"),
    [
        ("rms_norm", "forward", 20484, 10240),
        ("rms_norm", "backward", 30724, 20480),
        ("add_rms_norm", "forward", 40964, 10240),
        ("add_rms_norm", "backward", 40964, 20480),
        ("add_add_rms_norm", "forward", 51204, 10240),
        ("rope", "forward", 23040 + 512, 0),
    ],
)
def test_bytes_are_the_floors_of_plamo_13b(name, which, per_token, once):
    (operation,) = [o for o in operations() if o.name == name]
    assert operation.passes(1000, 5120, 2)[which] == 1000 * per_token + once


def test_files_hold_all_rows(result, tmp_path):
    table, document = benchmark.write(result, tmp_path / "new")
    with table.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(result["rows"])
    assert json.loads(document.read_text()) == json.loads(json.dumps(result))
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"kernels.csv", "kernels.json"}


def test_a_spent_budget_is_said(tmp_path):
    result = benchmark.run("cpu", tokens=(16,), hidden=(256,), ops=("rms_norm", "nf4_quantise"), samples=1, budget_s=-1)
    assert {r["skipped"] for r in result["rows"]} == {"the time for the benchmark was spent"}


def test_an_error_shows(monkeypatch):
    (operation,) = [o for o in operations() if o.name == "rms_norm"]
    x, w = operation.inputs(4, 256, torch.float32, torch.device("cpu"))
    wrong = (x * 2 * w,)
    forward, backward = benchmark._errors(operation, (x, w), wrong, [x], (x, w))
    assert forward > 0.5
    assert backward > 0.1


def test_summary_names_the_best_of_the_others():
    def row(provider, seconds):
        key = {"op": "a", "pass": "forward", "dtype": "bfloat16", "tokens": 1, "hidden": 2}
        return {**key, "provider": provider, "median_s": seconds, "spread": 0.0}

    (found,) = benchmark.best_of_the_others([row("flopcast", 1.0), row("eager", 4.0), row("torch", 1.5)])
    assert (found["other"], found["speed"]) == ("torch", 1.5)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_roofline_is_drawn(result, tmp_path, suffix):
    roofline.draw(result, tmp_path / f"roofline.{suffix}")
    assert (tmp_path / f"roofline.{suffix}").stat().st_size > 10_000
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(InputError, match="nothing to draw"):
        roofline.draw({**result, "rows": []}, tmp_path / "none.png")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ops": ["rmsnorm"]}, "--ops holds 'rmsnorm'; did you mean 'rms_norm'"),
        ({"providers": ["ligar"]}, "did you mean 'liger'"),
        ({"tokens": [0]}, "--tokens holds 0"),
        ({"hidden": [100]}, "--hidden holds 100; it is a multiple of 128"),
        ({"hidden": [2**20]}, "--hidden holds 1048576"),
        ({"device": "meta"}, "it is cpu or cuda"),
    ],
)
def test_bad_input_is_a_sentence(arguments, words):
    with pytest.raises(InputError, match=words):
        benchmark.run(**{"device": "cpu", **arguments})
