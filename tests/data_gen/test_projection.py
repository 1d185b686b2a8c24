"""Line integrals of discs and balls in closed form, the symmetries of the Radon transform, ASTRA as the reference."""

import astra
import numba
import numpy as np
import pytest

from data_gen import projection
from data_gen.geometry import Views
from data_gen.projection import astra_fbp, backproject, forward

EPS = 2.0**-24  # rounding of float32


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(astra, "use_cuda", lambda: False)


def views(n, angular_range_deg=180.0, start_deg=0.0, shift=0.0, scale=1.0):
    angles = np.deg2rad(start_deg + angular_range_deg * np.arange(n) / n)
    return Views(angles, np.broadcast_to(np.float64(shift), n), np.broadcast_to(np.float64(scale), n))


def across(shape):
    """Detectors that hold the diagonal."""
    return int(np.ceil(np.hypot(*shape[:2])))


def project(image, where, **options):
    """Sinogram (angles, detectors) of one slice."""
    return forward(image[..., None], where, (across(image.shape), 1), **options)[..., 0]


def disc(n, radius, centre=None, fine=8):
    """Area fraction of a disc in n × n pixels; ``centre`` in (row, column) pixels, n/2 being the middle."""
    row, column = centre or (n / 2, n / 2)
    at = (np.arange(n * fine) + 0.5) / fine
    inside = (at[:, None] - row) ** 2 + (at[None] - column) ** 2 <= radius**2
    return inside.reshape(n, fine, n, fine).mean((1, 3)).astype(np.float32)


def ball(n, radius, centre, fine=3):
    """Volume fraction of a ball in n³ voxels; ``centre`` in voxels along each axis, n/2 being the middle."""
    squares = [((np.arange(n * fine) + 0.5) / fine - at) ** 2 for at in centre]
    inside = squares[0][:, None, None] + squares[1][:, None] + squares[2] <= radius**2
    return inside.reshape(n, fine, n, fine, n, fine).mean((1, 3, 5)).astype(np.float32)


def cone_chords(angles, detectors, distance, centre, radius):
    """Chords of a ball with ``centre`` (x, y, z) from the axis, by the distance of each ray from the centre."""
    u, v = (np.arange(n) - (n - 1) / 2 for n in detectors)
    cos, sin = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    source = np.stack([distance * sin, -distance * cos, 0 * sin], -1)
    pixel = np.stack(np.broadcast_arrays(u[:, None] * cos, u[:, None] * sin, v), -1)
    ray = (pixel - source) / np.linalg.norm(pixel - source, axis=-1, keepdims=True)
    miss = np.linalg.norm(np.cross(np.asarray(centre) - source, ray), axis=-1)
    return 2 * np.sqrt(np.clip(radius**2 - miss**2, 0, None)), miss


# Parallel beam


@pytest.mark.parametrize("backend", projection.BACKENDS)
def test_chords_of_a_disc_off_the_centre(backend):
    n, radius, (row, column) = 96, 28, (52.3, 41.2)
    where = views(180)
    angle = where.angles_rad[:, None]
    detector = np.arange(across((n, n))) - (across((n, n)) - 1) / 2
    offset = detector - ((column - n / 2) * np.cos(angle) - (row - n / 2) * np.sin(angle))
    chord = 2 * np.sqrt(np.clip(radius**2 - offset**2, 0, None))
    sinogram = project(disc(n, radius, (row, column)), where, backend=backend)
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
    along_rows, along_columns = project(image, views(2))  # 38 detectors centre on the pixels of an even slice
    np.testing.assert_allclose(along_rows[3:35], image.sum(0), rtol=1e-5)
    np.testing.assert_allclose(along_columns[9:29], image.sum(1)[::-1], rtol=1e-5)


def test_projection_is_linear():
    rng = np.random.default_rng(1)
    f, g = rng.random((2, 24, 30)).astype(np.float32)
    where = views(17)
    np.testing.assert_allclose(  # float32 sums of some 40 terms
        project(2 * f - 3 * g, where), 2 * project(f, where) - 3 * project(g, where), rtol=0, atol=40 * 100 * EPS
    )


def test_every_projection_holds_the_mass_of_the_image():
    n, radius = 80, 30
    image = disc(n, radius)
    mass = project(image, views(90)).sum(1)
    # Poisson summation: Joseph weighs a pixel by 1 ± 2 sinc²(k cos θ), worst at 45° (0.129, 0.047 for k = 1, 2), and
    # the disc's transform at the aliased frequencies (0.414, 0.586) is at most √radius / (π f^1.5)
    worst = sum(2 * s * np.sqrt(radius) / (np.pi * f**1.5) for s, f in ((0.129, 0.414), (0.047, 0.586)))
    np.testing.assert_allclose(mass, image.sum(), rtol=0, atol=worst)


