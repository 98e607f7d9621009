"""Ranks of the trainer forked from a process that has imported it: the import takes longer than most of their runs."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from typing import BinaryIO

MODULES = ["flopcast.trainer.__main__", "flopcast.trainer.loop", "torch._dynamo"]


def server() -> ForkServerContext:
    """One for the whole process, started with the first rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    return context


def run(arguments: Sequence[str], environment: Mapping[str, str], errors: str) -> None:
    """``python -m flopcast.trainer ARGUMENTS`` in a process that was forked for it."""
    os.environ.clear()
    os.environ.update(environment)
    with open(errors, "wb") as file, open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from flopcast.trainer.__main__ import main

    sys.exit(main(arguments))


class Forked:
    """What :class:`subprocess.Popen` is to ``launch.Ranks``."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        stdout: int,
        stderr: BinaryIO,
    ) -> None:
        assert command[:3] == [sys.executable, "-m", "flopcast.trainer"]
        assert stdout == subprocess.DEVNULL
        self._process = server().Process(target=run, args=(command[3:], env, stderr.name))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("flopcast.trainer", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
