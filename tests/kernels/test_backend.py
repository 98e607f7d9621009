import subprocess
import sys
from types import SimpleNamespace

import pytest

import flopcast.kernels
from flopcast.kernels.backend import Backend, backend

sys_modules_backend = sys.modules["flopcast.kernels.backend"]


@pytest.fixture(autouse=True)
def found_anew():
    backend.cache_clear()
    yield
    backend.cache_clear()


def fake_torch(available=True, hip=None, capability=(9, 0)):
    cuda = SimpleNamespace(
        is_available=lambda: available,
        get_device_capability=lambda: capability,
        get_device_name=lambda: "NVIDIA H100",
    )
    return SimpleNamespace(cuda=cuda, version=SimpleNamespace(hip=hip))


class RawKernel:
    def __init__(self, code, name):
        assert name in code

    def compile(self):
        pass


class BrokenKernel(RawKernel):
    def compile(self):
        raise OSError("libnvrtc.so.13 not found\nand more")


def pretend(monkeypatch, torch, cupy):
    modules = {"torch": torch, "cupy": cupy}
    monkeypatch.setattr(sys_modules_backend, "find_spec", lambda name: modules[name])
    monkeypatch.setattr(sys_modules_backend, "import_module", lambda name: modules[name])


@pytest.mark.parametrize(
    ("torch", "cupy", "name", "words"),
    [
        (None, None, "none", "PyTorch is not installed"),
        (fake_torch(available=False), None, "reference", "no CUDA device"),
        (fake_torch(hip="6.2"), None, "reference", "ROCm"),
        (fake_torch(capability=(7, 0)), None, "reference", "compute capability 8.0"),
        (fake_torch(), None, "reference", "CuPy is not installed: pip install"),
        (
            fake_torch(),
            SimpleNamespace(RawKernel=BrokenKernel),
            "reference",
            "CuPy cannot compile here: OSError: libnvrtc.so.13 not found",
        ),
        (
            fake_torch(),
            SimpleNamespace(RawKernel=RawKernel, __version__="14.2.0"),
            "cupy",
            "CuPy 14.2.0 on NVIDIA H100",
        ),
    ],
)
def test_it_says_which_path_and_why(monkeypatch, torch, cupy, name, words):
    pretend(monkeypatch, torch, cupy)
    found = backend()
    assert found.name == name
    assert words in found.reason
    assert "\n" not in found.reason


def test_it_is_what_the_package_answers():
    assert isinstance(flopcast.kernels.backend(), Backend)


def test_importing_the_package_loads_neither_torch_nor_cupy():
    program = "import sys, flopcast.kernels.rmsnorm.cost; print('torch' in sys.modules, 'cupy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
