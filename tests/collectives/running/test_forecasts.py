"""The forecast beside what was run, and machines that cannot have run it."""

import pytest

from flopcast.collectives import COLLECTIVES, Fabric, Group, architecture_code, fabric_code
from flopcast.collectives.running.forecasts import Machine
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
