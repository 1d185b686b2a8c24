"""Discs and balls in closed form, the noise of FBP, ASTRA's filters, stripes that were put in, a known propagation."""

import numpy as np
import pytest
from scipy import constants

from data_gen.geometry import Views
from data_gen.projection import astra_fbp, forward
from data_gen.reconstruction import (
    CGLS,
    FBP,
    FILTERS,
    RING_FILTERS,
    SIRT,
    Paganin,
    fan_weights,
    filter_gain,
    filter_views,
    parallel_weights,
    remove_rings,
)

EPS = 2.0**-24  # rounding of float32


def turn(n, angular_range_deg=180.0, start_deg=0.0):
    return np.deg2rad(start_deg + angular_range_deg * np.arange(n) / n)


def axes(n):
    """x along columns and y up the rows, from the rotation axis."""
    at = np.arange(n) - (n - 1) / 2
    return at[None], -at[:, None]


def disc_sinogram(angles, detectors, centre, radius):
    """Chords 2 √(r² − s²) of a disc of value 1, parallel beam: (angles, detectors, 1)."""
    u = np.arange(detectors) - (detectors - 1) / 2
    offset = u - (centre[0] * np.cos(angles) + centre[1] * np.sin(angles))[:, None]
    return (2 * np.sqrt(np.clip(radius**2 - offset**2, 0, None)))[..., None].astype(np.float32)


def ball_projections(angles, detectors, distance, centre, radius):
    """Chords of a ball of value 1, cone beam, by the distance of each ray from the centre: (angles, across, along)."""
    u, v = (np.arange(n) - (n - 1) / 2 for n in detectors)
    cos, sin = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    source = np.stack([distance * sin, -distance * cos, 0 * sin], -1)
    pixel = np.stack(np.broadcast_arrays(u[:, None] * cos, u[:, None] * sin, v), -1)
    ray = (pixel - source) / np.linalg.norm(pixel - source, axis=-1, keepdims=True)
    miss = np.linalg.norm(np.cross(np.asarray(centre) - source, ray), axis=-1)
    return (2 * np.sqrt(np.clip(radius**2 - miss**2, 0, None))).astype(np.float32)


def sampling_error(radius):
    """Bound on FBP's error at the centre of a disc whose chords are sampled at pixels.

    The ramp's kernel takes every second sample; the end of a chord, 2 √(2 r ξ), then errs by |ζ(−1/2)| = 0.208 at most
    of √2 · 2 √(2r), weighs 1 / (π r²), and there are two ends.
    """
    return 2 * 0.208 * np.sqrt(2) * 2 * np.sqrt(2 * radius) / (np.pi * radius**2)


# Filters


def test_the_ramp_filter_is_the_convolution_with_its_kernel():
    views = np.random.default_rng(0).random((19, 45, 3)).astype(np.float32)
    lag = np.arange(-44, 45)
    kernel = np.where(lag % 2, -1 / (np.pi * np.where(lag, lag, 1)) ** 2, 0.0) + (lag == 0) / 4  # Kak & Slaney 3.61
    expected = [[np.convolve(views[i, :, k], kernel)[44:89] for k in range(3)] for i in range(19)]
    result = filter_views(views, "ram-lak")
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, np.swapaxes(expected, 1, 2), rtol=0, atol=8 * EPS)  # log₂ 96 roundings of ≤ 1


@pytest.mark.parametrize("filter_name", FILTERS)
def test_filters_are_those_of_astra(filter_name):
    """A single view along the columns: every row of the image is the filtered view; both pad 64 detectors to 128."""
    view = np.random.default_rng(1).random((1, 64, 1)).astype(np.float32)
    reference = astra_fbp(view, np.zeros(1), (64, 64, 1), filter_name)
    image = FBP(filter_name).reconstruct(view, np.zeros(1), (64, 64, 1))
    np.testing.assert_allclose(image[10, 1:-1], reference[10, 1:-1], rtol=0, atol=np.pi * 32 * EPS)


