"""How fast one device trains a model, variant by variant: ``python -m flopcast.trainer.throughput OUT``.

The engine of ``flopcast train`` on random tokens that are one document each, so that the FLOPs of the causal convention
are those that were done. PyTorch's attention kernels are timed first and the fastest is used; micro-batches that do not
fit are halved. Writes ``throughput.json`` after every variant and a line per step to ``throughput.jsonl``, so that what
was found survives whatever comes after, and a trace of one step of the variants asked for. Exits 1 if a variant failed.
"""

import argparse
import gc
import json
import statistics
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from flopcast.files import write_atomically
from flopcast.kernels import microbenchmark
from flopcast.kernels.environment import clocks, environment
from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.catalogue import load_model
from flopcast.simulator.model import Model
from flopcast.simulator.plan import Plan
from flopcast.trainer.engine import Engine, OptimizerSettings, build
from flopcast.trainer.measurement import Meter, profiled
from flopcast.trainer.processes import process_group
from flopcast.trainer.settings import LogTable

CONVENTION: Literal["causal"] = "causal"
# 1.01 billion parameters in the shape of PLaMo-13B: heads of 128, 8 of them to a key head, 3.25 features in the MLP for
# each hidden one.
PLAMO_1B = Model(
    "plamo-1b",
    hidden=2048,
    vocab_size=50432,
    context=4096,
    layers=(TransformerBlock(Attention(16, 2, 128, kv_layout="tiled"), Mlp(6656), parallel=True, num_norms=1),) * 16,
)


@dataclass(frozen=True)
class Variant:
    """A way to run the same layers."""

    fused_kernels: bool
    compiled: bool


