"""A checkpoint's manifest: read, and held against the files beside it and the run that goes on from it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flopcast.errors import InputError
from flopcast.trainer.files import sha256

MANIFEST = "manifest.json"
FORMAT = 1

State = dict[str, Any]


def read_manifest(folder: Path, mend: str) -> State:
    """The manifest of a checkpoint. Raises InputError where it cannot be read; ``mend`` ends the message."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise InputError(f"{folder}: has format {manifest['format']}, not {FORMAT}; {mend}")
        for shard in manifest["shards"].values():
            int(shard["bytes"]), str(shard["sha256"])
        return dict(manifest)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{folder / MANIFEST}: is not the manifest of a checkpoint; {mend}") from None


def check_description(manifest: State, description: State, folder: Path) -> None:
    """Raise InputError where the run of ``description`` and the checkpoint's differ, with both values.

    Of a table only what both have is compared: manifests of earlier versions lack entries and fields.
    """
    for entry, expected in description.items():
        theirs = manifest.get(entry)
        if isinstance(expected, dict) and theirs is None:
            continue
        for name, found, ours in _differences(entry, theirs, expected):
            raise InputError(
                f"{folder}: {name.removeprefix('constants.')} is {_said(found)} in the checkpoint and {_said(ours)} in "
                f"this run; go on with the same {entry}"
            )


def _differences(name: str, theirs: Any, ours: Any) -> Iterator[tuple[str, Any, Any]]:
    """Dotted name and both values of all that differs."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for field in [field for field in ours if field in theirs]:
            yield from _differences(f"{name}.{field}", theirs[field], ours[field])
    elif theirs != ours:
        yield name, theirs, ours


def _said(value: Any) -> str:
    """As a settings file has it: 10000 for 10000.0, a table as its fields."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(item)}" for name, item in value.items())
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    return "none" if value is None else repr(value)


def check_files(folder: Path, shards: set[str], mend: str) -> None:
    """PyTorch reads every shard in the folder: none may be there that the manifest knows no checksum of."""
    if strangers := {path.name for path in folder.glob("*.safetensors")} - shards:
        raise InputError(f"{folder / min(strangers)}: is not in {MANIFEST}, so is of no whole checkpoint; {mend}")


def check_shards(folder: Path, shards: dict[str, State], mend: str) -> None:
    """Raise InputError for a shard that has not the manifest's bytes or checksum."""
    for name, expected in shards.items():
        path = folder / name
        found = path.stat().st_size if path.exists() else 0
        if found != expected["bytes"]:
            raise InputError(f"{path}: has {found} bytes, not {expected['bytes']}; it is truncated; {mend}")
        if sha256(path) != expected["sha256"]:
            raise InputError(f"{path}: its checksum is not the manifest's; it is corrupted; {mend}")
