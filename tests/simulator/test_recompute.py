"""Recomputation of some layers: by hand, layer by layer, and between all of them and none."""

import numpy as np
import pytest
from builders import cluster, plan, small_model

from flopcast import InputError
from flopcast.simulator.catalogue import load_model
from flopcast.simulator.conventions import model_flop_per_token
from flopcast.simulator.forecast import Forecast, forecast
from flopcast.simulator.operation import Gemm
from flopcast.simulator.placement import layers_of_chunks
from flopcast.simulator.plan import Plan, Plans
from flopcast.simulator.recompute import layers_in_full, recompute_in_words, share_in_full, shares_in_full
from flopcast.simulator.search import SearchRequest, search
from flopcast.simulator.timeline import events, play

# A small vocabulary, so that the activations and not the loss are the peak.
MODEL = small_model(num_layers=8, vocab_size=512)
TOKENS, D, F = 2048, 1024, 2816
INPUT = 2 * TOKENS * D
# As tests/simulator/test_memory.py adds it up, and what one layer's backward holds besides.
LAYER = 2 * TOKENS * (2 * D + 2 * D + 3 * D + D + 2 * F + F) + 4 * TOKENS * 8
BACKWARD = 2 * (3 * TOKENS * F + TOKENS * D + F * D)


def cast(recompute_layers: int, **fields: object) -> Forecast:
    given = {"recompute": "full", "recompute_layers": recompute_layers} | fields
    return forecast(MODEL, cluster(), plan("zero3", 16, **given))


@pytest.mark.parametrize("again", range(1, 8))
def test_the_rest_of_the_layers_is_kept(again: int) -> None:
    """Of the last layers, which go backward first, one is in work; if it is the only one, so is the next, made anew."""
    parts = cast(again).memory.parts
    assert parts["activations"][0] == pytest.approx(again * INPUT + (8 - again - 1) * LAYER)
    working = BACKWARD if again < 7 else LAYER - INPUT + BACKWARD
    assert parts["workspace"][0] == pytest.approx(working)


def test_all_layers_by_number_are_all_layers() -> None:
    some, all_ = cast(8), cast(0)
    assert some.step_s[0] == pytest.approx(all_.step_s[0])
    assert some.memory.total[0] == pytest.approx(all_.memory.total[0])
    assert some.hfu[0] == pytest.approx(all_.hfu[0])


def test_every_layer_costs_as_much_again() -> None:
    """From none to all of them step time rises evenly where nothing waits for communication."""
    alone = [
        forecast(MODEL, cluster(), plan("ddp", 1, recompute="full" if k else "none", recompute_layers=k)).step_s[0]
        for k in range(9)
    ]
    assert np.diff(alone) == pytest.approx((alone[8] - alone[0]) / 8, rel=1e-4)
    assert alone[8] > alone[0]


def test_matrix_products_and_hfu_count_the_layers_computed_again() -> None:
    found = cast(3)
    again = sum(
        float((o.count * o.work.flop)[0])
        for o in found.operations
        if o.phase == "recompute" and isinstance(o.work, Gemm)
    )
    assert again == pytest.approx(3 * 2 * TOKENS * (4 * D * D + 3 * D * F))
    flop = model_flop_per_token(MODEL, 2048)
    assert found.hfu[0] / found.mfu[0] == pytest.approx(1 + 3 / 8 * flop.layers_forward / flop.total)


@pytest.mark.parametrize(
    ("num_layers", "pp", "virtual_pp"),
    [(80, 1, 1), (80, 8, 1), (80, 8, 5), (61, 4, 1), (61, 4, 3), (13, 4, 3), (9, 4, 2)],
)
def test_counted_chunk_by_chunk(num_layers: int, pp: int, virtual_pp: int) -> None:
    chunks = [len(chunk) for chunk in layers_of_chunks(num_layers, pp, virtual_pp, counts_ends=True)]
    schedule = "interleaved" if virtual_pp > 1 else "1f1b"
    for k in range(1, max(chunks) + 1):
        fields = {"pp": pp, "virtual_pp": virtual_pp, "schedule": schedule, "grad_accum": pp}
        plans = Plans.of([plan("zero1", 8 * pp, recompute="full", recompute_layers=k, **fields)])
        again = [min(k, size) for size in chunks]
        assert share_in_full(plans, num_layers)[0] * num_layers == pytest.approx(sum(again))
        assert layers_in_full(plans, -(-num_layers // pp))[0] == sum(again[::pp])


def test_on_a_stage_kinds_are_counted_layer_by_layer() -> None:
    """DeepSeek-V2-Lite's first layer is dense: computed again, no layer with experts is on the first stage."""
    model = load_model("deepseek-v2-lite")
    plans = Plans.of([plan("zero1", 32, pp=4, recompute="full", recompute_layers=2)])
    dense, experts = model.layers[0], model.layers[1]
    shares = shares_in_full(model, plans, 0)
    number, of_second = (len(layers) for layers in layers_of_chunks(model.num_layers, 4, 1, counts_ends=True)[:2])
    assert (shares[dense][0], shares[experts][0]) == pytest.approx((1, 1 / (number - 1)))
    assert shares_in_full(model, plans, 1)[experts][0] == pytest.approx(2 / of_second)


def test_the_timeline_plays_the_first_layers_of_every_chunk_again() -> None:
    fields = {"pp": 2, "virtual_pp": 2, "schedule": "interleaved", "grad_accum": 4}
    step = play(
        small_model(num_layers=12), cluster(), plan("zero1", 16, recompute="full", recompute_layers=2, **fields)
    )
    frame = events(step)
    assert sorted(frame[frame.phase == "recompute"].layer.unique()) == [0, 1, 3, 4, 6, 7, 9, 10]
    assert step.step_s == pytest.approx(step.closed_form_s, rel=0.03)


def test_the_search_forecasts_what_a_plan_alone_is_forecast_at() -> None:
    model, where = small_model(num_layers=8), cluster()
    fixed = {"recompute": ["full"], "recompute_layers": [1, 2, 8], "tp": [1], "cp": [1], "strategy": ["zero1", "zero3"]}
    found = search(model, where, SearchRequest([16], global_batch_tokens=64 * 2048, fixed=fixed)).found[0]
    assert {int(row.plan["pp"]) for row in found.rows} == {1, 2, 4, 8}
    assert {int(row.plan["recompute_layers"]) for row in found.rows} == {1}
    alone = forecast(model, where, [Plan(**row.plan) for row in found.rows])
    assert alone.step_s == pytest.approx(found.best.step_s)
    assert alone.memory.total == pytest.approx(found.best.memory.total)


def test_no_layers_of_none_and_no_more_than_there_are() -> None:
    with pytest.raises(InputError, match=r"recompute_layers=3 with recompute=selective.*use recompute=full"):
        plan("zero3", 16, recompute="selective", recompute_layers=3)
    with pytest.raises(InputError, match="recompute_layers=9 but small has 8 layers"):
        cast(9)
    with pytest.raises(InputError, match="a stage's chunk of small has 2 layers"):
        cast(3, pp=4)


def test_in_words() -> None:
    full = {"recompute": "full", "recompute_layers": 0}
    assert recompute_in_words(full) == "full"
    assert recompute_in_words({**full, "recompute_layers": 10}) == "full (10 layers)"
    assert recompute_in_words({**full, "recompute_layers": 1}) == "full (1 layer)"
