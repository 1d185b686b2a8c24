"""Noise against closed forms and a simulation photon by photon; blur, correction and defects against what they claim.

Tolerances: a variance from n independent values errs by √((2 + excess kurtosis) / n) of itself, a mean by
√(variance / n). Five of those are allowed, which a correct detector leaves once in a million runs; the seeds are fixed.
"""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from data_gen.detector import Detector, _poisson, floor, penumbra_px
from data_gen.materials import Material
from data_gen.spectrum import Monochromatic, Spectrum

CSI = {"formula": "CsI", "density_g_cm3": 4.51}
LINES = Spectrum(np.array([20.0, 40.0, 60.0, 100.0]), np.array([0.4, 0.3, 0.2, 0.1]))
SIGMAS = 5
SIGMA_PER_FWHM = 1 / np.sqrt(8 * np.log(2))


def measure(detector, level=1.0, second=None, shape=(200, 50, 20), seed=0, **arguments):
    signal = np.full(shape, level, np.float32)
    second = None if second is None else np.full(shape, second, np.float32)
    return detector.detect(signal, second, detector.draw(np.random.default_rng(seed)), **arguments)


def assert_variance(values, expected, kurtosis=0.0):
    error = SIGMAS * expected * np.sqrt((2 + kurtosis) / values.size)
    assert values.var(dtype=np.float64) == pytest.approx(expected, abs=error)


def assert_mean(values, expected, variance):
    error = SIGMAS * np.sqrt(variance / values.size) + 1e-6 * expected  # float32
    assert values.mean(dtype=np.float64) == pytest.approx(expected, abs=error)


# the ideal detector and its arguments


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 1), (7, 9, 3)])
def test_an_ideal_detector_returns_the_signal_bit_for_bit(shape):
    signal = np.random.default_rng(0).uniform(1e-9, 5, shape).astype(np.float32)
    kept = signal.copy()
    detector = Detector()
    assert detector.ideal
    result = detector.detect(signal, None, detector.draw(np.random.default_rng(0)))
    np.testing.assert_array_equal(result, kept)
    np.testing.assert_array_equal(signal, kept)


def test_what_is_drawn_is_plain_and_complete():
    detector = Detector(photons=[1e3, 1e4], psf_fwhm_px=[0.5, 1.5], focal_spot_um=3, zingers=1e-4)
    drawn = detector.draw(np.random.default_rng(1))
    assert {type(value) for value in drawn.values()} <= {int, float}
    assert 1e3 <= drawn["photons"] <= 1e4 and 0.5 <= drawn["psf_fwhm_px"] <= 1.5 and drawn["focal_spot_um"] == 3
    assert 0 <= drawn["seed"] < 2**32
    assert drawn == detector.draw(np.random.default_rng(1)) != detector.draw(np.random.default_rng(2))
    assert Detector().draw(np.random.default_rng(1))["photons"] is None


FULL = Detector(
    photons=5e3,
    scintillator=CSI,
    scintillator_um=150,
    electrons_per_photon=20,
    psf_fwhm_px=1.2,
    electronic_noise_e=30,
    dark_e=500,
    flat_variation=0.03,
    flat_drift=0.005,
    n_flats=20,
    bits=14,
    dead_pixels=0.01,
    hot_pixels=0.01,
    zingers=1e-3,
)


def test_the_same_parameters_give_the_same_bytes_and_another_seed_does_not():
    rng = np.random.default_rng(0)
    signal = rng.uniform(0.05, 1, (30, 40, 5)).astype(np.float32)
    second = (1.5 * signal).astype(np.float32)
    drawn = FULL.draw(rng)
    first = FULL.detect(signal, second, drawn, open_second=1.5, blur_px=0.8)
    assert first.dtype == np.float32 and first.shape == signal.shape and np.isfinite(first).all()
    assert first.min() >= np.float32(floor(drawn["photons"], 1.5)) > 0
    np.testing.assert_array_equal(first, FULL.detect(signal, second, drawn, open_second=1.5, blur_px=0.8))
    other = FULL.detect(signal, second, {**drawn, "seed": drawn["seed"] + 1}, open_second=1.5, blur_px=0.8)
    assert (first != other).mean() > 0.9
    flat = FULL.detect(signal[..., 0], second[..., 0], drawn, open_second=1.5)
    np.testing.assert_array_equal(flat, FULL.detect(signal[..., :1], second[..., :1], drawn, open_second=1.5)[..., 0])


