"""Beer–Lambert against independent sums, the merging of energies, and what a reconstruction must return."""

import numpy as np
import pytest

from data_gen.materials import LIBRARY, Material
from data_gen.scan import Scanner, merge_energies, transmission
from data_gen.spectrum import Monochromatic, Tube

UM = 1e-4  # cm
AIR, NMC, NICKEL = (LIBRARY[name] for name in ("air", "NMC532", "Ni"))


def disc(n, radius, fine=8):
    """Fractions of background and disc, (2, n, n), in the middle of n × n pixels."""
    at = (np.arange(n * fine) + 0.5) / fine - n / 2
    inside = at[:, None] ** 2 + at[None] ** 2 <= radius**2
    share = inside.reshape(n, fine, n, fine).mean((1, 3)).astype(np.float32)
    return np.stack([1 - share, share])


def radii_of(n):
    at = np.arange(n) + 0.5 - n / 2
    return np.hypot(at[:, None], at[None])


@pytest.fixture(scope="module")
def unfiltered():
    return Tube().spectrum()


def scanner(**changes):
    return Scanner(**{"source": Monochromatic(40.0), "n_angles": 180, "noise_sd": 0.0} | changes)


# float32 sums of n terms, each exp(-x) with x rounded: relative error (n / 2 + x) · 2⁻²⁴ at most
def float32_error(n_energies, deepest):
    return (n_energies / 2 + 4 * deepest) * 2.0**-24


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


@pytest.mark.parametrize("material", [NMC, NICKEL], ids=["NMC532", "Ni"])
def test_one_energy_returns_the_attenuation_of_the_table(material):
    n, radius = 96, 40
    image = scanner(n_angles=360).reconstruct(disc(n, radius), [AIR, material], 0.5)
    mu = material.attenuation_1_cm(40.0)
    interior = image[radii_of(n) < radius - 4]
    assert image.dtype == np.float32 and image.shape == (n, n)
    # chords err by 0.13 of 80 pixels on average and √2/√6 each: derived in test_projection.py
    assert interior.mean() == pytest.approx(mu, rel=0.13 / 80)
    assert interior.std() / mu < np.sqrt(2 / 6) * np.sqrt((np.pi**2 / 18 - 1 / 6) / 360)


def test_one_energy_does_not_depend_on_the_voxel_size_nor_on_the_order_of_phases():
    fractions = disc(48, 18)
    fine = scanner(n_angles=90).reconstruct(fractions, [AIR, NMC], 0.1)
    coarse = scanner(n_angles=90).reconstruct(fractions, [AIR, NMC], 2.0)
    swapped = scanner(n_angles=90).reconstruct(fractions[::-1], [NMC, AIR], 2.0)
    # -ln T of float32 T near 1: 2⁻²⁴ absolute, over µ times a pixel of 0.1 µm; the ramp of 90 views amplifies by < 1
    error = 5 * 2.0**-24 / (0.1 * UM)
    np.testing.assert_allclose(coarse, fine, rtol=0, atol=error)
    np.testing.assert_allclose(swapped, coarse, rtol=0, atol=5 * 2.0**-24 * 10 / (2 * UM))


def test_a_tube_cups_and_one_energy_does_not():
    n, radius = 128, 50  # 0.1 mm of NMC532 behind 1 mm of aluminium: 8.5 % (printed to half a per cent)
    far = radii_of(n)
    depth = {}
    for name, source in (
        ("tube", Tube(filters_mm={"Al": 1.0}, energy_step_kev=0.5)),
        ("mono", Monochromatic(40.0)),
    ):
        image = scanner(source=source, n_angles=360).reconstruct(disc(n, radius), [AIR, NMC], 1.0)
        centre, edge = image[far < 10].mean(), image[(far > radius - 8) & (far < radius - 3)].mean()
        depth[name] = 1 - centre / edge
    assert depth["tube"] == pytest.approx(0.085, abs=0.005)
    assert abs(depth["mono"]) < 0.13 / 80 * 2  # both means err as in the test above


def test_hardening_makes_less_of_a_thicker_object():
    tube = Tube(energy_step_kev=0.5, filters_mm={"Al": 0.5})
    thin, thick = (
        scanner(source=tube, n_angles=90).reconstruct(disc(48, 18), [AIR, NMC], size)[20:28, 20:28].mean()
        for size in (0.01, 2.0)
    )
    spectrum = tube.spectrum()
    mean_mu = spectrum.weights @ NMC.attenuation_1_cm(spectrum.energies_kev)
    assert thick < 0.95 * thin
    # 0.36 µm: -ln T ≤ <µ> L, and short of it by var(µ) L / 2, which the table gives; then the error of the chords
    variance = spectrum.weights @ NMC.attenuation_1_cm(spectrum.energies_kev) ** 2 - mean_mu**2
    assert mean_mu - variance * 0.36 * UM < thin * (1 + 0.13 / 36 * 4)
    assert thin < mean_mu * (1 + 0.13 / 36 * 4)


