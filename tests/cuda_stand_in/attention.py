"""PyTorch's flash kernel for sequences of many lengths: what it refuses is refused, the rest is the formula in fp32."""

import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from cuda_stand_in.device import native
from torch import Tensor

calls: list[str] = []


def _attention(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float | None) -> Tensor:
    """Causal, of [T, H, Dh]; ``bounds`` are where sequences begin and end."""
    group, outputs = q.shape[1] // k.shape[1], []
    for begin, end in pairwise(bounds.tolist()):
        heads, keys, values = (t[begin:end].float().transpose(0, 1) for t in (q, k, v))
        keys, values = (t.repeat_interleave(group, 0) for t in (keys, values))
        scores = heads @ keys.transpose(1, 2) * (scale or q.shape[-1] ** -0.5)
        hidden = torch.ones(end - begin, end - begin, dtype=torch.bool).triu(1)
        outputs.append((scores.masked_fill(hidden, float("-inf")).softmax(-1) @ values).transpose(0, 1))
    return torch.cat(outputs).to(q.dtype)


def _check(q: Tensor, bounds: Tensor, longest: int, window: int | None) -> None:
    assert window in (None, -1), "the stand-in has no windows"
    assert q.dtype in (torch.bfloat16, torch.float16), q.dtype
    assert q.shape[-1] % 8 == 0, q.shape
    assert q.stride(-1) == 1, q.stride()
    assert bounds.dtype == torch.int32, bounds.dtype
    ends = native.to_host(bounds).tolist()
    assert ends[0] == 0, ends
    assert ends[-1] == len(q), (ends, len(q))
    assert all(0 <= end - begin <= longest for begin, end in pairwise(ends)), (ends, longest)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, _: Tensor, longest: int, *others: Any, **options: Any
) -> Sequence[Tensor]:
    calls.append("forward")
    _check(q, bounds, longest, options.get("window_size_left"))
    host = [native.to_host(t) for t in (q, k, v, bounds)]
    out = _attention(*host, options.get("scale"))
    small = torch.zeros(2, dtype=torch.uint64)
    made = (out, torch.zeros(q.shape[1], q.shape[0]), small, small[:0], torch.zeros(0))
    return [native.to_device(t, q.device.index) for t in made]


def _backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_z: Tensor,
    bounds: Tensor,
    *others: Any,
    **options: Any,
) -> Sequence[Tensor]:
    calls.append("backward")
    leaves = [native.to_host(t).detach().clone() for t in (q, k, v)]
    host_bounds, host_gradient = native.to_host(bounds), native.to_host(gradient)
    found: list[Tensor] = []

    def differentiate() -> None:
        inputs = [t.requires_grad_() for t in leaves]
        made = _attention(*inputs, host_bounds, options.get("scale"))
        found.extend(torch.autograd.grad(made, inputs, host_gradient))

    # Below autograd, where this runs, nothing is recorded; a new thread is above it.
    thread = threading.Thread(target=differentiate)
    thread.start()
    thread.join()
    return [native.to_device(t, q.device.index) for t in found]


_aten = torch.library.Library("aten", "IMPL")
_aten.impl("_flash_attention_forward", _forward, "CUDA")
_aten.impl("_flash_attention_backward", _backward, "CUDA")
