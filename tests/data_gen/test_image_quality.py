"""Measures of an image against images whose blur, noise, spectrum and shading are known in closed form."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from data_gen import image_quality as iq

REAL = Path(__file__).resolve().parents[3] / "shared" / "real" / "nmc_nanoct"
N = 128


def fine_disc(n, radius, centre=(0.3, -0.2), fine=5):
    at = (np.arange(n * fine) + 0.5) / fine - n / 2
    return ((at[:, None] - centre[0]) ** 2 + (at[None] - centre[1]) ** 2 <= radius**2).astype(float)


def coarse(image, fine=5):
    n = len(image) // fine
    return image.reshape(n, fine, n, fine).mean((1, 3))


def blurred_disc(radius, sigma_px, n=N):
    """Disc blurred at 5 times the sampling and integrated over pixels."""
    return coarse(ndimage.gaussian_filter(fine_disc(n, radius), 5 * sigma_px))


def disc_label(radius, n=N):
    return (coarse(fine_disc(n, radius)) >= 0.5).astype(np.uint8)


def fwhm(sigma_px):
    return iq.FWHM_PER_SIGMA * np.sqrt(sigma_px**2 + 1 / 12)  # the pixel's box has a variance of 1/12


def radii(shape):
    x, y = np.ogrid[: shape[0], : shape[1]]
    return np.hypot(x - (shape[0] - 1) / 2, y - (shape[1] - 1) / 2)


def halves(shape=(200, 240)):
    """Phase 1 on the left, 2 on the right."""
    label = np.ones(shape, np.uint8)
    label[:, shape[1] // 2 :] = 2
    return label


# --- contrast and noise


def test_contrast_to_noise_of_known_levels():
    label, rng = halves(), np.random.default_rng(0)
    noise = np.where(label == 1, 0.3, 0.4) * rng.standard_normal(label.shape)
    image = 5.0 + 2.0 * (label == 1) + noise
    expected = 2.0 / np.sqrt((0.3**2 + 0.4**2) / 2)
    # the median absolute deviation of n Gaussian values has a relative standard error of 1.17 / √n
    tolerance = 4 * 1.17 / np.sqrt(label.size / 2)
    assert iq.contrast_to_noise(image, label, 1, 2) == pytest.approx(expected, rel=tolerance)
    assert iq.contrast_to_noise(image, label, 2, 1) == -iq.contrast_to_noise(image, label, 1, 2)
    high = iq.contrast_to_noise(image, label, 1, 2, high_pass_px=5.0)
    assert high == pytest.approx(expected, rel=tolerance + 3 / (4 * np.pi * 25) / 2 + 0.01)  # the mask has borders


def test_rare_voids_hardly_change_level_and_noise():
    label, rng = np.ones((200, 200), np.uint8), np.random.default_rng(0)
    image = rng.standard_normal(label.shape)
    image[50:70, 50:70] -= 100  # 1 % of the pixels
    level, noise = iq.level_and_noise(image, label, 1)
    # 1 % on one side: the median is the quantile 0.505 of the rest, the median deviation their quantile 0.505 too
    assert abs(level) < 0.0127 + 4 * 1.25 / 200
    assert noise == pytest.approx(1 + 0.016, abs=4 * 1.17 / 200)


@pytest.mark.parametrize("sigma_px", [2.0, 3.0, 9.0])
def test_high_pass_takes_the_share_of_white_noise_it_says(sigma_px):
    label = np.ones((300, 300), np.uint8)
    image = np.random.default_rng(1).standard_normal(label.shape)
    whole, high = (iq.level_and_noise(image, label, 1, high_pass_px=s)[1] ** 2 for s in (None, sigma_px))
    # both come from the same pixels; their difference is known as well as the mean of n independent patches of 4πσ²
    n_patches = label.size / (4 * np.pi * sigma_px**2)
    removed = 3 / (4 * np.pi * sigma_px**2)
    assert 1 - high / whole == pytest.approx(removed, abs=4 * removed / np.sqrt(n_patches) + 4 * 1.17 / 300)


def test_high_pass_is_blind_to_shading():
    label = halves()
    y = np.linspace(-1, 1, label.shape[0])[:, None]
    noise = 0.1 * np.random.default_rng(0).standard_normal(label.shape)
    flat, shaded = (
        iq.contrast_to_noise((label == 1) + noise + slope * y, label, 1, 2, high_pass_px=5.0) for slope in (0.0, 0.5)
    )
    assert shaded == pytest.approx(flat, rel=0.02)  # 0.5 / 100 px · 5 px = 0.025 of bias in the last 5 px of 200
    assert iq.contrast_to_noise((label == 1) + noise + 0.5 * y, label, 1, 2) < flat / 2


def test_phases_can_be_joined():
    label = halves()
    label[:100][label[:100] == 2] = 3
    image = np.where(label == 1, 4.0, 1.0) + np.random.default_rng(0).standard_normal(label.shape)
    two = np.minimum(label, 2)
    assert iq.contrast_to_noise(image, label, 1, (2, 3)) == iq.contrast_to_noise(image, two, 1, 2)


def test_clean_label_takes_specks_and_nothing_else():
    label = halves()
    dirty = label.copy()
    dirty[20:23, 30:33] = 2  # 9 pixels
    dirty[60, 200] = 7
    dirty[100:104, 30:34] = 2  # 16 pixels
    clean = iq.clean_label(dirty, 9)
    assert (clean[20:23, 30:33] == 1).all() and clean[60, 200] == 2 and (clean[100:104, 30:34] == 2).all()
    np.testing.assert_array_equal(iq.clean_label(dirty, 16), label)
    np.testing.assert_array_equal(iq.clean_label(np.stack([dirty, label], -1), 16), np.stack([label, label], -1))


# --- edges


@pytest.mark.parametrize("radius", [20, 40])
@pytest.mark.parametrize("sigma_px", [1.0, 2.0, 3.0])
def test_edge_width_is_that_of_the_blur(radius, sigma_px):
    image, label = blurred_disc(radius, sigma_px), disc_label(radius)
    # 5 parallel profiles within 2 px: sagittas of 0, 1/2R, 4/2R shift them by a standard deviation of 0.85 / R;
    # blur of a curved edge is no error function by the order of (σ/R)² ; templates lie 8 % apart, a parabola
    # between them errs by about the cube of half of that, 1e-4; linear steps of the shift, 0.125 px, add (0.125/σ)²/2
    sigma = np.sqrt(sigma_px**2 + 1 / 12)
    tolerance = (0.85 / radius / sigma) ** 2 / 2 + (sigma / radius) ** 2 + (0.125 / sigma) ** 2 / 2 + 1e-3
    assert iq.edge_width(image, label, 1, 0) == pytest.approx(fwhm(sigma_px), rel=tolerance)


def test_rise_and_width_describe_one_error_function():
    from scipy.special import erfinv

    assert pytest.approx(2 * np.sqrt(2) * erfinv(0.8), rel=1e-5) == iq.RISE_PER_SIGMA
    edges = iq.fit_edges(blurred_disc(40, 2.0), disc_label(40), 1, 0)
    rising = slice(4, -4)  # all edges reach there
    levels = edges.profile[rising] / np.median(edges.step)
    at = np.interp([0.9, 0.1], levels[::-1], edges.distance_px[rising][::-1])
    rise = at[1] - at[0]
    assert rise == pytest.approx(iq.RISE_PER_SIGMA * np.sqrt(4 + 1 / 12), rel=0.03)  # 0.5 px steps on a curved flank


@pytest.mark.parametrize("error_px", [-3, -2, 2, 3])
@pytest.mark.parametrize("sigma_px", [1.0, 3.0])
def test_edge_width_forgives_a_label_that_is_off(sigma_px, error_px):
    image = blurred_disc(40, sigma_px)
    right, wrong = (iq.fit_edges(image, disc_label(40 + d), 1, 0) for d in (0, error_px))
    # position and width are fitted apart: what remains is the profile's window, which the shift moves by 3 of 10 px,
    # and the raster of the label, whose normals turn by up to 5°: 2 px · tan 5° at the outer of the 5 parallel profiles
    turn = (np.tan(np.deg2rad(5)) * np.sqrt(2)) ** 2 / 2 / sigma_px**2
    assert np.median(wrong.width_px) == pytest.approx(np.median(right.width_px), rel=turn + 0.005)
    assert np.median(wrong.shift_px) == pytest.approx(-error_px, abs=0.5)  # half a pixel of raster, steps of 0.25


def test_edge_width_forgives_a_ragged_label():
    rng = np.random.default_rng(0)
    image, label = blurred_disc(40, 2.0), disc_label(40)
    ragged = ndimage.gaussian_filter(rng.standard_normal(label.shape), 1.0)
    wrong = (radii(label.shape) - 40 < 4 * ragged).astype(np.uint8)  # standard deviation of 1.1 px
    assert (wrong != label).sum() > 100
    # normals of the smoothed label turn by some 1.1 px / 2 / 3 px = 10°: 1/cos and a shear of 2 px · tan 10°
    turn = 1 / np.cos(np.deg2rad(10)) - 1 + (np.tan(np.deg2rad(10)) * np.sqrt(2)) ** 2 / 2 / 4
    assert iq.edge_width(image, wrong, 1, 0) == pytest.approx(fwhm(2.0), rel=turn + 0.01)


def test_edge_width_in_noise():
    rng = np.random.default_rng(0)
    image, label = blurred_disc(40, 2.0), disc_label(40)
    widths = iq.fit_edges(image + rng.standard_normal(image.shape) / 15, label, 1, 0).width_px
    # scatter of one fit of 20 px by about 9 independent values of noise 1/(15·√5): some 8 %, of a median 10 times less
    assert np.median(widths) == pytest.approx(fwhm(2.0), rel=0.025)
    assert np.quantile(widths, 0.1) > 0.85 * fwhm(2.0)
    assert iq.edge_width(image, label, 1, 0, quantile=0.1) <= iq.edge_width(image, label, 1, 0)


def test_an_interface_that_only_the_label_has_is_no_edge():
    image = blurred_disc(40, 1.5) + 0.05 * np.random.default_rng(0).standard_normal((N, N))
    label = disc_label(40)
    label[:, : N // 2][label[:, : N // 2] == 1] = 2
    with pytest.raises(iq.NotMeasurableError, match="look like an edge"):
        iq.edge_width(image, label, 1, 2)
    assert iq.edge_width(image, label, (1, 2), 0) == pytest.approx(fwhm(1.5), rel=0.05)


# --- noise power


def spectrum_of(noise, **options):
    return iq.noise_power_spectrum(noise, np.zeros(noise.shape, np.uint8), 0, **options)


def lost_variance(size):
    """Share of white variance that six orthonormal surfaces take from a Hann-windowed patch."""
    at = np.linspace(-1, 1, size)
    hann = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    window = np.outer(hann, hann)
    surface = [at[:, None] ** i * at**j * window for i in range(3) for j in range(3 - i)]
    basis, _ = np.linalg.qr(np.stack([s.ravel() for s in surface], 1))
    return ((basis * window.reshape(-1, 1)) ** 2).sum() / (window**2).sum()


def test_white_noise_is_flat_and_integrates_to_its_variance():
    power = spectrum_of(0.7 * np.random.default_rng(0).standard_normal((400, 400)))
    assert power.area.sum() == pytest.approx(1, rel=1e-12)
    n = power.n_patches
    assert power.variance == pytest.approx(0.49 * (1 - lost_variance(32)), rel=4 * np.sqrt(2 / 400**2))
    kept = (power.frequency > 0.1) & (power.frequency < 0.5)
    independent = power.area * 32**2 / 2 * n / 4  # conjugate pairs; overlap and window correlate neighbours
    assert (np.abs(power.power[kept] / 0.49 - 1) < 4 / np.sqrt(independent[kept])).all()
    assert power.low_over_high == pytest.approx(1, abs=0.05)
    assert power.anisotropy == pytest.approx(1, abs=4 * np.sqrt(2 * 4 / (n * 400)))  # some 400 frequencies a side
    centre = (np.sqrt(2) + np.log(1 + np.sqrt(2))) / 6  # mean distance from the centre of a unit square
    assert power.centroid == pytest.approx(centre, rel=0.02)


@pytest.mark.parametrize("sigma_px", [0.7, 1.2])
def test_filtered_noise_has_the_filters_spectrum(sigma_px):
    shape = (512, 512)
    u, v = np.meshgrid(np.fft.fftfreq(512), np.fft.fftfreq(512), indexing="ij")
    transfer = np.exp(-2 * np.pi**2 * sigma_px**2 * (u**2 + v**2))
    white = np.random.default_rng(0).standard_normal(shape)
    power = spectrum_of(np.fft.ifft2(np.fft.fft2(white) * transfer).real)
    kept = (power.frequency > 0.12) & (power.frequency < 0.4)
    expected = np.exp(-4 * np.pi**2 * sigma_px**2 * power.frequency**2)
    # the window's spectrum has a variance of (1/32)²/3 on each axis, and a ring one of (1/32)²/12: half of their sum
    # times NPS''/NPS = (8π²σ²f)² − 8π²σ² at most; and 4 standard errors of the rings
    bend = (8 * np.pi**2 * sigma_px**2 * power.frequency) ** 2 / 32**2 / 3
    chance = 4 / np.sqrt(power.area * 32**2 / 2 * power.n_patches / 4)
    assert (np.abs(power.power / expected - 1) < bend + chance + 0.02)[kept].all()
    lost = lost_variance(32)  # times the NPS at the lowest frequencies, 1 here
    chance = 4 * np.sqrt(2 * (transfer**4).mean() / (transfer**2).mean() ** 2 / 512**2)
    assert power.variance == pytest.approx((transfer**2).mean() - lost, rel=0.02 + chance)
    moment = (np.hypot(u, v) * transfer**2).mean()  # the surface is gone from below 2/32 cycles a pixel
    assert power.centroid * power.variance == pytest.approx(moment, rel=0.02 + chance, abs=lost * 2 / 32)
    assert power.low_over_high > 2


def test_noise_along_one_axis_is_anisotropic():
    white = np.random.default_rng(0).standard_normal((300, 300))
    along = spectrum_of(ndimage.gaussian_filter1d(white, 1.0, axis=1))  # smooth along the second index
    across = spectrum_of(ndimage.gaussian_filter1d(white, 1.0, axis=0))
    assert along.anisotropy > 3
    assert along.anisotropy == pytest.approx(1 / across.anisotropy, rel=0.1)


def test_shading_and_voids_are_not_noise():
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal((256, 256))
    x, y = np.meshgrid(*2 * [np.linspace(-1, 1, 256)], indexing="ij")
    shaded = noise + 3 * x - 2 * y + 4 * x * y - 5 * x**2
    assert spectrum_of(shaded).variance == pytest.approx(spectrum_of(noise).variance, rel=1e-9)
    void = noise.copy()
    void[100:110, 100:110] -= 5
    assert spectrum_of(void).variance == pytest.approx(spectrum_of(noise).variance, rel=0.02)


def test_noise_patches_stay_inside_the_phase():
    label = disc_label(40)
    image = np.where(label == 1, 0.0, 1000.0) + np.random.default_rng(0).standard_normal(label.shape)
    power = iq.noise_power_spectrum(image, label, 1, patch_px=16)
    assert power.variance == pytest.approx(1 - lost_variance(16), rel=4 * np.sqrt(2 / 3000))
    with pytest.raises(iq.NotMeasurableError, match="no room"):
        iq.noise_power_spectrum(image, label, 1, patch_px=64)


# --- shading


@pytest.mark.parametrize("depth", [-0.2, 0.0, 0.3])
def test_cupping_of_a_paraboloid(depth):
    radius = 50
    label = disc_label(radius)
    far = np.hypot(*np.meshgrid(*[np.arange(N) + 0.5 - N / 2 - c for c in (0.3, -0.2)], indexing="ij"))
    image = np.where(label == 1, 1 - depth * (1 - (far / radius) ** 2), 0.0)
    # rim and centre are medians over r of equal area above and below, between depths of 5, 20, 35 and 50 px
    rim, centre = 1 - depth * (1 - np.array([(45**2 + 30**2) / 2, 15**2 / 2]) / radius**2)
    expected = 1 - centre / rim
    found = iq.cupping(image, label, 1, 0)
    # the bounds lie on a raster of half a pixel: d(r²)/R² = 2 · 45 · 0.5 / 50²
    assert found == pytest.approx(expected, abs=abs(depth) * 2 * 45 * 0.5 / 50**2 + 1e-12)
    assert iq.cupping(7 - 2 * image, label, 1, 0) == pytest.approx(found, abs=1e-12)  # gain and offset


@pytest.mark.parametrize("depth", [-0.2, 0.0, 0.3])
def test_field_cupping_of_a_paraboloid(depth):
    shape = (160, 200)
    rng = np.random.default_rng(0)
    label = (rng.random((16, 20)) < 0.7).astype(np.uint8).repeat(10, 0).repeat(10, 1)
    phase = 1 - depth * (1 - (radii(shape) / 80) ** 2)
    image = np.where(label == 1, phase, 0.0)
    found = iq.field_cupping(image, label, 1, 0)
    # median and mean of the squared radius in one of 12 rings differ by less than a tenth of the ring
    assert found == pytest.approx(depth, abs=abs(depth) * 0.1 / 12 * 3 + 1e-9)
    assert iq.field_cupping(3 * image + 5, label, 1, 0) == pytest.approx(found, abs=1e-9)


def test_particle_spread_of_known_levels():
    label, image = np.zeros((200, 200), np.uint8), np.zeros((200, 200))
    levels = [0.7, 0.8, 1.0, 1.1, 1.4]
    for level, (x, y) in zip(levels, [(5, 5), (5, 80), (80, 5), (80, 80), (155, 155)], strict=True):
        label[x : x + 40, y : y + 40] = 1
        image[x : x + 40, y : y + 40] = level
    expected = 1.4826 * 0.2  # deviations from the median 1.0: 0.3, 0.2, 0, 0.1, 0.4
    assert iq.particle_spread(image, label, 1, 0) == pytest.approx(expected, rel=1e-12)


def test_grey_by_distance_of_a_ramp():
    label = disc_label(40)
    far = np.hypot(*np.meshgrid(*[np.arange(N) + 0.5 - N / 2 - c for c in (0.3, -0.2)], indexing="ij"))
    at, grey = iq.grey_by_distance(far - 40, label, 1, 0, reach_px=20)
    assert at[0] == -19.5 and at[-1] == 19.5
    np.testing.assert_allclose(grey, at, atol=0.5)  # the raster of the label


# --- all together


def scene(seed=0, n=256):
    """Discs of radius 16 and 40 blurred by 1.5 px, contrast 1, white noise of 0.05."""
    label = np.zeros((n, n), np.uint8)
    x, y = np.ogrid[:n, :n]
    for cx, cy, r in [(60, 60, 40), (60, 190, 40), (190, 60, 40), (170, 170, 16), (220, 220, 16), (170, 220, 16)]:
        label[(x - cx) ** 2 + (y - cy) ** 2 <= r**2] = 1
    noise = 0.05 * np.random.default_rng(seed).standard_normal(label.shape)
    return ndimage.gaussian_filter(label.astype(float), 1.5) + noise, label


def test_describe_is_plain_and_does_not_see_gain_and_offset():
    image, label = scene()
    first, second = iq.describe(image, label, 1, 0), iq.describe(300 * image.astype(np.float32) - 40, label, 1, 0)
    assert json.loads(json.dumps(first, allow_nan=False)) == first and None not in first.values()
    for name, value in first.items():
        # float32 image, shifts on a grid of 0.25 px
        assert second[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
    assert first["contrast_to_noise"] == pytest.approx(20, rel=0.05)
    assert first["edge_fwhm_px"] == pytest.approx(iq.FWHM_PER_SIGMA * 1.5, rel=0.05)
    assert first["noise_over_contrast"] == pytest.approx(0.05, rel=0.05)
    assert first["noise_low_over_high"] == pytest.approx(1, abs=0.2)
    assert max(abs(first[name]) for name in ("cupping", "field_cupping", "particle_spread")) < 0.02


def test_a_volume_is_its_slices():
    image, label = scene()
    flat = iq.describe(image, label, 1, 0)
    thick = iq.describe(np.stack([image] * 3, -1), np.stack([label] * 3, -1), 1, 0)
    for name, value in flat.items():  # a quantile between two of three equal values is not that between two of one
        assert thick[name] == pytest.approx(value, rel=1e-4, abs=1e-9), name


def test_a_slice_without_the_phase_adds_nothing():
    image, label = scene()
    found = iq.fit_edges(np.stack([image, image], -1), np.stack([label, 0 * label], -1), 1, 0)
    np.testing.assert_array_equal(found.width_px, iq.fit_edges(image, label, 1, 0).width_px)


def test_describe_leaves_out_what_it_cannot_measure():
    image, label = scene()
    found = iq.describe(image, np.zeros_like(label), 1, 0)
    assert set(found) == set(iq.describe(image, label, 1, 0)) and set(found.values()) == {None}
    clean = iq.describe(label.astype(float), label, 1, 0)  # no noise, no blur
    assert clean["contrast_to_noise"] is None and clean["noise_centroid"] is None
    assert clean["cupping"] == clean["particle_spread"] == 0


@pytest.mark.parametrize(
    ("image", "label", "names"),
    [
        (np.zeros((8, 8)), np.zeros((8, 9), int), r"\(8, 8\).*\(8, 9\)"),
        (np.zeros(8), np.zeros(8, int), "one shape"),
        (np.zeros((8, 8)), np.zeros((8, 8)), "label is float64"),
        (np.full((8, 8), np.nan), np.zeros((8, 8), int), "finite"),
        (np.zeros((8, 8), complex), np.zeros((8, 8), int), "real"),
    ],
)
def test_bad_input(image, label, names):
    with pytest.raises(ValueError, match=names) as caught:
        iq.describe(image, label, 1, 0)
    assert not isinstance(caught.value, iq.NotMeasurableError)


@pytest.mark.parametrize("patch_px", [31, 4, 16.0, True])
def test_bad_patches(patch_px):
    with pytest.raises(ValueError, match="patch_px"):
        spectrum_of(np.zeros((64, 64)), patch_px=patch_px)


def test_a_missing_phase_is_named():
    image, label = scene()
    for measure in (iq.contrast_to_noise, iq.edge_width, iq.cupping, iq.field_cupping, iq.particle_spread):
        with pytest.raises(iq.NotMeasurableError, match="5"):
            measure(image, label, 5, 0)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real slices are not here")
@pytest.mark.parametrize("name", ["a_1", "a_100", "d_1501"])
def test_real_slices(name):
    from tifffile import imread

    image, label = imread(REAL / f"{name}.tif"), imread(REAL / f"{name}_label.tif").astype(np.uint8)
    found = iq.describe(image, label, 0, (1, 2), speck_px=25)
    # 0 is the active material: brighter than binder and pore, in correlated noise, blurred by some pixels
    assert found["separability"] > 2 and found["contrast_to_noise"] > 5
    assert 2 < found["edge_fwhm_sharp_px"] < found["edge_fwhm_px"] < 11.8
    assert found["noise_low_over_high"] > 2 and 0 < found["noise_over_contrast"] < 0.2
