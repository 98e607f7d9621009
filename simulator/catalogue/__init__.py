"""The catalogue: models and clusters by name, each a data file beside this one; a path is read as a file.

Only the file asked for is read. Names are found in any case, with "-", "_" and spaces alike or left out. A
name of the catalogue wins over a file of that name; anything else with a separator, a suffix, or a file there
is a path.
"""

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from flopcast.errors import InputError, nearest
from flopcast.simulator.catalogue.generic import generic_cluster
from flopcast.simulator.cluster import Cluster, Gpu
from flopcast.simulator.model import Model

__all__ = [
    "cluster_names",
    "generic_cluster",
    "gpu_names",
    "load_cluster",
    "load_gpu",
    "load_model",
    "model_names",
]

Folder = Literal["clusters", "models"]


@cache
def _entries(folder: Folder) -> dict[str, Traversable]:
    """The data files of a folder by name, in alphabetical order."""
    entries = (files(__name__) / folder).iterdir()
    return {
        entry.name.removesuffix(".toml"): entry
        for entry in sorted(entries, key=lambda entry: entry.name)
        if entry.name.endswith(".toml")
    }


def model_names() -> list[str]:
    """The models that :func:`load_model` knows by name."""
    return list(_entries("models"))


def cluster_names() -> list[str]:
    """The clusters that :func:`load_cluster` knows by name."""
    return list(_entries("clusters"))


def gpu_names() -> list[str]:
    """The GPUs that :func:`load_gpu` knows, aliases left out."""
    from flopcast.simulator import specification

    return specification.gpu_names()


def load_gpu(name: str) -> Gpu:
    """The GPU of that name or alias; InputError offers the nearest names."""
    from flopcast.simulator.specification import catalogue_gpu

    return catalogue_gpu(name).gpu()


def load_cluster(name_or_path: str | Path) -> Cluster:
    """The cluster of the catalogue of that name, the one that a TOML file describes, or a profile's (JSON)."""
    from flopcast.simulator.specification import parse_cluster, read_cluster

    name, entry = _find("clusters", name_or_path)
    if entry is not None:
        return parse_cluster(entry.read_text(encoding="utf-8"), entry.name, name)
    path = _path("cluster", name, cluster_names(), "a cluster's TOML file or a profile")
    if path.suffix.lower() == ".json":
        from flopcast.simulator.profile import read_profile
        from flopcast.simulator.profiled_cluster import cluster_of

        return cluster_of(read_profile(path), path.parent, str(path))
    return read_cluster(path)


def load_model(name_or_path: str | Path) -> Model:
    """The catalogue's model of that name, or that of a ``config.json``, its folder, or a TOML file."""
    name, entry = _find("models", name_or_path)
    if entry is not None:
        from flopcast.simulator.specification import parse_model

        return parse_model(entry.read_text(encoding="utf-8"), entry.name, name)
    path = _path("model", name, model_names(), "a Hugging Face config.json")
    if path.suffix.lower() == ".toml":
        from flopcast.simulator.specification import read_model

        return read_model(path)
    from flopcast.simulator.huggingface import read_config

    return read_config(path)


def model_file(name_or_path: str | Path) -> Path | None:
    """The file or folder that :func:`load_model` reads for that name; None where it is of the catalogue."""
    name, entry = _find("models", name_or_path)
    return None if entry is not None else _path("model", name, model_names(), "a Hugging Face config.json")


def _find(folder: Folder, name_or_path: str | Path) -> tuple[str, Traversable | None]:
    """The name as given, and the catalogue's file of that name where there is one."""
    name = str(name_or_path)
    entries = _entries(folder)
    by_letters = {_letters(known): known for known in entries}
    known = by_letters.get(_letters(name))
    return (known, entries[known]) if known is not None else (name, None)


def _letters(name: str) -> str:
    return name.strip().lower().replace("-", "").replace("_", "").replace(" ", "")


def _path(what: str, name: str, known: list[str], file: str) -> Path:
    """The path that a name is, where it is one; else InputError with the nearest names of the catalogue."""
    path = Path(name)
    is_named_file = path.suffix.lower() in {".json", ".toml"}
    try:
        exists = bool(name.strip()) and path.exists()
    except (OSError, ValueError):
        exists = False
    if exists or is_named_file:
        return path
    offer = nearest(path.name or name, known)
    if "/" in name or "\\" in name:
        raise InputError(f"{what} '{name}': no such file; name {file} or one of the catalogue: {offer}")
    raise InputError(f"unknown {what} '{name}'; {offer} (or name {file})")
