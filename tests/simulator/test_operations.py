"""The operations against closed forms written out by hand."""

import numpy as np
import pytest
from builders import H100, cluster, plan, small_model

from flopcast.simulator.catalogue import load_model
from flopcast.simulator.conventions import model_flop_per_token
from flopcast.simulator.forecast import forecast
from flopcast.simulator.operation import AttentionCore, Collective, Gemm, Operation
from flopcast.simulator.plan import Plan

MODEL = small_model()


def operations(p: Plan, model=MODEL) -> list[Operation]:  # type: ignore[no-untyped-def]
    return forecast(model, cluster(), p).operations


def flop(ops: list[Operation], kind: type, *phases: str, accum: int = 1) -> float:
    return sum(
        float(op.times(np.array([accum]))[0] * op.work.flop[0])  # type: ignore[union-attr]
        for op in ops
        if isinstance(op.work, kind) and op.phase in phases
    )


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_matrix_flop_is_six_per_parameter_and_token(tp: int) -> None:
    p = plan("zero3" if tp == 1 else f"tp{tp}", micro_batch=2, grad_accum=3)
    ops = operations(p)
    norms = (2 * MODEL.num_layers + 1) * MODEL.hidden
    matrices = MODEL.num_parameters - norms - MODEL.vocab_size * MODEL.hidden  # the embedding is looked up
    tokens = 2 * 2048
    assert flop(ops, Gemm, "forward", accum=3) == pytest.approx(3 * 2 * matrices * tokens / tp)
    assert flop(ops, Gemm, "backward", accum=3) == pytest.approx(3 * 4 * matrices * tokens / tp)
    assert flop(ops, Gemm, "recompute") == 0


def test_causal_attention_flop_by_hand() -> None:
    ops = operations(plan(micro_batch=2))
    # 2 products x 2 FLOPs x B Hq S (S/2) Dh per layer forward; a flash backward does five products for two.
    forward = 4 * 2 * 8 * 2048 * 1024 * 128 * MODEL.num_layers
    assert flop(ops, AttentionCore, "forward") == pytest.approx(forward)
    assert flop(ops, AttentionCore, "backward") == pytest.approx(2.5 * forward)


def test_unfused_attention_computes_every_score_and_recompute_repeats_the_layers() -> None:
    fused, unfused = operations(plan()), operations(plan(attention="unfused", recompute="full"))
    assert flop(unfused, AttentionCore, "forward") == 2 * flop(fused, AttentionCore, "forward")
    again, head = flop(unfused, Gemm, "recompute"), 2 * MODEL.vocab_size * MODEL.hidden * 2048
    assert again == pytest.approx(flop(unfused, Gemm, "forward") - head)


def test_hardware_flop_agree_with_the_convention() -> None:
    """Flash backward redoes one product, so hardware attention FLOPs are 3.5/3 of the causal convention's."""
    ops = operations(plan())
    tokens = 2048
    causal, matrices = (model_flop_per_token(MODEL, 2048, c).total * tokens for c in ("causal", "6n"))
    norms = 6 * (2 * MODEL.num_layers + 1) * MODEL.hidden * tokens
    assert flop(ops, Gemm, "forward", "backward") == pytest.approx(matrices - norms)
    assert flop(ops, AttentionCore, "forward", "backward") == pytest.approx((causal - matrices) * 3.5 / 3)


@pytest.mark.parametrize(("parallel", "sums"), [(True, 1), (False, 2)])
def test_tensor_parallel_sums_per_layer(parallel: bool, sums: int) -> None:
    model = small_model(parallel=parallel)
    ops = operations(plan("tp4", micro_batch=2), model)
    layer = [o for o in ops if isinstance(o.work, Collective) and o.work.purpose == "tensor" and o.section == "layer"]
    for phase in ("forward", "backward"):
        calls = [o for o in layer if o.phase == phase]
        assert sum(o.count[0] for o in calls) == sums * model.num_layers
        assert {float(o.work.tensor_bytes[0]) for o in calls} == {2 * 2 * 2048 * 1024.0}  # type: ignore[union-attr]


def test_sequence_parallelism_replaces_each_all_reduce_by_its_halves() -> None:
    ops = operations(plan("tp4", sequence_parallel=True))
    counts: dict[str, float] = {}
    for o in ops:
        if isinstance(o.work, Collective) and o.work.purpose == "tensor" and o.section == "layer":
            counts[o.work.collective] = counts.get(o.work.collective, 0) + o.count[0]
    # A sequential block: two gathers and two scatters forward, and the same with roles exchanged backward.
    assert counts == {"all_gather": 4 * MODEL.num_layers, "reduce_scatter": 4 * MODEL.num_layers}


def test_what_8_bit_products_take_is_gathered_in_8_bits_and_their_results_summed_in_16() -> None:
    fields = {"strategy": "tp8", "num_gpus": 8, "tp": 8, "seq_len": 2048, "precision": "fp8", "sequence_parallel": True}
    found = {
        (op.section, op.work.collective): float(op.work.tensor_bytes[0])
        for op in forecast(MODEL, cluster(H100), Plan(**fields)).operations
        if isinstance(op.work, Collective) and op.work.purpose == "tensor" and "sum" not in op.name and op.count[0] > 0
    }
    elements = 2048 * MODEL.hidden
    assert found["layer", "all_gather"] == elements
    assert found["layer", "reduce_scatter"] == 2 * elements
    # The embedding's rows and the head's logits are 16-bit work.
    assert found["embedding", "all_gather"] == found["head", "all_gather"] == 2 * elements


def test_grouped_and_tiled_heads_that_a_rank_holds() -> None:
    from flopcast.simulator.blocks.transformer import Attention

    grouped, tiled = Attention(40, 5, 128), Attention(40, 5, 128, kv_layout="tiled")
    # Rank 0 of 8 has query heads 0-4: one key/value head when grouped, all five when tiled; rank 1 straddles two.
    assert grouped.kv_heads_per_rank(8) == 2
    assert tiled.kv_heads_per_rank(8) == 5
    assert grouped.kv_heads_per_rank(1) == tiled.kv_heads_per_rank(1) == 5
    assert Attention(64, 8, 128).kv_heads_per_rank(8) == 1


@pytest.mark.parametrize("name", ["gpt2", "opt-13b", "bloom-176b", "mpt-7b-alibi", "llama-7b"])
def test_only_rotary_positions_turn_queries_and_keys(name: str) -> None:
    model = load_model(name)
    names = {operation.name for operation in forecast(model, cluster(), plan("ddp", 8)).operations}
    assert ("transformer.rope" in names) == (model.positions == "rotary")
