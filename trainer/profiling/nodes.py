"""The ranks that measure together: what each one finds, brought to rank 0 and put side by side."""

import json
import os
import shutil
import socket
import subprocess
from typing import Any

import torch
import torch.distributed as dist

from flopcast.collectives.running.benchmark import Options, run
from flopcast.kernels.environment import clocks, environment
from flopcast.simulator.profile import Device, Sample, Scalar, Skipped, combined
from flopcast.trainer.agreement import gather_text
from flopcast.trainer.processes import gpus_per_node

Record = dict[str, Any]
COLLECTIVES = ("all_gather", "reduce_scatter", "all_reduce")
# A second of work or more for a GPU, under which clocks and power show what it sustains: nvidia-smi takes some tenths
# to answer, and more than a thousand launches would not fit the queue.
BUSY_SIDE, BUSY_PRODUCTS = 8192, 600
# How drivers of different years name the reasons for which a GPU's clock is held back.
THROTTLE_QUERIES = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")


def surroundings(device: torch.device) -> Device:
    """The device of this rank, with clocks, power cap and throttle reasons read while it works."""
    found: dict[str, Any] = dict(environment(device))
    if device.type == "cuda":
        a = torch.randn(BUSY_SIDE, BUSY_SIDE, device=device, dtype=torch.bfloat16)
        for _ in range(BUSY_PRODUCTS):
            a @ a
        found |= clocks(device) | throttling(device)
        torch.cuda.synchronize(device)
    flat: dict[str, Scalar] = {key: v for key, v in found.items() if isinstance(v, str | int | float | bool)}
    return Device(host=socket.gethostname() or "host", index=int(os.environ.get("LOCAL_RANK", "0")), environment=flat)


def throttling(device: torch.device) -> dict[str, str]:
    """The reasons for which the driver holds the clock back, as its bit mask; empty where it does not say."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    uuid = torch.cuda.get_device_properties(device).uuid
    for query in THROTTLE_QUERIES:
        command = [program, f"--query-gpu={query}", "--format=csv,noheader", f"--id=GPU-{uuid}"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603
        except (subprocess.SubprocessError, OSError):
            continue
        return {"throttle_reasons": answer.stdout.strip()}
    return {}


def devices(mine: Device) -> list[Device]:
    """Every rank's device, in the order of the ranks."""
    return [Device.model_validate_json(text) for text in gather_text(mine.model_dump_json())]


def side_by_side(mine: list[Record]) -> tuple[list[Sample], list[Skipped]]:
    """The records of all ranks as one sample each, the median over ranks beside each rank's own."""
    everyone = [json.loads(text) for text in gather_text(json.dumps(mine))]
    samples, skipped = [], []
    for place, record in enumerate(mine):
        records = [records[place] for records in everyone]
        present = [r for r in records if "skipped" not in r]
        if not present:
            skipped.append(Skipped(kind=record["kind"], arguments=record["arguments"], reason=record["skipped"][:300]))
            continue
        by_device = [r.get("median_s") for r in records]
        samples.append(combined(Sample(**present[0]), by_device, [r["spread"] for r in present]))
    return samples, skipped


def collectives(name: str, sizes: tuple[int, int], samples: int) -> tuple[list[Sample], list[Skipped]]:
    """One collective over all ranks, by its size; the same samples on every rank."""
    options = Options((name,), *sizes, factor=4, iterations=samples, warmup=2, dtype="float")
    report = run(options, quiet=True)
    rows = [] if report is None else [row for row in report.rows if not row.in_place]
    ranks, nodes = dist.get_world_size(), dist.get_world_size() // gpus_per_node()
    found = [
        Sample(
            kind="collective",
            arguments={"collective": row.collective, "bytes": row.num_bytes, "ranks": ranks, "nodes": max(nodes, 1)},
            median_s=row.time_s,
            spread=row.spread or 0.0,
            num_samples=samples,
            bytes=float(row.num_bytes),
        )
        for row in rows
    ]
    texts = gather_text(json.dumps([sample.model_dump(mode="json") for sample in found]))
    return [Sample(**sample) for sample in json.loads(texts[0])], []
