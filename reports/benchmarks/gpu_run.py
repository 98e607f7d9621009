"""What there is to measure of training on one GPU, in one call without a network and within eight minutes.

``python reports/benchmarks/gpu_run.py OUT`` runs, each in a process of its own: a PLaMo of 1 billion parameters with
the kernels and without, compiled and not (``flopcast.trainer.throughput``); then the closed loop, which profiles the
machine, trains four models on it and forecasts each by a fit to the others (``closed_loop.py --machine gpu``). Files in
OUT, each written as soon as it is there: ``gpu_run.json`` (what ran, how long, how it ended), ``gpu_run.log`` (what
they said), ``throughput.json``, ``throughput.jsonl``, a trace, ``closed-loop.json``, ``profile.json``. ``--tiny``
rehearses all of it on any machine. Exits 1 if a step failed, and 2 at once where a package is missing.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from flopcast.files import write_atomically

# What the steps import and a machine that has PyTorch may lack.
PACKAGES = ("torch", "numpy", "pandas", "scipy", "pydantic", "cyclopts", "rich", "safetensors", "sentencepiece")
CLOSED_LOOP = Path(__file__).with_name("closed_loop.py")
TINY_MODEL = """name = "plamo-tiny"
hidden = 64
vocab_size = 512
context = 64
num_layers = 2

[[layers]]
num_heads = 2
num_kv_heads = 1
head_dim = 32
kv_layout = "tiled"
intermediate = 128
gated = true
parallel = true
num_norms = 1
"""


def steps(out: Path, folder: Path, tiny: bool) -> dict[str, tuple[list[str], float]]:
    """Each step's command, and the share of the time that it may take of what is left."""
    throughput = [sys.executable, "-m", "flopcast.trainer.throughput", str(out), "--seconds", "170"]
    if tiny:
        model = folder / "plamo-tiny.toml"
        model.write_text(TINY_MODEL, encoding="utf-8")
        load = ["--seq-len", "32", "--micro-batch", "1", "--steps", "3", "--warmup", "1"]
        throughput += ["--model", str(model), *load, "--variants", "eager", "kernels"]
    machine = ["--machine", "tiny" if tiny else "gpu", "--output", str(out / "closed-loop.json")]
    loop = [sys.executable, str(CLOSED_LOOP), *machine, "--folder", str(folder)]
    return {"throughput": (throughput, 0.45), "closed loop": (loop, 1.0)}


def run(out: Path, seconds: float = 450.0, tiny: bool = False) -> dict[str, Any]:
    """The document of what ran; a step that outlasts its time is ended, and what it wrote stays."""
    begin = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary, (out / "gpu_run.log").open("wb") as log:
        folder = Path(temporary)
        for name, (command, share) in steps(out.resolve(), folder, tiny).items():
            started = time.monotonic()
            code = _ended(command, share * (seconds - (started - begin)), log)
            profile = folder / "profile.json"
            if profile.exists():
                shutil.copyfile(profile, out / "profile.json")
            found[name] = {"exit_code": code, "elapsed_s": round(time.monotonic() - started, 1)}
            write_atomically(out / "gpu_run.json", (json.dumps(found, indent=1) + "\n").encode())
            print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    return found


def _ended(command: list[str], seconds: float, log: IO[bytes]) -> int | None:
    """Its exit code, None where its time was over."""
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)  # noqa: S603
    try:
        return process.wait(timeout=max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end_group(process)


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """A step's own children end with it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def main() -> int:
    """Entry point; 0 if every step ended well, 2 where a package is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=450.0)
    parser.add_argument("--tiny", action="store_true", help="small models, as a rehearsal")
    chosen = parser.parse_args()
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        print(f"gpu_run needs {', '.join(missing)}; docs/gpu-run.md says how wheels travel", file=sys.stderr)
        return 2
    found = run(chosen.out, chosen.seconds, chosen.tiny)
    return 1 if any(step["exit_code"] != 0 for step in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
