import math

import pytest

from flopcast.trainer.schedule import learning_rate


def rates(warmup_steps: int, num_steps: int) -> list[float]:
    return [
        learning_rate(step, peak=2.0, warmup_steps=warmup_steps, num_steps=num_steps, final_share=0.1)
        for step in range(num_steps + 2)
    ]


def test_warm_up_is_linear_and_the_cosine_ends_at_its_share() -> None:
    found = rates(4, 13)
    assert found[:4] == [0.5, 1.0, 1.5, 2.0]
    assert found[4] == 2.0
    assert found[8] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))  # half-way between steps 4 and 12
    assert found[6] == pytest.approx(2.0 * (0.1 + 0.45 * (1 + math.cos(math.pi / 4))))
    assert found[12] == found[13] == found[14] == pytest.approx(0.2)


@pytest.mark.parametrize(("warmup_steps", "num_steps"), [(0, 1), (0, 2), (3, 3), (5, 3)])
def test_short_runs_stay_within_bounds(warmup_steps: int, num_steps: int) -> None:
    assert all(0 < rate <= 2.0 for rate in rates(warmup_steps, num_steps))
