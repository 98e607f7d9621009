"""What every op asks of its tensors, before anything is launched."""

import torch
from torch import Tensor

from flopcast.errors import InputError

ELEMENT_TYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def check_element_type(op: str, name: str, tensor: Tensor) -> None:
    """Refuse all but tensors of fp32, fp16 and bf16."""
    check_tensor(op, name, tensor)
    if tensor.dtype not in ELEMENT_TYPES:
        raise InputError(f"{op}: {name} has dtype {tensor.dtype}; use torch.float32, float16 or bfloat16")


def check_tensor(op: str, name: str, value: object) -> None:
    """Refuse what is no tensor, such as a weight that a layer does not have."""
    if not isinstance(value, Tensor):
        raise InputError(f"{op}: {name} is a {type(value).__name__}; give a tensor")


def check_dense_rows(op: str, name: str, tensor: Tensor) -> None:
    """Refuse a tensor whose last dimension is not contiguous: its rows cannot be read 16 bytes at a time."""
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise InputError(
            f"{op}: the last dimension of {name} has stride {tensor.stride(-1)}; call .contiguous() on it first"
        )


def check_same(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse tensors of different types or on different devices."""
    if tensor.dtype != other.dtype:
        raise InputError(f"{op}: {name} is {tensor.dtype} and {other_name} {other.dtype}; cast one to the other")
    if tensor.device != other.device:
        raise InputError(f"{op}: {name} is on {tensor.device} and {other_name} on {other.device}; move one")


def element_type(tensor: Tensor) -> str:
    """The name by which variants know the tensor's dtype, e.g. "bfloat16"."""
    return ELEMENT_TYPES[tensor.dtype]


def check_first_derivative(op: str) -> None:
    """Refuse a backward that is itself to be differentiated: a kernel has no derivative that autograd could follow."""
    if torch.is_grad_enabled():
        raise InputError(f"{op}: its backward has no derivative; leave out create_graph, or use the op of torch itself")
