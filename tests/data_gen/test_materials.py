"""Attenuation: the figures of the project, the mixture rule, and the NIST tables that SpekPy carries."""

import numpy as np
import pytest
from spekpy.DataTables import MuData

from data_gen.materials import LIBRARY, Material, material

ENERGIES_KEV = [10, 20, 40, 60, 100]
KNOWN_1_CM = {  # as printed: half a unit of the last digit is their error
    "NMC532": "535 81.6 11.85 4.11 1.42",
    "graphite": "5.36 1.00 0.469 0.396 0.342",
    "CBD": "3.75 0.594 0.214 0.168 0.141",
    "Ni": "1862 287 41.0 13.5 3.95",
    "YSZ": "336 321 50.6 16.8 4.49",
    "Al": "70.8 9.29 1.535 0.750 0.460",
}


@pytest.mark.parametrize("name", KNOWN_1_CM)
def test_known_values(name):
    printed = KNOWN_1_CM[name].split()
    half_digit = np.array([0.5 * 10.0 ** -len(p.partition(".")[2]) for p in printed])
    known = np.array(printed, float)
    error = np.abs(LIBRARY[name].attenuation_1_cm(ENERGIES_KEV) - known)
    assert (error <= half_digit + 3e-4 * known).all(), error  # the density of nickel: 8.91 there, 8.908 here


@pytest.mark.parametrize(
    ("symbol", "number", "nodes_kev"),
    [
        ("Al", 13, [5, 6, 8, 10, 15, 20, 30, 40, 50, 60, 80, 100, 150]),  # K edge at 1.56 keV
        ("C", 6, [5, 8, 10, 15, 20, 30, 40, 60, 80, 100]),
    ],
)
def test_the_nist_tables_agree_at_their_nodes(symbol, number, nodes_kev):
    nist = MuData("nist_mu.dat").get_mu_over_rho(number, np.array(nodes_kev, float))
    ours = Material(symbol, 1.0).attenuation_1_cm(nodes_kev)
    # two evaluations of the same experiments; both claim about 1 % above 5 keV away from edges
    np.testing.assert_allclose(ours, nist, rtol=0.01)


def test_the_k_edge_of_nickel_is_where_it_belongs():
    below, above = LIBRARY["Ni"].attenuation_1_cm([8.32, 8.34])  # edge at 8.333 keV
    assert above / below > 5  # the K jump ratio of elements near Z = 28 is 7 to 8


def test_a_compound_is_the_mixture_of_its_elements_by_mass():
    oxygen = 1.926 * 15.999 / (0.852 * 91.224 + 0.148 * 88.906 + 1.926 * 15.999)
    yttrium = 0.148 * 88.906 / (0.852 * 91.224 + 0.148 * 88.906 + 1.926 * 15.999)
    parts = {"O": oxygen, "Y": yttrium, "Zr": 1 - oxygen - yttrium}
    energies = np.linspace(5, 100, 40)
    np.testing.assert_allclose(  # standard atomic masses of five digits
        Material(parts, 5.96).attenuation_1_cm(energies), LIBRARY["YSZ"].attenuation_1_cm(energies), rtol=5e-5
    )
    fractions = LIBRARY["YSZ"].mass_fractions()
    assert fractions == pytest.approx(parts, rel=5e-5)
    assert sum(fractions.values()) == pytest.approx(1, abs=1e-12)


def test_a_mixture_of_compounds_that_share_an_element():
    energies = np.array([10.0, 30.0])
    pair = [Material(f, 1.0).attenuation_1_cm(energies) for f in ("C", "C2H2F2")]
    mixed = Material({"C": 0.3, "C2H2F2": 0.7}, 2.0).attenuation_1_cm(energies)
    np.testing.assert_allclose(mixed, 2.0 * (0.3 * pair[0] + 0.7 * pair[1]), rtol=1e-12)


def test_attenuation_is_proportional_to_density():
    energies = np.array([7.0, 50.0])
    np.testing.assert_allclose(
        Material("Fe", 7.5).attenuation_1_cm(energies), 2.5 * Material("Fe", 3.0).attenuation_1_cm(energies), rtol=1e-14
    )