def test_the_result_can_take_the_place_of_the_signal():
    signal = np.random.default_rng(0).uniform(0.05, 1, (30, 300, 50)).astype(np.float32)  # several chunks
    drawn = FULL.draw(np.random.default_rng(0))
    expected = FULL.detect(signal, None, drawn)
    assert FULL.detect(signal, None, drawn, out=signal) is signal
    np.testing.assert_array_equal(signal, expected)


def test_a_part_that_is_switched_on_leaves_the_numbers_of_the_others_alone():
    plain, defects = Detector(photons=1e4), Detector(photons=1e4, dead_pixels=0.05, zingers=1e-3)
    quiet, noisy = measure(plain), measure(defects)
    same = quiet == noisy
    assert 0.9 < same.mean() < 1  # all but the defects


# quanta


@pytest.mark.parametrize("photons", [30, 300, 1e4, 1e6])
@pytest.mark.parametrize("level", [1.0, 0.2])
def test_counting_noise_is_inversely_proportional_to_the_photons(photons, level):
    result = measure(Detector(photons=photons, response="photon_counting"), level)
    counts = photons * level
    none = result == np.float32(floor(photons))  # no count reads as half a one
    assert none.mean() == pytest.approx(np.exp(-counts), abs=SIGMAS * np.sqrt(np.exp(-counts) / result.size))
    result[none] = 0
    assert_mean(result, level, level / photons)
    assert_variance(result, level / photons, kurtosis=1 / counts)  # of a Poisson number
    if counts < 100:
        np.testing.assert_allclose(result * photons, np.rint(result * photons), atol=1e-5 * counts)  # whole counts


@pytest.mark.parametrize("response", ["energy_integrating", "photon_counting"])
def test_polychromatic_noise_is_that_of_a_simulation_photon_by_photon(response):
    detector = Detector(photons=2000, response=response, scintillator=CSI, scintillator_um=200)
    passed = np.array([0.05, 0.3, 0.5, 0.7])
    # the closed form, written out again: photons of each line that are absorbed, and what each adds
    eta = detector.efficiency(LINES.energies_kev)
    charge = LINES.energies_kev if response == "energy_integrating" else np.ones(4)
    absorbed = 2000 * LINES.weights * eta
    mean = (absorbed * passed * charge).sum() / (absorbed * charge).sum()
    variance = (absorbed * passed * charge**2).sum() / (absorbed * charge).sum() ** 2
    n = 200_000
    rng = np.random.default_rng(5)
    brute = (rng.poisson(absorbed * passed, (n, 4)) * charge).sum(1) / (absorbed * charge).sum()
    first, second = detector.weights(LINES)
    assert first.sum() == pytest.approx(1, abs=1e-12)
    ours = measure(detector, first @ passed, second @ passed, (1000, 200, 1), open_second=second.sum())
    kurtosis = (absorbed * passed * charge**4).sum() / (absorbed * passed * charge**2).sum() ** 2
    for values in (brute, ours):
        assert_mean(values, mean, variance)
        assert_variance(values, variance, kurtosis)


def test_the_energy_weighting_costs_noise_and_one_energy_does_not():
    counting, integrating = Detector(response="photon_counting"), Detector()
    assert counting.weights(LINES)[1].sum() == pytest.approx(1, abs=1e-12)
    # Σ wE² / (Σ wE)² of 0.4 · 20, 0.3 · 40, 0.2 · 60, 0.1 · 100: 2360 / 42²
    assert integrating.weights(LINES)[1].sum() == pytest.approx(2360 / 42**2, rel=1e-12)
    one = replace(integrating, scintillator=CSI, scintillator_um=100)
    eta = float(one.efficiency(33.0))
    first, second = one.weights(Monochromatic(33).spectrum())
    assert first.tolist() == [1.0] and second[0] == pytest.approx(1 / eta, rel=1e-12)


