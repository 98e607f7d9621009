"""``python gloo_cases.py RANK RANKS FOLDER MODULE...``: joins a gloo group and runs every ``case_*`` of the modules.

The modules lie beside this file; every rank runs the same cases in the same order, and says on disk how each went.
"""

import importlib
import json
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

TIMEOUT_S = 30


def main() -> None:
    rank, num_ranks, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=TIMEOUT_S),
    )
    said: dict[str, str] = {}
    for module in sys.argv[4:]:
        for name, case in vars(importlib.import_module(module)).items():
            if not name.startswith("case_"):
                continue
            try:
                case()
                said[f"{module}.{name}"] = "passed"
            except Exception:
                said[f"{module}.{name}"] = traceback.format_exc()
            (folder / f"outcome{rank}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
