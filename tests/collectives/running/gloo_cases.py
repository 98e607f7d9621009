"""``python gloo_cases.py RANKS FOLDER MODULE...``: every ``case_*`` of the modules on several gloo ranks.

The modules lie beside this file; every rank runs the same cases in the same order, and says on disk how each went.
Ranks are forked after the imports, which cost as much as the cases.
"""

import importlib
import json
import multiprocessing
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import torch.distributed as dist

TIMEOUT_S = 30


def work(rank: int, num_ranks: int, folder: Path, modules: list[ModuleType]) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=TIMEOUT_S),
    )
    said: dict[str, str] = {}
    for module in modules:
        for name, case in vars(module).items():
            if not name.startswith("case_"):
                continue
            try:
                case()
                said[f"{module.__name__}.{name}"] = "passed"
            except Exception:
                said[f"{module.__name__}.{name}"] = traceback.format_exc()
            (folder / f"outcome{rank}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


def main() -> None:
    num_ranks, folder = int(sys.argv[1]), Path(sys.argv[2])
    modules = [importlib.import_module(name) for name in sys.argv[3:]]
    forking = multiprocessing.get_context("fork")
    ranks = [forking.Process(target=work, args=(rank, num_ranks, folder, modules)) for rank in range(num_ranks)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()


if __name__ == "__main__":
    main()
