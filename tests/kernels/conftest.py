from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import pytest
import torch

from flopcast.kernels import launch, tolerances
from flopcast.kernels.emulator import loader
from flopcast.kernels.variant import Variant


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


def assert_fits_signature(variant: Variant, arguments: Sequence[Any]) -> None:
    """CuPy takes the bytes of whatever it is given: a wrong type is a wrong number, not an error."""
    (parameters,) = (text for name, text in loader._KERNEL.findall(variant.text) if name == variant.kernel)
    declared = [" ".join(parameter.split()[:-1]) for parameter in parameters.split(",")]
    passed = [type(argument) for argument in arguments]
    numbers = {"int": np.int32, "long long": np.int64, "float": np.float32}
    assert len(passed) == len(declared)
    for given, wanted in zip(passed, declared, strict=True):
        if "*" in wanted:
            assert issubclass(given, torch.Tensor | NoneType), f"{variant.kernel}: {given} for {wanted}"
        else:
            assert given is numbers[wanted], f"{variant.kernel}: {given} for {wanted}"


@pytest.fixture
def emulate(builds: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """``emulate(order)``: from here on launches run on the CPU, threads in that order."""
    launches: list[str] = []

    def choose(order: str) -> None:
        def run(variant: Any, grid: tuple[int, int], arguments: Any, device: torch.device) -> None:
            assert_fits_signature(variant, arguments)
            assert all(1 <= n <= most for n, most in zip(grid, (2**31 - 1, 65535), strict=True))
            values = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
            loader.load(variant, builds)(grid, values, order)
            launches.append(variant.kernel)

        monkeypatch.setattr(launch, "launch", run)
        monkeypatch.setattr(launch, "num_multiprocessors", lambda device: 2)
        monkeypatch.setattr(launch, "most_shared_bytes", lambda device: 227 * 1024)

    yield choose
    assert launches, "the test meant to run a kernel and ran none"
