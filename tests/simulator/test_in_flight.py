"""What a pipeline stage holds, counted along the very order in which the timeline plays its schedule."""

import numpy as np
import pytest
from builders import plan, small_model
from hypothesis import given
from hypothesis import strategies as st

from flopcast.simulator.constants import default_constants
from flopcast.simulator.in_flight import left_in_flight, micro_batches_in_flight, put_off_weights
from flopcast.simulator.memory import memory
from flopcast.simulator.operations import step_operations
from flopcast.simulator.plan import Plans
from flopcast.simulator.timeline.schedule import SCHEDULES, one_ahead

NODE = np.array([8])


def most_held(stage: int, p: int, m: int, put_off: float) -> float:
    """Along the schedule, an activation counting 1 and what one micro-batch's put-off weights need ``put_off``."""
    whole = waiting = 0
    most = 0.0
    for action in SCHEDULES["zero-bubble"](stage, p, m, 1):
        whole += {"forward": 1, "backward": -1, "weight": 0}[action.direction]
        waiting += {"forward": 0, "backward": 1, "weight": -1}[action.direction]
        most = max(most, whole + put_off * waiting)
    return most


@given(
    p=st.integers(2, 12), m=st.integers(1, 40), put_off=st.sampled_from([0.0, 0.4, 0.94, 1.0, 1.5, 8.0]), data=st.data()
)
def test_what_zero_bubble_holds_is_what_its_order_says(p: int, m: int, put_off: float, data: st.DataObject) -> None:
    stage = data.draw(st.integers(0, p - 1))
    plans = Plans.of([plan("zero1", 8 * p, pp=p, grad_accum=m, schedule="zero-bubble")])
    forward, backward = put_off_weights(plans, stage)
    after_forward = micro_batches_in_flight(plans, stage) + put_off * forward
    after_backward = left_in_flight(plans, stage) + put_off * backward
    assert max(after_forward[0], after_backward[0]) == pytest.approx(most_held(stage, p, m, put_off))
    # ZB-H1 holds 1F1B's memory as long as no put-off gradient needs more than an activation (arXiv:2401.10241, 2.1).
    if put_off <= 1:
        assert after_forward[0] <= min(p, m)


@given(p=st.integers(2, 8), rounds=st.integers(1, 4), chunks=st.integers(2, 4), beside=st.booleans(), data=st.data())
def test_what_an_interleaved_stage_holds_is_what_its_order_says(
    p: int, rounds: int, chunks: int, beside: bool, data: st.DataObject
) -> None:
    stage, m = data.draw(st.integers(0, p - 1)), p * rounds
    order = SCHEDULES["interleaved"](stage, p, m, chunks)
    order = [action for action, _ in one_ahead(order)] if beside else order
    held = np.cumsum([1 if action.direction == "forward" else -1 for action in order])
    fields = {"schedule": "interleaved", "virtual_pp": chunks, "ep": 8, "overlap_expert": beside}
    plans = Plans.of([plan("zero1", 8 * p, pp=p, grad_accum=m, **fields)])
    assert micro_batches_in_flight(plans, stage)[0] == pytest.approx(max(held) / chunks)


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "interleaved"])
def test_no_other_schedule_puts_anything_off(schedule: str) -> None:
    chunks = 2 if schedule == "interleaved" else 1
    plans = Plans.of([plan("zero1", 32, pp=4, grad_accum=8, schedule=schedule, virtual_pp=chunks)])
    assert [float(held[0]) for held in put_off_weights(plans, 3)] == [0, 0]


def held_by(stage: int, schedule: str, engine: str, recompute: str = "none", **size: int) -> float:
    model = small_model(gated=False, intermediate=4096, num_layers=16, **size)
    fields = {"pp": 4, "grad_accum": 8, "recompute": recompute, "engine": engine, "schedule": schedule}
    plans = Plans.of([plan("zero1", 32, **fields)])
    operations = step_operations(model, plans, NODE, stage)
    return float(memory(model, operations, plans, default_constants(), stage).parts["activations"][0])


def test_put_off_weights_of_a_gpt_layer_need_32_bytes_per_token_and_feature() -> None:
    """M_W = 32 s b h (arXiv:2401.10241, table 1): of each product its input and the gradient of its result.

    On stage 2 of 4 two micro-batches are put off while two are in flight, four layers each.
    """
    more = held_by(2, "zero-bubble", "megatron") - held_by(2, "1f1b", "megatron")
    assert more == pytest.approx(2 * 4 * 32 * 2048 * 1024)


def test_the_last_stage_puts_off_its_logits_too() -> None:
    more = held_by(3, "zero-bubble", "megatron") - held_by(3, "1f1b", "megatron")
    head = 2 * 2048 * (32000 + 1024)
    assert more == pytest.approx(3 * (4 * 32 * 2048 * 1024 + head), rel=1e-6)


def test_under_recompute_what_is_put_off_outweighs_what_is_in_flight() -> None:
    """After a backward stage 2 holds one checkpoint of each layer and three micro-batches' products, the last's not."""
    held = held_by(2, "zero-bubble", "megatron", recompute="full")
    layer, checkpoint = 32 * 2048 * 1024, 2 * 2048 * 1024
    assert held == pytest.approx(4 * checkpoint + (3 * 4 - 1) * layer)


def test_pytorch_keeps_the_graph_besides() -> None:
    """Of each put-off micro-batch all activations and the gradients of products' results: 18 s b h."""
    model = small_model(gated=False, intermediate=4096, num_layers=16)
    plans = Plans.of([plan("zero1", 32, pp=4, grad_accum=8, schedule="zero-bubble")])
    operations = step_operations(model, plans, NODE, 2)
    activation = sum(float((o.count * o.saved_bytes)[0]) for o in operations if o.section == "layer")
    held = held_by(2, "zero-bubble", "fsdp2")
    results = 3 * 2 * 2048 * 1024
    assert held == pytest.approx(activation + (3 - 1 / 4) * (activation + 4 * 18 * 2048 * 1024) + results)
