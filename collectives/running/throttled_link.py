"""The 4-bit against the 16-bit all-gather over a slow link: ``python -m flopcast.collectives.running.throttled_link``.

Every rank gets a network namespace of its own, joined by a bridge in one more namespace, and both directions of each
rank's link pass a token bucket (``tc tbf``). Nothing outside these namespaces is touched, and they are removed at the
end, also after an error or a signal. Needs Linux, root and the programs ip and tc; where they are missing or the
kernel refuses, the script says why, and exits 0 without a measurement.

The two gathers take turns in one run. Quantising and dequantising run on the processor and are part of the time.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from flopcast.collectives.running.payload import Layout
from flopcast.collectives.running.pytorch import all_gather_single, leave_process_group
from flopcast.collectives.running.quantised_all_gather import quantised_all_gather
from flopcast.collectives.running.results import quartile_spread, write_json
from flopcast.collectives.running.surroundings import versions
from flopcast.errors import InputError
from flopcast.kernels.environment import device_name

_MODULE = "flopcast.collectives.running.throttled_link"
_NETWORK = "10.231.77"
_BURST_BYTES = 64 * 1024
_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Setting:
    """``ranks`` of ``elements`` bf16 values each over links of ``mbit_per_s``, each gather ``iterations`` times."""

    ranks: int = 2
    mbit_per_s: float = 20.0
    elements: int = 2**21
    iterations: int = 5

    def __post_init__(self) -> None:
        if not 2 <= self.ranks <= 8:
            raise InputError(f"ranks is {self.ranks}; give 2 to 8")
        if not 0.1 <= self.mbit_per_s <= 1e5:
            raise InputError(f"rate is {self.mbit_per_s} Mbit/s; give 0.1 to 100000")
        if self.elements < 1 or self.iterations < 1:
            raise InputError(f"elements is {self.elements} and iterations {self.iterations}; give at least 1 of each")


class LinkRefusedError(RuntimeError):
    """The machine lets nobody throttle a link; the message says what it refused."""


def measure(setting: Setting) -> dict[str, Any]:
    """Both gathers' times and what they moved, as one document. Raises LinkRefusedError where there is no such link."""
    with _links(setting) as namespaces, tempfile.TemporaryDirectory() as folder:
        _run_ranks(setting, namespaces, Path(folder))
        found = json.loads((Path(folder) / "times.json").read_text(encoding="utf-8"))
    medians = {name: statistics.median(times) for name, times in found["times_s"].items()}
    spreads = {name: quartile_spread(times) for name, times in found["times_s"].items()}
    layout = Layout.whole(setting.elements, torch.bfloat16)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "setting": asdict(setting),
        "payload_bytes": {"bf16": 2 * setting.elements, "nf4": layout.num_bytes},
        "payload_ratio": layout.num_bytes / (2 * setting.elements),
        "median_s": medians,
        "spread": spreads,
        "times_s": found["times_s"],
        "num_wrong": found["num_wrong"],
        "time_ratio": medians["nf4"] / medians["bf16"],
    }


