"""Pipeline schedules by plain dynamic programming, a reference for the closed form and for the event engine."""

from collections.abc import Mapping, Sequence

from flopcast.simulator.timeline.schedule import SCHEDULES, Action


def played(name: str, p: int, m: int, v: int, times: Mapping[str, Sequence[float]], latency: float = 0.0) -> float:
    """Seconds of a schedule whose pass through model chunk k, of p v, takes ``times[direction][k]``.

    A result is there ``latency`` seconds after the pass it comes from.
    """
    done: dict[tuple[int, Action], float] = {}
    left = {stage: list(SCHEDULES[name](stage, p, m, v)) for stage in range(p)}
    clock = dict.fromkeys(left, 0.0)
    while any(left.values()):
        moved = False
        for stage, actions in left.items():
            while actions:
                direction, i, chunk = actions[0]
                number = chunk * p + stage
                before = number + {"forward": -1, "backward": 1, "weight": 0}[direction]
                needs = (before % p, Action(direction, i, before // p))
                if direction == "weight" or (direction == "forward" and number == 0):
                    ready = 0.0
                elif before == p * v:
                    ready = done[stage, Action("forward", i, chunk)]
                elif needs in done:
                    ready = done[needs] + latency
                else:
                    break
                clock[stage] = max(clock[stage], ready) + times[direction][number]
                done[stage, actions.pop(0)] = clock[stage]
                moved = True
        assert moved, "deadlock"
    return max(clock.values())
