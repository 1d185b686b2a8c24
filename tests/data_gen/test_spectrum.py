"""The tube against the published mean energy, and its filter against Beer–Lambert with other tables; lines; files."""

import hashlib
import json
import pickle
from dataclasses import asdict

import numpy as np
import pytest
import xraydb

from data_gen.materials import LIBRARY
from data_gen.spectrum import MeasuredSpectrum, Monochromatic, NarrowBand, Source, Tube


@pytest.mark.parametrize(("step_kev", "mean_kev"), [(0.5, 38.51), (0.1, 38.48)])
def test_the_mean_energy_of_the_published_source(step_kev, mean_kev):
    spectrum = Tube(kvp=140, anode_angle_deg=12, physics="casim", energy_step_kev=step_kev).spectrum()
    assert spectrum.mean_energy_kev == pytest.approx(mean_kev, abs=0.005)  # half of the last digit
    assert spectrum.weights.sum() == pytest.approx(1, abs=1e-12)
    assert (spectrum.weights > 0).all()
    np.testing.assert_allclose(np.diff(spectrum.energies_kev), step_kev, rtol=1e-6)  # no bin twice
    assert spectrum.energies_kev[-1] < 140


@pytest.fixture(scope="module")
def bare():
    return Tube(energy_step_kev=0.5).spectrum()


@pytest.fixture(scope="module")
def filtered():
    return Tube(energy_step_kev=0.5, filters_mm={"Al": 1.0}).spectrum()


def test_a_millimetre_of_aluminium_hardens_the_beam(filtered):
    assert filtered.mean_energy_kev == pytest.approx(55.2, abs=0.1)


def test_a_filter_attenuates_by_the_law_of_beer_and_lambert(bare, filtered):
    use = filtered.energies_kev > 5
    assert use.sum() > 250
    before = np.interp(filtered.energies_kev[use], bare.energies_kev, bare.weights)
    depth = LIBRARY["Al"].attenuation_1_cm(filtered.energies_kev[use]) * 0.1
    ours = before * np.exp(-depth)
    ours /= ours.sum()
    theirs = filtered.weights[use] / filtered.weights[use].sum()
    # µ differs by at most 4.5 % between the tables (SpekPy interpolates): that share of each optical depth, and of
    # their photon-weighted mean through the normalisation
    tolerance = 0.045 * (depth + theirs @ depth)
    assert (np.abs(np.log(ours / theirs)) <= tolerance).all()


def test_more_voltage_means_harder():
    soft, hard = (Tube(kvp=kvp, energy_step_kev=1.0).spectrum() for kvp in (60, 120))
    assert soft.mean_energy_kev < hard.mean_energy_kev
    assert soft.energies_kev[-1] < 60 < hard.energies_kev[-1] < 120


def test_a_monochromatic_source_is_one_bin():
    spectrum = Monochromatic(33).spectrum()
    assert spectrum.energies_kev.tolist() == [33.0] and spectrum.weights.tolist() == [1.0]
    assert spectrum.mean_energy_kev == 33.0


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"kvp": 10}, "kvp=10"),
        ({"kvp": 400}, "kvp=400"),
        ({"kvp": float("nan")}, "kvp=nan"),
        ({"kvp": "140"}, "kvp='140'"),
        ({"kvp": None}, "kvp=None"),
        ({"anode_angle_deg": 0}, "anode_angle_deg=0"),
        ({"energy_step_kev": 0.01}, "energy_step_kev=0.01"),
        ({"anode": "Fe"}, "anode='Fe'.*W, Mo, Rh, Cr, Cu, Ag, Au"),
        ({"anode": "Mo", "kvp": 40, "physics": "legacy"}, "physics='legacy' is for anode W only"),
        ({"anode": "Cu", "kvp": 40, "physics": "spekcalc"}, "physics='spekcalc' is for anode W only"),
        ({"anode": "Mo"}, "kVp is out of range"),  # 140 kV
        ({"physics": "magic"}, "physics='magic'.*casim"),
        ({"filters_mm": {"Al": -1}}, "Al=-1 must"),
        ({"filters_mm": {"Unobtainium": 1}}, "Unobtainium"),
        ({"filters_mm": {"Al": "1"}}, "filters_mm"),
        ({"filters_mm": ["Al"]}, "filters_mm"),
    ],
)
def test_bad_tubes_get_one_line(arguments, names):
    with pytest.raises(ValueError, match=names) as caught:
        Tube(**arguments)
    assert "\n" not in str(caught.value)


