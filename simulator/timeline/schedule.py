"""Pipeline schedules: the order in which a stage runs the passes of its micro-batches."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

Direction = Literal["forward", "backward", "weight"]


class Action(NamedTuple):
    """One pass over one micro-batch through one model chunk (``chunk`` counts within the stage, from 0).

    "weight" is the part of a backward pass that no other stage waits for: the gradients of the weights.
    """

    direction: Direction
    micro_batch: int
    chunk: int = 0


Schedule = Callable[[int, int, int, int], list[Action]]


def gpipe(stage: int, num_stages: int, num_micro_batches: int, num_chunks: int) -> list[Action]:
    """All forwards, then all backwards (arXiv:1811.06965)."""
    every = range(num_micro_batches)
    return [Action("forward", i) for i in every] + [Action("backward", i) for i in every]


def one_forward_one_backward(stage: int, num_stages: int, num_micro_batches: int, num_chunks: int) -> list[Action]:
    """Warm-up of p - s - 1 forwards, then a forward and a backward in turn (arXiv:2104.04473, 2.2)."""
    warmup = min(num_stages - stage - 1, num_micro_batches)
    actions = [Action("forward", i) for i in range(warmup)]
    for i in range(num_micro_batches - warmup):
        actions += [Action("forward", warmup + i), Action("backward", i)]
    return actions + [Action("backward", i) for i in range(num_micro_batches - warmup, num_micro_batches)]


def interleaved(stage: int, num_stages: int, num_micro_batches: int, num_chunks: int) -> list[Action]:
    """1F1B over v chunks per stage, p micro-batches of a chunk at a time (arXiv:2104.04473, 2.2, and Megatron-LM).

    Warm-up of 2 (p - s - 1) + (v - 1) p passes.
    """
    total, block = num_micro_batches * num_chunks, num_stages * num_chunks

    def action(direction: Direction, k: int) -> Action:
        chunk = k % block // num_stages
        if direction == "backward":
            chunk = num_chunks - 1 - chunk
        return Action(direction, k // block * num_stages + k % num_stages, chunk)

    warmup = min(2 * (num_stages - stage - 1) + (num_chunks - 1) * num_stages, total)
    actions = [action("forward", k) for k in range(warmup)]
    for k in range(total - warmup):
        actions += [action("forward", warmup + k), action("backward", k)]
    return actions + [action("backward", k) for k in range(total - warmup, total)]


def zero_bubble(stage: int, num_stages: int, num_micro_batches: int, num_chunks: int) -> list[Action]:
    """ZB-H1: 1F1B with the weight gradients of stage s put off by s micro-batches (arXiv:2401.10241, 2.1)."""
    actions: list[Action] = []
    backwards = weights = 0
    for action in one_forward_one_backward(stage, num_stages, num_micro_batches, num_chunks):
        actions.append(action)
        if action.direction == "backward":
            backwards += 1
            if backwards > stage:
                actions.append(Action("weight", weights))
                weights += 1
    return actions + [Action("weight", i) for i in range(weights, num_micro_batches)]


SCHEDULES: dict[str, Schedule] = {
    "gpipe": gpipe,
    "1f1b": one_forward_one_backward,
    "interleaved": interleaved,
    "zero-bubble": zero_bubble,
}


def one_ahead(actions: Sequence[Action]) -> list[tuple[Action, bool]]:
    """1F1B with one more forward in the warm-up, so that no forward needs the backward that it runs together with.

    Beside each pass whether it is one of such a pair (Megatron Core, combined_1f1b.py).
    """
    forwards = [action for action in actions if action.direction == "forward"]
    backwards = [action for action in actions if action.direction == "backward"]
    num_first = next(place for place, action in enumerate(actions) if action.direction == "backward")
    paired = [action for pair in zip(forwards[num_first:], backwards, strict=False) for action in pair]
    rest = backwards[len(paired) // 2 :]
    return [*((a, False) for a in forwards[:num_first]), *((a, True) for a in paired), *((a, False) for a in rest)]
