"""What rotary position embedding costs, per element of the queries and keys it turns."""

from flopcast.kernels.pointwise import Pass

# One launch turns q and k in place: read, write; backward is the same kernel with -sin.
FORWARD, BACKWARD = Pass(4, 1), Pass(4, 1)
# x * cos + rotate_half(x) * sin op by op, for q and for k.
EAGER_FORWARD, EAGER_BACKWARD = Pass(20, 8), Pass(30, 10)


def moved_bytes(
    tokens: int, num_heads: int, head_dim: int, element_bytes: int, num_positions: int | None = None
) -> float:
    """The least that a pass over ``num_heads`` query and key heads moves: read, write, and a token's angles in fp32.

    Packed documents share the angles of ``num_positions``, and each token's position (int64) is read.
    """
    angles = tokens if num_positions is None else num_positions
    positions = 0 if num_positions is None else 8 * tokens
    return tokens * 2.0 * num_heads * head_dim * element_bytes + angles * head_dim * 4 + positions
