"""Exchanges with experts beside another micro-batch: what is left of them by hand, in the timeline and in the space."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import H100, cluster, plan

from flopcast.errors import InputError
from flopcast.simulator.blocks.experts import Experts
from flopcast.simulator.blocks.residual import MixedBlock
from flopcast.simulator.blocks.transformer import Attention
from flopcast.simulator.constants import default_constants
from flopcast.simulator.forecast import forecast
from flopcast.simulator.in_flight import micro_batches_in_flight
from flopcast.simulator.model import Model
from flopcast.simulator.plan import Plan, Plans
from flopcast.simulator.space import Space
from flopcast.simulator.timeline import play

MODEL = Model("mixture", 2048, 32000, 4096, (MixedBlock(Attention(16, 16, 128), Experts(16, 2, 4096)),) * 8)
INTERLEAVED = {"pp": 2, "virtual_pp": 2, "schedule": "interleaved"}


# Without the host's launches a pass takes what its kernels take.
CONSTANTS = replace(default_constants(), launch_s=0.0, collective_launch_s=0.0)


def parts(model: Model = MODEL, nics_per_node: int = 8, **fields: Any) -> dict[str, float]:
    usual = {"ep": 8, "grad_accum": 8, "seq_len": 4096}
    where = cluster(H100, nics_per_node=nics_per_node)
    found = forecast(model, where, plan("zero1", 16, **(usual | fields)), constants=CONSTANTS)
    return {name: float(value.flat[0]) for name, value in found.step.parts.items()}


def computed_by_layers(**fields: Any) -> float:
    """Seconds that as many layers more would compute: the head and the embedding are not beside an exchange."""
    found = [parts(model, **fields) for model in (MODEL, replace(MODEL, layers=MODEL.layers * 2))]
    once, twice = (sum(part[cause] for cause in ("gemm", "attention", "pointwise")) for part in found)
    return twice - once


@pytest.mark.parametrize(("ep", "nics_per_node"), [(8, 8), (16, 8), (16, 1)])
@pytest.mark.parametrize("grad_accum", [2, 8])
def test_what_is_exposed_by_hand(ep: int, nics_per_node: int, grad_accum: int) -> None:
    """C + (m - 1) min(C, max(0, C - s T) + leak min(C / s, T)): the first forward and the last backward run alone."""
    fields = {"ep": ep, "nics_per_node": nics_per_node, "grad_accum": grad_accum}
    exchange = parts(**fields)["expert_communication"] / grad_accum
    compute = computed_by_layers(**fields) / grad_accum
    link = "nvlink" if ep == 8 else "network"
    share, leak = (getattr(CONSTANTS, f"{link}_{what}") for what in ("share", "leak"))
    left = max(0.0, exchange - share * compute) + leak * min(exchange / share, compute)
    hidden = parts(**fields, overlap_expert=True)["expert_communication"]
    assert hidden == pytest.approx(exchange + (grad_accum - 1) * min(left, exchange), rel=1e-2)


@pytest.mark.parametrize(
    "fields",
    [
        {"ep": 8},
        {"ep": 16},
        {"ep": 8, "recompute": "selective"},
        {"ep": 4, **INTERLEAVED},
        {"ep": 8, **INTERLEAVED, "grad_accum": 16},
    ],
)
def test_the_timeline_plays_it_event_by_event(fields: dict[str, Any]) -> None:
    where = cluster(H100)
    open_, hidden = (
        play(MODEL, where, plan("zero1", 16, **({"grad_accum": 8, "seq_len": 8192} | fields), overlap_expert=overlap))
        for overlap in (False, True)
    )
    assert hidden.step_s < open_.step_s
    assert hidden.step_s == pytest.approx(hidden.closed_form_s, rel=0.03)
    saved, said = open_.step_s - hidden.step_s, open_.closed_form_s - hidden.closed_form_s
    assert saved == pytest.approx(said, abs=0.02 * open_.step_s)


@pytest.mark.parametrize("engine", ["fsdp2", "megatron"])
def test_where_the_host_sets_the_pace_hiding_costs_next_to_nothing(engine: Any) -> None:
    """What is left of an exchange is waited for while the host launches, as an open one is."""
    fields: dict[str, Any] = {"ep": 8, "grad_accum": 8, "seq_len": 512, "engine": engine}
    open_, hidden = (
        forecast(MODEL, cluster(H100), plan("zero1", 16, **fields, overlap_expert=overlap)) for overlap in (False, True)
    )
    assert open_.step.parts["launch"][0] > 0.3 * open_.step_s[0]
    assert hidden.step_s[0] <= 1.01 * open_.step_s[0]


def test_a_step_whose_micro_batches_all_warm_up_hides_nothing() -> None:
    fields = {"ep": 4, **INTERLEAVED, "grad_accum": 2}
    open_, hidden = (parts(**fields, overlap_expert=overlap) for overlap in (False, True))
    assert hidden["expert_communication"] == pytest.approx(open_["expert_communication"])


@pytest.mark.parametrize(("fields", "expected"), [({}, 2), ({**INTERLEAVED, "grad_accum": 8}, 2 * (1 + 1 / 4) + 1 / 2)])
def test_one_more_chunk_is_in_flight(fields: dict[str, Any], expected: float) -> None:
    plans = Plans.of([plan("zero1", 16, **({"ep": 4, "grad_accum": 8} | fields), overlap_expert=True)])
    assert micro_batches_in_flight(plans)[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ep": 1}, "ep=1, grad_accum=8 has no exchange"),
        ({"grad_accum": 1}, "ep=8, grad_accum=1 has no exchange, or no other micro-batch"),
        ({"recompute": "full"}, "once more"),
        ({"pp": 2}, "pp=2 and schedule=1f1b"),
        ({"pp": 2, "schedule": "gpipe"}, "pp=2 and schedule=gpipe"),
    ],
)
def test_where_it_is_not_to_be_had(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan("zero1", 16, **({"ep": 8, "grad_accum": 8, "overlap_expert": True} | fields))


def test_a_search_tries_it_where_it_is_legal() -> None:
    space = Space(MODEL, cluster(H100), 16, 4096, 64, {"overlap_expert": [False, True], "strategy": ["zero1"]})
    found = []
    for region in space.regions():
        plans = region.plans.pick(np.nonzero(region.legal))
        found += [plans.describe(index) for index in range(len(plans))]
    chosen = [fields for fields in found if fields["overlap_expert"]]
    assert 0 < len(chosen) < len(found)
    assert all(Plan(**fields) for fields in chosen)
