"""What the trainer needs beyond a planner's install."""

from importlib.util import find_spec

from flopcast.errors import InputError


def require_torch() -> None:
    """Raise InputError with the command that installs PyTorch, where it is not installed."""
    if find_spec("torch") is None:
        raise InputError(
            "this command runs PyTorch, which is not installed; pip install '.[train]' in flopcast's folder"
        )
