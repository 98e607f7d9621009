"""``python gloo_cases.py RANKS FOLDER MODULE``: every ``case_*`` of a module beside this file on several gloo ranks.

Every rank runs the same cases in the same order, and says on disk how each went.
"""

import importlib
import json
import sys
import traceback
from pathlib import Path
from types import ModuleType

import gloo_ranks
import torch.distributed as dist

TIMEOUT_S = 30


def work(rank: int, num_ranks: int, folder: Path, module: ModuleType) -> None:
    said: dict[str, str] = {}
    for name, case in vars(module).items():
        if not name.startswith("case_"):
            continue
        try:
            case()
            said[name] = "passed"
        except Exception:
            said[name] = traceback.format_exc()
        (folder / f"outcome{rank}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


def main() -> None:
    num_ranks, folder = int(sys.argv[1]), Path(sys.argv[2])
    gloo_ranks.run(work, num_ranks, folder, TIMEOUT_S, importlib.import_module(sys.argv[3]))


if __name__ == "__main__":
    main()
