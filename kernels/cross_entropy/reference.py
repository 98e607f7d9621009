"""Cross-entropy in PyTorch, in fp32 whatever the logits' type: what torch.compile fuses, and the kernels must match."""

import torch
from torch import Tensor


def log_z_and_picked(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of ``logits`` [T, V] the log of each row's sum of exponentials, and the logit of its target, fp32 [T] both.

    A target outside 0..V - 1 picks 0. Of a row of minus infinities the log is one too, as torch.logsumexp has it.
    """
    scores = logits.float()
    highest = scores.amax(-1)
    base = torch.where(highest == float("-inf"), 0.0, highest)
    log_z = (scores - base[:, None]).exp().sum(-1).log() + base
    inside = (targets >= 0) & (targets < logits.shape[1])
    picked = scores.gather(1, torch.where(inside, targets, 0)[:, None])[:, 0]
    return log_z, torch.where(inside, picked, 0.0)


def gradient_in_place(logits: Tensor, targets: Tensor, log_z: Tensor, slope: Tensor, weight: Tensor) -> None:
    """Write slope exp(logit - log_z) - weight [this is the target] over the logits, rounded once."""
    columns = torch.arange(logits.shape[1], device=logits.device)
    gradient = (logits.float() - log_z[:, None]).exp() * slope[:, None]
    logits.copy_(gradient - torch.where(columns == targets[:, None], weight[:, None], 0.0))
