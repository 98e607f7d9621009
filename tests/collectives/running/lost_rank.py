"""``python lost_rank.py RANKS FOLDER exit|stall``: the last of several gloo ranks is lost between two collectives.

Every other rank writes the error that it gets, and after how many seconds.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gloo_ranks
import torch
import torch.distributed as dist

from flopcast.collectives.running.agreement import CollectiveError
from flopcast.collectives.running.quantised_all_gather import quantised_all_gather
from flopcast.collectives.running.torus_all_reduce import torus_all_reduce

TIMEOUT_S = 4


def work(rank: int, num_ranks: int, folder: Path, how: str) -> None:
    mesh = dist.init_device_mesh("cpu", (2, num_ranks // 2))
    calls: dict[str, Callable[[], object]] = {
        "gather": lambda: quantised_all_gather(torch.empty(num_ranks * 5000), torch.ones(5000), check=False),
        "torus": lambda: torus_all_reduce(torch.ones(5000), mesh, chunk_bytes=4096, check=False),
    }
    for call in calls.values():
        call()
    if rank == num_ranks - 1:
        if how == "stall":
            time.sleep(2.5 * TIMEOUT_S)
        os._exit(1)
    said = {}
    for name, call in calls.items():
        begin = time.monotonic()
        try:
            call()
            said[name] = ["finished", time.monotonic() - begin]
        except CollectiveError as error:
            said[name] = [str(error), time.monotonic() - begin]
    (folder / f"said{rank}.json").write_text(json.dumps(said))
    # Leaving in the ordinary way would wait for the lost rank.
    os._exit(0)


def main() -> None:
    num_ranks, folder, how = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    gloo_ranks.run(work, num_ranks, folder, TIMEOUT_S, how)


if __name__ == "__main__":
    main()