@pytest.mark.parametrize("n_slices", [1, 3])
def test_a_flat_sample_is_a_slice_of_a_volume(n_slices):
    rng = np.random.default_rng(0)
    share = rng.random((24, 30, n_slices)).astype(np.float32)
    fractions = np.stack([1 - share, share])
    source = scanner(source=Tube(energy_step_kev=1.0, filters_mm={"Al": 1.0}), n_angles=30)
    volume = source.reconstruct(fractions, [AIR, NMC], 1.0)
    assert volume.shape == (24, 30, n_slices)
    for k in range(n_slices):
        np.testing.assert_array_equal(volume[..., k], source.reconstruct(fractions[..., k], [AIR, NMC], 1.0))


def test_the_normalisation_can_be_undone():
    fractions = disc(40, 14)
    source = scanner(n_angles=60)
    raw = source.reconstruct(fractions, [AIR, NMC], 1.0)
    image, facts = source.scan(fractions, [AIR, NMC], 1.0, {"noise_sd": 0.0}, np.random.default_rng(0))
    assert image.dtype == np.float32
    assert image.min() == 0 and image.max() == pytest.approx(1, abs=2.0**-23)
    restored = image.astype(float) * facts["scale_1_cm"] + facts["offset_1_cm"]
    np.testing.assert_allclose(restored, raw, rtol=0, atol=4 * 2.0**-24 * facts["scale_1_cm"])  # four roundings
    assert facts["mean_energy_kev"] == 40.0


@pytest.mark.parametrize("noise_sd", [0.01, 0.2])
def test_the_noise_has_the_standard_deviation_asked(noise_sd):
    fractions, source = disc(96, 30), scanner(n_angles=20)
    clean, _ = source.scan(fractions, [AIR, NMC], 1.0, {"noise_sd": 0.0}, np.random.default_rng(7))
    noisy, _ = source.scan(fractions, [AIR, NMC], 1.0, {"noise_sd": noise_sd}, np.random.default_rng(7))
    noise = noisy.astype(float) - clean
    n = noise.size
    assert noise.std() == pytest.approx(noise_sd, rel=4 / np.sqrt(2 * n))  # four standard errors
    assert abs(noise.mean()) < 4 * noise_sd / np.sqrt(n)
    neighbours = np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(n)  # white
    again, _ = source.scan(fractions, [AIR, NMC], 1.0, {"noise_sd": noise_sd}, np.random.default_rng(7))
    np.testing.assert_array_equal(noisy, again)


def test_a_noise_range_is_drawn_per_scan():
    source = scanner(noise_sd=[0.02, 0.03])
    rng = np.random.default_rng(0)
    drawn = [source.draw(rng)["noise_sd"] for _ in range(50)]
    assert len(set(drawn)) == 50 and min(drawn) >= 0.02 and max(drawn) <= 0.03


@pytest.mark.parametrize("source", [Monochromatic(40.0), Tube(energy_step_kev=1.0, filters_mm={"Al": 1.0})])
def test_phases_of_equal_attenuation_get_a_clear_error(source):
    twin = Material({"Ni": 1.0}, 8.908)
    with pytest.raises(ValueError, match="same attenuation"):
        scanner(source=source, n_angles=30).scan(
            disc(32, 10), [NICKEL, twin], 1.0, {"noise_sd": 0.0}, np.random.default_rng(0)
        )


def test_an_object_that_stops_every_photon_gets_a_clear_error():
    with pytest.raises(ValueError) as caught:  # 32 × 50 µm of nickel at 5 keV: exp(-1000) is 0 in float32
        scanner(source=Monochromatic(5.0), n_angles=30).reconstruct(disc(32, 10), [AIR, NICKEL], 50.0)
    assert "same attenuation" not in str(caught.value) and "\n" not in str(caught.value)


def test_as_many_materials_as_fractions():
    with pytest.raises(ValueError, match="2 phases need as many materials, got 1"):
        scanner().reconstruct(disc(32, 10), [NMC], 1.0)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"source": "Tube"}, "source='Tube'"),
        ({"source": Tube}, "source="),
        ({"n_angles": 0}, "n_angles=0"),
        ({"n_angles": 1.5}, "n_angles=1.5"),
        ({"n_angles": True}, "n_angles=True"),
        ({"angular_range_deg": 0.5}, "angular_range_deg=0.5"),
        ({"angular_range_deg": 361}, "angular_range_deg=361"),
        ({"angular_range_deg": [90, 180]}, "angular_range_deg"),
        ({"filter_name": "hanning"}, "filter_name='hanning'.*ram-lak"),
        ({"noise_sd": -0.1}, "noise_sd=-0.1"),
        ({"noise_sd": [0.2, 0.1]}, "noise_sd"),
        ({"noise_sd": "0.1"}, "noise_sd"),
    ],
)
def test_bad_scanners(arguments, names):
    with pytest.raises(ValueError, match=names) as caught:
        scanner(**arguments)
    assert "\n" not in str(caught.value)
