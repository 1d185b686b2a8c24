"""The tube against the published mean energy, and its filter against Beer–Lambert with other tables."""

import numpy as np
import pytest

from data_gen.materials import LIBRARY
from data_gen.spectrum import Monochromatic, Tube


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
        ({"anode": "Cu"}, "anode='Cu'.*W, Mo, Rh"),
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
