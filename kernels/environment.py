"""What a measurement ran on: device, clocks, power, versions and date, to stand beside every number."""

import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from flopcast.kernels.backend import backend

_PACKAGES = ("torch", "cupy-cuda13x", "cupy-cuda12x", "triton", "liger-kernel", "quack-kernels", "numpy")
_QUERY = "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu,driver_version"
# Memory bandwidth by the name that the driver gives, bytes/s. NVIDIA: A100 Tensor Core GPU datasheet (June 2021);
# H100 Tensor Core GPU datasheet (2023), SXM, PCIe and NVL columns; H200 and GH200 datasheets (2023); B200: DGX B200
# datasheet (2024).
DATASHEET = {
    "A100-SXM4-40GB": 1.555e12,
    "A100-PCIE-40GB": 1.555e12,
    "A100-SXM4-80GB": 2.039e12,
    "A100 80GB PCIe": 1.935e12,
    "H100 80GB HBM3": 3.35e12,
    "H100 PCIe": 2.0e12,
    "H100 NVL": 3.9e12,
    "H800": 3.35e12,
    "H20": 4.0e12,
    "H200": 4.8e12,
    "H200 NVL": 4.8e12,
    "GH200 480GB": 4.0e12,
    "B200": 8.0e12,
    "GB200": 8.0e12,
}


def datasheet_bytes_per_s(device: torch.device) -> float | None:
    """The memory bandwidth that the vendor states for this GPU, or None where it is not in the table."""
    name = device_name(device).removeprefix("NVIDIA ")
    return DATASHEET.get(name)


def environment(device: torch.device) -> dict[str, object]:
    """A flat record; clocks in MHz and power in W as nvidia-smi words them, at the time of the call."""
    backend_now = backend()
    found: dict[str, object] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "python": platform.python_version(),
        "backend": backend_now.name,
        "backend_reason": backend_now.reason,
    }
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "cuda": torch.version.cuda,
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
            **clocks(device),
        }
    return found


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def clocks(device: torch.device) -> dict[str, object]:
    """Present and highest clocks, power and its cap, temperature, driver; empty where nvidia-smi does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    uuid = torch.cuda.get_device_properties(device).uuid
    command = [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits", f"--id=GPU-{uuid}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout  # noqa: S603
    except (subprocess.SubprocessError, OSError):
        return {}
    line = next(iter(answer.strip().splitlines()), "")
    return dict(zip(_QUERY.split(","), (value.strip() for value in line.split(",")), strict=False)) if line else {}
