"""What torch.distributed wants done with care: two calls whose names changed, and the end of a process group."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeAlias

import torch.distributed as dist

Call: TypeAlias = "Callable[..., dist.Work | None]"


RELEASE_S = 0.1


def leave_process_group() -> None:
    """Destroy every group, and give gloo's threads the time to let go of the last tensors.

    They take the interpreter's lock for it, and one that asks for the lock while the interpreter ends aborts the whole
    process, after all its work is done (github.com/pytorch/pytorch/issues/190489). Sleeping releases the lock.

    A rank of torchrun's that an error brings here is deaf to SIGTERM from now on: when one rank has died torchrun sends
    it to the others within a tenth of a second, and what they have to say of it would be lost.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if sys.exc_info()[0] is not None and "TORCHELASTIC_RUN_ID" in os.environ and in_main:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    dist.destroy_process_group()
    time.sleep(RELEASE_S)


def _first(new: str, old: str) -> Call:
    call: Call = getattr(dist, new, None) or getattr(dist, old)
    return call


# PyTorch 2.13 deprecates the old names, 2.9 lacks the new.
# (output, input, group=None, async_op=False): output holds every rank's input, in rank order.
all_gather_single = _first("all_gather_single", "all_gather_into_tensor")
# (output, input, op=SUM, group=None, async_op=False): output is this rank's part of the reduced input.
reduce_scatter_single = _first("reduce_scatter_single", "reduce_scatter_tensor")
