import io
from pathlib import Path

import pytest
from rich.console import Console

from flopcast.errors import InputError
from flopcast.trainer.log import Log, records, steps


def test_records_come_back_and_a_resumed_step_counts_once(tmp_path: Path) -> None:
    with Log(tmp_path, 3) as log:
        log.event("start", step=0)
        log.step(1, loss=4.0)
        log.step(2, loss=3.0)
    with Log(tmp_path, 3) as log:
        log.step(2, loss=3.5)
        log.step(3, loss=2.0)
    assert [record.get("step") for record in records(tmp_path)] == [0, 1, 2, 2, 3]
    assert {number: record["loss"] for number, record in steps(tmp_path).items()} == {1: 4.0, 2: 3.5, 3: 2.0}


def test_a_line_cut_short_by_a_kill_harms_no_other(tmp_path: Path) -> None:
    with Log(tmp_path, 3) as log:
        log.step(1, loss=4.0)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert list(steps(tmp_path)) == [1]
    with Log(tmp_path, 3) as log:
        log.step(2, loss=3.0)
    assert list(steps(tmp_path)) == [1, 2]


def test_a_terminal_shows_progress_and_a_file_a_line_now_and_then(tmp_path: Path) -> None:
    terminal, file = io.StringIO(), io.StringIO()
    for stream, is_terminal in ((terminal, True), (file, False)):
        console = Console(file=stream, force_terminal=is_terminal, width=100)
        with Log(tmp_path, 4, console=console) as log:
            log.event("start", step=0)
            log.step(1, loss=4.0, tokens_per_s=1234.0)
            log.step(2, loss=3.0)
            log.event("done", step=2)
    assert "2/4" in terminal.getvalue()
    assert "flopcast: done after step 2" in terminal.getvalue()
    assert file.getvalue().splitlines() == [
        f"flopcast: trains from step 0 of 4, records in {tmp_path / 'log.jsonl'}",
        "flopcast: step 1 of 4: loss 4.0000, 1,234 tokens/s",
        "flopcast: done after step 2",
    ]


def test_a_run_with_no_step_left_does_not_say_that_it_trains(tmp_path: Path) -> None:
    stream = io.StringIO()
    with Log(tmp_path, 60, console=Console(file=stream, width=100)) as log:
        log.event("start", step=64)
    assert stream.getvalue().startswith("flopcast: is at step 64 of 60: no step is left; records in ")


def test_a_log_that_cannot_grow_is_one_sentence(tmp_path: Path) -> None:
    with Log(tmp_path, 3) as log:
        log._file.close()
        log._file = Path("/dev/full").open("w")  # noqa: SIM115
        with pytest.raises(InputError, match=r"log\.jsonl: cannot be written \(No space left on device\); make room"):
            log.step(1, loss=4.0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/log\.jsonl: cannot be written"):
        Log(tmp_path / "file", 3)


def test_tensorboard_is_written_or_asked_for(tmp_path: Path) -> None:
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match="pip install tensorboard"):
            Log(tmp_path, 1, tensorboard=True)
        return
    with Log(tmp_path, 1, tensorboard=True) as log:
        log.step(1, loss=4.0)
    assert list((tmp_path / "tensorboard").glob("events.*"))
