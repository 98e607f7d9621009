"""Reads nccl-tests' own logs, what it prints and its ``-J`` JSON, so that a site's old runs feed the calibration."""

import re
from pathlib import Path

from flopcast.collectives.running.nccl_tests import Log, collective_named
from flopcast.collectives.running.nccl_tests_json import read_json
from flopcast.collectives.running.nccl_tests_text import read_text
from flopcast.errors import InputError

MAX_BYTES = 100_000_000


def read_log(path: Path, collective: str | None = None) -> Log:
    """The rows of a text or JSON log of nccl-tests.

    ``collective`` is needed for logs that do not name it (text before 2.18, a renamed program); a name that the log
    gives itself counts. Raises InputError with the line number and what was expected there, for a file that is cut
    off, of another kind or empty, and for rows that cannot be of ``collective``.
    """
    named = None if collective is None else collective_named(collective)
    text = _read(path)
    if re.match(r"\s*(\{|\[\s*\{)", text):
        return read_json(path, text, named)
    return read_text(path, text, named)


def _read(path: Path) -> str:
    """The text of the file, refused by its size before it is read."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: has more than {MAX_BYTES // 10**6} MB; name a log of nccl-tests")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a log of nccl-tests") from None
    if b"\0" in data:
        raise InputError(f"{path}: is a binary file; name a log of nccl-tests, text or -J JSON")
    return data.decode("utf-8-sig", errors="replace")