@pytest.mark.parametrize("filter_name", FILTERS)
def test_filters_are_the_ramp_at_low_frequencies(filter_name):
    gain = filter_gain(filter_name, 4096)
    frequency = np.arange(len(gain)) / 4096
    # kernel beyond the padding: 2 Σ_{odd k > 2048} 1/(πk)² = 1/(π² 2048); windows fall as f², parzen's most: 24 f²
    assert np.abs(gain - frequency)[:41].max() < 1 / (np.pi**2 * 2048) + 24 * 0.01**3
    assert gain[0] == pytest.approx(1 / (np.pi**2 * 2048), rel=1e-3)


def test_edge_padding_is_a_wider_detector_with_the_outer_values():
    views = np.random.default_rng(2).random((3, 40, 2)).astype(np.float32)
    wider = filter_views(np.pad(views, ((0, 0), (20, 20), (0, 0)), mode="edge"), "ram-lak")[:, 20:60]
    # what is left out lies 20 pixels or more beyond the end: Σ_{odd k > 20} 1/(πk)² = 1/(40 π²) on either side, of ≤ 1
    np.testing.assert_allclose(filter_views(views, "ram-lak", "edge"), wider, rtol=0, atol=2 / (40 * np.pi**2))


# Angular weights


def test_each_view_of_a_parallel_beam_stands_for_its_part_of_half_a_turn():
    for n, angular_range in ((180, 180), (360, 360), (361, 360), (90, 90), (60, 10)):
        weights = parallel_weights(turn(n, angular_range, 7.0))
        np.testing.assert_allclose(weights, np.deg2rad(min(angular_range, 180)) / n, rtol=1e-9)
    weights = parallel_weights(turn(270, 270))  # 0 to 90° are seen again from 180 to 270°
    np.testing.assert_allclose(np.rad2deg(weights[[20, 130, 220]]), [0.5, 1, 0.5])
    golden = np.mod(np.arange(100) * np.pi * (np.sqrt(5) - 1) / 2, np.pi)
    assert parallel_weights(golden).sum() == pytest.approx(np.pi)
    np.testing.assert_allclose(parallel_weights(np.zeros(1)), np.pi)


@pytest.mark.parametrize("angular_range_deg", [360, 300, 215])
def test_every_ray_of_a_fan_counts_once(angular_range_deg):
    n = 4 * angular_range_deg
    fan = np.deg2rad(np.array([-15.0, -7.0, 0.0, 7.0, 15.0]))
    weights = fan_weights(turn(n, angular_range_deg), fan)
    # half a turn of parallel angles at each distance from the axis, on either side: both detectors together
    np.testing.assert_allclose((weights + weights[:, ::-1]).sum(0), 2 * np.pi, rtol=1e-5)
    opposite = np.rint((np.pi - 2 * fan) * n / np.deg2rad(angular_range_deg)).astype(int)
    for j, shift in enumerate(opposite):  # θ' = θ − 2γ + π sees the ray at −γ
        pair = weights[: n - shift, j] + weights[shift:, -1 - j]
        step = np.deg2rad(angular_range_deg) / n
        assert pair == pytest.approx(step, rel=0.02)  # opposite views lie half a step apart at most


def test_a_turned_scan_has_the_weights_mirrored():
    fan, angles = np.deg2rad(np.linspace(-12, 12, 9)), turn(220, 220)
    np.testing.assert_allclose(fan_weights(-angles, fan), fan_weights(angles, fan)[:, ::-1], rtol=1e-6, atol=1e-12)


# FBP


