"""What normalising rows, and adding to the residual stream before it, costs."""

from flopcast.kernels.pointwise import Pass

# Fused: read x, write y; backward reads x and dy, writes dx (one read or write of a 16-bit element is 2 bytes).
FORWARD, BACKWARD = Pass(4, 1), Pass(6, 2)
# w * (x.float() * rsqrt(mean(x.float()^2) + eps)).bfloat16() op by op, with fp32 between the ops.
EAGER_FORWARD, EAGER_BACKWARD = Pass(36, 7), Pass(84, 14)
# torch.nn.functional.layer_norm is one kernel forward; its backward reads x and dy again for dw and db.
LAYER_NORM_FORWARD, LAYER_NORM_BACKWARD = Pass(4, 1), Pass(10, 2)
# Adding a branch to the residual stream: folded into the norm that follows, or by itself.
ADD_FORWARD, ADD_BACKWARD = Pass(4, 0), Pass(2, 0)
# A second branch at the same boundary, as a parallel block has: one more read, and its gradient is the first's.
SECOND_ADD_FORWARD, SECOND_ADD_BACKWARD = Pass(2, 0), Pass(0, 0)
EAGER_ADD_FORWARD, EAGER_ADD_BACKWARD = Pass(6, 1), Pass(6, 1)


def forward_bytes(rows: int, hidden: int, element_bytes: int, num_branches: int = 0) -> float:
    """The least that a forward pass moves: read x and the branches, write y, rstd and, of a sum, the stream; read w.

    rows * (hidden * element_bytes * (2 + branches + [branches > 0]) + 4) + hidden * element_bytes.
    """
    tensors = 2 + num_branches + (num_branches > 0)
    return rows * (hidden * element_bytes * tensors + 4.0) + hidden * element_bytes


def backward_bytes(rows: int, hidden: int, element_bytes: int, residual_gradient: bool = False) -> float:
    """The least that a backward pass moves: read s, dy, rstd, w and the residual gradient if any, write dx and dw.

    rows * (hidden * element_bytes * (3 + [residual gradient]) + 4) + 2 * hidden * element_bytes. The kernel's
    partial gradients of w, a row of fp32 that each block writes, are not among them: they stay in the last cache.
    """
    return rows * (hidden * element_bytes * (3 + residual_gradient) + 4.0) + 2 * hidden * element_bytes
