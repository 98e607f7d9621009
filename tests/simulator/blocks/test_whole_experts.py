"""Experts that tensor-parallel ranks hold whole: what a rank computes, sends and keeps, by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import H100, cluster

from flopcast.errors import InputError
from flopcast.simulator.blocks.experts import Experts
from flopcast.simulator.blocks.residual import MixedBlock
from flopcast.simulator.blocks.transformer import Attention
from flopcast.simulator.catalogue import load_cluster, load_model
from flopcast.simulator.compare import compare
from flopcast.simulator.forecast import Forecast, forecast
from flopcast.simulator.model import Model
from flopcast.simulator.operation import Collective, Gemm
from flopcast.simulator.plan import Plan, placement
from flopcast.simulator.request import Request
from flopcast.simulator.space import Space
from flopcast.simulator.timeline import play

D, F, E, K, T = 1024, 512, 16, 2, 2048
MODEL = Model("mixture", D, 32000, 2048, (MixedBlock(Attention(8, 8, 128), Experts(E, K, F)),) * 4)
EXPERTS = 4 * 3 * E * D * F


def whole(strategy: str = "zero1", tp: int = 2, **fields: Any) -> Plan:
    layout = placement(strategy, 16, 8, tp=tp)
    usual = {"seq_len": T, "sequence_parallel": True, "whole_experts": True}
    return Plan(**{**layout, **usual, **fields})  # type: ignore[arg-type]


def cast(p: Plan) -> Forecast:
    return forecast(MODEL, cluster(H100), p)


def works(found: Forecast, ending: str, phase: str = "forward") -> list[Any]:
    return [o.work for o in found.operations if o.name.endswith(ending) and o.phase == phase and o.count[0]]


def test_a_rank_works_on_its_share_of_the_tokens_with_whole_experts() -> None:
    """T K / tp copies, each through all of F; the ranks of a split expert take T K through F / tp: as many FLOPs."""
    (gate,) = works(cast(whole(ep=4)), "experts.gate")
    (split,) = works(cast(whole(ep=4, whole_experts=False)), "experts.gate")
    assert isinstance(gate, Gemm)
    assert (gate.m[0], gate.n[0], np.asarray(gate.number)[0]) == (T * K / 2 * 4 / E, F, E / 4)
    assert (split.m[0], split.n[0]) == (T * K * 4 / E, F / 2)
    assert gate.flop[0] == split.flop[0]


def test_copies_go_straight_to_their_rank() -> None:
    found = cast(whole(ep=4))
    (dispatch,) = works(found, ".dispatch")
    assert isinstance(dispatch, Collective)
    assert dispatch.tensor_bytes[0] == 2 * T / 2 * K * D
    assert not works(found, "exchange.gather")
    assert not works(found, "exchange.scatter")


def test_neighbours_share_them_out() -> None:
    """Eight ranks fill a node of 8, where those that split an expert in two reach into a second node."""
    (near,) = works(cast(whole(ep=8)), ".dispatch")
    (far,) = works(cast(whole(ep=8, whole_experts=False)), ".dispatch")
    assert (near.group.num_nodes[0], far.group.num_nodes[0]) == (1, 2)


@pytest.mark.parametrize(
    ("strategy", "tp", "ep", "ways"),
    [
        # 16 ranks share out the experts, 16 / ep hold the same; 8 data-parallel ranks hold a zero1 shard.
        ("zero1", 2, 4, 4),
        ("zero1", 2, 16, 1),
        ("zero3", 2, 2, 8),
        ("hsdp", 2, 4, 2),  # over the 4 data-parallel ranks of a node: 8 ranks, two of them with the same experts
        ("ddp", 4, 2, 1),  # two tensor-parallel ranks hold the same, and nothing is sharded
    ],
)
def test_shards_are_of_the_ranks_that_hold_the_same(strategy: str, tp: int, ep: int, ways: int) -> None:
    found = cast(whole(strategy, tp, ep=ep))
    dense = (MODEL.num_parameters - EXPERTS) / int(found.plans.optimizer_shard[0])
    routers_and_norms = 4 * (E * D + 2 * D) + D
    held = float(found.memory.parts["optimizer"][0]) / 12
    # All matrices but the routers are split over the tensor-parallel ranks.
    shard = int(found.plans.optimizer_shard[0])
    whole_on_each = routers_and_norms / shard * (1 - 1 / tp)
    assert held == pytest.approx(dense / tp + whole_on_each + EXPERTS / ep / ways, rel=2e-3)


def test_all_gathers_are_among_those_that_hold_the_same() -> None:
    gathers = works(cast(whole("zero3", ep=4)), "experts.gather")
    assert gathers
    assert {(int(w.group.size[0]), float(w.tensor_bytes[0])) for w in gathers} == {(4, 2 * EXPERTS / 4 / 4)}
    # Every fourth rank holds the same: two in a node of 8.
    assert {int(w.group.num_nodes[0]) for w in gathers} == {2}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tp": 1, "ep": 4, "sequence_parallel": False}, "whole_experts with tp=1, ep=4 has no expert"),
        ({"ep": 1}, "whole_experts with tp=2, ep=1 has no expert"),
        ({"ep": 32}, "ep=32 does not divide the 8 data-parallel ranks times tp=2; choose a divisor$"),
        ({"ep": 16, "whole_experts": False}, "8 data-parallel ranks; choose a divisor or set whole_experts"),
        ({"ep": 32, "whole_experts": False}, "8 data-parallel ranks; choose a divisor$"),
    ],
)
def test_plans_that_cannot_be(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        whole(**fields)


@pytest.mark.parametrize("ep", [4, 8, 16])
@pytest.mark.parametrize("strategy", ["zero1", "zero3", "hsdp"])
def test_the_timeline_agrees(strategy: str, ep: int) -> None:
    model, where = load_model("qwen3-30b-a3b"), load_cluster("dgx-h100")
    p = replace(whole(strategy, ep=ep), micro_batch=2, grad_accum=2, seq_len=4096)
    step_s = float(forecast(model, where, p).step_s[0])
    assert play(model, where, p).step_s == pytest.approx(step_s, rel=0.03)


def test_shards_nest_with_the_ranks_that_share_out_experts() -> None:
    """tp 3 on 24 GPUs: shards of 2 data-parallel ranks are of 6 that share out experts."""
    layout = placement("hsdp", 24, 8, tp=3)
    usual = {"seq_len": 3072, "sequence_parallel": True, "whole_experts": True}
    assert Plan(**layout, **usual, ep=3).parameter_shard == 2  # type: ignore[arg-type]
    with pytest.raises(InputError, match="parameter_shard=2 and ep=8 do not nest"):
        Plan(**layout, **usual, ep=8)  # type: ignore[arg-type]
    model = Model("m", 1152, 512, 3072, (MixedBlock(Attention(9, 9, 128), Experts(24, K, 576)),) * 2)
    space = Space(model, cluster(H100), 24, 3072, 24, {"strategy": ["hsdp"], "tp": [3], "pp": [1], "cp": [1]})
    found = set()
    for region in space.regions():
        plans = region.plans.pick(np.nonzero(np.broadcast_to(region.legal, region.plans.shape)))
        found |= {(p["ep"], p["whole_experts"]) for p in map(plans.describe, range(len(plans)))}
    assert {ep for ep, together in found if together} == {2, 3, 6, 12, 24}


def test_a_search_tries_every_legal_one_and_no_other() -> None:
    fixed = {"strategy": ["zero1"], "pp": [1], "cp": [1], "micro_batch": [1], "recompute": ["none"]}
    space = Space(MODEL, cluster(H100), 16, T, 16, fixed)
    found = set()
    for region in space.regions():
        plans = region.plans.pick(np.nonzero(np.broadcast_to(region.legal, region.plans.shape)))
        found |= {(p["tp"], p["ep"], p["whole_experts"]) for p in map(plans.describe, range(len(plans)))}
        for fields in map(plans.describe, range(len(plans))):
            Plan(**fields)
    expected = set()
    for tp, ep, together in ((t, e, w) for t in (1, 2, 4, 8) for e in (1, 2, 4, 8, 16) for w in (False, True)):
        try:
            p = whole("zero1", tp, ep=ep, whole_experts=together, sequence_parallel=tp > 1)
        except InputError:
            continue
        expected.add((p.tp, p.ep, p.whole_experts))
    assert found == expected
    assert (8, 16, True) in found


def test_compare_chooses_and_takes_an_ep_that_only_whole_experts_allow() -> None:
    model, where = load_model("qwen3-30b-a3b"), load_cluster("dgx-h100")
    asked = compare(model, where, Request(16, strategies=("tp8",), ep=16, seq_len=4096))
    assert (asked.rows[0].plan["ep"], asked.rows[0].plan["whole_experts"]) == (16, True)
    free = compare(model, where, Request(16, strategies=("tp8",), seq_len=4096))
    assert free.rows[0].step_s <= asked.rows[0].step_s
    with pytest.raises(InputError, match="ep=32 does not divide the 2 data-parallel ranks"):
        compare(model, where, Request(16, strategies=("tp8",), ep=32, seq_len=4096))