@pytest.mark.parametrize("angular_range_deg", [180, 270, 360])
@pytest.mark.parametrize("filter_name", FILTERS)
def test_fbp_returns_the_value_of_a_disc(filter_name, angular_range_deg):
    n, radius, centre, value = 96, 30, (5.3, -7.2), 3.0
    angles = turn(2 * angular_range_deg, angular_range_deg)
    sinogram = value * disc_sinogram(angles, 137, centre, radius)
    image = FBP(filter_name).reconstruct(sinogram, angles, (n, n, 1))[..., 0]
    x, y = axes(n)
    away = np.hypot(x - centre[0], y - centre[1]) - radius  # an axis that is flipped shows
    inside, outside = image[away < -8], image[(away > 8) & (np.hypot(x, y) < n / 2)]  # parzen blurs over 4 pixels
    assert inside.mean() == pytest.approx(value, rel=sampling_error(radius))
    assert inside.std() < value * sampling_error(radius)
    assert abs(outside.mean()) < value * sampling_error(radius)


def test_fbp_of_few_slices_is_that_of_many():
    angles = turn(30)
    sinogram = np.random.default_rng(3).random((30, 47, 21)).astype(np.float32)
    together = FBP("hann").reconstruct(sinogram, angles, (32, 32, 21))
    for k in (0, 7, 20):
        alone = FBP("hann").reconstruct(sinogram[..., k : k + 1], angles, (32, 32, 1))
        np.testing.assert_array_equal(together[..., k : k + 1], alone)


def test_the_noise_of_fbp():
    """Variance π² (2/3 Σh² + 1/3 Σhh₊₁) / angles = (π²/18 − 1/6) / angles for ram-lak and linear interpolation."""
    n, angles = 128, turn(360, start_deg=0.25)  # along the pixels nothing is interpolated
    noise = np.random.default_rng(4).standard_normal((len(angles), 200, 16), dtype=np.float32)
    x, y = axes(n)
    image = FBP().reconstruct(noise, angles, (n, n, 16))[np.hypot(x, y) < 60]
    # a spectrum ∝ |f| up to 1/2 makes 0.70 independent values of each pixel: sd √(2 / (0.7 · 16 · 11300)) = 0.4 %,
    # three of them, and 0.6 % for two views of 360 within ¼° of the pixels
    assert image.var() == pytest.approx((np.pi**2 / 18 - 1 / 6) / len(angles), rel=3 * 0.004 + 0.006)


def test_edge_padding_removes_the_rim_of_a_local_scan():
    n, angles = 96, turn(300)
    sinogram = disc_sinogram(angles, n, (0, 0), n)  # the field of view is half of the disc
    x, y = axes(n)
    radius = np.hypot(x, y)
    rims = {}
    for padding in ("zero", "edge"):
        image = FBP(padding=padding).reconstruct(sinogram, angles, (n, n, 1))[..., 0]
        rims[padding] = abs(image[(radius > 0.92 * n / 2) & (radius < n / 2)].mean() - image[radius < 5].mean())
    # a step of √3 n at the detector's end becomes a kink of slope 2/√3: at d pixels from the end a rim that goes as
    # √3 n / d becomes 2/√3 · ln(n/d), at d = 2 a factor of 18; half of that is asked for
    assert rims["edge"] < rims["zero"] / 9


@pytest.mark.parametrize("angular_range_deg", [360, -360, 240, -240, 215])
def test_fan_fbp_returns_the_value_of_a_disc(angular_range_deg):
    n, radius, centre, distance = 96, 30, (5.3, -7.2), 180.0
    angles = turn(600, angular_range_deg, 20.0)
    sinogram = ball_projections(angles, (170, 1), distance, (*centre, 0), radius)
    image = FBP().reconstruct(sinogram, angles, (n, n, 1), distance)[..., 0]
    x, y = axes(n)
    away = np.hypot(x - centre[0], y - centre[1]) - radius
    inside, outside = image[away < -8], image[(away > 8) & (np.hypot(x, y) < n / 2)]
    assert inside.mean() == pytest.approx(1, rel=sampling_error(radius))
    assert inside.std() < sampling_error(radius)
    assert abs(outside.mean()) < sampling_error(radius)


