"""Forecast, then measure, on this machine: profile it, train models on it, forecast each by a fit to the others.

``python reports/benchmarks/closed_loop.py`` writes ``reports/measurements/closed-loop-cpu.json``: the profile, the
models and the log of every run, from which ``flopcast.reports.closed_loop`` works out the errors again. ``--machine gpu
--output closed-loop-gpu.json`` does the same with models of 160 million to 2.7 billion parameters on one GPU in a few
minutes, and needs no network.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flopcast.files import write_atomically
from flopcast.reports.closed_loop import FILE, as_document, replay

PIECES = 2048  # of the tokenizer; a model may have more rows than it uses
KEPT = ("event", "model", "ranks", "plan", "dtype", "device", "torch", "step", "step_s", "loss", "memory_bytes")
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Shape:
    """A model of PLaMo's block, and its training: ``micro_batch`` sequences in each of ``passes`` passes per rank."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    micro_batch: int
    passes: int
    recompute: str = "none"


@dataclass(frozen=True)
class Machine:
    """``ranks`` processes train every shape for ``steps`` optimizer steps."""

    ranks: int
    strategy: str
    seq_len: int
    vocabulary: int
    steps: int
    shapes: dict[str, Shape]
    quick: bool = False


MACHINES = {
    "cpu": Machine(
        ranks=2,
        strategy="zero3",
        seq_len=256,
        vocabulary=2048,
        steps=16,
        shapes={
            "plamo-3m": Shape(4, 192, 512, 6, 2, 32, 4, 2),
            "plamo-9m": Shape(6, 320, 896, 10, 2, 32, 4, 2),
            "plamo-26m": Shape(8, 512, 1408, 16, 2, 32, 4, 2),
        },
    ),
    "gpu": Machine(
        ranks=1,
        strategy="ddp",
        seq_len=2048,
        vocabulary=50432,
        steps=25,
        shapes={
            "plamo-160m": Shape(12, 768, 2496, 6, 1, 128, 8, 1),
            "plamo-400m": Shape(24, 1024, 3328, 8, 1, 128, 8, 1),
            "plamo-1.4b": Shape(24, 2048, 6656, 16, 2, 128, 4, 2),
            "plamo-2.7b": Shape(32, 2560, 8320, 20, 4, 128, 4, 1, "full"),
        },
    ),
    "tiny": Machine(
        ranks=1,
        strategy="ddp",
        seq_len=64,
        vocabulary=2048,
        steps=12,
        shapes={
            "tiny-64": Shape(2, 64, 192, 2, 1, 32, 2, 1),
            "tiny-128": Shape(2, 128, 384, 4, 1, 32, 2, 1),
            "tiny-192": Shape(2, 192, 512, 6, 2, 32, 2, 1),
        },
        quick=True,
    ),
}


def model_toml(name: str, machine: Machine) -> str:
    """The model's file."""
    shape = machine.shapes[name]
    return (
        f'name = "{name}"\nhidden = {shape.hidden}\nvocab_size = {machine.vocabulary}\ncontext = {machine.seq_len}\n'
        f"num_layers = {shape.layers}\n\n[[layers]]\nnum_heads = {shape.heads}\nnum_kv_heads = {shape.kv_heads}\n"
        f'head_dim = {shape.head_dim}\nkv_layout = "tiled"\nintermediate = {shape.intermediate}\n'
        "gated = true\nparallel = true\nnum_norms = 1\n"
    )


def settings_toml(folder: Path, name: str, machine: Machine) -> str:
    """The settings of one run. Of a single rank it is ended from outside, so that no large checkpoint is written."""
    shape = machine.shapes[name]
    batch = shape.micro_batch * shape.passes * machine.ranks
    steps = machine.steps if machine.ranks > 1 else 10**6
    return (
        f'output = "{folder / name}"\nmodel = {{name = "{folder / name}.toml"}}\n'
        f'[plan]\nstrategy = "{machine.strategy}"\nseq_len = {machine.seq_len}\nmicro_batch = {shape.micro_batch}\n'
        f'global_batch = {batch}\nrecompute = "{shape.recompute}"\n[optimizer]\nnum_steps = {steps}\n'
        f'[data]\nfolder = "{folder / "data"}"\nvocab_size = {PIECES}\n'
        f'sources = [{{name = "words", weight = 1.0, path = "{folder / "words.jsonl"}"}}]\n'
    )