def test_efficiency_is_what_the_depths_of_the_scintillator_absorb():
    detector = Detector(scintillator={"formula": "Lu3Al5O12", "density_g_cm3": 6.73}, scintillator_um=80)
    energies = np.array([[8.0, 20.0], [33.0, 100.0]])
    mu = Material("Lu3Al5O12", 6.73).attenuation_1_cm(energies)
    edges = np.linspace(0, 80e-4, 4001)
    middles = (edges[1:] + edges[:-1]) / 2
    summed = (mu[..., None] * np.exp(-mu[..., None] * middles) * np.diff(edges)).sum(-1)  # ∫ µ exp(−µx) dx
    step = mu.max() * edges[1]
    np.testing.assert_allclose(detector.efficiency(energies), summed, rtol=step**2 / 24 * 1.01)  # of the midpoint rule
    assert (Detector().efficiency(energies) == 1).all()


@pytest.mark.parametrize("mean", [100, 400, 1e4])
def test_the_expansion_of_the_poisson_distribution(mean):
    """The map from a normal number to a count, against scipy's distribution function at every count."""

    class Known:  # stands for the generator
        def standard_normal(self, shape, dtype):
            return z.astype(dtype)

    counts = np.arange(int(mean - 6 * mean**0.5), int(mean + 6 * mean**0.5))
    z = np.linspace(-6.5, 6.5, 200_001)
    mapped = _poisson(np.full(z.shape, mean, np.float32), Known())
    reached = np.interp(counts + 0.5, mapped, z)
    error = np.abs(stats.norm.cdf(reached) - stats.poisson.cdf(counts, mean)).max()
    # the term of the expansion that is left out, (3z − z³) / 72N, and that of whole counts, −z / 24N, leave
    # z³ φ(z) / 72N <= 0.0064 / N; the next is of order N^(−3/2)
    rounding = 2**-23 * mean**0.5 * stats.norm.pdf(0)  # of float32, in standard deviations, times the density
    assert error < 0.0064 / mean + 0.02 / mean**1.5 + rounding


# blur


@pytest.mark.parametrize("fwhm", [0.4, 0.8, 1.5, 4.0])
@pytest.mark.parametrize("how", ["psf", "counting psf", "focal spot"])
def test_an_edge_has_the_width_of_the_point_spread(fwhm, how):
    response = "photon_counting" if how == "counting psf" else "energy_integrating"
    detector = Detector(psf_fwhm_px=0 if how == "focal spot" else fwhm, response=response)
    signal = np.ones((3, 101), np.float32)
    signal[:, 50:] = 0.2
    edge = detector.detect(
        signal, None, detector.draw(np.random.default_rng(0)), blur_px=fwhm if how == "focal spot" else 0.0
    )
    spread = -np.diff(edge[1].astype(float)) / 0.8
    place = np.arange(100)
    centre = spread @ place
    assert spread.sum() == pytest.approx(1, abs=1e-6)
    assert centre == pytest.approx(49, abs=1e-4)
    width = np.sqrt(spread @ (place - centre) ** 2)
    assert width == pytest.approx(fwhm * SIGMA_PER_FWHM, rel=1e-4)  # 6e-8 of float32 in each pixel, times its distance²
    if fwhm == 4:  # wide enough for the half maximum to be read off lines between the samples: they lie f″/8 too high
        above = np.interp(np.linspace(0, 99, 99_001), place, spread)
        assert (above > spread.max() / 2).sum() / 1000 == pytest.approx(
            fwhm, rel=0.015
        )  # 2 · (0.386 / 8σ²) / (1.18 / σ)


def test_blurs_before_and_after_detection_add_their_variances():
    signal = np.ones((2, 81), np.float32)
    signal[:, 40:] = 0.5
    drawn = Detector().draw(np.random.default_rng(0))
    once = Detector().detect(signal, None, drawn, blur_px=float(np.hypot(2.0, 2.4)))
    twice = Detector(psf_fwhm_px=2.0).detect(signal, None, {**drawn, "psf_fwhm_px": 2.0}, blur_px=2.4)
    np.testing.assert_allclose(once, twice, atol=2e-4)  # cut tails: 6e-5 in each of three


