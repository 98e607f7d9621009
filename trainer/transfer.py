"""Copies from the host to a device that neither of them waits for."""

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``tensor`` on ``device``; where it is there already, itself.

    A copy from pageable memory to a GPU waits for all work before it; page-locked memory is kept by PyTorch until the
    copy is done.
    """
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
