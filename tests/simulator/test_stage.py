"""One stage of a pipeline at a time: together they are the model, and the fullest is what a forecast tells."""

from dataclasses import replace

import numpy as np
import pytest
from builders import small_model
from hypothesis import given
from hypothesis import strategies as st

from flopcast.simulator.catalogue import load_model
from flopcast.simulator.constants import default_constants
from flopcast.simulator.in_flight import micro_batches_in_flight
from flopcast.simulator.memory import memory
from flopcast.simulator.model import Model
from flopcast.simulator.operations import step_operations
from flopcast.simulator.placement import (
    layers_of_chunks,
    layers_of_fullest_stage,
    layers_of_last_stage,
)
from flopcast.simulator.plan import Plan, Plans, placement
from flopcast.simulator.sharding import layers_by_kind, units
from flopcast.simulator.traffic import collective_totals

NODE = np.array([8])


def pipeline(num_gpus: int, pp: int, micro_batches: int, **fields: object) -> Plans:
    placed = placement("zero1", num_gpus, 8, pp=pp)
    return Plans.of([Plan(**placed, seq_len=1024, grad_accum=micro_batches, recompute="full", **fields)])  # type: ignore[arg-type]


def held_bytes(model: Model, plans: Plans, stage: int | None) -> float:
    operations = step_operations(model, plans, NODE, stage)
    return float(memory(model, operations, plans, default_constants(), stage).total[0])


def test_llama_3_405b_has_a_layer_less_where_embedding_and_head_are() -> None:
    """126 layers on 16 stages (arXiv:2407.21783, section 3.3.2); in eight chunks each, both stand alone."""
    assert [len(layers) for layers in layers_of_chunks(126, 16, 1, counts_ends=True)] == [7, *(8,) * 14, 7]
    assert [len(layers) for layers in layers_of_chunks(126, 16, 8, counts_ends=True)] == [0, *(1,) * 126, 0]
    assert [len(layers) for layers in layers_of_chunks(80, 8, 1, counts_ends=True)] == [10] * 8
    assert [len(layers) for layers in layers_of_chunks(126, 16, 1, counts_ends=False)] == [*(8,) * 14, 7, 7]


@given(num_layers=st.integers(1, 200), pp=st.integers(1, 32), counts_ends=st.booleans())
def test_layers_are_dealt_out_evenly_and_in_order(num_layers: int, pp: int, counts_ends: bool) -> None:
    dealt = layers_of_chunks(num_layers, pp, 1, counts_ends)
    assert [layer for stage in dealt for layer in stage] == list(range(num_layers))
    sizes = [len(stage) for stage in dealt]
    assert max(sizes) - min(sizes) <= 1
    assert sizes[0] == max(sizes) or (counts_ends and sizes == [max(sizes) - 1, *(max(sizes),) * (pp - 2), sizes[0]])
    assert max(sizes) == layers_of_fullest_stage(num_layers, np.array(pp))
    assert sizes[-1] == layers_of_last_stage(num_layers, np.array(pp))


def test_the_stages_hold_the_model_between_them() -> None:
    model, plans = small_model(num_layers=7), pipeline(32, 4, 8)
    elements = sum(float(unit.count[0] * unit.elements[0]) for stage in range(4) for unit in units(model, plans, stage))
    assert elements == model.num_parameters


def test_a_stage_holds_its_own_kinds_of_layer() -> None:
    model = small_model(num_layers=6)
    windowed = replace(model.layers[0], attention=replace(model.layers[0].attention, window=64))  # type: ignore[type-var, attr-defined]
    mixed = replace(model, layers=(*(windowed,) * 2, *model.layers[2:]))
    plans = pipeline(16, 2, 4)
    first, second = (layers_by_kind(mixed, plans, stage) for stage in range(2))
    assert [first[windowed][0], first[model.layers[0]][0]] == [2, 1]
    assert [second[windowed][0], second[model.layers[0]][0]] == [0, 3]


