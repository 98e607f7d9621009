"""What cross-entropy over the logits moves, per logit."""

from flopcast.kernels.pointwise import Pass

# Read the logits for the sum of exponentials; read them again and write their gradient in their place.
FORWARD, BACKWARD = Pass(2, 1), Pass(4, 1)
