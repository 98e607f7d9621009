"""The longest chain of a pipeline in closed form, against the same schedules by dynamic programming."""

from dataclasses import replace

import numpy as np
import pytest
from builders import plan
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import played

from flopcast.simulator.overlap import Passing, Waits
from flopcast.simulator.pipeline import SCHEDULES, Layers, Pipeline, Sent, Stage
from flopcast.simulator.placement import layers_of_chunks
from flopcast.simulator.plan import Plans
from flopcast.simulator.stages import DIRECTIONS, SECTIONS, Pass, Stages

NOTHING = np.zeros(1)
NO_WAITS = Waits(*(NOTHING,) * 5, apart=False)
NO_PASSING = Passing(*(NOTHING,) * 4)
UNSENT = Sent(*(NOTHING,) * 3)
NO_SENDS = {"forward": UNSENT, "backward": UNSENT}
# A stage's seconds: forward, backward (zero bubble: without the weights' gradients), gradients of the weights.
Times = tuple[float, float, float]


def stage(times: Times, waits: Waits, share: float = 1.0) -> Stage:
    return Stage(*(np.array([spent * share]) for spent in times), waits)


def closed_form(
    name: str, p: int, m: int, first: Times, middle: Times, last: Times, num_full: int, short: float = 1.0,
    v: int = 1, head: float = 0.0, latency: float = 0.0,
) -> float:  # fmt: skip
    """Seconds by the closed form of p stages, ``num_full`` of the p-2 in the middle full."""
    plans = Plans.of([plan("ddp", 16 * p, pp=p, grad_accum=m, schedule=name, virtual_pp=v)])
    chunk = np.array([1 / v])
    layers = Layers(np.array([num_full]), np.array([p - 2 - num_full]), chunk, chunk, NOTHING, NOTHING, NOTHING)
    waits = replace(NO_WAITS, apart=name == "zero-bubble")
    stages = (stage(first, waits), stage(middle, waits), stage(middle, waits, short), stage(last, waits))
    pipeline = Pipeline(*stages, layers, np.array([head]), np.array([latency]), NO_PASSING, NO_SENDS)
    return float(SCHEDULES[name](pipeline, plans)[0])


@pytest.mark.parametrize("p", [2, 4, 8])
@pytest.mark.parametrize("m", [8, 16, 64])
def test_even_stages_have_the_bubbles_of_the_papers(p: int, m: int) -> None:
    f, b, w = 1.0, 1.2, 0.9
    whole, split = (f, b + w, 0.0), (f, b, w)
    one_by_one = (m + p - 1) * (f + b + w)
    assert closed_form("1f1b", p, m, whole, whole, whole, p - 2) == pytest.approx(one_by_one)
    assert closed_form("gpipe", p, m, whole, whole, whole, p - 2) == pytest.approx(one_by_one)
    zero_bubble = closed_form("zero-bubble", p, m, split, split, split, p - 2)
    assert zero_bubble == pytest.approx(m * (f + b + w) + (p - 1) * (f + b - w))
    interleaved = closed_form("interleaved", p, m, whole, whole, whole, p - 2, v=2)
    assert interleaved == pytest.approx(m * (f + b + w) + (p - 1) * (f + b + w) / 2)


@st.composite
def uneven(draw: st.DrawFn) -> dict[str, object]:
    """A pipeline with a head, an embedding and layers that may not divide by its stages, of at least one each.

    Or the stages between the first and the last have one more, embedding and head being dealt out as one each.
    """
    p, layers = draw(st.sampled_from((2, 3, 4, 8))), draw(st.integers(2, 6))
    full = draw(st.integers(1, p))
    share = lambda low, high: draw(st.floats(low, high))  # noqa: E731
    layer = (share(0.6, 1.2), share(0.6, 1.6), share(0.5, 1.0))
    head, embedding = share(0.0, 3.0), share(0.0, 0.3)
    if p > 2 and draw(st.booleans()):
        full, on_stage = p - 1, [layers - (index in (0, p - 1)) for index in range(p)]
    else:
        on_stage = [layers - (index >= full) for index in range(p)]
    stages = [tuple(n * spent for spent in layer) for n in on_stage]
    stages[0] = (stages[0][0] + embedding, stages[0][1] + embedding, stages[0][2])
    stages[-1] = tuple(spent + head for spent in stages[-1])
    middle = tuple(layers * spent for spent in layer)
    num_full = min(max(full - 1, 0), p - 2)
    return {"p": p, "stages": stages, "middle": middle, "num_full": num_full, "short": (layers - 1) / layers}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(uneven(), st.sampled_from(("1f1b", "gpipe", "zero-bubble")), st.integers(1, 20))
