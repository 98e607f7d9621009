"""A played step as a Chrome trace in the shape of PyTorch's Kineto, for Perfetto and Holistic Trace Analysis."""

import gzip
import json
from itertools import groupby
from pathlib import Path
from typing import Any

from flopcast.errors import InputError
from flopcast.files import replacing
from flopcast.simulator.timeline import Timeline
from flopcast.simulator.timeline.events import Event, events_of
from flopcast.simulator.timeline.rank import Rank

# Names that tools know collectives by, and the stream that PyTorch computes on.
KERNELS = {
    "all_gather": "ncclDevKernel_AllGather",
    "reduce_scatter": "ncclDevKernel_ReduceScatter",
    "all_reduce": "ncclDevKernel_AllReduce",
    "point_to_point": "ncclDevKernel_SendRecv",
    "all_to_all": "ncclDevKernel_AllToAll",
}
COMPUTE_STREAM, FIRST_COMMUNICATION_STREAM = 7, 20


def write_traces(timeline: Timeline, path: Path) -> list[Path]:
    """Write one file per rank class, ``path`` itself where there is only one, and return their paths.

    With several classes the first rank's number goes into the name: ``step.json.gz`` to ``step.rank8.json.gz``. The
    same timeline gives the same bytes. Raises InputError unless the name ends in .json or .json.gz.
    """
    if not path.name.endswith((".json", ".json.gz")):
        raise InputError(f"--trace {path}: a trace's name ends in .json.gz or .json")
    if not path.parent.is_dir():
        raise InputError(f"--trace {path}: there is no directory {path.parent}; make it first")
    written = []
    for rank in timeline.ranks:
        target = path
        if len(timeline.ranks) > 1:
            stem, dot, ending = path.name.partition(".json")
            target = path.with_name(f"{stem}.rank{rank.place.rank}{dot}{ending}")
        _write(target, json.dumps(trace(timeline, rank)).encode())
        written.append(target)
    return written


def trace(timeline: Timeline, rank: Rank) -> dict[str, Any]:
    """The trace of one rank class as Kineto's JSON document: kernels on streams, annotations per layer.

    Times are in microseconds, to the nanosecond. The host is not in it: the timeline plays its delays, not its calls.
    """
    gpu = timeline.forecast.cluster.gpu
    place = rank.place
    found = [event for event in events_of(rank) if event.end_s > event.start_s]
    numbers = _stream_numbers(found)
    return {
        "schemaVersion": 1,
        "deviceProperties": [{"id": 0, "name": gpu.name, "totalGlobalMem": int(gpu.memory_bytes)}],
        "distributedInfo": {"backend": "nccl", "rank": place.rank, "world_size": timeline.plan.num_gpus},
        "displayTimeUnit": "ms",
        "flopcast": {
            "model": timeline.forecast.model.name,
            "cluster": timeline.forecast.cluster.name,
            "strategy": timeline.plan.strategy,
            "pipeline_stage": place.stage,
            "ranks_alike": place.num_ranks,
            "step_s": timeline.step_s,
        },
        "traceEvents": [
            *_metadata(numbers, place.rank),
            *_annotations(found),
            *(_kernel(event, numbers[_stream(event)], number) for number, event in enumerate(found, 1)),
        ],
    }


def _stream(event: Event) -> tuple[str, str]:
    return (event.stream, event.group)


def _stream_numbers(found: list[Event]) -> dict[tuple[str, str], int]:
    """The compute stream, and one for each communicator, as NCCL has it."""
    communicators = dict.fromkeys(_stream(event) for event in found if event.stream != "compute")
    numbers = {key: FIRST_COMMUNICATION_STREAM + i for i, key in enumerate(communicators)}
    return {("compute", ""): COMPUTE_STREAM, **numbers}


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _span(start_s: float, end_s: float) -> dict[str, float]:
    start, end = _microseconds(start_s), _microseconds(end_s)
    return {"ts": start, "dur": round(end - start, 3)}


def _metadata(numbers: dict[tuple[str, str], int], rank: int) -> list[dict[str, Any]]:
    def named(what: str, tid: int, **value: str | int) -> dict[str, Any]:
        return {"ph": "M", "name": what, "pid": 0, "tid": tid, "ts": 0, "args": value}

    # The process itself is 0 in every file, as Kineto has a rank's own device.
    lines = [named("process_name", 0, name=f"rank {rank}"), named("process_labels", 0, labels="flopcast")]
    for (stream, group), number in numbers.items():
        name = f"stream {number} {stream}" + (f" ({group})" if group else "")
        lines += [
            named("thread_name", number, name=name),
            named("thread_sort_index", number, sort_index=number),
        ]
    return lines


def _annotations(found: list[Event]) -> list[dict[str, Any]]:
    """One range on the compute stream for each layer of each pass."""
    computed = [event for event in found if event.stream == "compute"]

    def key(event: Event) -> tuple[str, int, int]:
        phase = "backward" if event.phase == "recompute" else event.phase
        return phase, event.layer, event.micro_batch

    lines = []
    for (phase, layer, micro_batch), run in groupby(computed, key):
        events = list(run)
        what = f"layer {layer}" if layer >= 0 else events[0].name.partition(".")[0]
        name = "optimizer" if phase == "step" else f"{phase} {what} micro-batch {micro_batch}"
        span = _span(events[0].start_s, max(event.end_s for event in events))
        lines.append({"ph": "X", "cat": "gpu_user_annotation", "name": name, "pid": 0, "tid": COMPUTE_STREAM, **span})
    return lines


def _kernel(event: Event, number: int, correlation: int) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "device": 0,
        "stream": number,
        "correlation": correlation,
        "operation": event.name,
        "class": event.kind,
        "phase": event.phase,
        "micro_batch": event.micro_batch,
        "bytes": event.bytes,
    }
    if event.layer >= 0:
        arguments["layer"] = event.layer
    if event.collective:
        arguments |= {
            "Collective name": event.collective,
            "Group size": event.group_size,
            "Process Group Description": event.group,
        }
    else:
        arguments["flop"] = event.flop
    name = KERNELS.get(event.collective, f"nccl_{event.collective}") if event.collective else event.name
    span = _span(event.start_s, event.end_s)
    return {"ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": number, **span, "args": arguments}


def _write(path: Path, document: bytes) -> None:
    """Write a trace whole or not at all. The archive carries no date and no name."""
    if path.name.endswith(".gz"):
        document = gzip.compress(document, compresslevel=6, mtime=0)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(document)
    except OSError as error:
        raise InputError(f"--trace {path}: cannot be written ({error.strerror})") from error
