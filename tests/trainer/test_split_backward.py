"""What PyTorch's pipelines keep between the two halves of a backward pass, as the simulator's engines have it."""

import gc

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight
from torch.utils.checkpoint import checkpoint

TOKENS, HIDDEN, INNER = 64, 32, 128


class Layer(nn.Module):
    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(HIDDEN, INNER, bias=False), nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Layer.calls += 1
        return self.down(torch.nn.functional.gelu(self.up(x)))


class Kept:
    """A saved activation or matrix; ``alive`` counts the numbers of the former that autograd still holds."""

    alive = 0

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.size = tensor, tensor.numel() if tensor.shape[0] == TOKENS else 0
        Kept.alive += self.size

    def __del__(self) -> None:
        Kept.alive -= self.size


def test_the_first_half_frees_nothing_and_adds_gradients_of_results() -> None:
    net = nn.Sequential(*[Layer() for _ in range(3)])
    x = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    Kept.alive = 0
    with saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        y = net(x)
        saved = Kept.alive
        _, groups = stage_backward_input([y], [torch.randn_like(y)], [x], net.parameters())
    del y
    gc.collect()
    assert saved == 3 * TOKENS * (HIDDEN + 2 * INNER)
    assert Kept.alive == saved
    gradients = sum(g.numel() for group in groups for grads in group["grads"] for g in grads if g is not None)
    assert gradients == 3 * TOKENS * (INNER + HIDDEN)
    stage_backward_weight(net.parameters(), groups)
    del groups
    gc.collect()
    assert Kept.alive == 0


def test_the_second_half_recomputes_a_layer_for_each_of_its_weights() -> None:
    net = nn.Sequential(*[Layer() for _ in range(3)])
    x = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    Layer.calls = 0
    y = x
    for layer in net:
        y = checkpoint(layer, y, use_reentrant=False)
    _, groups = stage_backward_input([y], [torch.randn_like(y)], [x], net.parameters())
    assert Layer.calls == 2 * 3
    stage_backward_weight(net.parameters(), groups)
    assert Layer.calls == 2 * 3 + 2 * 3
