"""The NF4 payload as ops: quantise a tensor for the wire, and dequantise what arrived."""

import torch
from torch import Tensor

from flopcast.errors import InputError
from flopcast.kernels.checks import check_dense_rows, check_element_type
from flopcast.kernels.nf4 import format as layout
from flopcast.kernels.nf4 import kernel, reference
from flopcast.kernels.registration import register


def quantise(tensor: Tensor, out: Tensor | None = None) -> Tensor:
    """The payload of ``tensor``: uint8 [payload_bytes(numel)], written into ``out`` where that is given.

    ``tensor`` is fp32, bf16 or fp16 of any shape, read in row-major order; ``out`` starts on 16 bytes. CPU and GPU
    produce the same bytes. Raises InputError.
    """
    check_element_type("nf4.quantise", "tensor", tensor)
    if tensor.numel() == 0:
        raise InputError("nf4.quantise: tensor is empty; give at least one element")
    size = _payload_bytes(tensor.numel())
    if out is None:
        out = torch.empty(size, dtype=torch.uint8, device=tensor.device)
    elif out.shape != (size,) or out.dtype != torch.uint8 or out.device != tensor.device or not out.is_contiguous():
        raise InputError(
            f"nf4.quantise: out is {out.dtype} {list(out.shape)} on {out.device}; "
            f"the payload is dense torch.uint8 [{size}] on {tensor.device}"
        )
    torch.ops.flopcast.nf4_quantise(tensor.detach().contiguous().view(-1), out)
    return out


def dequantise(payload: Tensor, numel: int, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The values of a payload: uint8 [..., payload_bytes(numel)] becomes ``dtype`` [..., numel].

    Leading dimensions are several payloads of the same ``numel``, as an all-gather delivers them; ``out``, of the
    shape of the result and perhaps strided, is written where it is given. Raises InputError.
    """
    size = _payload_bytes(numel) if numel > 0 else 0
    if payload.dtype != torch.uint8 or payload.dim() == 0 or not size or payload.shape[-1] != size:
        raise InputError(
            f"nf4.dequantise: payload is {payload.dtype} {list(payload.shape)}; "
            f"{numel} elements travel as torch.uint8 [..., {size}]"
        )
    shape = (*payload.shape[:-1], numel)
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=payload.device)
    elif out.shape != shape or out.dtype != dtype or out.device != payload.device:
        raise InputError(
            f"nf4.dequantise: out is {out.dtype} {list(out.shape)} on {out.device}; "
            f"the values are {dtype} {list(shape)} on {payload.device}"
        )
    check_element_type("nf4.dequantise", "out", out)
    check_dense_rows("nf4.dequantise", "out", out)
    check_dense_rows("nf4.dequantise", "payload", payload)
    try:
        rows, target = payload.view(-1, size), out.view(-1, numel)
    except RuntimeError:
        raise InputError(
            f"nf4.dequantise: payload strides {payload.stride()} and out strides {out.stride()} do not fold into "
            "rows; pass two-dimensional tensors"
        ) from None
    if payload.numel():
        torch.ops.flopcast.nf4_dequantise(rows, numel, target)
    return out


def _payload_bytes(numel: int) -> int:
    """``layout.payload_bytes`` in plain integers, which torch.compile can trace."""
    end = layout.scales_offset(numel) + layout.num_blocks(numel)
    return -(-end // layout.ALIGNMENT) * layout.ALIGNMENT


def _quantise(values: Tensor, out: Tensor) -> None:
    _check_start("nf4.quantise", "out", out)
    kernel.quantise(values, out)


def _dequantise(payloads: Tensor, numel: int, out: Tensor) -> None:
    _check_start("nf4.dequantise", "payload", payloads)
    kernel.dequantise(payloads, numel, out)


def _check_start(op: str, name: str, payload: Tensor) -> None:
    apart = payload.stride(0) if payload.dim() == 2 and payload.shape[0] > 1 else 0
    if (payload.data_ptr() | apart) % layout.ALIGNMENT:
        raise InputError(f"{op}: {name} does not start on a multiple of {layout.ALIGNMENT} bytes; allocate it alone")


# PyTorch's own refusal of an odd start is about storage offsets; and what runs on a CPU must run on a GPU.
def _reference_quantise(values: Tensor, out: Tensor) -> None:
    _check_start("nf4.quantise", "out", out)
    reference.quantise(values, out)


def _reference_dequantise(payloads: Tensor, numel: int, out: Tensor) -> None:
    _check_start("nf4.dequantise", "payload", payloads)
    reference.dequantise(payloads, numel, out.dtype, out)


def _fake_quantise(values: Tensor, out: Tensor) -> None:
    return None


def _fake_dequantise(payloads: Tensor, numel: int, out: Tensor) -> None:
    return None


register("nf4_quantise(Tensor values, Tensor(a!) out) -> ()", _reference_quantise, _quantise, _fake_quantise)
register(
    "nf4_dequantise(Tensor payloads, int numel, Tensor(a!) out) -> ()",
    _reference_dequantise,
    _dequantise,
    _fake_dequantise,
)
