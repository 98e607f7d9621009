"""What CUDA graphs replay costs the host their launch alone: by hand, in batches, in the timeline, in the space."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import H100, cluster, plan, small_model

from flopcast.errors import InputError
from flopcast.simulator.band import MIXTURE_LAUNCHED, MIXTURE_REPLAYED, residual_quantiles
from flopcast.simulator.batch import Batch, Case
from flopcast.simulator.blocks.experts import Experts
from flopcast.simulator.blocks.residual import MixedBlock
from flopcast.simulator.blocks.transformer import Attention
from flopcast.simulator.constants import default_constants
from flopcast.simulator.forecast import forecast
from flopcast.simulator.model import Model
from flopcast.simulator.operation import Collective
from flopcast.simulator.plan import Plan, Plans
from flopcast.simulator.space import Space
from flopcast.simulator.timeline import play

C = default_constants()
MODEL = small_model(num_layers=8)
MIXTURE = Model("mixture", 1024, 32000, 4096, (MixedBlock(Attention(8, 8, 128), Experts(16, 2, 512)),) * 4)
WHERE = cluster(H100)
PIPELINE: dict[str, Any] = {"pp": 2, "grad_accum": 8}


def short(graphs: str = "none", strategy: str = "zero1", **fields: Any) -> Plan:
    """One of passes so short that the host, launching kernel by kernel, is what they wait for."""
    usual: dict[str, Any] = {"seq_len": 256, "grad_accum": 4}
    usual |= {"dispatcher": "deepep"} if "ep" in fields else {}
    return plan(strategy, 16, **(usual | fields), cuda_graphs=graphs)


def test_passes_that_are_replayed_take_what_the_device_does() -> None:
    launched, replayed = (forecast(MODEL, WHERE, short(graphs)) for graphs in ("none", "full"))
    free = C.with_values(launch_s=0.0, collective_launch_s=0.0, inner_launch_s=0.0)
    assert launched.step.parts["launch"][0] > 0.5 * launched.step_s[0]
    assert replayed.step.parts["launch"][0] == pytest.approx(0, abs=1e-12)
    assert replayed.step_s[0] == pytest.approx(forecast(MODEL, WHERE, short(), constants=free).step_s[0])


@pytest.mark.parametrize("model", [MODEL, MIXTURE])
def test_graphs_of_layers_hold_what_has_fixed_sizes(model: Model) -> None:
    fields = {"ep": 8, "dispatcher": "alltoall"} if model.num_experts else {}
    found = forecast(model, WHERE, short("partial", "zero3", **fields))
    kind = model.kind_names[model.layers[0]]
    of_layer = [o for o in found.operations if o.name.startswith(f"{kind}.")]
    inside, outside = ({o.name.split(".")[1] for o in of_layer if np.any(o.replayed) == held} for held in (True, False))
    assert {"q", "attention", "norm1", "residual1"} <= inside
    assert {"gather", "reduce_scatter", "optimizer", "graph"} <= outside
    if model.num_experts:
        assert {"router", "route", "dispatch_counts"} <= inside
        assert {"permute", "dispatch", "sort", "experts", "unsort", "combine", "unpermute"} <= outside
        assert "experts" not in inside
    assert not any(np.any(o.replayed) for o in found.operations if o not in of_layer)


def test_a_graph_of_each_layer_is_launched_forward_and_backward() -> None:
    found = forecast(MODEL, WHERE, short("partial", "ddp"))
    graphs = [o for o in found.operations if o.name.endswith(".graph")]
    assert {o.phase for o in graphs} == {"forward", "backward"}
    assert [float(o.count[0] * o.num_kernels[0]) for o in graphs] == [8, 8]
    # The host of a pass: both ends of the model, two launches a layer, and what hooks launch for its gradients.
    ends = sum(float((o.count * o.num_kernels)[0]) for o in found.operations if o.section in ("embedding", "head"))
    assert ends + 2 * 8 < sum(
        float((o.count * o.num_kernels)[0]) for o in found.operations if o.section == "layer" and o.phase == "forward"
    )


def test_a_list_of_plans_is_forecast_as_each_alone() -> None:
    plans = [
        short("full", **PIPELINE, virtual_pp=2, schedule="interleaved"),
        short("none", **PIPELINE),
        short("none"),
        short("partial"),
        short("full"),
    ]
    cases = [Case(model, WHERE, p) for p in plans for model in (MODEL, replace(MODEL, layers=MODEL.layers[:4]))]
    alone = [forecast(case.model, WHERE, case.plan).step_s[0] for case in cases]
    np.testing.assert_allclose(Batch.of(cases).step_time().total, alone, rtol=1e-12)


def test_a_plan_without_a_kind_of_send_has_its_own_host() -> None:
    """Two stages to a node send within it, one to a node do not: what is replayed there says nothing of these."""
    both, across = short("full", pp=4, grad_accum=8), short("none", pp=2, grad_accum=8)
    cases = [Case(MODEL, WHERE, both), Case(replace(MODEL, layers=MODEL.layers[:4]), WHERE, across)]
    alone = [forecast(case.model, WHERE, case.plan).step_s[0] for case in cases]
    np.testing.assert_allclose(Batch.of(cases).step_time().total, alone, rtol=1e-12)


def test_a_kernel_takes_a_time_of_its_own_on_the_device() -> None:
    one = plan("ddp", 1, seq_len=256, grad_accum=4, cuda_graphs="full")
    found = forecast(MODEL, WHERE, one)
    without = forecast(MODEL, WHERE, one, constants=C.with_values(kernel_s=0.0))
    kernels = {"step": 0.0, "passes": 0.0}
    for o in found.operations:
        if not isinstance(o.work, Collective):
            kernels["step" if o.phase == "step" else "passes"] += float((o.count * o.num_kernels)[0])
    expected = C.kernel_s * (kernels["step"] + 4 * kernels["passes"])
    assert found.step_s[0] - without.step_s[0] == pytest.approx(expected)


@pytest.mark.parametrize("graphs", ["none", "partial", "full"])
@pytest.mark.parametrize("fields", [{}, PIPELINE, {"ep": 8}, {"engine": "huggingface", "strategy": "zero3"}])
def test_the_timeline_replays_them_too(graphs: str, fields: dict[str, Any]) -> None:
    """Engines that gather weight by weight launch as many gathers."""
    played = play(MIXTURE if "ep" in fields else MODEL, WHERE, short(graphs, **fields))
    assert played.step_s == pytest.approx(played.closed_form_s, rel=0.05)


def test_a_layer_that_a_graph_holds_is_not_computed_again() -> None:
    with pytest.raises(InputError, match="cuda_graphs=partial with recompute=full"):
        short("partial", recompute="full")
    assert short("full", recompute="full").cuda_graphs == "full"
    with pytest.raises(InputError, match="cuda_graphs=full with ep=8 and dispatcher=alltoall"):
        short("full", ep=8, dispatcher="alltoall")
    values = {"strategy": ["zero1"], "cuda_graphs": ["none", "partial", "full"]}
    space = Space(MODEL, WHERE, 16, 2048, 64, values)
    found = []
    for region in space.regions():
        plans = region.plans.pick(np.nonzero(region.legal))
        found += [plans.describe(index) for index in range(len(plans))]
    assert all(Plan(**fields) for fields in found)
    kept = {(fields["cuda_graphs"], fields["recompute"]) for fields in found}
    mixtures = Space(MIXTURE, WHERE, 16, 256, 64, {**values, "dispatcher": ["alltoall", "deepep"], "pp": [1]})
    for region in mixtures.regions():
        plans = region.plans.pick(np.nonzero(region.legal))
        assert all(Plan(**plans.describe(index)) for index in range(len(plans)))
    every = {(graphs, again) for graphs in values["cuda_graphs"] for again in ("none", "selective", "full")}
    assert kept == every - {("partial", "full")}


def test_the_band_of_a_mixture_is_that_of_runs_launched_alike() -> None:
    low, _ = residual_quantiles()["many_nodes"]
    for graphs, high in (("none", MIXTURE_LAUNCHED), ("partial", MIXTURE_LAUNCHED), ("full", MIXTURE_REPLAYED)):
        row = forecast(MIXTURE, WHERE, short(graphs, ep=8)).rows()[0]
        assert row.high_s / row.step_s == pytest.approx(high), graphs
        assert row.low_s / row.step_s == pytest.approx(np.exp(low)), graphs


@pytest.mark.parametrize(("precision", "launches"), [("bf16", (2, 3)), ("fp8", (3, 4))])
def test_experts_that_follow_each_other_are_launched_each(precision: Any, launches: tuple[int, int]) -> None:
    """Of a rank's 16 / 8 experts two weights, that of gate and up being one, forward and backward."""

    def inner(engine: Any, phase: str) -> float:
        plans = Plans.of([short(ep=8, precision=precision, engine=engine)])
        found = forecast(MIXTURE, WHERE, plans).operations
        return sum(float(np.sum(o.inner_launches * o.count)) for o in found if o.phase == phase)

    replayed = Plans.of([short("full", ep=8, precision=precision, engine="megatron")])
    assert not any(np.any(o.inner_launches) for o in forecast(MIXTURE, WHERE, replayed).operations)
    for phase, each in zip(("forward", "backward"), launches, strict=True):
        assert inner("megatron", phase) == 4 * 2 * 2 * each
        assert inner("fsdp2", phase) == 0