@pytest.mark.parametrize("angular_range_deg", [360, 240])
def test_fdk_returns_the_value_of_a_ball(angular_range_deg):
    n, radius, distance, height = 48, 15, 120.0, 5.0
    angles = turn(240, angular_range_deg)
    projections = ball_projections(angles, (90, 76), distance, (3.0, -4.0, height), radius)
    volume = FBP().reconstruct(projections, angles, (n, n, n), distance)
    x, y = axes(n)
    z = np.arange(n) - (n - 1) / 2
    away = np.sqrt(((x - 3) ** 2 + (y + 4) ** 2)[..., None] + (z - height) ** 2) - radius
    middle = np.abs(z) < 1  # exact in the mid-plane
    assert volume[..., middle][away[..., middle] < -5].mean() == pytest.approx(1, rel=sampling_error(radius))
    weight = np.where(away < 5, volume, 0).astype(float)
    # the ball lies where it should: FDK loses a few per cent at most towards a pole 20 / 120 of the distance away,
    # which draws its centre by less than that times half the radius
    assert (weight * z).sum() / weight.sum() == pytest.approx(height, abs=0.03 * radius / 2)
    weight = weight[..., middle].sum(2)
    assert (weight * x).sum() / weight.sum() == pytest.approx(3, abs=0.1)
    assert (weight * y).sum() / weight.sum() == pytest.approx(-4, abs=0.1)


def test_fdk_is_exact_for_what_does_not_change_along_the_axis():
    """Feldkamp, Davis & Kress, 1984: a cylinder, whose rays are longer by their slope against the plane's."""
    n, radius, distance, angles = 40, 13, 100.0, turn(200, 360)
    flat = ball_projections(angles, (76, 1), distance, (3.0, -2.0, 0.0), radius)
    u, v = np.arange(76) - 37.5, np.arange(80) - 39.5
    projections = flat * np.sqrt(1 + v**2 / (distance**2 + u[:, None] ** 2)).astype(np.float32)
    volume = FBP().reconstruct(projections, angles, (n, n, 60), distance)
    x, y = axes(n)
    inside = volume[np.hypot(x - 3, y + 2) < radius - 5]
    np.testing.assert_allclose(inside.mean(0), 1, rtol=0, atol=sampling_error(radius))
    # the outermost slices, 29.5 / 100 above the plane, are as the middle ones, but for the interpolation along v
    np.testing.assert_allclose(inside.mean(0), inside[:, 30].mean(), rtol=0, atol=1e-3)


def test_progress_sees_the_whole_scan():
    seen = []

    def progress(blocks):
        seen.append(len(blocks))
        return iter(blocks)

    FBP().reconstruct(np.zeros((4, 12, 40), np.float32), turn(4), (8, 8, 40), progress=progress)
    FBP().reconstruct(np.zeros((40, 12, 12), np.float32), turn(40, 360), (8, 8, 8), 50.0, progress=progress)
    SIRT(1).reconstruct(np.zeros((4, 12, 3), np.float32), turn(4), (8, 8, 3), progress=progress)
    assert seen == [3, 3, 3]


# Iterative


@pytest.mark.parametrize("distance", [None, 60.0], ids=["parallel", "fan"])
def test_iterations_find_a_small_image(distance):
    """Consistent data and more rays than pixels: conjugate gradients end at the image, SIRT goes there slowly."""
    image = np.random.default_rng(5).random((12, 12, 2 if distance is None else 1)).astype(np.float32)
    angles = turn(48, 180 if distance is None else 360, 1.0)
    still = Views(angles, np.zeros(48), np.ones(48))

    def project(volume):
        return forward(volume, still, (27, 1), distance, backend="astra")

    sinogram = project(image)
    exact = CGLS(288).reconstruct(sinogram, angles, image.shape, distance)  # twice the unknowns
    assert exact.dtype == np.float32 and exact.shape == image.shape
    np.testing.assert_allclose(exact, image, rtol=0, atol=1e-4)  # float32 times a condition of some hundred
    misfits = [
        np.linalg.norm(project(SIRT(n).reconstruct(sinogram, angles, image.shape, distance)) - sinogram)
        for n in (10, 40, 160)
    ]
    assert misfits[2] < misfits[1] / 2 < misfits[0] / 4  # as 1/n at the slowest, then twice with each fourfold n
    assert misfits[2] < 0.01 * np.linalg.norm(sinogram)


