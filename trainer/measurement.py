"""What a step took: tokens per second, MFU with its convention, memory, and a trace where one is asked for."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from flopcast.errors import InputError
from flopcast.kernels.environment import device_name
from flopcast.simulator.catalogue import load_gpu
from flopcast.simulator.conventions import model_flop_per_token
from flopcast.simulator.model import Model
from flopcast.simulator.profiled_cluster import card_of
from flopcast.trainer.agreement import everywhere
from flopcast.trainer.files import writing
from flopcast.trainer.settings import LogTable


class Meter:
    """Turns a step's seconds into the figures of the log."""

    def __init__(self, model: Model, seq_len: int, global_batch: int, log: LogTable, device: torch.device) -> None:
        """``global_batch``: sequences per optimizer step over all ranks. Raises InputError for an unknown log.gpu."""
        self._device = device
        self._tokens = seq_len * global_batch
        self._flop = model_flop_per_token(model, seq_len, log.convention).total * self._tokens
        self._peak_flop_per_s = _peak(log.gpu, device) * dist.get_world_size()
        self.machine = {
            "device": device_name(device),
            "torch": torch.__version__,
            "convention": log.convention,
            "flop_per_step": self._flop,
        }

    def readings(self, step_s: float) -> dict[str, Any]:
        """Step time, tokens per second over all ranks, MFU (None where the peak is not known), peak memory."""
        mfu = self._flop / step_s / self._peak_flop_per_s if self._peak_flop_per_s else None
        return {
            "step_s": round(step_s, 6),
            "tokens_per_s": round(self._tokens / step_s, 1),
            "mfu": mfu if mfu is None else float(f"{mfu:.4g}"),
            "memory_bytes": peak_memory_bytes(self._device),
        }


def _peak(gpu: str | None, device: torch.device) -> float:
    """The dense 16-bit peak of the GPU named or found, 0 where it is not in the catalogue."""
    if gpu is not None:
        return load_gpu(gpu).tensor_flop_per_s
    if device.type != "cuda":
        return 0.0
    found = torch.cuda.get_device_properties(device)
    card = card_of(found.name, found.total_memory)
    return 0.0 if card is None else card.tensor_flop_per_s


def peak_memory_bytes(device: torch.device) -> int:
    """The most this rank has held: of the GPU's memory what PyTorch allocated, of the host's the resident set."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def profiled(folder: Path, step: int, device: torch.device) -> Iterator[None]:
    """Trace what runs inside, as ``step-S-rank-R.json.gz`` in Kineto's Chrome-trace form.

    Collective. Raises InputError on every rank where one cannot write its trace.
    """
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities, record_shapes=True) as trace:
        yield
    everywhere(lambda: _write(trace, folder / f"step-{step}-rank-{dist.get_rank()}.json.gz"))


def _write(trace: profile, path: Path) -> None:
    partial = path.with_name(f".partial-{path.name}")  # PyTorch compresses what is named .gz
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            trace.export_chrome_trace(str(partial))
            partial.replace(path)
    except InputError:
        with suppress(OSError):
            partial.unlink()
        raise
