"""Checkpoints: asynchronous, sharded, whole or not there, without a pickle.

PyTorch's distributed checkpoint plans and reshards; its safetensors storage (``HuggingFaceStorageWriter`` with
``save_distributed``) holds the shards, each with its offsets in its own header, because the default storage keeps its
metadata in a pickle. ``manifest.json`` adds the bytes and SHA-256 of every shard, the step, the order of the data and
what the run was. A folder is written as ``.step-....partial`` and renamed once the manifest is on the disk, so a folder
named ``step-...`` is whole, and anything else is not a checkpoint.
"""

import json
import re
import shutil
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.storage import WriteResult

from flopcast.errors import InputError
from flopcast.files import sync_folder, write_atomically
from flopcast.trainer.agreement import everywhere, on_first_rank
from flopcast.trainer.files import sha256, writing
from flopcast.trainer.manifest import (
    FORMAT,
    MANIFEST,
    State,
    check_description,
    check_files,
    check_shards,
    read_manifest,
)

CHECKPOINTS = "checkpoints"  # their folder in a run's
# Neither pinned nor shared memory, and the copy is done when ``save`` returns.
STAGING = (False, False, False, False)
_NAME = re.compile(r"step-(\d{9})")
# How often ranks that wait for a checkpoint ask whether the others are still there.
ASK_S = 1.0


def folder_name(step: int) -> str:
    """``7`` -> ``"step-000000007"``."""
    return f"step-{step:09d}"


def complete_steps(folder: Path) -> list[int]:
    """The steps of the whole checkpoints in a folder, in order; none where there is no folder."""
    names = (_NAME.fullmatch(manifest.parent.name) for manifest in folder.glob(f"*/{MANIFEST}"))
    return sorted(int(name[1]) for name in names if name)


@dataclass(frozen=True)
class ShardChecksum:
    """What the writer notes of a file it wrote, for the manifest."""

    file: str
    bytes: int
    sha256: str


