"""Checksums of files, what keeps them from being written, and one writer of a folder at a time."""

import contextlib
import fcntl
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

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
    and the context is False. An error that leaves nothing else in the folder leaves no folder.
    """
    is_new = not folder.exists()
    file, is_alone = _hold(folder, mend)
    with file:
        with contextlib.suppress(OSError):  # who holds it is only for the message
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        try:
            yield is_alone
        except BaseException:
            with contextlib.suppress(OSError):
                if is_alone and os.listdir(folder) == [LOCK]:
                    (folder / LOCK).unlink()
                    if is_new:
                        folder.rmdir()
            raise


def _hold(folder: Path, mend: str | None) -> tuple[IO[str], bool]:
    """The lock of a folder, and whether the file system knows of locks."""
    while True:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                file = (folder / LOCK).open("a+", encoding="utf-8")
            except FileNotFoundError:  # the one before us was refused and took the folder away
                continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if mend else 0))
        except BlockingIOError:
            with file:
                file.seek(0)
                raise InputError(f"{folder}: another job writes into it ({file.read()}); {mend}") from None
        except OSError:
            return file, False
        if os.fstat(file.fileno()).st_nlink:
            return file, True
        file.close()  # the one that we waited for was refused and took it away
