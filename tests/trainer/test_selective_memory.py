"""The forecast's peak of memory under each recompute beside PyTorch's engine on fake ranks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flopcast.simulator.catalogue import load_model
from flopcast.simulator.constants import default_constants
from flopcast.simulator.memory import memory
from flopcast.simulator.operations import step_operations
from flopcast.simulator.plan import Plan, Plans, placement
from flopcast.trainer.verify import trace


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_peak_of_six_layers_is_the_engines(recompute: Any) -> None:
    model = load_model("llama-3-8b")
    model = replace(model, layers=model.layers[:6])
    plan = Plan(**placement("zero3", 16, 8), seq_len=2048, recompute=recompute)  # type: ignore[arg-type]
    _, peak_bytes = trace(model, plan, 8)
    plans = Plans.of([plan])
    held = memory(model, step_operations(model, plans, np.array([8])), plans, default_constants())
    assert held.allocated[0] == pytest.approx(peak_bytes, rel=0.05)
