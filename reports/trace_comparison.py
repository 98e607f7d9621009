"""A torch.profiler trace of a real step beside a played one, class of operation by class of operation."""

import gzip
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flopcast.errors import InputError
from flopcast.simulator.timeline import Timeline
from flopcast.simulator.timeline.events import events_of

# Kernel names of NCCL, Inductor, FSDP2, FlashAttention, cuDNN, cuBLAS, CUTLASS, Tensile and PyTorch; the first that
# matches decides. Inductor names a kernel after all that it fuses; what it generates is pointwise, if not a template.
CLASSES = (
    ("all-gather", re.compile(r"[nr]ccl.*All_?Gather", re.I)),
    ("reduce-scatter", re.compile(r"[nr]ccl.*Reduce_?Scatter", re.I)),
    ("all-reduce", re.compile(r"[nr]ccl.*All_?Reduce", re.I)),
    # NCCL has one kernel for both.
    ("send, receive, all-to-all", re.compile(r"[nr]ccl.*(Send|Recv|All_?to_?All)", re.I)),
    ("other collectives", re.compile(r"[nr]ccl", re.I)),
    ("copy", re.compile(r"^Mem(cpy|set)|chunk_cat|split_with_sizes_copy", re.I)),
    ("optimizer", re.compile(r"multi_tensor|adam|lpnorm|FusedOptimizer|^triton_for_fused", re.I)),
    ("pointwise", re.compile(r"^triton_(poi|red|per)_fused", re.I)),
    ("attention", re.compile(r"flash|fmha|attention|attn|sdpa|mha_", re.I)),
    ("gemm", re.compile(r"(?<!fb)gemm|gemv|cutlass|xmma|nvjet|cublas|wgmma|triton_(tem|mm)|_mm_|splitK|^Cijk_", re.I)),
)
REST = "pointwise"
STEP = re.compile(r"^ProfilerStep\s*#\s*(\d+)")
DEVICE_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
COLLECTIVE_CLASSES = {
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_reduce": "all-reduce",
    "point_to_point": "send, receive, all-to-all",
    "all_to_all": "send, receive, all-to-all",
}


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
    """A real trace of ``num_steps`` steps of rank ``rank`` beside the timeline's first rank class."""

    path: str
    rank: int | None
    num_steps: int
    rows: tuple[Compared, ...]


def compare_with_trace(timeline: Timeline, path: Path) -> TraceComparison:
    """Seconds per step by class of operation, and of the whole from first to last kernel ("step").

    Collectives include the wait for their peers, in both. Raises InputError for a file that is not a Kineto trace or
    holds no kernel.
    """
    document = _read(path)
    kernels = [e for e in document["traceEvents"] if e.get("cat") in DEVICE_CATEGORIES and e.get("ph") == "X"]
    if not kernels:
        raise InputError(f"--compare {path}: it holds no GPU kernel; profile with ProfilerActivity.CUDA")
    names = {str(e.get("name")) for e in document["traceEvents"]}
    num_steps = max(len({m[1] for name in names if (m := STEP.match(name))}), 1)
    measured = _sums((_class_of(e), float(e["dur"]) * 1e-6) for e in kernels)
    first = min(float(e["ts"]) for e in kernels)
    measured["step"] = (max(float(e["ts"]) + float(e["dur"]) for e in kernels) - first) * 1e-6
    simulated = _simulated(timeline)
    order = [*(name for name, _ in CLASSES), "step"]
    rows = [Compared(name, simulated.get(name, 0.0), measured.get(name, 0.0) / num_steps) for name in order]
    info = document.get("distributedInfo")
    rank = info.get("rank") if isinstance(info, dict) else None
    return TraceComparison(str(path), rank, num_steps, tuple(row for row in rows if row.simulated_s or row.measured_s))


def operation_class(kernel: str) -> str:
    """The class of a kernel by its name; what no library's name betrays is pointwise."""
    return next((name for name, pattern in CLASSES if pattern.search(kernel)), REST)


def _class_of(kernel: dict[str, Any]) -> str:
    """By its name; a trace of ours, whose kernels are named after operations, says what they are."""
    arguments = kernel.get("args")
    if isinstance(arguments, dict) and "operation" in arguments and "Collective name" not in arguments:
        return "optimizer" if arguments.get("phase") == "step" else str(arguments.get("class"))
    return operation_class(str(kernel["name"]))


def _simulated(timeline: Timeline) -> dict[str, float]:
    found = [event for event in events_of(timeline.ranks[0]) if event.end_s > event.start_s]

    def class_of(collective: str, phase: str, kind: str) -> str:
        if collective:
            return COLLECTIVE_CLASSES.get(collective, "other collectives")
        return "optimizer" if phase == "step" else kind

    sums = _sums((class_of(e.collective, e.phase, e.kind), e.end_s - e.start_s) for e in found)
    sums["step"] = max(e.end_s for e in found) - min(e.start_s for e in found)
    return sums


def _sums(parts: Iterable[tuple[str, float]]) -> dict[str, float]:
    sums: defaultdict[str, float] = defaultdict(float)
    for name, seconds in parts:
        sums[name] += seconds
    return dict(sums)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
        document = json.loads(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
    except OSError as error:
        raise InputError(f"--compare {path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, EOFError, zlib.error) as error:
        raise InputError(f"--compare {path}: not a trace that torch.profiler exported ({error})") from error
    if not isinstance(document, dict) or not isinstance(document.get("traceEvents"), list):
        raise InputError(f"--compare {path}: it has no list 'traceEvents'; export it with export_chrome_trace")
    if not all(isinstance(event, dict) for event in document["traceEvents"]):
        raise InputError(f"--compare {path}: 'traceEvents' holds something that is no event")
    return document
