"""``python -m flopcast.trainer.regression [--run short] --ranks 8 --plan.strategy zero3``: run and compare."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flopcast.errors import InputError
from flopcast.trainer.processes import TrainingStoppedError
from flopcast.trainer.regression.run import NAMES, compare, run, store, stored


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 where the curves agree, 1 where they do not, 2 for bad input."""
    parser = argparse.ArgumentParser(description="Run a fixed run and compare its losses with the stored ones.")
    parser.add_argument("--run", choices=NAMES, default="long")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--update", action="store_true", help="store this run's curve instead of comparing")
    chosen, flags = parser.parse_known_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            losses = run(chosen.run, Path(folder), flags, chosen.ranks)
    except (InputError, TrainingStoppedError) as error:
        print(f"flopcast: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    if chosen.update:
        store(chosen.run, losses)
        return 0
    found = compare(chosen.run, losses, stored(chosen.run))
    print(
        f"{found.name}: largest gap {found.largest_gap:.6f} nats (mean of {found.window} steps, step {found.at_step}), "
        f"{found.tolerance} allowed, last loss {found.losses[-1]:.4f}: {'agrees' if found.passed else 'DIFFERS'}"
    )
    return 0 if found.passed else 1


if __name__ == "__main__":
    sys.exit(main())
