"""The memory-bound pieces of a layer, attention over packed documents and a whole tiny layer, as the trainer runs them.

``bytes`` of a record are those that the forecast counts for the piece, so that a profile corrects what the forecast
assumes of the very code that will run.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from flopcast.kernels import timing
from flopcast.kernels.backend import backend
from flopcast.kernels.pointwise import Pass
from flopcast.kernels.rmsnorm import cost as norm_cost
from flopcast.kernels.rope import cost as rope_cost
from flopcast.kernels.rope.op import rotary_tables
from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.blocks.transformer_pass import GATED_EAGER
from flopcast.simulator.engines import ENGINES
from flopcast.simulator.model import Model
from flopcast.simulator.operations import EMBEDDING_BACKWARD, EMBEDDING_FORWARD, step_operations
from flopcast.simulator.plan import Plan, Plans
from flopcast.trainer import pointwise
from flopcast.trainer.attention import Documents, attend
from flopcast.trainer.loss import cross_entropy
from flopcast.trainer.model import Decoder

Record = dict[str, Any]
DTYPE = torch.bfloat16
HEAD = 64
LOSS = Pass(ENGINES["fsdp2"].loss_forward_bytes, 4), Pass(ENGINES["fsdp2"].loss_backward_bytes, 4)
EPS = 1e-6
# A backward is timed as forward and backward less the forward, and is never less than this share of both.
LEAST_BACKWARD = 0.1


def measure(piece: str, tokens: int, width: int, device: torch.device, samples: int) -> list[Record]:
    """Forward and backward of a piece on ``tokens`` rows of ``width`` elements."""
    make, passes = PIECES[piece]
    elements = float(tokens * width)
    count = timing.num_inputs(elements * 4 * DTYPE.itemsize, device, limit_bytes=2e9)
    calls = [make(tokens, width, device) for _ in range(count)]
    times = _forward_and_backward(lambda index: calls[index % len(calls)](), device, samples)
    records = []
    for name, work in zip(("forward", "backward"), passes, strict=True):
        arguments = {"op": piece, "pass": name, "tokens": tokens, "width": width, "dtype": "bfloat16"}
        moved = work.bytes_per_element * elements
        records.append({"kind": "kernel", "arguments": arguments, **times[name], "bytes": moved})
    return records


def _forward_and_backward(
    forward: Callable[[int], tuple[torch.Tensor, Sequence[torch.Tensor]]], device: torch.device, samples: int
) -> dict[str, Record]:
    """Of a function that returns its result and the leaves that take a gradient."""

    def both(index: int) -> None:
        result, leaves = forward(index)
        torch.autograd.grad(result, leaves, torch.ones_like(result))

    found = timing.interleaved({"forward": forward, "both": both}, device, samples)
    alone, together = found["forward"], found["both"]
    backward = max(together.median_s - alone.median_s, LEAST_BACKWARD * together.median_s)
    spread = together.spread * together.median_s / backward
    return {
        "forward": vars(alone),
        "backward": {"median_s": backward, "spread": spread, "num_samples": together.num_samples},
    }


def _random(*shape: int, device: torch.device) -> torch.Tensor:
    return torch.randn(shape, device=device).to(DTYPE).requires_grad_()


def _norm(tokens: int, width: int, device: torch.device) -> Callable[[], Any]:
    leaves = (_random(tokens, width, device=device), _random(width, device=device))
    return lambda: (pointwise.rms_norm(*leaves, EPS, fused=True), leaves)


def _rope(tokens: int, width: int, device: torch.device) -> Callable[[], Any]:
    heads = max(width // HEAD, 2)
    q, k = (_random(1, tokens, n, HEAD, device=device) for n in (heads - heads // 2, heads // 2))
    positions = torch.arange(tokens, device=device)[None]
    angles = pointwise.Angles(*rotary_tables(HEAD, tokens, device=device), positions)

    def turn() -> Any:
        # The backward of both comes from one number.
        return torch.cat(pointwise.rope(q, k, angles, fused=True), dim=2), (q, k)

    return turn


def _gated(tokens: int, width: int, device: torch.device) -> Callable[[], Any]:
    leaves = (_random(tokens, width, device=device), _random(tokens, width, device=device))
    return lambda: (pointwise.gated(*leaves, "silu", fused=True), leaves)


def _add(tokens: int, width: int, device: torch.device) -> Callable[[], Any]:
    leaves = (_random(tokens, width, device=device), _random(tokens, width, device=device))

    class Sum(torch.autograd.Function):
        """A sum whose backward adds too: the stream's gradient meets that of the branch."""

        @staticmethod
        def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a + b

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return gradient + gradient, gradient

    return lambda: (Sum.apply(*leaves), leaves)  # type: ignore[no-untyped-call]


