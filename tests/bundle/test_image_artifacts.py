"""Artefacts made in the image against closed forms: a Gaussian blob, whose scan from any views is known, and discs."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import dblquad
from scipy.special import dawsn

from bundle import image_artifacts as artifacts
from bundle.slice_tomography import SmallScan

N, SIGMA = 96, 3.0
EPS = np.finfo(np.float32).eps


def grid(n=N):
    at = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
    return at[:, None], at  # rows run down, columns to the right


def blob(n=N, row=0.0, column=0.0, sigma=SIGMA):
    rows, columns = grid(n)
    return torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * sigma**2)).float()[None]


def disc(radius, n=N):
    rows, columns = grid(n)
    return (torch.hypot(rows, columns) < radius).float()[None]


def scanned_blob(angles, weights, shifts=0.0, n=N, sigma=SIGMA):
    """Sum over views of the weighted, filtered projection of ``blob(n)``, seen at some shift.

    The ramp |k| times the spectrum of the projection, 2πσ² exp(−2π²σ²k²), is (1 − √2 u/σ D(u/√2σ)) / π in
    space, with Dawson's integral D.
    """
    rows, columns = grid(n)
    total = np.zeros((n, n))
    for angle, weight, shift in np.broadcast(angles, weights, shifts):
        u = (math.cos(angle) * columns - math.sin(angle) * rows).numpy() - shift
        total += weight / math.pi * (1 - math.sqrt(2) * u / sigma * dawsn(u / (math.sqrt(2) * sigma)))
    return total


def views(n, range_deg=180.0, first_deg=0.0):
    return np.deg2rad(first_deg + range_deg * np.arange(n) / n)


def test_the_oracle_reconstructs_the_blob():
    # beyond the radius n/π, here 76 pixels, n views leave a pattern; within it nothing but rounding
    np.testing.assert_allclose(scanned_blob(views(240), math.pi / 240), blob()[0], atol=1e-6)


# motion


def test_a_shift_that_is_the_same_in_space_moves_the_image():
    right, up = 3.0, -2.0
    angle = torch.from_numpy(views(360))
    shift = right * angle.cos() + up * angle.sin()
    moved = artifacts.shift_views(blob(), shift)
    # the mean over a cell of the spectrum of padded size L ≥ 120 is sinc(d/L) = 1 − (πd/L)²/6 at the distance d
    tolerance = (math.pi * math.hypot(right, up) / 120) ** 2 / 6
    np.testing.assert_allclose(moved, blob(row=-up, column=right), atol=2 * tolerance)
    assert (moved - blob()).abs().max() > 0.4


@pytest.mark.parametrize("range_deg", [180, 360])
@pytest.mark.parametrize("first_deg", [0.0, 37.0, 250.0])
def test_a_drift_over_the_views_is_that_of_the_scan(range_deg, first_deg):
    scan = {"first_angle_deg": first_deg, "angular_range_deg": range_deg}
    along = np.cos(views(360, range_deg, first_deg) - math.radians(25))
    shift = torch.from_numpy(6 * np.linspace(-0.5, 0.5, 360) * along)
    seen = artifacts.shift_views(blob(), shift, **scan)[0].numpy()
    expected = scanned_blob(views(360, range_deg, first_deg), math.pi / 360, shift.double().numpy())
    artefact = np.abs(expected - blob()[0].numpy()).max()
    # a cell's window sinc(d/L) at the far corner, d/L < 0.5, where the artefact has fallen to σ/d of its height
    assert artefact > 0.15
    np.testing.assert_allclose(seen, expected, atol=0.05 * artefact)


def test_a_wrong_centre_of_a_full_turn_is_a_ring():
    shift = torch.full((360,), 5.0)
    seen = artifacts.shift_views(blob(), shift, 0.0, 360)[0].numpy()
    expected = scanned_blob(views(360, 360), math.pi / 360, 5.0)
    assert seen[N // 2, N // 2] < 0.5 * seen[N // 2, N // 2 + 5]
    np.testing.assert_allclose(seen, expected, atol=0.02)


def test_white_shaking_loses_what_its_variance_says():
    # the mean of exp(−2πiks) over many views is exp(−2π²k²σ²): a blur of the shaking's sd
    sd, n = 1.5, 36000
    seen = artifacts.shift_views(blob(), artifacts.view_shifts(n, jitter_px=sd, seed=3))
    wide = blob(sigma=math.hypot(SIGMA, sd)) * SIGMA**2 / (SIGMA**2 + sd**2)
    # a cell holds n/(π k L) views, 190 of them at k = 1/σ/2: the mean errs by 1/√190 of what is lost, 0.2
    np.testing.assert_allclose(seen, wide, atol=4 * 0.2 / math.sqrt(190))


def test_views_shift_about_the_pose_that_they_show():
    jumps = [(0.3, 4.0, 10.0), (0.8, 2.0, 200.0)]
    n, drift = 720, 5.0
    angle = views(n)
    plain = artifacts.view_shifts(n, drift_px=drift, direction_deg=30.0)
    design = np.stack([np.cos(angle), np.sin(angle)], 1)

    def shown(shift):
        return np.hypot(*np.linalg.lstsq(design, shift.double().numpy(), rcond=None)[0])

    straight = torch.from_numpy(drift * np.linspace(-0.5, 0.5, n) * np.cos(angle - math.radians(30)))
    assert shown(plain) == pytest.approx(0, abs=1e-5)
    assert shown(straight) == pytest.approx(drift / (2 * math.pi), rel=0.01)  # of n, and the mean of time's square
    assert shown(straight - plain) == pytest.approx(shown(straight), abs=1e-5)  # the same path, seen from elsewhere
    np.testing.assert_allclose(
        straight - plain, design @ np.linalg.lstsq(design, (straight - plain).numpy(), rcond=None)[0], atol=1e-5
    )
    whole = artifacts.view_shifts(n, drift_px=drift, direction_deg=30.0, jumps=jumps, jitter_px=0.5, offset_px=1.5)
    parts = [
        plain,
        artifacts.view_shifts(n, jumps=jumps),
        artifacts.view_shifts(n, jitter_px=0.5),
        artifacts.view_shifts(n, offset_px=1.5),
    ]
    np.testing.assert_allclose(whole, sum(parts), atol=1e-5)
    assert all(shown(part) == pytest.approx(0, abs=1e-5) for part in parts)
    assert float(parts[2].std()) == pytest.approx(0.5, rel=4 / math.sqrt(2 * n))
    # a constant c over 180° shows the pose 4c/π along the direction of its middle; the sum over n views errs by 1/n²
    np.testing.assert_allclose(parts[3], 1.5 * (1 - 4 / math.pi * np.cos(angle - angle.mean())), atol=1e-5)
    turn = artifacts.view_shifts(n, offset_px=1.5, angular_range_deg=360)
    np.testing.assert_allclose(turn, 1.5, atol=1e-5)


@pytest.mark.parametrize("range_deg", [180, 360])
@pytest.mark.parametrize("first_deg", [0.0, 70.0])
@pytest.mark.parametrize(
    "kind",
    [
        {"drift_px": 4.0, "direction_deg": 30.0},
        {"jumps": [(0.3, 3.0, 10.0), (0.8, 2.0, 200.0)]},
        {"jitter_px": 1.0, "seed": 1},
        {"offset_px": 2.0},
    ],
    ids=["drift", "jumps", "shaking", "offset"],
)
def test_what_moves_is_shown_where_its_label_is(kind, first_deg, range_deg):
    sigma, scan = 6.0, {"first_angle_deg": first_deg, "angular_range_deg": range_deg}
    image = blob(sigma=sigma)
    shift = artifacts.view_shifts(360, **kind, **scan)
    change = artifacts.shift_views(image, shift, **scan) - image
    assert change.abs().max() > 0.01
    slopes = np.stack([s.ravel() for s in np.gradient(image[0].double().numpy())], 1)
    moved = np.linalg.lstsq(slopes, -change.double().numpy().ravel(), rcond=None)[0]
    # Registration weighs exp(−iks) by k: what the shifts' least squares leave is their cube, (ks)³/6, of which the
    # spectrum of a blob, exp(−k²σ²) k dk, makes 2/σ² · |s|³/6; the mean square of a direction is a half
    tolerance = 2 * 2 / sigma**2 * float((shift.abs() ** 3).mean()) / 6
    assert np.hypot(*moved) < tolerance < 0.15  # where 4c/π is 2.5, the drift's d/2π 0.6


def test_no_motion_changes_nothing():
    image = torch.rand(2, 40, 56, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(artifacts.shift_views(image, torch.zeros(90), 10.0, 360), image, atol=20 * EPS)


def test_motion_needs_half_a_turn_or_a_whole_one():
    with pytest.raises(ValueError, match="270"):
        artifacts.shift_views(blob(), torch.zeros(9), 0.0, 270.0)


# few views


@pytest.mark.parametrize(("n", "first_deg"), [(12, 0.0), (12, 8.0), (30, 3.0)])
def test_few_views_leave_their_streaks(n, first_deg):
    seen = artifacts.keep_views(blob(), n, first_deg)[0].numpy()
    expected = scanned_blob(views(n, 180, first_deg), math.pi / n)
    streaks = expected - blob()[0].numpy()
    assert np.abs(streaks).max() > 0.005
    # bilinear in a table with 4 nodes a line: up to 0.47² / 8 = 3 % of the highest order, and the orders add up
    np.testing.assert_allclose(seen, expected, atol=0.06 * np.abs(streaks).max())


def test_enough_views_change_nothing():
    image = torch.rand(1, 48, 48, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(artifacts.keep_views(image, 400), image, atol=20 * EPS)


@pytest.mark.parametrize("range_deg", [90.0, 140.0])
def test_a_missing_wedge_takes_its_views(range_deg):
    seen = artifacts.missing_wedge(blob(), 20.0, range_deg)[0].numpy()
    n = 720
    expected = scanned_blob(views(n, range_deg, 20.0), math.radians(range_deg) / n)
    lost = np.abs(expected - blob()[0].numpy()).max()
    assert lost > 0.1
    # a cell at the border counts by its share, a window sinc(d/L): 1 − sinc(0.35) = 19 % at the corners, d = 68 of
    # L = 192, where a streak has fallen to σ/d = 4 %; at d = 10, 0.5 % of 30 %
    np.testing.assert_allclose(seen, expected, atol=0.01 * lost)


def test_a_missing_wedge_that_is_narrower_than_the_lowest_cells():
    range_deg, n = 175.0, 720
    seen = artifacts.missing_wedge(blob(), 20.0, range_deg)[0].numpy()
    change = scanned_blob(views(n, range_deg, 20.0), math.radians(range_deg) / n) - blob()[0].numpy()
    # a window sinc(d/L) in either direction, 1 − (πd/L)²/6 of the change at the distance d, twice that along a diagonal
    window = (math.pi * torch.hypot(*grid()).numpy() / 192) ** 2 / 6
    error = seen - blob()[0].numpy() - change
    assert np.sqrt((error**2).mean()) < 2 * np.sqrt(((window * change) ** 2).mean()) < 0.1 * np.sqrt((change**2).mean())


@pytest.mark.parametrize("ranges", [(90, 90), (130, 50), (60, 60, 60), (45, 45, 45, 45)])
def test_wedges_that_fill_half_a_turn_add_up_to_the_image(ranges):
    image = torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(0))
    starts = 7.0 + np.cumsum([0, *ranges[:-1]])
    # cell by cell, and so the mean grey value: of n equal wedges each has 1/n of it
    parts = [artifacts.missing_wedge(image, float(a), float(r)) for a, r in zip(starts, ranges, strict=True)]
    np.testing.assert_allclose(sum(parts), image, atol=20 * EPS)


def test_a_wedge_of_nothing():
    assert torch.equal(artifacts.missing_wedge(blob(), 0.0, 180.0), blob())
    with pytest.raises(ValueError, match="190"):
        artifacts.missing_wedge(blob(), 0.0, 190.0)


# rings


def stripe(at, detectors=140, error=1.0):
    stripes = torch.zeros(1, detectors)
    stripes[0, at] = error
    return stripes


def back_projected(stripes, angles, weight, n=N):
    """Filtered back-projection of the same row at every view, detectors linearly interpolated."""
    row = stripes[0].double().numpy()
    lag = np.arange(len(row))
    kernel = np.where(lag % 2 == 1, -1 / (math.pi * np.maximum(lag, 1)) ** 2, 0.0)
    kernel[0] = 0.25
    filtered = kernel[np.abs(lag[:, None] - lag)] @ row
    rows, columns = (g.numpy() for g in grid(n))
    total = np.zeros((n, n))
    for angle in angles:
        u = math.cos(angle) * columns - math.sin(angle) * rows
        total += weight * np.interp(u + (len(row) - 1) / 2, lag, filtered)
    return total


@pytest.mark.parametrize(("window_deg", "full_turn"), [(180.0, False), (360.0, True), (70.0, False), (250.0, True)])
def test_rings_are_what_filtered_back_projection_makes_of_stripes(window_deg, full_turn):
    stripes = stripe([60, 95, 96, 110])
    scan = {"first_angle_deg": 33.0, "window_deg": window_deg, "full_turn": full_turn}
    seen = artifacts.ring_pattern((N, N), stripes, **scan)[0].numpy()
    n = 3000
    middle = window_deg / n / 2
    expected = back_projected(
        stripes, views(n, window_deg, 33.0 + middle), math.radians(window_deg) / n / (2 if full_turn else 1)
    )
    # Where a line touches its circle a ring rises as a square root, which a table with a step of 1/4 pixel clips by a
    # quarter of √(1/4) in the worst pixel; over the rest of the image it is smooth.
    error = seen - expected
    assert np.abs(error).max() < 0.25 * math.sqrt(0.25) * np.abs(expected).max()
    assert np.corrcoef(seen.ravel(), expected.ravel())[0, 1] > 0.99


def test_a_half_turn_draws_half_a_ring():
    pattern = artifacts.ring_pattern((N, N), stripe(100), window_deg=180.0)[0]
    energy = (pattern**2).sum(1)
    assert energy[: N // 2].sum() > 0.95 * energy.sum()  # 97 % in the simulator
    other = artifacts.ring_pattern((N, N), stripe(39))[0]
    np.testing.assert_allclose(other, pattern.flip(0, 1), atol=1e-6)


def test_ring_windows_add_up():
    stripes = artifacts.random_stripes(140, 1, seed=1, gain_sd=1.0)
    parts = [
        artifacts.ring_pattern((N, N), stripes, first_angle_deg=a, window_deg=w) for a, w in ((10, 100), (110, 80))
    ]
    whole = artifacts.ring_pattern((N, N), stripes, first_angle_deg=10, window_deg=180)
    np.testing.assert_allclose(sum(parts), whole, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("centre", [(4.0, -7.0), (0.0, 90.0)])
def test_rings_lie_about_their_centre(centre):
    stripes = artifacts.random_stripes(400, 1, seed=1, gain_sd=1.0)
    here = artifacts.ring_pattern((60, 60), stripes, centre_px=centre)[0]
    whole = artifacts.ring_pattern((260, 260), stripes)[0]
    rows, columns = (100 - int(c) for c in centre)
    # the same function of the place; its integral has another step for a smaller circle
    assert np.corrcoef(here.ravel(), whole[rows : rows + 60, columns : columns + 60].ravel())[0, 1] > 0.99


def test_the_pattern_of_stripes():
    n = 40000
    white = artifacts.random_stripes(n, 1, seed=1, gain_sd=0.3)
    assert float(white.std()) == pytest.approx(0.3, rel=4 / math.sqrt(2 * n))
    single = artifacts.random_stripes(n, 1, seed=1, error_sd=2.0, share=0.1)
    assert float((single != 0).float().mean()) == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / n))
    assert float(single[single != 0].std()) == pytest.approx(2.0, rel=4 / math.sqrt(0.2 * n))
    wide = artifacts.random_stripes(n, 1, seed=1, error_sd=2.0, share=0.1, width_px=3)
    np.testing.assert_allclose(wide[:, 2:], single[:, 2:] + single[:, 1:-1] + single[:, :-2], atol=1e-6)


def test_rings_fade_along_the_axis():
    stripes = artifacts.random_stripes(4000, 41, seed=1, gain_sd=1.0, correlation_px=10.0)
    correlation = np.corrcoef(stripes.numpy())
    assert correlation[0, 1] > 0.98  # 0.9 and 0.1 of neighbouring nodes: 0.994
    assert np.abs(correlation[0, [10, 20, 40]]).max() < 4 / math.sqrt(4000)
    np.testing.assert_allclose(stripes.std(1), 1, atol=4 / math.sqrt(2 * 4000))  # between the nodes, too
    patterns = artifacts.ring_pattern((20, 24), stripes[:, 1980:2020])
    assert patterns.shape == (41, 20, 24)
    np.testing.assert_allclose(patterns[30], artifacts.ring_pattern((20, 24), stripes[30:31, 1980:2020])[0], atol=1e-6)
    volume = torch.rand(2, 20, 24, 41)
    np.testing.assert_allclose(artifacts.add_rings(volume, patterns)[1, ..., 7], volume[1, ..., 7] + patterns[7])


# noise


def test_reconstruction_noise_has_its_sd_and_no_mean():
    flat = torch.zeros(8, 64, 80)
    noise = artifacts.reconstruction_noise(flat, 0.3, seed=1)
    assert float(noise.std()) == pytest.approx(0.3, rel=4 / math.sqrt(2 * noise.numel() / 3))  # a third of it is free
    # the ramp is zero at 0; what is folded there is 3e-4 / 0.06 of the mean power
    assert noise.mean((1, 2)).abs().max() < 4 * 0.3 * math.sqrt(3e-4 / 0.06 / (64 * 80))
    assert torch.equal(noise, artifacts.reconstruction_noise(flat, 0.3, seed=1))
    assert not torch.equal(noise, artifacts.reconstruction_noise(flat, 0.3, seed=2))


def test_reconstruction_noise_is_fine_unless_the_detector_blurs():
    flat = torch.zeros(20, 64, 64)
    k = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64))
    low, high = (k > 0) & (k < 0.1), (k > 0.25) & (k < 0.4)

    def ratio(psf_px):
        power = np.abs(np.fft.fft2(artifacts.reconstruction_noise(flat, 1.0, 1, psf_px).numpy())) ** 2
        return power[:, low].mean() / power[:, high].mean()

    # ramp and interpolation: 0.067 · 0.98 by 0.33 · 0.5; 20 · 63 / 2 values of low frequency
    assert ratio(0.0) == pytest.approx(0.4, rel=4 / math.sqrt(20 * low.sum() / 2))
    assert ratio(3.0) > 10 * ratio(0.0)


def test_photons_are_few_behind_the_object():
    image = disc(30).expand(100, -1, -1)
    depth = 3.0
    noise = artifacts.reconstruction_noise(image, 1.0, 1, 0.0, depth) - image
    variance = (noise**2).mean(0)
    assert float(variance.mean()) == pytest.approx(1.0, rel=0.02)

    def expected(r):  # the mean over the views of exp(chord)
        u = r * np.cos((np.arange(720) + 0.5) * math.pi / 720)
        return np.exp(depth * np.sqrt(np.maximum(1 - (u / 30) ** 2, 0))).mean()

    r = torch.hypot(*grid())
    ratio = float(variance[r < 6].mean() / variance[(r > 38) & (r < 42)].mean())
    # 113 pixels of 100 images, of which correlation leaves a third: 9 %; and small pixels, 2 of 30
    assert ratio == pytest.approx(expected(4.0) / expected(40.0), rel=0.15)
    assert ratio > 2


def test_grey_noise_grows_with_the_grey_value():
    image = torch.tensor([-0.5, 0.0, 0.25, 1.0])[:, None, None].expand(4, 200, 200)
    noise = artifacts.grey_noise(image, 0.2, 1) - image
    assert (noise[:2] == 0).all()
    for level, expected in ((2, 0.1), (3, 0.2)):
        assert float(noise[level].std()) == pytest.approx(expected, rel=4 / math.sqrt(2 * 200**2))


# phase contrast, shading


def test_the_halo_of_a_blob():
    alpha, fwhm = 0.6, 12.0
    wide = math.hypot(SIGMA, fwhm / (2 * math.sqrt(2 * math.log(2))))
    expected = blob() - alpha * (SIGMA / wide) ** 2 * blob(sigma=wide)
    np.testing.assert_allclose(artifacts.halo(blob(), alpha, fwhm), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 40, 56), (1, 24, 20, 16)])
def test_a_halo_is_taken_back(shape):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    seen = artifacts.halo(image, 0.9, 8.0)
    np.testing.assert_allclose(artifacts.halo(torch.ones(shape), 0.9, 8.0), 0.1, atol=1e-5)
    assert (seen - image).abs().max() > 0.3
    np.testing.assert_allclose(artifacts.halo(seen, 0.9, 8.0, inverse=True), image, atol=1e-4)  # 1/(1 − 0.9) roundings


@pytest.mark.parametrize(("power", "integral"), [(0.5, math.pi / 2), (1.0, 4 / 3)])
def test_cupping_is_what_a_power_of_the_chords_gives(power, integral):
    # along a line at u the loss sums to R · integral · (1 − u²/R²)^(power + 1/2): chords squared, or cubed
    radius, depth = 40.0, 0.25
    lost = 1 - artifacts.cupping(torch.ones(1, N, N), depth, radius, power=power)[0].double().numpy()
    u = grid()[1].numpy() / radius
    expected = depth * radius * integral * np.maximum(1 - u**2, 0) ** (power + 0.5)
    np.testing.assert_allclose(lost.sum(0), expected, atol=depth)  # a pixel of the two that the line ends in
    image = torch.rand(1, N, N)
    seen = artifacts.cupping(image, depth, radius, (3.0, -5.0), power)
    np.testing.assert_allclose(
        artifacts.cupping(seen, depth, radius, (3.0, -5.0), power, inverse=True), image, atol=8 * EPS
    )


@pytest.mark.parametrize("r", [0.0, 12.0, 25.0])
def test_the_rim_of_local_tomography(r):
    a, outer = 40.0, 1.6

    def lost(s, theta):  # the ramp far from its line, of what was cut off on both sides
        u = r * math.cos(theta)
        return (1 / (u - s) ** 2 + 1 / (u + s) ** 2) / (2 * math.pi**2)

    expected = math.pi * a * dblquad(lost, 0, math.pi, a, outer * a)[0] / 1.0
    image = artifacts.local_tomography(torch.zeros(1, 81, 81), 1.0, a, outer=outer)
    assert float(image[0, 40, 40 + int(r)]) == pytest.approx(expected, rel=1e-4)
    assert torch.isfinite(image).all()


def test_hardening_cups_a_disc():
    radius, strength = 40.0, 0.2
    seen = artifacts.harden(disc(radius), strength)[0]
    r = torch.hypot(*grid())
    # L² of a disc, 4 (R² − u²), reconstructs to (8/π) √(R² − r²); the largest L is 2R
    expected = 1 - strength * 4 / math.pi * torch.sqrt((1 - (r / radius) ** 2).clamp(min=0))
    inside = r < 0.8 * radius
    # a small pixel by the radius in small pixels, of the whole effect
    assert (seen - expected)[inside].abs().max() < 2 / radius * strength * 4 / math.pi + 1e-3
    np.testing.assert_allclose(artifacts.harden(disc(radius), 0.0), disc(radius), atol=1e-6)


def test_hardening_darkens_between_dense_particles():
    image = torch.zeros(1, N, N)
    image[:, 40:56, 15:31] = image[:, 40:56, 65:81] = 1.0
    change = artifacts.harden(image, 0.3) - image
    assert change[0, 48, 48] < -0.02
    assert change[0, 48, 48] < change[0, 20, 48] - 0.01


def test_scatter_lowers_the_contrast_and_lightens_air():
    image = disc(30)
    np.testing.assert_allclose(artifacts.scatter(image, 0.0, 2.0, 40.0), image, atol=1e-6)
    weak, strong = (artifacts.scatter(image, f, 2.0, 40.0)[0] for f in (0.1, 0.5))
    middle, beside = (slice(46, 50), slice(46, 50)), (slice(46, 50), slice(84, 88))
    for seen in (weak, strong):
        assert seen[middle].mean() < 0.97
    assert strong[middle].mean() < weak[middle].mean()
    assert strong[beside].mean() < weak[beside].mean() < 0


def test_the_small_scan_projects_and_reconstructs():
    image = disc(30, 128)
    scan = SmallScan(image)
    assert scan.step == 2
    u = np.arange(scan.lines.shape[2]) - (scan.lines.shape[2] - 1) / 2
    chords = 2 * np.sqrt(np.maximum(15.0**2 - u**2, 0))
    inner = np.abs(u) < 12
    np.testing.assert_allclose(scan.lines[:, 0].mean(0)[inner], chords[inner], atol=1.0)  # half a pixel at either end
    np.testing.assert_allclose(scan.lines.sum((1, 2)), float(scan.slices.sum()), rtol=0.02)
    again = scan.reconstruct(scan.lines)
    assert float(again[0, 60:68, 60:68].mean()) == pytest.approx(1, abs=0.02)


# single events


def test_a_streak_is_the_kernel_of_the_ramp():
    image = torch.zeros(2, 61, 61)
    seen = artifacts.streaks(image, [0.0], [4.0], [-0.5])
    profile = seen[1, 10]
    assert torch.equal(seen[0], seen[1]) and torch.equal(profile, seen[1, 55])
    kernel = torch.tensor([1.0, -4 / math.pi**2, 0.0, -4 / (9 * math.pi**2), 0.0])
    np.testing.assert_allclose(profile[34:39], -0.5 * kernel, atol=1e-6)
    down = artifacts.streaks(image, [90.0], [4.0], [1.0])[0]
    assert int(down[:, 3].argmax()) == 26  # at 90° the detector runs against the first axis
    two = artifacts.streaks(image, [30.0, 80.0], [1.0, -5.0], [1.0, 2.0])
    one, other = (artifacts.streaks(image, *([v] for v in args)) for args in ((30.0, 1.0, 1.0), (80.0, -5.0, 2.0)))
    np.testing.assert_allclose(two, one + other, atol=1e-6)


def test_a_streak_of_a_volume_lies_in_its_slice():
    flat = artifacts.streaks(torch.zeros(1, 31, 31), [20.0], [3.0], [-0.5])
    volume = artifacts.streaks(torch.zeros(2, 31, 31, 5), [20.0, 20.0], [3.0, 3.0], [-0.5, -1.0], [1, 3])
    assert torch.equal(volume[..., 1], flat.expand(2, -1, -1)) and torch.allclose(volume[..., 3], 2 * flat)
    assert not volume[..., [0, 2, 4]].any()


def test_dots_are_as_many_and_as_high_as_said():
    image = torch.zeros(1, 500, 500)
    seen = artifacts.dots(image, 0.01, 0.8, 1)
    assert int((seen > 0).sum()) == pytest.approx(2500, abs=4 * math.sqrt(2500 * 0.01) + 13)  # some fall on others
    assert float(seen.sum()) == pytest.approx(2500 * 0.8, rel=4 / math.sqrt(2500))
    assert torch.equal(artifacts.dots(image, 0.0, 0.8, 1), image)


def test_inverting_twice_is_nothing():
    image = torch.rand(1, 9, 9)
    np.testing.assert_allclose(artifacts.invert_intensity(artifacts.invert_intensity(image)), image, atol=EPS)


# all


SHIFT = artifacts.view_shifts(90, drift_px=3.0, jitter_px=0.2)
BY_SLICE = {
    "motion": lambda image: artifacts.shift_views(image, SHIFT, 20.0),
    "full turn": lambda image: artifacts.shift_views(image, SHIFT, 20.0, 360),
    "few views": lambda image: artifacts.keep_views(image, 11, 5.0),
    "wedge": lambda image: artifacts.missing_wedge(image, 5.0, 120.0),
    "cupping": lambda image: artifacts.cupping(image, 0.3, 20.0, (2.0, 1.0), 0.7),
    "rim": lambda image: artifacts.local_tomography(image, 0.3, 20.0, (2.0, 1.0)),
    "streaks": lambda image: artifacts.streaks(image, [10.0], [3.0], [0.5]),
    "inversion": artifacts.invert_intensity,
}
OF_VOLUMES = {
    "noise": lambda image: artifacts.reconstruction_noise(image, 0.1, 1, 1.0, 2.0),
    "grey noise": lambda image: artifacts.grey_noise(image, 0.1, 1),
    "halo": lambda image: artifacts.halo(image, 0.3, 9.0),
    "hardening": lambda image: artifacts.harden(image, 0.2),
    "scatter": lambda image: artifacts.scatter(image, 0.3, 1.0, 20.0),
    "dots": lambda image: artifacts.dots(image, 0.01, 1.0, 1),
}


@pytest.mark.parametrize("name", BY_SLICE)
def test_a_volume_is_its_slices_along_the_last_axis(name):
    volume = torch.rand(2, 30, 42, 3, generator=torch.Generator().manual_seed(0))
    seen = BY_SLICE[name](volume)
    for z in range(3):
        np.testing.assert_allclose(seen[..., z], BY_SLICE[name](volume[..., z]), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 30, 42), (2, 31, 30, 5), (1, 70, 9), (1, 200, 3), (1, 1, 400)])
@pytest.mark.parametrize("name", [*BY_SLICE, *OF_VOLUMES])
def test_shape_type_and_input_are_kept(name, shape):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    before = image.clone()
    seen = (BY_SLICE | OF_VOLUMES)[name](image)
    assert seen.shape == image.shape and seen.dtype == torch.float32
    assert torch.isfinite(seen).all()
    assert torch.equal(image, before)
    assert not torch.equal(seen, image)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda image: artifacts.keep_views(image, 0), "n_views=0 must be a whole number of at least 1"),
        (lambda image: artifacts.keep_views(image, 20.5), "n_views=20.5 must be a whole number"),
        (lambda image: artifacts.halo(image, 1.0, 9.0, inverse=True), "alpha=1.0 must be at least 0 and below 1"),
        (lambda image: artifacts.cupping(image, 1.0, 9.0), "depth=1.0 must be below 1"),
        (lambda image: artifacts.local_tomography(image, 0.1, 9.0, outer=0.5), "outer=0.5 must be above 1"),
        (lambda image: artifacts.harden(image, 0.6), r"strength=0.6 must be in \[0, 0.5\]"),
        (lambda image: artifacts.scatter(image, 0.1, 0.0, 9.0), "depth=0.0 must be above 0"),
        (lambda image: artifacts.scatter(image, -0.1, 1.0, 9.0), "fraction=-0.1 must be at least 0"),
        (lambda image: artifacts.dots(image, -1, 1.0, 1), r"share=-1 must be in \[0, 1\]"),
        (lambda image: artifacts.dots(image, 2, 1.0, 1), r"share=2 must be in \[0, 1\]"),
        (lambda image: artifacts.dots(image, math.nan, 1.0, 1), "share=nan"),
    ],
)
def test_values_outside_their_range_are_named(act, said):
    with pytest.raises(ValueError, match=said) as caught:
        act(torch.zeros(1, 8, 8))
    assert "\n" not in str(caught.value)