def test_a_filter_that_lets_nothing_through_is_refused():
    with pytest.raises(ValueError, match="filters_mm"):
        Tube(kvp=20, filters_mm={"W": 100.0}).spectrum()


@pytest.mark.parametrize("energy", [0, -3, 801, float("nan"), "30", None])
def test_bad_monochromatic_energies(energy):
    with pytest.raises(ValueError, match="energy_kev="):
        Monochromatic(energy)


@pytest.mark.parametrize("anode", ["W", "Mo", "Rh", "Cr", "Cu", "Ag", "Au"])
def test_every_anode_shines_in_its_own_lines(anode):
    spectrum = Tube(anode=anode, kvp=45, energy_step_kev=0.1).spectrum()
    line = "La1" if anode in ("W", "Au") else "Ka1"  # 45 kV do not reach the K lines of the heavy ones
    energy = xraydb.xray_lines(anode)[line].energy / 1e3
    near = np.abs(spectrum.energies_kev - energy) <= 0.05 + 1e-9  # half a bin
    beside = np.abs(np.abs(spectrum.energies_kev - energy) - 0.5) < 0.1
    assert near.any() and spectrum.weights[near].max() > 3 * spectrum.weights[beside].min()


@pytest.mark.parametrize(
    "physics", ["casim", "kqp", "sim", "uni", "diff", "classical", "spekpy-v1", "spekcalc", "legacy"]
)
def test_every_physics_model_gives_a_tungsten_spectrum(physics):
    spectrum = Tube(physics=physics, kvp=100, energy_step_kev=1.0, filters_mm={"Al": 2.5}).spectrum()
    # the IEC's beam of 100 kV and 2.5 to 3 mm Al, RQR 8, has a mean of 50.8 keV; the models differ by 2 keV
    assert spectrum.mean_energy_kev == pytest.approx(50, abs=3)
    assert spectrum.energies_kev[-1] < 100


def test_a_narrow_band_is_a_gaussian_of_its_bandwidth():
    spectrum = NarrowBand(energy_kev=20, bandwidth=0.02).spectrum()
    energies, weights = spectrum.energies_kev, spectrum.weights
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert spectrum.mean_energy_kev == pytest.approx(20, abs=1e-9)
    sigma = np.sqrt(weights @ (energies - 20) ** 2)
    # the cut at 4 sigma takes 2 · 4 φ(4) = 1.07e-3 of the variance and 6e-5 of the photons
    assert sigma * np.sqrt(8 * np.log(2)) == pytest.approx(0.4, rel=6e-4)
    above = energies[weights >= weights.max() / 2]
    assert above[-1] - above[0] == pytest.approx(0.4, abs=2 * np.diff(energies)[0])


def test_a_narrow_band_tends_to_one_energy():
    thin = NarrowBand(energy_kev=8.0, bandwidth=1e-6).spectrum()
    np.testing.assert_allclose(thin.energies_kev, 8.0, rtol=4e-6)


