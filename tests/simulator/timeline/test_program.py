"""The pieces of a pass in the order in which a trace shows them."""

from typing import Any

import numpy as np
import pytest
from builders import H100, cluster, plan

from flopcast.simulator.catalogue import load_model, model_names
from flopcast.simulator.constants import default_constants
from flopcast.simulator.hardware import Hardware
from flopcast.simulator.operations import step_operations
from flopcast.simulator.plan import Plans
from flopcast.simulator.timeline.program import ORDER, PLACE, Program, build

LAYOUTS: list[dict[str, Any]] = [
    {},
    {"cp": 2},
    {"tp": 2, "sequence_parallel": True},
    {"tp": 2, "sequence_parallel": True, "ep": 4},
    {"ep": 8, "cuda_graphs": "partial"},
]


def program(name: str, layout: dict[str, Any]) -> Program:
    model, plans = load_model(name), Plans.of([plan("ddp", 16, engine="megatron", **layout)])
    where = Hardware.of([cluster(H100)])
    return build(model, step_operations(model, plans, np.array([8])), plans, where, default_constants())


def of_each_make() -> list[str]:
    """A model of the catalogue for each combination of kinds of layer and of norms."""
    found = {frozenset((b.kind, b.num_norms, b.parallel) for b in load_model(n).kinds): n for n in model_names()}
    return sorted(found.values())


@pytest.mark.parametrize("name", of_each_make())
def test_every_piece_of_a_pass_has_its_place(name: str) -> None:
    assert len(PLACE) == len(ORDER)
    for layout in LAYOUTS if load_model(name).num_experts else LAYOUTS[:3]:
        for unit in program(name, layout).units.values():
            for piece in (*unit.forward, *unit.backward):
                words = piece.name.split(".")[1:]
                stem = ".".join(words[:-1] if words[-1].isdigit() else words)
                assert stem in PLACE or stem in ("accumulate", "dequantise"), piece.name


def test_a_mixtures_rows_are_sorted_around_its_experts() -> None:
    (layer,) = [unit for name, unit in program("qwen3-30b-a3b", {"ep": 8}).units.items() if "expert" in name]
    names = [piece.name.partition(".")[2] for piece in layer.forward]
    inner = ["permute", "dispatch_counts", "dispatch", "sort", "experts.gate", "experts.down", "unsort", "combine"]
    assert [name for name in names if name in inner] == inner
