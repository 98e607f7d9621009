"""What the kernel benchmark compares: each operation, who else does it, and the bytes that it must move."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from flopcast.kernels.rmsnorm import cost as norm_cost
from flopcast.kernels.rmsnorm.op import add_rms_norm, rms_norm
from flopcast.kernels.rope import cost as rope_cost
from flopcast.kernels.rope.op import rope, rotary_tables
from flopcast.kernels.swiglu import cost as swiglu_cost
from flopcast.kernels.swiglu.op import swiglu

EPS = 1e-6
HEAD = 128
OURS = "flopcast"
_DOCUMENT = 1000  # tokens of each packed document
_PACKAGES = {
    "liger": ("liger_kernel", "liger-kernel"),
    "quack": ("quack", "quack-kernels"),
    "compiled": ("triton", "triton"),
}
Tensors = tuple[Tensor, ...]
Function = Callable[..., Tensors]


@dataclass(frozen=True)
class Operation:
    """``functions`` maps providers to functions of the inputs; ``eager`` is the unfused expression, for any dtype.

    The first ``num_differentiable`` inputs take a gradient, those behind are tables; the first ``num_rowwise`` have
    tokens in dimension ``token_dim``. ``passes`` gives the bytes of each pass that no kernel can avoid. ``ready`` makes
    what a provider is handed instead of the inputs, once and before the clock starts.
    """

    name: str
    inputs: Callable[[int, int, torch.dtype, torch.device], Tensors]
    eager: Function
    functions: dict[str, Callable[[], Function]]
    passes: Callable[[int, int, int], dict[str, float]]
    num_rowwise: int
    num_differentiable: int
    token_dim: int = 0
    writing_over: frozenset[str] = frozenset()  # providers that write over their inputs
    ready: dict[str, Function] = field(default_factory=dict)

    def handed(self, provider: str, inputs: Tensors) -> Tensors:
        """The arguments of a provider's function."""
        return self.ready[provider](*inputs) if provider in self.ready else inputs

    def exact(self, inputs: Tensors) -> tuple[Tensors, list[Tensor]]:
        """The outputs by the unfused expression in float64, and the inputs there that take a gradient."""
        wide = tuple(t.detach().double() if t.is_floating_point() else t for t in inputs)
        leaves = [t.requires_grad_() for t in wide[: self.num_differentiable]]
        return self.eager(*self.handed("eager", wide)), leaves


def _normed(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.double() if x.dtype == torch.float64 else x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype)


def _eager_norm(x: Tensor, weight: Tensor) -> Tensors:
    return (_normed(x, weight),)


def eager_add_norm(*arguments: Tensor) -> Tensors:
    """``(y, s)`` of the summands and, last, the weight, op by op."""
    *summands, weight = arguments
    stream = summands[0]
    for branch in summands[1:]:
        stream = stream + branch
    return _normed(stream, weight), stream


def eager_rope(q: Tensor, k: Tensor, cosines: Tensor, sines: Tensor) -> Tensors:
    """``q`` and ``k`` [B, S, H, Dh] turned op by op, in their own type, as Hugging Face's LLaMA does.

    The tables are those of :func:`wide_tables`, which a model makes once for all of its layers.
    """

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cosines + torch.cat((-second, first), -1) * sines

    return turned(q), turned(k)


def wide_tables(q: Tensor, k: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None = None) -> Tensors:
    """``q``, ``k`` and the tables [P, Dh / 2] as [1, S, 1, Dh], for both halves and in the type of q."""
    rows = slice(q.shape[1]) if positions is None else positions[: q.shape[1]]
    wide = (torch.cat((t[rows], t[rows]), -1)[None, :, None].to(q.dtype) for t in (cosines, sines))
    return q, k, *wide


def _rows(num_branches: int) -> Callable[[int, int, torch.dtype, torch.device], Tensors]:
    def inputs(tokens: int, hidden: int, dtype: torch.dtype, device: torch.device) -> Tensors:
        rows = [torch.randn(tokens, hidden, device=device).to(dtype) for _ in range(1 + num_branches)]
        return (*rows, (1 + 0.1 * torch.randn(hidden, device=device)).to(dtype))

    return inputs


def _heads(tokens: int, hidden: int, dtype: torch.dtype, device: torch.device) -> Tensors:
    """Views of one QKV buffer, eight query heads to a key head, as in PLaMo-13B."""
    q_heads, k_heads = hidden // HEAD, max(1, hidden // HEAD // 8)
    buffer = torch.randn(1, tokens, q_heads + 2 * k_heads, HEAD, device=device).to(dtype)
    q, k = buffer[:, :, :q_heads], buffer[:, :, q_heads : q_heads + k_heads]
    return q, k, *rotary_tables(HEAD, tokens, device=device)


def _packed_heads(tokens: int, hidden: int, dtype: torch.dtype, device: torch.device) -> Tensors:
    """The same, of documents that are counted from 0 each."""
    q, k, *_ = _heads(tokens, hidden, dtype, device)
    tables = rotary_tables(HEAD, min(tokens, _DOCUMENT), device=device)
    return q, k, *tables, torch.arange(tokens, device=device) % _DOCUMENT


def _compiled(function: Function) -> Function:
    # Past eight shapes of one function PyTorch would quietly run it eagerly.
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False, mode="max-autotune-no-cudagraphs")


def _liger(name: str) -> Callable[..., Any]:
    return getattr(import_module("liger_kernel.transformers.functional"), f"liger_{name}")  # type: ignore[no-any-return]


def _liger_norm() -> Function:
    function = _liger("rms_norm")
    return lambda x, w: (function(x, w, EPS, 0.0, "llama", False),)