@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_the_corners_stay_on_the_detector(corner):
    image = np.zeros((40, 26), np.float32)
    image[corner] = 1
    mass = project(image, views(64)).sum(1)
    assert mass.min() > 1 - 2 * (0.129 + 0.047) - 0.05  # Joseph's least weight of one pixel (test above), k ≥ 3


@pytest.mark.parametrize("distance", [None, 200.0])
def test_turning_the_object_is_turning_the_scanner(distance):
    volume = np.random.default_rng(2).random((32, 32, 3)).astype(np.float32)
    where, detectors = views(12, 360.0), (46, 5)  # not at 45°, where rows and columns tie
    turned = forward(np.rot90(volume), where, detectors, distance)
    # 32 √2 samples, each at a position of up to 23 pixels after some four float32 roundings
    atol = 32 * np.sqrt(2) * 23 * 4 * EPS
    np.testing.assert_allclose(
        turned, np.roll(forward(volume, where, detectors, distance), 3, axis=0), rtol=0, atol=atol
    )
    np.testing.assert_allclose(turned, forward(volume, views(12, 360.0, -90.0), detectors, distance), rtol=0, atol=atol)


def test_half_a_turn_is_the_mirrored_detector():
    sinogram = project(np.random.default_rng(3).random((18, 25)).astype(np.float32), views(12, 360.0))
    np.testing.assert_allclose(sinogram[6:], sinogram[:6, ::-1], rtol=0, atol=25 * np.sqrt(2) * 16 * 4 * EPS)


def test_a_shifted_object_is_a_shifted_projection():
    image = np.random.default_rng(4).random((20, 20)).astype(np.float32)
    still, moved = project(image, views(7)), project(image, views(7, shift=3.0))
    np.testing.assert_allclose(moved[:, 3:], still[:, :-3], rtol=0, atol=20 * np.sqrt(2) * 14 * 4 * EPS)


@pytest.mark.parametrize("distance", [None, 200.0])
def test_a_dilated_disc_is_a_larger_disc(distance):
    n, radius = 80, 20
    u = np.arange(across((n, n))) - (across((n, n)) - 1) / 2
    near = u if distance is None else u * distance / np.hypot(distance, u)
    sinogram = project(disc(n, radius), views(60, 360.0, scale=1.3), distance=distance)
    chord = 2 * np.sqrt(np.clip((1.3 * radius) ** 2 - near**2, 0, None))
    central = np.abs(u) < radius / 2
    # the mean over the angles errs by the blur, 0.02, and random edges (first test); a dilation off by 0.01 by 0.45
    assert abs((sinogram - chord)[:, central].mean()) < 0.02 + 0.05 * np.sqrt(180 / 60) * 1.3


@pytest.mark.parametrize(
    "where",
    [views(45), views(45, 360.0, 10.0), views(13, 180.0, 3.0, np.linspace(-4, 5, 13), np.linspace(0.9, 1.2, 13))],
    ids=["half turn", "full turn", "moving"],
)
@pytest.mark.parametrize("shape", [(40, 40), (31, 44)])
def test_the_compiled_projector_is_astras_linear_one(shape, where, no_gpu):
    image = np.random.default_rng(5).random(shape).astype(np.float32)
    # ASTRA's positions, up to half the diagonal, in float32: four roundings, at each sample, dilated by 1.2 at most
    atol = across(shape) * across(shape) / 2 * 4 * EPS * 1.2
    np.testing.assert_allclose(project(image, where), project(image, where, backend="astra"), rtol=0, atol=atol)


@pytest.mark.skipif(not astra.use_cuda(), reason="needs a GPU")
@pytest.mark.parametrize("distance", [None, 200.0])
def test_the_gpu_projector_is_the_compiled_one(distance):
    n, where = 48, views(30, 360.0, 2.0, np.linspace(-3, 3, 30), np.linspace(0.95, 1.05, 30))
    volume = ball(n, 17.0, (24.0, 22.0, 25.0))
    reference = forward(volume, where, (68, 60), distance)
    on_gpu = forward(volume, where, (68, 60), distance, backend="astra")
    # textures interpolate with 8 bits: 2⁻⁹ for each of the samples at an edge of the ball; else as ASTRA on the CPU
    assert np.abs(on_gpu - reference).max() < 0.05
    assert abs(on_gpu.mean() / reference.mean() - 1) < 1e-3


