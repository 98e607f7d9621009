"""What a run is, for its log and its checkpoints, and what of it may not be meant."""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

from flopcast.simulator.model import Model
from flopcast.simulator.plan import Plan
from flopcast.trainer.data.batches import Dataset
from flopcast.trainer.numerics import Numerics
from flopcast.trainer.pretrained import LABELS
from flopcast.trainer.settings import Settings


def start_record(settings: Settings, plan: Plan, numerics: Numerics, data: Dataset) -> dict[str, Any]:
    """All that says which run a log is of, as JSON holds it."""
    return {
        "model": settings.model.model_dump(),
        "numerics": dataclasses.asdict(numerics),
        "plan": dataclasses.asdict(plan),
        "dtype": settings.plan.dtype,
        "data": data.description,
        "settings": settings.model_dump(),
    }


def described(model: Model) -> str:
    """The shapes that make two models the same to a checkpoint, in words: sizes, and a digest of every parameter's."""
    tensors = [*model.root_tensors(), *(t for block in model.layers for t in block.tensors(model.hidden))]
    digest = hashlib.sha256(repr([(t.name, t.shape) for t in tensors]).encode()).hexdigest()[:8]
    return f"{model.num_parameters:,} parameters in {model.num_layers} layers of hidden {model.hidden} ({digest})"


def constants(numerics: Numerics) -> dict[str, Any]:
    """What a model computes beyond its shapes, as JSON holds it; the activation that none stands for is named."""
    return dataclasses.asdict(dataclasses.replace(numerics, activation=numerics.activation_of(gated=True)))


def architecture(model: Model) -> dict[str, Any]:
    """Every field of a model that changes what it computes, as JSON holds it: shapes alone do not tell them all."""
    fields = {name: value for name, value in dataclasses.asdict(model).items() if name not in LABELS}
    return {**fields, "layers": {str(number): block for number, block in enumerate(fields["layers"])}}


def warnings(settings: Settings, plan: Plan, model: Model, step: int) -> Iterator[str]:
    """What is allowed and may not be meant, of a run that goes on from ``step``."""
    table = settings.optimizer
    if model.positions == "rotary" and plan.seq_len > model.context:
        yield f"plan.seq_len = {plan.seq_len} is beyond the {model.context} tokens that {model.name} is made for"
    if step < table.num_steps < table.warmup_steps:
        yield (
            f"optimizer.warmup_steps = {table.warmup_steps} is more than num_steps = {table.num_steps}: the learning "
            "rate does not come to its peak"
        )
    if missed := [number for number in settings.log.profile if number > table.num_steps]:
        yield (
            f"log.profile = {settings.log.profile} has steps beyond num_steps = {table.num_steps}: "
            f"{', '.join(map(str, missed))} will not be traced"
        )
