"""``python -m flopcast.trainer.data CONFIG.toml``: make the tokenizer and the token files before the job starts."""

import sys
from pathlib import Path

from flopcast.errors import InputError
from flopcast.trainer.settings import read_settings


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 done, 2 bad input with one line on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        from flopcast.trainer.data.preparation import prepare

        if not arguments or arguments[0].startswith("--"):
            raise InputError("no settings; write python -m flopcast.trainer.data CONFIG.toml")
        data = read_settings(Path(arguments[0]), arguments[1:]).data
        prepare(data)
        sources = ", ".join(source.name for source in data.sources)
        print(f"flopcast: the tokens of {sources} are ready in {data.folder}", file=sys.stderr)
    except InputError as error:
        print(f"flopcast: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
