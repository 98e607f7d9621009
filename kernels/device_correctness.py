"""The ops on a real device against float64 and against each other: what no test without a GPU can see."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flopcast.kernels import timing
from flopcast.kernels.benchmark_cases import HEAD, OURS, Operation, operations
from flopcast.kernels.cross_entropy.op import gradient_in_place, log_z_and_picked
from flopcast.kernels.nf4 import op as nf4
from flopcast.kernels.nf4 import reference as nf4_reference
from flopcast.kernels.nf4.format import GROUP
from flopcast.kernels.rmsnorm.op import add_rms_norm, rms_norm
from flopcast.kernels.rope.op import rope, rotary_tables
from flopcast.kernels.tolerances import assert_near

Record = dict[str, Any]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MANY = 2**31  # elements that a 32-bit index cannot count
LARGE_BYTES = 40 * 2**30  # free, for the checks of tensors of as many
HIDDEN = (64, 65, 130, 1000, 2048, 4096, 5119, 5120, 6144, 8192, 9216, 12288, 16383, 16384)


def run(device: torch.device, hidden: tuple[int, ...] = HIDDEN, tokens: int = 1031) -> list[Record]:
    """Records of ``check``, ``ok`` and, where it failed, ``reason``; nothing is raised."""
    checks: dict[str, Callable[[], None]] = {}
    for operation in operations():
        for dtype in DTYPES:
            for size in hidden:
                if operation.name.endswith("rope") and size % HEAD:
                    continue
                name = f"{operation.name} {str(dtype).removeprefix('torch.')} {tokens} x {size}"
                checks[name] = partial(_against_float64, operation, tokens, size, dtype, device)
    for dtype in DTYPES:
        checks[f"nf4 {dtype}"] = partial(_nf4, dtype, device)
        checks[f"cross_entropy {dtype}"] = partial(_cross_entropy, dtype, device)
    checks["rope of packed documents and few angles"] = partial(_rope_layouts, device)
    checks["the same bits twice"] = partial(_deterministic, device, 4 * tokens)
    checks["what is not finite stays in its row"] = partial(_not_finite, device)
    checks["torch.compile in one graph"] = partial(_compiled, device)
    if device.type == "cuda":
        checks["a captured graph replays"] = partial(_captured, device)
        checks["another stream"] = partial(_other_stream, device)
        checks["another device"] = partial(_other_device, device)
        if torch.cuda.mem_get_info(device)[0] > LARGE_BYTES:
            checks["rows beyond 2^31 elements"] = partial(_large_rows, device)
            checks["heads beyond 2^31 elements"] = partial(_large_heads, device)
            checks["nf4 beyond 2^31 elements"] = partial(_large_nf4, device)
    with timing.selected(device):
        return [_record(name, check) for name, check in checks.items()]


def _record(name: str, check: Callable[[], None]) -> Record:
    try:
        check()
    except Exception as failure:
        return {"check": name, "ok": False, "reason": f"{type(failure).__name__}: {failure}"[:500]}
    return {"check": name, "ok": True}


def _against_float64(operation: Operation, tokens: int, hidden: int, dtype: torch.dtype, device: torch.device) -> None:
    made = operation.inputs(tokens, hidden, dtype, device)
    n = operation.num_differentiable
    leaves = [t.requires_grad_() for t in made[:n]]
    outputs = operation.functions[OURS]()(*leaves, *made[n:])
    gradients = [torch.randn_like(t) for t in outputs]
    found = torch.autograd.grad(outputs, leaves, gradients)
    exact, wide = operation.exact(made)
    wanted = torch.autograd.grad(exact, wide, [g.double() for g in gradients])
    for a, b in zip(outputs, exact, strict=True):
        assert_near(a.detach(), b.detach(), scale=3)
    for a, b in zip(found, wanted, strict=True):
        # The gradient of the weight is a sum over the tokens.
        assert_near(a, b, scale=3 if a.dim() > 1 else 3 * tokens**0.5)


def _nf4(dtype: torch.dtype, device: torch.device) -> None:
    for numel in (1, 63, 16384, 100_000, 3 * 16384 + 8):
        values = (0.02 * torch.randn(numel, device=device)).to(dtype)
        values[:: max(1, numel // 3)] = float("inf")
        payload = nf4.quantise(values)
        _same(payload.cpu(), nf4_reference.quantise(values.cpu()))
        for target in DTYPES:
            found = nf4.dequantise(payload, numel, target)
            _same(found.cpu(), nf4_reference.dequantise(payload.cpu(), numel, target))


def _cross_entropy(dtype: torch.dtype, device: torch.device) -> None:
    for vocabulary in (101, 50432):
        logits = (4 * torch.randn(257, vocabulary, device=device)).to(dtype)
        targets = torch.randint(vocabulary, (257,), device=device)
        wide = logits.double().requires_grad_()
        torch.nn.functional.cross_entropy(wide, targets, reduction="sum").backward()  # type: ignore[no-untyped-call]
        log_z, picked = log_z_and_picked(logits, targets)
        assert_near(log_z, wide.detach().logsumexp(1))
        assert_near(picked, wide.detach().gather(1, targets[:, None])[:, 0])
        ones = torch.ones_like(log_z)
        gradient_in_place(logits, targets, log_z, ones, ones)
        assert wide.grad is not None
        assert_near(logits, wide.grad)


def _same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


def _rope_layouts(device: torch.device) -> None:
    for dtype in DTYPES:
        q = torch.randn(2, 8, 300, 96, device=device).to(dtype).transpose(1, 2)
        k = torch.randn(2, 300, 4, 97, device=device).to(dtype)[..., :96]
        positions = torch.arange(600, device=device).view(2, 300) % 117
        tables = rotary_tables(24, 117, device=device)
        found = rope(q, k, *tables, positions)
        cpu = rope(q.cpu(), k.cpu(), tables[0].cpu(), tables[1].cpu(), positions.cpu())
        for a, b in zip(found, cpu, strict=True):
            assert_near(a.cpu(), b)


def _deterministic(device: torch.device, tokens: int) -> None:
    x, weight = torch.randn(tokens, 5120, device=device).bfloat16(), torch.ones(5120, device=device).bfloat16()
    runs = []
    for _ in range(2):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        y, s = add_rms_norm(leaves[0], (x, x), leaves[1])
        runs.append((y, s, *torch.autograd.grad((y, s), leaves, (x, x))))
    for a, b in zip(*runs, strict=True):
        _same(a, b)


def _not_finite(device: torch.device) -> None:
    x = torch.randn(9, 5120, device=device)
    x[3, 77], x[5, 5119] = float("nan"), float("inf")
    y = rms_norm(x, torch.ones(5120, device=device))
    bad = ~y.isfinite().all(1)
    if bad.nonzero().flatten().tolist() != [3, 5]:
        raise AssertionError(f"rows {bad.nonzero().flatten().tolist()} are not finite, rows 3 and 5 should be")


def _block(x: Tensor, branch: Tensor, weight: Tensor) -> Tensor:
    y, s = add_rms_norm(x, (branch,), weight)
    q = y.view(1, len(y), -1, 128)
    tables = rotary_tables(128, len(y), device=x.device)
    return rope(q, q[:, :, :1], *tables)[0].reshape(len(y), -1) + s


def _compiled(device: torch.device) -> None:
    x, branch = (torch.randn(64, 512, device=device) for _ in range(2))
    weight = torch.ones(512, device=device)
    compiled = torch.compile(_block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, branch, weight), _block(x, branch, weight))


def _captured(device: torch.device) -> None:
    x, branch = (torch.randn(64, 512, device=device) for _ in range(2))
    weight = torch.ones(512, device=device, requires_grad=True)
    positions = torch.arange(64, device=device)
    tables = rotary_tables(128, 64, device=device)

    def step() -> tuple[Tensor, Tensor]:
        y, s = add_rms_norm(x, (branch,), weight)
        turned, _ = rope(y.view(1, 64, 4, 128), y.view(1, 64, 4, 128), *tables, positions)
        return turned, torch.autograd.grad((turned.square().sum() + s.sum()), weight)[0]

    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(torch.randn(64, 512, device=device))
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        _same(a.detach(), b.detach())


def _other_stream(device: torch.device) -> None:
    x, weight = torch.randn(4096, 5120, device=device), torch.ones(5120, device=device)
    want = rms_norm(x, weight)
    torch.cuda.synchronize(device)
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        # The kernel must wait for the copy, which it does only on the same stream.
        late = torch.empty_like(x)
        torch.cuda._sleep(10_000_000)  # type: ignore[no-untyped-call]
        late.copy_(x)
        found = rms_norm(late, weight)
    torch.cuda.synchronize(device)
    _same(found, want)


def _other_device(device: torch.device) -> None:
    """On every other GPU there is, while ``device`` stays the current one."""
    x, weight = torch.randn(64, 5120, device=device), torch.ones(5120, device=device)
    want = rms_norm(x, weight).cpu()
    for index in range(torch.cuda.device_count()):
        leaf = x.to(f"cuda:{index}").requires_grad_()
        found = rms_norm(leaf, weight.to(leaf.device))
        found.sum().backward()  # type: ignore[no-untyped-call]
        _same(found.detach().cpu(), want)
    if torch.cuda.current_device() != device.index:
        raise AssertionError(f"the current device is {torch.cuda.current_device()}, it was {device.index}")


def _large_rows(device: torch.device) -> None:
    """The last rows of many, forward and backward, against the same rows alone."""
    rows, hidden = MANY // 5120 + 9, 5120
    x, dy = (torch.randn(rows, hidden, dtype=torch.bfloat16, device=device) for _ in range(2))
    weight = torch.randn(hidden, device=device).bfloat16()
    results = []
    for own, gradient in ((x, dy), (x[-7:], dy[-7:])):
        leaf = own.detach().requires_grad_()
        y, s = add_rms_norm(leaf, (own,), weight)
        (dx,) = torch.autograd.grad((y, s), leaf, (gradient, gradient))
        results.append([t.detach()[-7:].clone() for t in (y, s, dx)])
    for whole, alone in zip(*results, strict=True):
        _same(whole, alone)


def _large_heads(device: torch.device) -> None:
    """The last tokens of many, turned there and back."""
    tokens, heads = MANY // (40 * HEAD) + 9, 40
    q = torch.randn(1, tokens, heads, HEAD, dtype=torch.bfloat16, device=device)
    tables = rotary_tables(HEAD, tokens, device=device)
    last = torch.arange(tokens - 7, tokens, device=device)
    whole, _ = rope(q, q[:, :, :1], *tables)
    alone, _ = rope(q[:, -7:], q[:, -7:, :1], *tables, last)
    _same(whole[:, -7:], alone)


def _large_nf4(device: torch.device) -> None:
    """The last group of many, and its values again, against the reference of that group."""
    whole = MANY + 3 * GROUP
    values = torch.randn(whole + 100, device=device, dtype=torch.bfloat16)
    found = nf4.dequantise(nf4.quantise(values), len(values), torch.bfloat16)
    tail = values[whole:].cpu()
    _same(found[whole:].cpu(), nf4_reference.dequantise(nf4_reference.quantise(tail), len(tail), torch.bfloat16))
