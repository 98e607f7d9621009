import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flopcast.kernels.environment import DATASHEET, clocks
from flopcast.simulator.catalogue.generic import generic_cluster

DEVICE = torch.device("cuda", 0)
IN_CATALOGUE = {
    "A100-SXM4-40GB": "a100-40gb",
    "A100-PCIE-40GB": "a100-40gb-pcie",
    "A100-SXM4-80GB": "a100-80gb",
    "A100 80GB PCIe": "a100-80gb-pcie",
    "H100 80GB HBM3": "h100-80gb",
    "H100 PCIe": "h100-pcie",
    "H100 NVL": "h100-nvl",
    "H800": "h800-80gb",
    "H20": "h20",
    "H200": "h200-141gb",
    "H200 NVL": "h200-141gb",
    "GH200 480GB": "gh200",
    "B200": "b200",
    "GB200": "gb200",
}
HEALTHY = "345, 2619, 1980, 2619, 71.52, 700.00, 33, 580.159.03"


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name, first on the path; its text is the caller's to write."""
    properties = SimpleNamespace(uuid="2a6b1c0e-2d1f-4a0b-8f3e-0123456789ab")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program


def test_clocks_are_those_of_this_gpu(nvidia_smi: Path) -> None:
    nvidia_smi.write_text(
        '#!/bin/sh\ncase "$*" in *--id=GPU-2a6b1c0e-2d1f-4a0b-8f3e-0123456789ab*)\n'
        f'echo "{HEALTHY}";; *) exit 6;; esac\n'
    )
    found = clocks(DEVICE)
    assert found["clocks.max.sm"] == "1980"
    assert found["power.limit"] == "700.00"
    assert found["driver_version"] == "580.159.03"


def test_what_the_driver_does_not_know_is_kept_in_its_words(nvidia_smi: Path) -> None:
    nvidia_smi.write_text('#!/bin/sh\necho "345, 2619, 1980, 2619, [N/A], [Not Supported], 33, 580.159.03"\n')
    assert clocks(DEVICE)["power.draw"] == "[N/A]"


@pytest.mark.parametrize("says", ["exit 0", "echo; exit 0", 'echo "No devices were found"; exit 6'])
def test_nothing_is_known_where_the_driver_does_not_answer(nvidia_smi: Path, says: str) -> None:
    nvidia_smi.write_text(f"#!/bin/sh\n{says}\n")
    assert clocks(DEVICE) == {}


def test_bandwidths_are_those_of_the_catalogue() -> None:
    assert {name: generic_cluster(card).gpu.memory_bytes_per_s for name, card in IN_CATALOGUE.items()} == DATASHEET
