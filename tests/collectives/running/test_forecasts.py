"""The forecast beside what was run, and machines that cannot have run it."""

from dataclasses import replace

import pytest

from flopcast.collectives import COLLECTIVES, Fabric, Group, architecture_code, fabric_code
from flopcast.collectives.running.forecasts import Machine, with_forecasts
from flopcast.collectives.running.nccl_tests import Log
from flopcast.collectives.running.results import Row
from flopcast.errors import InputError


def fabric(gpus: int = 8, nics: int = 8) -> Fabric:
    return Fabric(
        architecture=architecture_code("hopper"),
        nvlink_bytes_per_s=450e9,
        nvswitch=gpus > 1,
        nics_per_node=nics,
        nic_bytes_per_s=50e9 * (nics > 0),
        fabric=fabric_code("infiniband"),
        gpus_per_node=gpus,
    )


def test_more_ranks_than_the_named_machine_has_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"--cluster has 1 GPU per node, but 2 ranks were started on each host; start 1"
    ):
        Machine(fabric(1, 0)).check(2, 1)
    with pytest.raises(InputError, match=r"--cluster has no network, but the ranks are on 2 hosts"):
        Machine(fabric(2, 0)).check(2, 2)
    Machine(fabric(8, 0)).check(2, 1)
    Machine(fabric(8, 4)).check(2, 2)


def test_what_was_measured_is_the_forecast() -> None:
    def measured_s(name: str, num_bytes: float, group: Group) -> float | None:
        return num_bytes / 1e9 if name == "point_to_point" else None

    machine, group = Machine(fabric(), measured_s), Group(16, 8)
    assert machine.forecast("sendrecv", 2e6, group).time_s == 2e-3
    formula = COLLECTIVES["all_reduce"].cost(2e6, group, fabric())
    assert machine.forecast("all_reduce", 2e6, group).time_s == pytest.approx(float(formula.time_s))


def log(*hosts: str, collective: str = "all_reduce") -> Log:
    rows = tuple(Row(collective, size, 1, "float", "sum", -1, False, 1e-3, 1.0, 1.0) for size in (0, 2**20, 2**30))
    return Log(rows, hosts, ("H100",) * len(hosts), "2.29.7", gpus_per_process=2)


def test_a_log_s_rows_get_the_forecast_of_its_ranks_and_its_nccl() -> None:
    told = replace(fabric(), nccl_minor=29, gpus_per_process=2)
    for name, known in (("all_reduce", "all_reduce"), ("sendrecv", "point_to_point"), ("gather", "all_to_all")):
        rows = with_forecasts(log(*"a" * 8, *"b" * 8, collective=name), Machine(fabric()), "run.log")
        assert rows[0].forecast is None  # 0 bytes
        for row in rows[1:]:
            formula = float(COLLECTIVES[known].cost(float(row.num_bytes), Group(16, 8), told).time_s)
            assert row.forecast is not None
            assert row.forecast.time_s == pytest.approx(formula)
            assert row.ratio == pytest.approx(formula / 1e-3)
    own = with_forecasts(log(*"a" * 8, collective="quantised_all_gather"), Machine(fabric()), "run.log")
    assert all(row.forecast is None for row in own)


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        ("", "run.log: lists no ranks, so it has no forecast; leave --cluster out, or give a log that lists all"),
        ("a", "run.log: lists one rank, which exchanges nothing"),
        ("aab", r"run.log: lists unequal numbers of ranks \(2 on a, 1 on b\)"),
        ("a" * 16, "--cluster has 8 GPUs per node, but 16 ranks"),
    ],
)
def test_a_log_whose_ranks_cannot_be_told_has_no_forecast(hosts: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        with_forecasts(log(*hosts), Machine(fabric()), "run.log")
