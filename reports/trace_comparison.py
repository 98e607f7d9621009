"""A torch.profiler trace of a real step beside a played one, class of operation by class of operation."""

import gzip
import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flopcast.errors import InputError
from flopcast.reports.kernel_names import ORDER, OTHER_COLLECTIVES, is_collective, operation_class
from flopcast.simulator.timeline import Timeline
from flopcast.simulator.timeline.events import Event, events_of

STEP = re.compile(r"^ProfilerStep\s*#\s*(\d+)")
UPDATE = "Optimizer.step#"
DEVICE_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
COLLECTIVE_CLASSES = {
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_reduce": "all-reduce",
    "point_to_point": "send, receive, all-to-all",
    "all_to_all": "send, receive, all-to-all",
}


# How the step divides: a computation runs, only a collective does, nothing does.
COMPUTING, EXPOSED, IDLE, STEP_ROW = "computing", "exposed communication", "idle", "step"


class Kernel(NamedTuple):
    """One kernel or copy on a GPU: its class of operation, and when it ran, in seconds."""

    operations: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Compared:
    """Seconds per step of one class of operations; ``ratio`` is simulated over measured, None where either is 0."""

    operations: str
    simulated_s: float
    measured_s: float

    @property
    def ratio(self) -> float | None:
        """Simulated over measured."""
        return self.simulated_s / self.measured_s if self.simulated_s and self.measured_s else None


@dataclass(frozen=True)
class TraceComparison:
    """A real trace of ``num_steps`` steps of rank ``rank`` beside the timeline's first rank class.

    ``steps_by``: what told how many steps it holds: "profiler" (its schedule's), "optimizer" (its updates), or
    "nothing", and then the whole trace is taken as one. Of several GPUs in one trace the average is meant.
    """

    path: str
    rank: int | None
    num_steps: int
    steps_by: str
    rows: tuple[Compared, ...]


def compare_with_trace(timeline: Timeline, path: Path) -> TraceComparison:
    """Seconds per step by class of operation, then of the whole from first to last kernel ("step") and what it holds.

    Collectives include the wait for their peers, in both. Raises InputError for a file that is not a Kineto trace or
    holds no kernel.
    """
    document = _read(path)
    by_device = _kernels(document["traceEvents"], path)
    if not by_device:
        raise InputError(f"--compare {path}: it holds no GPU kernel; profile with ProfilerActivity.CUDA")
    num_steps, steps_by = _steps(document["traceEvents"])
    whole = num_steps * len(by_device)
    measured: Counter[str] = Counter()
    for kernels in by_device.values():
        measured.update(_sums(kernels))
    simulated = _sums(_simulated(timeline))
    order = (*ORDER, COMPUTING, EXPOSED, IDLE, STEP_ROW)
    rows = [Compared(name, simulated.get(name, 0.0), measured.get(name, 0.0) / whole) for name in order]
    info = document.get("distributedInfo")
    rank = info.get("rank") if isinstance(info, dict) else None
    shown = tuple(row for row in rows if row.simulated_s or row.measured_s)
    return TraceComparison(str(path), rank, num_steps, steps_by, shown)


def _kernels(events: Sequence[dict[str, Any]], path: Path) -> dict[object, list[Kernel]]:
    """What ran on each GPU of a trace."""
    collectives = _collectives(events)
    found: defaultdict[object, list[Kernel]] = defaultdict(list)
    for event in events:
        if event.get("cat") not in DEVICE_CATEGORIES or event.get("ph") != "X":
            continue
        try:
            start, spent = float(event["ts"]) * 1e-6, float(event["dur"]) * 1e-6
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"--compare {path}: kernel '{event.get('name')}' has no time ('ts' and 'dur' in microseconds)"
            ) from None
        arguments = _arguments(event)
        device = arguments.get("device", event.get("pid"))
        found[device].append(Kernel(_class_of(event, arguments, collectives), start, start + spent))
    return found


