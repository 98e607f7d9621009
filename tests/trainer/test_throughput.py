"""The measurement of one device's training: what is written, and that a variant that fails does not end the rest."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from builders import small_model

from flopcast.simulator.conventions import model_flop_per_token
from flopcast.trainer import throughput
from flopcast.trainer.throughput import PLAMO_1B, Load, run

LOAD = Load(seq_len=16, micro_batch=2, passes=2, steps=4, warmup=1)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_both_ways_train_alike_and_leave_log_and_trace(tmp_path: Path) -> None:
    model = small_model(num_layers=2, hidden=64, vocab_size=128)
    document = run(tmp_path, torch.device("cpu"), model, LOAD, ("eager", "kernels"), traced=("kernels",))
    assert document == json.loads((tmp_path / "throughput.json").read_text())
    eager, kernels = (document["variants"][name] for name in ("eager", "kernels"))
    assert eager["losses"] == pytest.approx(kernels["losses"], abs=2e-3)
    assert eager["losses"][-1] < eager["losses"][0]
    assert eager["steps"] == 3
    assert eager["shortest_step_s"] <= eager["median_step_s"] <= eager["longest_step_s"]
    assert eager["tokens_per_s"] == pytest.approx(64 / eager["median_step_s"], rel=1e-3)
    assert eager["flop_per_step"] == pytest.approx(64 * model_flop_per_token(model, 16, "causal").total)
    records = [json.loads(line) for line in (tmp_path / "throughput.jsonl").read_text().splitlines()]
    assert [(r["variant"], r["step"]) for r in records] == [(v, s) for v in ("eager", "kernels") for s in range(1, 5)]
    (trace,) = tmp_path.glob("trace-*/*.json.gz")
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]


def test_a_variant_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = throughput.build

    def refusing(model, plan, **keywords):  # type: ignore[no-untyped-def]
        if plan.compiled:
            raise RuntimeError("no compiler")
        return honest(model, plan, **keywords)

    monkeypatch.setattr(throughput, "build", refusing)
    model = small_model(num_layers=1, hidden=64, vocab_size=128)
    document = run(tmp_path, torch.device("cpu"), model, LOAD, ("compiled", "eager"), traced=())
    assert "no compiler" in document["variants"]["compiled"]["failed"]
    assert "median_step_s" in document["variants"]["eager"]
    document = run(tmp_path, torch.device("cpu"), model, LOAD, ("eager",), traced=(), seconds=0.0)
    assert document["variants"] == {"eager": {"skipped": "the time was spent"}}


def test_micro_batches_that_do_not_fit_are_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = throughput.build

    def full(model, plan, **keywords):  # type: ignore[no-untyped-def]
        if plan.micro_batch > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(model, plan, **keywords)

    monkeypatch.setattr(throughput, "build", full)
    model = small_model(num_layers=1, hidden=64, vocab_size=128)
    load = Load(seq_len=16, micro_batch=4, passes=1, steps=2, warmup=1)
    found = run(tmp_path, torch.device("cpu"), model, load, ("eager",), traced=())["variants"]["eager"]
    assert (found["micro_batch"], found["passes"]) == (1, 4)
    assert found["tokens_per_s"] == pytest.approx(64 / found["median_step_s"], rel=1e-3)


def test_the_fastest_attention_is_tried_first() -> None:
    times: dict[str, float | str] = {"cudnn": 2.0, "flash": 1.0, "efficient": "cannot share heads"}
    with throughput._fastest(times):
        enabled = torch.nn.attention._cur_sdpa_kernel_backends(with_priority=True)
        assert [backend.name for backend in enabled] == ["FLASH_ATTENTION", "CUDNN_ATTENTION", "MATH"]
    assert throughput.attention_times(torch.device("cpu"), PLAMO_1B, LOAD) == {}


def test_the_model_has_a_billion_parameters_in_plamos_shape() -> None:
    assert PLAMO_1B.num_parameters == 1_011_910_656
    (block,) = PLAMO_1B.kinds
    assert (block.parallel, block.num_norms) == (True, 1)
