"""What holds for every collective, whatever the machine: properties on random groups and fabrics."""

import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flopcast.collectives import ALGORITHMS, ARCHITECTURES, COLLECTIVES, FABRICS, PROTOCOLS, Fabric, Group
from flopcast.errors import InputError

names = st.sampled_from(sorted(COLLECTIVES))
sizes = st.floats(1.0, 64e9)


@st.composite
def places(draw: st.DrawFn) -> tuple[Group, Fabric]:
    """A group that fits on a machine."""
    gpus = draw(st.sampled_from([4, 8, 72]))
    per_node = draw(st.sampled_from([1, 2, 4, gpus]))
    nodes = draw(st.integers(1, 300))
    fabric = Fabric(
        architecture=draw(st.integers(0, len(ARCHITECTURES) - 1)),
        nvlink_bytes_per_s=draw(st.floats(10e9, 1000e9)),
        nvswitch=draw(st.booleans()),
        nics_per_node=draw(st.sampled_from([1, 2, 4, 8, 16, 32, 72])),
        nic_bytes_per_s=draw(st.floats(1e9, 100e9)),
        fabric=draw(st.integers(0, len(FABRICS) - 1)),
        gpus_per_node=gpus,
        sharp=draw(st.booleans()),
    )
    return Group(per_node * nodes, per_node, draw(st.integers(1, gpus // per_node))), fabric


@given(names, sizes, places())
@settings(max_examples=200, deadline=None)
def test_finite_positive_and_named(name: str, size: float, place: tuple[Group, Fabric]) -> None:
    group, fabric = place
    found = COLLECTIVES[name].cost(size, group, fabric)
    assert np.isfinite(found.time_s)
    assert float(found.time_s) > 0 or group.size == 1
    assert ALGORITHMS[int(found.algorithm)]
    assert PROTOCOLS[int(found.protocol)]
    several = int(group.num_nodes) > 1
    assert (float(found.wire_bytes_per_s_per_nic) > 0) == several
    # A NIC never sends faster than its line.
    assert float(found.wire_bytes_per_s_per_nic) <= fabric.nic_bytes_per_s * (1 + 1e-9)


@given(names, sizes, st.floats(1.0, 1000.0), places())
@settings(max_examples=200, deadline=None)
def test_more_bytes_are_never_faster(name: str, size: float, factor: float, place: tuple[Group, Fabric]) -> None:
    less, more = (float(COLLECTIVES[name].cost(bytes_, *place).time_s) for bytes_ in (size, size * factor))
    assert more >= less * (1 - 1e-12)


@given(names, sizes, st.floats(1.0, 8.0), st.sampled_from(["nvlink", "nic"]), places())
@settings(max_examples=200, deadline=None)
def test_more_bandwidth_is_never_slower(
    name: str, size: float, factor: float, link: str, place: tuple[Group, Fabric]
) -> None:
    group, fabric = place
    field = f"{link}_bytes_per_s"
    faster = replace(fabric, **{field: getattr(fabric, field) * factor})
    assert float(COLLECTIVES[name].cost(size, group, faster).time_s) <= float(
        COLLECTIVES[name].cost(size, group, fabric).time_s
    ) * (1 + 1e-12)


@given(names, sizes, st.integers(1, 64), places())
@settings(max_examples=200, deadline=None)
def test_more_nics_are_never_slower(name: str, size: float, more: int, place: tuple[Group, Fabric]) -> None:
    group, fabric = place
    richer = replace(fabric, nics_per_node=int(fabric.nics_per_node) + more)
    assert float(COLLECTIVES[name].cost(size, group, richer).time_s) <= float(
        COLLECTIVES[name].cost(size, group, fabric).time_s
    ) * (1 + 1e-12)


@given(names, sizes, places())
@settings(max_examples=100, deadline=None)
def test_bytes_are_conserved_across_tiers(name: str, size: float, place: tuple[Group, Fabric]) -> None:
    group, _ = place
    inside, between = (float(value) for value in COLLECTIVES[name].sent_bytes(size, group))
    n, g, nodes = int(group.size), int(group.ranks_per_node), int(group.num_nodes)
    # What all ranks of a group send in one call: (n-1) S in rings and chains, twice that for an all-reduce.
    total = {"all_reduce": 2 * (n - 1), "all_to_all": n - 1, "point_to_point": n if n > 1 else 0}.get(name, n - 1)
    assert (inside + between) * nodes == pytest.approx(total * size, rel=1e-9)
    assert (between > 0) == (nodes > 1)
    if name in ("all_gather", "reduce_scatter") and nodes > 1:
        assert inside == pytest.approx((g - 1) * (n - 1) / n * size)
        assert between == pytest.approx((n - 1) / n * size)
    if name == "all_to_all":
        assert between == pytest.approx(g * (n - g) / n * size)


@pytest.mark.parametrize("name", sorted(COLLECTIVES))
@pytest.mark.parametrize("count", [7, 20_000])
def test_scalar_call_equals_array_call(name: str, count: int) -> None:
    rng = np.random.default_rng(count)
    per_node = 2 ** rng.integers(0, 4, count)
    group = Group(per_node * rng.integers(1, 50, count), per_node, 8 // per_node)
    fabric = Fabric(
        rng.integers(0, len(ARCHITECTURES), count),
        rng.uniform(100e9, 900e9, count),
        rng.random(count) < 0.5,
        2 ** rng.integers(0, 6, count),
        rng.uniform(10e9, 100e9, count),
        rng.integers(0, len(FABRICS), count),
        8,
    )
    size = np.exp(rng.uniform(0, 24, count))
    together = COLLECTIVES[name].cost(size, group, fabric)
    for k in rng.integers(0, count, 7):
        alone_group = Group(*(int(np.broadcast_to(getattr(group, f.name), count)[k]) for f in fields(group)))
        alone_fabric = Fabric(*(np.broadcast_to(getattr(fabric, f.name), count)[k].item() for f in fields(fabric)))
        alone = COLLECTIVES[name].cost(float(size[k]), alone_group, alone_fabric)
        for field in fields(alone):
            assert float(getattr(alone, field.name)) == float(getattr(together, field.name)[k])


def test_broadcasting_shapes() -> None:
    fabric = Fabric(1, 300e9, True, 8, 25e9, 0, 8)
    found = COLLECTIVES["all_gather"].cost(np.ones((3, 1)) * 1e6, Group(np.array([8, 16, 32, 64]), 8), fabric)
    assert found.time_s.shape == found.algorithm.shape == (3, 4)
    large = COLLECTIVES["all_gather"].cost(np.ones((3, 5000)) * 1e6, Group(np.array([[8], [16], [32]]), 8), fabric)
    assert np.array_equal(large.time_s[:, 0], found.time_s[0, :3])


@pytest.mark.parametrize("name", sorted(COLLECTIVES))
def test_one_rank_costs_and_sends_nothing(name: str) -> None:
    fabric = Fabric(1, 300e9, True, 8, 25e9, 0, 8)
    assert float(COLLECTIVES[name].cost(1e9, Group(1, 1), fabric).time_s) == 0
    assert [float(value) for value in COLLECTIVES[name].sent_bytes(1e9, Group(1, 1))] == [0, 0]


def test_groups_share_the_nics() -> None:
    fabric = Fabric(2, 450e9, True, 8, 25e9, 0, 8)
    alone = float(COLLECTIVES["all_gather"].cost(1e10, Group(64, 8, 1), fabric).time_s)
    wide = replace(fabric, gpus_per_node=16, nics_per_node=8)
    together = float(COLLECTIVES["all_gather"].cost(1e10, Group(64, 8, 2), wide).time_s)
    assert together == pytest.approx(2 * alone, rel=0.02)


GROUP, FABRIC = Group(16, 8), Fabric(1, 300e9, True, 8, 25e9, 0, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Group(10, 8), "group.size is 10: not divisible by ranks_per_node"),
        (lambda: Group(0, 1), "group.size is 0: give a whole number of at least 1"),
        (lambda: Group(8, 8, 0), "group.groups_per_node is 0"),
        (lambda: replace(FABRIC, nvlink_bytes_per_s=0.0), "fabric.nvlink_bytes_per_s is 0.0: give a positive number"),
        (lambda: replace(FABRIC, nic_bytes_per_s=float("nan")), "fabric.nic_bytes_per_s is nan"),
        (lambda: replace(FABRIC, nic_bytes_per_s=-1.0), "fabric.nic_bytes_per_s is -1.0"),
        (lambda: replace(FABRIC, architecture=9), "fabric.architecture is 9: give a code from 0 to 4"),
        (lambda: COLLECTIVES["broadcast"].cost(-1.0, GROUP, FABRIC), "tensor_bytes is -1.0"),
        (lambda: COLLECTIVES["broadcast"].cost(float("nan"), GROUP, FABRIC), "tensor_bytes is nan"),
        (
            lambda: COLLECTIVES["reduce"].cost(1.0, GROUP, replace(FABRIC, nics_per_node=0)),
            "fabric.nics_per_node is 0 but the group spans several nodes",
        ),
        (lambda: COLLECTIVES["reduce"].cost(1.0, Group(16, 8, 2), FABRIC), "exceeds fabric.gpus_per_node"),
    ],
)
def test_bad_input_is_named_in_one_line(make, message: str) -> None:
    with pytest.raises(InputError) as raised:
        make()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_import_is_light() -> None:
    code = (
        "import sys, flopcast.collectives, flopcast.collectives.measured, flopcast.collectives.fitting;"
        "print([m for m in ('scipy', 'pandas', 'torch', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