def test_what_each_stage_sends() -> None:
    model, plans = small_model(num_layers=4), pipeline(32, 4, 8)
    sent = [
        {
            total.phase: total.count
            for total in collective_totals(step_operations(model, plans, NODE, stage), plans)
            if total.collective == "point_to_point"
        }
        for stage in range(4)
    ]
    assert sent == [{"forward": 8}, {"forward": 8, "backward": 8}, {"forward": 8, "backward": 8}, {"backward": 8}]


@pytest.mark.parametrize(
    ("schedule", "micro_batches", "expected"),
    [("1f1b", 8, [4, 3, 2, 1]), ("1f1b", 4, [4, 3, 2, 1]), ("gpipe", 8, [8, 8, 8, 8])],
)
def test_earlier_stages_have_more_in_flight(schedule: str, micro_batches: int, expected: list[int]) -> None:
    plans = pipeline(32, 4, micro_batches, schedule=schedule)
    assert [micro_batches_in_flight(plans, stage)[0] for stage in range(4)] == expected


@pytest.mark.parametrize(("pp", "micro_batches"), [(2, 4), (4, 8), (8, 32)])
def test_a_forecast_tells_the_fullest_stage(pp: int, micro_batches: int) -> None:
    """Exactly where its root is the larger one; the first and the last stage differ by no more than a norm here."""
    model, plans = load_model("plamo-13b"), pipeline(64, pp, micro_batches)
    stages = [held_bytes(model, plans, stage) for stage in range(pp)]
    assert held_bytes(model, plans, None) == pytest.approx(max(stages), rel=1e-3)


@pytest.mark.parametrize("vocab_size", [50_432, 256_000])
@pytest.mark.parametrize("engine", ["fsdp2", "megatron"])
@pytest.mark.parametrize(("schedule", "recompute"), [("1f1b", "none"), ("1f1b", "full"), ("gpipe", "selective")])
def test_it_does_so_where_stages_without_embedding_and_head_have_a_layer_more(
    vocab_size: int, engine: str, schedule: str, recompute: str
) -> None:
    """Six stages of 7 layers but the first and the last; embedding and head are smaller or larger than a layer."""
    model = replace(load_model("plamo-13b"), vocab_size=vocab_size)
    fields = {"grad_accum": 12, "recompute": recompute, "engine": engine, "schedule": schedule}
    plans = Plans.of([Plan(**placement("zero1", 96, 8, pp=6), seq_len=4096, **fields)])  # type: ignore[arg-type]
    most = max(held_bytes(model, plans, stage) for stage in range(6))
    assert held_bytes(model, plans, None) == pytest.approx(most, rel=0.03)
    assert held_bytes(model, plans, None) >= 0.999 * most


@pytest.mark.parametrize("engine", ["fsdp2", "megatron"])
@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize(("pp", "micro_batches"), [(4, 8), (8, 32), (6, 12), (8, 5)])
def test_it_does_so_where_weights_are_put_off(pp: int, micro_batches: int, recompute: str, engine: str) -> None:
    """Which is the first stage, the last of the fullest ones, or the last, taken to have the fullest's parameters."""
    model = load_model("plamo-13b")
    placed = placement("zero1", 96, 8, pp=pp)
    fields = {"grad_accum": micro_batches, "recompute": recompute, "engine": engine, "schedule": "zero-bubble"}
    plans = Plans.of([Plan(**placed, seq_len=4096, **fields)])  # type: ignore[arg-type]
    most = max(held_bytes(model, plans, stage) for stage in range(pp))
    assert held_bytes(model, plans, None) == pytest.approx(most, rel=1e-3 if model.num_layers % pp == 0 else 0.05)
    assert held_bytes(model, plans, None) >= 0.999 * most


def test_without_a_pipeline_the_only_stage_is_the_whole_model() -> None:
    model, plans = small_model(), pipeline(16, 1, 2)
    assert held_bytes(model, plans, 0) == held_bytes(model, plans, None)
    whole, stage = (collective_totals(step_operations(model, plans, NODE, s), plans) for s in (None, 0))
    assert whole == stage