def _collectives(events: Sequence[dict[str, Any]]) -> dict[object, str]:
    """What torch.distributed called the collective behind each launch, by the launch's correlation."""
    called = {
        arguments["External id"]: str(arguments["Collective name"])
        for event in events
        if event.get("name") == "record_param_comms"
        and {"External id", "Collective name"} <= (arguments := _arguments(event)).keys()
    }
    return {
        arguments["correlation"]: called[arguments["External id"]]
        for event in events
        if called and "correlation" in (arguments := _arguments(event)) and arguments.get("External id") in called
    }


def _arguments(event: dict[str, Any]) -> dict[str, Any]:
    arguments = event.get("args")
    return arguments if isinstance(arguments, dict) else {}


def _class_of(kernel: dict[str, Any], arguments: dict[str, Any], collectives: dict[object, str]) -> str:
    """By its name; a trace of ours, whose kernels are named after operations, says what they are."""
    collective = arguments.get("Collective name")
    if "operation" in arguments and collective is None:
        return "optimizer" if arguments.get("phase") == "step" else str(arguments.get("class"))
    if kernel["cat"] != "kernel":
        return "copy"
    return operation_class(
        str(kernel.get("name")), str(collective or collectives.get(arguments.get("correlation"), ""))
    )


def _steps(events: Sequence[dict[str, Any]]) -> tuple[int, str]:
    """How many steps a trace holds, and what tells so."""
    names = [str(event.get("name")) for event in events if event.get("cat") in ("user_annotation", "cpu_op")]
    marked = {found[1] for name in names if (found := STEP.match(name))}
    updates = Counter(name for name in names if name.startswith(UPDATE))
    if marked:
        return len(marked), "profiler"
    return (max(updates.values()), "optimizer") if updates else (1, "nothing")


def _simulated(timeline: Timeline) -> list[Kernel]:
    def class_of(event: Event) -> str:
        if event.collective:
            return COLLECTIVE_CLASSES.get(event.collective, OTHER_COLLECTIVES)
        return "optimizer" if event.phase == "step" else event.kind

    found = (event for event in events_of(timeline.ranks[0]) if event.end_s > event.start_s)
    return [Kernel(class_of(event), event.start_s, event.end_s) for event in found]


def _sums(kernels: Sequence[Kernel]) -> dict[str, float]:
    """Seconds of each class, and how the time from the first kernel to the last divides."""
    sums: defaultdict[str, float] = defaultdict(float)
    for kernel in kernels:
        sums[kernel.operations] += kernel.end_s - kernel.start_s
    computing = covered([k for k in kernels if not is_collective(k.operations)])
    busy = covered(kernels)
    step = max(k.end_s for k in kernels) - min(k.start_s for k in kernels)
    return {**sums, COMPUTING: computing, EXPOSED: busy - computing, IDLE: step - busy, STEP_ROW: step}


def covered(kernels: Sequence[Kernel]) -> float:
    """Seconds in which at least one of them runs."""
    total, reach = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda k: k.start_s):
        total += max(kernel.end_s - max(kernel.start_s, reach), 0.0)
        reach = max(reach, kernel.end_s)
    return total


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
        document = json.loads(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
        if isinstance(document, list):
            document = {"traceEvents": document}
    except OSError as error:
        raise InputError(f"--compare {path}: cannot be read ({error.strerror or error})") from error
    except EOFError as error:
        raise InputError(f"--compare {path}: it is cut short; copy the whole file again") from error
    except (ValueError, zlib.error) as error:
        raise InputError(f"--compare {path}: not a trace that torch.profiler exported ({error})") from error
    if not isinstance(document, dict) or not isinstance(document.get("traceEvents"), list):
        raise InputError(f"--compare {path}: it has no list 'traceEvents'; export it with export_chrome_trace")
    if not all(isinstance(event, dict) for event in document["traceEvents"]):
        raise InputError(f"--compare {path}: 'traceEvents' holds something that is no event")
    return document
