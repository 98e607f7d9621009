"""Where a pipeline's stages find the documents of packed sequences: once for each micro-batch, on the host."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from builders import small_model

from flopcast.simulator.plan import Plan, placement
from flopcast.trainer.attention import Documents
from flopcast.trainer.engine import OptimizerSettings, build
from flopcast.trainer.engine.pipeline import PipelinePasses
from flopcast.trainer.fake_cluster import fake_cluster

MODEL = small_model(hidden=64, num_heads=4, num_kv_heads=2, intermediate=96, num_layers=2, vocab_size=80)
NUM_MICRO_BATCHES = 3


def test_a_stage_is_given_the_documents_that_the_host_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(**placement("zero1", 2, 2, pp=2), seq_len=24, micro_batch=2, grad_accum=NUM_MICRO_BATCHES)  # type: ignore[arg-type]
    found: list[Documents] = []
    begun: list[Documents] = []
    original = Documents.of

    def of(positions: torch.Tensor) -> Documents:
        found.append(original(positions))
        return found[-1]

    def one_after_another(tokens: torch.Tensor, **_: Any) -> None:
        for chunk in tokens.chunk(NUM_MICRO_BATCHES):
            engine.module(chunk)

    schedule = SimpleNamespace(step=one_after_another)
    monkeypatch.setattr(Documents, "of", of)
    monkeypatch.setattr(PipelinePasses, "_schedule", lambda passes, training, tokens: schedule)
    monkeypatch.setattr(PipelinePasses, "_share_buffers", lambda passes, stage: None)
    with fake_cluster(2):
        cpu, settings = torch.device("cpu"), OptimizerSettings()
        engine = build(MODEL, plan, gpus_per_node=2, device=cpu, dtype=torch.float32, seed=0, optimizer=settings)
        engine._passes._stages[True] = None
        (layer,) = engine.module.layers.values()
        layer.register_forward_pre_hook(lambda _, inputs: begun.append(inputs[2]))
        for number in range(NUM_MICRO_BATCHES):
            tokens = torch.randint(80, (2, 24))
            positions = (torch.arange(24) % (5 + number)).repeat(2, 1)
            engine.accumulate(tokens, tokens, positions, is_last=number == NUM_MICRO_BATCHES - 1)
    assert len(found) == NUM_MICRO_BATCHES
    assert [documents.bounds.tolist() for documents in begun] == [documents.bounds.tolist() for documents in found]
