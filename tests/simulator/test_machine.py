"""Collectives as a profile measured them."""

from pathlib import Path

import pytest
from profiles import collective, cpu_profile, gpu_profile

from flopcast.collectives import COLLECTIVES, Group
from flopcast.simulator.catalogue import load_cluster
from flopcast.simulator.hardware import Hardware
from flopcast.simulator.machine import machine_of
from flopcast.simulator.profiled_cluster import cluster_of


def test_a_collective_at_a_measured_shape_takes_what_was_measured() -> None:
    through = collective("all_gather", 2**18, 9e-3)
    through = through.model_copy(update={"arguments": through.arguments | {"through": "fsdp2"}})
    on_cpu = machine_of(cluster_of(cpu_profile(through), Path(), "profile.json"))
    # By themselves: what the engine casts and copies around an all-gather is no part of a benchmark of it.
    for name in ("all_gather", "reduce_scatter", "all_reduce"):
        for size in (2**12, 2**18, 2**24):
            forecast = on_cpu.forecast(name, size, Group(2, 2))
            assert forecast.time_s == pytest.approx(1e-4 + size / 1e9, rel=1e-3)

    # Eight nodes, on which the formula of a step is slower than the collective's own.
    rows = [collective("all_reduce", 2**k, 1e-3 + 2**k / 1e10, ranks=64, nodes=8) for k in (20, 28)]
    profile = gpu_profile(*rows).model_copy(update={"cluster": "dgx-h100", "ranks_per_node": 8})
    on_gpus = machine_of(cluster_of(profile, Path(), "profile.json"))
    for k in (20, 28):
        assert on_gpus.forecast("all_reduce", 2.0**k, Group(64, 8)).time_s == pytest.approx(1e-3 + 2**k / 1e10)


def test_a_cluster_of_the_catalogue_is_the_cost_model_alone() -> None:
    cluster = load_cluster("dgx-h100")
    formula = COLLECTIVES["all_gather"].cost(1e9, Group(16, 8), Hardware.of([cluster]).fabric)
    assert machine_of(cluster).forecast("all_gather", 1e9, Group(16, 8)).time_s == float(formula.time_s.item())