# The fastest first, by forecast, then what the kernels save, should the time run out.
VARIANTS = {
    "kernels-compiled": Variant(fused_kernels=True, compiled=True),
    "kernels": Variant(fused_kernels=True, compiled=False),
    "eager": Variant(fused_kernels=False, compiled=False),
    "compiled": Variant(fused_kernels=False, compiled=True),
}
ATTENTION = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@dataclass(frozen=True)
class Load:
    """``passes`` micro-batches of ``micro_batch`` sequences in each of ``steps`` optimizer steps, of which the first
    ``warmup`` are not counted: they compile and allocate.
    """

    seq_len: int = 4096
    micro_batch: int = 8
    passes: int = 4
    steps: int = 10
    warmup: int = 3

    def halved(self) -> Iterator["Load"]:
        """The load itself, then the same sequences in twice as many passes of half as many, and so on."""
        yield self
        if self.micro_batch % 2 == 0:
            yield from replace(self, micro_batch=self.micro_batch // 2, passes=self.passes * 2).halved()


def run(
    out: Path,
    device: torch.device,
    model: Model = PLAMO_1B,
    load: Load | None = None,
    variants: Sequence[str] = tuple(VARIANTS),
    traced: Sequence[str] = ("kernels-compiled",),
    seconds: float = 240.0,
) -> dict[str, Any]:
    """The document, also written to ``out``; no variant begins when ``seconds`` are over. Needs a process group."""
    load = load or Load()
    begin = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {
        "environment": environment(device),
        "model": {"name": model.name, "parameters": model.num_parameters, "layers": model.num_layers},
        "load": vars(load),
        "convention": CONVENTION,
        "attention": attention_times(device, model, load),
        "variants": {},
    }
    for name in variants:
        try:
            if time.monotonic() - begin < seconds:
                with _fastest(document["attention"]):
                    found = _fitting(name, out, device, model, load, name in traced)
            else:
                found = {"skipped": "the time was spent"}
        except Exception:
            found = {"failed": traceback.format_exc()}
        document["variants"][name] = found
        document["environment_at_end"] = environment(device)
        write_atomically(out / "throughput.json", (json.dumps(document, indent=1) + "\n").encode())
        print(f"{name}: {_told(found)}", file=sys.stderr, flush=True)
        _forget(device)
    return document


def attention_times(device: torch.device, model: Model, load: Load) -> dict[str, float | str]:
    """Seconds of forward and backward of one layer's attention by PyTorch's kernels, or why one cannot; GPUs only."""
    if device.type != "cuda":
        return {}
    block = model.layers[0]
    assert isinstance(block, TransformerBlock)
    sizes = block.attention
    shape = (load.micro_batch, load.seq_len, sizes.num_heads, sizes.num_kv_heads, sizes.head_dim)
    records = microbenchmark.attention(device, [shape], backends=tuple(ATTENTION), samples=5)
    found: dict[str, float | str] = {}
    for record in records:
        if record["arguments"]["backward"]:
            found[record["arguments"]["backend"]] = record["median_s" if "median_s" in record else "skipped"]
    return found


def _fastest(times: dict[str, float | str]) -> AbstractContextManager[object]:
    """PyTorch tries the kernels in the order of their times; what is left to it where none was timed."""
    timed = {name: seconds for name, seconds in times.items() if isinstance(seconds, float)}
    order = [ATTENTION[name] for name in sorted(timed, key=timed.__getitem__)]
    return sdpa_kernel([*order, SDPBackend.MATH], set_priority=True) if order else nullcontext()


def _forget(device: torch.device) -> None:
    """Give back what a variant held: its graphs, its tensors."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _fitting(name: str, out: Path, device: torch.device, model: Model, load: Load, traced: bool) -> dict[str, Any]:
    """Measured with the largest micro-batches that fit, down from those of ``load``."""
    *larger, smallest = load.halved()
    for tried in larger:
        try:
            return _measured(name, out, device, model, tried, traced)
        except torch.OutOfMemoryError:
            print(f"{name}: micro-batches of {tried.micro_batch} do not fit", file=sys.stderr, flush=True)
        _forget(device)
    return _measured(name, out, device, model, smallest, traced)


def _measured(name: str, out: Path, device: torch.device, model: Model, load: Load, traced: bool) -> dict[str, Any]:
    variant = VARIANTS[name]
    plan = Plan(
        "ddp",
        num_gpus=1,
        seq_len=load.seq_len,
        micro_batch=load.micro_batch,
        grad_accum=load.passes,
        fused_kernels=variant.fused_kernels,
        compiled=variant.compiled,
    )
    meter = Meter(model, load.seq_len, load.micro_batch * load.passes, LogTable(convention=CONVENTION), device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    engine = build(
        model, plan, gpus_per_node=1, device=device, dtype=torch.bfloat16, seed=0, optimizer=OptimizerSettings()
    )
    generator = torch.Generator().manual_seed(0)
    shape = (load.passes, load.micro_batch, load.seq_len + 1)
    tokens = torch.randint(0, model.vocab_size, shape, generator=generator).to(device)
    records = []
    with (out / "throughput.jsonl").open("a", encoding="utf-8") as log:
        for step in range(1, load.steps + 1):
            started = time.perf_counter()
            loss = _step(engine, tokens)
            step_s = time.perf_counter() - started
            records.append({"variant": name, "step": step, "loss": loss, **meter.readings(step_s)})
            log.write(json.dumps(records[-1]) + "\n")
            log.flush()
    at_work = _clocks_at_work(engine, tokens, device)
    if traced:
        with profiled(out / f"trace-{name}", load.steps + 1, device):
            _step(engine, tokens)
    return _summary(records, load, meter) | at_work


def _clocks_at_work(engine: Engine, tokens: torch.Tensor, device: torch.device) -> dict[str, Any]:
    """Clocks, power and temperature while the device is in the middle of a step; nothing of a CPU."""
    if device.type != "cuda":
        return {}
    _passes(engine, tokens)
    found = clocks(device)
    engine.step()
    torch.cuda.synchronize(device)
    return {"clocks_at_work": found}


def _step(engine: Engine, tokens: torch.Tensor) -> float:
    """One optimizer step; reading the loss waits for the device."""
    losses = _passes(engine, tokens)
    engine.step()
    loss = float(torch.stack(losses).mean())
    if tokens.is_cuda:
        torch.cuda.synchronize()
    return loss


def _passes(engine: Engine, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Forward and backward of every micro-batch of a step; their losses."""
    last = len(tokens) - 1
    return [
        engine.accumulate(batch[:, :-1], batch[:, 1:], is_last=number == last) for number, batch in enumerate(tokens)
    ]


def _summary(records: list[dict[str, Any]], load: Load, meter: Meter) -> dict[str, Any]:
    counted = sorted(record["step_s"] for record in records[load.warmup :])
    median = statistics.median(counted)
    return {
        "micro_batch": load.micro_batch,
        "passes": load.passes,
        "steps": len(counted),
        "median_step_s": median,
        "shortest_step_s": counted[0],
        "longest_step_s": counted[-1],
        "first_step_s": records[0]["step_s"],
        **{name: meter.readings(median)[name] for name in ("tokens_per_s", "mfu", "memory_bytes")},
        "flop_per_step": meter.machine["flop_per_step"],
        "losses": [record["loss"] for record in records],
    }


def _told(found: dict[str, Any]) -> str:
    if "median_step_s" not in found:
        return str(found.get("skipped") or found["failed"].strip().splitlines()[-1])
    mfu = "" if found["mfu"] is None else f", MFU {found['mfu']:.1%} ({CONVENTION})"
    return f"{found['median_step_s'] * 1e3:.1f} ms a step, {found['tokens_per_s']:,.0f} tokens/s{mfu}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0 if no variant failed."""
    parser = argparse.ArgumentParser(prog="python -m flopcast.trainer.throughput")
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument(
        "--model", help="a catalogue name or a model's file; by default a PLaMo of 1 billion parameters"
    )
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--traced", nargs="*", choices=list(VARIANTS), default=["kernels-compiled"])
    for name in ("seq-len", "micro-batch", "passes", "steps", "warmup"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Load, name.replace("-", "_")))
    parser.add_argument("--seconds", type=float, default=240.0, help="time after which no variant begins")
    chosen = parser.parse_args(arguments)
    model = load_model(chosen.model) if chosen.model else PLAMO_1B
    load = Load(chosen.seq_len, chosen.micro_batch, chosen.passes, chosen.steps, chosen.warmup)
    with process_group() as device:
        document = run(chosen.out, device, model, load, chosen.variants, chosen.traced, chosen.seconds)
    return 1 if any("failed" in found for found in document["variants"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
