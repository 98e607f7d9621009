"""``torchrun ... -m flopcast.trainer CONFIG.toml --section.field value``: train."""

import os
import sys
from pathlib import Path

from flopcast.errors import InputError
from flopcast.trainer.installed import require_torch


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 done, 75 stopped as SIGTERM asked, 1 by what happened in training, 2 bad input, 130 Ctrl-C.

    One line says why.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        require_torch()
    except InputError as error:
        print(f"flopcast: {error}", file=sys.stderr)
        return 2
    from flopcast.trainer.loop import train
    from flopcast.trainer.processes import LostRankError, TrainingStoppedError
    from flopcast.trainer.settings import read_settings

    try:
        if not arguments or arguments[0].startswith("--"):
            raise InputError("no settings; write python -m flopcast.trainer CONFIG.toml --section.field value")
        settings = read_settings(Path(arguments[0]), arguments[1:])
        if train(settings) < settings.optimizer.num_steps:
            return os.EX_TEMPFAIL
    except InputError as error:
        print(f"flopcast: {error}", file=sys.stderr)
        return 2
    except LostRankError as error:
        print(f"flopcast: {error}", file=sys.stderr, flush=True)
        # The thread of a checkpoint waits for the lost rank too, half an hour for one that hangs, and Python for it.
        sys.stdout.flush()
        os._exit(1)
    except TrainingStoppedError as error:
        print(f"flopcast: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("flopcast: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