def write_text(path: Path) -> None:
    """Long documents of invented words, some common and some rare: enough of them for the vocabulary."""
    draw = random.Random(0)  # noqa: S311
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(6000)]
    lines = []
    for _ in range(60):
        chosen = [words[int(draw.random() ** 2 * len(words))] for _ in range(6000)]
        lines.append(json.dumps({"text": " ".join(chosen)}))
    path.write_text("\n".join(lines), encoding="utf-8")


def command(machine: Machine, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """A module of flopcast on the machine's ranks, each on a thread of its own where they share a CPU."""
    if machine.ranks == 1:
        return [sys.executable, "-m", *arguments], dict(os.environ)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={machine.ranks}", "-m"]
    return [sys.executable, *torchrun, *arguments], {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(machine: Machine, *arguments: str) -> None:
    """Start it and wait."""
    line, environment = command(machine, *arguments)
    subprocess.run(line, check=True, env=environment, stdout=sys.stderr)  # noqa: S603


def train(machine: Machine, config: Path, log: Path) -> list[dict[str, Any]]:
    """The records of one run of the machine's steps."""
    if machine.ranks > 1:
        run(machine, "flopcast.trainer", str(config))
        return records(log)
    line, environment = command(machine, "flopcast.trainer", str(config))
    deadline = time.monotonic() + TIMEOUT_S
    with subprocess.Popen(line, env=environment, stdout=sys.stderr) as process:  # noqa: S603
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
            if sum("event" not in record for record in records(log)) >= machine.steps:
                break
        process.kill()
    return records(log)


def records(log: Path) -> list[dict[str, Any]]:
    """The whole lines of a log so far, reduced to what the replay needs."""
    if not log.exists():
        return []
    found = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the last line, cut short
            continue
        if record.get("event", "start") == "start":
            found.append({key: record[key] for key in KEPT if key in record})
    return found


def measure(machine: Machine, folder: Path, output: Path) -> dict[str, Any]:
    """Profile, then train each model; the document without its results, in ``output`` after every one of them."""
    write_text(folder / "words.jsonl")
    profile = folder / "profile.json"
    run(machine, "flopcast", "profile", "-o", str(profile), *(["--quick"] if machine.quick else []))
    models: dict[str, str] = {}
    logs: dict[str, list[dict[str, Any]]] = {}
    document = {"models": models, "logs": logs, "profile": json.loads(profile.read_text(encoding="utf-8"))}
    for name in machine.shapes:
        write_atomically(output, (json.dumps(document) + "\n").encode())
        (folder / f"{name}.toml").write_text(model_toml(name, machine), encoding="utf-8")
        config = folder / f"{name}-run.toml"
        config.write_text(settings_toml(folder, name, machine), encoding="utf-8")
        found = train(machine, config, folder / name / "log.jsonl")
        steps = [record for record in found if "event" not in record]
        if len(steps) < machine.steps:
            print(f"{name} stopped after {len(steps)} steps and is left out", file=sys.stderr)
            continue
        for record in found:
            if "model" in record:
                record["model"] = {"name": name}
        models[name], logs[name] = model_toml(name, machine), found
    # It is an hour's work, and what is made of it may fail.
    write_atomically(output, (json.dumps(document) + "\n").encode())
    return document


def main() -> None:
    """Measure, work out the errors, write the document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--machine", choices=list(MACHINES), default="cpu")
    parser.add_argument("--output", type=Path, default=FILE)
    parser.add_argument("--folder", type=Path, help="keep profile, logs and models here")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (chosen.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        document = as_document(measure(MACHINES[chosen.machine], folder, chosen.output))
    write_atomically(chosen.output, (json.dumps(document, indent=1) + "\n").encode())
    for row in replay(document).rows:
        print(row.sentence())


if __name__ == "__main__":
    main()
