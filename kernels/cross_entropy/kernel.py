"""The CUDA kernels of cross-entropy: the results of :mod:`flopcast.kernels.cross_entropy.reference`."""

import torch
from torch import Tensor

from flopcast.kernels import launch
from flopcast.kernels.checks import element_type
from flopcast.kernels.cross_entropy import variant
from flopcast.kernels.variant import ACCESS_BYTES, elements_per_access


def log_z_and_picked(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """One launch that reads every logit once."""
    rows = logits.shape[0]
    log_z, picked = logits.new_empty(rows, dtype=torch.float32), logits.new_empty(rows, dtype=torch.float32)
    _launch("cross_entropy_statistics", logits, (targets, log_z, picked))
    return log_z, picked


def gradient_in_place(logits: Tensor, targets: Tensor, log_z: Tensor, slope: Tensor, weight: Tensor) -> None:
    """One launch that reads every logit once and writes its gradient there."""
    _launch("cross_entropy_gradient", logits, (targets, log_z, slope, weight))


def _launch(kernel: str, logits: Tensor, others: tuple[Tensor, ...]) -> None:
    rows, vocabulary = logits.shape
    if rows:
        # In place, so that logits that begin anywhere are taken as they are.
        offset = logits.data_ptr() // logits.element_size() % ACCESS_BYTES
        element = element_type(logits)
        chosen = variant.cross_entropy(kernel, element, vocabulary, elements_per_access(element, vocabulary, offset))
        launch.launch(chosen, (rows, 1), (logits, *others), logits.device)
