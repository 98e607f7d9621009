"""The engine against arithmetic done by hand: work that slows other work down."""

import pytest
import simpy

from flopcast.simulator.timeline.engine import Communicator, Device, Link, Transfer

LEAK, NETWORK_LEAK = 0.5, 0.25
LEAKS: dict[Link, float] = {"in-node": LEAK, "between-nodes": NETWORK_LEAK}
SHARES: dict[Link, float] = {"in-node": 1.0, "between-nodes": 0.8}


def device(env: simpy.Environment) -> Device:
    return Device(env, LEAKS, SHARES)


def transfer(env: simpy.Environment, work: float, link: Link = "in-node", num_members: int = 1) -> Transfer:
    return Transfer(env, "a transfer", work, link, num_members)


@pytest.mark.parametrize(("compute", "communicate"), [(10.0, 4.0), (4.0, 10.0), (5.0, 5.0), (3.0, 0.0)])
def test_overlap_exposes_the_leak_of_the_shorter(compute: float, communicate: float) -> None:
    """Both at 1 / (1 + leak) while they overlap: the whole takes max(T, C) + leak min(T, C)."""
    env = simpy.Environment()
    gpu = device(env)
    activity = gpu.compute(compute)
    moved = transfer(env, communicate)
    Communicator(gpu).post(moved)

    def rest(_: simpy.Event) -> None:
        gpu.rest()

    assert activity.done.callbacks is not None
    activity.done.callbacks.append(rest)
    env.run(until=simpy.AllOf(env, [activity.done, moved.done]))
    assert env.now == pytest.approx(max(compute, communicate) + LEAK * min(compute, communicate))


def test_beside_computation_a_transfer_has_only_its_share_of_the_network() -> None:
    env = simpy.Environment()
    gpu = device(env)
    gpu.compute(100.0)
    moved = transfer(env, 4.0, "between-nodes")
    Communicator(gpu).post(moved)
    env.run(until=moved.done)
    assert env.now == pytest.approx(4.0 * (1 + NETWORK_LEAK) / 0.8)


def test_of_two_links_the_one_that_slows_the_computation_more_counts() -> None:
    env = simpy.Environment()
    gpu = device(env)
    activity = gpu.compute(9.0)
    Communicator(gpu).post(transfer(env, 100.0, "in-node"))
    Communicator(gpu).post(transfer(env, 100.0, "between-nodes"))
    env.run(until=activity.done)
    assert env.now == pytest.approx(9.0 * (1 + LEAK))


def test_communicators_share_a_link_and_not_another() -> None:
    env = simpy.Environment()
    gpu = device(env)
    one, two = transfer(env, 3.0), transfer(env, 1.0)
    other = transfer(env, 3.0, "between-nodes")
    for moved in (one, two, other):
        Communicator(gpu).post(moved)
    env.run(until=simpy.AllOf(env, [one.done, two.done, other.done]))
    assert (two.ended_s, one.ended_s, other.ended_s) == pytest.approx((2.0, 4.0, 3.0))


def test_a_communicator_runs_its_transfers_in_order() -> None:
    env = simpy.Environment()
    communicator = Communicator(device(env))
    moved = [transfer(env, work) for work in (2.0, 1.0, 3.0)]
    for each in moved:
        communicator.post(each)
    env.run(until=moved[-1].done)
    assert [each.ended_s for each in moved] == pytest.approx([2.0, 3.0, 6.0])


def test_a_transfer_starts_with_its_last_member_and_runs_at_the_pace_of_the_busiest() -> None:
    env = simpy.Environment()
    early, late = device(env), device(env)
    ends = [Communicator(early), Communicator(late)]
    moved = transfer(env, 2.0, num_members=2)
    ends[0].post(moved)
    late.compute(100.0)
    env.run(until=5.0)
    assert moved.started_s is None
    assert ends[0].waited_s() == 5.0
    ends[1].post(moved)
    env.run(until=moved.done)
    assert moved.started_s == 5.0
    assert env.now == pytest.approx(5.0 + 2.0 * (1 + LEAK))
    assert (ends[0].waited_s(), ends[1].waited_s()) == (5.0, 0.0)
