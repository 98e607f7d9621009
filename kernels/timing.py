"""Timing functions on a GPU or the CPU so that the numbers mean what they say.

The rules, each from a trap that others fell into (QuACK's notes on timing): inputs are random, as a GPU clocks higher
on zeros; calls rotate through more inputs than the last cache holds; variants take turns, so that a change
of clocks meets them all; a median with its spread is reported, never a minimum. On a GPU the stream is kept busy while
calls are queued, because an event pair around a short call would time the host.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

CPU_CACHE_BYTES = 64 * 2**20  # taken for the last cache of a CPU, which PyTorch does not tell
_SLEEP_CYCLES_PER_CALL = 60_000  # about 30 us: longer than the host takes to queue a call of a few ops
_SAMPLE_S = 400e-6  # of work in one sample, against the resolution of events, 0.5 us
_MOST_CALLS = 100


@dataclass(frozen=True)
class Timing:
    """``spread`` is the distance between the 10th and the 90th percentile over the median."""

    median_s: float
    spread: float
    num_samples: int


def num_inputs(bytes_per_call: float, device: torch.device, limit_bytes: float | None = None) -> int:
    """How many sets of inputs to rotate through, so that none is found in the last cache: four times its size."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else CPU_CACHE_BYTES
    wanted = -(-4 * cache // max(1, int(bytes_per_call)))
    if limit_bytes is not None:
        wanted = min(wanted, int(limit_bytes // max(1.0, bytes_per_call)))
    return max(2, wanted)


def interleaved(
    functions: dict[str, Callable[[int], object]], device: torch.device, samples: int = 20, warm_up: int = 3
) -> dict[str, Timing]:
    """The time of one call of each function, in seconds; each is given a counter, by which it picks its inputs.

    A sample is as many calls as take 0.4 ms. The functions take turns, one sample each, in an order that rotates.
    """
    sample = _gpu_sample if device.type == "cuda" else _cpu_sample
    calls = {}
    for name, function in functions.items():
        for index in range(warm_up):
            function(index)
        once = sample(function, 0, 1, device)
        calls[name] = max(1, min(_MOST_CALLS, round(_SAMPLE_S / max(once, 1e-9))))
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(samples):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds[name].append(sample(functions[name], turn * calls[name], calls[name], device))
    return {name: summary(values) for name, values in seconds.items()}


def summary(seconds: list[float]) -> Timing:
    """Median and spread of samples, in seconds."""
    median = statistics.median(seconds)
    if len(seconds) < 2:
        return Timing(median, 0.0, len(seconds))
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    return Timing(median, (tenths[-1] - tenths[0]) / median if median else 0.0, len(seconds))


def _gpu_sample(function: Callable[[int], object], first: int, calls: int, device: torch.device) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    torch.cuda._sleep(_SLEEP_CYCLES_PER_CALL * (calls + 2))  # type: ignore[no-untyped-call]
    begin.record()
    for index in range(first, first + calls):
        function(index)
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end)) * 1e-3 / calls


def _cpu_sample(function: Callable[[int], object], first: int, calls: int, device: torch.device) -> float:
    begin = time.perf_counter()
    for index in range(first, first + calls):
        function(index)
    return (time.perf_counter() - begin) / calls


def host_time(function: Callable[[int], object], device: torch.device, calls: int = 100, samples: int = 10) -> Timing:
    """What the host spends on one call, in seconds: queued back to back while the device is kept busy elsewhere."""
    seconds = []
    for index in range(10):
        function(index)
    for _ in range(samples):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda._sleep(_SLEEP_CYCLES_PER_CALL * calls)  # type: ignore[no-untyped-call]
        seconds.append(_cpu_sample(function, 0, calls, device))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return summary(seconds)
