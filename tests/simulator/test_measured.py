"""A profile as a cluster: at a measured shape the forecast is the measurement, in between it lies between."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import small_model
from profiles import collective, copy, cpu_profile, gemm, gpu_profile, sample

from flopcast.collectives.group import Group
from flopcast.errors import InputError
from flopcast.simulator.batch import Batch, Case
from flopcast.simulator.catalogue import load_cluster
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.compare import compare
from flopcast.simulator.constants import default_constants
from flopcast.simulator.cost import seconds
from flopcast.simulator.forecast import forecast
from flopcast.simulator.hardware import Hardware
from flopcast.simulator.measured import Correction, Measured
from flopcast.simulator.operation import AttentionCore, Collective, Gemm, Operation, Phase, Pointwise, Work
from flopcast.simulator.plan import CHOICES, Plan, placement
from flopcast.simulator.profile import Profile, to_json
from flopcast.simulator.profiled_cluster import cluster_of
from flopcast.simulator.request import Request


def cluster(profile: Profile) -> Cluster:
    return cluster_of(profile, Path(), "profile.json")


def cost(
    machine: Cluster, work: Work, name: str = "layer.piece", phase: Phase = "forward", kernels: float = 0
) -> float:
    one, nothing = np.ones(1), np.zeros(1)
    operation = Operation(name, "layer", phase, "every", one, one * kernels, work, nothing, nothing)
    return float(seconds(operation, Hardware.of([machine]), default_constants())[0])


def product(m: float, n: float, k: float, fp8: bool = False) -> Gemm:
    return Gemm(np.array([m]), np.array([n]), np.array([k]), np.array([fp8]))


def test_a_correction_is_exact_where_it_was_measured_and_between_elsewhere() -> None:
    found = Correction.of([(1, 1), (1024, 1), (1, 1024)], [2.0, 8.0, 4.0])
    at = found(np.array([1.0, 1024.0, 1.0]), np.array([1.0, 1.0, 1024.0]))
    assert at == pytest.approx([2.0, 8.0, 4.0], rel=1e-3)
    draw = np.random.default_rng(0).uniform(1, 1e6, (2, 1000))
    assert np.all((found(*draw) >= 2.0) & (found(*draw) <= 8.0))


def test_a_correction_by_hand() -> None:
    # At 2^1 between 2^0 and 2^3: distances 1 and 2, weights 1 and 1/16 of the logarithms.
    found = Correction.of([(1.0,), (8.0,)], [1.0, 2.0])
    assert found(np.array([2.0]))[0] == pytest.approx(2 ** (1 / 17), rel=5e-3)


def test_repeats_of_one_shape_count_as_their_geometric_mean() -> None:
    assert Correction.of([(64.0,), (64.0,)], [1.0, 4.0])(np.array([64.0]))[0] == pytest.approx(2.0)


def test_a_correction_of_many_cases_is_that_of_each() -> None:
    found = Correction.of([(2.0, 4.0), (64.0, 8.0)], [1.5, 0.5])
    sizes = np.random.default_rng(1).uniform(1, 100, (2, 70000))
    some = [0, 1, 65535, 65536, 69999]
    assert found(*sizes)[some] == pytest.approx([found(*sizes[:, i : i + 1])[0] for i in some])


def test_matrix_products_take_what_was_measured() -> None:
    machine = cluster(gpu_profile(gemm(4096, 4096, 4096, 611e12), gemm(1024, 8192, 512, 200e12)))
    assert cost(machine, product(4096, 4096, 4096)) == pytest.approx(2 * 4096**3 / 611e12, rel=1e-3)
    assert cost(machine, product(1024, 8192, 512)) == pytest.approx(2 * 1024 * 8192 * 512 / 200e12, rel=1e-3)


def test_eight_bit_products_keep_the_formula() -> None:
    plain = load_cluster("dgx-h100")
    machine = replace(cluster(gpu_profile(gemm(4096, 4096, 4096, 100e12))), gpu=plain.gpu)
    work = product(4096, 4096, 4096, fp8=True)
    assert cost(machine, work) == pytest.approx(cost(plain, work))


def test_attention_backward_is_both_less_forward() -> None:
    shape = {"batch": 1, "tokens": 4096, "heads": 16, "kv_heads": 16, "head_dim": 128, "dtype": "bfloat16"}
    flop = 2.0 * 16 * 4096**2 * 128
    machine = cluster(
        gpu_profile(
            sample("attention", 1e-3, {**shape, "backend": "cudnn", "backward": False}, flop=flop),
            sample("attention", 4e-3, {**shape, "backend": "cudnn", "backward": True}, flop=3.5 * flop),
        )
    )
    code = np.array([CHOICES["attention"].index("cudnn")])
    for backward, share, expected in ((False, 1.0, 1e-3), (True, 2.5, 3e-3)):
        work = AttentionCore(np.array([share * flop]), code, np.array([128.0]), np.array([4096.0]), backward)
        assert cost(machine, work) == pytest.approx(expected, rel=1e-3)


def test_a_piece_takes_its_own_measurement_and_others_that_of_the_memory() -> None:
    norm = sample("kernel", 5e-3, {"op": "norm", "pass": "forward", "tokens": 1, "width": 1}, bytes=1e6)
    machine = cluster(cpu_profile(norm))
    work = Pointwise(np.array([1e6]))
    for name in ("transformer.norm2", "transformer.experts.norm"):
        assert cost(machine, work, name) == pytest.approx(5e-3, rel=1e-3)
    listed = Pointwise(np.array([2.0 * 2**24]), counted=True)
    assert cost(machine, listed, "layers.accumulate") == pytest.approx(2 * 2**24 / 10e9, rel=1e-3)


def test_collectives_take_what_was_measured() -> None:
    machine = cluster(cpu_profile())
    for name in ("all_gather", "reduce_scatter", "all_reduce"):
        for size in (2**12, 2**18, 2**24):
            work = Collective(name, np.array([float(size)]), Group(np.array([2]), np.array([2])), "world", "gather")
            assert cost(machine, work) == pytest.approx(1e-4 + size / 1e9, rel=1e-3)


def test_launches_add_where_the_host_is_the_device() -> None:
    machine = cluster(cpu_profile())
    work = product(256, 256, 256)
    assert cost(machine, work, kernels=3) - cost(machine, work) == pytest.approx(3 * 2e-3 / 100)


def test_a_gpus_launches_are_the_hosts() -> None:
    launch = sample("launch", 8e-3, {"op": "layer", "listed_kernels": 200.0})
    machine = cluster(gpu_profile(gemm(4096, 4096, 4096, 600e12), launch))
    assert machine.measured is not None
    assert machine.measured.constants == {"launch_s": 8e-3 / 200}
    assert machine.measured.dispatch_s == 0


def test_the_fabric_is_calibrated_on_its_all_reduces() -> None:
    plain = load_cluster("dgx-h100")
    from flopcast.collectives import all_reduce

    fabric = replace(Hardware.of([plain]).fabric, launch_scale=1.7, nvlink_scale=0.8)
    rows = []
    for size in (2**13, 2**17, 2**20, 2**28, 2**30):
        time_s = all_reduce.cost(float(size), Group(8, 8), fabric).time_s
        rows.append(collective("all_reduce", size, float(np.asarray(time_s).flat[0]), ranks=8))
    found = cluster(gpu_profile(*rows).model_copy(update={"cluster": "dgx-h100"}))
    assert found.measured is not None
    assert found.measured.fabric_scales["launch_scale"] == pytest.approx(1.7, rel=0.05)
    assert found.measured.fabric_scales["nvlink_scale"] == pytest.approx(0.8, rel=0.05)


@pytest.mark.parametrize(
    ("device", "gigabytes", "name"),
    [
        ("NVIDIA H100 80GB HBM3", 79.2, "h100-80gb"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", 79.3, "a100-80gb"),
        ("NVIDIA H200", 139.8, "h200-141gb"),
    ],
)
def test_a_gpu_is_found_by_the_name_its_driver_gives(device: str, gigabytes: float, name: str) -> None:
    profile = gpu_profile(device=device).model_copy(update={"memory_bytes": gigabytes * 2**30})
    found = cluster(profile).gpu
    assert found.name == name
    assert found.memory_bytes == gigabytes * 2**30


def test_shares_of_peak_stay_shares_of_the_datasheet() -> None:
    assert cluster(gpu_profile()).gpu.tensor_flop_per_s == load_cluster("dgx-h100").gpu.tensor_flop_per_s


def test_a_profile_belongs_to_a_cluster_of_its_gpu(tmp_path: Path) -> None:
    found = cluster(gpu_profile().model_copy(update={"cluster": "dgx-h100"}))
    assert (found.nics_per_node, found.gpus_per_node) == (8, 8)
    with pytest.raises(InputError, match="cluster 'abci-a' has a100-40gb"):
        cluster(gpu_profile().model_copy(update={"cluster": "abci-a"}))
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\n[node]\ngpu = "h100-80gb"\nnum_gpus = 4\n'
        '[network]\nnics_per_node = 1\nnic = "100 Gbit/s"\nfabric = "roce"\n'
    )
    beside = cluster_of(gpu_profile().model_copy(update={"cluster": "mine.toml"}), tmp_path, "profile.json")
    assert (beside.gpus_per_node, beside.fabric) == (4, "roce")
    with pytest.raises(InputError, match="not in the catalogue"):
        cluster(gpu_profile(device="Some GPU"))


def test_a_cpu_is_a_cluster_whose_peaks_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(to_json(cpu_profile()))
    machine = load_cluster(path)
    assert machine.gpu.tensor_flop_per_s == pytest.approx(0.5e12)
    assert machine.gpu.memory_bytes_per_s == pytest.approx(10e9)
    assert machine.gpus_per_node == 2
    found = compare(small_model(), machine, Request(2, tokens_per_gpu=2048, seq_len=512, strategies=["zero3", "ddp"]))
    assert all(row.step_s > 0 for row in found.rows)
    assert machine.measured is not None
    assert "matrix products: 8 samples on 2 devices of 1 host, 2026-01-02" in machine.measured.what
    assert "launches: 1 sample on 2 devices of 1 host, 2026-01-02" in machine.measured.what


def test_what_a_cpu_needs_is_said() -> None:
    with pytest.raises(InputError, match="no gemm or no copy"):
        cluster(cpu_profile().model_copy(update={"samples": [copy(2**20, 1e9)]}))
    with pytest.raises(InputError, match="lacks what its kind needs"):
        cluster(gpu_profile(sample("gemm", 1e-3, {"m": 64}, flop=1.0)))


def test_a_slower_machine_is_forecast_slower() -> None:
    plan = Plan(**{**placement("zero3", 2, 2), "seq_len": 512, "micro_batch": 2})  # type: ignore[arg-type]
    steps = [forecast(small_model(), cluster(cpu_profile(scale=scale)), plan).step for scale in (1.0, 2.0)]
    slower = (steps[1].total - steps[1].overhead) / (steps[0].total - steps[0].overhead)
    assert float(slower[0]) == pytest.approx(2.0, rel=0.01)


def test_a_measured_machine_is_not_mixed_with_others() -> None:
    plan = Plan(**{**placement("ddp", 2, 2), "seq_len": 512})  # type: ignore[arg-type]
    cases = [Case(small_model(), machine, plan) for machine in (cluster(cpu_profile()), load_cluster("dgx-h100"))]
    with pytest.raises(InputError, match="forecast them apart"):
        Batch.of(cases)


def test_waiting_for_the_slowest_rank() -> None:
    ranks = np.array([1, 2, 8, 64])
    share = Measured(straggler=0.05).waiting_share(ranks)
    draw = np.random.default_rng(0).normal(size=(20000, 64))
    expected = [0.0] + [0.05 * draw[:, :n].max(axis=1).mean() for n in (2, 8, 64)]
    assert share == pytest.approx(expected, abs=0.0025)


def test_the_document_is_plain_json() -> None:
    json.loads(to_json(cpu_profile()), parse_constant=pytest.fail)  # JSON has no NaN and no Infinity
