import subprocess
from types import SimpleNamespace

import pytest
from forked_ranks import Forked

from flopcast.trainer import launch


@pytest.fixture
def forked_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """``launch.Ranks`` forks its processes."""
    monkeypatch.setattr(launch, "subprocess", SimpleNamespace(Popen=Forked, DEVNULL=subprocess.DEVNULL))
