"""The whole scan: Beer–Lambert against independent sums, and what each part must do to the image, in closed form."""

import dataclasses

import astra
import numpy as np
import pytest
from scipy import fft
from scipy.ndimage import gaussian_filter

from data_gen.artifacts import (
    ExposureDrift,
    Motion,
    Propagation,
    Scatter,
    Stripes,
    Zernike,
    exposure,
    fresnel_number,
    trajectory,
)
from data_gen.detector import Detector, penumbra_px
from data_gen.geometry import ConeBeam, ParallelBeam
from data_gen.materials import LIBRARY, Material
from data_gen.reconstruction import CGLS, FBP, SIRT, Paganin
from data_gen.scan import NORMALISATIONS, Scanner, merge_energies, transmission
from data_gen.spectrum import Monochromatic, NarrowBand, Tube

EPS = 2.0**-24  # rounding of float32
UM = 1e-4  # cm
AIR, NMC, NICKEL = (LIBRARY[name] for name in ("air", "NMC532", "Ni"))
TUBE = Tube(energy_step_kev=1.0, filters_mm={"Al": 1.0})
GAIN = np.pi / 2  # of the ramp with linear interpolation: π Σ|h|, as h is 1/4, then -1/(πn)² at odd n


def disc(n, radius, fine=8, centre=(0.0, 0.0)):
    """Fractions of background and disc, (2, n, n); ``centre`` (row, column) in pixels from the middle."""
    at = (np.arange(n * fine) + 0.5) / fine - n / 2
    inside = (at[:, None] - centre[0]) ** 2 + (at[None] - centre[1]) ** 2 <= radius**2
    share = inside.reshape(n, fine, n, fine).mean((1, 3)).astype(np.float32)
    return np.stack([1 - share, share])


def ball(n, radius, fine=3):
    """Fractions of background and ball, (2, n, n, n)."""
    at = ((np.arange(n * fine) + 0.5) / fine - n / 2) ** 2
    inside = at[:, None, None] + at[:, None] + at <= radius**2
    share = inside.reshape(n, fine, n, fine, n, fine).mean((1, 3, 5)).astype(np.float32)
    return np.stack([1 - share, share])


def two_phases(shape, seed=0):
    """Random fractions of two phases, float32 (2, *shape)."""
    share = np.random.default_rng(seed).random(shape).astype(np.float32)
    return np.stack([1 - share, share])


def radii_of(n):
    at = np.arange(n) + 0.5 - n / 2
    return np.hypot(at[:, None], at[None])


@pytest.fixture(scope="module")
def unfiltered():
    return Tube().spectrum()


def scanner(n_angles=180, **changes):
    return Scanner(
        **{"source": Monochromatic(40.0), "geometry": ParallelBeam(n_angles), "normalisation": "none"} | changes
    )


def scan(source, fractions, materials=(AIR, NMC), voxel_size_um=1.0, shape=None, seed=0, **parameters):
    """The image; ``parameters`` change what was drawn."""
    rng = np.random.default_rng(seed)
    drawn = source.draw(rng) | parameters
    return source.scan(fractions, list(materials), voxel_size_um, drawn, rng, shape)[0]


def views_of(source, fractions, materials=(AIR, NMC), voxel_size_um=1.0, seed=0, shape=None):
    """What the scanner measures of a 2D sample or a volume: (beam, sinogram, drawn)."""
    drawn = source.draw(np.random.default_rng(seed))
    stack = fractions if fractions.ndim == 4 else fractions[..., None]
    factors = source.subvoxels(fractions.ndim - 1)
    shape = shape or tuple(n // f for n, f in zip(fractions.shape[1:], factors, strict=True))
    beam = source.project(stack, list(materials), voxel_size_um, source._views(drawn), shape)
    signal = beam.signal.copy()
    return signal, source.measure(beam, drawn, voxel_size_um), drawn


def float32_error(n_energies, deepest):
    """Of sums of n terms 2^-x with x rounded three times, each within 2.4e-7 (test_ray_kernels.py), relative."""
    return (n_energies / 2 + 4 * deepest) * EPS + 2.4e-7


def test_transmission_through_one_slab(unfiltered):
    mu = NMC.attenuation_1_cm(unfiltered.energies_kev)
    thickness = np.array([0.0, 1.0, 10.0, 100.0]) * UM
    expected = [sum(w * np.exp(-m * t) for w, m in zip(unfiltered.weights, mu, strict=True)) for t in thickness]
    result = transmission(thickness[None], mu[None], unfiltered.weights)
    np.testing.assert_allclose(result, expected, rtol=float32_error(mu.size, 20))
    assert result[0] == pytest.approx(1, abs=1e-6)


def test_transmission_through_two_materials_and_any_shape(unfiltered):
    mu = np.stack([m.attenuation_1_cm(unfiltered.energies_kev) for m in (NMC, NICKEL)])
    paths = np.random.default_rng(0).uniform(0, 50, (2, 30, 41)) * UM  # 1230 rays: more than a block, and a rest
    expected = np.zeros((30, 41))
    for w, m in zip(unfiltered.weights, mu.T, strict=True):
        expected += w * np.exp(-m[0] * paths[0] - m[1] * paths[1])
    result = transmission(paths, mu, unfiltered.weights)
    assert result.shape == (30, 41) and result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=float32_error(mu.shape[1], 20))


def test_one_energy_is_one_exponential():
    result = transmission(np.array([[0.3], [0.2]]), np.array([[2.0], [5.0]]), np.ones(1))
    assert result[0] == pytest.approx(np.exp(-1.6), rel=1e-6)


@pytest.mark.parametrize("materials", [[NMC], [NICKEL], [AIR, NMC], [NMC, NICKEL, LIBRARY["YSZ"]]])
def test_merging_keeps_the_weight_and_the_first_moment(unfiltered, materials):
    mu = np.stack([m.attenuation_1_cm(unfiltered.energies_kev) for m in materials])
    weights, merged = merge_energies(unfiltered.weights, mu)
    assert weights.sum() == pytest.approx(unfiltered.weights.sum(), rel=1e-13)
    np.testing.assert_allclose(merged @ weights, mu @ unfiltered.weights, rtol=1e-13)
    assert weights.size < unfiltered.weights.size / 5  # "some 200 groups" of 1390


@pytest.mark.parametrize("material", [NMC, NICKEL], ids=["NMC532", "Ni"])
def test_merging_keeps_the_attenuation_of_a_path(unfiltered, material):
    mu = material.attenuation_1_cm(unfiltered.energies_kev)
    weights, merged = merge_energies(unfiltered.weights, mu[None])
    paths = np.geomspace(0.1, 300, 50)[:, None] * UM
    before = -np.log(np.exp(-paths * mu) @ unfiltered.weights)
    after = -np.log(np.exp(-paths * merged[0]) @ weights)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4)  # the promise of the docstring


