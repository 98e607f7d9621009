"""Sums and maxima over arrays of many shapes, against NumPy's own of the same arrays at full size."""

import numpy as np
import pytest

from flopcast.simulator.broadcast import Sum, largest

SHAPES = [(1, 1), (3, 1), (1, 4), (3, 4), (3, 1), (1, 1)]
TERMS = [np.random.default_rng(index).random(shape) for index, shape in enumerate(SHAPES)]
WHOLE = [np.broadcast_to(term, (3, 4)) for term in TERMS]


def test_a_sum_is_that_of_its_terms() -> None:
    assert Sum(TERMS).total == pytest.approx(np.sum(WHOLE, axis=0))


def test_a_sum_has_the_axes_of_its_terms_and_no_more() -> None:
    assert Sum([TERMS[0], TERMS[1], TERMS[4]]).total.shape == (3, 1)


def test_terms_of_one_shape_are_added_in_their_order() -> None:
    terms = [np.array([1e16]), np.array([1.0]), np.array([-1e16])]
    assert Sum(terms).total == terms[0] + terms[1] + terms[2]


def test_the_largest() -> None:
    np.testing.assert_array_equal(largest(TERMS), np.max(WHOLE, axis=0))
