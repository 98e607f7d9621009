"""``flopcast bench kernels``: every op beside the others, in GB/s and % of the device's copy, with the error.

Rows are in long form, one per operation, pass, provider, element type, tokens and hidden size: ``median_s`` of a call,
``spread``, ``bytes`` that must move (the same for all providers), ``bytes_per_s``, as fractions ``of_copy`` of 1 GiB,
``of_copy_same_bytes`` (a copy that took turns with the row's providers) and ``of_datasheet``, ``host_bound`` (see
timing.py), ``error`` (norm of the difference over the norm, the worst tensor), or ``skipped`` with the reason.
"""

import csv
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flopcast.errors import InputError, nearest
from flopcast.files import replacing, write_atomically
from flopcast.kernels import microbenchmark, timing
from flopcast.kernels.benchmark_calls import Results, inputs_of, prepare
from flopcast.kernels.benchmark_cases import HEAD, OURS, Operation, missing, operations
from flopcast.kernels.benchmark_transfers import Transfer, moved_bytes, transfers
from flopcast.kernels.environment import datasheet_bytes_per_s, environment
from flopcast.kernels.nf4.format import payload_bytes
from flopcast.kernels.progress import ProgressLines
from flopcast.kernels.rmsnorm.variant import LARGEST_HIDDEN, SMALLEST_HIDDEN

Row = dict[str, Any]
COLUMNS = (
    *("op", "pass", "provider", "dtype", "tokens", "hidden", "median_s", "spread", "num_samples", "bytes"),
    *("bytes_per_s", "of_copy", "of_copy_same_bytes", "of_datasheet", "host_bound", "error", "skipped"),
)
TOKENS, HIDDEN = tuple(2**n for n in range(10, 18)), (2048, 4096, 5120, 8192)
CPU_TOKENS, CPU_HIDDEN = (256, 1024), (1024,)
FAILED = "failed: "  # what begins the reason why a row of ours has no time, where that is a fault
_COPY = "copy"
_MOST_COPIED_BYTES = 2.0**30  # read and written: more go no faster
_SET_BYTES = 24e9  # that all sets of inputs of one comparison may take


def run(
    device: torch.device | str,
    tokens: Sequence[int] | None = None,
    hidden: Sequence[int] | None = None,
    dtypes: Sequence[torch.dtype] = (torch.bfloat16,),
    ops: Sequence[str] | None = None,
    providers: Sequence[str] | None = None,
    samples: int = 20,
    budget_s: float = math.inf,
    quiet: bool = True,
) -> dict[str, Any]:
    """``{"environment", "copy_bytes_per_s", "rows"}`` of the comparison on ``device``; ready for JSON.

    Shapes run in the order given until ``budget_s`` is spent; the rest are rows that say so. By default tokens 1 K to
    128 K and hidden sizes 2048 to 8192 on a GPU, small ones on the CPU, where the reference path is what is timed:
    ``environment["backend"]`` says it. Unless ``quiet``, lines on standard error say how far it is. Raises InputError.
    """
    device = _device(device)
    on_gpu = device.type == "cuda"
    tokens = tokens or (TOKENS if on_gpu else CPU_TOKENS)
    hidden = hidden or (HIDDEN if on_gpu else CPU_HIDDEN)
    _check(tokens, hidden, ops, providers)
    deadline = time.monotonic() + budget_s
    copied = microbenchmark.copy(device, [2**30 if device.type == "cuda" else 2**24], samples)[0]
    copy_rate = copied["bytes"] / copied["median_s"]
    rows: list[Row] = []
    shapes = list(product(tokens, hidden, dtypes))
    lines = None if quiet else ProgressLines(len(shapes))
    for number, (count, size, dtype) in enumerate(shapes, 1):
        # Those of the fewest providers first, as they take the least time.
        comparisons: list[Transfer | Operation] = [*transfers(dtype), *operations()]
        for compared in comparisons:
            if ops is not None and compared.name not in ops:
                continue
            key = {"op": compared.name, "dtype": str(dtype).removeprefix("torch."), "tokens": count, "hidden": size}
            wanted = [name for name in compared.functions if providers is None or name in providers]
            if time.monotonic() > deadline:
                rows += [_skipped(key, "all", name, "the time for the benchmark was spent") for name in wanted]
                continue
            if lines:
                lines.begin(number, str(count), f"{compared.name} of {count} tokens x {size}")
            try:
                with timing.selected(device):
                    if isinstance(compared, Transfer):
                        rows += _compare_transfer(compared, key, wanted, dtype, device, samples)
                    else:
                        rows += _compare(compared, key, wanted, dtype, device, samples)
            except torch.OutOfMemoryError:
                rows.append(_skipped(key, "all", "all", "not enough memory for all providers at once"))
                torch.cuda.empty_cache()
    datasheet = datasheet_bytes_per_s(device)
    for row in rows:
        if row.get("bytes") and "median_s" in row:
            row["bytes_per_s"] = row["bytes"] / row["median_s"]
            row["of_copy"] = row["bytes_per_s"] / copy_rate
            row["of_datasheet"] = row["bytes_per_s"] / datasheet if datasheet else None
    return {"environment": environment(device), "copy_bytes_per_s": copy_rate, "rows": rows}