def test_astras_linear_projector_and_its_backprojection_are_adjoint():
    rng = np.random.default_rng(6)
    image, sinogram = rng.random((24, 30)).astype(np.float32), rng.random((19, 39)).astype(np.float32)
    with projection._astra_projector((24, 30), views(19), 39, None) as (projector, _, _):
        data, projected = astra.create_sino(image, projector)
        data2, back = astra.create_backprojection(sinogram, projector)
        astra.data2d.delete([data, data2])
    # both sides add the same products of weights; float32 sums of some 40 positive terms
    assert np.vdot(projected, sinogram) == pytest.approx(np.vdot(image, back), rel=40 * EPS)


def test_astra_fbp_returns_the_value_of_a_disc():
    n, radius, value, where = 96, 40, 3.0, views(360)
    image = astra_fbp(project(value * disc(n, radius), where)[..., None], where.angles_rad, (n, n, 1))[..., 0]
    at = np.arange(n) + 0.5 - n / 2
    interior = image[np.hypot(at[:, None], at) < radius - 8]
    # chords err by 0.13 of 80 on average (test of the chords, three standard errors)
    assert interior.mean() == pytest.approx(value, rel=0.13 / 80)


# Fan and cone beam


@pytest.mark.parametrize("backend", projection.BACKENDS)
def test_fan_chords_of_a_disc_off_the_centre(backend):
    n, radius, distance, (row, column) = 96, 28, 180.0, (52.3, 41.2)
    where = views(180, 360.0)
    sinogram = project(disc(n, radius, (row, column)), where, distance=distance, backend=backend)
    centre = (column - n / 2, n / 2 - row, 0.0)
    chord, miss = (a[..., 0] for a in cone_chords(where.angles_rad, (sinogram.shape[1], 1), distance, centre, radius))
    error = (sinogram - chord)[miss < radius / 2]
    # Joseph as in the parallel beam; ASTRA's line sums whole pixels: two chords of edge pixels, each √2 at most
    assert np.abs(error).max() < (np.sqrt(2) if backend == "compiled" else 2 * np.sqrt(2))
    assert abs(error.mean()) < 0.05  # bias of the blur, 0.014, and random edges
    assert np.all(sinogram[miss > radius + 2 * np.sqrt(2)] == 0)


def test_the_compiled_fan_is_astras_within_the_discretisation(no_gpu):
    image = disc(64, 20, (30.0, 35.0))
    ours, theirs = (project(image, views(90, 360.0), distance=150.0, backend=b) for b in projection.BACKENDS)
    assert np.abs(ours - theirs).max() < 3 * np.sqrt(2)  # the bounds of the two in the test above
    assert np.sqrt(np.mean((ours - theirs) ** 2)) < np.sqrt(2 / 12 + 2 / 12)  # edges at random in a step of one pixel
    assert ours.sum() == pytest.approx(theirs.sum(), rel=1e-3)  # 6000 rays of 30: random edges average out


def test_a_distant_source_is_a_parallel_beam():
    volume = np.random.default_rng(7).random((22, 30, 5)).astype(np.float32)
    where = views(11, 180.0, 2.0, np.linspace(-2, 2, 11), np.linspace(0.9, 1.1, 11))
    parallel, cone = forward(volume, where, (38, 5)), forward(volume, where, (38, 5), 1e7)
    # a dilation also moves the detector rows of a cone beam: compare the middle ones. A ray turns by 19e-7 and moves by
    # 19 times that at the edge of the slice; each of 42 samples changes by that, at most
    np.testing.assert_allclose(cone[..., 2], parallel[..., 2], rtol=0, atol=42 * 19 * 19e-7)


def test_cone_chords_of_a_ball_off_the_centre():
    n, radius, distance, at = 48, 15, 120.0, (26.0, 21.5, 24.8)
    where, detectors = views(40, 360.0), (76, 60)
    projections = forward(ball(n, radius, at), where, detectors, distance)
    centre = (at[1] - n / 2, n / 2 - at[0], at[2] - n / 2)
    chord, miss = cone_chords(where.angles_rad, detectors, distance, centre, radius)
    inner = miss < radius / 2
    assert np.abs(projections - chord)[inner].max() < np.sqrt(3)  # Joseph's step is √3 at most in three dimensions
    # blur: half of 1/12 + 1/6 along each of two directions, times chord'' ≤ 3.08 / radius; random edges average out
    assert abs((projections - chord)[inner].mean()) < 0.5 * 2 * 0.25 * 3.08 / radius + 0.01
    assert np.all(projections[miss > radius + 2 * np.sqrt(3)] == 0)
    u, v = np.arange(detectors[0]) - 37.5, np.arange(detectors[1]) - 29.5
    for sign in (miss * 0 + u[:, None] > 0, miss * 0 + v > 0):  # a detector shifted by 0.1 pixel shows
        assert abs((projections - chord)[inner & sign].mean()) < 0.5 * 2 * 0.25 * 3.08 / radius + 0.02


