"""``flopcast profile``: measures this machine, or the nodes that torchrun started it on, and writes one file.

What is measured is kept as it is measured: a profile that was interrupted goes on where it stopped.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from flopcast.collectives.running.surroundings import versions
from flopcast.errors import InputError, nearest
from flopcast.kernels.environment import device_name
from flopcast.kernels.progress import ProgressLines
from flopcast.simulator.catalogue import load_cluster
from flopcast.simulator.profile import FORMAT, KINDS, Profile, Sample, Skipped, write_profile
from flopcast.trainer.agreement import everywhere, gather_text
from flopcast.trainer.processes import gpus_per_node, process_group
from flopcast.trainer.profiling import nodes, units
from flopcast.trainer.profiling.measures import SIZES, Measurement, measurements
from flopcast.trainer.profiling.unfinished import Unfinished

Results = tuple[list[Sample], list[Skipped]]


def profile(
    output: Path, *, quick: bool = False, kinds: Sequence[str] = KINDS, cluster: str = "", quiet: bool = False
) -> Profile | None:
    """Measure this rank's device beside those of all other ranks; rank 0 writes ``output`` and returns it.

    ``quick``: fewer and smaller shapes. ``cluster``: a catalogue name or TOML file that says what is not measured, such
    as the network. Collectives are measured where there are two ranks or more. Raises InputError on every rank.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise InputError(f"--kinds holds '{unknown[0]}'; {nearest(unknown[0], list(KINDS))}")
    found = _found(cluster, output) if cluster else ""
    with process_group() as device:
        return _Profiler(device, output, quick, found, quiet).run(kinds)


def _found(cluster: str, output: Path) -> str:
    """The cluster as it is found again from where the profile will lie."""
    path = Path(cluster)
    load_cluster(cluster)
    if not path.is_file() or path.suffix != ".toml":
        return cluster
    beside = path.resolve().parent == output.resolve().parent
    return path.name if beside else str(path.resolve())


class _Profiler:
    """One profile on one rank."""

    def __init__(self, device: torch.device, output: Path, quick: bool, cluster: str, quiet: bool) -> None:
        self.device, self.output, self.cluster, self.quiet = device, output, cluster, quiet
        self.sizes = SIZES[device.type, quick]
        self.name = device_name(device)
        self.devices = nodes.devices(nodes.surroundings(device))
        names = sorted(set(gather_text(self.name)))
        if len(names) > 1:
            raise InputError(f"the ranks are on {' and '.join(names)}; a profile is of one kind of device")
        self.is_main = dist.get_rank() == 0
        what = [FORMAT, self.name, quick, dist.get_world_size(), versions(), sorted({d.host for d in self.devices})]
        opened = everywhere(lambda: Unfinished(output, what) if self.is_main else None)
        self.unfinished = opened
        done = gather_text(json.dumps(sorted(opened.done)) if opened else "")
        self.done = set(json.loads(done[0]))

    def run(self, kinds: Sequence[str]) -> Profile | None:
        tasks = self._tasks(kinds)
        with self._progress() as progress:
            task = progress.add_task("profile", total=len(tasks), doing="")
            has_lines = progress.disable and self.is_main and not self.quiet
            lines = ProgressLines(len(tasks)) if has_lines else None
            for number, (name, measure) in enumerate(tasks, 1):
                progress.update(task, doing=name)
                if name not in self.done:
                    if lines:
                        lines.begin(number, name.split()[0], name)
                    dist.barrier()
                    samples, skipped = measure()
                    if self.unfinished:
                        self.unfinished.add(name, samples, skipped)
                progress.advance(task)
        if self.unfinished is None:
            return None
        return self._write(self.unfinished, [name for name, _ in tasks])

    def _tasks(self, kinds: Sequence[str]) -> list[tuple[str, Callable[[], Results]]]:
        tasks: list[tuple[str, Callable[[], Results]]] = [
            (measurement.name, partial(_on_every_rank, measurement))
            for measurement in measurements(self.device, self.sizes)
            if measurement.name.split()[0] in kinds
        ]
        if dist.get_world_size() > 1 and "collective" in kinds:
            sizes, samples = self.sizes.collective_bytes, self.sizes.samples
            tasks += [(f"collective {n}", partial(nodes.collectives, n, sizes, samples)) for n in nodes.COLLECTIVES]
            across = max(dist.get_world_size() // gpus_per_node(), 1)
            for size in self.sizes.units:
                unit = Measurement(f"unit {size}", partial(units.measure, size, self.device, samples, across))
                tasks.append((unit.name, partial(_on_every_rank, unit)))
        return tasks

    def _progress(self) -> Progress:
        console = Console(file=sys.stderr)
        return Progress(
            TextColumn("profiling"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[doing]}"),
            console=console,
            disable=self.quiet or not self.is_main or not console.is_terminal,
        )

    def _write(self, unfinished: Unfinished, names: Sequence[str]) -> Profile:
        samples, skipped = unfinished.results(names)
        if not samples:
            if not unfinished.results(sorted(unfinished.done))[0]:  # of other kinds, to go on with
                unfinished.remove()
            raise InputError("nothing was measured; give --kinds that this machine has (collective needs two ranks)")
        found = Profile(
            format=FORMAT,
            device=self.name,
            device_type="cuda" if self.device.type == "cuda" else "cpu",
            memory_bytes=_memory_bytes(self.device),
            ranks_per_node=gpus_per_node(),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
            devices=self.devices,
            samples=samples,
            skipped=skipped,
            cluster=self.cluster,
        )
        write_profile(self.output, found)
        unfinished.remove()
        return found


def _on_every_rank(measurement: Measurement) -> Results:
    return nodes.side_by_side(measurement.run())


def _memory_bytes(device: torch.device) -> float:
    """Of the GPU, or this rank's share of the host's."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / gpus_per_node()
