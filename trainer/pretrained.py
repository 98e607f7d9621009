"""A run's dealings with Hugging Face folders: the model's constants, the weights it starts from, those it leaves."""

import dataclasses
from pathlib import Path

import torch
import torch.distributed as dist

from flopcast.errors import InputError
from flopcast.simulator.catalogue import model_file
from flopcast.simulator.huggingface import read_config
from flopcast.simulator.model import Model
from flopcast.trainer.agreement import everywhere
from flopcast.trainer.engine import Engine
from flopcast.trainer.huggingface import check_empty, config_of, read_numerics, save
from flopcast.trainer.numerics import Numerics
from flopcast.trainer.settings import ModelTable

# What two descriptions of one model may say differently.
LABELS = ("name", "context", "source", "assumptions", "published")


def make_numerics(settings: ModelTable, model: Model) -> Numerics:
    """Of the folder whose weights are trained on, else of the model's config.json where it says them, else as usual.

    Raises InputError where that folder's config.json describes another model, or constants that the trainer lacks.
    """
    if settings.weights is not None:
        check_same(model, read_config(settings.weights), settings.weights)
        return read_numerics(Path(settings.weights))
    path = model_file(settings.name)
    if path is None or path.suffix.lower() == ".toml":
        return Numerics()
    try:
        return read_numerics(path)
    except InputError:  # as for a model of the catalogue, which has shapes alone
        return Numerics()


def check_same(expected: Model, found: Model, folder: str) -> None:
    """Raise InputError with the first difference where a folder's config.json is not the model that is trained."""
    found = dataclasses.replace(found, **{label: getattr(expected, label) for label in LABELS})
    if found != expected:
        raise InputError(
            f"{folder}: is another model than {expected.name}: {_difference('', expected, found)}; give the weights of "
            "the model that model.name and model.qk_norm say"
        )


def _difference(name: str, ours: object, theirs: object) -> str:
    """The first field in which two descriptions differ."""
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        pairs = {f"layer {number}": pair for number, pair in enumerate(zip(ours, theirs, strict=False))}
        name, ours, theirs = "number of layers", len(ours), len(theirs)
        pairs = {} if ours != theirs else pairs
    elif dataclasses.is_dataclass(ours) and type(ours) is type(theirs):
        names = [field.name for field in dataclasses.fields(ours)]
        pairs = {field: (getattr(ours, field), getattr(theirs, field)) for field in names}
    else:
        pairs = {}
    for field, pair in pairs.items():
        if pair[0] != pair[1]:
            return _difference(field, *pair)
    return f"{name} is {theirs}, not {ours}"


def check_export(model: Model, numerics: Numerics, dtype: torch.dtype, folder: Path) -> None:
    """Raise InputError where :func:`export` would refuse, which is better known before training than after it."""
    config_of(model, numerics, dtype)
    check_empty(folder)


def export(engine: Engine, model: Model, numerics: Numerics, dtype: torch.dtype, folder: Path) -> None:
    """Write the weights as a Hugging Face folder, from rank 0, one whole tensor after another.

    Collective. Raises InputError on every rank where it cannot be written.
    """
    weights = engine.whole_weights()

    def write() -> None:
        try:
            if dist.get_rank() == 0:
                save(model, numerics, weights, folder, dtype)
        finally:
            for _ in weights:  # collecting a tensor takes every rank, also those and when there is nothing to write
                pass

    everywhere(write)
