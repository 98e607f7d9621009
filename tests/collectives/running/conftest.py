"""Starts several ranks, one process each, on one machine."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CASES = ("quantised_all_gather_cases", "torus_all_reduce_cases", "fsdp2_cases")
Outcome = dict[str, list[str]]
Commands = list[list[str]]


def run_together(commands: Commands, folder: Path, limit_s: float) -> list[int]:
    """Exit codes of processes that run at once; standard error of number i goes to ``folder/stderr<i>``.

    None outlives the call; one that takes longer than ``limit_s`` is an error.
    """
    end = time.monotonic() + limit_s
    with ExitStack() as stack:
        processes = []
        for number, command in enumerate(commands):
            stderr = stack.enter_context((folder / f"stderr{number}").open("wb"))
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        return [process.wait(timeout=max(1.0, end - time.monotonic())) for process in processes]


@pytest.fixture(scope="session")
def together() -> Callable[[Commands, Path, float], list[int]]:
    """``run_together``."""
    return run_together


@pytest.fixture(scope="session")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Every case of the modules in ``CASES`` on four gloo ranks: what each rank says, "passed" or the traceback."""
    folder = tmp_path_factory.mktemp("four_ranks")
    script = str(HERE / "gloo_cases.py")
    run_together([[sys.executable, script, str(rank), "4", str(folder), *CASES] for rank in range(4)], folder, 100)
    outcome: Outcome = {}
    for rank in range(4):
        path = folder / f"outcome{rank}.json"
        errors = (folder / f"stderr{rank}").read_text()[-2000:]
        for case, text in (json.loads(path.read_text()) if path.exists() else {"start": errors}).items():
            outcome.setdefault(case, []).append(text)
    return outcome