def test_merging_errs_by_no_more_than_the_spread_allows():
    rng = np.random.default_rng(0)
    mu = np.sort(rng.uniform(1, 30, (1, 4000)))
    share = rng.random(4000)
    share /= share.sum()
    for spread in (0.02, 0.1, 0.3):
        weights, merged = merge_energies(share, mu, spread)
        for path in (0.03, 0.1, 0.3):
            exact = share @ np.exp(-mu[0] * path)
            error = exact - weights @ np.exp(-merged[0] * path)
            # Popoviciu: the variance in a group is at most (µ spread / 2)²; half of it times the second derivative
            bound = weights @ ((merged[0] * path * spread) ** 2 / 8 * np.exp(-merged[0] * path / (1 + spread)))
            assert -1e-12 <= error <= bound  # Jensen: merged groups transmit less


def test_merging_never_crosses_an_edge(unfiltered):
    mu = NICKEL.attenuation_1_cm(unfiltered.energies_kev)
    _, merged = merge_energies(unfiltered.weights, mu[None], 0.05)
    below, above = NICKEL.attenuation_1_cm([8.32, 8.345])  # the K edge at 8.333 keV, a jump of more than 5
    between = merged[0][(merged[0] > below * 1.06) & (merged[0] < above / 1.06)]
    soft = NICKEL.attenuation_1_cm(unfiltered.energies_kev[unfiltered.energies_kev < 8.33])
    hard = NICKEL.attenuation_1_cm(unfiltered.energies_kev[unfiltered.energies_kev > 8.34])
    for value in between:  # each group is a value that the table has, within the spread
        assert min(np.abs(np.concatenate([soft, hard]) / value - 1)) <= 0.05


def test_merging_leaves_one_energy_alone():
    weights, merged = merge_energies(np.ones(1), np.array([[2.0], [3.0]]))
    assert weights.tolist() == [1.0] and merged.tolist() == [[2.0], [3.0]]


# One energy, a spectrum


@pytest.mark.parametrize("material", [NMC, NICKEL], ids=["NMC532", "Ni"])
def test_one_energy_returns_the_attenuation_of_the_table(material):
    n, radius = 96, 40
    image = scan(scanner(360), disc(n, radius), (AIR, material), 0.5)
    mu = material.attenuation_1_cm(40.0)
    interior = image[radii_of(n) < radius - 4]
    assert image.dtype == np.float32 and image.shape == (n, n)
    # chords err by 0.13 of 80 pixels on average and √2/√6 each: derived in test_projection.py
    assert interior.mean() == pytest.approx(mu, rel=0.13 / 80)
    assert interior.std() / mu < np.sqrt(2 / 6) * np.sqrt((np.pi**2 / 18 - 1 / 6) / 360)


def test_one_energy_does_not_depend_on_the_voxel_size_nor_on_the_order_of_phases():
    fractions = disc(48, 18)
    fine = scan(scanner(90), fractions, voxel_size_um=0.1)
    coarse = scan(scanner(90), fractions, voxel_size_um=2.0)
    swapped = scan(scanner(90), fractions[::-1], (NMC, AIR), 2.0)
    # T near 1 within 2.4e-7 + EPS (float32_error), as -ln T, over a pixel, by the largest gain of the ramp
    error = GAIN * (2.4e-7 + 4 * EPS)
    np.testing.assert_allclose(coarse, fine, rtol=0, atol=error / (0.1 * UM) + error / (2 * UM))
    # and the sum over the other phase: 48 √2 terms of one voxel, µ = 12 / cm
    np.testing.assert_allclose(swapped, coarse, rtol=0, atol=2 * error / (2 * UM) + GAIN * 12 * 48**2 * EPS)


def test_a_tube_cups_and_one_energy_does_not():
    n, radius = 128, 50  # 0.1 mm of NMC532 behind 1 mm of aluminium: 8.5 % (printed to half a per cent)
    far = radii_of(n)
    depth = {}
    counting = Detector(response="photon_counting")  # the figure is that of photons, not of their energy
    for name, source in (
        ("tube", Tube(filters_mm={"Al": 1.0}, energy_step_kev=0.5)),
        ("mono", Monochromatic(40.0)),
    ):
        image = scan(scanner(360, source=source, detector=counting), disc(n, radius))
        centre, edge = image[far < 10].mean(), image[(far > radius - 8) & (far < radius - 3)].mean()
        depth[name] = 1 - centre / edge
    assert depth["tube"] == pytest.approx(0.085, abs=0.005)
    assert abs(depth["mono"]) < 0.13 / 80 * 2  # both means err as in the test above


def test_an_integrating_detector_hardens_less_than_a_counting_one():
    cup = {}
    for response in ("energy_integrating", "photon_counting"):
        image = scan(scanner(source=TUBE, detector=Detector(response=response)), disc(96, 40), voxel_size_um=1.25)
        far = radii_of(96)
        cup[response] = 1 - image[far < 8].mean() / image[(far > 32) & (far < 37)].mean()
    assert 0.01 < cup["energy_integrating"] < cup["photon_counting"]  # its spectrum is harder: weights w·E


@pytest.mark.parametrize("response", ["energy_integrating", "photon_counting"])
def test_the_signal_is_the_sum_over_the_detected_spectrum(response):
    detector = Detector(response=response, scintillator="CsI", scintillator_um=100.0)
    spectrum = TUBE.spectrum()
    energies, w = spectrum.energies_kev, spectrum.weights
    detected = w * -np.expm1(-LIBRARY["CsI"].attenuation_1_cm(energies) * 100 * UM)
    if response == "energy_integrating":
        detected = detected * energies
    slab = np.ones((2, 24, 24), np.float32)
    slab[0] = 0  # NMC532 all over: at 0° a ray of each pixel crosses 24 of it
    source = scanner(1, source=TUBE, detector=detector)
    signal, _, _ = views_of(source, slab, voxel_size_um=3.0)
    expected = detected @ np.exp(-NMC.attenuation_1_cm(energies) * 24 * 3.0 * UM) / detected.sum()
    # the merged energies are within 1e-4 of -ln T (above); the rays of the middle lie on pixels
    assert -np.log(signal[0, 15:19, 0]) == pytest.approx(-np.log(expected), abs=1e-4 + float32_error(140, 3))


def test_hardening_makes_less_of_a_thicker_object():
    tube = Tube(energy_step_kev=0.5, filters_mm={"Al": 0.5})
    source = scanner(90, source=tube, detector=Detector(response="photon_counting"))
    thin, thick = (scan(source, disc(48, 18), voxel_size_um=size)[20:28, 20:28].mean() for size in (0.01, 2.0))
    spectrum = tube.spectrum()
    mean_mu = spectrum.weights @ NMC.attenuation_1_cm(spectrum.energies_kev)
    assert thick < 0.95 * thin
    # 0.36 µm: -ln T ≤ <µ> L, and short of it by var(µ) L / 2, which the table gives; then the error of the chords
    variance = spectrum.weights @ NMC.attenuation_1_cm(spectrum.energies_kev) ** 2 - mean_mu**2
    # and the weights, which sum to 1 within a rounding for each of 140 groups, over the pixel
    rounding = float32_error(140, 1) * np.sqrt(1 / 90) / (0.01 * UM)
    assert mean_mu - variance * 0.36 * UM < thin * (1 + 0.13 / 36 * 4) + rounding
    assert thin < mean_mu * (1 + 0.13 / 36 * 4) + rounding


