"""What a run reports: a line of JSON per step, TensorBoard events, a progress bar or now and then a line.

Only rank 0 writes.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flopcast.errors import InputError
from flopcast.trainer.files import writing

FILE = "log.jsonl"
# Where stderr is no terminal a line this often says that the run is alive, and how it does.
LINE_EVERY_S = 60.0
# What is said of an event, bar or none.
SAID = {
    "complete": "is at step {step} of {num_steps}: no step is left; records in {file}",
    "start": "trains from step {step} of {num_steps}, records in {file}",
    "warning": "{words}",
    "stopped": "stopped after step {step} as asked; the same command goes on from there",
    "exported": "wrote the weights to {folder}",
    "done": "done after step {step}",
}


class Log(AbstractContextManager["Log"]):
    """Appends records to ``log.jsonl``; every record is flushed, so that a killed run loses none."""

    def __init__(self, folder: Path, num_steps: int, tensorboard: bool = False, console: Console | None = None) -> None:
        """``folder``: receives the log. Raises InputError where it cannot be written or TensorBoard is missing."""
        with writing(folder / FILE):
            folder.mkdir(parents=True, exist_ok=True)
            self._events = _event_writer(folder / "tensorboard") if tensorboard else None
            self._file = _open_for_appending(folder / FILE)
        console = console or Console(file=sys.stderr)
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._num_steps, self._path, self._said = num_steps, folder / FILE, -LINE_EVERY_S
        self._task = self._progress.add_task("training", total=num_steps, status="")
        self._progress.start()

    def event(self, event: str, **fields: Any) -> None:
        """Something that is not a step: a start, a checkpoint, a validation loss, a stop."""
        self._write({"event": event, "time": round(time.time(), 3), **fields})
        said = "complete" if event == "start" and fields["step"] >= self._num_steps else event
        if said in SAID:
            self._say(SAID[said].format(num_steps=self._num_steps, file=self._path, **fields))
        if self._events is not None and event == "validation":
            self._events.add_scalar("validation loss", fields["loss"], fields["step"])

    def step(self, step: int, **fields: Any) -> None:
        """One optimizer step, numbered from 1."""
        self._write({"step": step, **fields})
        rate = fields.get("tokens_per_s")
        status = f"loss {fields['loss']:.4f}" + (f", {rate:,.0f} tokens/s" if rate else "")
        self._progress.update(self._task, completed=step, status=status)
        if self._progress.disable and time.monotonic() - self._said > LINE_EVERY_S:
            self._said = time.monotonic()
            self._say(f"step {step} of {self._num_steps}: {status}")
        if self._events is not None:
            for name, value in fields.items():
                if isinstance(value, int | float):
                    self._events.add_scalar(name, value, step)

    def _say(self, words: str) -> None:
        self._progress.console.print(f"flopcast: {words}", markup=False, highlight=False, soft_wrap=True)

    def _write(self, record: dict[str, Any]) -> None:
        with writing(self._path, "make room and start again to go on from the last checkpoint"):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files and the progress bar."""
        self._progress.stop()
        with suppress(OSError):  # what could not be written has been said
            self._file.close()
        if self._events is not None:
            self._events.close()


def _open_for_appending(path: Path) -> IO[str]:
    """Behind the last whole line: what a killed run left of its last one is closed by a line break."""
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if file.read(1) not in (b"", b"\n"):
            file.write(b"\n")
    return path.open("a", encoding="utf-8")


def _event_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("log.tensorboard needs tensorboard; pip install tensorboard, or leave it out") from None
    return SummaryWriter(os.fspath(folder))


def records(folder: Path) -> Iterator[dict[str, Any]]:
    """Every whole record of a run's log, in order; a line cut short by a kill is passed over."""
    for line in (folder / FILE).read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def steps(folder: Path) -> dict[int, dict[str, Any]]:
    """The record of each step, the last one where a resumed run took the step again."""
    taken = {record["step"]: record for record in records(folder) if "event" not in record}
    return dict(sorted(taken.items()))
