"""Pipeline schedules: every pass once and in a legal order, and the bubble that the literature states."""

import pytest
from pipelines import played

from flopcast.simulator.timeline.schedule import SCHEDULES, Action, one_ahead


@pytest.mark.parametrize(("name", "chunks"), [("gpipe", 1), ("1f1b", 1), ("zero-bubble", 1), ("interleaved", 3)])
@pytest.mark.parametrize(("p", "m"), [(2, 2), (4, 4), (4, 12), (8, 16)])
def test_every_pass_once_and_forward_before_backward_before_weight(name: str, chunks: int, p: int, m: int) -> None:
    for stage in range(p):
        actions = SCHEDULES[name](stage, p, m, chunks)
        directions = ("forward", "backward", "weight") if name == "zero-bubble" else ("forward", "backward")
        wanted = {Action(d, i, c) for d in directions for i in range(m) for c in range(chunks)}  # type: ignore[arg-type]
        assert len(actions) == len(wanted)
        assert set(actions) == wanted
        place = {action: k for k, action in enumerate(actions)}
        for _, i, c in actions:
            order = [place[Action(d, i, c)] for d in directions]  # type: ignore[arg-type]
            assert order == sorted(order)


@pytest.mark.parametrize(("p", "m", "chunks"), [(1, 1, 1), (1, 5, 1), (2, 2, 3), (4, 4, 2), (4, 12, 2), (8, 32, 3)])
def test_one_ahead_every_pair_is_of_two_micro_batches(p: int, m: int, chunks: int) -> None:
    for stage in range(p):
        before = SCHEDULES["interleaved" if p > 1 else "1f1b"](stage, p, m, chunks)
        order = one_ahead(before)
        actions = [action for action, _ in order]
        assert sorted(actions) == sorted(before)
        place = {action: k for k, action in enumerate(actions)}
        assert all(place[a] < place[a._replace(direction="backward")] for a in actions if a.direction == "forward")
        pairs = [action for action, paired in order if paired]
        for forward, backward in zip(pairs[::2], pairs[1::2], strict=True):
            assert (forward.direction, backward.direction) == ("forward", "backward")
            assert forward[1:] != backward[1:]
        # Megatron Core's warm-up for it, 2 (p - s - 1) + (v - 1) p + 1 passes, runs alone, and as many at the end.
        warmup = min(2 * (p - stage - 1) + (chunks - 1) * p + 1, m * chunks)
        assert len(order) - len(pairs) == 2 * warmup


@pytest.mark.parametrize("p", [2, 4, 8])
def test_1f1b_holds_no_more_micro_batches_than_stages_behind_it(p: int) -> None:
    for stage in range(p):
        held = most = 0
        for action in SCHEDULES["1f1b"](stage, p, 4 * p, 1):
            held += 1 if action.direction == "forward" else -1
            most = max(most, held)
        assert most == p - stage


def even(name: str, p: int, m: int, v: int, times: dict[str, float]) -> float:
    """The length of a schedule of even stages; a pass of one of v chunks takes 1/v of the time."""
    return played(name, p, m, v, {way: [spent / v] * (p * v) for way, spent in times.items()})


@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 8), (8, 16)])
def test_bubbles_are_those_of_the_papers(p: int, m: int) -> None:
    whole = {"forward": 1.0, "backward": 2.0}
    assert even("gpipe", p, m, 1, whole) == pytest.approx(3.0 * (m + p - 1))
    assert even("1f1b", p, m, 1, whole) == pytest.approx(3.0 * (m + p - 1))
    assert even("interleaved", p, m, 2, whole) == pytest.approx(3.0 * (m + (p - 1) / 2))
    split = {"forward": 1.0, "backward": 1.0, "weight": 1.0}
    assert even("zero-bubble", p, m, 1, split) == pytest.approx(3.0 * m + (p - 1) * (1 + 1 - 1), abs=1.0)