def write(result: dict[str, Any], folder: Path) -> list[Path]:
    """``kernels.csv`` (the rows) and ``kernels.json`` (all), each whole or not at all."""
    table, document = folder / "kernels.csv", folder / "kernels.json"
    write_atomically(document, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    with replacing(table) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(result["rows"])
    return [table, document]


def _device(given: torch.device | str) -> torch.device:
    try:
        device = torch.device(given)
    except RuntimeError:
        raise InputError(f"--device is '{given}'; it is cpu, cuda or cuda:1") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device is '{given}'; it is cpu, cuda or cuda:1")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device is {given} and PyTorch sees no CUDA device; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device is {given} and PyTorch sees {torch.cuda.device_count()} CUDA devices, from cuda:0")
    return device


def _check(
    tokens: Sequence[int], hidden: Sequence[int], ops: Sequence[str] | None, providers: Sequence[str] | None
) -> None:
    for count in tokens:
        if count < 1:
            raise InputError(f"--tokens holds {count}; counts of tokens are positive")
    for size in hidden:
        if not SMALLEST_HIDDEN <= size <= LARGEST_HIDDEN or size % HEAD:
            raise InputError(
                f"--hidden holds {size}; it is a multiple of {HEAD} from {HEAD} to {LARGEST_HIDDEN}, in heads of {HEAD}"
            )
    compared = operations()
    known_ops = [o.name for o in compared] + [t.name for t in transfers(torch.bfloat16)]
    known_providers = list(dict.fromkeys(name for o in compared for name in o.functions))
    for option, given, known in (("--ops", ops, known_ops), ("--providers", providers, known_providers)):
        for name in given or ():
            if name not in known:
                raise InputError(f"{option} holds '{name}'; {nearest(name, known)}")


def _compare(
    operation: Operation, key: Row, wanted: Sequence[str], dtype: torch.dtype, device: torch.device, samples: int
) -> list[Row]:
    """Forward, backward and host time of one operation at one shape, the providers ``wanted`` in turns."""
    tokens, hidden = key["tokens"], key["hidden"]
    moved = operation.passes(tokens, hidden, dtype.itemsize)
    count = timing.num_inputs(moved["forward"], device, limit_bytes=_SET_BYTES / 6) if moved["forward"] < 2**30 else 1
    sets = [inputs_of(operation, tokens, hidden, dtype, device) for _ in range(count)]
    kept: Results = deque(maxlen=count)
    rows: list[Row] = []
    runs: dict[str, dict[str, Callable[[int], object]]] = {"forward": {}, "backward": {}}
    errors: dict[tuple[str, str], float] = {}
    for name in wanted:
        reason = missing(name)
        try:
            if reason is None:
                forward, backward, error = prepare(operation, name, sets, kept)
                runs["forward"][name], runs["backward"][name] = forward, backward
                errors["forward", name], errors["backward", name] = error
        except Exception as failure:
            reason = _first_line(failure)
            if name == OURS and not isinstance(failure, torch.OutOfMemoryError):
                reason = f"{FAILED}{reason}"
        if reason is not None:
            rows.append(_skipped(key, "all", name, reason))
    for which, functions in runs.items():
        for name, row in _timed(functions, moved[which], device, samples).items():
            rows.append({**key, "pass": which, "provider": name, **row, "error": errors[which, name]})
    if tokens <= 1024:
        for name, function in runs["forward"].items():
            rows.append({**key, "pass": "host", "provider": name, **vars(timing.host_time(function, device))})
    return rows


