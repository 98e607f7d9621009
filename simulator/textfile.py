"""Reading a small text file that a user named: everything that can be wrong with it is one sentence."""

import stat
from pathlib import Path

from flopcast.errors import InputError

MAX_BYTES = 10_000_000


def read_text(path: Path, what: str) -> str:
    """The text of a UTF-8 file of at most 10 MB, refused by its size before it is read.

    ``what`` names the file expected, such as "a cluster file (TOML)". Raises InputError naming the path.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path}: is a directory; name {what}")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: is not a regular file; name {what}")
        if status.st_size > MAX_BYTES:
            raise InputError(
                f"{path}: has {status.st_size / 1e6:,.0f} MB, more than the "
                f"{MAX_BYTES // 1_000_000} MB allowed; name {what}"
            )
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; name {what}") from None
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); name {what}") from None
    except ValueError:  # a null byte in the name
        raise InputError(f"{str(path)!r}: is not a file name; name {what}") from None
    if b"\0" in data:
        raise InputError(f"{path}: is a binary file; name {what}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8 text; name {what}") from None