@pytest.mark.parametrize(
    ("spec", "electrons_mol_g"),
    [
        (Material("C", 2.26), 6 / 12.011),
        (Material("Al", 2.70), 13 / 26.9815),
        (Material("C2H2F2", 1.78), (2 * 6 + 2 * 1 + 2 * 9) / (2 * 12.011 + 2 * 1.008 + 2 * 18.998)),
        (Material({"C": 0.5, "Al": 0.5}, 2.0), 0.5 * 6 / 12.011 + 0.5 * 13 / 26.9815),
    ],
)
def test_the_decrement_far_above_the_edges_is_that_of_free_electrons(spec, electrons_mol_g):
    energies = np.array([30.0, 50.0, 100.0])
    wavelength_cm = 12.398419843e-8 / energies
    electrons_cm3 = spec.density_g_cm3 * 6.02214076e23 * electrons_mol_g
    free = 2.8179403e-13 * wavelength_cm**2 * electrons_cm3 / (2 * np.pi)
    # what bound electrons change, for Al, the heaviest, at 30 keV: 1.5 (E_K/E)² ln (E/E_K)² = 0.024 of a K shell with
    # E_K = 1.56 keV, and a relativistic correction of 5/3 · 6.6 keV / 511 keV = −0.022, of 13 electrons
    np.testing.assert_allclose(spec.decrement(energies), free, rtol=(0.024 + 0.022) / 13)


def test_the_decrement_dips_at_an_edge_and_follows_the_shape_of_the_energies():
    nickel = LIBRARY["Ni"]
    relative = nickel.decrement([[7.5, 8.333], [10.0, 30.0]]) * np.array([[7.5, 8.333], [10.0, 30.0]]) ** 2
    assert (
        relative.shape == (2, 2) and relative[0, 1] == relative.min()
    )  # λ² taken out, the K edge at 8.333 keV is left
    assert nickel.decrement([]).shape == (0,) and nickel.decrement(30.0).shape == ()


def test_decrements_that_the_tables_lack_get_one_line():
    with pytest.raises(ValueError, match=r"Pu .*uranium"):
        Material("Pu", 19.8).decrement(30.0)
    with pytest.raises(ValueError, match="attenuation tables"):
        LIBRARY["Ni"].decrement(801.0)


def test_any_shape_of_energies_comes_back():
    energies = np.array([[10.0, 20.0], [40.0, 60.0]])
    result = LIBRARY["Al"].attenuation_1_cm(energies)
    assert result.shape == (2, 2) and result.dtype == np.float64
    assert result[1, 0] == LIBRARY["Al"].attenuation_1_cm(40.0) == LIBRARY["Al"].attenuation_1_cm([40.0])[0]


def test_a_result_can_be_changed_without_harm():
    first = LIBRARY["Al"].attenuation_1_cm([33.0])
    kept = first.copy()
    first *= 0
    np.testing.assert_array_equal(LIBRARY["Al"].attenuation_1_cm([33.0]), kept)


def test_material_takes_a_name_a_mapping_or_a_material():
    assert material("Ni") is LIBRARY["Ni"]
    assert material(LIBRARY["Ni"]) is LIBRARY["Ni"]
    assert material({"formula": "Ni", "density_g_cm3": 8.908}) == LIBRARY["Ni"]


@pytest.mark.parametrize(
    ("formula", "density", "names"),
    [
        ("Xx2", 1, "formula='Xx2'"),
        ("ni", 1, "formula='ni'"),
        ("Ni(", 1, "formula="),
        ("", 1, "formula="),
        ({}, 1, "formula="),
        ({"C": 0.5, "Ni": 0.4}, 1, "sum to 1"),
        ({"C": 1.5, "Ni": -0.5}, 1, "positive"),
        ({"C": float("nan")}, 1, "formula="),
        ({"C": "1"}, 1, "formula="),
        (None, 1, "formula="),
        (5, 1, "formula="),
        ("Ni", 0, "density_g_cm3=0"),
        ("Ni", -1, "density_g_cm3=-1"),
        ("Ni", 8908, "density_g_cm3=8908"),
        ("Ni", float("nan"), "density_g_cm3=nan"),
        ("Ni", "8.9", "density_g_cm3='8.9'"),
        ("Ni", None, "density_g_cm3=None"),
    ],
)
def test_bad_materials_get_one_line(formula, density, names):
    with pytest.raises(ValueError, match=names) as caught:
        Material(formula, density)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    ["nickel", 3, None, {"formula": "Ni"}, {"formula": "Ni", "density_g_cm3": 8.9, "porosity": 0.1}, ["Ni", 8.9]],
)
def test_an_unknown_name_or_key_gets_one_line(spec):
    with pytest.raises(ValueError, match="material") as caught:
        material(spec)
    assert "\n" not in str(caught.value)
    if spec == "nickel":
        assert all(name in str(caught.value) for name in LIBRARY)


@pytest.mark.parametrize("energy", [0.05, 801.0, -1.0, float("nan")])
def test_energies_outside_the_tables_are_refused(energy):
    with pytest.raises(ValueError, match="attenuation tables"):
        LIBRARY["Ni"].attenuation_1_cm([30.0, energy])
