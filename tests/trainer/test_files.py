import contextlib
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from flopcast.errors import InputError
from flopcast.trainer.files import locked


def hold(folder: Path, seconds: float) -> None:
    with locked(folder):
        (folder / "begun").touch()
        time.sleep(seconds)
        (folder / "ended").touch()


def wait_for(path: Path) -> None:
    for _ in range(2000):
        if path.exists():
            return
        time.sleep(0.005)
    raise AssertionError(path)


def test_a_folder_is_held_by_one_process_and_let_go_by_its_death(tmp_path: Path) -> None:
    other = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path / "run", 60.0))
    other.start()
    wait_for(tmp_path / "run" / "begun")
    refused = rf"run: another job writes into it \(process {other.pid} on .*\); go away"
    with pytest.raises(InputError, match=refused), locked(tmp_path / "run", "go away"):
        raise AssertionError
    other.kill()
    other.join()
    with locked(tmp_path / "run", "go away"):
        assert (tmp_path / "run" / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def refuse(folder: Path, *names: str) -> None:
    with locked(folder):
        for name in names:
            (folder / name).touch()
        raise InputError("no text")


def test_what_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        refuse(tmp_path / "new")
    assert not list(tmp_path.iterdir())
    (tmp_path / "old").mkdir()
    with pytest.raises(InputError):
        refuse(tmp_path / "old")
    assert not list((tmp_path / "old").iterdir())
    with pytest.raises(InputError):
        refuse(tmp_path / "kept", "tokenizer.model")
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {".lock", "tokenizer.model"}


def wait_and_be_refused(folder: Path) -> None:
    with contextlib.suppress(InputError), locked(folder):
        (folder.parent / "begun").touch()
        time.sleep(0.3)
        raise InputError("no text")


def test_who_waited_for_a_lock_that_was_taken_away_holds_the_next(tmp_path: Path) -> None:
    other = multiprocessing.get_context("fork").Process(target=wait_and_be_refused, args=(tmp_path / "data",))
    other.start()
    wait_for(tmp_path / "begun")
    with locked(tmp_path / "data"):
        other.join()
        refused = r"data: another job writes into it"
        with pytest.raises(InputError, match=refused), locked(tmp_path / "data", "go away"):
            raise AssertionError


def test_who_may_wait_comes_after(tmp_path: Path) -> None:
    other = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path, 0.3))
    other.start()
    wait_for(tmp_path / "begun")
    with locked(tmp_path):
        assert (tmp_path / "ended").exists()
    other.join()
