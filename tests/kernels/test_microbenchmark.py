import json
import math

import pytest
import torch

from flopcast.errors import InputError
from flopcast.kernels import benchmark, microbenchmark, timing

CPU = torch.device("cpu")
SECOND = torch.device("cuda", 1)


@pytest.fixture(autouse=True)
def small_cache(monkeypatch):
    monkeypatch.setattr(timing, "CPU_CACHE_BYTES", 2**16)
    monkeypatch.setattr(timing, "_SAMPLE_S", 1e-5)


def test_every_kind_gives_records_that_json_takes():
    records = microbenchmark.run(CPU, quick=True)
    assert {record["kind"] for record in records} == set(microbenchmark.KINDS)
    json.dumps(records, allow_nan=False)
    for record in records:
        if "skipped" in record:
            assert record["skipped"]
            continue
        assert record["median_s"] > 0
        assert record["spread"] >= 0
        assert record["num_samples"] >= 1


def test_gemm_counts_its_flop_in_every_layout():
    records = microbenchmark.gemm(CPU, [(8, 16, 32)], samples=2)
    assert [r["arguments"]["layout"] for r in records] == ["nt", "nn", "tn"]
    assert {r["flop"] for r in records} == {2 * 8 * 16 * 32}


def test_gemm_multiplies_what_it_says(monkeypatch):
    products = []

    def interleaved(functions, *rest):
        products.append(functions["gemm"](0))
        return {"gemm": timing.Timing(1, 0, 1)}

    monkeypatch.setattr(timing, "interleaved", interleaved)
    microbenchmark.gemm(CPU, [(8, 16, 32)])
    assert [tuple(p.shape) for p in products] == [(8, 16)] * 3


def test_attention_says_why_a_backend_did_not_run():
    records = microbenchmark.attention(CPU, [(1, 16, 4, 2, 8)], samples=2)
    by_backend = {(r["arguments"]["backend"], r["arguments"]["backward"]): r for r in records}
    assert "skipped" in by_backend["cudnn", False]
    forward, both = by_backend["math", False], by_backend["math", True]
    assert forward["flop"] == 2 * 4 * 16**2 * 8
    assert both["flop"] == 3.5 * forward["flop"]


def test_copies_count_the_read_and_the_write():
    (record,) = microbenchmark.copy(CPU, [4096], samples=2)
    assert record["bytes"] == 8192


def test_rotation_holds_more_than_the_cache():
    assert timing.num_inputs(2**14, CPU, 1e12) == 16
    assert timing.num_inputs(2**30, CPU, 1e12) == 2
    assert timing.num_inputs(2**14, CPU, limit_bytes=2**16) == 4


def test_functions_take_turns_and_inputs_rotate():
    seen = []
    functions = {name: lambda index, name=name: seen.append((name, index)) for name in "ab"}
    found = timing.interleaved(functions, CPU, samples=4)
    assert set(found) == {"a", "b"}
    assert all(timed.num_samples == 4 for timed in found.values())
    runs = [name for i, (name, _) in enumerate(seen) if i == 0 or seen[i - 1][0] != name]
    assert runs[-6:] in (["a", "b", "a", "b", "a", "b"], ["b", "a", "b", "a", "b", "a"]) or runs.count("b") >= 2
    assert max(index for name, index in seen if name == "a") >= 3


def test_summary_is_the_median_and_the_middle_eighty_percent():
    timed = timing.summary([float(v) for v in range(1, 12)])
    assert timed == timing.Timing(6.0, (10 - 2) / 6, 11)
    assert timing.summary([3.0]) == timing.Timing(3.0, 0.0, 1)


def test_host_time_is_positive():
    assert 0 < timing.host_time(lambda index: math.sqrt(index), CPU, calls=10, samples=3).median_s < 1


class Seen(list):
    """Calls in order, and a function that is one of them."""

    call = late = cycles = None


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs on paper: what is done to them, by the name of the call and the device that is current."""
    seen, current = Seen(), [0]

    class Selected:
        def __init__(self, device):
            self.index = torch.device(device).index

        def __enter__(self):
            current.append(self.index)

        def __exit__(self, *error):
            current.pop()

    class Event:
        def __init__(self, enable_timing=False):
            pass

        def record(self):
            seen.append(("record", current[-1]))

        def query(self):
            return seen.late()

        def elapsed_time(self, other):
            return 1.0

    monkeypatch.setattr(torch.cuda, "device", Selected)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: seen.append(("synchronize", device.index)))
    monkeypatch.setattr(
        torch.cuda, "_sleep", lambda cycles: (seen.append(("sleep", current[-1])), seen.cycles.append(cycles))
    )
    seen.cycles, seen.late = [], lambda: False
    seen.call = lambda index: seen.append(("call", current[-1]))
    return seen


def test_the_gpu_that_is_timed_is_the_current_one(gpus):
    timing.interleaved({"a": gpus.call}, SECOND, samples=2)
    timing.host_time(gpus.call, SECOND, calls=2, samples=2)
    assert {name for name, _ in gpus} == {"record", "synchronize", "sleep", "call"}
    assert {index for _, index in gpus} == {1}


def test_a_stream_that_ran_dry_is_kept_busy_for_longer(gpus, monkeypatch):
    """The host queues a call in 100 us, and a cycle takes 0.5 ns: 90 us before one call, 360 before four run dry."""
    monkeypatch.setattr(timing, "_SAMPLE_S", 4e-3)

    def late():
        since = gpus[max(i for i, (name, _) in enumerate(gpus) if name == "sleep") :]
        return 100e-6 * sum(name == "call" for name, _ in since) > 0.5e-9 * gpus.cycles[-1]

    gpus.late = late
    timed = timing.interleaved({"a": gpus.call}, SECOND, samples=3)["a"]
    assert not timed.host_bound
    assert gpus.cycles == [180_000, 360_000, 720_000, 1_440_000, 1_440_000, 1_440_000]


def test_what_never_keeps_up_is_marked(gpus):
    gpus.late = lambda: True
    found = timing.interleaved({"a": gpus.call}, SECOND, samples=3)["a"]
    assert found.host_bound
    assert found.num_samples == 3
    # Doubled to the end once, by the first sample; later ones begin there.
    assert len(gpus.cycles) == 6 + 3


def test_the_gpu_that_is_compared_is_the_current_one(gpus, monkeypatch):
    """Triton compiles for and launches on the current device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(microbenchmark, "copy", lambda *_: [{"bytes": 1.0, "median_s": 1.0}])
    monkeypatch.setattr(benchmark, "_compare", lambda *_: gpus.call(0) or [])
    monkeypatch.setattr(benchmark, "environment", lambda device: {})
    monkeypatch.setattr(benchmark, "datasheet_bytes_per_s", lambda device: None)
    benchmark.run("cuda:1", (16,), (256,), ops=("rope", "swiglu"))
    assert gpus == [("call", 1)] * 2
    with pytest.raises(InputError, match="--device is cuda:2 and PyTorch sees 2 CUDA devices"):
        benchmark.run("cuda:2")
