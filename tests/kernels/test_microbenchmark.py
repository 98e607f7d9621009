import json
import math

import pytest
import torch

from flopcast.kernels import microbenchmark, timing

CPU = torch.device("cpu")


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
    records = microbenchmark.gemm(CPU, [(8, 16, 32)], torch.float32, samples=2)
    assert [r["arguments"]["layout"] for r in records] == ["nt", "nn", "tn"]
    assert {r["flop"] for r in records} == {2 * 8 * 16 * 32}


def test_gemm_multiplies_what_it_says(monkeypatch):
    products = []

    def interleaved(functions, *rest):
        products.append(functions["gemm"](0))
        return {"gemm": timing.Timing(1, 0, 1)}

    monkeypatch.setattr(timing, "interleaved", interleaved)
    microbenchmark.gemm(CPU, [(8, 16, 32)], torch.float32)
    assert [tuple(p.shape) for p in products] == [(8, 16)] * 3


def test_attention_says_why_a_backend_did_not_run():
    records = microbenchmark.attention(CPU, [(1, 16, 4, 2, 8)], torch.float32, samples=2)
    by_backend = {(r["arguments"]["backend"], r["arguments"]["backward"]): r for r in records}
    assert "skipped" in by_backend["cudnn", False]
    forward, both = by_backend["math", False], by_backend["math", True]
    assert forward["flop"] == 2 * 4 * 16**2 * 8
    assert both["flop"] == 3.5 * forward["flop"]


def test_copies_count_the_read_and_the_write():
    (record,) = microbenchmark.copy(CPU, [4096], samples=2)
    assert record["bytes"] == 8192


def test_rotation_holds_more_than_the_cache():
    assert timing.num_inputs(2**14, CPU) == 16
    assert timing.num_inputs(2**30, CPU) == 2
    assert timing.num_inputs(2**14, CPU, limit_bytes=2**16) == 4


def test_functions_take_turns_and_inputs_rotate():
    seen = []
    functions = {name: lambda index, name=name: seen.append((name, index)) for name in "ab"}
    found = timing.interleaved(functions, CPU, samples=4, warm_up=0)
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