def test_sirt_keeps_to_its_bound():
    angles = turn(20)
    sinogram = disc_sinogram(angles, 35, (0, 0), 8)
    assert SIRT(20).reconstruct(sinogram, angles, (24, 24, 1)).min() < -0.01
    assert SIRT(20, min_constraint=0).reconstruct(sinogram, angles, (24, 24, 1)).min() >= 0


# Rings


@pytest.mark.parametrize("method", RING_FILTERS)
def test_a_full_stripe_goes_and_the_rest_stays(method):
    noise, gain, detector = 0.01, 0.05, np.arange(160) - 79.5
    clean = 0.02 * disc_sinogram(turn(180), 160, (0, 0), 60)
    clean += np.random.default_rng(6).normal(0, noise, clean.shape).astype(np.float32)
    before = remove_rings(clean, method)
    assert before.dtype == np.float32 and before.shape == clean.shape
    for at in (65, 72, 80, 91):
        stripe = np.where(np.arange(160) == at, np.float32(gain), np.float32(0))
        left = (remove_rings(clean + stripe[:, None], method) - before).mean(0)[:, 0]
        # a median puts a neighbour in the stripe's place: the profile's change to it, and three sd of its mean noise
        slope = 0.02 * 2 * (abs(detector[at]) + 1) / np.sqrt(60**2 - (abs(detector[at]) + 1) ** 2)
        assert np.abs(left).max() < slope + 3 * noise * np.sqrt(2 / 180)
        assert at != 80 or np.abs(left).max() < gain / 20  # in the middle, where the profile is level
    # a median over w detectors keeps a slope, and cuts the profile's top down to its value at w/4: by (w/4)² / radius
    change = (before - clean)[:, np.abs(detector) < 45]
    assert np.sqrt(np.mean(change**2)) < 0.02 * ((52 if method == "all" else 21) / 4) ** 2 / 60


# Phase retrieval


@pytest.mark.parametrize("slices", [1, 50])
@pytest.mark.parametrize("magnification", [1.0, 4.0])
def test_paganin_inverts_the_propagation_of_a_homogeneous_object(slices, magnification):
    """T_z = (1 − z δ/(M µ) ∇²) T (Paganin et al., 2002, eq. 7) of a Gaussian T, with its derivatives in closed form."""
    energy_kev, delta, beta, voxel_size_um, distance_mm = 20.0, 5e-7, 2.5e-9, 1.3, 40.0
    wavelength_m = constants.h * constants.c / (energy_kev * 1e3 * constants.e)
    mu = 4 * np.pi * beta / wavelength_m  # 1/m
    area_px = distance_mm * 1e-3 / magnification * delta / mu / (voxel_size_um * 1e-6) ** 2
    u, v = np.arange(70) - 30.2, (np.arange(slices) - 24.0 if slices > 1 else np.zeros(1))
    sigma, dimensions = 6.0, 2 if slices > 1 else 1
    square = u[:, None] ** 2 + v**2
    dip = 0.4 * np.exp(-square / (2 * sigma**2))
    laplacian = -dip * (square / sigma**4 - dimensions / sigma**2)
    contact = 1 - dip
    measured = np.stack([contact - area_px * laplacian, np.ones_like(contact)]).astype(np.float32)
    assert np.abs(measured[0] / contact - 1).max() > 0.05  # there is something to invert
    result = Paganin(delta / beta).retrieve(measured, distance_mm, energy_kev, voxel_size_um, magnification)
    # the Gaussian ends 4 sigma away, at e⁻⁸ = 3e-4; energies and lengths to seven digits, float32
    np.testing.assert_allclose(result[0], -np.log(contact), rtol=0, atol=4e-4)
    np.testing.assert_allclose(result[1], 0, atol=16 * EPS)


