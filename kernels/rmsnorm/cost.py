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
EAGER_ADD_FORWARD, EAGER_ADD_BACKWARD = Pass(6, 1), Pass(6, 1)