def _loss(tokens: int, width: int, device: torch.device) -> Callable[[], Any]:
    logits = _random(tokens, width, device=device)
    targets = torch.randint(width, (tokens,), device=device)
    fused = backend().name == "cupy" and device.type == "cuda"
    return lambda: (cross_entropy(logits, targets, fused=fused), (logits,))


def _lookup(tokens: int, width: int, device: torch.device) -> Callable[[], Any]:
    table = _random(8 * tokens, width, device=device)
    rows = torch.randint(len(table), (tokens,), device=device)
    return lambda: (F.embedding(rows, table), (table,))


Maker = Callable[[int, int, torch.device], Callable[[], Any]]
# The forecast's name of each piece, and the bytes per element that it counts forward and backward.
PIECES: dict[str, tuple[Maker, tuple[Pass, Pass]]] = {
    "norm": (_norm, (norm_cost.FORWARD, norm_cost.BACKWARD)),
    "rope": (_rope, (rope_cost.FORWARD, rope_cost.BACKWARD)),
    "activation": (_gated, (GATED_EAGER[0], GATED_EAGER[1])),
    "residual": (_add, (norm_cost.ADD_FORWARD, norm_cost.ADD_BACKWARD)),
    "loss": (_loss, LOSS),
    "lookup": (_lookup, (EMBEDDING_FORWARD, EMBEDDING_BACKWARD)),
}


def packed_attention(device: torch.device, shape: tuple[int, int, int, int, int], samples: int) -> list[Record]:
    """Attention as the trainer calls it: over packed documents, here one to a sequence; FLOPs of the causal half."""
    batch, tokens, heads, kv_heads, size = shape
    q, k, v = (_random(batch, tokens, n, size, device=device) for n in (heads, kv_heads, kv_heads))
    documents = Documents.of(torch.arange(tokens, device=device).repeat(batch, 1))
    times = _forward_and_backward(lambda _: (attend(q, k, v, None, documents), (q, k, v)), device, samples)
    flop = 2.0 * batch * heads * tokens**2 * size
    records = []
    for name, share in (("forward", 1.0), ("backward", 2.5)):
        arguments = {
            **{"batch": batch, "tokens": tokens, "heads": heads, "kv_heads": kv_heads, "head_dim": size},
            **{"backend": "packed", "pass": name, "dtype": "bfloat16"},
        }
        records.append({"kind": "attention", "arguments": arguments, **times[name], "flop": share * flop})
    return records


TINY = Model(
    name="tiny",
    hidden=64,
    vocab_size=256,
    context=16,
    layers=(TransformerBlock(Attention(4, 2, 16), Mlp(128, gated=True), parallel=True, num_norms=1),) * 4,
)


@cache
def _listed_kernels() -> float:
    """Kernels that the forecast lists for forward and backward of one micro-batch of the tiny model."""
    plans = Plans.of([Plan("ddp", 1, TINY.context)])
    operations = step_operations(TINY, plans, np.array([1]))
    return sum(float(o.count[0] * o.num_kernels[0]) for o in operations if o.phase != "step" and o.section != "state")


def launch_of_layer(device: torch.device) -> Record:
    """Host time of forward and backward of a model too small to matter to the device: what launching its kernels costs.

    ``listed_kernels``: those that the forecast lists for it, with the reshapes, casts and Python around them.
    """
    with torch.device(device):
        module = Decoder(TINY).to(DTYPE)
        tokens = torch.randint(TINY.vocab_size, (1, TINY.context))
    # Looked for on the host, as the engine does: on the device every call would wait for it.
    documents = Documents.of(torch.arange(TINY.context)[None]).to(device)

    def step(_: int) -> None:
        module(tokens, tokens, documents).backward()

    timed = timing.host_time(step, device, calls=5, samples=10)
    arguments = {"op": "layer", "listed_kernels": _listed_kernels()}
    return {"kind": "launch", "arguments": arguments, **vars(timed)}
