import csv
import json
from collections import deque

import pytest
import torch

from flopcast.cli import main
from flopcast.errors import InputError
from flopcast.kernels import benchmark, benchmark_calls, device_check, roofline, timing
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
    for op in ("rms_norm", "add_rms_norm", "add_add_rms_norm", "rope", "packed_rope"):
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


def test_a_fault_of_ours_is_told_and_costs_no_other_row(monkeypatch, capsys):
    prepare = benchmark.prepare

    def broken(operation, name, *rest):
        if operation.name == "swiglu" and name == "flopcast":
            raise RuntimeError("the result is not a number")
        return prepare(operation, name, *rest)

    monkeypatch.setattr(benchmark, "prepare", broken)
    found = benchmark.run("cpu", (16,), (256,), ops=("rms_norm", "swiglu"), providers=("flopcast", "eager"), samples=1)
    assert benchmark.failures(found) == ["swiglu of 16 x 256 bfloat16: RuntimeError: the result is not a number"]
    assert device_check.failures({"steps": {"judged": {"result": found}}}) == benchmark.failures(found)
    assert {(r["op"], r["provider"]) for r in found["rows"] if "median_s" in r} == {
        ("rms_norm", "flopcast"),
        ("rms_norm", "eager"),
        ("swiglu", "eager"),
    }
    monkeypatch.setattr(benchmark, "run", lambda *_, **__: found)
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "kernels", "--device", "cpu"])
    assert stopped.value.code == 1
    assert "swiglu of 16 x 256 bfloat16: RuntimeError" in capsys.readouterr().err


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
        ("packed_rope", "forward", 23040 + 8, 512 * 1000),
    ],
)
def test_bytes_are_the_floors_of_plamo_13b(name, which, per_token, once):
    (operation,) = [o for o in operations() if o.name == name]
    assert operation.passes(1000, 5120, 2)[which] == 1000 * per_token + once


def test_a_copy_of_the_same_bytes_takes_turns_with_the_providers(result, monkeypatch):
    for row in result["rows"]:
        assert ("of_copy_same_bytes" in row) == ("bytes" in row)
        assert row.get("of_copy_same_bytes", 1) > 0
        assert row["provider"] != "copy"
    taken = {"ours": timing.Timing(2.0, 0, 1), "copy": timing.Timing(0.5, 0, 1)}
    copied = []
    monkeypatch.setattr(benchmark.microbenchmark, "copying", lambda device, size: copied.append(size))
    monkeypatch.setattr(timing, "interleaved", lambda *_: dict(taken))
    for moved, speed in ((1e6, 0.25), (2.0**33, 2.0)):  # of 2^30 bytes in 0.5 s, at most
        row = benchmark._timed({"ours": None}, moved, torch.device("cpu"), 1)["ours"]
        assert row["of_copy_same_bytes"] == pytest.approx(speed)
    assert copied == [5e5, 2.0**29]


@pytest.mark.parametrize("name", ["rope", "packed_rope"])
def test_nobody_builds_tables_while_it_is_timed(name):
    (operation,) = [o for o in operations() if o.name == name]
    inputs = operation.inputs(1500, 256, torch.bfloat16, torch.device("cpu"))
    positions = torch.arange(1500) % (1000 if name == "packed_rope" else 1500)
    cosines = inputs[2][positions]
    for provider, shape in (("eager", (1, 1500, 1, 128)), ("compiled", (1, 1500, 1, 128)), ("liger", (1, 1500, 128))):
        q, k, wide, _ = operation.handed(provider, inputs)
        assert q is inputs[0]
        assert k is inputs[1]
        assert wide.shape == shape
        for half in wide.view(1500, 128).split(64, dim=1):
            assert torch.equal(half, cosines.to(wide.dtype))
    assert operation.handed("flopcast", inputs) is inputs


def test_inputs_results_and_gradients_all_go_through_more_memory_than_one_call_has(monkeypatch):
    (operation,) = [o for o in operations() if o.name == "rms_norm"]
    device = torch.device("cpu")
    sets = [benchmark_calls.inputs_of(operation, 8, 256, torch.float32, device) for _ in range(3)]
    kept = deque(maxlen=3)
    given = []
    graded = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda o, i, g, **k: given.append(g[0]) or graded(o, i, g, **k))
    forward, backward, _ = benchmark_calls.prepare(operation, "flopcast", sets, kept)
    for call in (forward, backward):
        given.clear()
        for index in range(3, 6):
            call(index)
        assert len({results[0].data_ptr() for results in kept}) == 3
        assert len({gradient.data_ptr() for gradient in given}) == len(given)
    assert len(given) == 3
    for index, results in enumerate(kept):
        wanted = graded(operation.functions["eager"]()(*sets[index]), sets[index], given[index])
        torch.testing.assert_close(results, wanted, rtol=1e-4, atol=1e-5)


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
    forward, backward = benchmark_calls._errors(operation, (x, w), wrong, [x], (x, w))
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
        ({"device": "meta"}, "it is cpu, cuda or cuda:1"),
        ({"device": "cuda:one"}, "--device is 'cuda:one'; it is"),
        ({"device": "cuda:1"}, "PyTorch sees no CUDA device"),
    ],
)
def test_bad_input_is_a_sentence(arguments, words):
    with pytest.raises(InputError, match=words):
        benchmark.run(**{"device": "cpu", **arguments})
