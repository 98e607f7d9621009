"""Compute microbenchmarks of one device: matrix products, attention, copies, launches, optimizer steps.

Every function returns plain records: ``kind``, ``arguments``, ``median_s`` of one call in seconds, ``spread`` (10th to
90th percentile over the median), ``num_samples``, and the work of a call as ``flop`` or ``bytes``. What cannot run here
is a record too, with ``skipped`` and the reason in the place of the times.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flopcast.kernels import timing

Record = dict[str, Any]
DTYPE, _DTYPE_NAME = torch.bfloat16, "bfloat16"  # of products and attention
KINDS = ("gemm", "attention", "copy", "launch", "optimizer")

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# (m, n, k) of PLaMo-13B's layer on 4096 tokens: queries, keys and values together, output, gate and up, down, logits.
PLAMO_GEMMS = ((4096, 6400, 5120), (4096, 5120, 5120), (4096, 33280, 5120), (4096, 5120, 16640), (4096, 50432, 5120))
# Shapes in between and out to the corners, so that a fit need not extrapolate.
GRID_GEMMS = tuple((m, n, k) for m in (1024, 8192) for n in (1024, 4096, 16384) for k in (1024, 4096, 16384))
# (batch, tokens, query heads, key/value heads, head size)
ATTENTIONS = ((1, 4096, 40, 5, 128), (4, 2048, 32, 32, 128), (1, 16384, 16, 16, 128))
COPY_BYTES = (2**20, 2**24, 2**27, 2**30)
OPTIMIZER_PARAMETERS = (2**20, 2**24, 2**27)


def run(device: torch.device, quick: bool = False, kinds: Sequence[str] = KINDS) -> list[Record]:
    """All kinds on ``device`` with the default arguments; ``quick`` with small ones, for a test or a CPU."""
    samples = 5 if quick else 20
    small = ((64, 128, 96), (128, 64, 64))
    families: dict[str, Callable[[], list[Record]]] = {
        "gemm": lambda: gemm(device, small if quick else PLAMO_GEMMS + GRID_GEMMS, samples=samples),
        "attention": lambda: attention(device, ((1, 64, 4, 2, 32),) if quick else ATTENTIONS, samples=samples),
        "copy": lambda: copy(device, (2**16, 2**20) if quick else COPY_BYTES, samples),
        "launch": lambda: launch(device),
        "optimizer": lambda: optimizer(device, (2**12,) if quick else OPTIMIZER_PARAMETERS, samples),
    }
    return [record for kind in kinds for record in families[kind]()]


def gemm(
    device: torch.device,
    shapes: Iterable[tuple[int, int, int]],
    samples: int = 20,
) -> list[Record]:
    """(m, k) x (k, n) products, 2 m n k FLOP, in the three layouts of training.

    "nt" is forward (weight [n, k] transposed), "nn" the input gradient, "tn" the weight gradient (left transposed).
    """
    records = []
    for m, n, k in shapes:
        for layout in ("nt", "nn", "tn"):
            left, right = ((k, m) if layout[0] == "t" else (m, k)), ((n, k) if layout[1] == "t" else (k, n))
            sets = _sets(device, DTYPE, (left, right), extra=m * n)
            arguments = {"m": m, "n": n, "k": k, "layout": layout, "dtype": _DTYPE_NAME}

            def product(index: int, sets: Any = sets, layout: str = layout) -> Tensor:
                a, b = sets[index % len(sets)]
                return torch.matmul(a.t() if layout[0] == "t" else a, b.t() if layout[1] == "t" else b)

            records.append(_record("gemm", arguments, product, device, samples, flop=2.0 * m * n * k))
    return records


def attention(
    device: torch.device,
    shapes: Iterable[tuple[int, int, int, int, int]],
    backends: Sequence[str] = tuple(_BACKENDS),
    samples: int = 20,
) -> list[Record]:
    """Causal scaled-dot-product attention under each backend, forward, and forward with backward.

    FLOP are those of the full score matrix halved: 2 B Hq S^2 Dh forward, 2.5 times as much again backward.
    """
    records = []
    for batch, tokens, heads, kv_heads, size in shapes:
        for backend in backends:
            for backward in (False, True):
                arguments = {
                    **{"batch": batch, "tokens": tokens, "heads": heads, "kv_heads": kv_heads, "head_dim": size},
                    **{"backend": backend, "backward": backward, "dtype": _DTYPE_NAME},
                }
                if backend == "math" and tokens > 4096:
                    records.append(_skipped("attention", arguments, "the score matrix would not fit"))
                    continue
                flop = 2.0 * batch * heads * tokens**2 * size * (3.5 if backward else 1.0)
                shape = [(batch, h, tokens, size) for h in (heads, kv_heads, kv_heads)]
                sets = _sets(device, DTYPE, shape, requires_grad=backward, fewest=1)

                def attend(index: int, sets: Any = sets, backend: str = backend, backward: bool = backward) -> None:
                    q, k, v = sets[index % len(sets)]
                    with sdpa_kernel(_BACKENDS[backend]):
                        out = torch.nn.functional.scaled_dot_product_attention(
                            q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
                        )
                    if backward:
                        torch.autograd.grad(out, (q, k, v), out.detach())

                try:
                    records.append(_record("attention", arguments, attend, device, samples, flop=flop))
                except RuntimeError as error:
                    records.append(_skipped("attention", arguments, (str(error).splitlines() or [""])[0]))
    return records


def copy(device: torch.device, sizes: Iterable[int], samples: int = 20) -> list[Record]:
    """Device-to-device copies of that many bytes; ``bytes`` counts both the read and the write."""
    return [
        _record("copy", {"bytes": size}, copying(device, size), device, samples, bytes=2.0 * size) for size in sizes
    ]


def copying(device: torch.device, num_bytes: float) -> Callable[[int], object]:
    """A copy of ``num_bytes`` from one tensor to another, of as many as no cache holds."""
    sets = _sets(device, torch.float32, [(max(1, int(num_bytes) // 4),)] * 2)

    def move(index: int) -> None:
        source, target = sets[index % len(sets)]
        target.copy_(source)

    return move


def launch(device: torch.device) -> list[Record]:
    """What the host spends on one op of one element: the time below which a kernel waits for its launch."""
    x = torch.ones(1, device=device)
    out = torch.empty_like(x)
    timed = timing.host_time(lambda index: torch.add(x, x, out=out), device, calls=100)
    return [{"kind": "launch", "arguments": {"op": "add"}, **vars(timed)}]


def optimizer(device: torch.device, sizes: Iterable[int], samples: int = 20) -> list[Record]:
    """A fused AdamW step over fp32 parameters: 28 bytes each, four tensors read and all but the gradient written."""
    records = []
    for size in sizes:
        parameter = torch.nn.Parameter(torch.randn(size, device=device))
        parameter.grad = torch.randn_like(parameter)
        adam = torch.optim.AdamW([parameter], fused=True)
        arguments = {"num_parameters": size, "optimizer": "adamw", "fused": True}
        records.append(_record("optimizer", arguments, partial(_step, adam), device, samples, bytes=28.0 * size))
    return records


def _step(optimizer: torch.optim.Optimizer, index: int) -> None:
    optimizer.step()


def _record(
    kind: str,
    arguments: Record,
    function: Callable[[int], object],
    device: torch.device,
    samples: int,
    **work: float,
) -> Record:
    timed = timing.interleaved({kind: function}, device, samples)[kind]
    return {"kind": kind, "arguments": arguments, **vars(timed), **work}


def _skipped(kind: str, arguments: Record, reason: str) -> Record:
    return {"kind": kind, "arguments": arguments, "skipped": reason}


def _sets(
    device: torch.device,
    dtype: torch.dtype,
    shapes: Sequence[tuple[int, ...]],
    extra: int = 0,
    requires_grad: bool = False,
    fewest: int = 2,
) -> list[list[Tensor]]:
    """Random tensors of these shapes, as many sets as no cache holds; ``extra`` elements are written by each call."""
    size = sum(torch.Size(shape).numel() for shape in shapes) * dtype.itemsize
    count = max(fewest, timing.num_inputs(size + extra * dtype.itemsize, device, limit_bytes=8e9))
    return [
        [torch.randn(shape, device=device).to(dtype).requires_grad_(requires_grad) for shape in shapes]
        for _ in range(count)
    ]