def _compare_transfer(
    transfer: Transfer, key: Row, wanted: Sequence[str], dtype: torch.dtype, device: torch.device, samples: int
) -> list[Row]:
    """The NF4 payload of tokens x hidden values; ``error`` is the share that differs from the reference."""
    numel = key["tokens"] * key["hidden"]
    moved = moved_bytes(numel, dtype)
    sets = []
    for _ in range(timing.num_inputs(moved, device, limit_bytes=_SET_BYTES / 6)):
        values = (0.02 * torch.randn(numel, device=device)).to(dtype)
        payload = torch.empty(int(payload_bytes(numel)), dtype=torch.uint8, device=device)
        transfers(dtype)[0].functions["eager"](values, payload)
        sets.append((values, payload))
    functions: dict[str, Callable[[int], object]] = {}
    errors = {}
    for name in wanted:
        function = transfer.functions[name]
        found, exact = ([t.clone() for t in sets[0]] for _ in range(2))
        function(*found)
        transfer.functions["eager"](*exact)
        errors[name] = max(float((a != b).double().mean()) for a, b in zip(found, exact, strict=True))
        functions[name] = _rotating(function, sets)
    return [
        {**key, "pass": "forward", "provider": name, **row, "error": errors[name]}
        for name, row in _timed(functions, moved, device, samples).items()
    ]


def _timed(
    functions: dict[str, Callable[[int], object]], moved: float, device: torch.device, samples: int
) -> dict[str, Row]:
    """Rows of functions that must move so many bytes each; a copy of as many takes turns with them."""
    if not functions:
        return {}
    copied = min(moved, _MOST_COPIED_BYTES)
    copy = microbenchmark.copying(device, copied / 2)
    timed = timing.interleaved({**functions, _COPY: copy}, device, samples)
    copy_rate = copied / timed.pop(_COPY).median_s
    return {
        name: {**vars(t), "bytes": moved, "of_copy_same_bytes": moved / t.median_s / copy_rate}
        for name, t in timed.items()
    }


def _rotating(function: Callable[[Tensor, Tensor], None], sets: list[tuple[Tensor, Tensor]]) -> Callable[[int], object]:
    return lambda index: function(*sets[index % len(sets)])


def _skipped(key: Row, which: str, provider: str, reason: str) -> Row:
    return {**key, "pass": which, "provider": provider, "skipped": reason}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def failures(result: dict[str, Any]) -> list[str]:
    """Ops of ours that raised or gave what is not a number, in a line each."""
    return [
        f"{row['op']} of {row['tokens']} x {row['hidden']} {row['dtype']}: {row['skipped'].removeprefix(FAILED)}"
        for row in result["rows"]
        if str(row.get("skipped", "")).startswith(FAILED)
    ]


def best_of_the_others(rows: Iterable[Row]) -> list[Row]:
    """Ours beside the fastest other provider, for each comparison that has both: ``speed`` is their time over ours."""
    by_key: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        if "median_s" in row:
            key = tuple(row[name] for name in ("op", "pass", "dtype", "tokens", "hidden"))
            by_key.setdefault(key, {})[row["provider"]] = row
    found = []
    for key, providers in by_key.items():
        others = [row for name, row in providers.items() if name != OURS]
        if OURS in providers and others:
            other, ours = min(others, key=lambda row: float(row["median_s"])), providers[OURS]
            summary = dict(zip(("op", "pass", "dtype", "tokens", "hidden"), key, strict=True))
            summary |= {"median_s": ours["median_s"], "of_copy": ours.get("of_copy"), "spread": ours["spread"]}
            found.append({**summary, "other": other["provider"], "speed": other["median_s"] / ours["median_s"]})
    return found
