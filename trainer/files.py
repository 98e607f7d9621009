"""Checksums of files, what keeps them from being written, and one writer of a folder at a time."""

import contextlib
import fcntl
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from flopcast.errors import InputError

CHUNK_BYTES = 2**20
LOCK = ".lock"


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def writing(path: Path, mend: str = "make room or name another place") -> Iterator[None]:
    """Raise InputError where ``path`` cannot be written to for a reason of the operating system's."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); {mend}") from None


@contextlib.contextmanager
def locked(folder: Path, mend: str | None = None) -> Iterator[bool]:
    """Hold ``folder``, made where it is missing, until the context is left or the process ends in any way.

    Where another process holds it, wait, or raise InputError with ``mend``. A file system without locks gives none,
    and the context is False.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+", encoding="utf-8")
    with file:
        is_alone = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if mend else 0))
        except BlockingIOError:
            file.seek(0)
            raise InputError(f"{folder}: another job writes into it ({file.read()}); {mend}") from None
        except OSError:
            is_alone = False
        with contextlib.suppress(OSError):  # who holds it is only for the message
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield is_alone