def test_beside_the_object_the_beam_is_open():
    """A ray that misses the image has crossed nothing: the signal is 1, also after binning and at every energy."""
    for q in (1, 3):
        source = scanner(8, source=TUBE, geometry=ParallelBeam(8, 180.0, 0.0), oversampling=q)
        signal, sinogram, _ = views_of(source, disc(24 * q, 8 * q, fine=3))
        beside = signal[0, :3, 0]  # 34 detectors of 24 pixels, at 0°: five on either side see nothing
        assert beside == pytest.approx(1, abs=float32_error(140, 0))
        assert sinogram[0, :3, 0] == pytest.approx(0, abs=float32_error(140, 0))


# Sampling


def chords(angles, detectors, radius, centre, aperture=40):
    """Chords of a disc, ``aperture`` rays for each detector: (angles, detectors, aperture), in pixels."""
    u = (np.arange(detectors * aperture) + 0.5) / aperture - detectors / 2
    offset = u - (centre[1] * np.cos(angles)[:, None] - centre[0] * np.sin(angles)[:, None])
    return 2 * np.sqrt(np.clip(radius**2 - offset**2, 0, None)).reshape(len(angles), detectors, aperture)


@pytest.mark.parametrize("centre", [(0.0, 0.0), (3.3, -2.2)])
def test_oversampling_comes_closer_to_the_analytic_scan(centre):
    """No inverse crime: the object of the projection is not the grid of the reconstruction."""
    n, radius, size, vacuum = 48, 15, 20.0, Material("H", 1e-9)
    mu, error = NMC.attenuation_1_cm(40.0), {}
    for q in (1, 3, 5):
        fractions = disc(n * q, radius * q, 5, tuple(c * q for c in centre))
        source = scanner(90, oversampling=q)
        _, sinogram, drawn = views_of(source, fractions, (vacuum, NMC), size)
        angles = source.geometry.angles_rad(drawn["geometry"])
        intensity = np.exp(-mu * size * UM * chords(angles, sinogram.shape[1], radius, centre)).mean(-1)
        error[q] = np.sqrt(np.mean((sinogram[..., 0] + np.log(intensity)) ** 2))
    # Joseph's steps at the edges are 1/q of a voxel: the error falls as 1/q at least, and the aperture is a pixel's
    assert error[3] < error[1] / 3 and error[5] < error[1] / 5


@pytest.mark.parametrize("geometry", [ParallelBeam(12, 180.0, 2.0), ConeBeam(12, 360.0, 2.0, source_object_mm=0.1)])
def test_a_binned_detector_is_the_mean_intensity_of_the_fine_one(geometry):
    q, n = 3, 20
    fractions = two_phases((n * q, n * q))
    coarse, _, _ = views_of(scanner(geometry=geometry, oversampling=q), fractions, voxel_size_um=1.0)
    # the same rays: a voxel that is three times smaller, and a detector of three times as many
    fine, _, _ = views_of(scanner(geometry=geometry), fractions, voxel_size_um=1 / 3)
    wide, k = coarse.shape[1] * q, (coarse.shape[1] * q - fine.shape[1]) // 2
    assert (wide - fine.shape[1]) % 2 == 0  # the pixels coincide
    padded = np.pad(fine[..., 0], ((0, 0), (k, k)), constant_values=1)
    expected = padded.reshape(12, -1, q).mean(-1)
    np.testing.assert_allclose(coarse[..., 0], expected, rtol=0, atol=1e-6)  # roundings of the path, µ·L < 0.1


def test_an_oversampled_cone_is_binned_along_the_axis_too():
    q, n = 3, 12
    source = scanner(geometry=ConeBeam(20, source_object_mm=0.2), oversampling=q)
    assert source.subvoxels(3) == (3, 3, 3) and source.subvoxels(2) == (3, 3)
    assert scanner(oversampling=q).subvoxels(3) == (3, 3, 1)
    image = scan(source, ball(n * q, 4.5 * q, 1), voxel_size_um=1.0)
    assert image.shape == (n, n, n)
    # 9 voxels of diameter at ⅓ voxel: chords err by √3/3 each at most (test_projection.py), random over 20 views and
    # the 7 voxels; what the fan of ±2° and FDK add is below it
    middle = image[5:7, 5:7, 5:7].mean()
    assert middle == pytest.approx(NMC.attenuation_1_cm(40.0), rel=np.sqrt(3) / 3 / 9)


@pytest.mark.parametrize(
    ("shape", "asked", "oversampling"),
    [
        ((25, 24), None, 3),
        ((24, 24), (9, 8), 3),
        ((16, 16), (24, 24), 1),
        ((24, 24), (8, 8, 8), 1),
        ((9, 9, 4), (9, 9), 1),
    ],
)
def test_sub_voxels_that_do_not_fit_get_a_clear_error(shape, asked, oversampling):
    with pytest.raises(ValueError, match=r"fractions of .* must be at least .* times .*, whole voxels") as caught:
        scan(scanner(4, oversampling=oversampling), two_phases(shape), shape=asked)
    assert "\n" not in str(caught.value)


def test_every_sample_of_a_batch_is_checked():
    good, bad = two_phases((24, 24)), two_phases((16, 24))
    source, rng = scanner(4), np.random.default_rng(0)
    drawn = source.draw(rng)
    with pytest.raises(ValueError, match=r"fractions of \(16, 24\)"):
        source.scan_all([good, bad], [AIR, NMC], 1.0, [drawn] * 2, [rng] * 2)


# Backends and reconstructions


@pytest.mark.parametrize("geometry", [ParallelBeam(40, 180.0, 5.0, centre_offset_px=1.5), ParallelBeam(40, 360.0)])
@pytest.mark.parametrize("motion", [None, Motion(jitter_px=1.0, growth=0.1)])
def test_astra_measures_what_the_compiled_kernels_do(geometry, motion, monkeypatch):
    monkeypatch.setattr(astra, "use_cuda", lambda: False)
    fractions = two_phases((30, 36))
    ours, theirs = (
        views_of(scanner(geometry=geometry, motion=motion, backend=b), fractions)[1] for b in ("compiled", "astra")
    )
    # positions up to half the diagonal of 47 in ASTRA's float32, four roundings, at each of 47 samples, for each of two
    # phases, dilated by 1.1 at most; over -ln T: T near 1 within 2.4e-7 and a rounding
    error = 2 * 47 * 23.5 * 4 * EPS * 1.1 * NMC.attenuation_1_cm(40.0) * UM + 2 * 3e-7
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=error)


def test_astra_scans_a_disc_as_the_compiled_kernels_do(monkeypatch):
    monkeypatch.setattr(astra, "use_cuda", lambda: False)
    n, radius = 96, 40
    ours, theirs = (
        scan(scanner(180, backend=b), disc(n, radius))[radii_of(n) < radius - 4] for b in ("compiled", "astra")
    )
    mu = NMC.attenuation_1_cm(40.0)
    # the chords are the same, and err by √2/√6 each: two ways of smearing them back can differ by that at most
    assert (ours - theirs).std() < mu * np.sqrt(2 / 6) * np.sqrt((np.pi**2 / 18 - 1 / 6) / 180)
    for interior in (ours, theirs):
        assert interior.mean() == pytest.approx(mu, rel=0.13 / 80)


