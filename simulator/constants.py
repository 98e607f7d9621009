"""The constants of the forecast, read from ``constants.toml`` where each stands with its range, unit and origin."""

import tomllib
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("constants.toml")


@dataclass(frozen=True)
class Constants:
    """Values in SI units; ``constants.toml`` says what each means."""

    gemm_share_volta: float
    gemm_share_ampere: float
    gemm_share_hopper: float
    gemm_share_blackwell: float
    gemm_share_other: float
    fp8_share: float
    gemm_half_rows: float
    gemm_half_depth: float
    attention_scale: float
    attention_unfused_share: float
    head_dim_power: float
    attention_half_length: float
    power_exponent: float
    memory_share: float
    pointwise_scale: float
    launch_s: float
    collective_launch_s: float
    kernel_s: float
    inner_launch_s: float
    host_bytes_per_s: float
    host_link_bytes_per_s: float
    nvlink_leak: float
    network_leak: float
    send_leak: float
    network_share: float
    nvlink_share: float
    pipeline_share: float
    network_congestion: float
    step_overhead_s: float
    context_bytes: float
    nccl_bytes: float
    allocator_slack: float

    def with_values(self, **values: float) -> "Constants":
        """These constants with some replaced."""
        return replace(self, **values)


@dataclass(frozen=True)
class Entry:
    """One constant with its range, unit, meaning and origin; a fitted one with its value expected before the fit."""

    name: str
    value: float
    low: float
    high: float
    unit: str
    meaning: str
    source: str
    fitted: bool
    prior: float | None = None


@cache
def entries() -> tuple[Entry, ...]:
    """Every constant of ``constants.toml`` in the file's order."""
    with FILE.open("rb") as file:
        table = tomllib.load(file)
    found = tuple(Entry(name=name, **values) for name, values in table.items())
    for entry in found:
        assert entry.low <= entry.value <= entry.high, f"{entry.name} = {entry.value} is outside its range"
    assert [e.name for e in found] == [f.name for f in fields(Constants)], "constants.toml and Constants differ"
    return found


@cache
def default_constants() -> Constants:
    """The constants as committed."""
    return Constants(**{entry.name: entry.value for entry in entries()})


# Shares of the 16-bit peak that attention kernels reach at head size 128, forward and backward, by architecture.
# A100: FlashAttention-2 paper (arXiv:2307.08691, figures 4-6); H100: FlashAttention-3 paper (arXiv:2407.08608,
# figures 5-6) over the 989 TFLOP/s peak. "triton" is FlashAttention's Triton form, on H100 as the first version.
# cuDNN's on Blackwell lie between what its benchmark shows at 8k tokens, causal (NVIDIA/cudnn-frontend, benchmark/
# sdpa_benchmark_training): 0.53 and 0.42 of a B200 under PyTorch of 2025, 0.64 and 0.52 of a GB200 with version 9.19.
ATTENTION_SHARES: dict[str, dict[str, tuple[float, float]]] = {
    "volta": {"triton": (0.30, 0.25), "flash1": (0.30, 0.25), "flash2": (0.30, 0.25)},
    "ampere": {"triton": (0.38, 0.33), "flash1": (0.38, 0.33), "flash2": (0.58, 0.50), "cudnn": (0.58, 0.50)},
    "hopper": {
        "triton": (0.23, 0.18),
        "flash1": (0.23, 0.18),
        "flash2": (0.36, 0.32),
        "flash3": (0.66, 0.56),
        "cudnn": (0.60, 0.50),
    },
    "blackwell": {"flash2": (0.20, 0.18), "flash4": (0.68, 0.56), "cudnn": (0.62, 0.50)},
    "other": {"triton": (0.30, 0.25), "flash1": (0.30, 0.25), "flash2": (0.40, 0.34), "cudnn": (0.40, 0.34)},
}
