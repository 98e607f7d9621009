"""Invariants of the forecast over random plans, and one plan against many."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from builders import H100, cluster, plan, small_model
from hypothesis import given, settings
from hypothesis import strategies as st

from flopcast import InputError, load_cluster, load_model
from flopcast.simulator.batch import Batch, Case, memory_of
from flopcast.simulator.forecast import forecast
from flopcast.simulator.plan import CHOICES, FIELDS, Plan, Plans

MODEL = small_model()


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    strategy = draw(st.sampled_from(["ddp", "zero1", "zero2", "zero3", "zero3-node", "hsdp", "tp2", "tp4", "tp8"]))
    if strategy in ("zero3", "zero3-node", "hsdp"):
        strategy += draw(st.sampled_from(["", "+q4"]))
    tp = int(strategy[2:]) if strategy.startswith("tp") else 1
    pp = draw(st.sampled_from([1, 1, 2, 4]))
    schedule = draw(st.sampled_from(["1f1b", "gpipe", "zero-bubble"])) if pp > 1 else "1f1b"
    accum = draw(st.sampled_from([1, 2, 4, 8]))
    fields: dict[str, Any] = {}
    if pp == 2 and accum % 2 == 0 and draw(st.booleans()):
        schedule, fields["virtual_pp"] = "interleaved", 2
    return plan(
        strategy,
        draw(st.sampled_from([8, 16, 32, 512])) * (pp if pp > 1 else 1),
        pp=pp,
        schedule=schedule,
        seq_len=draw(st.sampled_from([128, 2048, 8192])),
        micro_batch=draw(st.sampled_from([1, 2, 8])),
        grad_accum=accum,
        sequence_parallel=tp > 1 and draw(st.booleans()),
        recompute=draw(st.sampled_from(CHOICES["recompute"])),
        precision=draw(st.sampled_from(CHOICES["precision"])),
        attention=draw(st.sampled_from(CHOICES["attention"])),
        gradient_bits=draw(st.sampled_from([16, 32])),
        compiled=draw(st.booleans()),
        fused_kernels=draw(st.booleans()),
        prefetch=draw(st.sampled_from([0, 1, 2])),
        **fields,
    )


@settings(max_examples=150)
@given(plans())
def test_everything_is_finite_and_positive(p: Plan) -> None:
    cast = forecast(MODEL, cluster(H100), p)
    for name, part in {**cast.step.parts, **cast.memory.parts}.items():
        assert np.isfinite(part).all(), name
        assert (part >= -1e-12).all(), name
    assert cast.step_s[0] > 0
    assert cast.memory.total[0] > 0
    assert 0 < cast.mfu[0] < 1
    assert cast.hfu[0] >= cast.mfu[0]
    low, high = cast.band_s
    assert low[0] < cast.step_s[0] < high[0]


@settings(max_examples=80)
@given(plans(), st.floats(1.0, 16.0))
def test_more_bandwidth_is_never_slower(p: Plan, factor: float) -> None:
    base = cluster(H100)
    now = forecast(MODEL, base, p).step_s[0]
    faster = {
        "network": replace(base, nic_bytes_per_s=base.nic_bytes_per_s * factor),
        "memory": replace(base, gpu=replace(H100, memory_bytes_per_s=H100.memory_bytes_per_s * factor)),
        "peak": replace(base, gpu=replace(H100, tensor_flop_per_s=H100.tensor_flop_per_s * factor)),
    }
    for what, machine in faster.items():
        assert forecast(MODEL, machine, p).step_s[0] <= now * (1 + 1e-6), what


@settings(max_examples=20)
@given(st.lists(plans(), min_size=2, max_size=12))
def test_one_plan_at_a_time_is_the_same_as_many(many: list[Plan]) -> None:
    together = forecast(MODEL, cluster(H100), many)
    for index, one in enumerate(many):
        alone = forecast(MODEL, cluster(H100), one)
        assert alone.step_s[0] == pytest.approx(together.step_s[index], rel=1e-12)
        assert alone.memory.total[0] == pytest.approx(together.memory.total[index], rel=1e-12)
        assert alone.traffic.inter_node_bytes[0] == pytest.approx(together.traffic.inter_node_bytes[index], rel=1e-12)


def test_a_batch_of_models_and_clusters_is_the_same_as_each() -> None:
    cases = [
        # Groups of 64 in one node, beside machines that have no such nodes.
        Case(small_model(num_layers=3), cluster(H100, gpus_per_node=64, nics_per_node=64), plan("zero3", 64, 64)),
        Case(small_model(), cluster(), plan("zero3", 16)),
        Case(small_model(parallel=True, num_layers=6), cluster(H100), plan("tp8", 32, recompute="full")),
        Case(small_model(gated=False), cluster(), plan("zero1", 16, pp=2, grad_accum=4)),
        Case(small_model(), cluster(), plan("ddp", 16, pp=2, tp=4, grad_accum=4, engine="megatron-2021")),
    ]
    batch = Batch.of(cases)
    for index, case in enumerate(cases):
        alone = forecast(case.model, case.cluster, case.plan)
        assert batch.step_time().total[index] == pytest.approx(alone.step_s[0], rel=1e-12)
        assert memory_of([case]).total[0] == pytest.approx(alone.memory.total[0], rel=1e-12)


def test_frame_has_a_row_per_plan_and_units_in_its_names() -> None:
    frame = forecast(MODEL, cluster(), [plan("zero3"), plan("ddp")]).to_frame()
    assert list(frame["strategy"]) == ["zero3", "ddp"]
    assert {"step_s", "memory_bytes", "inter_node_bytes", "gemm_s", "memory_optimizer_bytes"} <= set(frame.columns)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_gpus": 12}, "multiple of 8"),
        ({"tp": 16, "num_gpus": 16}, "tp=16 does not divide num_heads=8"),
        ({"pp": 8, "num_gpus": 64}, "4 layers"),
    ],
)
def test_what_the_model_or_cluster_cannot_carry(change: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        forecast(MODEL, cluster(), Plan(**{"strategy": "ddp", "num_gpus": 16, "seq_len": 2048, **change}))


@pytest.mark.parametrize("plans", ["x", 5, None, [Plan("ddp", 8, 2048), {"tp": 2}]])
def test_what_is_no_plan(plans: Any) -> None:
    with pytest.raises(InputError, match="; give a Plan, a list of them, or Plans"):
        forecast(small_model(), cluster(), plans)


def test_unknown_convention() -> None:
    with pytest.raises(InputError, match="choose one of 6n, causal, full"):
        forecast(MODEL, cluster(), plan(), convention="8n")


def test_fp8_needs_a_gpu_that_has_it() -> None:
    with pytest.raises(InputError, match="precision=fp8: a100-80gb has no 8-bit peak"):
        forecast(MODEL, cluster(), plan("zero1", 16, precision="fp8"))


@pytest.mark.parametrize(
    ("num_layers", "fields"),
    [(6, {"pp": 8}), (6, {"pp": 4, "virtual_pp": 3}), (6, {"pp": 4, "virtual_pp": 2, "engine": "deepspeed"})],
)
def test_stages_without_a_layer_are_refused(num_layers: int, fields: dict[str, Any]) -> None:
    """Eight stages of six layers, an embedding and a head would be one of these each."""
    schedule = "interleaved" if "virtual_pp" in fields else "1f1b"
    with pytest.raises(InputError, match="6 layers; use at most one stage per layer"):
        forecast(small_model(num_layers=6), cluster(H100), plan("zero1", 64, grad_accum=8, schedule=schedule, **fields))


def test_a_bubble_is_the_share_of_the_stages_between_where_they_have_a_layer_more() -> None:
    """Six stages of 7 layers but the first and the last: some (p - 1) of m passes idle, and not one layer of seven."""
    asked = plan("zero1", 48, pp=6, grad_accum=120, seq_len=4096)
    step = forecast(load_model("plamo-13b"), cluster(H100), asked).step
    assert 0 < step.parts["bubble"][0] < 2 * (6 - 1) / 120 * step.total[0]


def test_plans_along_axes_are_forecast_as_their_list_is() -> None:
    model, cluster = load_model("pythia-1b"), load_cluster("abci-a")
    grid = [[replace(Plan("ddp", 16, s), micro_batch=b) for b in (1, 2, 4)] for s in (1024, 2048)]
    flat = Plans.of([plan for row in grid for plan in row])
    columns = {name: getattr(flat, name)[:1].reshape(1, 1) for name in FIELDS}
    columns |= {"seq_len": np.array([[1024], [2048]]), "micro_batch": np.array([[1, 2, 4]])}
    spread, listed = forecast(model, cluster, Plans(**columns)), forecast(model, cluster, flat)
    for name in ("step_s", "tokens_per_s_per_gpu", "mfu", "hfu"):
        np.testing.assert_allclose(
            np.broadcast_to(getattr(spread, name), (2, 3)).ravel(), getattr(listed, name), rtol=1e-12
        )
    assert repr(spread) == "<Forecast of Pythia-1B on ABCI-A: 6 plans>"
    assert (repr(spread.plans), repr(listed.plans)) == ("<Plans: 2 x 3>", "<Plans: 6>")
    with pytest.raises(InputError, match=r"the plans lie along axes, \(2, 3\), and are no list; take one of them by"):
        spread.to_frame()


def test_what_are_no_plans_is_said() -> None:
    with pytest.raises(InputError, match=r"an array for every field of a plan; of Plan objects make one by Plans\.of"):
        Plans(**asdict(Plan("ddp", 16, 2048)))
    with pytest.raises(InputError, match="plans have no recompute='half'; ask for a named choice"):
        Plans.of([Plan("ddp", 16, 2048)]).has(recompute="half")