def test_astra_scans_a_fan_within_the_discretisation(monkeypatch):
    monkeypatch.setattr(astra, "use_cuda", lambda: False)
    n, radius = 64, 24
    geometry = ConeBeam(120, source_object_mm=0.2)
    ours, theirs = (
        scan(scanner(geometry=geometry, backend=b), disc(n, radius))[radii_of(n) < radius - 4]
        for b in ("compiled", "astra")
    )
    # chords err by √2/√6 (Joseph) and √2/√6·√2 (pixels) each: as noise through FBP; a mean of 0.13 of 48 pixels each
    sd = NMC.attenuation_1_cm(40.0) * np.sqrt((2 / 6 + 4 / 6) * (np.pi**2 / 18 - 1 / 6) / 120)
    assert abs(ours.mean() / theirs.mean() - 1) < 2 * 0.13 / 48
    assert (ours - theirs).std() < sd


@pytest.mark.parametrize("reconstruction", [SIRT(iterations=200), CGLS(iterations=20)])
def test_iterative_reconstructions_return_the_attenuation(reconstruction):
    n, radius = 32, 12
    image = scan(scanner(60, reconstruction=reconstruction), disc(n, radius))
    # fits the chords, which err by 0.13 of 24 pixels on average (test_projection.py); SIRT is not done at the edge
    assert image[radii_of(n) < radius - 4].mean() == pytest.approx(NMC.attenuation_1_cm(40.0), rel=2 * 0.13 / 24)


# Batches


def some_scanners():
    drift = Motion(drift_px=[1, 3], jitter_px=0.2)
    camera = Detector(photons=[500, 2000], psf_fwhm_px=1.5, flat_drift=0.02, zingers=1e-3, bits=12)
    return {
        "plain": scanner(20),
        "tube": scanner(20, source=TUBE, detector=camera, noise_sd=[0.01, 0.02], normalisation="range"),
        "drawn start": scanner(geometry=ParallelBeam(20, start_angle_deg=[0, 90], centre_offset_px=[-2, 2])),
        "drawn motion": scanner(20, motion=drift),
        "artefacts": scanner(
            20,
            stripes=Stripes(gain_sd=0.02, partial_share=0.1),
            scatter=Scatter(fraction=[0.1, 0.3], fwhm_px=10.0),
            exposure_drift=ExposureDrift(walk_sd=0.01),
            zernike=Zernike(alpha=0.3, fwhm_px=8.0),
            propagation=Propagation(distance_mm=0.5),
            ring_filter="sorting",
        ),
        "oversampled": scanner(20, oversampling=3),
        "fan": scanner(geometry=ConeBeam(20, start_angle_deg=[0, 90], source_object_mm=0.1)),
        "sirt": scanner(20, reconstruction=SIRT(iterations=3)),
    }


@pytest.mark.parametrize("name", list(some_scanners()))
def test_a_sample_does_not_depend_on_its_batch(name):
    source = some_scanners()[name]
    q, count = source.oversampling, 19  # a block of 16, and a rest
    samples = [two_phases((15 * q, 18 * q), seed) for seed in range(count)]

    def together(indices):
        rngs = [np.random.default_rng(100 + i) for i in indices]
        drawn = [source.draw(rng) for rng in rngs]
        return source.scan_all([samples[i] for i in indices], [AIR, NMC], 1.0, drawn, rngs)

    batch = together(range(count))
    for indices in ([0], [17], [18, 3]):
        for i, (image, facts) in zip(indices, together(indices), strict=True):
            assert image.shape == (15, 18) and image.dtype == np.float32
            np.testing.assert_array_equal(image, batch[i][0])
            assert facts == batch[i][1]
    assert not np.array_equal(batch[0][0], batch[1][0])


def test_samples_of_two_sizes_can_be_scanned_in_one_call():
    source, sizes = scanner(12), (24, 32, 24)
    samples, drawn = [two_phases((n, n), n) for n in sizes], source.draw(np.random.default_rng(0))
    results = source.scan_all(samples, [AIR, NMC], 1.0, [drawn] * 3, [np.random.default_rng(0)] * 3, (24, 24))
    for sample, (image, _) in zip(samples, results, strict=True):
        alone = source.scan(sample, [AIR, NMC], 1.0, drawn, np.random.default_rng(0), (24, 24))[0]
        np.testing.assert_array_equal(image, alone)


