"""What an unfinished profile has measured so far: a line of JSON per measurement, beside the file it will become."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flopcast.errors import InputError
from flopcast.files import write_atomically
from flopcast.simulator.profile import Sample, Skipped


class Unfinished:
    """Measurements by name, kept in ``.NAME.partial.jsonl``; those of another machine or version are forgotten."""

    def __init__(self, output: Path, identity: list[Any]) -> None:
        """``identity``: what must be the same for old measurements to count. Raises InputError for a bad path."""
        self.path = output.with_name(f".{output.name}.partial.jsonl")
        self._found: dict[str, dict[str, Any]] = {}
        header = {"profile of": json.loads(json.dumps(identity))}
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            if output.is_dir():
                raise InputError(f"{output}: is a directory; name a file, such as profile.json")
            lines = self._lines()
            if lines[:1] == [header]:
                self._found = {line["name"]: line for line in lines[1:]}
            kept = "".join(json.dumps(line) + "\n" for line in (header, *self._found.values()))
            write_atomically(self.path, kept.encode())
        except OSError as error:
            raise InputError(f"{output}: cannot be written ({error.strerror or error}); name another file") from None

    def _lines(self) -> list[Any]:
        """The whole lines of an earlier attempt; one cut short is passed over."""
        found = []
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    found.append(json.loads(line))
                except ValueError:
                    continue
        return found

    @property
    def done(self) -> set[str]:
        """The names of what was measured already."""
        return set(self._found)

    def add(self, name: str, samples: Sequence[Sample], skipped: Sequence[Skipped]) -> None:
        """Keep one measurement's results; they are on the disk when this returns."""
        line = {
            "name": name,
            "samples": [sample.model_dump(mode="json") for sample in samples],
            "skipped": [item.model_dump(mode="json") for item in skipped],
        }
        self._found[name] = line
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def results(self, names: Sequence[str]) -> tuple[list[Sample], list[Skipped]]:
        """Samples and what was skipped of these measurements, in their order."""
        lines = [self._found[name] for name in names]
        samples = [Sample(**sample) for line in lines for sample in line["samples"]]
        return samples, [Skipped(**item) for line in lines for item in line["skipped"]]

    def remove(self) -> None:
        """Forget them: the profile is written."""
        self.path.unlink(missing_ok=True)
