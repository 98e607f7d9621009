import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopcast.errors import InputError
from flopcast.trainer.data.order import Order, permuted

NAMES, WEIGHTS, SIZES = ["english", "japanese", "wiki"], [0.877, 0.12, 0.003], [700, 90, 5]


def order(seed: int = 1) -> Order:
    return Order(NAMES, WEIGHTS, SIZES, seed)


@given(st.integers(1, 300), st.integers(0, 2**64 - 1))
def test_permuted_is_a_permutation(size: int, key: int) -> None:
    assert sorted(permuted(place, size, key) for place in range(size)) == list(range(size))


def test_permutations_look_uniform() -> None:
    # Where entry 0 of 5 goes, over 5000 keys: chi-square with 4 degrees of freedom stays below its 99.9 % point.
    counts = Counter(permuted(0, 5, key) for key in range(5000))
    assert sum((counts[place] - 1000) ** 2 / 1000 for place in range(5)) < 18.5


def test_the_mixture_keeps_its_shares_at_every_moment() -> None:
    taken = np.zeros(3)
    for number, sample in enumerate(order().next(20_000), start=1):
        taken[sample.source] += 1
        assert np.abs(taken - np.array(WEIGHTS) * number).max() < 3
    assert taken / 20_000 == pytest.approx(WEIGHTS, abs=1e-4)


def test_each_epoch_of_a_source_reads_everything_once_in_another_order() -> None:
    japanese = [sample for sample in order().next(3000) if sample.source == 1]
    epochs = [[s.index for s in japanese if s.epoch == epoch] for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(90))
    assert epochs[0] != epochs[1]


def test_going_on_from_a_state_is_the_same_order() -> None:
    whole = order().next(500)
    first = order()
    assert first.next(123) == whole[:123]
    state = json.loads(json.dumps(first.state()))
    second = order()
    second.restore(state)
    assert second.next(377) == whole[123:]


def test_another_seed_is_another_order() -> None:
    assert order(1).next(50) != order(2).next(50)


def test_sources_in_another_order_go_on_alike() -> None:
    first = order()
    whole = [(NAMES[s.source], s.index, s.epoch) for s in order().next(500)]
    first.next(123)
    swapped = [2, 0, 1]
    names, weights, sizes = ([table[n] for n in swapped] for table in (NAMES, WEIGHTS, SIZES))
    second = Order(names, weights, sizes, 1)
    second.restore(json.loads(json.dumps(first.state())))
    assert [(names[s.source], s.index, s.epoch) for s in second.next(200)] == whole[123:323]
    third = order()  # and back again
    third.restore(json.loads(json.dumps(second.state())))
    assert [(NAMES[s.source], s.index, s.epoch) for s in third.next(177)] == whole[323:]


def test_other_weights_are_the_shares_from_then_on() -> None:
    first = order()
    first.next(10_000)
    other = [0.1, 0.2, 0.7]
    second = Order(NAMES, other, SIZES, 1)
    second.restore(first.state())
    taken = np.zeros(3)
    for number, sample in enumerate(second.next(1000), start=1):
        taken[sample.source] += 1
        assert np.abs(taken - np.array(other) * number).max() < 3
    # The second share is gone on with as the first; a factor common to all weights changes nothing.
    third = Order(NAMES, [10 * weight for weight in other], SIZES, 1)
    third.restore(json.loads(json.dumps(second.state())))
    assert third.next(300) == second.next(300)


def test_a_state_of_an_earlier_version_has_the_weights_of_the_settings() -> None:
    first = order()
    first.next(123)
    old = {name: first.state()[name] for name in ("seed", "taken", "sizes")}
    second = order()
    second.restore(old)
    assert second.next(300) == first.next(300)


def test_a_state_of_other_data_is_refused() -> None:
    state = order().state()
    with pytest.raises(InputError, match="seed is 2, but the checkpoint was made with 1"):
        order(2).restore(state)
    with pytest.raises(InputError, match="go on with the same sources"):
        Order(NAMES, WEIGHTS, [1, 2, 3], 1).restore(state)