@pytest.mark.parametrize("n_slices", [1, 3, 17])
def test_a_flat_sample_is_a_slice_of_a_volume(n_slices):
    fractions = two_phases((24, 30, n_slices))
    source = scanner(30, source=TUBE)
    volume = scan(source, fractions)
    assert volume.shape == (24, 30, n_slices)
    for k in {0, n_slices // 2, n_slices - 1}:
        np.testing.assert_array_equal(volume[..., k], scan(source, fractions[..., k]))


def changed_slices(source, slices=21, changed=9):
    """Which slices of a volume's image change with the content of one slice."""
    fractions = two_phases((16, 16, slices))
    before = scan(source, fractions)
    fractions[..., changed] = fractions[::-1, ..., changed]
    return np.flatnonzero(np.any(scan(source, fractions) != before, axis=(0, 1))) - changed


def test_slices_are_independent_unless_a_part_couples_them():
    for source in (
        scanner(20, source=TUBE),
        scanner(20, detector=Detector(flat_drift=0.02, bits=12), motion=Motion(jitter_px=0.5)),
        scanner(20, stripes=Stripes(gain_sd=0.05), exposure_drift=ExposureDrift(decay=0.1)),
    ):
        assert changed_slices(source).tolist() == [0]


def test_point_spread_and_phase_contrast_couple_the_slices():
    # a Gaussian of σ = 0.85 pixels: 1.5e-5 at 4 and, below the rounding of float32, 3e-8 at 5
    assert changed_slices(scanner(20, detector=Detector(psf_fwhm_px=2.0))).tolist() == list(range(-4, 5))
    # the divergence of a flux between neighbours, one slice either way
    assert changed_slices(scanner(20, propagation=Propagation(distance_mm=0.5))).tolist() == [-1, 0, 1]
    assert len(changed_slices(scanner(20, scatter=Scatter(fraction=0.2, fwhm_px=4.0)))) > 5
    assert len(changed_slices(scanner(20, zernike=Zernike(alpha=0.2, fwhm_px=4.0)))) > 5
    assert len(changed_slices(scanner(geometry=ConeBeam(20, source_object_mm=0.05)))) > 1


# Field of view


@pytest.mark.parametrize("padding", ["zero", "edge"])
def test_local_tomography_in_closed_form(padding):
    """The ramp's kernel is -1/(2π²u²) away from 0: the centre of a disc that sticks out is an integral of its chords.

    Over |u| < a, the half width of the detector, the chord is 2√(R² - u²); beyond it 0 or, with ``edge``, its last
    value, up to the longest lag e of the cyclic convolution, beyond which there is nothing.
    """
    n, radius = 48, 72
    image = scan(scanner(360, reconstruction=FBP(padding=padding)), disc(160, radius), shape=(n, n))
    assert image.shape == (n, n)
    detectors = int(np.ceil(np.hypot(n, n)))
    a, e = detectors / 2, fft.next_fast_len(detectors, real=True)
    last = np.sqrt(radius**2 - a**2)
    beyond = last if padding == "edge" else 0.0
    expected = np.arcsin(a / radius) - (radius - last) / a + (radius - beyond) * (1 / a - 1 / e) + radius / e
    expected *= 2 / np.pi
    mu, far = NMC.attenuation_1_cm(40.0), radii_of(n)
    # the kernel is sampled: it ends between the lags a - ½ and a + ½, which moves the tail of (R - beyond) / a
    error = 2 / np.pi * max(radius - beyond, last) * 0.5 / a**2 + 0.13 / (2 * radius)
    assert image[far < 5].mean() / mu == pytest.approx(expected, abs=error)
    rim = image[far > 0.94 * a].mean() / image[far < 5].mean()
    if padding == "zero":
        assert expected > 1.4 and rim > 1.5  # a bright rim on too bright a middle
    else:
        assert abs(expected - 1) < 0.2 and rim < 1  # no bright rim


def test_a_sample_inside_the_field_of_view_is_not_changed_by_a_larger_box():
    inside, boxed = disc(48, 16), disc(72, 16)
    vacuum = Material("H", 1e-9)
    image = scan(scanner(60), inside, (vacuum, NMC))
    larger = scan(scanner(60), boxed, (vacuum, NMC), shape=(48, 48))
    # 72 instead of 48 rows through air, whose chord is a difference of two sums in float32
    atol = GAIN * (NMC.attenuation_1_cm(40.0) * 72 * 72 * EPS + 3e-7 / UM)
    np.testing.assert_allclose(larger, image, rtol=0, atol=atol)


def test_a_wrong_centre_has_tails_on_either_side():
    """Half a turn of a point that misses the axis by c: ∓∫ dθ / 2π²(r sin θ + c)², bright below and dark above.

    Of a full turn only half the difference of opposite views is left: nothing outside the circle of radius c. The point
    is where the scan shows it, so the axis of half a turn lies 4c/π, 9 pixels, below.
    """
    n, radius, c, size = 96, 2.0, 9 * np.pi / 4, 1.0
    vacuum = Material("H", 1e-9)
    images = {
        span: scan(
            scanner(geometry=ParallelBeam(span * 2, span, centre_offset_px=c)), disc(n, radius, 16), (vacuum, NMC), size
        )
        / NMC.attenuation_1_cm(40.0)
        for span in (180, 360)
    }
    theta = (np.arange(2000) + 0.5) * np.pi / 2000
    u = (np.arange(-100, 100) + 0.5) / 100 * radius
    profile = 2 * np.sqrt(radius**2 - u**2) * (u[1] - u[0])
    tail = {}
    middle = slice(n // 2 - 1, n // 2 + 1)
    for r in (15.5, 20.5, 25.5, 30.5):
        at = r * np.sin(theta)[:, None] + c - u
        expected = (profile / (2 * np.pi**2 * at**2)).sum() * np.pi / 2000
        up, down = (images[180][int(n / 2 + 9 + s * r), middle].mean() for s in (-1, 1))
        tail[r] = (up / expected, down / expected)
    ratios = np.array(list(tail.values()))
    # the kernel is 0 at even lags and twice at odd ones: the mean over rays between and over four radii is the kernel's
    # own within a few per cent; the sign and the factor of two of a half turn are what is tested
    np.testing.assert_allclose(ratios.mean(0), [1, -1], atol=0.1)
    far = radii_of(n)
    beyond = (far > c + radius + 3) & (far < 40)
    assert np.abs(images[360][beyond]).max() < np.abs(images[180][beyond]).max() / 10


@pytest.mark.parametrize(
    "geometry",
    [
        ParallelBeam(180, 180.0, 25.0, 1.0),
        ParallelBeam(140, 140.0, 25.0, 1.0),
        ParallelBeam(180, 360.0, 25.0, 1.0),
        ConeBeam(180, 180.0, 25.0, 1.0, source_object_mm=0.2),
    ],
    ids=["180", "140", "360", "fan"],
)
def test_a_wrong_centre_shows_a_disc_where_its_label_is(geometry):
    n, radius, sigma = 64, 16, 3.0
    still = dataclasses.replace(geometry, centre_offset_px=0.0)
    clean, off = (scan(scanner(geometry=g), disc(n, radius)) for g in (still, geometry))
    smooth, change = (gaussian_filter(a, sigma) for a in (clean, off - clean))
    assert np.abs(change).max() > 0.01 * smooth.max()
    slopes = np.stack([slope.ravel() for slope in np.gradient(smooth)], 1)
    moved = np.linalg.lstsq(slopes, -change.ravel(), rcond=None)[0]
    # to first order; then the cube of the shifts, of 1 pixel at most, (ks)³/6, over a spectrum of edges exp(−k²σ²) dk
    assert np.hypot(*moved) < 2 / (2 * sigma**2) / 6  # 4c/π is 1.27


def test_the_start_angle_is_a_turned_object():
    fractions = two_phases((24, 24))
    turned = np.ascontiguousarray(np.rot90(fractions, axes=(1, 2)))
    image = scan(scanner(geometry=ParallelBeam(45, 180.0, start_angle_deg=-90.0)), fractions)
    # not at 45°, where rows and columns tie; as in test_projection.py, then -ln T and the ramp
    error = 24 * np.sqrt(2) * 17 * 4 * EPS * 2 * NMC.attenuation_1_cm(40.0) + 2 * 3e-7 / UM
    np.testing.assert_allclose(scan(scanner(45), turned), np.rot90(image), rtol=0, atol=GAIN * error)


@pytest.mark.parametrize("start", [0.0, 70.0])
def test_the_missing_wedge_lies_where_no_view_was(start):
    """Fourier slices: what was seen at θ is the transform along (cos θ, sin θ); the wedge of 60° stays empty."""
    n = 96
    rng = np.random.default_rng(0)
    share = np.clip(rng.random((n, n)), 0, 1) * (radii_of(n) < 30)
    fractions = np.stack([1 - share, share]).astype(np.float32)
    full, limited = (
        np.abs(np.fft.fft2(scan(scanner(geometry=ParallelBeam(2 * span, span, start)), fractions))) ** 2
        for span in (180, 120)
    )
    f_up, f_right = -np.fft.fftfreq(n)[:, None], np.fft.fftfreq(n)[None]
    angle = np.rad2deg(np.arctan2(f_up, f_right) + 0 * f_right)
    from_wedge = np.abs((angle - start - 150 + 90) % 180 - 90)  # its middle is 150° after the start
    ring = (np.hypot(f_up, f_right) > 0.1) & (np.hypot(f_up, f_right) < 0.35)
    # a disc of 60 pixels smears frequencies by 1/60: 10° at a frequency of 0.1
    inside, outside = ring & (from_wedge < 20), ring & (from_wedge > 40)
    # an empty wedge leaks from its sides; one that was seen has 1: a tenth tells the two apart
    assert limited[inside].sum() < 0.1 * full[inside].sum()
    assert limited[outside].sum() == pytest.approx(full[outside].sum(), rel=0.1)


# Fan and cone beam


def test_a_fan_returns_the_attenuation():
    n, radius = 96, 40
    source = scanner(geometry=ConeBeam(360, source_object_mm=0.1))  # 200 voxels: a fan of ±20°
    image = scan(source, disc(n, radius), voxel_size_um=0.5)
    interior = image[radii_of(n) < radius - 4]
    # chords as in the parallel beam; a voxel is magnified by 1.25 at most, so its noise by no more than that twice
    assert interior.mean() == pytest.approx(NMC.attenuation_1_cm(40.0), rel=0.13 / 80)
    bound = np.sqrt(2 / 6) * np.sqrt((np.pi**2 / 18 - 1 / 6) / 360) * 1.25**2
    assert interior.std() / NMC.attenuation_1_cm(40.0) < bound


def test_a_cone_returns_the_attenuation_of_a_ball():
    n, radius = 40, 15
    image = scan(scanner(geometry=ConeBeam(180, source_object_mm=0.2)), ball(n, radius), voxel_size_um=1.0)
    assert image.shape == (n, n, n)
    at = (np.arange(n) + 0.5 - n / 2) ** 2
    far = np.sqrt(at[:, None, None] + at[:, None] + at)
    # blur 0.026 and edges 0.01 of the mean chord (test_projection.py), of 30; FDK's loss off the mid-plane is of second
    # order in the cone's angle, 15/200
    mu = NMC.attenuation_1_cm(40.0)
    assert image[far < radius - 4].mean() == pytest.approx(mu, rel=0.036 * 2 / 30 + (15 / 200) ** 2)
    for k in (12, 20, 27):
        middle = image[17:23, 17:23, k].mean()
        assert middle == pytest.approx(mu, rel=0.13 * np.sqrt(2) / 25 + (15 / 200) ** 2)


def test_a_source_inside_the_object_is_an_error():
    with pytest.raises(ValueError, match=r"source_object_mm=0\.01 puts the source inside the object"):
        scan(scanner(geometry=ConeBeam(4, source_object_mm=0.01)), disc(32, 10))
    with pytest.raises(ValueError, match="inside an object"):  # a sample that sticks out of the field of view
        scan(scanner(geometry=ConeBeam(4, source_object_mm=0.03)), disc(64, 10), shape=(32, 32))


def test_the_focal_spot_blurs_by_its_penumbra():
    fractions = disc(32, 10)
    spot = {"detector": Detector(focal_spot_um=6.0), "geometry": ConeBeam(20, 360.0, 0.0, 0.0, 0.2, 2.0)}
    _, blurred, drawn = views_of(scanner(**spot), fractions)
    signal, _, _ = views_of(scanner(**spot), fractions)
    width = penumbra_px(6.0, 10.0, 1.0)
    assert width == pytest.approx(6 * 9 / 10)
    expected = Detector().detect(signal, None, drawn["detector"], blur_px=width)
    np.testing.assert_array_equal(blurred, -np.log(expected))
    parallel = views_of(scanner(20, detector=Detector(focal_spot_um=6.0)), fractions)[1]
    np.testing.assert_array_equal(parallel, views_of(scanner(20), fractions)[1])  # from infinity a spot is a point


# Noise


def test_a_scan_has_the_noise_of_filtered_back_projection():
    """Var = (π²/18 - 1/6) / (N_θ · photons · T) per pixel², T of the ray through the pixel, averaged over the views.

    The kernel has Σh² = 1/12 and Σ h(k) h(k+1) = -1/(2π²); linear interpolation takes ⅔ of the one and ⅓ of the other,
    and the sum over the views multiplies by π²/N_θ.
    """
    n, radius, n_angles, size, slices = 64, 26, 120, 5.0, 16
    mu, pixel = NMC.attenuation_1_cm(40.0), size * UM
    fractions = disc(n, radius)
    far = radii_of(n)
    grey = far < radius / 2
    angle = (np.arange(720) + 0.5) * np.pi / 720
    chord = 2 * np.sqrt(radius**2 - (far[grey][:, None] * np.cos(angle)) ** 2)
    variance = {}
    for photons in (2000.0, 8000.0):
        source = scanner(n_angles, detector=Detector(photons=photons))
        rngs = [np.random.default_rng(k) for k in range(slices)]
        drawn = [source.draw(rng) for rng in rngs]
        scans = source.scan_all([fractions] * slices, [AIR, NMC], size, drawn, rngs)
        images = np.stack([image[grey] for image, _ in scans])
        variance[photons] = images.var(0, ddof=1).mean()
        expected = (np.pi**2 / 18 - 1 / 6) / (n_angles * photons) * np.exp(mu * pixel * chord).mean() / pixel**2
        # noise of power ∝ f: n / 1.43 independent values (9/2π), of 15/16 the degrees of freedom; four standard errors.
        # The noise of -ln of a count N is 1 + 3/2N larger, N = 2000 exp(-0.31)
        samples = grey.sum() * (slices - 1) / 1.43
        bias = 1.5 / (photons * np.exp(-mu * pixel * 2 * radius))
        assert variance[photons] == pytest.approx(expected, rel=4 * np.sqrt(2 / samples) + bias + 0.01)  # 1 % measured
    # the same seeds: the same normal numbers, so that the ratio has no statistics, only the skewness of the counts
    assert variance[2000.0] / variance[8000.0] == pytest.approx(4, rel=0.03)


@pytest.mark.parametrize("response", ["energy_integrating", "photon_counting"])
def test_the_noise_of_the_open_beam_is_that_of_its_energies(response):
    photons, spectrum = 1e4, TUBE.spectrum()
    w, energies = spectrum.weights, spectrum.energies_kev
    source = scanner(200, source=TUBE, detector=Detector(photons=photons, response=response))
    _, sinogram, _ = views_of(source, disc(32, 4), (AIR, Material("N", 2e-3)), 0.01)  # nothing to speak of
    expected = 1 / photons
    if response == "energy_integrating":  # compound Poisson: <E²> / <E>²
        expected *= w @ energies**2 / (w @ energies) ** 2
    assert sinogram.var() == pytest.approx(expected, rel=4 * np.sqrt(2 / sinogram.size) + 3 / photons)
    assert abs(sinogram.mean()) < 4 * np.sqrt(expected / sinogram.size) + expected  # -ln: + variance / 2


def test_behind_an_object_the_integrating_variance_is_that_of_the_hardened_spectrum():
    photons, spectrum, size = 1e5, TUBE.spectrum(), 100.0
    w, energies = spectrum.weights, spectrum.energies_kev
    slab = np.ones((2, 24, 24), np.float32)
    slab[0] = 0
    # 1° of views through the faces: the path changes by 1.5e-4
    source = scanner(geometry=ParallelBeam(1000, 1.0), source=TUBE, detector=Detector(photons=photons))
    t = np.exp(-NMC.attenuation_1_cm(energies) * 24 * size * UM)
    signal, moment = w @ (energies * t) / (w @ energies), w @ (energies**2 * t) / (w @ energies) ** 2
    relative = moment / signal**2 / photons
    values = views_of(source, slab, voxel_size_um=size)[1][:, 10:-10, 0]
    # -ln of a mean of S²/V quanta has a variance larger by 3/2 of the relative one; energies merged within 5 %
    rel = 4 * np.sqrt(2 / values.size) + 1.5 * relative + 1e-3
    assert values.var() == pytest.approx(relative, rel=rel)
    open_second = w @ energies**2 / (w @ energies) ** 2
    assert moment / (open_second * signal) > 1 + 2 * rel  # what the open beam's spectrum would give is well below


def test_noise_stays_finite_where_no_photon_comes_through():
    image = scan(scanner(30, detector=Detector(photons=20.0)), disc(32, 12), (AIR, NICKEL), 20.0)
    assert np.isfinite(image).all()


# Motion


def test_no_motion_changes_no_byte():
    fractions = two_phases((20, 24))
    np.testing.assert_array_equal(scan(scanner(20, motion=Motion()), fractions), scan(scanner(20), fractions))


@pytest.mark.parametrize(
    "motion",
    [Motion(drift_px=6.0), Motion(jump_px=3.0, n_jumps=2), Motion(jitter_px=1.0)],
    ids=["drift", "jump", "jitter"],
)
@pytest.mark.parametrize("q", [1, 3])
def test_a_moving_disc_is_seen_where_it_is(motion, q):
    """The centre of mass of each view is the shift, in voxels of the image, whatever the sub-voxels are."""
    n, radius = 48, 14
    source = scanner(40, motion=motion, oversampling=q)
    _, sinogram, drawn = views_of(source, disc(n * q, radius * q, 4), (Material("H", 1e-9), NMC), 0.5)
    path = trajectory(40, drawn["motion"])
    angles = source.geometry.angles_rad(drawn["geometry"])
    directions = np.stack([np.cos(angles), np.sin(angles)])
    shift = (directions * path.position_px).sum(0) + path.shift_px
    # less that of the resting object that fits best: over 180° the directions are orthogonal, of squared norm n/2
    expected = shift - (directions @ shift * 2 / 40) @ directions
    views = sinogram[..., 0]
    u = np.arange(views.shape[1]) - (views.shape[1] - 1) / 2
    # Poisson summation as for the mass in test_projection.py, with the edge's lever of 14 pixels, over the disc's area
    worst = 2 * (0.129 * 0.414**-1.5 + 0.047 * 0.586**-1.5) * np.sqrt(radius) / np.pi * radius / (np.pi * radius**2)
    np.testing.assert_allclose(views @ u / views.sum(1), expected, rtol=0, atol=worst)
    assert np.ptp(expected) > 1


def test_growth_enlarges_the_shadow():
    n, radius = 64, 18
    source = scanner(40, motion=Motion(growth=0.3, growth_profile="linear"))
    _, sinogram, drawn = views_of(source, disc(n, radius), (Material("H", 1e-9), NMC))
    views = sinogram[..., 0] / (NMC.attenuation_1_cm(40.0) * UM)
    scale = np.exp(trajectory(40, drawn["motion"]).log_scale)
    # area of the disc; Joseph's mass errs by 2 · (0.129 · 0.414^-1.5 + 0.047 · 0.586^-1.5) √R / π (test_projection.py)
    worst = 2 * (0.129 * 0.414**-1.5 + 0.047 * 0.586**-1.5) * np.sqrt(radius) / np.pi * 1.3**2
    np.testing.assert_allclose(views.sum(1), np.pi * radius**2 * scale**2, rtol=0, atol=2 * worst + 1)


def test_a_moving_object_is_blurred():
    far = radii_of(64)
    still, moving = (scan(scanner(90, motion=motion), disc(64, 20)) for motion in (None, Motion(drift_px=8.0)))
    edge = (far > 17) & (far < 23)
    assert np.abs(moving - still)[edge].mean() > 3 * np.abs(moving - still)[far < 10].mean()


# Artefacts in their place


def test_stripes_become_rings_and_the_filter_takes_them():
    """A gain of one pixel is a half ring of 180°, a full circle of 360°."""
    n, far = 64, radii_of(64)
    rings, clean, filtered = (
        scan(
            scanner(geometry=ParallelBeam(120, 360.0), stripes=stripes, ring_filter=ring_filter),
            disc(n, 28),
        )
        for stripes, ring_filter in (
            (Stripes(full_share=0.05, error_sd=0.02), None),
            (None, None),
            (Stripes(full_share=0.05, error_sd=0.02), "sorting"),
        )
    )
    error = rings - clean
    r = np.round(far[far < 26]).astype(int)
    along = np.bincount(r, error[far < 26]) / np.maximum(np.bincount(r), 1)
    assert (along[r] * error[far < 26]).sum() / (error[far < 26] ** 2).sum() > 0.5  # what varies varies with the radius
    assert np.abs(filtered - clean)[far < 26].std() < error[far < 26].std()


def test_a_constant_exposure_error_is_a_constant_line_integral():
    source = scanner(40, exposure_drift=ExposureDrift(decay=0.2))
    _, sinogram, drawn = views_of(source, disc(32, 10))
    _, clean, _ = views_of(scanner(40), disc(32, 10))
    expected = -np.log(exposure(40, drawn["exposure_drift"]))[:, None, None]
    np.testing.assert_allclose(sinogram - clean, np.broadcast_to(expected, clean.shape), rtol=0, atol=4 * EPS)


def test_scatter_flattens_and_cups():
    far = radii_of(64)
    clean, foggy = (
        scan(scanner(90, scatter=scatter), disc(64, 26), voxel_size_um=20.0)
        for scatter in (None, Scatter(fraction=0.1, fwhm_px=60.0))
    )
    middle, edge = far < 6, (far > 18) & (far < 22)
    assert foggy[middle].mean() < clean[middle].mean()
    assert foggy[middle].mean() / foggy[edge].mean() < clean[middle].mean() / clean[edge].mean() - 0.02


def test_a_halo_is_dark_beside_and_fades_inside():
    far = radii_of(64)
    clean, halo = (
        scan(scanner(90, zernike=zernike), disc(64, 14)) for zernike in (None, Zernike(alpha=0.5, fwhm_px=10.0))
    )
    beside = (far > 16) & (far < 20)
    mu = NMC.attenuation_1_cm(40.0)
    assert halo[beside].mean() < clean[beside].mean() - 0.05 * mu
    assert halo[far < 4].mean() < clean[far < 4].mean() - 0.2 * mu


def test_paganin_undoes_propagation():
    """One material: with its own δ/β the retrieved grey value is µ; without retrieval there are fringes."""
    source = Monochromatic(20.0)
    graphite, vacuum = LIBRARY["graphite"], Material("H", 1e-9)
    mu = graphite.attenuation_1_cm(20.0)
    beta = mu * 12.398419843e-8 / 20.0 / (4 * np.pi)
    ratio = float(graphite.decrement(20.0) / beta)
    n, radius, size = 64, 20, 2.0
    distance = 10.0
    assert fresnel_number(20.0, size, distance) > 4
    far = radii_of(n)
    images = {
        paganin: scan(
            scanner(180, source=source, propagation=Propagation(distance_mm=distance), paganin=paganin),
            disc(n, radius),
            (vacuum, graphite),
            size,
        )
        for paganin in (None, Paganin(ratio))
    }
    inner, rim = far < radius - 6, np.abs(far - radius) < 3
    for paganin, image in images.items():
        spread = image[rim].max() - image[rim].min()
        if paganin is None:
            assert spread > 2 * mu  # µ and the fringes on both sides of the edge
        else:
            assert spread < 1.5 * mu
            assert image[inner].mean() == pytest.approx(mu, rel=2 * 0.13 / 40)


# Normalisation and noise on the image


@pytest.mark.parametrize("normalisation", list(NORMALISATIONS))
def test_the_normalisation_can_be_undone(normalisation):
    fractions = disc(40, 14)
    raw = scan(scanner(60), fractions)
    source = scanner(60, normalisation=normalisation)
    image, facts = source.scan(
        fractions, [AIR, NMC], 1.0, source.draw(np.random.default_rng(0)), np.random.default_rng(0)
    )
    assert image.dtype == np.float32
    if normalisation == "range":
        assert image.min() == 0 and image.max() == pytest.approx(1, abs=2 * EPS)
    elif normalisation == "percentiles":
        assert np.percentile(image, [0.5, 99.5]) == pytest.approx([0, 1], abs=4 * EPS)
        assert image.min() < 0 and image.max() > 1
    else:
        np.testing.assert_array_equal(image, raw)
        assert (facts["offset_1_cm"], facts["scale_1_cm"]) == (0.0, 1.0)
    restored = image.astype(float) * facts["scale_1_cm"] + facts["offset_1_cm"]
    np.testing.assert_allclose(restored, raw, rtol=0, atol=4 * EPS * np.ptp(raw))  # four roundings
    assert facts["mean_energy_kev"] == 40.0


@pytest.mark.parametrize("noise_sd", [0.01, 0.2])
def test_the_noise_has_the_standard_deviation_asked(noise_sd):
    fractions, source = disc(96, 30), scanner(20, normalisation="range")
    clean = scan(source, fractions, seed=7)
    noisy = scan(source, fractions, seed=7, noise_sd=noise_sd)
    noise = noisy.astype(float) - clean
    n = noise.size
    assert noise.std() == pytest.approx(noise_sd, rel=4 / np.sqrt(2 * n))  # four standard errors
    assert abs(noise.mean()) < 4 * noise_sd / np.sqrt(n)
    neighbours = np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(n)  # white
    np.testing.assert_array_equal(noisy, scan(source, fractions, seed=7, noise_sd=noise_sd))


def test_ranges_are_drawn_per_scan():
    source = scanner(noise_sd=[0.02, 0.03], motion=Motion(drift_px=[1, 2]), detector=Detector(photons=[1e3, 1e4]))
    rng = np.random.default_rng(0)
    drawn = [source.draw(rng) for _ in range(50)]
    for values, low, high in (
        ([d["noise_sd"] for d in drawn], 0.02, 0.03),
        ([d["motion"]["drift_px"] for d in drawn], 1, 2),
        ([d["detector"]["photons"] for d in drawn], 1e3, 1e4),
    ):
        assert len(set(values)) == 50 and min(values) >= low and max(values) <= high
    assert set(drawn[0]) == {"geometry", "motion", "detector", "noise_sd"}  # what does not act is not there


# Errors


@pytest.mark.parametrize("source", [Monochromatic(40.0), TUBE, NarrowBand(40.0, 0.05)])
def test_phases_of_equal_attenuation_get_a_clear_error(source):
    twin = Material({"Ni": 1.0}, 8.908)
    with pytest.raises(ValueError, match="same attenuation"):
        scan(scanner(30, source=source), disc(32, 10), (NICKEL, twin))


@pytest.mark.parametrize("source", [Monochromatic(5.0), Tube(kvp=20, energy_step_kev=1.0)], ids=["mono", "tube"])
@pytest.mark.parametrize("photons", [None, 1e4])
def test_an_object_that_stops_every_photon_gets_a_clear_error(source, photons):
    with pytest.raises(ValueError, match=r"no photon .* passes the sample") as caught:  # nickel, exp(-300) and less
        scan(scanner(30, source=source, detector=Detector(photons=photons)), disc(32, 10), (AIR, NICKEL), 500.0)
    assert "same attenuation" not in str(caught.value) and "\n" not in str(caught.value)


def test_as_many_materials_as_fractions():
    with pytest.raises(ValueError, match="2 phases need as many materials, got 1"):
        scan(scanner(), disc(32, 10), [NMC])


def test_a_cone_of_a_volume_by_astra_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(astra, "use_cuda", lambda: False)
    with pytest.raises(ValueError, match=r"GPU only.*backend='compiled'"):
        scan(scanner(geometry=ConeBeam(4, source_object_mm=0.1), backend="astra"), two_phases((8, 8, 8)))


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"source": "Tube"}, "source='Tube' must be a data_gen.spectrum.Tube or "),
        ({"source": Tube}, "source="),
        ({"source": None}, "source=None"),
        ({"geometry": 360}, "geometry=360 must be a data_gen.geometry.ParallelBeam or "),
        ({"geometry": {"n_angles": 360}}, "geometry="),
        ({"detector": None}, "detector=None"),
        ({"reconstruction": "FBP"}, "reconstruction='FBP'.*SIRT"),
        ({"motion": Stripes()}, "motion=Stripes.*must be a data_gen.artifacts.Motion or None"),
        ({"propagation": 10.0}, "propagation=10.0"),
        ({"zernike": 0.5}, "zernike=0.5"),
        ({"scatter": True}, "scatter=True"),
        ({"exposure_drift": 0.1}, "exposure_drift=0.1"),
        ({"stripes": Motion()}, "stripes=Motion"),
        ({"paganin": 100.0}, "paganin=100.0"),
        ({"paganin": Paganin(100.0)}, "paganin needs propagation"),
        ({"ring_filter": "fitting"}, "ring_filter='fitting' is unknown; known: None, sorting"),
        ({"oversampling": 0}, "oversampling=0"),
        ({"oversampling": 10}, "oversampling=10"),
        ({"oversampling": 3.0}, "oversampling=3.0"),
        ({"oversampling": True}, "oversampling=True"),
        ({"normalisation": "minmax"}, "normalisation='minmax'.*range, percentiles, none"),
        ({"normalisation": None}, "normalisation=None"),
        ({"backend": "cuda"}, "backend='cuda'.*compiled, astra"),
        ({"geometry": ConeBeam(), "reconstruction": SIRT()}, "cone beam is reconstructed by FBP"),
        ({"noise_sd": -0.1}, "noise_sd=-0.1"),
        ({"noise_sd": [0.2, 0.1]}, "noise_sd"),
        ({"noise_sd": "0.1"}, "noise_sd"),
    ],
)
def test_bad_scanners(arguments, names):
    with pytest.raises(ValueError, match=names) as caught:
        Scanner(**{"source": Monochromatic(40.0)} | arguments)
    assert "\n" not in str(caught.value)
