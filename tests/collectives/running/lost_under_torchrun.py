"""``torchrun --nproc-per-node 2 lost_under_torchrun.py``: rank 1 is killed, and rank 0 says what it hears of that."""

import os
import signal
import sys

import torch
import torch.distributed as dist

from flopcast.collectives.running.agreement import CollectiveError, reporting
from flopcast.collectives.running.surroundings import process_group


def main() -> None:
    try:
        with process_group("gloo", 60.0), reporting("all_reduce"):
            dist.barrier()
            if dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            dist.all_reduce(torch.ones(1))
    except CollectiveError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
