"""What rotary position embedding costs, per element of the queries and keys it turns."""

from flopcast.kernels.pointwise import Pass

# One launch turns q and k in place: read, write; backward is the same kernel with -sin.
FORWARD, BACKWARD = Pass(4, 1), Pass(4, 1)
# x * cos + rotate_half(x) * sin op by op, for q and for k.
EAGER_FORWARD, EAGER_BACKWARD = Pass(20, 8), Pass(30, 10)
