"""A run's dealings with Hugging Face folders: the model's constants, the weights it starts from, those it leaves."""

import dataclasses
from pathlib import Path

import torch
import torch.distributed as dist

from flopcast.errors import InputError
from flopcast.simulator.catalogue import model_file
from flopcast.simulator.huggingface import read_config
from flopcast.simulator.model import Model
from flopcast.trainer.agreement import everywhere, gather_text, on_first_rank
from flopcast.trainer.checkpoint import CHECKPOINTS, complete_steps
from flopcast.trainer.engine import Engine
from flopcast.trainer.huggingface import check_empty, check_writable, config_of, read_numerics, save
from flopcast.trainer.log import FILE as LOG
from flopcast.trainer.log import records
from flopcast.trainer.numerics import Numerics
from flopcast.trainer.settings import ModelTable, Settings
from flopcast.trainer.workload import DTYPES

# What two descriptions of one model may say differently.
LABELS = ("name", "context", "source", "assumptions", "published")


def make_numerics(settings: ModelTable, model: Model) -> Numerics:
    """Of the folder whose weights are trained on; else as the settings say, as the model's config.json, or as usual.

    Raises InputError where that folder's config.json describes another model, or constants that the trainer lacks.
    """
    if settings.weights is not None:
        check_same(model, read_config(settings.weights), settings.weights)
        return read_numerics(Path(settings.weights))
    path = model_file(settings.name)
    # The catalogue and TOML files hold shapes alone.
    found = Numerics() if path is None or path.suffix.lower() == ".toml" else read_numerics(path)
    theta, eps = settings.rope_theta or found.rope_theta, settings.norm_eps or found.norm_eps
    return dataclasses.replace(found, rope_theta=theta, norm_eps=eps)


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


class Export:
    """The Hugging Face folder that a run leaves its weights in, where its settings name one."""

    def __init__(self, settings: Settings, model: Model, numerics: Numerics) -> None:
        """Collective. Raises InputError where :meth:`write` would, which is better known before training than after.

        Nothing is left to write where this run is at its end and its log says that it wrote the folder then.
        """
        self._model, self._numerics, self._dtype = model, numerics, DTYPES[settings.plan.dtype]
        self._folder = None if settings.checkpoint.export is None else Path(settings.checkpoint.export)
        if self._folder is None:
            return
        is_written = everywhere(lambda: "yes" if dist.get_rank() == 0 and _has_exported(settings) else "")
        if any(gather_text(is_written)):
            self._folder = None
        else:
            on_first_rank(self._check)

    def _check(self) -> None:
        assert self._folder is not None
        config_of(self._model, self._numerics, self._dtype)
        check_empty(self._folder)
        check_writable(self._folder)

    def write(self, engine: Engine) -> bool:
        """Whether there was a folder to write. Collective; raises InputError on every rank where it cannot be."""
        if self._folder is None:
            return False
        export(engine, self._model, self._numerics, self._dtype, self._folder)
        return True


def _has_exported(settings: Settings) -> bool:
    """Whether the last whole checkpoint is the run's end, and its weights were written, as the log says, and are there.

    A folder that was removed since is written again.
    """
    output = Path(settings.output)
    if not (Path(settings.checkpoint.export or "") / "config.json").exists():
        return False
    steps = complete_steps(output / CHECKPOINTS)
    if not steps or steps[-1] < settings.optimizer.num_steps or not (output / LOG).exists():
        return False
    written = {"event": "exported", "step": steps[-1], "folder": settings.checkpoint.export}
    return any(written.items() <= record.items() for record in records(output))


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
