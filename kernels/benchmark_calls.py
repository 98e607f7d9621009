"""The calls that the kernel benchmark times, and how far from float64 their results are."""

import math
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._functorch import config as functorch_config

from flopcast.kernels.benchmark_cases import Operation, Tensors

Results = deque[Sequence[Tensor]]
_CHECKED_ROWS = 512  # that are compared with float64, of larger inputs
_CHECKED_ELEMENTS = 2**25


def inputs_of(operation: Operation, tokens: int, hidden: int, dtype: torch.dtype, device: torch.device) -> Tensors:
    """One set of random inputs, those that take a gradient as leaves."""
    made = operation.inputs(tokens, hidden, dtype, device)
    differentiable = operation.num_differentiable
    return (*(t.detach().requires_grad_() for t in made[:differentiable]), *made[differentiable:])


def prepare(
    operation: Operation, provider: str, sets: list[Tensors], kept: Results
) -> tuple[Callable[[int], object], Callable[[int], object], tuple[float, float]]:
    """Calls of both passes for the timer, and their errors against float64.

    Every call leaves its result in ``kept``, and every graph has gradients of its own: written or read over and over,
    one of a few dozen MB would stay in the last cache.
    """
    function = operation.functions[provider]()
    original = tuple(t.detach().clone() for t in sets[0])
    if provider in operation.writing_over:
        sets = [_copied(inputs) for inputs in sets]
    sets = [operation.handed(provider, inputs) for inputs in sets]
    leaves = [inputs[: operation.num_differentiable] for inputs in sets]

    def run(inputs: Tensors) -> Tensors:
        # A view of each leaf, so that a provider may write over it.
        return function(*(t.view_as(t) if t.requires_grad else t for t in inputs))

    # Graphs are walked many times, so torch.compile must not give the memory of their tensors away.
    with functorch_config.patch(donated_buffer=False):
        outputs = run(sets[0])
        gradients = [[torch.randn_like(t) for t in outputs] for _ in sets]
        found = torch.autograd.grad(outputs, leaves[0], [g.clone() for g in gradients[0]])
        error = _errors(operation, original, outputs, gradients[0], found)
        graphs = [run(inputs) for inputs in sets]

    def forward(index: int) -> None:
        with torch.no_grad():
            kept.append(function(*sets[index % len(sets)]))

    def backward(index: int) -> None:
        which = index % len(graphs)
        kept.append(torch.autograd.grad(graphs[which], leaves[which], gradients[which], retain_graph=True))

    # The memory of as many results as are kept is asked for now, as it makes the host wait.
    for index in range(len(sets)):
        forward(index)
        backward(index)
    return forward, backward, error


def _copied(inputs: Tensors) -> Tensors:
    dense = (t.detach().clone(memory_format=torch.contiguous_format) for t in inputs)
    return tuple(copy.requires_grad_(t.requires_grad) for copy, t in zip(dense, inputs, strict=True))


def _errors(
    operation: Operation, inputs: Tensors, outputs: Tensors, gradients: Sequence[Tensor], grads: Sequence[Tensor]
) -> tuple[float, float]:
    """The worst relative error of outputs, and of gradients, against the unfused expression in float64."""
    dim, tokens = operation.token_dim, inputs[0].shape[operation.token_dim]
    rows = tokens if inputs[0].numel() <= _CHECKED_ELEMENTS else _CHECKED_ROWS

    def head(tensor: Tensor) -> Tensor:
        return tensor.narrow(dim, 0, rows)

    exact, leaves = operation.exact(tuple(head(t) if i < operation.num_rowwise else t for i, t in enumerate(inputs)))
    wanted = torch.autograd.grad(exact, leaves, [head(g).double() for g in gradients])
    # The gradient of the weight sums over all rows: it is compared only where all were worked out.
    compared = len(wanted) if rows == tokens else operation.num_rowwise
    forward = max(_distance(head(a), b) for a, b in zip(outputs, exact, strict=True))
    backward = max(
        _distance(head(a) if i < operation.num_rowwise else a, b)
        for i, (a, b) in enumerate(zip(grads[:compared], wanted[:compared], strict=True))
    )
    return forward, backward


def _distance(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm."""
    found, exact = found.detach().double(), exact.detach()
    value = float((found - exact).norm() / exact.norm())
    if not math.isfinite(value):
        raise RuntimeError("the result is not a number")
    return value
