"""Everything that needs a GPU, in one call: ``python -m flopcast.kernels.device_check OUT``.

Compiles the kernels on the device, checks the ops there, and runs the benchmarks, the most telling shapes first, until
the time is spent. Writes ``device_check.json`` after every step, so that what was found survives whatever comes after,
and ``kernels.csv``, ``kernels.json`` and ``kernels.png``. Exits 1 if a check failed.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flopcast.files import write_atomically
from flopcast.kernels import benchmark, block_benchmark, device_correctness, launch, microbenchmark, roofline
from flopcast.kernels.backend import backend
from flopcast.kernels.compilation import tabulated
from flopcast.kernels.environment import environment

# The shapes that the kernels are judged by, then the sweep; compiled peers take seconds to build per shape, so they run
# at the first ones only.
_JUDGED = {"tokens": (8192, 32768), "hidden": (5120,)}
_SWEEP = {"tokens": (1024, 4096, 16384, 65536, 131072), "hidden": (2048, 4096, 5120, 8192)}
_UNCOMPILED = ("flopcast", "eager", "torch", "liger", "quack")


def run(out: Path, device: torch.device, seconds: float = 420.0, quick: bool = False) -> dict[str, Any]:
    """The document, also written to ``out``; ``quick`` runs every step on small shapes, as a rehearsal on a CPU."""
    begin = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {"environment": environment(device), "steps": {}}

    def left() -> float:
        return seconds - (time.monotonic() - begin)

    def judged() -> dict[str, Any]:
        shapes: Any = {"tokens": (64,), "hidden": (256,), "providers": _UNCOMPILED} if quick else _JUDGED
        return benchmark.run(device, **shapes, samples=3 if quick else 30, budget_s=left() * 0.5)

    def sweep() -> dict[str, Any]:
        shapes: Any = {"tokens": (16,), "hidden": (128,)} if quick else _SWEEP
        return benchmark.run(device, **shapes, providers=_UNCOMPILED, samples=2 if quick else 10, budget_s=left() - 30)

    block: Any = {"tokens": 32, "hidden": 256, "intermediate": 128, "kv_heads": 1, "samples": 2} if quick else {}
    hidden = (64, 256) if quick else device_correctness.HIDDEN
    kinds = ("copy", "launch") if quick else ("copy", "launch", "gemm")
    steps: dict[str, Callable[[], Any]] = {
        "compilation": lambda: _compile_all(device),
        "correctness": lambda: device_correctness.run(device, hidden, 37 if quick else 1031),
        "judged": judged,
        "block": lambda: block_benchmark.run(device, **block),
        "microbenchmark": lambda: microbenchmark.run(device, quick, kinds),
        "sweep": sweep,
    }
    for name, step in steps.items():
        started = time.monotonic()
        try:
            found: Any = {"result": step()} if left() > 0 else {"skipped": "the time was spent"}
            json.dumps(found, allow_nan=False)  # a NaN fails its step alone
        except Exception:
            found = {"failed": traceback.format_exc()}
        document["steps"][name] = {**found, "elapsed_s": time.monotonic() - started}
        document["environment_at_end"] = environment(device)
        write_atomically(out / "device_check.json", (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
        print(f"{name}: {_told(name, document['steps'][name])}", file=sys.stderr, flush=True)
    _write_benchmark(document, out)
    return document


def failures(document: dict[str, Any]) -> list[str]:
    """What went wrong, in a line each: steps that raised and checks that did not hold."""
    steps = document["steps"]
    raised = [f"{name}: {_last_line(step['failed'])}" for name, step in steps.items() if "failed" in step]
    checks = steps.get("correctness", {}).get("result", [])
    raised += [f"{record['check']}: {record['reason']}" for record in checks if not record["ok"]]
    tables = [steps.get(name, {}).get("result") or {"rows": []} for name in ("judged", "sweep")]
    return raised + [line for table in tables for line in benchmark.failures(table)]


def _compile_all(device: torch.device) -> dict[str, Any]:
    """Registers and local memory of every variant of the table, as the driver reports them."""
    if backend().name != "cupy":
        return {"skipped": backend().reason}
    rows: list[dict[str, Any]] = []
    for variant in tabulated():
        if variant.dynamic_shared_bytes > launch.most_shared_bytes(device):
            continue  # a GPU with less takes another variant
        needed = launch.load(variant, device.index or 0)
        rows.append({"kernel": variant.kernel, "constants": " ".join(variant.defines), **needed})
    return {"variants": rows, "with_local_memory": sum(row["local_bytes"] > 0 for row in rows)}


def _write_benchmark(document: dict[str, Any], out: Path) -> None:
    """Both benchmarks in one table, as ``flopcast bench kernels`` writes it, and the figure."""
    results = [document["steps"][name].get("result") for name in ("judged", "sweep")]
    held = [result for result in results if result]
    if held:
        merged = {**held[0], "rows": [row for result in held for row in result["rows"]]}
        benchmark.write(merged, out)
        roofline.draw(merged, out / "kernels.png")


def _told(name: str, step: dict[str, Any]) -> str:
    if "result" not in step:
        return str(step["skipped"]) if "skipped" in step else _last_line(step["failed"])
    result = step["result"]
    if name == "correctness":
        return f"{sum(r['ok'] for r in result)} of {len(result)} checks hold"
    if name in ("judged", "sweep"):
        best = benchmark.best_of_the_others(result["rows"])
        lines = [
            f"  {r['op']} {r['pass']} {r['tokens']} x {r['hidden']}: {r['median_s'] * 1e6:.1f} us, "
            f"{(r['of_copy'] or 0) * 100:.0f} % of copy, {r['speed']:.2f}x {r['other']}"
            for r in best
        ]
        return "\n".join([f"{len(result['rows'])} rows", *lines])
    if name == "block":
        return f"{result['saved'] * 100:.1f} % of the eager block saved"
    return f"{step['elapsed_s']:.0f} s"


def _last_line(trace: str) -> str:
    return trace.strip().splitlines()[-1]


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 0 if all checks hold."""
    parser = argparse.ArgumentParser(prog="python -m flopcast.kernels.device_check")
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=420.0, help="time after which no new measurement starts")
    parser.add_argument("--quick", action="store_true", help="small shapes, as a rehearsal")
    chosen = parser.parse_args(arguments)
    device = torch.device("cuda", 0) if chosen.device == "cuda" else torch.device(chosen.device)
    document = run(chosen.out, device, chosen.seconds, chosen.quick)
    wrong = failures(document)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