def test_the_blur_acts_along_detectors_and_slices_and_never_along_views():
    signal = np.full((5, 21, 21), 0.1, np.float32)
    signal[2, 10, 10] = 1
    detector = Detector(psf_fwhm_px=2.0)
    drawn = detector.draw(np.random.default_rng(0))
    result = detector.detect(signal, None, drawn)
    np.testing.assert_allclose(result[[0, 1, 3, 4]], 0.1, rtol=1e-6)
    np.testing.assert_allclose(result[2], result[2].T, rtol=1e-5)
    assert result[2].sum(dtype=float) == pytest.approx(signal[2].sum(dtype=float), rel=1e-6)
    assert result[2, 10, 11] > 0.15


def test_the_blur_before_detection_blurs_the_variance_as_well():
    shape = (40_000, 24)
    second = np.ones(shape, np.float32)
    second[:, 12:] = 3
    detector = Detector(photons=1e4)
    result = detector.detect(
        np.ones(shape, np.float32), second, detector.draw(np.random.default_rng(0)), open_second=2.0, blur_px=3.0
    )
    blurred = 1 + 2 * stats.norm.cdf(
        (np.arange(24) - 11.5) / (3.0 * SIGMA_PER_FWHM)
    )  # an edge between pixels 11 and 12
    sampled = 2 * 0.242 / (24 * (3.0 * SIGMA_PER_FWHM) ** 2)  # a sum over pixels for the integral: step · max φ′ / 24σ²
    np.testing.assert_allclose(result.var(0, dtype=float), blurred / 1e4, rtol=SIGMAS * np.sqrt(2 / shape[0]) + sampled)


def test_light_spread_correlates_the_noise_and_shared_charge_does_not():
    variance = (2.5 * SIGMA_PER_FWHM) ** 2
    shape = (400, 500, 1)
    light = measure(Detector(photons=1e4, psf_fwhm_px=2.5), shape=shape)[..., 0].astype(float) - 1
    inner = light[:, 8:-8]  # the edge repeats pixels

    def covariance(lag):  # two Gaussians make one of twice the variance
        return np.exp(-(lag**2) / (4 * variance)) / np.sqrt(4 * np.pi * variance) / 1e4

    for lag in (0, 1, 2, 4):
        products = inner[:, : inner.shape[1] - lag] * inner[:, lag:]
        # Σ_k c(k)² + c(k + lag) c(k − lag) <= 2 Σ c² (Bartlett) for the mean of correlated products
        error = np.sqrt(2 * sum(covariance(k) ** 2 for k in range(-9, 10)) / products.size)
        cut = 2e-4 * covariance(0)  # the kernel beyond 4 sigma
        assert products.mean() == pytest.approx(covariance(lag), abs=SIGMAS * error + cut)
    shared = measure(Detector(photons=1e4, psf_fwhm_px=2.5, response="photon_counting"), shape=shape)
    assert_variance(shared, 1e-4)
    noise = shared[..., 0].astype(float) - 1
    assert (noise[:, 1:] * noise[:, :-1]).mean() == pytest.approx(0, abs=SIGMAS * 1e-4 / np.sqrt(noise.size))


def test_the_penumbra():
    assert penumbra_px(5.0, 1.0, 2.0) == 0  # a parallel beam
    assert penumbra_px(5.0, 5.0, 2.0) == pytest.approx(2.0)  # 5 µm · 4/5 at the object, voxels of 2 µm


# electrons and electronics


def test_secondary_quanta_and_electronic_noise_add_to_the_variance():
    photons, gain, sd, dark, level = 500, 4.0, 25.0, 300.0, 0.4
    detector = Detector(photons=photons, electrons_per_photon=gain, electronic_noise_e=sd, dark_e=dark)
    result = measure(detector, level)
    electrons = photons * gain
    variance = level / photons + (level * electrons + dark + sd**2) / electrons**2
    assert_mean(result, level, variance)
    assert_variance(result, variance, kurtosis=1 / (photons * level))


def test_electrons_are_counted_for_a_photon_of_the_mean_energy_of_the_signal():
    second = Detector().weights(LINES)[1].sum()
    photons, gain = 2000, 0.5
    result = measure(Detector(photons=photons, electrons_per_photon=gain), 1.0, second, open_second=second)
    mean_energy = (LINES.weights @ LINES.energies_kev**2) / (LINES.weights @ LINES.energies_kev)
    electrons = photons * (LINES.weights * gain * LINES.energies_kev / mean_energy).sum()
    assert_variance(result, second / photons + 1 / electrons, kurtosis=3 / (photons * gain))


# correction


