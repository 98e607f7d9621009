"""Files that are there whole or not at all."""

import stat
from pathlib import Path

import pytest

from flopcast.files import replacing, write_atomically


def test_what_is_written_takes_the_name_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "a.json", b"first")
    write_atomically(tmp_path / "new" / "a.json", b"second")
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "new").iterdir()] == [("a.json", b"second")]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    def write_half() -> None:
        with replacing(tmp_path / "a.csv") as temporary:
            assert temporary.suffix == ".csv"
            temporary.write_text("half")
            raise RuntimeError

    (tmp_path / "a.csv").write_text("old")
    with pytest.raises(RuntimeError):
        write_half()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.csv", "old")]


def test_a_device_stays_a_device() -> None:
    with replacing(Path("/dev/null")) as place:
        place.write_text("gone")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
