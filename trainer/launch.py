"""Ranks on this machine, started as torchrun would: for experiments and for trials that kill them."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from torch._C._distributed_c10d import TCPStore

from flopcast.errors import InputError

POLL_S = 0.02


class Ranks(AbstractContextManager["Ranks"]):
    """``num_ranks`` processes of ``python -m flopcast.trainer ARGUMENTS``, killed when the context is left."""

    def __init__(self, arguments: Sequence[str], num_ranks: int, errors: Path) -> None:
        """``errors``: a folder that receives each rank's standard error as ``rank-R.txt``."""
        errors.mkdir(parents=True, exist_ok=True)
        self._errors = errors
        # The store of this process, as torchrun's: a port looked for beforehand can be taken by the time it is used.
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        command = [sys.executable, "-m", "flopcast.trainer", *arguments]
        environment = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // num_ranks, 1))),
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        for rank in range(num_ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with self._error_file(rank).open("wb") as file:
                self.processes.append(
                    subprocess.Popen(  # noqa: S603
                        command, env={**os.environ, **environment, **own}, stdout=subprocess.DEVNULL, stderr=file
                    )
                )

    def _error_file(self, rank: int) -> Path:
        return self._errors / f"rank-{rank}.txt"

    def error_text(self, rank: int) -> str:
        """What a rank has written to its standard error so far."""
        return self._error_file(rank).read_text(encoding="utf-8", errors="replace")

    @property
    def running(self) -> bool:
        """Whether any rank still runs."""
        return any(process.poll() is None for process in self.processes)

    def wait(self, timeout_s: float) -> list[int]:
        """The exit codes, once all have ended; those that outlast ``timeout_s`` are killed."""
        deadline = time.monotonic() + timeout_s
        while self.running and time.monotonic() < deadline:
            time.sleep(POLL_S)
        self.kill()
        return [process.wait() for process in self.processes]

    def check(self, timeout_s: float) -> None:
        """Wait, and raise InputError with the end of its standard error where a rank did not end well."""
        for rank, code in enumerate(self.wait(timeout_s)):
            if code:
                raise InputError(f"rank {rank} ended with {code}: {' '.join(self.error_text(rank)[-500:].split())}")

    def kill(self) -> None:
        """SIGKILL to all: nobody can catch it, nothing is tidied up."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill and reap."""
        self.kill()
        for process in self.processes:
            process.wait()
