"""X-ray sources: what a recipe names, and the spectrum that it emits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import spekpy

from data_gen.parameters import check_number

_PHYSICS = ("casim", "kqp", "uni", "diff", "classical", "spekpy-v1", "spekcalc", "legacy")
_ANODES = ("W", "Mo", "Rh")


@dataclass(frozen=True)
class Spectrum:
    """Photons against energy.

    Attributes:
        energies_kev: [keV] bin centres, float64, shape (n,), rising.
        weights: share of the photons in each bin, float64, shape (n,), sums to 1.
    """

    energies_kev: np.ndarray
    weights: np.ndarray

    @property
    def mean_energy_kev(self) -> float:
        """Photon-weighted mean energy [keV]."""
        return float(self.weights @ self.energies_kev)


@dataclass(frozen=True)
class Tube:
    """An X-ray tube, modelled by SpekPy (Poludniowski et al., Med. Phys. 48, 2021).

    Args:
        kvp: [kV] tube voltage, 20 to 300.
        anode_angle_deg: [°] angle of the anode.
        anode: target material, W, Mo or Rh.
        filters_mm: [mm] thickness by SpekPy material name, e.g. ``{"Al": 1.0}``.
        physics: SpekPy's name of the physics model.
        energy_step_kev: [keV] bin width. Without a filter 0.1 keV is needed: the tungsten L lines straddle the nickel
            K edge, and 0.5 keV bins misjudge −ln T of nickel by a third. With 0.5 mm Al, 0.5 keV is enough (1.3 %).
            Unfiltered at 140 kV, 12°, the mean is 38.51 keV with 0.5 keV bins and 38.48 keV with 0.1 keV bins,
            since the lowest bin centre moves from 1.25 to 1.05 keV.

    Raises:
        ValueError: a value outside its range or an unknown name.
    """

    kvp: float = 140.0
    anode_angle_deg: float = 12.0
    anode: str = "W"
    filters_mm: Mapping[str, float] = field(default_factory=dict)
    physics: str = "casim"
    energy_step_kev: float = 0.1

    def __post_init__(self):
        for name, low, high, unit in (
            ("kvp", 20, 300, "kV"),
            ("anode_angle_deg", 1, 89, "°"),
            ("energy_step_kev", 0.05, 2, "keV"),
        ):
            check_number(name, getattr(self, name), low, high, unit)
        for name, known in (("anode", _ANODES), ("physics", _PHYSICS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; known: {', '.join(known)}")
        if not isinstance(self.filters_mm, Mapping):
            raise ValueError(f"filters_mm={self.filters_mm!r} must map SpekPy material names to mm, as {{'Al': 1.0}}")
        for name, thickness in self.filters_mm.items():
            check_number(f"filters_mm {name}", thickness, 0, 100, "mm")
        self.spectrum()  # SpekPy knows which filter materials and voltages exist

    def spectrum(self) -> Spectrum:
        """The photon spectrum on the central axis, normalised to one photon.

        Raises:
            ValueError: SpekPy cannot model it, or the filters absorb everything.
        """
        return _tube_spectrum(
            self.kvp,
            self.anode_angle_deg,
            self.anode,
            self.physics,
            self.energy_step_kev,
            tuple(self.filters_mm.items()),
        )


@dataclass(frozen=True)
class Monochromatic:
    """A source of one energy, such as a synchrotron beam behind a monochromator.

    Args:
        energy_kev: [keV] photon energy, 0.1 to 800.
    """

    energy_kev: float

    def __post_init__(self):
        check_number("energy_kev", self.energy_kev, 0.1, 800, "keV")

    def spectrum(self) -> Spectrum:
        """A spectrum of a single bin."""
        return Spectrum(np.array([float(self.energy_kev)]), np.ones(1))


@lru_cache(maxsize=8)
def _tube_spectrum(kvp, anode_angle_deg, anode, physics, energy_step_kev, filters_mm) -> Spectrum:
    """SpekPy takes a second for 1400 bins; a recipe asks for the same tube when it checks and when it scans."""
    try:
        model = spekpy.Spek(kvp=kvp, th=anode_angle_deg, targ=anode, physics=physics, dk=energy_step_kev)
        for name, thickness_mm in filters_mm:
            model.filter(name, thickness_mm)
        energies, fluence = model.get_spectrum()
    except Exception as error:  # SpekPy raises bare Exception
        reason = str(error).splitlines()[0]
        raise ValueError(f"SpekPy cannot model {anode} at {kvp} kV with filters {dict(filters_mm)}: {reason}") from None
    keep = fluence > 0
    if not keep.any():
        raise ValueError(f"filters_mm={dict(filters_mm)} absorb every photon of a {kvp} kV tube; take thinner ones")
    return Spectrum(energies[keep], fluence[keep] / fluence[keep].sum())