def test_the_flat_corrects_the_gain_exactly_and_not_its_drift():
    fixed = measure(Detector(flat_variation=0.1), 0.3)
    np.testing.assert_allclose(fixed, 0.3, rtol=4 * 2**-23)  # roundings of float32
    drifted = measure(Detector(flat_variation=0.1, flat_drift=0.02), 0.5, shape=(4, 100, 200))
    np.testing.assert_array_equal(drifted, np.broadcast_to(drifted[:1], drifted.shape))  # the same in every view: rings
    gain = drifted[0] / 0.5
    assert_mean(gain, 1, 0.02**2)
    assert_variance(gain, 0.02**2, kurtosis=16 * 0.02**2)  # of a log-normal number


@pytest.mark.parametrize("n_flats", [1, 16])
def test_the_noise_of_the_flat_stays_in_every_view(n_flats):
    photons, views = 1e4, 50
    detector = Detector(photons=photons, n_flats=n_flats, flat_variation=0.05)
    result = measure(detector, 0.5, shape=(views, 100, 200))
    pixels = result.mean(0, dtype=float)
    # S (1 − ε) with a flat of 1 + ε: S² / (photons · flats), and the views' own noise averaged
    expected = 0.25 / (photons * n_flats) + 0.5 / photons / views
    second_order = 10 / (photons * n_flats)  # of 1 / (1 + ε), relative
    assert pixels.var() == pytest.approx(expected, rel=SIGMAS * np.sqrt(2 / pixels.size) + second_order)


def test_the_dark_level_is_subtracted_with_its_own_noise():
    detector = Detector(
        photons=1e4, electrons_per_photon=10, dark_e=2e4, electronic_noise_e=200, n_flats=4, flat_variation=0.05
    )
    views, electrons, level = 60, 1e5, 0.2
    pixels = measure(detector, level, shape=(views, 100, 100)).mean(0, dtype=float)
    dark = (2e4 + 200**2) / electrons**2 / 4
    flat = (1 / 1e4 + 1 / electrons) / 4 + dark
    view = level / 1e4 + (level * electrons + 2e4 + 200**2) / electrons**2
    # S = (r − d) / (f − d): the dark image enters above and below
    expected = level**2 * flat + (1 - level) ** 2 * dark + view / views
    uneven = 3 * 0.05**2  # the electronic part goes with the mean of 1 / gain²
    assert pixels.var() == pytest.approx(expected, rel=SIGMAS * np.sqrt(2 / pixels.size) + uneven)
    assert pixels.mean() == pytest.approx(level, abs=SIGMAS * np.sqrt(expected / pixels.size) + flat)


# converter and defects


def test_readings_lie_on_the_steps_of_the_converter():
    detector = Detector(bits=6, saturation=1.26)
    signal = np.linspace(0.01, 1.2, 5000, dtype=np.float32).reshape(50, 100)
    result = detector.detect(signal, None, detector.draw(np.random.default_rng(0)))
    step = 1.26 / 63
    levels = result[result > floor(None)] / step
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    assert np.abs(result - signal).max() <= step / 2 * (1 + 1e-4)
    assert len(np.unique(result)) == 61  # 0 (the floor) to 60: every step that was passed


def test_readings_end_at_the_full_well():
    signal = np.linspace(0.1, 1.5, 150, dtype=np.float32).reshape(1, 150)
    detector = Detector(saturation=0.8)
    result = detector.detect(signal, None, detector.draw(np.random.default_rng(0)))
    np.testing.assert_array_equal(result, np.minimum(signal, np.float32(0.8)))


def test_shares_of_dead_and_hot_pixels():
    share = {"dead_pixels": 0.03, "hot_pixels": 0.01}
    result = measure(Detector(**share, saturation=1.5), 0.5, shape=(3, 200, 300))
    np.testing.assert_array_equal(result, np.broadcast_to(result[:1], result.shape))
    values, counts = np.unique(result[0], return_counts=True)
    np.testing.assert_allclose(values, [floor(None), 0.5, 1.5], rtol=1e-6)
    for count, p in zip(counts[[0, 2]], share.values(), strict=True):
        assert count == pytest.approx(60_000 * p, abs=SIGMAS * np.sqrt(60_000 * p * (1 - p)))