class ShardWriter(HuggingFaceStorageWriter):
    """Every rank writes its shard into a temporary folder; the coordinator writes the manifest and renames."""

    def __init__(self, folder: Path, description: State) -> None:
        """``folder``: where the checkpoint will stand. ``description``: goes into the manifest."""
        self.folder, self.description = folder, description
        self.temporary = folder.with_name(f".{folder.name}.partial")
        super().__init__(str(self.temporary), save_distributed=True)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> "torch.futures.Future[list[WriteResult]]":
        """Write this rank's shard, and note its checksum with the first of its results."""
        results = super().write_data(plan, planner).wait()
        files = sorted({result.storage_data.relative_path for result in results})
        checksums = [ShardChecksum(f, (p := self.temporary / f).stat().st_size, sha256(p)) for f in files]
        noted = torch.futures.Future[list[WriteResult]]()
        noted.set_result([replace(result, storage_data=checksums) for result in results[:1]] + results[1:])
        return noted

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Make the checkpoint whole: manifest, flush, rename. Called on one rank, after all have written."""
        shards = [checksum for written in results for checksum in (written[0].storage_data if written else [])]
        manifest = {
            "format": FORMAT,
            **self.description,
            "shards": {shard.file: {"bytes": shard.bytes, "sha256": shard.sha256} for shard in shards},
        }
        write_atomically(self.temporary / MANIFEST, json.dumps(manifest, indent=2).encode())
        self.temporary.rename(self.folder)
        sync_folder(self.folder.parent)


class Checkpoints:
    """The checkpoints of one run. Collective: every rank calls every method, in the same order."""

    def __init__(self, folder: Path, keep: int, timeout_s: float = 600.0) -> None:
        """``folder``: holds a folder per checkpoint. ``keep``: how many of the last ones stay.

        ``timeout_s``: how long a rank waits for another that does not answer. A disk may take longer.
        """
        self.folder, self.keep = folder, keep
        # A group of its own: its collectives run in a thread beside those of training.
        self._group = dist.new_group(backend="gloo")
        self._patience = timedelta(seconds=timeout_s)
        self._waiting = dist.new_group(backend="gloo", timeout=self._patience)
        self._pending: Future[Metadata] | None = None
        self._step = 0

        def clean() -> None:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                for leftover in folder.glob(".step-*"):
                    shutil.rmtree(leftover)
            for found in sorted(folder.glob("step-*")):
                if _NAME.fullmatch(found.name) and not (found / MANIFEST).exists():
                    raise InputError(f"{found}: is no whole checkpoint, as it has no {MANIFEST}; remove it")

        on_first_rank(clean, self._group)

    def steps(self) -> list[int]:
        """The steps of the whole checkpoints, in order."""
        return complete_steps(self.folder)

    def manifest(self, step: int) -> Path:
        """The file that makes a checkpoint whole."""
        return self.folder / folder_name(step) / MANIFEST

    def save(self, step: int, state: State, description: State) -> None:
        """Copy ``state`` to host memory and write it in the background, after the checkpoint before is whole.

        ``state``: names to tensors, nested or not. ``description``: JSON for the manifest. Raises InputError on
        every rank where the checkpoint before could not be written.
        """
        self.wait()
        if step in self.steps():
            return
        writer = ShardWriter(self.folder / folder_name(step), {"step": step, **description})
        # A stager of our own: the writer's does not copy a scalar that is in host memory already, and training goes on.
        stager = DefaultStager(StagingOptions(*STAGING))
        pending = state_dict_saver.async_save(
            tensors(state), storage_writer=writer, process_group=self._group, async_stager=stager
        )
        assert isinstance(pending, Future)
        pending.add_done_callback(lambda _: stager.close())
        self._pending, self._step = pending, step

    @property
    def has_failed(self) -> bool:
        """Whether this rank knows already that the checkpoint under way cannot be written; :meth:`wait` says why."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def wait(self) -> int | None:
        """Wait for the checkpoint under way and drop those beyond ``keep``; its step, None where there was none.

        Raises InputError on every rank where it could not be written; what was written of it is removed. RuntimeError
        names the ranks that do not answer within the timeout.
        """
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        self._wait_for_all(pending)
        try:
            everywhere(lambda: _result(pending, self.folder, self._step), self._group)
        except InputError:
            partial = self.folder / f".{folder_name(self._step)}.partial"
            on_first_rank(lambda: shutil.rmtree(partial, ignore_errors=True), self._group)
            raise
        on_first_rank(self._drop_old, self._group)
        return self._step

    def _wait_for_all(self, pending: "Future[Metadata]") -> None:
        """Until the thread of every rank is done, however long it writes, while every rank answers."""
        done = torch.zeros(1, dtype=torch.int64)
        while not done:
            wait_for([pending], timeout=ASK_S)
            dist.monitored_barrier(self._waiting, self._patience, wait_all_ranks=True)
            done[:] = pending.done()
            dist.all_reduce(done, dist.ReduceOp.MIN, group=self._waiting)

    def _drop_old(self) -> None:
        for step in self.steps()[: -self.keep]:
            doomed = self.folder / f".{folder_name(step)}.partial"
            (self.folder / folder_name(step)).rename(doomed)
            shutil.rmtree(doomed)

    def load(self, step: int, state: State, description: State) -> State:
        """Fill the tensors of ``state`` from a checkpoint, on any number of ranks; the manifest.

        Every shard is checked against the manifest before any tensor is touched. ``description`` holds what the
        checkpoint must agree with, such as the model. Raises InputError on every rank where anything is amiss.
        """
        folder = self.folder / folder_name(step)
        others = [other for other in self.steps() if other != step]
        mend = f"remove {folder}" + (f" to go on from {folder_name(others[-1])}" if others else " to start over")
        manifest = everywhere(lambda: read_manifest(folder, mend), self._group)
        everywhere(lambda: check_description(manifest, description, folder), self._group)
        everywhere(lambda: check_files(folder, set(manifest["shards"]), mend), self._group)
        rank, ranks = dist.get_rank(), dist.get_world_size()
        mine = sorted(manifest["shards"])[rank::ranks]
        everywhere(lambda: check_shards(folder, {name: manifest["shards"][name] for name in mine}, mend), self._group)
        reader = HuggingFaceStorageReader(str(folder))
        try:
            state_dict_loader.load(tensors(state), storage_reader=reader, process_group=self._group)
        except CheckpointException as error:
            reason = _first_reason(error)
            raise InputError(f"{folder}: does not fit this run ({reason}); go on with the same model") from None
        return manifest


def tensors(state: State, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a nested state under dotted names; its numbers (rates, betas) are the settings' to give."""
    flat: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if isinstance(value, dict):
            flat |= tensors(value, f"{prefix}{name}.")
        elif isinstance(value, torch.Tensor):
            flat[f"{prefix}{name}"] = value
    return flat


def _result(pending: "Future[Metadata]", folder: Path, step: int) -> None:
    try:
        pending.result()
    except (CheckpointException, OSError) as error:
        raise InputError(
            f"{folder / folder_name(step)}: cannot be written ({_first_reason(error)}); make room or name another "
            "output; the checkpoints before it are untouched"
        ) from None


def _first_reason(error: BaseException) -> str:
    """One line for what went wrong on the first rank where something did."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = min(error.failures.items())
        return f"rank {rank}: {' '.join(str(cause).split())}"
    return " ".join(str(error).split())
