from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flopcast.kernels import launch
from flopcast.kernels.rmsnorm import variant as rmsnorm


class Stream:
    """CuPy 14's."""

    @classmethod
    def from_external(cls, other):
        version, pointer = other.__cuda_stream__()
        assert version == 0
        return f"stream {pointer}"


class FakeCupy:
    """Records what is asked of CuPy."""

    def __init__(self):
        self.modules, self.launches, self.shared = [], [], []
        self.cuda = SimpleNamespace(Device=lambda index: nullcontext(), Stream=Stream)

    def RawModule(self, **options):  # noqa: N802
        self.modules.append(options)
        return SimpleNamespace(get_function=self.get_function)

    def get_function(self, name):
        outer = self

        class Kernel:
            num_regs, local_size_bytes = 40, 0

            def __setattr__(self, attribute, value):
                outer.shared.append((attribute, value))

            def kernel(self, *arguments):
                outer.launches.append((name, arguments))

        return Kernel()


@pytest.fixture
def cupy(monkeypatch):
    fake = FakeCupy()
    monkeypatch.setattr(launch, "import_module", lambda name: fake)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 40 + index, raising=False)
    caches = (launch._kernel, launch._function, launch._stream)
    for cached in caches:
        cached.cache_clear()
    yield fake
    for cached in caches:
        cached.cache_clear()


def test_a_launch_passes_addresses_and_numbers_on_torchs_stream(cupy):
    x = torch.ones(2, 64)
    variant = rmsnorm.forward("float32", 64)
    for _ in range(2):
        launch.launch(variant, (1, 1), (x, None, np.int32(2), np.float32(0.5)), torch.device("cuda", 0))
    name, (grid, block, values, shared, stream) = cupy.launches[-1]
    assert (name, grid, block, shared, stream) == ("rms_norm_forward", (1, 1), (variant.threads,), 0, "stream 40")
    assert values == [x.data_ptr(), 0, 2, 0.5]
    assert [type(v) for v in values] == [int, int, np.int32, np.float32]
    assert len(cupy.modules) == 1
    assert cupy.modules[0]["options"] == ("--std=c++17", *variant.defines)
    assert "#include" not in cupy.modules[0]["code"].replace("#include <", "")


def test_cupy_13_has_another_name_for_torchs_stream(cupy):
    cupy.cuda = SimpleNamespace(Device=cupy.cuda.Device, Stream=object, ExternalStream="older {}".format)
    launch.launch(rmsnorm.forward("float32", 64), (1, 1), (), torch.device("cuda", 0))
    assert cupy.launches[-1][1][4] == "older 40"


@pytest.mark.parametrize(("hidden", "num_bytes"), [(8192, 65536), (6144, 49152), (5120, 40960)])
def test_dynamic_shared_memory_is_asked_for(cupy, hidden, num_bytes):
    # 48 KiB come unasked, less the 256 static bytes of this kernel.
    launch.launch(rmsnorm.backward("bfloat16", hidden), (1, 1), (), torch.device("cuda", 0))
    assert cupy.shared == [("max_dynamic_shared_size_bytes", num_bytes)]


def test_a_kernel_without_dynamic_shared_memory_asks_for_none(cupy):
    launch.launch(rmsnorm.forward("bfloat16", 5120), (1, 1), (), torch.device("cuda", 0))
    assert cupy.shared == []


def test_another_device_becomes_the_current_one_for_the_launch(cupy, monkeypatch):
    current = [0]
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])

    @contextmanager
    def device(index):
        before, current[0] = current[0], index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "device", device)
    launch.launch(rmsnorm.forward("float32", 64), (1, 1), (), torch.device("cuda", 1))
    assert cupy.launches[-1][1][4] == "stream 41"
    assert current == [0]


def test_loading_says_what_the_kernel_needs(cupy):
    assert launch.load(rmsnorm.forward("float32", 64), 0) == {"registers": 40, "local_bytes": 0}
