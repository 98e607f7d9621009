from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flopcast.kernels import launch, tolerances
from flopcast.kernels.emulator import loader


@pytest.fixture
def assert_near() -> Callable[..., None]:
    return tolerances.assert_near


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where kernels built for the CPU are kept: one folder for all workers of a run."""
    if loader.compiler() is None:
        pytest.skip("no g++ to run the kernels on the CPU with")
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "popen-gw" in base.name else base) / "emulator"


@pytest.fixture
def emulate(builds: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """``emulate(order)``: from here on launches run on the CPU, threads in that order."""
    launches: list[str] = []

    def choose(order: str) -> None:
        def run(variant: Any, grid: tuple[int, int], arguments: Any, device: torch.device) -> None:
            values = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
            loader.load(variant, builds)(grid, values, order)
            launches.append(variant.kernel)

        monkeypatch.setattr(launch, "launch", run)
        monkeypatch.setattr(launch, "num_multiprocessors", lambda device: 2)
        monkeypatch.setattr(launch, "most_shared_bytes", lambda device: 227 * 1024)

    yield choose
    assert launches, "the test meant to run a kernel and ran none"
