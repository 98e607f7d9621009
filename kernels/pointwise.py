"""Memory traffic of pointwise work: the unit in which every kernel's cost is stated."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Pass(NamedTuple):
    """Bytes through GPU memory per 16-bit element, and kernels launched, for one pass over an activation."""

    bytes_per_element: float | NDArray[np.float64]
    num_kernels: int


def traffic(
    num_elements: NDArray[np.float64], fused: NDArray[np.bool_], when_fused: Pass, otherwise: Pass
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bytes moved and kernels launched for ``num_elements`` elements: one pass where ``fused``, the other elsewhere."""
    per_element = np.where(fused, when_fused.bytes_per_element, otherwise.bytes_per_element)
    num_kernels = np.where(fused, when_fused.num_kernels, otherwise.num_kernels)
    return num_elements * per_element, num_kernels.astype(np.float64)
