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


def test_who_may_wait_comes_after(tmp_path: Path) -> None:
    other = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path, 0.3))
    other.start()
    wait_for(tmp_path / "begun")
    with locked(tmp_path):
        assert (tmp_path / "ended").exists()
    other.join()
