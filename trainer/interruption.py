"""Is anything lost by ``kill -9``? Kills a run at random moments, resumes it, and compares it with one left in peace.

``python -m flopcast.trainer.interruption --kills 20 --ranks 2 --output FOLDER [--config CONFIG.toml]``
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from flopcast.errors import InputError
from flopcast.files import write_atomically
from flopcast.trainer.checkpoint import CHECKPOINTS, complete_steps, folder_name
from flopcast.trainer.launch import POLL_S, Ranks
from flopcast.trainer.log import records
from flopcast.trainer.regression.run import table
from flopcast.trainer.settings import read_settings, to_toml

TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Kill:
    """One kill: the last step logged, the last whole checkpoint, and the step that the next start went on from."""

    after_step: int
    last_checkpoint: int
    resumed_from: int
    unfinished_folders: int


@dataclass(frozen=True)
class Interruption:
    """What came of it: whether every loss and every byte of the last checkpoint are those of the run left in peace."""

    kills: list[Kill]
    num_steps: int
    num_losses_compared: int
    losses_equal: bool
    checkpoint_equal: bool

    @property
    def passed(self) -> bool:
        """Nothing lost after the last whole checkpoint, and every bit as in the run left in peace."""
        return (
            self.losses_equal
            and self.checkpoint_equal
            and all(kill.resumed_from >= kill.last_checkpoint for kill in self.kills)
        )


def interrupt(
    config: Path, flags: Sequence[str], kills: int, num_ranks: int, output: Path, seed: int = 0
) -> Interruption:
    """Run once in peace and once with that many kills at random moments, into folders under ``output``.

    The data must not change in between; checkpoints come as often as the settings say. Raises InputError where a
    start fails for another reason than being killed, or where the run ends before it was killed as often as asked.
    """
    settings = read_settings(config, [*flags])
    num_steps = settings.optimizer.num_steps
    peace, trial = output / "peace", output / "interrupted"
    _run([str(config), *flags, f"--output={peace}"], num_ranks, peace)
    moments = random.Random(seed)  # noqa: S311
    done: list[Kill] = []
    arguments = [str(config), *flags, f"--output={trial}"]
    for remaining in range(kills, 0, -1):
        last = max(complete_steps(trial / CHECKPOINTS), default=0)
        target = moments.randint(last + 1, max(last + 2, last + (num_steps - 1 - last) // remaining))
        done.append(_start_and_kill(arguments, num_ranks, trial, target, moments.uniform(0.0, 0.1)))
    _run(arguments, num_ranks, trial)
    starts = _starts(trial)
    resumed = [Kill(**{**asdict(kill), "resumed_from": start}) for kill, start in zip(done, starts[1:], strict=True)]
    expected = _losses(peace)
    compared = [(record["step"], record["loss"], record["gradient_norm"]) for record in _step_records(trial)]
    return Interruption(
        kills=resumed,
        num_steps=num_steps,
        num_losses_compared=len(compared),
        losses_equal=all(expected[step] == (loss, norm) for step, loss, norm in compared)
        and {step for step, _, _ in compared} == set(expected),
        checkpoint_equal=_same_tensors(*(run / CHECKPOINTS / folder_name(num_steps) for run in (peace, trial))),
    )


def _start_and_kill(arguments: Sequence[str], num_ranks: int, output: Path, target: int, delay_s: float) -> Kill:
    """Start, wait until ``target`` is logged, then ``delay_s`` more, and kill every rank."""
    already = len(_step_records(output))
    deadline = time.monotonic() + TIMEOUT_S
    with Ranks(arguments, num_ranks, output / "errors") as ranks:
        while not any(record["step"] >= target for record in _step_records(output)[already:]):
            if not ranks.running or time.monotonic() > deadline:
                raise InputError(f"the run ended before it was killed at step {target}: {ranks.error_text(0)[-500:]}")
            time.sleep(POLL_S)
        time.sleep(delay_s)
        ranks.kill()
    steps = complete_steps(output / CHECKPOINTS)
    unfinished = len(list((output / CHECKPOINTS).glob(".step-*")))
    return Kill(_step_records(output)[-1]["step"], max(steps, default=0), -1, unfinished)


def _run(arguments: Sequence[str], num_ranks: int, output: Path) -> None:
    with Ranks(arguments, num_ranks, output / "errors") as ranks:
        ranks.check(TIMEOUT_S)


def _records(output: Path) -> list[dict[str, Any]]:
    try:
        return list(records(output))
    except FileNotFoundError:
        return []


def _step_records(output: Path) -> list[dict[str, Any]]:
    return [record for record in _records(output) if "event" not in record]


def _starts(output: Path) -> list[int]:
    """The step that each start went on from."""
    return [record["step"] for record in _records(output) if record.get("event") == "start"]


def _losses(output: Path) -> dict[int, tuple[float, float]]:
    return {record["step"]: (record["loss"], record["gradient_norm"]) for record in _step_records(output)}


def _same_tensors(a: Path, b: Path) -> bool:
    """Whether two checkpoints of one layout hold the same bits; the order inside a shard's header is not fixed."""
    names = sorted(path.name for path in a.glob("*.safetensors"))
    if not names or names != sorted(path.name for path in b.glob("*.safetensors")):
        return False
    for name in names:
        ours, theirs = load_file(a / name), load_file(b / name)
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[key], theirs[key]) for key in ours):
            return False
    return True


def _short_run(folder: Path) -> Path:
    """A configuration of two sequences per pass and a checkpoint every second step, on synthetic text."""
    config = folder / "run.toml"
    data = table("short", folder)
    data["plan"]["micro_batch"] = 2
    data["checkpoint"] = {"every": 2}
    write_atomically(config, to_toml(data).encode())
    return config


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 where nothing was lost, 1 where something was, 2 for bad input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, help="settings of the run; by default the short regression run")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--result", type=Path)
    chosen, flags = parser.parse_known_args(arguments)
    try:
        config = chosen.config or _short_run(chosen.output)
        found = interrupt(config, flags, chosen.kills, chosen.ranks, chosen.output)
    except InputError as error:
        print(f"flopcast: {error}", file=sys.stderr)
        return 2
    document = json.dumps({"passed": found.passed, "ranks": chosen.ranks, **asdict(found)}, indent=2)
    if chosen.result is not None:
        write_atomically(chosen.result, document.encode() + b"\n")
    print(document)
    return 0 if found.passed else 1


if __name__ == "__main__":
    sys.exit(main())
