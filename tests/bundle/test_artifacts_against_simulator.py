"""Artefacts made in the image against the same ones made in the sinogram by the simulator, with the same parameters.

What is compared is the change of the image: its correlation with the simulator's, its amplitude, its power by
frequency, its radial profile. The simulator interpolates in the image (Joseph) and in the detector, this code in the
spectrum or not at all; both have 360 views of 128² pixels. 0.99 in correlation is a residual of 14 % of the change.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from monai.transforms import GaussianSmooth
from scipy.ndimage import uniform_filter
from scipy.stats import ks_2samp

from bundle import image_artifacts as artifacts
from bundle.slice_tomography import SmallScan
from bundle.transforms import RandRingsd
from data_gen.artifacts import Motion, Scatter, Stripes, Zernike, add_stripes, move, trajectory
from data_gen.dataset import phase_fractions
from data_gen.detector import Detector
from data_gen.geometry import ParallelBeam, Views
from data_gen.materials import LIBRARY
from data_gen.microstructure import Spheres
from data_gen.reconstruction import FBP
from data_gen.scan import Scanner
from data_gen.spectrum import Monochromatic, Tube

N, VIEWS, VOXEL_UM = 128, 360, 4.0
MATERIALS = [LIBRARY["air"], LIBRARY["graphite"], LIBRARY["NMC532"]]
SOURCE = Monochromatic(30.0)
GREY_1 = float(MATERIALS[2].attenuation_1_cm(30.0))  # [1/cm]
LINE_1 = GREY_1 * VOXEL_UM * 1e-4
HALF, TURN = ParallelBeam(VIEWS), ParallelBeam(2 * VIEWS, angular_range_deg=360)


def build(diameter, shape=(N, N), spheres=0.35):
    """Fractions of a cylinder of graphite with particles; its diameter by 128 pixels."""
    fine, rng = shape[0] * 3, np.random.default_rng(7)
    recipe = Spheres(fraction=spheres, mean_radius_um=6 * VOXEL_UM, radius_cv=0.35)
    labels = recipe.build((fine, fine), VOXEL_UM / 3, recipe.draw(rng), rng)[0] + np.uint8(1)
    at = np.arange(fine) - (fine - 1) / 2
    labels[np.hypot(at[:, None], at) > diameter * N * 3 / 2] = 0
    return phase_fractions(labels, 3, (3, 3))


@pytest.fixture(scope="module")
def sample():
    return build(0.85)


def scan(sample, seed=3, shape=(N, N), voxel_um=VOXEL_UM, materials=MATERIALS, **parts):
    """Grey values, 1 for NMC532, and what was drawn."""
    scanner = Scanner(**{"source": SOURCE, "geometry": HALF, "normalisation": "none"} | parts)
    rng = np.random.default_rng(seed)
    drawn = scanner.draw(rng)
    return scanner.scan(sample, materials, voxel_um, drawn, rng, shape)[0] / GREY_1, drawn


def at_rest(angles_rad):
    return Views(angles_rad, np.zeros_like(angles_rad), np.ones_like(angles_rad))


def tensor(image):
    return torch.from_numpy(np.ascontiguousarray(image))[None]


def correlation(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


def power(change, bins=8):
    """Mean power of rings of frequency up to 0.5 cycles/pixel."""
    spectrum = np.abs(np.fft.fft2(change)) ** 2
    k = np.hypot(np.fft.fftfreq(N)[:, None], np.fft.fftfreq(N))
    which = np.minimum((k * 2 * bins).astype(int), bins)
    return (np.bincount(which.ravel(), spectrum.ravel()) / np.bincount(which.ravel()))[:bins]


def profile(image, to):
    """Radial mean, one value a pixel."""
    at = np.arange(len(image)) - (len(image) - 1) / 2
    r = np.hypot(at[:, None], at).astype(int)
    return (np.bincount(r.ravel(), image.ravel()) / np.bincount(r.ravel()))[:to]


def amplitude(made, simulated):
    """Of one change by another: the ratio of their roots of the mean square."""
    return float(np.sqrt(np.mean(made**2) / np.mean(simulated**2)))


def agree(clean, simulated, made, at_least, lost=0.0, power_within=None):
    """Correlation and amplitude of the changes of the image, and their power in rings of frequency.

    Two versions of one change, each with an error of its own that knows nothing of the other's, differ in amplitude by
    the correlation r at most: it lies within r and 1/r. ``lost`` is what else is known to be lost.
    """
    change, expected = made - clean, simulated - clean
    assert correlation(expected, change) > at_least
    assert at_least - lost < amplitude(change, expected) < 1 / at_least + lost
    if power_within is not None:
        seen, expected = power(change), power(expected)
        there = expected > 0.01 * expected.max()
        np.testing.assert_allclose(seen[there] / expected[there], 1, atol=power_within)


@pytest.mark.parametrize("geometry", [HALF, TURN], ids=["180", "360"])
@pytest.mark.parametrize(
    ("motion", "at_least", "lost", "power_within"),
    [
        # The views in a cell of the spectrum, 1/L with L = 180, count together: a streak fades as sinc s/L in
        # amplitude, and what smooth motion makes lies within a radius of the particles, s < 20: 1 − sinc 0.11 = 2 %
        (Motion(drift_px=8), 0.99, 0.02, 0.2),
        (Motion(jump_px=4, n_jumps=2), 0.99, 0.02, 0.2),
        # white shifts make streaks that are up to s = 0.7 L long here, on average 0.6 of their power: √0.6
        (Motion(jitter_px=1), 0.94, 0.23, 0.4),
    ],
    ids=["drift", "jumps", "jitter"],
)
def test_motion(sample, geometry, motion, at_least, lost, power_within):
    clean, _ = scan(sample, geometry=geometry)
    simulated, drawn = scan(sample, geometry=geometry, motion=motion)
    range_deg = geometry.angular_range_deg
    shift = move(at_rest(geometry.angles_rad(drawn["geometry"])), drawn["motion"]).shift_px
    made = artifacts.shift_views(tensor(clean), torch.from_numpy(shift), 0.0, range_deg)[0].numpy()
    # of the images themselves; wedges blended in Fourier space reached 0.995
    assert correlation(simulated, made) > 0.995
    agree(clean, simulated, made, at_least, lost, power_within)


@pytest.mark.parametrize("range_deg", [180, 360])
def test_the_path_is_that_of_the_simulator(range_deg):
    drawn = Motion(drift_px=7, jump_px=3, n_jumps=2).draw(np.random.default_rng(1))
    moved = trajectory(VIEWS, drawn)
    # where and whither the simulator jumped, read off its path
    steps = np.diff(moved.position_px, axis=1)
    jumps = steps - np.median(steps, axis=1, keepdims=True)
    times = np.flatnonzero(np.hypot(*jumps) > 1)
    ours = artifacts.view_shifts(
        VIEWS,
        drift_px=7.0,
        direction_deg=drawn["drift_direction_deg"],
        jumps=[
            ((t + 0.5) / (VIEWS - 1), np.hypot(*jumps[:, t]), np.rad2deg(np.arctan2(*jumps[::-1, t]))) for t in times
        ],
        angular_range_deg=range_deg,
        first_angle_deg=30.0,
    )
    expected = move(at_rest(np.deg2rad(30 + range_deg * np.arange(VIEWS) / VIEWS)), drawn).shift_px
    np.testing.assert_allclose(ours, expected, atol=1e-3)  # the median of the steps stands for the drift's


@pytest.mark.parametrize("geometry", [HALF, TURN], ids=["180", "360"])
def test_wrong_centre(sample, geometry):
    clean, _ = scan(sample, geometry=geometry)
    wrong = dataclasses.replace(geometry, centre_offset_px=2.0)
    simulated, drawn = scan(sample, geometry=wrong)
    range_deg = geometry.angular_range_deg
    shift = artifacts.view_shifts(geometry.n_angles, offset_px=2.0, angular_range_deg=range_deg)
    np.testing.assert_allclose(shift, wrong.views(drawn["geometry"]).shift_px, atol=1e-5)
    made = artifacts.shift_views(tensor(clean), shift, 0.0, range_deg)[0].numpy()
    # half a turn keeps √(1 − 8/π²) = 0.44 of the shift when its pose is out, so the residual is twice the share of it
    agree(clean, simulated, made, 0.98, lost=0.02, power_within=0.2)


@pytest.mark.parametrize(("n_views", "start"), [(20, 0.0), (45, 2.0)])
def test_few_views(sample, n_views, start):
    clean, _ = scan(sample)
    simulated, _ = scan(sample, geometry=ParallelBeam(n_views, start_angle_deg=start))
    made = artifacts.keep_views(tensor(clean), n_views, start)[0].numpy()
    assert correlation(simulated, made) > 0.995
    # The streaks of few views hang on where each edge lies within a pixel, which the clean image has blurred.
    agree(clean, simulated, made, 0.95, power_within=0.5)


@pytest.fixture(scope="module")
def larger():
    """A slice of twice the size, of which a patch is augmented."""
    return build(1.7, (2 * N, 2 * N))


PATCH = (slice(N // 2, -N // 2), slice(N // 2, -N // 2))


def scan_larger(larger, **parts):
    image, drawn = scan(larger, shape=(2 * N, 2 * N), **parts)
    return image[PATCH], drawn


@pytest.fixture(scope="module")
def square():
    """Particles in air up to the border of the image, as in configs/generate_spheres.json: what scans it."""
    recipe, rng = Spheres(fraction=0.45, mean_radius_um=6.0, radius_cv=0.2), np.random.default_rng(5)
    labels = recipe.build((3 * N, 3 * N), 1 / 3, recipe.draw(rng), rng)[0] * np.uint8(2)
    tube = Tube(kvp=140, anode_angle_deg=12, energy_step_kev=0.5)
    parts = {"source": tube, "detector": Detector(response="photon_counting"), "voxel_um": 1.0}
    return lambda **others: scan(phase_fractions(labels, 3, (3, 3)), **parts, **others)


@pytest.fixture(scope="module", params=["a patch", "particles that are cut"])
def cut_off(request, larger, square):
    """What scans an image whose border cuts through the object."""
    return square if request.param != "a patch" else lambda **parts: scan_larger(larger, **parts)


@pytest.mark.parametrize(
    ("scanned", "act"),
    [
        ({"geometry": ParallelBeam(20)}, lambda image, shift: artifacts.keep_views(image, 20)),
        ({"motion": Motion(drift_px=8)}, artifacts.shift_views),
    ],
    ids=["few views", "motion"],
)
def test_an_image_that_fades_beyond_its_border(cut_off, scanned, act):
    """Nearer to the simulator than one that is cut off or goes on as its mirror image."""
    clean, _ = cut_off()
    simulated, drawn = cut_off(**scanned)
    low, high = np.percentile(clean, (0.5, 99.5))  # as a network gets it: air is grey
    clean, simulated = (clean - low) / (high - low), (simulated - low) / (high - low)
    views = at_rest(HALF.angles_rad(drawn["geometry"]))
    shift = torch.from_numpy((move(views, drawn["motion"]) if "motion" in drawn else views).shift_px)

    def left(made):
        """Share of the change that the image version misses."""
        return amplitude(made - simulated, simulated - clean)

    def padded(mode):
        return act(tensor(np.pad(clean, N // 2, mode=mode)), shift)[0].numpy()[PATCH]

    faded = act(tensor(clean), shift)[0].numpy()
    assert left(faded) < min(left(padded("constant")), left(padded("reflect")))
    if "motion" in drawn:
        inner = (slice(16, -16), slice(16, -16))  # two paths from the border
        agree(clean[inner], simulated[inner], faded[inner], 0.97, lost=0.02)


def test_a_missing_wedge_of_a_patch(larger):
    clean, simulated = (
        scan_larger(larger, geometry=ParallelBeam(VIEWS, angular_range_deg=range_deg))[0] for range_deg in (180, 130)
    )
    made = artifacts.missing_wedge(tensor(clean), -130 / VIEWS / 2, 130)[0].numpy()
    inner = (slice(16, -16), slice(16, -16))
    # what is outside adds to the mean grey value and to its slope across the patch: the amplitude is not held
    assert correlation(simulated[inner] - clean[inner], made[inner] - clean[inner]) > 0.97


@pytest.mark.parametrize("range_deg", [130, 160])
def test_missing_wedge(sample, range_deg):
    clean, _ = scan(sample)
    simulated, _ = scan(sample, geometry=ParallelBeam(VIEWS, angular_range_deg=range_deg))
    step = range_deg / VIEWS  # a view stands for half a step to either side
    made = artifacts.missing_wedge(tensor(clean), -step / 2, range_deg)[0].numpy()
    assert correlation(simulated, made) > 0.998
    agree(clean, simulated, made, 0.98)


@pytest.mark.parametrize("geometry", [HALF, TURN], ids=["180", "360"])
@pytest.mark.parametrize("stripes", [Stripes(gain_sd=0.01), Stripes(full_share=0.03, error_sd=0.1)])
def test_rings(sample, geometry, stripes):
    clean, _ = scan(sample, geometry=geometry)
    simulated, drawn = scan(sample, geometry=geometry, stripes=stripes)
    detectors = geometry.detectors((N, N, 1), VOXEL_UM)[0]
    gain = add_stripes(np.ones((2, detectors), np.float32), drawn["stripes"])[:1]
    errors = torch.from_numpy(-np.log(gain) / LINE_1)
    window = geometry.angular_range_deg
    made = artifacts.ring_pattern((N, N), errors, window_deg=window, full_turn=window == 360)[0].numpy()
    change = simulated - clean
    assert correlation(change, made) > 0.99
    np.testing.assert_allclose(power(made) / power(change), 1, atol=0.25)
    # a table of radii a quarter of a pixel apart, read linearly, passes (2 + cos 2πk/4)/3 of the power: 0.9 at k = 0.5
    assert 0.99 * math.sqrt(0.9) < amplitude(made, change) < 1 / 0.99
    inner = profile(change, 55)
    np.testing.assert_allclose(profile(made, 55), inner, atol=0.1 * np.abs(inner).max())


def test_a_partial_stripe():
    detectors, first, views = 182, 100, 120
    sinogram = np.zeros((VIEWS, detectors, 1), np.float32)
    sinogram[first : first + views, 120] = 1.0
    angles = HALF.angles_rad({"start_angle_deg": 0.0})
    expected = FBP().reconstruct(sinogram, angles, (N, N, 1))[..., 0]
    stripe = torch.zeros(1, detectors)
    stripe[0, 120] = 1.0
    step = 180 / VIEWS
    made = artifacts.ring_pattern((N, N), stripe, first_angle_deg=(first - 0.5) * step, window_deg=views * step)
    assert correlation(expected, made[0]) > 0.99


def test_a_streak():
    sinogram = np.zeros((VIEWS, 182, 1), np.float32)
    sinogram[70, 110] = 1.0
    expected = FBP().reconstruct(sinogram, HALF.angles_rad({"start_angle_deg": 0.0}), (N, N, 1))[..., 0]
    made = artifacts.streaks(torch.zeros(1, N, N), [35.0], [110 - 90.5], [math.pi / VIEWS / 4])[0]
    np.testing.assert_allclose(made, expected, atol=1e-5 * float(expected.max()) + 1e-7)


def sinogram(sample, drawn, **parts):
    scanner = Scanner(**{"source": SOURCE, "geometry": HALF, "normalisation": "none"} | parts)
    return scanner.sinogram(sample, MATERIALS, VOXEL_UM, drawn, (N, N))[..., 0]


def test_partial_stripes(sample):
    stripes = Stripes(partial_share=0.02, error_sd=0.1)
    clean, _ = scan(sample)
    simulated, drawn = scan(sample, stripes=stripes)
    change = (sinogram(sample, drawn, stripes=stripes) - sinogram(sample, drawn)) / LINE_1
    made = torch.zeros(1, N, N)
    hit = np.flatnonzero(np.abs(change).max(0) > 1e-3)
    assert len(hit) > 1
    for k in hit:
        views = np.flatnonzero(np.abs(change[:, k]) > 1e-3)
        assert len(views) < VIEWS and views[-1] - views[0] == len(views) - 1
        stripe = torch.zeros(1, change.shape[1])
        stripe[0, k] = float(change[views, k].mean())
        step = 180 / VIEWS
        window = {"first_angle_deg": (views[0] - 0.5) * step, "window_deg": len(views) * step}
        made += artifacts.ring_pattern((N, N), stripe, **window)
    agree(clean, simulated, clean + made[0].numpy(), 0.99, power_within=0.25)


@pytest.mark.parametrize("full_turn", [0.0, 1.0], ids=["180", "360"])
def test_the_transform_makes_partial_stripes_as_a_scan_has_them(full_turn):
    """From what it drew: groups of stripes with a run of views each, and a gain of every pixel in all views."""
    transform = RandRingsd(
        "image", 1.0, gain_sd=0.3, error_sd=4.0, share=0.04, width_px=2, partial=1.0, full_turn=full_turn, centre=0.0
    ).set_random_state(4)
    made = transform({"image": torch.zeros(1, N, N)})["image"][0].numpy()
    p = transform.drawn
    views, range_deg, detectors = (2 * VIEWS, 360, 192) if full_turn else (VIEWS, 180, 192)
    assert p["angular_range_deg"] == range_deg and len(set(p["runs_deg"])) == RandRingsd.RUNS
    turned = (np.arange(views) + 0.5) * range_deg / views
    seeds = [p["seed"] + k for k in range(1 + RandRingsd.RUNS)]
    single = {"error_sd": 4.0, "share": 0.04 / RandRingsd.RUNS, "width_px": 2}
    sinogram = np.repeat(artifacts.random_stripes(detectors, 1, seed=seeds[0], gain_sd=0.3).numpy(), views, 0)
    for seed, start in zip(seeds[1:], p["runs_deg"], strict=True):
        now = (turned >= start) & (turned < start + p["window_deg"])
        assert 0.1 < now.mean() < 0.5
        sinogram[now] += artifacts.random_stripes(detectors, 1, seed=seed, **single).numpy()
    angles = np.deg2rad(p["first_angle_deg"] + turned)
    expected = FBP().reconstruct(np.ascontiguousarray(sinogram[..., None]), angles, (N, N, 1))[..., 0]
    assert correlation(made, expected) > 0.99
    assert 0.99 * math.sqrt(0.9) < amplitude(made, expected) < 1 / 0.99  # as in test_rings


def test_the_runs_of_partial_stripes_begin_as_in_the_simulator():
    """Anywhere, each by itself, so that the whole run lies within the scan: uniformly up to the scan less the run."""
    views, detectors, length = 180, 4000, 0.3
    stripes = Stripes(partial_share=0.5, error_sd=0.1, partial_length=length).draw(np.random.default_rng(0))
    on = add_stripes(np.ones((views, detectors), np.float32), stripes) != 1
    simulated = on[:, on.any(0)].argmax(0) / views / (1 - length)
    transform = RandRingsd("image", 1.0, partial=1.0, full_turn=0.0).set_random_state(0)
    ours, apart = [], 0
    for _ in range(300):
        p = transform.draw((16, 16))
        ours += [start / (180 - p["window_deg"]) for start in p["runs_deg"]]
        apart += max(p["runs_deg"]) - min(p["runs_deg"]) > 0.1 * (180 - p["window_deg"])
    # Kolmogorov and Smirnov: two samples of one distribution differ by more than this with a chance of 0.1 %
    n, m = len(ours), len(simulated)
    assert ks_2samp(ours, simulated).statistic < 1.95 * math.sqrt((n + m) / (n * m)) + 1 / (0.7 * views)
    # two of a uniform distribution lie within a tenth with a chance of 1 − 0.9² = 19 %
    assert abs(apart - 300 * 0.81) < 4 * math.sqrt(300 * 0.81 * 0.19)


def test_zingers(sample):
    detector = Detector(zingers=5e-4)
    clean, _ = scan(sample)
    simulated, drawn = scan(sample, detector=detector)
    change = (sinogram(sample, drawn, detector=detector) - sinogram(sample, drawn)) / LINE_1
    views, pixels = np.nonzero(np.abs(change) > 1e-3)
    assert 10 < len(views) < 60 and (change[views, pixels] < 0).all()
    heights = math.pi / (4 * VIEWS) * change[views, pixels]
    made = artifacts.streaks(tensor(clean), 180 / VIEWS * views, pixels - (change.shape[1] - 1) / 2, heights)[0].numpy()
    agree(clean, simulated, made, 0.99, power_within=0.1)


def test_the_spectrum_of_counting_noise(sample):
    photons, repeats = 1e4, 12
    clean, _ = scan(sample)
    simulated = [scan(sample, seed, detector=Detector(photons=photons))[0] - clean for seed in range(repeats)]
    sd = float(np.std(simulated))
    made = [
        (artifacts.reconstruction_noise(tensor(clean), sd, seed) - tensor(clean))[0].numpy() for seed in range(repeats)
    ]
    seen, expected = (np.mean([power(change) for change in noise], axis=0) for noise in (made, simulated))
    # values in a ring, half of them independent, in each of the two; the lowest ring is the sample's own shadow
    k = np.hypot(np.fft.fftfreq(N)[:, None], np.fft.fftfreq(N))
    rings = np.histogram(k, np.linspace(0, 0.5, 9))[0]
    np.testing.assert_array_less(np.abs(seen / expected - 1)[1:], (4 * np.sqrt(4 / (repeats * rings)))[1:] + 0.02)
    white = np.mean([power(np.random.default_rng(s).normal(0, sd, (N, N))) for s in range(repeats)], axis=0)
    assert np.abs(white / expected - 1).max() > 0.5


@pytest.mark.parametrize("psf_px", [0.0, 1.0, 3.0])
def test_the_spectrum_of_noise_behind_a_point_spread(psf_px):
    """Of an empty beam: behind an object the counts differ from place to place, which the blur smears."""
    detector, repeats = Detector(photons=1e4, psf_fwhm_px=psf_px), 24
    angles, hann = HALF.angles_rad({"start_angle_deg": 0.0}), np.hanning(N + 2)[1:-1]
    window = np.outer(hann, hann)  # a spectrum of what is not periodic leaks, to 1 % of the highest power
    open_beam = np.ones((VIEWS, 182, 1), np.float32)
    simulated = []
    for seed in range(repeats):
        counts = detector.detect(open_beam, None, detector.draw(np.random.default_rng(seed)))
        simulated.append(FBP().reconstruct(-np.log(counts), angles, (N, N, 1))[..., 0])
    sd = float(np.std(simulated))
    made = [artifacts.reconstruction_noise(torch.zeros(1, N, N), sd, seed, psf_px)[0] for seed in range(repeats)]
    seen, expected = (np.mean([power(np.asarray(noise) * window) for noise in many], 0) for many in (made, simulated))
    k = np.hypot(np.fft.fftfreq(N)[:, None], np.fft.fftfreq(N))
    rings = np.histogram(k, np.linspace(0, 0.5, 9))[0]
    free = repeats * rings / 2 * ((hann**2).mean() ** 2 / (hann**4).mean()) ** 2  # independent values
    there = expected > 1e-3 * expected.max()  # of the window's own leakage
    # besides, pixels of 360 views do not fall evenly between detectors: 1.3 % (docs/simulator.md)
    error = 4 * np.sqrt(2 / free) + 0.013
    np.testing.assert_array_less(np.abs(seen / expected - 1)[there], error[there])
    assert there.sum() >= 6 and error[1:].max() < 0.2


@pytest.mark.parametrize("psf_px", [0.0, 1.0, 2.0])
def test_noise_behind_a_point_spread_is_alike_in_neighbouring_slices(psf_px):
    slices, detector = 8, Detector(photons=1e4, psf_fwhm_px=psf_px)
    counts = detector.detect(np.ones((60, 200, slices), np.float32), None, detector.draw(np.random.default_rng(0)))
    made = artifacts.reconstruction_noise(torch.zeros(1, N, N, slices), 0.3, 1, psf_px)[0].numpy()
    assert made.std() == pytest.approx(0.3, rel=0.05)
    np.testing.assert_allclose(made.std((0, 1)), made.std(), rtol=0.05)

    def alike(volume, lag):
        return np.mean([correlation(volume[..., k], volume[..., k + lag]) for k in range(slices - lag)])

    # 60 × 200 readings and 128² pixels, of which the point spread, 2.3 px wide at 2, leaves a sixth of the first
    # independent (along one axis) and a twelfth of the second: 1/√2000 and 1/√1400, four times, added
    for lag in (1, 2, 4):
        assert alike(made, lag) == pytest.approx(alike(np.log(counts), lag), abs=4 * (1 / 2000 + 1 / 1400) ** 0.5)
    assert (alike(made, 1) > 0.6) == (psf_px == 2)


def test_where_counting_noise_is_strong():
    sample, voxel_um, repeats = build(0.85), 16.0, 20
    clean, drawn = scan(sample, voxel_um=voxel_um)
    scanner = Scanner(source=SOURCE, geometry=HALF)
    depth = float(scanner.sinogram(sample, MATERIALS, voxel_um, drawn, (N, N)).max())
    assert depth > 1.5
    variance = np.mean(
        [
            (scan(sample, seed, voxel_um=voxel_um, detector=Detector(photons=1e5))[0] - clean) ** 2
            for seed in range(repeats)
        ],
        axis=0,
    )
    made = artifacts.reconstruction_noise(tensor(clean).repeat(repeats, 1, 1), 1.0, 1, 0.0, depth) - tensor(clean)
    maps = [uniform_filter(m, 17)[8::16, 8::16] for m in (variance, (made**2).mean(0).numpy())]
    # 17² pixels of 20 images, a third independent: the mean square errs by √(2/1900) = 3.2 % where the map spans 100 %
    assert maps[0].max() / maps[0].min() > 2
    assert correlation(*maps) > 0.97
    ratio = (maps[1] / maps[1].mean()) / (maps[0] / maps[0].mean())
    np.testing.assert_allclose(ratio, 1, atol=4 * 0.032 * math.sqrt(2))


@pytest.mark.parametrize(("alpha", "fwhm"), [(0.3, 12.0), (0.7, 20.0)])
def test_halo(alpha, fwhm):
    sample = build(0.5)  # so far from the border that its mirror image does not matter
    clean, _ = scan(sample)
    simulated, _ = scan(sample, zernike=Zernike(alpha, fwhm))
    made = artifacts.halo(tensor(clean), alpha, fwhm)[0].numpy()
    assert correlation(simulated, made) > 0.999
    agree(clean, simulated, made, 0.995, power_within=0.1)


@pytest.mark.parametrize(("fwhm", "at_least"), [(1.5, 0.98), (4.0, 0.99)])
def test_point_spread(sample, fwhm, at_least):
    clean, _ = scan(sample)
    simulated, _ = scan(sample, detector=Detector(psf_fwhm_px=fwhm))
    sigma = fwhm / artifacts.FWHM_PER_SIGMA
    made = GaussianSmooth(math.sqrt(sigma**2 - 1 / 12))(tensor(clean))[0].numpy()
    agree(clean, simulated, made, at_least, power_within=0.2)
    # a weight of MONAI's is the mean of the Gaussian over a pixel, which adds the variance of a pixel
    wide = GaussianSmooth(sigma)(tensor(clean))[0].numpy()
    excess = amplitude(wide - clean, simulated - clean) - 1
    # what a blur takes goes as its variance where it is weak; where it is strong all is gone, whatever the blur
    assert 0 < excess < 1 / 12 / sigma**2
    assert fwhm > 2 or excess > 0.1


@pytest.mark.parametrize("fraction", [0.2, 1.0])
def test_scatter(sample, fraction):
    clean, drawn = scan(sample)
    depth = float(Scanner(source=SOURCE, geometry=HALF).sinogram(sample, MATERIALS, VOXEL_UM, drawn, (N, N)).max())
    simulated, _ = scan(sample, scatter=Scatter(fraction, 60))
    made = artifacts.scatter(tensor(clean), fraction, depth, 60.0)[0].numpy()
    # the coarse scan's pixel is 2 of the image's: its cylinder of radius 54 ends up to half of one, 1 in 54, off
    agree(clean, simulated, made, 0.99, lost=1 / 54)
    change = profile(simulated - clean, 50)
    np.testing.assert_allclose(profile(made - clean, 50), change, atol=0.1 * np.abs(change).max())


HARD = Tube(filters_mm={"Al": 1.0}, energy_step_kev=0.5)


def lines(source, sample, materials=MATERIALS, voxel_um=VOXEL_UM):
    """Line integrals, flat float64."""
    scanner = Scanner(source=source, geometry=HALF)
    drawn = scanner.draw(np.random.default_rng(3))
    return scanner.sinogram(sample, materials, voxel_um, drawn, (N, N)).ravel().astype(float)


def hardening_law(one, tube):
    """Of line integrals p of one energy and those of the tube: tube = slope · p (1 − strength p/top), by least squares.

    Third, what this misses, as a share of the loss.
    """
    slope, square = np.linalg.lstsq(np.stack([one, one**2], 1), tube, rcond=None)[0]
    loss = tube / slope - one
    return slope, -square / slope * one.max(), amplitude(loss - square / slope * one**2, loss)


# A coarse scan averages and interpolates some seven times, in pixels of 2, each passing sinc 2k of the amplitude:
# 0.992⁷ at k = 0.035, where nine tenths of the power of the loss lie, 0.947⁷ at k = 0.09, where the rest is
COARSE = 1 - math.sqrt(0.9 * 0.992**14 + 0.1 * 0.947**14)


def hardened(clean, strength, one, voxel_um=VOXEL_UM):
    """With a strength that was fitted to the lines ``one``; the densest that the image version has is a coarse one."""
    small = SmallScan(tensor(clean))
    densest = float(small.largest) * small.step * LINE_1 * voxel_um / VOXEL_UM
    return artifacts.harden(tensor(clean), strength * densest / one.max())[0].numpy()


@pytest.mark.parametrize("voxel_um", [1.0, 4.0])
def test_beam_hardening_of_one_material(sample, voxel_um):
    two = np.stack([sample[0] + sample[1], sample[2]])
    scanned = {"voxel_um": voxel_um, "materials": [MATERIALS[0], MATERIALS[2]]}
    one, tube = (lines(source, two, **scanned) for source in (SOURCE, HARD))
    slope, strength, missed = hardening_law(one, tube)
    clean, hard = (scan(two, source=source, **scanned)[0] for source in (SOURCE, HARD))
    made = hardened(clean, strength, one, voxel_um)
    agree(clean, hard / slope, made, 0.98, lost=COARSE + missed)


def test_beam_hardening_of_two_materials(sample):
    one, tube = (lines(source, sample) for source in (SOURCE, HARD))
    slope, strength, missed = hardening_law(one, tube)
    clean, hard = (scan(sample, source=source)[0] for source in (SOURCE, HARD))
    made = hardened(clean, strength, one)
    agree(clean, hard / slope, made, 0.97, lost=COARSE + missed)

    def in_grey(image):  # as a picture is scaled: what differs from place to place is left
        return image / ((image * clean).sum() / (clean * clean).sum())

    assert correlation(in_grey(hard) - clean, in_grey(made) - clean) > 0.8
    flat = max(correlation(hard, artifacts.cupping(tensor(clean), d, 0.85 * N / 2)[0]) for d in (0.1, 0.2, 0.3, 0.4))
    assert 1 - correlation(hard, made) < 0.5 * (1 - flat) < 0.5 * (1 - correlation(hard, clean))


@pytest.mark.parametrize("voxel_um", [0.5, 4.0])
def test_cupping_of_a_cylinder(voxel_um):
    at = np.arange(3 * N) - (3 * N - 1) / 2
    labels = (np.hypot(at[:, None], at) < 0.85 * N * 3 / 2).astype(np.uint8)
    cylinder, materials = phase_fractions(labels, 2, (3, 3)), [LIBRARY["air"], LIBRARY["NMC532"]]
    scanned = {"voxel_um": voxel_um, "materials": materials}
    hard, _ = scan(cylinder, source=HARD, **scanned)
    radius = 0.85 * N / 2
    one, tube = lines(SOURCE, cylinder, **scanned), lines(HARD, cylinder, **scanned)
    slope, strength, _ = hardening_law(one, tube)
    inner = profile(hard, round(0.9 * radius)) / slope

    def cup(depth, power):
        made = artifacts.cupping(torch.ones(1, N, N), depth, radius, power=power)[0].double().numpy()
        return profile(made, len(inner))

    # By Abel the chords p of a cylinder reconstruct to 1, their squares to 4/π √(1 − ρ²), the cubes and fourth powers
    # that the law misses to 3/2 (1 − ρ²) and 16/3π (1 − ρ²)^1½. Besides, three standard errors of the chords of 360
    # views, 0.58/√360 px of the radius
    top = one.max()
    terms = np.linalg.lstsq(np.stack([(one / top) ** k * top for k in (1, 2, 3, 4)], 1), tube, rcond=None)[0]
    chord = np.sqrt(1 - (np.arange(len(inner)) + 0.5) ** 2 / radius**2)
    factors = [1, 4 / math.pi, 3 / 2, 16 / (3 * math.pi)]
    whole = sum(term * factor * chord**k for k, (term, factor) in enumerate(zip(terms, factors, strict=True))) / slope
    error = 3 * 0.58 / math.sqrt(VIEWS) / radius
    np.testing.assert_allclose(inner, whole, atol=error)
    missed = np.abs(1 - 4 / math.pi * strength * chord - whole).max()  # by the law of squares
    np.testing.assert_allclose(cup(4 / math.pi * strength, 0.5), inner, atol=error + missed)
    assert max(correlation(inner, cup(0.2, power)) for power in (0.5, 1.0)) > 0.99
    if voxel_um == 0.5:  # weak: the square of the chord is all there is
        assert correlation(inner, cup(0.2, 0.5)) > correlation(inner, cup(0.2, 1.0))


@pytest.mark.parametrize("diameter", [1.6, 2.0])
def test_the_rim_of_local_tomography(diameter):
    sample = build(diameter, (2 * N, 2 * N))
    larger = scan(sample, shape=(2 * N, 2 * N))[0]
    whole = larger[N // 2 : -N // 2, N // 2 : -N // 2]
    cut, _ = scan(sample)
    field = N / math.sqrt(2)  # the detector sees the diagonal
    made = artifacts.local_tomography(torch.zeros(1, N, N), 1.0, field, outer=diameter * N / 2 / field)[0].numpy()
    simulated = cut - whole
    inside = round(field) - 3
    rim = profile(simulated, inside), profile(made, inside)
    assert correlation(*rim) > 0.99
    # P/(πa): of the lines that are cut off the one at the field's edge is the longest and weighs most, 1/u²
    disc = np.hypot(*np.ogrid[0.5 - N : N, 0.5 - N : N]) < diameter * N / 2 - 1
    grey = float(larger[disc].mean())
    chords = 2 * np.sqrt((diameter * N / 2) ** 2 - np.linspace(field, diameter * N / 2, 1000) ** 2)
    strength = (rim[0] * rim[1]).sum() / (rim[1] ** 2).sum()
    assert chords.mean() * grey / (math.pi * field) < strength < chords[0] * grey / (math.pi * field)