def test_paganin_does_not_wrap_from_one_side_to_the_other():
    step = 0.5 + 0.5 / (1 + np.exp(-(np.arange(120) - 60) / 8.0))  # from 0.5 to 1, flat at the ends to e⁻⁷
    u = (np.arange(120) - 60) / 8.0
    curvature = 0.5 / 8.0**2 * np.exp(-u) * (np.exp(-u) - 1) / (1 + np.exp(-u)) ** 3
    area_um2 = 1.239841984e-3 / 20 * 40e3 * 200 / (4 * np.pi)  # λ z δ/β / 4π
    measured = (step - area_um2 * curvature)[None, :, None].astype(np.float32)
    result = Paganin(200).retrieve(measured, 40.0, 20.0, 1.0)
    np.testing.assert_allclose(result[0, :, 0], -np.log(step), rtol=0, atol=2e-3)  # e⁻⁷ and its bend, of 0.5


def test_no_phase_is_the_logarithm():
    transmission = np.random.default_rng(7).uniform(0.1, 1, (3, 20, 4)).astype(np.float32)
    for paganin, distance_mm in ((Paganin(0), 10.0), (Paganin(500), 0.0)):
        result = paganin.retrieve(transmission, distance_mm, 20.0, 1.0)
        np.testing.assert_allclose(result, -np.log(transmission), rtol=0, atol=200 * EPS)  # of T ≥ 0.1


# Errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FBP("tukey"), "filter_name='tukey' is unknown; known: ram-lak"),
        (lambda: FBP(padding="reflect"), "padding='reflect' is unknown; known: zero, edge"),
        (lambda: SIRT(0), r"iterations=0 must be an integer in \[1, "),
        (lambda: CGLS(2.5), r"iterations=2.5 must be an integer"),
        (lambda: SIRT(5, min_constraint="no"), "min_constraint='no' must be one number"),
        (lambda: Paganin(-1.0), r"delta_beta=-1.0 must lie in \[0, 100000\]"),
        (lambda: Paganin(9).retrieve(np.zeros((1, 4, 1)), 1, 20, 1), "transmission must be above 0"),
        (lambda: remove_rings(np.zeros((9, 40, 1)), "fit"), "method='fit' is unknown; known: sorting, filtering, all"),
        (lambda: remove_rings(np.zeros((9, 40, 1)), "all", 17), r"size=17 must lie in \[3, 16\]; nearest valid: 16"),
        (lambda: remove_rings(np.zeros((9, 40, 1)), "sorting", 4.5), "size=4.5 must be an integer"),
        (lambda: remove_rings(np.ones((90, 80, 1), np.float32), "all"), "finds no noise .* take 'sorting'"),
        (lambda: FBP().reconstruct(np.zeros((4, 9)), np.zeros(4), (6, 6, 1)), "sinogram .angles, detectors, slices."),
        (lambda: FBP().reconstruct(np.zeros((4, 9, 2)), np.zeros(5), (6, 6, 2)), r"got \(4, 9, 2\), \(5,\)"),
        (lambda: FBP().reconstruct(np.zeros((4, 9, 2)), np.zeros(4), (6, 6, 3)), "3 slices need a sinogram of as many"),
        (lambda: FBP().reconstruct(np.zeros((4, 9, 1)), np.zeros(4), (6, 6, 1), 4.0), "distance=4 .* exceed 4.243"),
        (lambda: SIRT().reconstruct(np.zeros((4, 9, 6)), np.zeros(4), (6, 6, 6), 40.0), "no cone beam of 6; take FBP"),
    ],
)
def test_errors_say_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
