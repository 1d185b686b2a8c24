"""Line integrals of a disc in closed form, the symmetries of the Radon transform, and its inverse."""

import numpy as np
import pytest

from data_gen.projection import FILTERS, ParallelBeam, parallel_beam


def disc(n, radius, centre=None, fine=8):
    """Area fraction of a disc in n × n pixels; ``centre`` in (row, column) pixels, n/2 being the middle."""
    row, column = centre or (n / 2, n / 2)
    at = (np.arange(n * fine) + 0.5) / fine
    inside = (at[:, None] - row) ** 2 + (at[None] - column) ** 2 <= radius**2
    return inside.reshape(n, fine, n, fine).mean((1, 3)).astype(np.float32)


def radii_of(n):
    at = np.arange(n) + 0.5 - n / 2
    return np.hypot(at[:, None], at[None])


def test_chords_of_a_disc_off_the_centre():
    n, radius, (row, column) = 96, 28, (52.3, 41.2)
    beam = ParallelBeam((n, n), 180)
    angle = beam.angles_rad[:, None]
    detector = np.arange(beam.n_detectors) - (beam.n_detectors - 1) / 2
    offset = detector - ((column - n / 2) * np.cos(angle) - (row - n / 2) * np.sin(angle))
    chord = 2 * np.sqrt(np.clip(radius**2 - offset**2, 0, None))
    sinogram = beam.forward(disc(n, radius, (row, column)))
    central = np.abs(offset) < radius / 2
    error = (sinogram - chord)[central]
    # Joseph sums samples 1/max(|cos|, |sin|) ≤ √2 apart: a profile that rises once and falls once errs by ≤ √2
    assert np.abs(error).max() < np.sqrt(2)
    # the mean over 180 angles keeps the blur only: half its variance, 1/12 (pixel) + 1/6 (interpolation), times
    # chord'' ≤ 3.08/radius, here 0.014; and 0.05 for the mean of 180 edges at random, each within √2 / √12 · √2
    assert abs(error.mean()) < 0.5 * 0.25 * 3.08 / radius + 0.05
    for half in (offset < 0, offset > 0):  # a detector shifted by 0.1 pixel shows: chord' is 0.3 on average there
        assert abs((sinogram - chord)[central & half].mean() + 0.014 / 2) < 0.03
    assert np.all(sinogram[np.abs(offset) > radius + 2 * np.sqrt(2)] == 0)


def test_chords_along_the_pixels_are_sums_of_rows_and_columns():
    image = np.random.default_rng(0).random((20, 32)).astype(np.float32)
    beam = ParallelBeam(image.shape, 2)  # 0° and 90°; 38 detectors centre on the pixels of an even slice
    assert beam.n_detectors == 38
    along_rows, along_columns = beam.forward(image)
    np.testing.assert_allclose(along_rows[3:35], image.sum(0), rtol=1e-5)
    np.testing.assert_allclose(along_columns[9:29], image.sum(1)[::-1], rtol=1e-5)


def test_projection_is_linear():
    rng = np.random.default_rng(1)
    f, g = rng.random((2, 24, 30)).astype(np.float32)
    beam = ParallelBeam(f.shape, 17)
    np.testing.assert_allclose(  # float32 sums of some 40 terms
        beam.forward(2 * f - 3 * g), 2 * beam.forward(f) - 3 * beam.forward(g), rtol=0, atol=40 * 100 * 6e-8
    )


def test_every_projection_holds_the_mass_of_the_image():
    n, radius = 80, 30
    image = disc(n, radius)
    mass = ParallelBeam((n, n), 90).forward(image).sum(1)
    # Poisson summation: Joseph weighs a pixel by 1 ± 2 sinc²(k cos θ), worst at 45° (0.129, 0.047 for k = 1, 2), and
    # the disc's transform at the aliased frequencies (0.414, 0.586) is at most √radius / (π f^1.5)
    worst = sum(2 * s * np.sqrt(radius) / (np.pi * f**1.5) for s, f in ((0.129, 0.414), (0.047, 0.586)))
    np.testing.assert_allclose(mass, image.sum(), rtol=0, atol=worst)


