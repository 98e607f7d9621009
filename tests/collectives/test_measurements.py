"""The model on the stored measurements: the errors of this version, and what becomes of awkward rows."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flopcast.collectives import DEFAULT
from flopcast.collectives.constants import FITTED
from flopcast.collectives.fitting import BIN_NAMES, errors, fit, rows
from flopcast.collectives.machines import gpu
from flopcast.collectives.measured import forecast_rows

TABLE = Path(__file__).parents[2] / "reports" / "measurements" / "collectives.csv"

# Mean |relative error| in the bins of BIN_NAMES, with at most half a point to spare.
SPECIFICATIONS = (0.158, 0.181, 0.097, 0.042)
CALIBRATED = (0.075, 0.158, 0.083, 0.042)


@pytest.fixture(scope="module")
def columns() -> dict[str, np.ndarray]:
    frame = pd.read_csv(TABLE)
    return {str(name): frame[name].to_numpy() for name in frame}


def test_errors_from_specifications(columns: dict[str, np.ndarray]) -> None:
    given = rows(columns)
    forecast, skipped = forecast_rows(given.columns)
    assert set(skipped) == {""}
    found = dict(zip(BIN_NAMES, errors(forecast, given), strict=True))
    assert all(error <= limit for error, limit in zip(found.values(), SPECIFICATIONS, strict=True)), found


def test_errors_calibrated(columns: dict[str, np.ndarray]) -> None:
    given = rows(columns)
    forecast, _ = forecast_rows(given.columns, calibrated=True)
    found = dict(zip(BIN_NAMES, errors(forecast, given), strict=True))
    assert all(error <= limit for error, limit in zip(found.values(), CALIBRATED, strict=True)), found


@pytest.mark.parametrize(("machine", "limit"), [("2 one node", 0.05), ("1 one node", 0.06)])
def test_machine_class_left_out(columns: dict[str, np.ndarray], machine: str, limit: float) -> None:
    """Large messages in single nodes of Hopper and of Ampere, by constants that never saw such a node."""
    given = rows(columns)
    out = given.machine == machine
    large = out & (given.bins == 3)
    assert large.sum() >= 5
    forecast, _ = forecast_rows({name: values[large] for name, values in given.columns.items()}, fit(given, ~out))
    assert np.mean(np.abs(forecast / given.measured_s[large] - 1)) < limit


def test_constants_are_the_fit_and_in_range(columns: dict[str, np.ndarray]) -> None:
    given = rows(columns)
    fitted = asdict(fit(given, np.ones(given.measured_s.shape, dtype=bool)))
    assert set(FITTED) == set(fitted)
    for name, value in asdict(DEFAULT).items():
        assert FITTED[name].low <= value <= FITTED[name].high
        assert value == pytest.approx(fitted[name], rel=0.03), name


def test_in_place_rows_are_forecast_too(columns: dict[str, np.ndarray]) -> None:
    forecast, skipped = forecast_rows(columns)
    assert np.all(np.isfinite(forecast) == (skipped == ""))
    assert np.all(skipped == "")


def row(**changes: object) -> dict[str, np.ndarray]:
    base = {"gpu": "A100-SXM4-80GB", "gpus_per_node": 8, "n_nodes": 2, "interconnect": "", "nics_per_node": 8.0}
    base |= {"nic_gbit": 200.0, "fabric": "infiniband", "sharp": 0, "collective": "all_gather", "bytes": 1 << 30}
    base |= {"notes": ""} | changes
    return {name: np.array([value], dtype=object if isinstance(value, str) else None) for name, value in base.items()}


def seconds(**changes: object) -> float:
    forecast, skipped = forecast_rows(row(**changes))
    assert skipped[0] == ""
    return float(forecast[0])


def test_only_rows_without_gpu_or_nic_are_skipped() -> None:
    assert "GPU" in forecast_rows(row(gpu=""))[1][0]
    assert "NIC rate" in forecast_rows(row(nic_gbit=np.nan))[1][0]
    assert seconds(n_nodes=1, nic_gbit=np.nan, nics_per_node=np.nan, fabric="") > 0
    assert seconds(fabric="") == seconds(fabric="infiniband") == seconds(fabric="IB")
    assert seconds(nics_per_node=np.nan) == seconds()
    assert seconds(fabric="carrier pigeon") == seconds(fabric="ethernet")
    assert seconds(gpu="X1", interconnect="NVLink3") == seconds()
    assert "collective" in forecast_rows(row(collective="gather_all"))[1][0]


def test_settings_in_the_notes_are_honoured() -> None:
    args = {"gpu": "H100-SXM5-80GB", "collective": "all_reduce", "nic_gbit": 200.0, "nics_per_node": 4.0}
    assert seconds(notes="NCCL_ALGO=RING", **args) > 1.3 * seconds(**args)
    one = args | {"n_nodes": 1}
    off = seconds(notes="Ring, NCCL_NVLS_ENABLE=0", **one)
    assert off > 1.2 * seconds(**one)
    for notes in ("NVLS off", "NVLS and SHARP disabled", "evidently without NVLS"):
        assert seconds(notes=notes, **one) == off
    for notes in ("NCCL_NVLS_ENABLE=0 recommended setting", "NVLS on", "without NVLSTree"):
        assert seconds(notes=notes, **one) == seconds(**one)
    ring = {"gpu": "H100-SXM5-80GB", "n_nodes": 8, "nic_gbit": 400.0, "bytes": 8 << 30}
    for notes in ("NCCL_MIN_CTAS=24", "NCCL_MIN_NCHANNELS=32 NCCL_IB_QPS_PER_CONNECTION=4"):
        assert seconds(notes=notes, **ring) < 0.95 * seconds(**ring)
    assert seconds(notes="NCCL_MIN/MAX_NCHANNELS=16", **ring) == seconds(**ring)
    large = one | {"bytes": 2 << 30}
    for words in ({"notes": "NCCL_NVLS_CHUNKSIZE=524288"}, {"notes": "p5.48xlarge"}, {"interconnect": "EFAv2"}):
        assert seconds(**large | words) > 1.02 * seconds(**large)


def test_the_version_of_nccl_counts_where_it_is_told() -> None:
    send = {"gpu": "B200", "collective": "point_to_point", "nic_gbit": 400.0, "bytes": 8 << 30}
    usual, new = seconds(**send), seconds(nccl_version="2.29.7", **send)
    assert new < 0.9 * usual
    assert seconds(nccl_version="NCCL 2.30.4 (from the log)", **send) == new
    for version in ("2.26.2", "RCCL 2.29.3", "", "12.29", "2"):
        assert seconds(nccl_version=version, **send) == usual


def test_one_process_for_all_gpus_starts_them_in_turn() -> None:
    """group.cc, doLaunches: one thread prepares and launches communicator after communicator."""
    args = {"n_nodes": 1, "nic_gbit": np.nan, "bytes": 1024}
    for collective, per_gpu in (
        ("all_reduce", DEFAULT.process_gpu_s),
        ("all_to_all", DEFAULT.process_gpu_s + DEFAULT.all_to_all_base_s + 7 * DEFAULT.all_to_all_peer_s),
    ):
        own = seconds(collective=collective, **args)
        for notes, gpus in (("-g 8", 8), ("single process; a fixture", 8), ("nccl-tests -g 2 -n 50", 2), ("a-g 8", 1)):
            gap = seconds(collective=collective, notes=notes, **args) - own
            assert gap == pytest.approx((gpus - 1) * per_gpu, rel=0.05), (collective, notes)


@pytest.mark.parametrize(
    ("name", "nvlink", "architecture"),
    [
        ("V100-SXM2-32GB", 150e9, 0),
        ("A100-SXM4-40GB", 300e9, 1),
        ("NVIDIA A100-PCIE-40GB", 32e9, 4),
        ("H100-SXM5-80GB", 450e9, 2),
        ("H800", 200e9, 2),
        ("H20", 450e9, 2),
        ("H100/H800 class", 450e9, 2),
        ("GH200-120GB", 450e9, 2),
        ("H200-SXM-141GB", 450e9, 2),
        ("B200", 900e9, 3),
        ("GB200", 900e9, 3),
        ("B300", 900e9, 3),
        ("MI300X", 448e9, 4),
        ("MI355X", 537.6e9, 4),
        ("H100 PCIe", 64e9, 4),
        ("NVIDIA H200 NVL", 64e9, 4),
        ("L40S", 32e9, 4),
        ("NVIDIA L4", 32e9, 4),
        ("NVIDIA A10G", 32e9, 4),
        ("NVIDIA GeForce RTX 4090", 32e9, 4),
        ("NVIDIA GeForce RTX 5090", 64e9, 4),
        ("NVIDIA RTX PRO 6000 Blackwell", 64e9, 4),
        ("Tesla T4", 16e9, 4),
        ("NVIDIA GeForce RTX 2080 Ti", 16e9, 4),
    ],
)
def test_gpus_by_name(name: str, nvlink: float, architecture: int) -> None:
    assert (gpu(name).nvlink_bytes_per_s, gpu(name).architecture) == (nvlink, architecture)
