"""Scalars are fixed, pairs are ranges."""

import numpy as np
import pytest

from data_gen.parameters import check_range, draw, lower, upper


def test_a_scalar_is_fixed_and_a_pair_is_drawn_between_its_ends():
    rng = np.random.default_rng(0)
    assert check_range("x", 2, 0, 5) == 2.0 and isinstance(check_range("x", 2, 0, 5), float)
    assert draw(2.0, rng) == 2.0
    pair = check_range("x", [1, 3], 0, 5)
    assert pair == (1.0, 3.0) and (lower(pair), upper(pair)) == (1.0, 3.0)
    assert (lower(2.0), upper(2.0)) == (2.0, 2.0)
    values = np.array([draw(pair, rng) for _ in range(3000)])
    assert values.min() >= 1 and values.max() <= 3
    # a uniform on [1, 3] has mean 2 and sd 2/√12: four standard errors
    assert abs(values.mean() - 2) < 4 * 2 / np.sqrt(12 * 3000)


def test_a_fixed_value_uses_no_random_number():
    rng, untouched = np.random.default_rng(0), np.random.default_rng(0)
    draw(2.0, rng)
    assert rng.random() == untouched.random()


def test_the_bounds_are_closed():
    assert check_range("x", [0, 5], 0, 5) == (0.0, 5.0)
    assert check_range("x", np.float32(5), 0, 5) == 5.0


@pytest.mark.parametrize(
    "bad", ["1", None, True, [True, 2], [], [1, 2, 3], [2, 1], float("nan"), float("inf"), [0, float("nan")], {1, 2}]
)
def test_what_is_no_number_and_no_rising_pair_is_refused(bad):
    with pytest.raises(ValueError, match=r"radius=.*must be a number or a rising pair") as caught:
        check_range("radius", bad, 0, 5)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("bad", "nearest"), [(-1, "0"), (6, "5"), ([1, 6], "5"), ([-2, 1], "0")])
def test_the_error_names_the_argument_the_bounds_and_the_nearest_valid_value(bad, nearest):
    with pytest.raises(ValueError, match=rf"radius=.*must lie in \[0, 5\] µm; nearest valid: {nearest}$"):
        check_range("radius", bad, 0, 5, "µm")
