"""Multi-head latent attention against sums written out by hand and the published model."""

import pytest
from builders import H100, cluster, plan

from flopcast.errors import InputError
from flopcast.simulator.blocks.latent_attention import LatentAttention
from flopcast.simulator.blocks.residual import MixedBlock
from flopcast.simulator.blocks.transformer import Mlp
from flopcast.simulator.catalogue import load_model
from flopcast.simulator.conventions import model_flop_per_token
from flopcast.simulator.forecast import forecast
from flopcast.simulator.model import Model, count_parameters
from flopcast.simulator.operation import AttentionCore, Collective, Gemm
from flopcast.simulator.timeline import play

D, H, T = 1024, 8, 2048
LATENT = LatentAttention(H, kv_rank=256, nope_dim=64, rope_dim=32, value_dim=64, query_rank=384)
MODEL = Model("latent", D, 32000, 2048, (MixedBlock(LATENT, Mlp(2816)),) * 4)


def test_deepseek_v3s_attention_by_hand() -> None:
    """arXiv:2412.19437, section 4.2: 128 heads, ranks 1536 and 512, heads of 128 and 64, hidden 7168."""
    queries = 7168 * 1536 + 1536 + 1536 * 128 * 192
    keys_and_values = 7168 * 576 + 512 + 512 * 128 * 256
    output = 128 * 128 * 7168
    attention = load_model("deepseek-v3").layers[0]
    mlp, norms = 3 * 7168 * 18432, 2 * 7168
    assert count_parameters(attention, 7168) == queries + keys_and_values + output + mlp + norms


def test_without_a_query_rank_queries_are_one_matrix() -> None:
    full = LatentAttention(H, 256, 64, 32, 64)
    assert [t.shape for t in full.tensors(D) if t.name.startswith("q")] == [(H * 96, D)]


@pytest.mark.parametrize("tp", [1, 2])
def test_products_do_six_flop_per_matrix_parameter(tp: int) -> None:
    """Tensor-parallel ranks all do the projections down, and share the rest."""
    found = forecast(MODEL, cluster(H100), plan("zero3" if tp == 1 else "tp2"))
    whole = 384 * D + (256 + 32) * D
    shared = H * 96 * 384 + H * 128 * 256 + D * H * 64 + 3 * D * 2816
    expected = 4 * 2 * T * (whole + shared / tp) + 2 * T * 32000 * D / tp
    for phase, times in (("forward", 1), ("backward", 2)):
        flop = sum(
            float((o.work.flop * o.count)[0]) for o in found.operations if isinstance(o.work, Gemm) and o.phase == phase
        )
        assert flop == pytest.approx(times * expected)


def test_scores_are_96_wide_and_values_64() -> None:
    found = forecast(MODEL, cluster(H100), plan("zero3", attention="flash2"))
    flop = {o.phase: float((o.work.flop * o.count)[0]) for o in found.operations if isinstance(o.work, AttentionCore)}
    keys = T / 2
    assert flop["forward"] == pytest.approx(4 * 2 * T * keys * H * (96 + 64))
    # Three of the backward's products are over queries' and keys' features, two over the values'.
    assert flop["backward"] == pytest.approx(4 * 2 * T * keys * H * (3 * 96 + 2 * 64))
    causal, plain = (model_flop_per_token(MODEL, T, c).total for c in ("causal", "6n"))
    assert causal - plain == pytest.approx(3 * flop["forward"] / T)


def test_context_parallel_ranks_exchange_the_heads_keys_and_values() -> None:
    found = forecast(MODEL, cluster(H100), plan("zero3", cp=2))
    sent = [o.work for o in found.operations if o.name.endswith(".context") and o.phase == "forward"]
    assert isinstance(sent[0], Collective)
    assert sent[0].tensor_bytes[0] == 2 * T * H * (96 + 64)


def test_the_timeline_agrees() -> None:
    for strategy in ("zero3", "hsdp", "tp4"):
        timeline = play(MODEL, cluster(H100), plan(strategy, grad_accum=2, recompute="full"))
        assert timeline.step_s == pytest.approx(timeline.closed_form_s, rel=0.03)


def test_mistakes() -> None:
    with pytest.raises(InputError, match="kv_rank is 0; it must be positive"):
        LatentAttention(H, 0, 64, 32, 64)
    with pytest.raises(InputError, match="tp=3 does not divide num_heads=8"):
        LATENT.check_tensor_parallel(3)
