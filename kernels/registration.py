"""Registering an op with torch.library: one name, a CPU and a CUDA implementation, and one that only knows shapes."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.autograd.graph import increment_version

from flopcast.kernels.backend import backend

_LIBRARY = torch.library.Library("flopcast", "FRAGMENT")  # type: ignore[no-untyped-call]


def register(schema: str, reference: Callable[..., Any], kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register ``torch.ops.flopcast.<name>``: ``reference`` for CPU tensors, ``kernel`` for CUDA's where it can run.

    Autograd stays outside, in an autograd.Function: half the overhead of torch.library.register_autograd, and
    torch.compile traces through it.
    """
    name = schema.split("(")[0]
    _LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    declared = getattr(torch.ops.flopcast, name).default._schema.arguments
    written = [n for n, argument in enumerate(declared) if argument.alias_info and argument.alias_info.is_write]

    @cache
    def chosen() -> Callable[..., Any]:
        return kernel if backend().name == "cupy" else reference

    def on_gpu(*arguments: Any) -> Any:
        made = chosen()(*arguments)
        # A kernel writes by address, which autograd does not see: what was kept of such a tensor is stale now.
        if written:
            increment_version([arguments[n] for n in written])
        return made

    _LIBRARY.impl(name, reference, "CPU")  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, on_gpu, "CUDA")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"flopcast::{name}", fake, lib=_LIBRARY)
