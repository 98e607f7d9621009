"""The command line. Each command imports what it needs when it runs, so that ``--help`` loads nothing heavy."""

import sys

from cyclopts import CycloptsError

from flopcast.cli import benchmarks, measurement, planning, report, search, timeline, training, trust
from flopcast.cli.app import app
from flopcast.errors import InputError

__all__ = ["app", "benchmarks", "main", "measurement", "planning", "report", "search", "timeline", "training", "trust"]


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit 0 done, 1 a check fell short, 2 bad input with one line on stderr."""
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except InputError as error:
        _fail(str(error))
    except CycloptsError as error:
        _fail(str(error))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except KeyboardInterrupt:
        print("flopcast: interrupted", file=sys.stderr)
        sys.exit(130)


def _fail(message: str) -> None:
    print("flopcast: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
