"""The two passes of cross-entropy over logits as ops: what the loss is made of, and the gradient in their place."""

import torch
from torch import Tensor

from flopcast.errors import InputError
from flopcast.kernels.checks import check_element_type
from flopcast.kernels.cross_entropy import kernel, reference
from flopcast.kernels.registration import register


def log_z_and_picked(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of ``logits`` [T, V] the log of each row's sum of exponentials, and the logit of its target, fp32 [T] both.

    ``targets`` int64 [T]; one outside 0..V - 1 picks 0. No gradient flows: see :func:`gradient_in_place`. Raises
    InputError.
    """
    _check(logits, {"targets": targets})
    return torch.ops.flopcast.log_z_and_picked(logits, targets)  # type: ignore[no-any-return]


def gradient_in_place(logits: Tensor, targets: Tensor, log_z: Tensor, slope: Tensor, weight: Tensor) -> None:
    """Write slope exp(logit - log_z) - weight [this is the target] over ``logits`` [T, V]; the others are [T].

    With weight = 1/T and slope the same it is the gradient of the mean cross-entropy. Raises InputError.
    """
    _check(logits, {"targets": targets, "log_z": log_z, "slope": slope, "weight": weight})
    torch.ops.flopcast.cross_entropy_gradient(logits, targets, log_z, slope, weight)


def _check(logits: Tensor, rows: dict[str, Tensor]) -> None:
    check_element_type("cross_entropy", "logits", logits)
    if logits.dim() != 2 or not logits.is_contiguous():
        raise InputError(
            f"cross_entropy: logits are {list(logits.shape)} of strides {logits.stride()}; give dense "
            "[tokens, vocabulary]"
        )
    for name, tensor in rows.items():
        dtype = torch.int64 if name == "targets" else torch.float32
        if tensor.shape != logits.shape[:1] or tensor.dtype != dtype or tensor.device != logits.device:
            raise InputError(
                f"cross_entropy: {name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; give {dtype} "
                f"[{len(logits)}] on {logits.device}"
            )
        if not tensor.is_contiguous():
            raise InputError(f"cross_entropy: {name} is not contiguous; call .contiguous() on it first")


def _fake_log_z_and_picked(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    rows = logits.shape[:1]
    return logits.new_empty(rows, dtype=torch.float32), logits.new_empty(rows, dtype=torch.float32)


def _fake_gradient(logits: Tensor, targets: Tensor, log_z: Tensor, slope: Tensor, weight: Tensor) -> None:
    return None


register(
    "log_z_and_picked(Tensor logits, Tensor targets) -> (Tensor, Tensor)",
    reference.log_z_and_picked,
    kernel.log_z_and_picked,
    _fake_log_z_and_picked,
)
register(
    "cross_entropy_gradient(Tensor(a!) logits, Tensor targets, Tensor log_z, Tensor slope, Tensor weight) -> ()",
    reference.gradient_in_place,
    kernel.gradient_in_place,
    _fake_gradient,
)
