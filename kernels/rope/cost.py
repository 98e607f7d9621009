"""What rotary position embedding costs, per element of the queries and keys it turns."""

from flopcast.kernels.pointwise import Pass

FLOP_PER_ELEMENT = 3  # two products and a sum for each of a pair

# One launch turns q and k in place: read, write; backward is the same kernel with -sin.
FORWARD, BACKWARD = Pass(4, 1), Pass(4, 1)
# x * cos + rotate_half(x) * sin op by op, for q and for k.
EAGER_FORWARD, EAGER_BACKWARD = Pass(20, 8), Pass(30, 10)


def moved_bytes(tokens: int, num_heads: int, head_dim: int, element_bytes: int) -> float:
    """The least that a pass over ``num_heads`` query and key heads moves: read, write, and a token's angles in fp32."""
    return tokens * (2.0 * num_heads * head_dim * element_bytes + head_dim * 4)
