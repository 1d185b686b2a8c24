"""Beer–Lambert's law in float32 against float64, and the integer arithmetic of the kernels."""

import numpy as np
import pytest

from data_gen.ray_kernels import LANES, _inside, beer_lambert

EPS = 2.0**-24  # rounding of float32
# the interpolant's 1.1e-7 relative to 2^-½ at least; one rounding of the result, less than half of one before it
POWER = 1.1e-7 * np.sqrt(2) + 1.5 * EPS


def law(paths, attenuation, weights):
    """Through the kernel: paths (materials, rays), attenuation (materials, energies), weights (sums, energies)."""
    out = np.zeros((len(weights), paths.shape[1]), np.float32)
    beer_lambert(*(np.ascontiguousarray(a, np.float32) for a in (paths, attenuation, weights)), out)
    return out


def power_of_two(x):
    """2^x of the kernel: one material, one energy, one sum."""
    return law(x[None], np.ones((1, 1)), np.ones((1, 1)))[0]


def test_the_power_of_two_is_within_its_bound():
    x = np.linspace(-126, 127, 2_000_003).astype(np.float32)
    x = np.concatenate([x, np.arange(-126, 128, 0.5, np.float32), np.float32(2.0) ** -np.arange(1, 60)])
    error = power_of_two(x) / np.exp2(x.astype(float)) - 1
    assert np.abs(error).max() < POWER


def test_whole_powers_of_two_are_exact_to_the_constant():
    x = np.arange(-126, 128, dtype=np.float32)
    result = power_of_two(x)
    # the rest is 0: every one is the constant coefficient, shifted; 1 within the interpolant's 1.1e-7
    np.testing.assert_array_equal(result, np.ldexp(result[126], x.astype(int)))  # exp2 of float32 may round
    assert abs(result[126] - 1) < 1.1e-7 + EPS


def test_deep_attenuation_ends_and_does_not_wrap():
    depth = np.concatenate([np.linspace(120, 140, 401), np.geomspace(140, 1e30, 200)]).astype(np.float32)
    result = power_of_two(-depth)
    assert np.all(result > 0) and np.all(result <= np.exp2(-np.minimum(depth, 126).astype(float)) * (1 + POWER))
    assert np.all(np.diff(result) <= result[:-1] * 2 * POWER)  # falls, but for the error of either
    assert np.all(result[depth > 126] == result[-1])


@pytest.mark.parametrize("materials", [1, 2, 4])
@pytest.mark.parametrize("sums", [1, 2])
def test_against_sums_in_double_precision(materials, sums):
    rng = np.random.default_rng(materials)
    n_energies, n_rays = 150, 1230  # two blocks and a rest
    paths, weights = rng.random((materials, n_rays)), rng.random((sums, n_energies))
    attenuation = -rng.uniform(0.1, 12, (materials, n_energies))
    paths, weights, attenuation = (a.astype(np.float32) for a in (paths, weights, attenuation))
    exponents = (attenuation.T.astype(float) @ paths.astype(float))[None]  # (1, energies, rays)
    expected = (weights[:, :, None] * np.exp2(exponents)).sum(1)
    result = law(paths, attenuation, weights)
    # each exponent is rounded once a material, by its own size; 2^x errs by POWER; then n positive terms are added
    exponent_error = materials * EPS * np.log(2) * np.abs(exponents).max()
    np.testing.assert_allclose(result, expected, rtol=exponent_error + POWER + (n_energies + 1) * EPS)


def test_a_ray_does_not_depend_on_its_neighbours():
    rng = np.random.default_rng(5)
    paths, attenuation, weights = rng.random((3, 1100)), -rng.uniform(0, 20, (3, 40)), rng.random((2, 40))
    together = law(paths, attenuation, weights)
    for first, last in ((0, 1), (509, 515), (1023, 1025), (1093, 1100), (7, 900)):
        np.testing.assert_array_equal(law(paths[:, first:last], attenuation, weights), together[:, first:last])


def test_the_second_sum_does_not_disturb_the_first():
    rng = np.random.default_rng(6)
    paths, attenuation, weights = rng.random((2, 77)), -rng.uniform(0, 20, (2, 40)), rng.random((2, 40))
    both = law(paths, attenuation, weights)
    for k in (0, 1):
        np.testing.assert_array_equal(both[k], law(paths, attenuation, weights[k : k + 1])[0])


def test_a_block_is_a_cache_line():
    assert LANES * 4 == 64


def test_the_range_of_samples_inside_is_the_one_found_by_trying():
    rng = np.random.default_rng(7)
    for _ in range(1000):
        start, slope, end = rng.uniform(-30, 30), rng.choice([rng.uniform(-2, 2), 0.0, 1.0, -0.5]), rng.uniform(1, 30)
        if rng.random() < 0.3:  # ends that fall on samples
            start, end = round(start), round(end)
        count = int(rng.integers(1, 60))
        inside = [k for k in range(count) if 0 <= start + k * slope <= end]
        low, high = _inside(float(start), float(slope), float(end), count)
        assert list(range(low, high)) == inside
