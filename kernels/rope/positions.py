"""Whether every position has a row in the tables, asked once for each tensor of positions."""

import weakref

import torch
from torch import Tensor

from flopcast.errors import InputError

# The tensors found good, by identity, with the version they had: the layers of a model share theirs, and looking at one
# on a GPU waits for the GPU. Tensors made under torch.inference_mode() count no versions, so nothing is known of them.
_known: dict[int, tuple["weakref.ref[Tensor]", int, int]] = {}


def check_positions(positions: Tensor, num_rows: int) -> None:
    """Refuse positions outside 0..num_rows - 1.

    While a CUDA graph is captured nothing can be read back, so nothing is checked; the kernel then makes a token with a
    position outside the tables NaN, and reads nothing outside them.
    """
    if positions.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    reference, version, rows = _known.get(id(positions), (None, -1, 0))
    if reference is not None and reference() is positions and version == positions._version and rows <= num_rows:
        return
    if positions.numel():
        lowest, highest = (int(value) for value in torch.stack(torch.aminmax(positions)).tolist())
        if lowest < 0 or highest >= num_rows:
            wrong = lowest if lowest < 0 else highest
            raise InputError(f"rope: position {wrong} is outside the tables of {num_rows} rows; make them longer")
    vouch_for(positions, num_rows)


def vouch_for(positions: Tensor, num_rows: int) -> None:
    """Note that ``positions`` lie in 0..num_rows - 1: found before they went to the GPU, it need not be waited for.

    Of an inference tensor nothing is noted: whether it was changed since cannot be told, so each call looks at it.
    """
    if positions.is_inference():
        return
    key = id(positions)
    _known[key] = (weakref.ref(positions, lambda _: _known.pop(key, None)), positions._version, num_rows)
