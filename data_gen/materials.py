"""Materials: formula and density to the linear attenuation coefficient µ(E)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real

import numpy as np
import xraydb

from data_gen.parameters import check_number

_ENERGY_RANGE_KEV = (0.1, 800.0)  # where the Elam tables that XrayDB carries are reliable


@dataclass(frozen=True)
class Material:
    """A homogeneous phase: a chemical formula, or a mixture of formulas by mass fraction, at a bulk density.

    Args:
        formula: e.g. ``"LiNi0.5Mn0.3Co0.2O2"``, or ``{"C": 0.5, "C2H2F2": 0.5}`` with mass fractions that sum to 1.
        density_g_cm3: [g/cm³] bulk density, with any porosity that the voxels do not resolve already counted in.

    Raises:
        ValueError: a formula that does not parse, fractions that do not sum to 1, a density outside (0, 25].
    """

    formula: str | Mapping[str, float]
    density_g_cm3: float

    def __post_init__(self):
        if not isinstance(self.formula, (str, Mapping)) or not self.formula:
            raise ValueError(f"formula={self.formula!r} must be a formula, or a mapping of formulas to mass fractions")
        mixture = {self.formula: 1.0} if isinstance(self.formula, str) else self.formula
        if not all(isinstance(share, Real) and share > 0 for share in mixture.values()):
            raise ValueError(f"formula={self.formula!r}: mass fractions must be positive numbers")
        if abs(sum(mixture.values()) - 1) > 1e-6:
            raise ValueError(f"formula={self.formula!r}: mass fractions must sum to 1, got {sum(mixture.values()):g}")
        for formula in mixture:
            _parse(formula)
        check_number("density_g_cm3", self.density_g_cm3, 1e-9, 25, "g/cm³")

    def mass_fractions(self) -> dict[str, float]:
        """Mass fraction of each element; they sum to 1."""
        mixture = {self.formula: 1.0} if isinstance(self.formula, str) else self.formula
        fractions: dict[str, float] = {}
        for formula, share in mixture.items():
            masses = {el: n * xraydb.atomic_mass(el) for el, n in _parse(formula).items()}
            total = sum(masses.values())
            for element, mass in masses.items():
                fractions[element] = fractions.get(element, 0.0) + share * mass / total
        return fractions

    def attenuation_1_cm(self, energies_kev: np.ndarray) -> np.ndarray:
        """Linear attenuation coefficient µ [1/cm], total cross-section with coherent scattering.

        Mixture rule µ = ρ Σ w_i (µ/ρ)_i over the tables of Elam, Ravel & Sieber (Radiat. Phys. Chem. 63, 2002),
        as XrayDB carries them.

        Args:
            energies_kev: [keV] photon energies, any shape, 0.1 to 800 keV.

        Returns:
            float64 array of the same shape.

        Raises:
            ValueError: an energy outside the tables.
        """
        return self._mixture(_mass_attenuation, energies_kev)

    def decrement(self, energies_kev: np.ndarray) -> np.ndarray:
        """Refractive index decrement δ of n = 1 − δ + iβ.

        δ = r_e λ² N_A ρ / 2π · Σ w_i (Z + f′)_i / A_i with the scattering factors of Chantler (J. Phys. Chem. Ref. Data
        29, 2000), as XrayDB carries them; hydrogen to uranium. It can be negative just below an edge of soft X-rays.

        Args:
            energies_kev: [keV] photon energies, any shape, 0.1 to 800 keV.

        Returns:
            float64 array of the same shape.

        Raises:
            ValueError: an energy outside the tables, an element beyond uranium.
        """
        return self._mixture(_mass_decrement, energies_kev)

    def _mixture(self, per_density: Callable, energies_kev: np.ndarray) -> np.ndarray:
        """ρ Σ w_i f_i(E) of a quantity that is tabulated per element and unit density."""
        energies = np.asarray(energies_kev, dtype=float)
        low, high = _ENERGY_RANGE_KEV
        if energies.size and not (energies.min() >= low and energies.max() <= high):
            raise ValueError(
                f"energies of {energies.min():g} to {energies.max():g} keV leave the attenuation tables, "
                f"{low:g} to {high:g} keV"
            )
        total = np.zeros(energies.size)
        for element, fraction in self.mass_fractions().items():
            total += fraction * per_density(element, energies.ravel().tobytes())
        return self.density_g_cm3 * total.reshape(energies.shape)


@lru_cache(maxsize=256)
def _mass_attenuation(element: str, energies_kev: bytes) -> np.ndarray:
    """µ/ρ [cm²/g] from XrayDB, which takes eV and a tenth of a second; float64 energies as bytes, to be a key."""
    return np.asarray(xraydb.mu_elam(element, np.frombuffer(energies_kev) * 1e3))


@lru_cache(maxsize=256)
def _mass_decrement(element: str, energies_kev: bytes) -> np.ndarray:
    """δ/ρ [cm³/g] from XrayDB; float64 energies as bytes, to be a key."""
    energies = np.frombuffer(energies_kev)
    if not energies.size:
        return np.zeros(0)  # XrayDB looks for the smallest energy
    if xraydb.atomic_number(element) > 92:
        raise ValueError(f"element {element} has no refractive index: the tables of scattering factors end at uranium")
    return np.atleast_1d(xraydb.xray_delta_beta(element, 1.0, energies * 1e3)[0])


def _parse(formula: str) -> dict[str, float]:
    """Atoms of each element in a formula; one-line ValueError where XrayDB's has several."""
    try:
        atoms = xraydb.chemparse(formula)
        for element in atoms:
            xraydb.mu_elam(element, 10e3)  # the tables end at californium
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(f"formula={formula!r} is not a chemical formula: {str(error).splitlines()[0]}") from None
    if not atoms or min(atoms.values()) <= 0:
        raise ValueError(f"formula={formula!r} has no atoms; write for example 'LiNi0.5Mn0.3Co0.2O2'")
    return atoms


