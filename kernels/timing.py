"""Timing functions on a GPU or the CPU so that the numbers mean what they say.

The rules, each from a trap that others fell into (QuACK's notes on timing): inputs are random, as a GPU clocks higher
on zeros; calls rotate through more inputs than the last cache holds, and results are kept for as many calls, so that
they too go to new memory; variants take turns, so that a change of clocks meets them all; a median with its spread is
reported, never a minimum. On a GPU the stream is kept busy while calls are queued, because an event pair around a short
call would time the host; whether that was long enough is asked of the first event.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch

CPU_CACHE_BYTES = 64 * 2**20  # taken for the last cache of a CPU, which PyTorch does not tell
_SLEEP_CYCLES_PER_CALL = 60_000  # about 30 us: longer than the host takes to queue a call of a few ops; else doubled
_MOST_SLEEP_CYCLES_PER_CALL = 32 * _SLEEP_CYCLES_PER_CALL  # about 1 ms
_SAMPLE_S = 400e-6  # of work in one sample, against the resolution of events, 0.5 us
_MOST_CALLS = 100
_WARM_UP = 3  # calls


@dataclass(frozen=True)
class Timing:
    """``spread`` is the distance between the 10th and the 90th percentile over the median.

    ``host_bound``: the GPU was done with what kept it busy before the host had queued the calls, however long that was:
    the time may be the host's.
    """

    median_s: float
    spread: float
    num_samples: int
    host_bound: bool = False


def selected(device: torch.device) -> AbstractContextManager[object]:
    """``device`` as the current one: where events are recorded, the stream is kept busy, and Triton launches."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def num_inputs(bytes_per_call: float, device: torch.device, limit_bytes: float) -> int:
    """How many sets of inputs to rotate through, so that none is found in the last cache: four times its size.

    No more than ``limit_bytes`` hold, but two at least.
    """
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else CPU_CACHE_BYTES
    wanted = -(-4 * cache // max(1, int(bytes_per_call)))
    return max(2, min(wanted, int(limit_bytes // max(1.0, bytes_per_call))))


def interleaved(
    functions: dict[str, Callable[[int], object]], device: torch.device, samples: int = 20
) -> dict[str, Timing]:
    """The time of one call of each function, in seconds; each is given a counter, by which it picks its inputs.

    A sample is as many calls as take 0.4 ms. The functions take turns, one sample each, in an order that rotates.
    """
    timed = {name: _Timed(function, device) for name, function in functions.items()}
    order = list(timed.values())
    with selected(device):
        for one in order:
            for index in range(_WARM_UP):
                one.function(index)
            one.calls = max(1, min(_MOST_CALLS, round(_SAMPLE_S / max(one.sample(0), 1e-9))))
        for turn in range(samples):
            for one in order[turn % len(order) :] + order[: turn % len(order)]:
                one.seconds.append(one.sample(turn * one.calls))
    return {name: replace(summary(one.seconds), host_bound=one.host_bound) for name, one in timed.items()}


def summary(seconds: list[float]) -> Timing:
    """Median and spread of samples, in seconds."""
    median = statistics.median(seconds)
    if len(seconds) < 2:
        return Timing(median, 0.0, len(seconds))
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    return Timing(median, (tenths[-1] - tenths[0]) / median if median else 0.0, len(seconds))


@dataclass
class _Timed:
    """A function while it is timed: ``calls`` of it are a sample, and take ``cycles`` of sleep each to be queued."""

    function: Callable[[int], object]
    device: torch.device
    calls: int = 1
    cycles: int = _SLEEP_CYCLES_PER_CALL
    host_bound: bool = False
    seconds: list[float] = field(default_factory=list)

    def sample(self, first: int) -> float:
        """The seconds of one of ``calls`` calls, counted from ``first``."""
        if self.device.type != "cuda":
            return _cpu_sample(self.function, first, self.calls)
        while True:
            seconds, in_time = self._on_gpu(first)
            if in_time or self.cycles == _MOST_SLEEP_CYCLES_PER_CALL:
                self.host_bound = self.host_bound or not in_time
                return seconds
            self.cycles *= 2

    def _on_gpu(self, first: int) -> tuple[float, bool]:
        """... and whether all were queued before the first began."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(self.device)
        torch.cuda._sleep(self.cycles * (self.calls + 2))  # type: ignore[no-untyped-call]
        begin.record()
        for index in range(first, first + self.calls):
            self.function(index)
        end.record()
        in_time = not begin.query()  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(self.device)
        return float(begin.elapsed_time(end)) * 1e-3 / self.calls, in_time


def _cpu_sample(function: Callable[[int], object], first: int, calls: int) -> float:
    begin = time.perf_counter()
    for index in range(first, first + calls):
        function(index)
    return (time.perf_counter() - begin) / calls


def host_time(function: Callable[[int], object], device: torch.device, calls: int = 20, samples: int = 10) -> Timing:
    """What the host spends on one call, in seconds: queued back to back while the device is kept busy elsewhere.

    ``calls`` times the kernels of one must stay below the thousand that a driver queues before it makes the host wait.
    """
    seconds = []
    with selected(device):
        for index in range(10):
            function(index)
        for _ in range(samples):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                torch.cuda._sleep(_SLEEP_CYCLES_PER_CALL * calls)  # type: ignore[no-untyped-call]
            seconds.append(_cpu_sample(function, 0, calls))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return summary(seconds)
