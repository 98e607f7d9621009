"""Runs one of the fixed runs and sets its loss curve beside the stored one."""

import json
import platform
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flopcast.files import write_atomically
from flopcast.trainer.launch import Ranks
from flopcast.trainer.log import steps
from flopcast.trainer.regression.text import write_sources
from flopcast.trainer.settings import parse_flags, set_field, settings, to_toml

NAMES = ("short", "long")
DOCUMENTS = {"short": 300, "long": 3000}
HERE = Path(str(files(__package__)))
TIMEOUT_S = 6 * 3600.0


@dataclass(frozen=True)
class Comparison:
    """A curve beside the stored one: ``largest_gap`` is over means of ``window`` steps, in nats."""

    name: str
    losses: list[float]
    stored: list[float]
    window: int
    largest_gap: float
    at_step: int
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether every step was run and no gap is above the tolerance; a loss that is not a number never passes."""
        return len(self.losses) == len(self.stored) and self.largest_gap <= self.tolerance


def table(name: str, folder: Path, flags: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of a fixed run into ``folder/run``, its text written under ``folder``; ``flags`` override them."""
    data = tomllib.loads((HERE / f"{name}.toml").read_text(encoding="utf-8"))
    for field, value in parse_flags([*flags]):
        set_field(data, field, value)
    data["output"] = str(folder / "run")
    data["model"] = {**data.get("model", {}), "name": str(HERE / f"{name}-model.toml")}
    sources = write_sources(folder / "text", DOCUMENTS[name], data["seed"])
    data["data"] = {**data["data"], "folder": str(folder / "data"), "sources": sources}
    return data


def run(name: str, folder: Path, flags: Sequence[str] = (), num_ranks: int = 1) -> list[float]:
    """The losses of a fixed run, on this process alone or on as many ranks of this machine."""
    data = table(name, folder, flags)
    if num_ranks == 1:
        from flopcast.trainer.loop import train

        train(settings(data, f"{name}.toml"))
    else:
        config = folder / "run.toml"
        write_atomically(config, to_toml(data).encode())
        with Ranks([str(config)], num_ranks, folder / "errors") as ranks:
            ranks.check(TIMEOUT_S)
    return [record["loss"] for record in steps(folder / "run").values()]


def stored(name: str) -> dict[str, Any]:
    """The stored curve: ``losses``, ``window``, ``tolerance``, and what it was made with."""
    return dict(json.loads((HERE / f"{name}.json").read_text(encoding="utf-8")))


def compare(name: str, losses: Sequence[float], reference: dict[str, Any]) -> Comparison:
    """Means of ``window`` consecutive steps side by side; where the lengths differ, as far as both go."""
    window, ours, theirs = reference["window"], np.asarray(losses), np.asarray(reference["losses"])
    shared = min(len(ours), len(theirs)) // window * window
    if not shared:
        return Comparison(name, [*losses], reference["losses"], window, float("inf"), 0, reference["tolerance"])
    difference = np.abs((ours[:shared] - theirs[:shared]).reshape(-1, window).mean(axis=1))
    worst = int(np.argmax(np.where(np.isnan(difference), np.inf, difference)))
    return Comparison(
        name=name,
        losses=[*losses],
        stored=reference["losses"],
        window=window,
        largest_gap=float(difference[worst]),
        at_step=(worst + 1) * window,
        tolerance=reference["tolerance"],
    )


def store(name: str, losses: Sequence[float]) -> None:
    """Write the curve as the one to compare with, keeping window and tolerance."""
    reference = {
        **stored(name),
        "losses": [round(loss, 6) for loss in losses],
        "made_with": {"torch": torch.__version__, "processor": platform.machine()},
    }
    write_atomically(HERE / f"{name}.json", json.dumps(reference, indent=1).encode() + b"\n")
