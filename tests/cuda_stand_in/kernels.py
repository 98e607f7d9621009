"""Every op of kernels on tensors of the stand-in, beside the same op on the CPU in fp32; writes a JSON object by op.

``python -m cuda_stand_in kernels FILE``. Of each op: the ``launches`` of its kernels, what the host
``waits`` for, and the ``failure``, where there is one.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from cuda_stand_in import compiler, waiting
from torch import Tensor

from flopcast.kernels import backend
from flopcast.kernels.cross_entropy.op import gradient_in_place, log_z_and_picked
from flopcast.kernels.nf4.op import dequantise, quantise
from flopcast.kernels.rmsnorm.op import add_rms_norm, rms_norm
from flopcast.kernels.rope.op import rope, rope_, rotary_tables
from flopcast.kernels.swiglu.op import swiglu
from flopcast.kernels.tolerances import assert_near

TOKENS, HIDDEN, VOCABULARY = 33, 64, 101
DTYPE = torch.bfloat16
DEVICE = torch.device("cuda", 1)  # not the current one
HEADS = (1, TOKENS, 2, 16)
WRITTEN = {"logits": (TOKENS, VOCABULARY), "q": HEADS, "k": HEADS, "values": (TOKENS, HIDDEN)}


def loss(logits: Tensor, targets: Tensor) -> Sequence[Tensor]:
    """What the loss is made of, and its gradient in the place of a copy of the logits."""
    log_z, picked = log_z_and_picked(logits, targets)
    gradient, ones = logits.clone(), torch.ones_like(log_z)
    gradient_in_place(gradient, targets, log_z, ones, ones)
    return log_z, picked, gradient


def payload(values: Tensor) -> Sequence[Tensor]:
    """4 bits and back; the payload is compared to the byte."""
    made = quantise(values)
    return made.float(), dequantise(made, values.numel(), values.dtype)


def cases() -> dict[str, tuple[Callable[..., Sequence[Tensor]], int, tuple[Tensor, ...]]]:
    """Of each op a function, how many of its inputs take a gradient, and its inputs on the host."""
    torch.manual_seed(0)
    rows, branch, other, gate = (torch.randn(TOKENS, HIDDEN).to(DTYPE) for _ in range(4))
    weight = (1 + 0.1 * torch.randn(HIDDEN)).to(DTYPE)
    q, k = (torch.randn(1, TOKENS, heads, 16).to(DTYPE) for heads in (4, 2))
    positions = torch.arange(TOKENS) % 10
    logits, targets = torch.randn(TOKENS, VOCABULARY).to(DTYPE), torch.randint(VOCABULARY, (TOKENS,))
    return {
        "rms_norm": (lambda x, w: (rms_norm(x, w),), 2, (rows, weight)),
        "add_rms_norm": (lambda x, a, b, w: add_rms_norm(x, (a, b), w), 4, (rows, branch, other, weight)),
        "rope": (rope, 2, (q, k, *rotary_tables(16, TOKENS), positions)),
        "swiglu": (lambda a, b: (swiglu(a, b),), 2, (gate, rows)),
        "cross_entropy": (loss, 0, (logits, targets)),
        "nf4": (payload, 0, (rows,)),
    }


def run(
    function: Callable[..., Sequence[Tensor]],
    num_leaves: int,
    inputs: Sequence[Tensor],
    gradients: Sequence[Tensor] = (),
) -> list[Tensor]:
    """The outputs and the gradients of the leaves, for these gradients of the outputs."""
    leaves = [t.detach().requires_grad_() for t in inputs[:num_leaves]]
    outputs = function(*leaves, *inputs[num_leaves:])
    found = torch.autograd.grad(outputs, leaves, gradients) if leaves else ()
    return [t.detach() for t in (*outputs, *found)]


def record(function: Callable[..., Sequence[Tensor]], num_leaves: int, inputs: Sequence[Tensor]) -> dict[str, Any]:
    """One op on the device, beside the reference on the host in fp32 (the payload: of the same bf16)."""
    wide = [t.float() if t.dtype == DTYPE and function is not payload else t for t in inputs]
    shapes = function(*(t.detach() for t in wide))
    gradients = [torch.randn(t.shape).to(DTYPE) for t in shapes]
    wanted = run(function, num_leaves, wide, [g.float() for g in gradients])
    on_device = [t.to(DEVICE) for t in inputs]
    gradients = [g.to(DEVICE) for g in gradients]
    run(function, num_leaves, on_device, gradients)  # compiles, and looks at positions once
    compiler.launches.clear()
    waiting.waits.clear()
    found = run(function, num_leaves, on_device, gradients)
    made: dict[str, Any] = {"launches": [*compiler.launches], "waits": [*waiting.waits], "failure": ""}
    try:
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.device == DEVICE, ours.device
            # The gradient of a weight is a sum over the tokens.
            assert_near(ours.cpu(), theirs, scale=3 if ours.dim() > 1 else 3 * TOKENS**0.5)
    except AssertionError as error:
        made["failure"] = str(error)
    return made


def unseen_writes() -> list[str]:
    """Of the tensors that ops write in their place, those that autograd takes to be what they were."""
    logits, q, k, values = (torch.randn(*shape).to(DTYPE).to(DEVICE) for shape in WRITTEN.values())
    payload = torch.empty_like(quantise(values))
    tensors = {"logits": logits, "q": q, "k": k, "payload": payload, "values": values}
    before = {name: tensor._version for name, tensor in tensors.items()}
    ones, targets = torch.ones(TOKENS).to(DEVICE), torch.zeros(TOKENS, dtype=torch.long).to(DEVICE)
    gradient_in_place(logits, targets, ones, ones, ones)
    rope_(q, k, *(table.to(DEVICE) for table in rotary_tables(16, TOKENS)))
    quantise(values, out=payload)
    dequantise(payload, values.numel(), DTYPE, out=values.view(-1))
    return [name for name, tensor in tensors.items() if tensor._version == before[name]]


def main(arguments: Sequence[str]) -> None:
    found = {name: record(*case) for name, case in cases().items()}
    current = torch.cuda.current_device()
    unseen = unseen_writes()
    made = {"backend": backend().name, "current": current, "ops": found, "unseen_writes": unseen}
    Path(arguments[0]).write_text(json.dumps(made))
