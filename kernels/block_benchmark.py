"""The share of a transformer block's time that the kernels save: PLaMo-13B's block, forward and backward, both ways.

PLaMo-13B's report credits hand-written RoPE and RMSNorm kernels with about 10 % of training time; this measures it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flopcast.kernels import timing
from flopcast.kernels.benchmark_cases import EPS, HEAD, eager_add_norm, eager_rope, wide_tables
from flopcast.kernels.rmsnorm.op import add_rms_norm
from flopcast.kernels.rope.op import rope, rotary_tables

_DTYPE = torch.bfloat16


class ParallelBlock(nn.Module):
    """Attention and SwiGLU MLP side by side behind one RMSNorm, which first sums the stream and both branches."""

    def __init__(self, hidden: int, intermediate: int, heads: int, kv_heads: int, tokens: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.fused = heads, kv_heads, fused
        self.norm = nn.Parameter(torch.ones(hidden))
        self.qkv = nn.Linear(hidden, (heads + 2 * kv_heads) * HEAD, bias=False)
        self.out = nn.Linear(heads * HEAD, hidden, bias=False)
        self.gate_up = nn.Linear(hidden, 2 * intermediate, bias=False)
        self.down = nn.Linear(intermediate, hidden, bias=False)
        cosines, sines = rotary_tables(HEAD, tokens)
        if not fused:  # made once for all layers of a model
            heads_of = torch.empty(1, tokens, 1, HEAD, dtype=_DTYPE)
            *_, cosines, sines = wide_tables(heads_of, heads_of, cosines, sines)
        self.cosines, self.sines = nn.Buffer(cosines), nn.Buffer(sines)

    def forward(self, x: Tensor, attention: Tensor, mlp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The residual stream and the two branches of the block before, [B, S, D] each; the same of this block."""
        if self.fused:
            y, stream = add_rms_norm(x, (attention, mlp), self.norm, EPS)
        else:
            y, stream = eager_add_norm(x, attention, mlp, self.norm)
        batch, tokens, _ = y.shape
        q, k, v = self.qkv(y).view(batch, tokens, -1, HEAD).split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        q, k = (rope if self.fused else eager_rope)(q, k, self.cosines, self.sines)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        gate, up = self.gate_up(y).chunk(2, -1)
        return stream, self.out(mixed.transpose(1, 2).flatten(2)), self.down(nn.functional.silu(gate) * up)


def run(
    device: torch.device,
    tokens: int = 4096,
    hidden: int = 5120,
    intermediate: int = 16640,
    kv_heads: int = 5,
    samples: int = 20,
) -> dict[str, Any]:
    """Seconds of forward and backward with our kernels and eager, and ``saved``, the share of the eager time."""
    heads = hidden // HEAD
    functions: dict[str, Callable[[int], object]] = {}
    outputs = {}
    inputs = [torch.randn(1, tokens, hidden, device=device).to(_DTYPE).requires_grad_() for _ in range(3)]
    gradients = [torch.randn_like(t) for t in inputs]
    for name, fused in (("fused", True), ("eager", False)):
        torch.manual_seed(0)
        block = ParallelBlock(hidden, intermediate, heads, kv_heads, tokens, fused).to(device)
        for parameter in block.parameters():
            parameter.data = parameter.data.to(_DTYPE)

        functions[name] = partial(_step, block, inputs, gradients)
        outputs[name] = [t.detach() for t in block(*inputs)]
    timed = timing.interleaved(functions, device, samples)
    difference = max(
        float((a.double() - b.double()).norm() / b.double().norm())
        for a, b in zip(outputs["fused"], outputs["eager"], strict=True)
    )
    return {
        "arguments": {"tokens": tokens, "hidden": hidden, "intermediate": intermediate, "kv_heads": kv_heads},
        **{name: vars(found) for name, found in timed.items()},
        "saved": 1 - timed["fused"].median_s / timed["eager"].median_s,
        "difference": difference,
    }


def _step(block: ParallelBlock, inputs: list[Tensor], gradients: list[Tensor], index: int) -> None:
    torch.autograd.backward(block(*inputs), gradients)
    for tensor in (*inputs, *block.parameters()):
        tensor.grad = None