def test_a_narrow_band_on_an_edge_has_half_of_its_photons_on_each_side():
    edge = xraydb.xray_edge("Ni", "K").energy / 1e3
    spectrum = NarrowBand(energy_kev=edge, bandwidth=0.02).spectrum()
    absorbed = LIBRARY["Ni"].attenuation_1_cm(spectrum.energies_kev)
    high = absorbed > 2 * absorbed.min()
    assert spectrum.weights @ high == pytest.approx(0.5, abs=0.01)  # half a bin, 0.5 φ(0) / 20


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"energy_kev": [8, 9], "bandwidth": 0.01}, "energy_kev="),
        ({"energy_kev": 0.05, "bandwidth": 0.01}, "energy_kev=0.05"),
        ({"energy_kev": 8, "bandwidth": 0}, "bandwidth=0"),
        ({"energy_kev": 8, "bandwidth": 0.5}, "bandwidth=0.5"),
        ({"energy_kev": 8, "bandwidth": "1%"}, "bandwidth='1%'"),
        ({"energy_kev": 0.11, "bandwidth": 0.2}, "must stay in"),
        ({"energy_kev": 799, "bandwidth": 0.01}, "must stay in"),
    ],
)
def test_bad_narrow_bands_get_one_line(arguments, names):
    with pytest.raises(ValueError, match=names) as caught:
        NarrowBand(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "20 1\n30.5 3\n50 0\n",
        "# a tube\n20,1\n\n30.5,3  # the peak\n50,0\n",
        "energy_keV;photons\r\n2e1;1\r\n30.5; 3\r\n50;0\r\n",
        "\ufeff% comment\nE\tN\n20\t100\n30.5\t300\n50\t0",
    ],
)
def test_a_measured_spectrum_in_the_usual_forms(tmp_path, text):
    path = tmp_path / "beam.csv"
    path.write_bytes(text.encode())
    spectrum = MeasuredSpectrum(str(path)).spectrum()
    assert spectrum.energies_kev.tolist() == [20, 30.5]
    np.testing.assert_allclose(spectrum.weights, [0.25, 0.75], rtol=1e-15)


def test_a_recipe_with_a_measured_spectrum_knows_its_content(tmp_path):
    path = tmp_path / "beam.txt"
    path.write_text("20 1\n30 3\n")
    source = MeasuredSpectrum(str(path))
    assert isinstance(source, Source)
    recipe = json.loads(json.dumps(asdict(source)))
    assert recipe == {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert MeasuredSpectrum(**recipe) == source
    path.write_text("20 1\n30 4\n")
    # a source that has read its file keeps what it read, also on its way to a worker
    assert pickle.loads(pickle.dumps(source)).spectrum().weights.tolist() == [0.25, 0.75]
    assert MeasuredSpectrum(str(path)) != source
    with pytest.raises(ValueError, match="has changed") as caught:
        MeasuredSpectrum(**recipe)
    assert "\n" not in str(caught.value)


def test_a_tube_that_was_saved_is_the_same_tube(tmp_path):
    tube = Tube(kvp=60, energy_step_kev=1.0).spectrum()
    path = tmp_path / "tube.txt"
    np.savetxt(path, np.stack([tube.energies_kev, tube.weights], 1), header="keV photons", fmt="%.17g")
    saved = MeasuredSpectrum(str(path)).spectrum()
    np.testing.assert_array_equal(saved.energies_kev, tube.energies_kev)
    np.testing.assert_allclose(saved.weights, tube.weights, rtol=1e-14)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"", "holds no photons"),
        (b"# nothing\n", "holds no photons"),
        (b"20 0\n30 0\n", "holds no photons"),
        (b"20 1\n30\n", "line 2 .'30'. must be two numbers"),
        (b"20 1 5\n", "line 1 .* must be two numbers"),
        (b"20,5;1\n", "line 1 .* must be two numbers"),
        (b"energy photons\nkeV number\n20 1\n", "line 2 .* must be two numbers"),
        (b"20 1\n30 many\n", "line 2 .* must be two numbers"),
        (b"20 1\n20 2\n", "line 2 .* must rise"),
        (b"30 1\n20 2\n", "line 2 .* must rise"),
        (b"20000 1\n30000 2\n", "line 1 .* is the file in eV"),
        (b"nan 1\n", "line 1 .* energy"),
        (b"20 -1\n", "line 1 .* not negative"),
        (b"20 inf\n", "line 1 .* finite"),
        (b"\xff\xfe\x00\x81", "not a text file"),
    ],
)
def test_bad_spectrum_files_get_one_line(tmp_path, content, names):
    path = tmp_path / "beam.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=names) as caught:
        MeasuredSpectrum(str(path))
    assert "\n" not in str(caught.value) and "beam.txt" in str(caught.value)


@pytest.mark.parametrize("path", ["/nowhere/beam.txt", "/tmp", "", None, 5, "a\0b"])
def test_files_that_are_not_there_get_one_line(path):
    with pytest.raises(ValueError, match="path=") as caught:
        MeasuredSpectrum(path)
    assert "\n" not in str(caught.value)