@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_the_corners_stay_on_the_detector(corner):
    image = np.zeros((40, 26), np.float32)
    image[corner] = 1
    mass = ParallelBeam(image.shape, 64).forward(image).sum(1)
    assert mass.min() > 1 - 2 * (0.129 + 0.047) - 0.05  # Joseph's least weight of one pixel (test above), k ≥ 3


def test_chords_are_the_projection_of_ones():
    beam = ParallelBeam((20, 30), 12)
    np.testing.assert_array_equal(beam.chords, beam.forward(np.ones((20, 30))))
    assert beam.chords.max() <= np.hypot(20, 30) + np.sqrt(2)  # a diagonal, and a step of Joseph's


def test_turning_the_object_is_turning_the_scanner():
    image = np.random.default_rng(2).random((32, 32)).astype(np.float32)
    beam = ParallelBeam(image.shape, 12, 360.0)  # not at 45°, where rows and columns tie
    # 32 √2 samples, each at a position of up to 23 pixels after some four float32 roundings
    atol = 32 * np.sqrt(2) * 23 * 4 * 2.0**-24
    np.testing.assert_allclose(
        beam.forward(np.rot90(image)), np.roll(beam.forward(image), 3, axis=0), rtol=0, atol=atol
    )


def test_half_a_turn_is_the_mirrored_detector():
    image = np.random.default_rng(3).random((18, 25)).astype(np.float32)
    sinogram = ParallelBeam(image.shape, 12, 360.0).forward(image)
    np.testing.assert_allclose(sinogram[6:], sinogram[:6, ::-1], rtol=0, atol=25 * np.sqrt(2) * 16 * 4 * 2.0**-24)


@pytest.mark.parametrize("angular_range_deg", [180.0, 360.0])
@pytest.mark.parametrize("filter_name", FILTERS)
def test_fbp_returns_the_value_of_a_disc(filter_name, angular_range_deg):
    n, radius, value = 96, 40, 3.0
    n_angles = int(2 * angular_range_deg)
    beam = parallel_beam((n, n), n_angles, angular_range_deg)
    image = beam.fbp(beam.forward(value * disc(n, radius)), filter_name)
    interior = image[radii_of(n) < radius - 8]  # the widest filter (parzen) blurs over 4 pixels
    # chords err by 0.13 of 80 on average (test of the chords, three standard errors)
    assert interior.mean() == pytest.approx(value, rel=0.13 / 80)
    # rays that err by √2/√6 each, white: sd (π²/18 − 1/6)^½ / √angles of that (ram-lak, the other filters have less)
    assert interior.std() / value < np.sqrt(2 / 6) * np.sqrt((np.pi**2 / 18 - 1 / 6) / 360)
    outside = image[(radii_of(n) > radius + 8) & (radii_of(n) < n / 2)]
    assert outside.size == 0 or abs(outside.mean()) < value * 0.13 / 80


def test_fbp_keeps_place_and_orientation():
    n, centre = 64, (20.5, 40.5)  # row, column
    spot = disc(n, 3, centre)
    beam = ParallelBeam((n, n + 10), 90)
    image = beam.fbp(beam.forward(np.pad(spot, ((0, 0), (0, 10)))))
    weight = np.clip(image, 0.5, None) - 0.5
    rows, columns = np.indices(image.shape) + 0.5
    # the spot's own centre of mass, to a tenth of a pixel: an axis that is flipped or half a pixel off shows
    assert (weight * rows).sum() / weight.sum() == pytest.approx(centre[0], abs=0.1)
    assert (weight * columns).sum() / weight.sum() == pytest.approx(centre[1], abs=0.1)


def test_a_geometry_is_kept_for_the_next_slice():
    assert parallel_beam((16, 16), 5) is parallel_beam((16, 16), 5)
