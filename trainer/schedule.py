"""The learning rate: a linear warm-up, then half a cosine down to a share of the peak."""

import math


def learning_rate(step: int, *, peak: float, warmup_steps: int, num_steps: int, final_share: float) -> float:
    """The rate of optimizer step ``step`` (from 0).

    peak (step + 1) / W during W warm-up steps, then peak (f + (1 - f) (1 + cos(pi t)) / 2) with t from 0 to 1 at the
    last step, and peak f after it. Source: Loshchilov and Hutter, "SGDR", 2017, equation 5, without restarts.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    decay_steps = max(num_steps - 1 - warmup_steps, 1)
    progress = min((step - warmup_steps) / decay_steps, 1.0)
    return peak * (final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress)))
