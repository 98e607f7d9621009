from types import SimpleNamespace

import pytest
import torch

from flopcast.trainer import measurement

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "gib", "tera_flop_per_s"),
    [  # as PyTorch reports them: a card of 80 GB never has 80 GiB
        ("NVIDIA A100-SXM4-40GB", 39.4, 312),
        ("NVIDIA A100-SXM4-80GB", 79.2, 312),
        ("NVIDIA H100 80GB HBM3", 79.1, 989.4),
        ("NVIDIA H100 PCIe", 79.2, 756),
        ("NVIDIA H200", 139.8, 989.4),
        ("Some GPU of tomorrow", 79.2, 0),
    ],
)
def test_the_peak_is_that_of_the_gpu_found(monkeypatch, name, gib, tera_flop_per_s):
    found = SimpleNamespace(name=name, total_memory=int(gib * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    assert measurement._peak(None, torch.device("cuda", 0)) == pytest.approx(tera_flop_per_s * 1e12)


def test_a_cpu_has_no_peak_but_one_that_is_named():
    assert measurement._peak(None, torch.device("cpu")) == 0.0
    assert measurement._peak("a100-40gb", torch.device("cpu")) == pytest.approx(312e12)
