"""Plans per second of one core: the search over LLaMA-65B on 2048 GPUs, and what other planners do in the same run.

Run ``python reports/benchmarks/search_rate.py [--python PEERS_PYTHON --calculon CALCULON_CHECKOUT]``; it writes
``search_rate.json`` beside itself. Peers run in the environment of PEERS_PYTHON: ``pip install llm-analysis pandas
psutil``, and a checkout of github.com/calculon-ai/calculon. Without it only the search is timed.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from flopcast.reports.benchmarks.result import write_result
from flopcast.simulator.catalogue import load_cluster, load_model
from flopcast.simulator.forecast import forecast
from flopcast.simulator.search import SearchRequest, search

REPEATS = 5
PEER_SECONDS = 5.0
DRIVER = Path(__file__).with_name("peer_rate.py")
ONE_CORE = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def search_once() -> dict[str, float]:
    """The whole search, ranking and final forecasts included."""
    model, cluster = load_model("llama-65b"), load_cluster("dgx-a100-80gb")
    started, cpu = time.perf_counter(), time.process_time()
    result = search(model, cluster, SearchRequest([2048]))
    cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - started
    return {"tried": result.num_plans, "cpu_s": cpu_s, "wall_s": wall_s, "plans_per_s": result.num_plans / cpu_s}


def list_once() -> dict[str, float]:
    """The same forecast of a list of plans, as compare makes it: every quantity of every plan by itself."""
    model, cluster = load_model("llama-65b"), load_cluster("dgx-a100-80gb")
    found = search(model, cluster, SearchRequest([2048])).found[0].best.plans
    plans = found.pick((np.arange(20_000) % len(found),))
    cpu = time.process_time()
    cast = forecast(model, cluster, plans)
    assert len(cast.step_s) == len(cast.memory.total) == len(plans)
    cpu_s = time.process_time() - cpu
    return {"tried": len(plans), "cpu_s": cpu_s, "plans_per_s": len(plans) / cpu_s}


def peer_once(python: str, peer: str, root: str) -> dict[str, float]:
    """One peer in its own process."""
    command = [python, str(DRIVER), peer, str(PEER_SECONDS), root]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=ONE_CORE)  # noqa: S603
    found: dict[str, float] = json.loads(done.stdout)
    return found


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Median and spread of the rate, in CPU seconds of one core."""
    rates = [run["plans_per_s"] for run in runs]
    legal = [run["legal"] / run["cpu_s"] for run in runs if "legal" in run]
    return {
        "plans_per_s": round(statistics.median(rates)),
        "least": round(min(rates)),
        "most": round(max(rates)),
        **({"legal_plans_per_s": round(statistics.median(legal))} if legal else {}),
        "plans": int(runs[0]["tried"]),
    }


def main(python: str | None, calculon: str | None) -> None:
    """Time everything in turn and write the result."""
    kinds: dict[str, list[dict[str, float]]] = {"flopcast search": [], "flopcast list of plans": []}
    peers = {"llm-analysis": ""} | ({"calculon": calculon} if calculon else {}) if python else {}
    search_once()
    for _ in range(REPEATS):
        kinds["flopcast search"].append(search_once())
        kinds["flopcast list of plans"].append(list_once())
        for peer, root in peers.items():
            assert python is not None
            kinds.setdefault(peer, []).append(peer_once(python, peer, root))
    rates = {name: summary(runs) for name, runs in kinds.items()}
    ours = rates["flopcast search"]["plans_per_s"]
    result = {
        "what": "plans costed per CPU second of one core, median over repeats in turn; peers' illegal plans count",
        "model": "LLaMA-65B, 2048 A100-80GB, 2048 sequences of 2048 tokens",
        "repeats": REPEATS,
        "rates": rates,
        "times_as_fast": {name: round(ours / rates[name]["plans_per_s"], 1) for name in peers},
    }
    write_result(__file__, result, np)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="interpreter of the environment that has the peers")
    parser.add_argument("--calculon", help="a checkout of calculon")
    arguments = parser.parse_args()
    main(arguments.python, arguments.calculon)
