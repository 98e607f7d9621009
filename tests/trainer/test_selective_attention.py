"""What selective recompute keeps of attention over packed documents, by the operator that runs it on a GPU."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.plan import Recompute
from flopcast.trainer import attention as attention_module
from flopcast.trainer import block as block_module
from flopcast.trainer.attention import Documents
from flopcast.trainer.block import Block
from flopcast.trainer.numerics import Numerics
from flopcast.trainer.tensor_parallel import TensorParallel


@pytest.fixture
def flash_calls() -> Iterator[Counter[str]]:
    """A stand-in, for tensors on the CPU, of the flash kernels that only GPUs have: it counts its calls."""
    calls: Counter[str] = Counter()

    def forward(q: torch.Tensor, *arguments: Any, **options: Any) -> tuple[torch.Tensor, ...]:
        calls["forward"] += 1
        seed = torch.zeros(2, dtype=torch.uint64)
        return q.clone(), torch.zeros(q.shape[1], q.shape[0]), seed, torch.zeros(0, dtype=torch.uint64), torch.zeros(0)

    def backward(gradient: torch.Tensor, *tensors: Any, **options: Any) -> tuple[torch.Tensor, ...]:
        calls["backward"] += 1
        return tuple(torch.zeros_like(t) for t in tensors[:3])

    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    yield calls
    library._destroy()


@pytest.mark.parametrize(("recompute", "num_forward"), [("none", 1), ("selective", 1), ("full", 2)])
def test_attention_runs_again_only_where_everything_does(
    flash_calls: Counter[str], monkeypatch: pytest.MonkeyPatch, recompute: Recompute, num_forward: int
) -> None:
    def by_length(q: Any, k: Any, v: Any, window: Any, documents: Any) -> torch.Tensor:
        return attention_module._by_length(q, k, v, window, documents)

    monkeypatch.setattr(block_module, "attend", by_length)
    shape = TransformerBlock(Attention(4, 2, 16), Mlp(96, gated=True), parallel=True, num_norms=1)
    layer = Block(shape, 64, Numerics(), TensorParallel(), recompute, fused=False)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.1)
    documents = Documents.of(torch.arange(12)[None] % 5)
    layer(torch.randn(1, 12, 64, requires_grad=True), None, documents).sum().backward()
    assert flash_calls == {"forward": num_forward, "backward": 1}
