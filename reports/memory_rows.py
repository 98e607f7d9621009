"""Published peaks of memory beside the forecast's, each by the counter that its source read."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from flopcast.reports.runs import Run
from flopcast.simulator.batch import Case, by_model, memory_of
from flopcast.simulator.constants import Constants, default_constants
from flopcast.simulator.memory import outside_bytes
from flopcast.simulator.operation import Array
from flopcast.simulator.placement import IntArray

FILE = Path(__file__).parent / "measurements" / "memory_counters.toml"
Counter = Literal["allocated", "reserved", "card", "unsaid"]


@cache
def counters() -> dict[str, Counter]:
    """The counter of every source of the published runs, as ``memory_counters.toml`` cites it."""
    with FILE.open("rb") as file:
        table = tomllib.load(file)
    found: dict[str, Counter] = {source: facts["counter"] for source, facts in table.items()}
    assert set(found.values()) <= set(get_args(Counter)), f"{FILE.name} has a counter that is none of them"
    return found


@dataclass(frozen=True)
class MemoryRows:
    """The runs that state their memory, and the forecast's bytes that no constant changes.

    ``allocated_bytes``: tensors at the peak; ``pieces_bytes``: tensors of the update that the allocator holds besides.
    A source that says nothing of its counter is compared as what nvidia-smi shows.
    """

    runs: tuple[Run, ...]
    allocated_bytes: Array
    pieces_bytes: Array
    measured_bytes: Array

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "MemoryRows":
        """The runs that are not skipped and state their memory."""
        stated = [(run, run.measured_memory_bytes) for run in runs if not run.skipped and run.measured_memory_bytes]
        cases = []
        for run, _ in stated:
            assert run.model is not None
            assert run.cluster is not None
            assert run.plan is not None
            cases.append(Case(run.model, run.cluster, run.plan))
        allocated, pieces = np.empty(len(cases)), np.empty(len(cases))
        for places in by_model(cases).values():
            held = memory_of([cases[place] for place in places])
            allocated[places], pieces[places] = held.allocated, held.in_one_piece
        measured = np.array([size for _, size in stated], dtype=np.float64)
        return cls(tuple(run for run, _ in stated), allocated, pieces, measured)

    @property
    def sources(self) -> np.ndarray:
        """The table each run is from."""
        return np.array([run.source for run in self.runs])

    @property
    def num_gpus(self) -> IntArray:
        """The GPUs of each run."""
        return np.array([run.plan.num_gpus for run in self.runs if run.plan])

    @property
    def counters(self) -> np.ndarray:
        """The counter of each run."""
        return np.array([counters().get(run.source, "unsaid") for run in self.runs])

    def predicted_bytes(self, constants: Constants | None = None) -> Array:
        """The forecast by each row's counter: tensors, what is reserved for them, and what the card holds besides."""
        constants = constants or default_constants()
        reserved = (1 + constants.allocator_slack) * self.allocated_bytes + self.pieces_bytes
        by_counter = self.counters
        return np.select(
            [by_counter == "allocated", by_counter == "reserved"],
            [self.allocated_bytes, reserved],
            reserved + outside_bytes(self.num_gpus, constants),
        )

    def log_errors(self, constants: Constants) -> Array:
        """log(predicted / measured)."""
        return np.log(self.predicted_bytes(constants) / self.measured_bytes)