def test_uneven_stages_take_what_their_passes_do(line: dict[str, object], name: str, m: int) -> None:
    p, stages = line["p"], line["stages"]
    if name != "zero-bubble":
        stages = [(f, b + w, 0.0) for f, b, w in stages]
        line["middle"] = (line["middle"][0], line["middle"][1] + line["middle"][2], 0.0)
    times = {way: [s[k] for s in stages] for k, way in enumerate(("forward", "backward", "weight"))}
    found = closed_form(name, p, m, stages[0], line["middle"], stages[-1], line["num_full"], line["short"])
    assert found == pytest.approx(played(name, p, m, 1, times), rel=0.05 if name == "zero-bubble" else 0.02)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.sampled_from((2, 4, 8)), st.sampled_from((2, 3, 4)), st.integers(1, 6), st.floats(0, 0.5), st.floats(0, 2))
def test_interleaved_chunks_with_a_head_and_slow_sends(
    p: int, v: int, rounds: int, latency: float, head: float
) -> None:
    f, b = 1.0, 2.0
    times = {"forward": [f] * (p * v), "backward": [b] * (p * v)}
    times["forward"][-1] += head / 3
    times["backward"][-1] += 2 * head / 3
    middle = (v * f, v * b, 0.0)
    last = (v * f + head / 3, v * b + 2 * head / 3, 0.0)
    found = closed_form("interleaved", p, rounds * p, middle, middle, last, p - 2, v=v, head=head, latency=latency)
    assert found == pytest.approx(played("interleaved", p, rounds * p, v, times, latency), rel=0.05)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.sampled_from((2, 3, 4, 6, 8, 12)), st.sampled_from((2, 3, 4)), st.integers(1, 47), st.integers(1, 2),
    st.sampled_from((1, 2, 4)), st.sampled_from((0.0, 0.3, 1.0)),
)  # fmt: skip
def test_interleaved_chunks_of_unequal_length(p: int, v: int, more: int, least: int, rounds: int, head: float) -> None:
    """Layers that do not divide by the chunks, of which the first ones have one more: 99 % are within 6 %."""
    assert_as_played(p * v * least + more % (p * v), p, v, rounds, head, 0.12)


@pytest.mark.parametrize(("p", "v", "num_layers"), [(16, 8, 126), (16, 4, 126), (8, 16, 126), (4, 2, 6), (3, 2, 10)])
@pytest.mark.parametrize("rounds", [1, 2, 4])
@pytest.mark.parametrize("head", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("latency", [0.0, 0.1, 0.6])
def test_embedding_and_head_are_dealt_out_as_a_layer_each(
    p: int, v: int, num_layers: int, rounds: int, head: float, latency: float
) -> None:
    """Where each chunk has a layer at most, they stand alone in the first and the last."""
    assert_as_played(num_layers, p, v, rounds, head, 0.08 if p == 3 else 1e-9, latency)


@pytest.mark.parametrize(("p", "v", "num_layers"), [(4, 2, 15), (8, 3, 46), (6, 4, 70)])
@pytest.mark.parametrize("latency", [0.1, 0.6])
def test_where_the_last_stages_have_a_layer_less_those_between_go_all_rounds(
    p: int, v: int, num_layers: int, latency: float
) -> None:
    """Micro-batches go round all stages v - 1 times before and after the steady state, as on the last stage."""
    assert_as_played(num_layers, p, v, 2, 0.3, 0.02, latency)


def assert_as_played(
    num_layers: int, p: int, v: int, rounds: int, head: float, within: float, latency: float = 0.0
) -> None:
    plans = Plans.of([plan("ddp", 16 * p, pp=p, grad_accum=rounds * p, schedule="interleaved", virtual_pp=v)])
    passes = {(section, way): Pass(NOTHING) for section in SECTIONS for way in DIRECTIONS}
    for section, seconds in (("layer", float(-(-num_layers // p))), ("head", head)):
        passes[section, "forward"].sums["gemm"].add(np.array([seconds]))
        passes[section, "inputs"].sums["gemm"].add(np.array([2 * seconds]))
    stages = Stages(passes, plans, np.array([num_layers]))
    kinds = stages.kinds(UNSENT, UNSENT, v, False, dict.fromkeys(("first", "middle", "last"), NO_WAITS))
    pipeline = Pipeline(*kinds, stages.layers(v), np.array([3 * head]), np.array([latency]), NO_PASSING, NO_SENDS)
    found = float(SCHEDULES["interleaved"](pipeline, plans)[0])
    chunks = [float(len(layers)) for layers in layers_of_chunks(num_layers, p, v, counts_ends=True)]
    chunks[-1] += head
    times = {"forward": chunks, "backward": [2 * spent for spent in chunks]}
    assert found == pytest.approx(played("interleaved", p, rounds * p, v, times, latency), rel=within)
