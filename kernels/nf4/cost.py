"""What quantising and dequantising move in the quantised all-gather."""

import numpy as np
from numpy.typing import NDArray

from flopcast.kernels.nf4.format import payload_bytes


def conversion_bytes(num_elements: NDArray[np.float64]) -> NDArray[np.float64]:
    """Memory traffic of either: the 16-bit values once (a group waits in registers), the payload once."""
    return num_elements * 2 + payload_bytes(np.ceil(num_elements).astype(np.int64))
