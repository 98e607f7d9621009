"""Writing so that a reader sees the whole file or none of it, after a crash too."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside ``path``, flushed to the disk and renamed to it at the end; on failure nothing is left.

    Its name ends as the path's does, since writers choose a format by that. A device or a pipe is written to itself, a
    link's target in place of the link. An OSError names ``path``.
    """
    if path.exists() and not path.is_file():
        with _naming(path, path):
            yield path
        return
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{os.getpid()}.partial.{target.name}")
    try:
        with _naming(path, temporary):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


@contextlib.contextmanager
def _naming(path: Path, temporary: Path) -> Iterator[None]:
    """Errors of a full disk name no file, and others the one beside it."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename) == str(temporary):
            error.filename, error.filename2 = str(path), None
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Write the bytes to ``path``, whole or not at all; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
