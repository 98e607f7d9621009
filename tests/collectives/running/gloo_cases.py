"""``python gloo_cases.py RANKS FOLDER MODULE...``: every ``case_*`` of the modules on several gloo ranks.

The modules lie beside this file; every rank runs the same cases in the same order, and says on disk how each went.
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


def work(rank: int, num_ranks: int, folder: Path, modules: list[ModuleType]) -> None:
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
    gloo_ranks.run(work, num_ranks, folder, TIMEOUT_S, modules)


if __name__ == "__main__":
    main()
