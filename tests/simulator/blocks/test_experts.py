"""Mixtures of experts: parameters, FLOPs, bytes and memory by hand, and what expert parallelism leaves on a rank."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import H100, cluster, plan
from hypothesis import given, settings
from hypothesis import strategies as st

from flopcast.errors import InputError
from flopcast.simulator.blocks.experts import Experts
from flopcast.simulator.blocks.residual import MixedBlock
from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.catalogue import load_cluster, load_model
from flopcast.simulator.conventions import model_flop_per_token
from flopcast.simulator.forecast import Forecast, forecast
from flopcast.simulator.model import Model, count_parameters
from flopcast.simulator.operation import Collective, Gemm, Operation
from flopcast.simulator.plan import Plan
from flopcast.simulator.timeline import exposed_collectives, play
from flopcast.simulator.traffic import collective_totals

D, F, E, K, T = 1024, 512, 16, 2, 2048
ATTENTION = Attention(8, 8, 128)
BLOCK = MixedBlock(ATTENTION, Experts(E, K, F, shared_intermediate=2 * F))
DENSE = TransformerBlock(ATTENTION, Mlp(2816))
MODEL = Model("mixture", D, 32000, 2048, (DENSE, BLOCK, BLOCK, BLOCK))
EXPERTS_OF_A_LAYER = 3 * E * D * F


def test_biases_of_router_and_experts_by_hand() -> None:
    """A bias for every row of every product, and one more sum over the tokens for each in backward."""
    biased = MixedBlock(ATTENTION, Experts(E, K, F, bias=True))
    plain = MixedBlock(ATTENTION, Experts(E, K, F))
    more = count_parameters(biased, D) - count_parameters(plain, D)
    assert more == E + E * (F + F + D)
    model = Model("mixture", D, 32000, 2048, (biased,))
    active = model.num_active_parameters - replace(model, layers=(plain,)).num_active_parameters
    assert active == E + K * (F + F + D)
    p = plan("ddp", 2, seq_len=T)
    launches = [
        sum(float(o.num_kernels.max() * o.count.max()) for o in cast(p, replace(model, layers=(block,))).operations)
        for block in (biased, plain)
    ]
    assert launches[0] - launches[1] >= 4


def cast(p: Plan, model: Model = MODEL) -> Forecast:
    return forecast(model, cluster(H100), p)


def of_layer(found: Forecast, name: str, phase: str) -> Operation:
    (operation,) = [o for o in found.operations if o.name == f"expert-transformer.{name}" and o.phase == phase]
    return operation


def test_parameters_and_those_that_a_token_uses() -> None:
    attention, norms, router, shared = 4 * D * D, 2 * D, E * D, 3 * D * 2 * F
    assert count_parameters(BLOCK, D) == attention + norms + router + shared + EXPERTS_OF_A_LAYER
    idle = 3 * EXPERTS_OF_A_LAYER * (E - K) // E
    assert MODEL.num_parameters - MODEL.num_active_parameters == idle
    embedding = 32000 * D
    assert model_flop_per_token(MODEL, T, "6n").total == 6 * (MODEL.num_active_parameters - embedding)


def test_a_model_may_hold_layers_of_several_kinds() -> None:
    assert list(MODEL.kind_names.values()) == ["transformer", "expert-transformer"]
    wider = TransformerBlock(ATTENTION, Mlp(4096))
    assert list(Model("m", D, 100, 16, (DENSE, wider)).kind_names.values()) == ["transformer", "transformer2"]
    assert MODEL.num_experts == E


@pytest.mark.parametrize("ep", [1, 2, 8])
@pytest.mark.parametrize("tp", [1, 2])
def test_grouped_products_do_the_flop_of_the_active_parameters(ep: int, tp: int) -> None:
    found = cast(plan("zero3" if tp == 1 else "tp2", ep=ep, sequence_parallel=tp > 1))
    for phase, products in (("forward", 1), ("backward", 2)):
        flop = sum(
            float((o.work.flop * o.count)[0])
            for o in found.operations
            if isinstance(o.work, Gemm) and ".experts." in o.name and o.phase == phase
        )
        assert flop == pytest.approx(3 * products * 2 * T * K * 3 * D * F / tp)
    work = of_layer(found, "experts.gate", "forward").work
    assert isinstance(work, Gemm)
    assert work.m[0] == T * K * ep / E  # rows that reach one expert from all ranks of the group
    assert np.asarray(work.number)[0] == E / ep


def test_few_tokens_keep_few_experts_busy() -> None:
    tiny = Model("m", D, 100, 16, (MixedBlock(ATTENTION, Experts(128, 2, F)),))
    found = forecast(tiny, cluster(H100), plan(seq_len=4))
    (gate,) = [o for o in found.operations if o.name.endswith("experts.gate") and o.phase == "forward"]
    assert isinstance(gate.work, Gemm)
    assert (gate.work.m[0], np.asarray(gate.work.number)[0]) == (1, 8)


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_every_copy_of_a_token_travels_twice_each_way(recompute: str) -> None:
    found = cast(plan("zero3", ep=8, grad_accum=2, recompute=recompute))
    sent = {
        phase: (count, bytes_)
        for (collective, group, phase), count, bytes_ in (
            ((t.collective, t.group, t.phase), t.count, t.tensor_bytes)
            for t in collective_totals(found.operations, found.plans)
        )
        if collective == "all_to_all" and group == "ep"
    }
    dispatch, counts = 2 * T * K * D, 8 * E
    passes = 3 * 2  # layers and micro-batches
    again = recompute == "full"
    assert sent["forward"] == (3 * passes, passes * (2 * dispatch + counts))
    # Recomputation counts as backward; there the counts are asked for again, but their gradient is not.
    assert sent["backward"] == ((2 + 3 * again) * passes, passes * (2 * dispatch + again * (2 * dispatch + counts)))


def test_without_expert_parallelism_nothing_is_dispatched() -> None:
    found = cast(plan("zero3"))
    assert not [o for o in found.operations if isinstance(o.work, Collective) and o.work.purpose == "expert"]
    assert found.step.parts["expert_communication"][0] == 0


def test_tensor_parallel_ranks_send_their_share_of_the_sequence() -> None:
    found = cast(plan("tp2", ep=4, sequence_parallel=True))
    dispatch, gathered = (of_layer(found, name, "forward").work for name in ("dispatch", "exchange.gather"))
    assert isinstance(dispatch, Collective)
    assert isinstance(gathered, Collective)
    assert dispatch.tensor_bytes[0] == 2 * T / 2 * K * D
    assert gathered.tensor_bytes[0] == 2 * T * K * D


@pytest.mark.parametrize(
    ("strategy", "ep", "ways"),
    [
        # Of 16 ranks in nodes of 8 those that hold the same experts are 16 / ep; a shard splits what is on a rank.
        ("zero3", 1, (16, 16, 16)),
        ("zero3", 4, (4, 4, 4)),
        ("zero3", 16, (1, 1, 1)),
        ("zero3-node", 4, (2, 4, 4)),
        ("zero3-node", 8, (1, 2, 2)),
        ("hsdp", 4, (2, 2, 2)),
        ("zero1", 8, (1, 1, 2)),
        ("ddp", 8, (1, 1, 1)),
    ],
)
def test_experts_are_gathered_and_reduced_among_those_that_hold_them(
    strategy: str, ep: int, ways: tuple[int, int, int]
) -> None:
    found = cast(plan(strategy, ep=ep, gradient_bits=16))
    name = "expert-transformer.experts"
    local = EXPERTS_OF_A_LAYER // ep
    parameter, gradient, optimizer = ways
    by_name: dict[str, list[Collective]] = {}
    for operation in found.operations:
        if operation.name.startswith(name) and isinstance(operation.work, Collective) and operation.count[0]:
            by_name.setdefault(operation.name.rpartition(".")[2], []).append(operation.work)
    gathers = {(int(w.group.size[0]), float(w.tensor_bytes[0])) for w in by_name.get("gather", [])}  # type: ignore[index]
    assert gathers == {(size, 2 * local) for size in (optimizer, parameter) if size > 1}
    replicas = 16 // ep // optimizer
    assert ("all_reduce" in by_name) == (replicas > 1)
    for work in by_name.get("all_reduce", []):
        assert int(work.group.size[0]) == replicas  # type: ignore[index]
    assert ("reduce_scatter" in by_name) == (max(gradient, optimizer) > 1)


@pytest.mark.parametrize("ep", [1, 2, 8, 16])
def test_optimizer_memory_follows_the_experts(ep: int) -> None:
    """hsdp shards over a node: 12 bytes for 1/8 of the dense parameters and max(1/8, 1/ep of them, if ep > 8)."""
    found = cast(plan("hsdp", ep=ep))
    experts = 3 * EXPERTS_OF_A_LAYER
    dense = MODEL.num_parameters - experts
    assert found.memory.parts["optimizer"][0] == pytest.approx(12 * (dense / 8 + experts / max(ep, 8)), rel=1e-3)


def test_activations_keep_the_copies_once_and_the_inner_features() -> None:
    """Beside a dense layer's: k copies of the input, gate, up and their product, the router's probabilities."""
    one = Model("m", D, 512, 2048, (MixedBlock(ATTENTION, Experts(E, K, F)),))
    found = cast(plan("zero3"), one)
    saved = sum(
        float((o.saved_bytes * o.count)[0])
        for o in found.operations
        if any(part in o.name for part in (".router", ".route", ".experts.", ".permute", ".dispatch"))
    )
    assert saved == T * (2 * D + 4 * E + K * 2 * (D + 3 * F))


def test_a_mixture_of_one_size_costs_what_the_dense_layer_does_and_the_router() -> None:
    """With all experts active, each a k-th of the MLP, the products' FLOPs are the MLP's."""
    split = Model("m", D, 512, 2048, (MixedBlock(ATTENTION, Experts(4, 4, 704)),))
    dense = Model("m", D, 512, 2048, (TransformerBlock(ATTENTION, Mlp(4 * 704)),))

    def flop(model: Model) -> float:
        found = cast(plan("zero3"), model)
        return sum(float((o.work.flop * o.count)[0]) for o in found.operations if isinstance(o.work, Gemm))

    assert flop(split) - flop(dense) == pytest.approx(3 * 2 * T * 4 * D)
    assert split.num_parameters - dense.num_parameters == 4 * D


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from(("ddp", "zero1", "zero2", "zero3", "zero3-node", "hsdp", "zero3-node+q4", "tp2")),
    st.sampled_from((1, 2, 4, 8, 16)),
    st.sampled_from(("none", "selective", "full")),
    st.sampled_from((1, 2)),
    st.integers(0, 2),
)
def test_the_timeline_agrees_within_3_percent(
    strategy: str, ep: int, recompute: Any, accum: int, prefetch: int
) -> None:
    ep = min(ep, 8) if strategy == "tp2" else ep
    p = plan(
        strategy, ep=ep, recompute=recompute, grad_accum=accum, prefetch=prefetch, micro_batch=4,
        sequence_parallel=strategy == "tp2",
    )  # fmt: skip
    timeline = play(MODEL, cluster(H100), p)
    assert abs(timeline.step_s / timeline.closed_form_s - 1) < 0.03 or timeline.departs_from_closed_form
    waited = {row.collective for row in exposed_collectives(timeline)}
    assert ("all_to_all" in waited) == (ep > 1)


def test_mistakes_say_what_to_change() -> None:
    mixtral, llama, where = load_model("mixtral-8x7b"), load_model("llama-2-7b"), load_cluster("dgx-h100")
    for model, p, words in (
        (llama, plan("zero3", ep=2), "ep=2 but Llama-2-7B has no experts"),
        (mixtral, plan("zero3", 48, ep=3), "ep=3 does not divide the 8 experts of Mixtral-8x7B"),
    ):
        with pytest.raises(InputError) as refused:
            forecast(model, where, p)
        assert words in str(refused.value)
    for fields, words in (
        ({"ep": 3}, "ep=3 does not divide the 16 data-parallel ranks"),
        ({"num_gpus": 96, "ep": 32}, "optimizer_shard=6 and ep=32 do not nest"),
        ({"tp": 2, "ep": 2}, "turn sequence_parallel on or set ep=1"),
        ({"ep": 0}, "ep is 0; it must be a whole number of at least 1"),
    ):
        shards = {"optimizer_shard": 6} if fields["ep"] == 32 else {}
        with pytest.raises(InputError) as refused:
            Plan(**{"strategy": "zero1", "num_gpus": 16, "seq_len": 2048, **shards, **fields})  # type: ignore[arg-type]
        assert words in str(refused.value)
    with pytest.raises(InputError, match="tp=3 does not divide the experts' intermediate=512"):
        Experts(E, K, F).check_tensor_parallel(3)
    with pytest.raises(InputError, match="experts_per_token is 3 of 2 experts"):
        Experts(2, 3, F)
    with pytest.raises(InputError, match="give it or no gate"):
        Experts(2, 1, F, shared_gate=True)