def test_the_middle_of_a_cone_is_a_fan():
    volume = np.random.default_rng(8).random((20, 24, 3)).astype(np.float32)
    where = views(9, 360.0)
    cone = forward(volume, where, (32, 3), 100.0)[..., 1]
    np.testing.assert_allclose(cone, forward(volume[..., 1:2], where, (32, 1), 100.0)[..., 0], rtol=0, atol=1e-5)


# Back-projection


@pytest.mark.parametrize("distance", [None, 150.0])
def test_backprojection_of_a_linear_sinogram(distance):
    """Linear interpolation is exact on it: a closed form for every voxel."""
    shape, angles = (20, 26, 5 if distance is None else 4), np.deg2rad(np.arange(0, 360, 30.0))
    u, v = np.arange(48) - 23.5, np.arange(11) - 5.0
    sinogram = np.empty((12, 48, 5 if distance is None else 11), np.float32)
    sinogram[:] = 2 + u[:, None] + (0 if distance is None else 3 * v)
    x, y = np.arange(26) - 12.5, 9.5 - np.arange(20)[:, None]
    z = np.arange(shape[2]) - (shape[2] - 1) / 2
    expected = np.zeros(shape)
    for angle in angles:
        m = 1.0 if distance is None else distance / (distance - x * np.sin(angle) + y * np.cos(angle))
        ray = 2 + m * (x * np.cos(angle) + y * np.sin(angle))
        expected += (m**2 * ray + np.zeros((20, 26)))[..., None]
        expected += 0 if distance is None else (3 * m**3)[..., None] * z
    image = backproject(sinogram, angles, shape, distance)
    # 12 sums of up to 12 · 60 in float32
    np.testing.assert_allclose(image, expected, rtol=0, atol=12 * 12 * 60 * EPS)


def test_a_voxel_beside_the_detector_gets_nothing():
    image = backproject(np.ones((1, 10, 1), np.float32), np.zeros(1), (4, 20, 1))[..., 0]
    x = np.abs(np.arange(20) - 9.5)
    assert np.all(image[:, x < 4.5] == 1) and np.all(image[:, x > 4.5] == 0)


# Blocks and threads


@pytest.mark.parametrize("slices", [1, 5, 16, 21])
def test_a_slice_does_not_depend_on_its_block(slices):
    rng = np.random.default_rng(9)
    volume, where = rng.random((18, 22, slices)).astype(np.float32), views(10, 180.0, 1.0)
    together = forward(volume, where, (29, 1))
    image = backproject(together, where.angles_rad, volume.shape)
    for k in {0, slices // 2, slices - 1}:
        alone = forward(volume[..., k : k + 1], where, (29, 1))
        np.testing.assert_array_equal(together[..., k : k + 1], alone)
        np.testing.assert_array_equal(image[..., k : k + 1], backproject(alone, where.angles_rad, (18, 22, 1)))


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
@pytest.mark.parametrize("distance", [None, 100.0])
def test_the_number_of_threads_changes_no_bit(distance):
    volume = np.random.default_rng(10).random((18, 22, 4)).astype(np.float32)
    where, before, results = views(10, 360.0), numba.get_num_threads(), []
    try:
        for threads in (1, 2):
            numba.set_num_threads(threads)
            sinogram = forward(volume, where, (29, 6), distance)
            results.append((sinogram, backproject(sinogram, where.angles_rad, volume.shape, distance)))
    finally:
        numba.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


# Errors


def test_what_cannot_be_projected_says_so(no_gpu):
    volume = np.zeros((8, 8, 2), np.float32)
    with pytest.raises(ValueError, match="backend='cpu' is unknown; known: compiled, astra"):
        forward(volume, views(2), (12, 2), backend="cpu")
    with pytest.raises(ValueError, match=r"source is 5 voxels .* inside an object of 8 × 8 .* more than 5.657"):
        forward(volume, views(2), (12, 2), distance=5.0)
    with pytest.raises(ValueError, match="cone beam on a GPU only, and finds none; take backend='compiled'"):
        forward(volume, views(2), (12, 2), distance=50.0, backend="astra")
    with pytest.raises(ValueError, match="no moving or shifted object; take backend='compiled'"):
        forward(volume[..., :1], views(2, shift=1.0), (12, 1), distance=50.0, backend="astra")
