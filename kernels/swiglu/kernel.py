"""The CUDA kernels of SwiGLU on tensors: same arguments and results as :mod:`flopcast.kernels.swiglu.reference`."""

import numpy as np
from torch import Tensor

from flopcast.kernels import launch
from flopcast.kernels.checks import element_type
from flopcast.kernels.swiglu import variant
from flopcast.kernels.variant import elements_per_access


def forward(gate: Tensor, up: Tensor) -> Tensor:
    """One launch."""
    out = launch.dense_like(gate)
    _launch("swiglu_forward", (gate, up), (out,))
    return out


def backward(gate: Tensor, up: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """One launch for both gradients."""
    gate_gradient, up_gradient = launch.dense_like(gate), launch.dense_like(gate)
    _launch("swiglu_backward", (gate, up, gradient), (gate_gradient, up_gradient))
    return gate_gradient, up_gradient


def _launch(kernel: str, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    number = outputs[0].numel()
    if number:
        element = element_type(outputs[0])
        vector = elements_per_access(element, number)
        chosen = variant.swiglu(kernel, element, vector)
        packs = number // vector
        blocks = -(-packs // (chosen["THREADS"] * chosen["UNROLLED"]))
        arguments = (*[launch.dense(t) for t in inputs], *outputs, np.int64(packs))
        launch.launch(chosen, (blocks, 1), arguments, outputs[0].device)