# Densities: CRC Handbook of Chemistry and Physics, room temperature, for elements, Li2O2 and compounds without a note.
# From the crystal's cell: NMC532, YSZ (8 mol%), GDC (10 mol%), LSM, LSCF. CBD: carbon black and PVDF (1.85 g/cm³ dense)
# at 50 % nanoporosity. Data sheets: PVDF homopolymer, carbon fibre of polyacrylonitrile, FeCr as Crofer 22 APU.
LIBRARY = {
    "air": Material({"N": 0.755, "O": 0.232, "Ar": 0.013}, 1.205e-3),
    "NMC532": Material("LiNi0.5Mn0.3Co0.2O2", 4.7),
    "graphite": Material("C", 2.26),
    "CBD": Material({"C": 0.5, "C2H2F2": 0.5}, 0.92),
    "Ni": Material("Ni", 8.908),
    "YSZ": Material("Zr0.852Y0.148O1.926", 5.96),
    "polyurethane": Material("C27H36N2O10", 1.2),
    "Al": Material("Al", 2.70),
    "PVDF": Material("C2H2F2", 1.78),
    "carbon_fibre": Material("C", 1.8),
    "Li2O2": Material("Li2O2", 2.31),
    "GDC": Material("Ce0.9Gd0.1O1.95", 7.22),
    "LSM": Material("La0.8Sr0.2MnO3", 6.5),
    "LSCF": Material("La0.6Sr0.4Co0.2Fe0.8O3", 6.35),
    "FeCr": Material({"Fe": 0.78, "Cr": 0.22}, 7.7),
    "Fe": Material("Fe", 7.874),
    # scintillators and sensors
    "CsI": Material("CsI", 4.51),
    "Gd2O2S": Material("Gd2O2S", 7.32),
    "LuAG": Material("Lu3Al5O12", 6.73),
    "YAG": Material("Y3Al5O12", 4.55),
    "Si": Material("Si", 2.33),
    "CdTe": Material("CdTe", 5.85),
}


def material(spec: str | Mapping | Material) -> Material:
    """A Material from a name in ``LIBRARY``, from a mapping of its constructor's arguments, or as it is.

    Raises:
        ValueError: an unknown name (the message lists the known ones) or unknown keys.
    """
    if isinstance(spec, Material):
        return spec
    if isinstance(spec, str):
        if spec not in LIBRARY:
            raise ValueError(
                f"material {spec!r} is unknown; known: {', '.join(LIBRARY)}; "
                "or give {'formula': ..., 'density_g_cm3': ...}"
            )
        return LIBRARY[spec]
    keys = set(spec) if isinstance(spec, Mapping) else None
    if keys != {"formula", "density_g_cm3"}:
        raise ValueError(f"material {spec!r} must be a name or have exactly the keys formula and density_g_cm3")
    return Material(**spec)
