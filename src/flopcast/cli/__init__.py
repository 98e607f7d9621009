"""The command line. Each command imports what it needs when it runs, so that ``--help`` loads nothing heavy."""

import contextlib
import io
import os
import shutil
import sys
from typing import NoReturn

from flopcast.errors import InputError

# A help page is laid out in columns; at a width below their margins that never ends.
LEAST_HELP_WIDTH = 40


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit 0 done, 1 a check fell short, 2 bad input with one line on stderr."""
    width = shutil.get_terminal_size().columns
    if width < LEAST_HELP_WIDTH or os.environ.get("COLUMNS") == "0":
        os.environ["COLUMNS"] = str(max(width, LEAST_HELP_WIDTH))
    if sys.stdout is None:  # closed by whoever started us, who may want the files alone
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to stop
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _run(arguments)
    except InputError as error:
        _fail(str(error))
    except BrokenPipeError:
        _discard_output()
        sys.exit(0)
    except OSError as error:
        _discard_output()
        _fail(f"{error.filename or 'standard output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        _interrupted()
    except Exception as error:
        if _began_with_an_interrupt(error):
            _interrupted()
        raise


def _run(arguments: list[str] | None) -> None:
    # Imported here, where Ctrl-C in the middle of it ends without a traceback.
    from cyclopts import CycloptsError

    from flopcast.cli.commands import app
    from flopcast.cli.complaint import complaint

    try:
        app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise InputError(complaint(error)) from None
    finally:
        sys.stdout.flush()


def _began_with_an_interrupt(error: BaseException | None) -> bool:
    """Whether an exception stands for Ctrl-C: extension modules turn it into an error of their import."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _interrupted() -> NoReturn:
    print("flopcast: interrupted", file=sys.stderr)
    sys.exit(130)


def _discard_output() -> None:
    """Let what is still to be written go nowhere, or Python complains of it once more when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> None:
    print("flopcast: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