def _liger_add_norm() -> Function:
    function = _liger("fused_add_rms_norm")
    return lambda r, x, w: function(x, r, w, EPS, 0.0, "llama", False)


def _quack_norm() -> Function:
    function = import_module("quack.rmsnorm").rmsnorm
    return lambda x, w: (function(x, w, eps=EPS),)


def _quack_add_norm() -> Function:
    function = import_module("quack.rmsnorm").rmsnorm
    return lambda r, x, w: function(x, w, residual=r, eps=EPS, prenorm=True)


def _ours_add(*arguments: Tensor) -> Tensors:
    residual, *branches, weight = arguments
    return add_rms_norm(residual, tuple(branches), weight, EPS)


def _norm_providers() -> dict[str, Callable[[], Function]]:
    return {
        OURS: lambda: lambda x, w: (rms_norm(x, w, EPS),),
        "eager": lambda: _eager_norm,
        "torch": lambda: lambda x, w: (torch.nn.functional.rms_norm(x, w.shape, w, EPS),),
        "compiled": lambda: _compiled(_eager_norm),
        "liger": _liger_norm,
        "quack": _quack_norm,
    }


def _add_providers(num_branches: int) -> dict[str, Callable[[], Function]]:
    providers: dict[str, Callable[[], Function]] = {
        OURS: lambda: _ours_add,
        "eager": lambda: eager_add_norm,
        "compiled": lambda: _compiled(eager_add_norm),
    }
    if num_branches == 1:
        providers |= {"liger": _liger_add_norm, "quack": _quack_add_norm}
    return providers


def _liger_rope() -> Function:
    function = _liger("rope")

    def turned(q: Tensor, k: Tensor, cosines: Tensor, sines: Tensor) -> Tensors:
        # Liger takes heads before tokens and writes over what it is given, where that is contiguous.
        turned_q, turned_k = function(q.transpose(1, 2), k.transpose(1, 2), cosines, sines)
        return turned_q.transpose(1, 2), turned_k.transpose(1, 2)

    return turned


def _liger_tables(q: Tensor, k: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None = None) -> Tensors:
    """As [1, S, Dh], in fp32 as ours are."""
    rows = slice(q.shape[1]) if positions is None else positions
    return q, k, *(torch.cat((t[rows], t[rows]), -1)[None] for t in (cosines, sines))


def _ours_rope(q: Tensor, k: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None = None) -> Tensors:
    return rope(q, k, cosines, sines, positions)


def _norm_bytes(num_branches: int) -> Callable[[int, int, int], dict[str, float]]:
    def passes(tokens: int, hidden: int, size: int) -> dict[str, float]:
        return {
            "forward": norm_cost.forward_bytes(tokens, hidden, size, num_branches),
            "backward": norm_cost.backward_bytes(tokens, hidden, size, num_branches > 0),
        }

    return passes


def _rope_bytes(document: int | None) -> Callable[[int, int, int], dict[str, float]]:
    def passes(tokens: int, hidden: int, size: int) -> dict[str, float]:
        heads = hidden // HEAD + max(1, hidden // HEAD // 8)
        moved = rope_cost.moved_bytes(tokens, heads, HEAD, size, document and min(tokens, document))
        return {"forward": moved, "backward": moved}

    return passes


def _gates(tokens: int, hidden: int, dtype: torch.dtype, device: torch.device) -> Tensors:
    return tuple(torch.randn(tokens, hidden, device=device).to(dtype) for _ in range(2))


def _eager_swiglu(gate: Tensor, up: Tensor) -> Tensors:
    return (torch.nn.functional.silu(gate) * up,)


def _liger_swiglu() -> Function:
    function = _liger("swiglu")
    return lambda gate, up: (function(gate, up),)


def _swiglu_bytes(tokens: int, hidden: int, size: int) -> dict[str, float]:
    numel = tokens * hidden
    return {
        "forward": swiglu_cost.forward_bytes(numel, size),
        "backward": swiglu_cost.backward_bytes(numel, size),
    }


def operations() -> list[Operation]:
    """The operations in the order of the report."""
    found = [
        Operation("rms_norm", _rows(0), _eager_norm, _norm_providers(), _norm_bytes(0), 1, 2),
        *(
            Operation(name, _rows(n), eager_add_norm, _add_providers(n), _norm_bytes(n), 1 + n, 2 + n)
            for name, n in (("add_rms_norm", 1), ("add_add_rms_norm", 2))
        ),
    ]
    turning = {
        OURS: lambda: _ours_rope,
        "eager": lambda: eager_rope,
        "compiled": lambda: _compiled(eager_rope),
        "liger": _liger_rope,
    }
    ready: dict[str, Function] = {"eager": wide_tables, "compiled": wide_tables, "liger": _liger_tables}
    found += [
        Operation(name, inputs, eager_rope, turning, _rope_bytes(document), 2, 2, 1, frozenset({"liger"}), ready)
        for name, inputs, document in (("rope", _heads, None), ("packed_rope", _packed_heads, _DOCUMENT))
    ]
    gating = {
        OURS: lambda: lambda gate, up: (swiglu(gate, up),),
        "eager": lambda: _eager_swiglu,
        "compiled": lambda: _compiled(_eager_swiglu),
        "liger": _liger_swiglu,
    }
    written = frozenset({"liger"})
    found.append(Operation("swiglu", _gates, _eager_swiglu, gating, _swiglu_bytes, 2, 2, 0, written))
    return found


def missing(provider: str) -> str | None:
    """Why a provider cannot run here, or None if it can."""
    module, package = _PACKAGES.get(provider, ("torch", "torch"))
    return f"{package} is not installed" if find_spec(module) is None else None
