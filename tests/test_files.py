"""Files that are there whole or not at all."""

import errno
import os
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


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "b.json", tmp_path / "a.json"
    link.symlink_to(Path("elsewhere") / "b.json")
    for text in (b"made", b"replaced"):
        write_atomically(link, text)
        assert link.is_symlink()
        assert target.read_bytes() == text
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.json", "b.json", "elsewhere"]


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    def fill(path: Path) -> None:
        with replacing(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")
    for name in ("a.csv", "link.csv"):
        with pytest.raises(OSError, match="No space left") as caught:
            fill(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)
    with pytest.raises(FileNotFoundError) as absent, replacing(tmp_path / "none" / "a.csv") as place:
        place.write_text("x")
    assert absent.value.filename == str(tmp_path / "none" / "a.csv")
