"""What the gated product of an MLP moves, per element of the hidden features."""

from flopcast.kernels.pointwise import Pass

# Read gate and up, write the product; backward reads both and the gradient, writes both gradients.
FORWARD, BACKWARD = Pass(6, 1), Pass(10, 1)


def forward_bytes(numel: int, element_bytes: int) -> float:
    """The least that a forward pass over ``numel`` elements moves."""
    return 3.0 * numel * element_bytes


def backward_bytes(numel: int, element_bytes: int) -> float:
    """The least that a backward pass moves."""
    return 5.0 * numel * element_bytes