@contextmanager
def _links(setting: Setting) -> Iterator[list[str]]:
    """The ranks' namespaces, their links throttled; all of it gone afterwards."""
    programs = {name: shutil.which(name) for name in ("ip", "tc")}
    missing = [name for name, path in programs.items() if path is None]
    if missing:
        raise LinkRefusedError(f"{' and '.join(missing)} cannot be found; install iproute2")
    if os.geteuid() != 0:
        raise LinkRefusedError("only root may make network namespaces")
    names = [f"flopcast-{os.getpid()}-{rank}" for rank in range(setting.ranks)]
    switch = f"flopcast-{os.getpid()}-switch"
    made: list[str] = []

    def command(*words: str) -> None:
        ran = subprocess.run([str(programs[words[0]]), *words[1:]], capture_output=True, text=True)  # noqa: S603
        if ran.returncode:
            raise LinkRefusedError(f"'{' '.join(words)}' was refused: {ran.stderr.strip()}")

    def throttle(namespace: str, device: str) -> None:
        bucket = ("rate", f"{setting.mbit_per_s}mbit", "burst", str(_BURST_BYTES), "latency", "400ms")
        command("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", *bucket)

    try:
        for name in (switch, *names):
            command("ip", "netns", "add", name)
            made.append(name)
        command("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        command("ip", "-n", switch, "link", "set", "bridge", "up")
        for rank, name in enumerate(names):
            port = f"port{rank}"
            peer = ("peer", "name", "eth0", "netns", name)
            command("ip", "-n", switch, "link", "add", port, "type", "veth", *peer)
            command("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
            command("ip", "-n", name, "addr", "add", f"{_NETWORK}.{rank + 1}/24", "dev", "eth0")
            command("ip", "-n", name, "link", "set", "eth0", "up")
            command("ip", "-n", name, "link", "set", "lo", "up")
            throttle(switch, port)
            throttle(name, "eth0")
        yield names
    finally:
        for name in made:
            subprocess.run([str(programs["ip"]), "netns", "del", name], capture_output=True)  # noqa: S603


def _run_ranks(setting: Setting, namespaces: list[str], folder: Path) -> None:
    """One process per namespace; the first to fail ends all."""
    ip = str(shutil.which("ip"))
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    described = json.dumps(asdict(setting))
    processes = []
    try:
        for rank, namespace in enumerate(namespaces):
            command = [ip, "netns", "exec", namespace, sys.executable, "-m", _MODULE]
            arguments = ["--rank", str(rank), "--folder", str(folder), "--described", described]
            processes.append(subprocess.Popen([*command, *arguments], env=environment))  # noqa: S603
        end = time.monotonic() + _TIMEOUT_S
        while any(process.poll() is None for process in processes):
            if time.monotonic() > end or any(process.poll() for process in processes):
                break
            time.sleep(0.05)
        codes = [process.poll() for process in processes]
        if any(code != 0 for code in codes):
            raise InputError(f"the ranks ended with {codes} (None: stopped, within {_TIMEOUT_S:.0f} s); see above")
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _rank(setting: Setting, rank: int, folder: Path) -> None:
    """What one rank does: both gathers in turn; rank 0 writes the times, the mean over ranks of each iteration."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=setting.ranks,
        timeout=timedelta(seconds=_TIMEOUT_S),
    )
    sources = [
        torch.randn(setting.elements, generator=torch.Generator().manual_seed(r)).bfloat16()
        for r in range(setting.ranks)
    ]
    layout = Layout.whole(setting.elements, torch.bfloat16)
    output = torch.empty(setting.ranks, setting.elements, dtype=torch.bfloat16)
    local = torch.empty_like(output)
    payloads = torch.stack([layout.quantise(source) for source in sources])
    layout.dequantise(payloads, local.view(-1))

    def processor_part() -> None:
        layout.quantise(sources[rank])
        layout.dequantise(payloads, local.view(-1))

    calls: dict[str, Callable[[], object]] = {
        "bf16": lambda: all_gather_single(output.view(-1), sources[rank]),
        "nf4": lambda: quantised_all_gather(output, sources[rank], check=False),
        "nf4_without_link": processor_part,
    }
    expected = {"bf16": torch.stack(sources), "nf4": local.clone(), "nf4_without_link": local.clone()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    num_wrong = 0
    for iteration in range(-1, setting.iterations):
        for name, call in calls.items():
            dist.barrier()
            begin = time.perf_counter()
            call()
            seconds = torch.tensor(time.perf_counter() - begin, dtype=torch.float64)
            found = local if name == "nf4_without_link" else output
            num_wrong += int((found != expected[name]).sum())
            dist.all_reduce(seconds)
            if iteration >= 0:
                times[name].append(float(seconds) / setting.ranks)
    wrong = torch.tensor(num_wrong)
    dist.all_reduce(wrong)
    if rank == 0:
        write_json(folder / "times.json", {"times_s": times, "num_wrong": int(wrong)})
    leave_process_group()


def main(arguments: list[str] | None = None) -> None:
    """Measure and print one JSON document, or write it to ``--output``."""
    parser = argparse.ArgumentParser(
        prog="throttled_link", description="4-bit against 16-bit all-gather on a slow link"
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[Setting.ranks])
    parser.add_argument(
        "--mbit-per-s", type=float, nargs="+", default=[Setting.mbit_per_s], help="rates of the links, measured in turn"
    )
    parser.add_argument("--elements", type=int, default=Setting.elements, help="bf16 values per rank")
    parser.add_argument("--iterations", type=int, default=Setting.iterations)
    parser.add_argument("--output", type=Path, help="file for the result; by default standard output")
    for own in ("--rank", "--folder", "--described"):  # how this script starts its own ranks
        parser.add_argument(own, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.rank is not None:
        _rank(Setting(**json.loads(given.described)), int(given.rank), Path(given.folder))
        return
    # Without this a SIGTERM would end the script before it has removed its namespaces.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        settings = [
            Setting(ranks, rate, given.elements, given.iterations) for ranks in given.ranks for rate in given.mbit_per_s
        ]
        document = {
            "what": "all-gather of bf16 values, 16 bits against 4 bits on the wire, gloo ranks over a throttled link",
            "tool": f"python -m {_MODULE}",
            "link": f"veth and bridge in network namespaces, tc tbf both ways, burst {_BURST_BYTES} bytes",
            "device": f"{device_name(torch.device('cpu'))}, {os.cpu_count()} cores shared by all ranks",
            "load_average_at_start": os.getloadavg()[0],
            "versions": versions(),
            "runs": [measure(setting) for setting in settings],
        }
    except LinkRefusedError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return
    except InputError as error:
        print(f"throttled_link: {error}", file=sys.stderr)
        sys.exit(2)
    if given.output:
        write_json(given.output, document)
    else:
        print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
