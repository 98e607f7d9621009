"""From peak to achieved: the parts add up, the first is the ideal, and the shares are those of the events."""

import numpy as np
import pytest
from builders import plan

from flopcast.simulator.blocks.residual import MixedBlock
from flopcast.simulator.blocks.state_space import StateSpace
from flopcast.simulator.blocks.transformer import Mlp
from flopcast.simulator.catalogue import load_cluster, load_model
from flopcast.simulator.model import Model
from flopcast.simulator.plan import Plan
from flopcast.simulator.timeline import (
    Disturbance,
    events,
    exposed_collectives,
    exposed_communication_s,
    play,
    streams,
    waterfall,
)

MODEL, CLUSTER = load_model("llama-2-7b"), load_cluster("abci-a")
CASES = [
    (plan("zero3-node", 64, grad_accum=2), Disturbance()),
    (plan("tp8", 64, pp=1, tp=8, recompute="full", compiled=True), Disturbance({3: 0.9})),
    (plan("zero1", 64, pp=4, grad_accum=8, schedule="zero-bubble"), Disturbance()),
    (plan("hsdp", 32, attention="unfused", prefetch=0), Disturbance(jitter=0.03, seed=5)),
]


@pytest.mark.parametrize(("p", "disturbance"), CASES)
def test_the_parts_add_up_to_the_step_exactly(p: Plan, disturbance: Disturbance) -> None:
    timeline = play(MODEL, CLUSTER, p, disturbance)
    parts = waterfall(timeline)
    assert sum(part.seconds for part in parts) == pytest.approx(timeline.step_s, rel=1e-14)
    assert parts[0].name == "ideal_at_peak"
    mfu = timeline.forecast.mfu[0] * timeline.closed_form_s / timeline.step_s
    assert parts[0].seconds / timeline.step_s == pytest.approx(mfu, rel=1e-9)
    stragglers = {part.name: part.seconds for part in parts}.get("stragglers", 0.0)
    assert stragglers == pytest.approx(timeline.step_s - timeline.undisturbed_s, abs=1e-12)


def test_products_in_8_bits_gain_half_of_the_products_at_peak() -> None:
    """An H100's 8-bit peak is twice the other; every product of a Llama is in 8 bits."""
    timeline = play(MODEL, load_cluster("dgx-h100"), plan("zero3", 16, precision="fp8"))
    seconds = {part.name: part.seconds for part in waterfall(timeline)}
    tokens = timeline.plan.seq_len * timeline.plan.global_batch_sequences / 16
    products = 6 * (MODEL.num_parameters - MODEL.vocab_size * MODEL.hidden) * tokens / 989e12
    assert seconds["fp8"] == pytest.approx(-products / 2, rel=2e-3)
    assert seconds["gemm_efficiency"] > 0


def test_a_recurrence_is_no_attention() -> None:
    """Twelve layers of a state space: what grows with the sequence runs as products, and no attention is below peak."""
    layer = MixedBlock(StateSpace(num_heads=32, head_dim=64, state_dim=64, rank=128), Mlp(8192))
    model = Model("recurrent", 2048, 32000, 2048, (layer,) * 12)
    timeline = play(model, load_cluster("dgx-h100"), plan("zero1", 8, seq_len=2048))
    seconds = {part.name: part.seconds for part in waterfall(timeline)}
    assert "attention_efficiency" not in seconds
    assert seconds["gemm_efficiency"] > 0


def test_a_part_of_the_ranks_that_spans_nodes_is_called_so() -> None:
    groups = {row.group for row in exposed_collectives(play(MODEL, CLUSTER, plan("hsdp16", 64)))}
    assert groups == {"nodes", "across-nodes", "world"}


def test_each_cause_appears_where_it_should() -> None:
    def names(**fields: object) -> set[str]:
        timeline = play(MODEL, CLUSTER, plan(**{"strategy": "zero3", "num_gpus": 32, **fields}))  # type: ignore[arg-type]
        return {part.name for part in waterfall(timeline)}

    assert "recompute" in names(recompute="full")
    assert not names(prefetch=0) & {"contention", "recompute", "bubble", "tensor_communication"}
    assert {"bubble", "pipeline_communication"} <= names(strategy="ddp", pp=2, grad_accum=2)
    assert {"gather_communication", "reduce_communication", "contention"} <= names()


def test_shares_are_those_of_the_events_by_brute_force() -> None:
    timeline = play(MODEL, CLUSTER, plan("zero3-node", 16))
    frame = events(timeline)
    first, last = frame.start_s.min(), frame.end_s.max()
    ticks = np.linspace(first, last, 200_001)
    covered = {}
    for name, rows in (("compute", frame[frame.stream == "compute"]), ("other", frame[frame.stream != "compute"])):
        change = np.zeros(len(ticks))
        np.add.at(change, np.searchsorted(ticks, rows.start_s), 1)
        np.add.at(change, np.searchsorted(ticks, rows.end_s).clip(max=len(ticks) - 1), -1)
        covered[name] = np.cumsum(change) > 0
    found = streams(timeline)[0]
    both = covered["compute"] & covered["other"]
    assert found.compute == pytest.approx(covered["compute"].mean(), abs=1e-3)
    assert found.communication == pytest.approx((covered["other"] & ~covered["compute"]).mean(), abs=1e-3)
    assert found.overlap == pytest.approx(both.sum() / covered["other"].sum(), abs=1e-3)
    assert found.compute + found.communication + found.idle == pytest.approx(1.0)


def test_exposed_communication_is_the_collectives_and_the_contention() -> None:
    timeline = play(MODEL, CLUSTER, plan("zero3", 64, tp=1))
    rows = exposed_collectives(timeline)
    assert all(0 <= row.exposed_s <= row.busy_s * (1 + 1e-9) for row in rows)
    contention = {part.name: part.seconds for part in waterfall(timeline)}["contention"]
    waited = sum(row.exposed_s for row in rows if row.phase != "step")
    assert exposed_communication_s(timeline) == pytest.approx(waited + contention)