def test_zingers_are_single_bright_and_as_many_as_asked():
    n, rate = 300 * 200 * 20, 2e-4
    result = measure(Detector(zingers=rate), 0.5, shape=(300, 200, 20))
    hit = result != 0.5
    assert hit.sum() == pytest.approx(n * rate, abs=SIGMAS * np.sqrt(n * rate))
    assert result[hit].min() >= 0.5 + 0.2 * 2 - 1e-6 and result[hit].max() <= 2.5
    assert hit.sum(0).max() <= 4  # 4000 pixels of 0.06 expected hits: five would be 1 in 40,000


def test_nothing_is_ever_at_or_below_zero():
    photons = 20
    result = measure(Detector(photons=photons, electrons_per_photon=2, electronic_noise_e=10), 1e-3)
    assert result.min() == np.float32(0.5 / photons)


# messages


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"photons": 0}, "photons=0 "),
        ({"photons": "many"}, "photons='many'"),
        ({"photons": [1e4, 1e3]}, "rising pair"),
        ({"response": "counting"}, "response='counting'.*photon_counting"),
        ({"scintillator": CSI}, "scintillator_um=None"),
        ({"scintillator_um": 100}, "scintillator=None"),
        ({"scintillator": "unobtainium", "scintillator_um": 100}, "unobtainium"),
        ({"scintillator": CSI, "scintillator_um": -1}, "scintillator_um=-1"),
        ({"electrons_per_photon": 0, "photons": 10}, "electrons_per_photon=0"),
        ({"electrons_per_photon": 5}, "electrons_per_photon=5.*needs photons"),
        ({"photons": 100, "dark_e": 5}, "dark_e=5.*needs electrons_per_photon"),
        ({"photons": 100, "electronic_noise_e": [0, 5]}, "electronic_noise_e=.*needs electrons_per_photon"),
        ({"photons": 100, "electrons_per_photon": 9, "response": "photon_counting"}, "no electrons"),
        ({"psf_fwhm_px": -1}, "psf_fwhm_px=-1"),
        ({"focal_spot_um": float("nan")}, "focal_spot_um=nan"),
        ({"flat_variation": 0.6}, "flat_variation=0.6.*0.5"),
        ({"flat_drift": -0.1}, "flat_drift=-0.1"),
        ({"n_flats": 1.5}, "n_flats=1.5"),
        ({"n_flats": None}, "n_flats=None"),
        ({"n_flats": True}, "n_flats=True"),
        ({"bits": 0}, "bits=0"),
        ({"bits": 32}, "bits=32"),
        ({"saturation": 0}, "saturation=0"),
        ({"saturation": "full"}, "saturation='full'"),
        ({"dead_pixels": 2}, "dead_pixels=2"),
        ({"hot_pixels": "0"}, "hot_pixels='0'"),
        ({"zingers": 0.5}, "zingers=0.5"),
    ],
)
def test_bad_detectors_get_one_line(arguments, names):
    with pytest.raises(ValueError, match=names) as caught:
        Detector(**arguments)
    assert "\n" not in str(caught.value)


GOOD = np.full((4, 5), 0.5, np.float32)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"signal": np.ones(5, np.float32)}, "signal must be an array"),
        ({"signal": [[1.0]]}, "signal must be an array"),
        ({"signal": GOOD * 0}, "signal must be finite and above 0"),
        ({"signal": GOOD * np.float32(np.nan)}, "signal must be finite"),
        ({"second": GOOD[:2]}, r"second must have the shape of the signal, \(4, 5\)"),
        ({"second": -GOOD}, "second must be finite and above 0"),
        ({"out": np.empty((4, 5))}, "out must be float32"),
        ({"open_second": 0}, "open_second=0"),
        ({"blur_px": -1}, "blur_px=-1"),
    ],
)
def test_bad_arrays_get_one_line(arguments, names):
    detector = Detector(photons=100)
    arguments = {"signal": GOOD, "second": None, **arguments}
    with pytest.raises(ValueError, match=names) as caught:
        detector.detect(parameters=detector.draw(np.random.default_rng(0)), **arguments)
    assert "\n" not in str(caught.value)


def test_a_magnification_below_one_is_refused():
    with pytest.raises(ValueError, match="magnification"):
        penumbra_px(1.0, 0.5, 1.0)
