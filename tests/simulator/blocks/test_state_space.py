"""Selective state spaces: PLaMo 2's tensors and the scan's work, by hand and against a naive recurrence."""

import numpy as np
import pytest
from builders import H100, cluster, plan

from flopcast.errors import InputError
from flopcast.simulator.blocks.residual import MixedBlock
from flopcast.simulator.blocks.state_space import StateSpace
from flopcast.simulator.blocks.transformer import Mlp, TransformerBlock
from flopcast.simulator.catalogue import load_cluster, load_model
from flopcast.simulator.conventions import model_flop_per_token
from flopcast.simulator.forecast import forecast
from flopcast.simulator.model import Model, count_parameters
from flopcast.simulator.operation import AttentionCore, Collective, Gemm
from flopcast.simulator.timeline import play

D, T = 1024, 2048
STATE_SPACE = StateSpace(num_heads=16, head_dim=64, state_dim=32, rank=64, chunk=128)
MODEL = Model("states", D, 32000, 2048, (MixedBlock(STATE_SPACE, Mlp(2816), num_norms=4),) * 4)


def test_plamo_2_1b_by_hand() -> None:
    """pfnet/plamo-2-1b: 32 heads of 128, states of 64, steps of 128 features, MLP of 8192, hidden 2048, four norms."""
    inner, narrow = 32 * 128, 128 + 2 * 64
    mixer = 2 * inner * 2048 + 4 * inner + narrow * inner + 32 * 128 + 3 * 32 + narrow + 2048 * inner
    mlp, norms = 3 * 2048 * 8192, 4 * 2048
    model = load_model("plamo-2-1b")
    states, window = model.layers[:2]
    assert count_parameters(states, 2048) == mixer + mlp + norms
    attention = (16 + 2) * 128 * 2048 + 16 * 128 * 2048 + (16 + 1) * 128
    assert count_parameters(window, 2048) == attention + mlp + norms
    assert isinstance(window, TransformerBlock)
    assert window.attention.window == 2048
    assert model.num_parameters == 8 * (mixer + attention + 2 * mlp + 2 * norms) + 100000 * 2048 + 2048
    assert [block.kind for block in model.layers] == ["state-space-transformer", "window-transformer"] * 8


def test_the_scan_in_chunks_is_the_recurrence_and_does_the_stated_flop() -> None:
    """One head: h = a h + B x, y = C h token by token, against the products whose FLOPs are forecast."""
    rng = np.random.default_rng(0)
    length, size, features, states = 32, 8, 4, 3
    x, b, c = (rng.normal(size=(length, n)) for n in (features, states, states))
    decay = rng.uniform(0.5, 1.0, length)
    state, expected = np.zeros((states, features)), []
    for t in range(length):
        state = decay[t] * state + np.outer(b[t], x[t])
        expected.append(c[t] @ state)
    carried, found, flop = np.zeros((states, features)), [], 0
    for start in range(0, length, size):
        chunk = slice(start, start + size)
        passed = np.cumprod(decay[chunk])
        mask = np.tril(passed[:, None] / passed[None, :])
        found.append((c[chunk] @ b[chunk].T * mask) @ x[chunk] + passed[:, None] * (c[chunk] @ carried))
        left = (b[chunk] * (passed[-1] / passed)[:, None]).T @ x[chunk]
        carried = passed[-1] * carried + left
        flop += 2 * size * size * states + 2 * size * size * features + 2 * 2 * size * states * features
    assert np.allclose(np.concatenate(found), expected)
    one = Model("m", 16, 64, length, (MixedBlock(StateSpace(1, features, states, 2, chunk=size), Mlp(16)),))
    scan = [
        o.work
        for o in forecast(one, cluster(H100), plan(seq_len=length)).operations
        if isinstance(o.work, Gemm) and ".scan." in o.name and o.phase == "forward"
    ]
    assert sum(float(work.flop[0]) for work in scan) == flop


def test_the_backward_of_the_scan_does_two_products_for_one_and_two_again() -> None:
    found = forecast(MODEL, cluster(H100), plan("zero3"))
    chunks, size, heads, features, states = T / 128, 128, 16, 64, 32
    inputs, within = 2 * chunks * size * size * states, 2 * chunks * heads * size * size * features
    ends = 2 * chunks * heads * size * states * features
    flop = {
        phase: sum(
            float((o.work.flop * o.count)[0])
            for o in found.operations
            if isinstance(o.work, Gemm) and ".scan." in o.name and o.phase == phase
        )
        for phase in ("forward", "backward")
    }
    assert flop["forward"] == pytest.approx(4 * (inputs + within + 2 * ends))
    assert flop["backward"] == pytest.approx(4 * (3 * inputs + 2 * within + 5 * ends))
    assert not [o for o in found.operations if isinstance(o.work, AttentionCore)]


def test_the_recurrence_counts_whatever_the_length() -> None:
    short, long = (model_flop_per_token(MODEL, length).total for length in (2048, 32768))
    assert short == long
    assert short - model_flop_per_token(MODEL, 2048, "6n").total == 3 * 4 * 4 * 16 * 64 * 32


def test_tensor_parallel_ranks_sum_step_b_and_c_and_context_parallel_ranks_hand_states_on() -> None:
    found = forecast(MODEL, cluster(H100), plan("tp2"))
    (summed,) = [o.work for o in found.operations if o.name.endswith("bcdt_sum") and o.phase == "forward"]
    assert isinstance(summed, Collective)
    assert summed.tensor_bytes[0] == 2 * T * (64 + 2 * 32)
    found = forecast(MODEL, cluster(H100), plan("zero3", cp=2, micro_batch=3))
    (states,) = [o.work for o in found.operations if o.name.endswith(".states") and o.phase == "forward"
                 and isinstance(o.work, Collective)]  # fmt: skip
    assert isinstance(states, Collective)
    assert states.tensor_bytes[0] == 2 * 3 * 16 * 64 * 32 * 4


def test_the_timeline_agrees_on_plamo_2() -> None:
    for strategy in ("ddp", "zero3", "tp4"):
        model = load_model("plamo-2-8b")
        timeline = play(model, load_cluster("dgx-h100"), plan(strategy, 64, grad_accum=2, recompute="full"))
        assert timeline.step_s == pytest.approx(timeline.closed_form_s, rel=0.03)


def test_mistakes() -> None:
    with pytest.raises(InputError, match="rank is 0; it must be positive"):
        StateSpace(8, 64, 32, 0)
    with pytest.raises(InputError, match="tp=3 does not divide the state space's num_heads=16"):
        STATE_SPACE.check_tensor_parallel(3)
