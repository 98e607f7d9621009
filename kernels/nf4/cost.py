"""The NF4 payload of the quantised all-gather: its exact size, and what quantising and dequantising move."""

import numpy as np
from numpy.typing import NDArray

from flopcast.kernels.nf4.format import payload_bytes

__all__ = ["dequantise_bytes", "payload_bytes", "quantise_bytes"]


def quantise_bytes(num_elements: NDArray[np.float64]) -> NDArray[np.float64]:
    """Memory traffic of quantising: read the 16-bit values once (a group waits in registers), write the payload."""
    return num_elements * 2 + payload_bytes(np.ceil(num_elements).astype(np.int64))


def dequantise_bytes(num_elements: NDArray[np.float64]) -> NDArray[np.float64]:
    """Memory traffic of dequantising: read the payload, write 16-bit values."""
    return num_elements * 2 + payload_bytes(np.ceil(num_elements).astype(np.int64))
