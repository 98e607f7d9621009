"""What the host has waited for the device for, and where in our code: on a GPU each entry is an idle queue."""

import sys

waits: list[str] = []


def wait(what: str) -> None:
    """Note that the host waits here."""
    waits.append(f"{what} in {_place()}")


def _place() -> str:
    """The innermost line of flopcast on the stack."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("flopcast."):
            return f"{frame.f_globals['__name__']}:{frame.f_lineno}"
        frame = frame.f_back
    return "torch"
