"""X-ray sources: what a recipe names, and the spectrum that it emits."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import spekpy

from data_gen.parameters import check_number

_PHYSICS = ("casim", "kqp", "sim", "uni", "diff", "classical", "spekpy-v1", "spekcalc", "legacy")
_TUNGSTEN_ONLY = ("spekpy-v1", "spekcalc", "legacy")
_ANODES = ("W", "Mo", "Rh", "Cr", "Cu", "Ag", "Au")
_ENERGY_RANGE_KEV = (0.1, 800.0)  # of the attenuation tables
_FWHM_PER_SIGMA = math.sqrt(8 * math.log(2))


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
        anode: target material, W, Mo, Rh, Cr, Cu, Ag or Au; all but W up to 50 kV.
        filters_mm: [mm] thickness by SpekPy material name, e.g. ``{"Al": 1.0}``.
        physics: SpekPy's name of the physics model: casim, kqp, sim, uni, diff, classical; for W alone also
            spekpy-v1 and spekcalc (which SpekPy also calls legacy).
        energy_step_kev: [keV] bin width. Without a filter keep 0.1 keV, which errs by 0.2 % at most: the tungsten Lα
            lines lie just above the nickel K edge, and where the centre of their bin falls below it −ln T of nickel is
            off, by 25 % at 0.5 keV and by 2.5 % at 0.05 keV. With 0.5 mm Al, 0.5 keV is enough (0.2 %).
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
        if self.physics in _TUNGSTEN_ONLY and self.anode != "W":  # for legacy SpekPy gives tungsten without a word
            raise ValueError(f"physics={self.physics!r} is for anode W only, not {self.anode}; take casim")
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
        check_number("energy_kev", self.energy_kev, *_ENERGY_RANGE_KEV, "keV")

    def spectrum(self) -> Spectrum:
        """A spectrum of a single bin."""
        return Spectrum(np.array([float(self.energy_kev)]), np.ones(1))


@dataclass(frozen=True)
class NarrowBand:
    """A Gaussian line, such as a synchrotron beam behind a multilayer monochromator.

    Args:
        energy_kev: [keV] mean photon energy. The line ends at 4 standard deviations, which must lie in 0.1 to 800 keV.
        bandwidth: full width at half maximum relative to the energy, 1e-6 to 0.3; a multilayer has some 0.01 to 0.05.

    Raises:
        ValueError: a value outside its range, or a line that leaves the attenuation tables.
    """

    energy_kev: float
    bandwidth: float

    def __post_init__(self):
        check_number("energy_kev", self.energy_kev, *_ENERGY_RANGE_KEV, "keV")
        check_number("bandwidth", self.bandwidth, 1e-6, 0.3)
        energies = self.spectrum().energies_kev
        low, high = _ENERGY_RANGE_KEV
        if not low <= energies[0] <= energies[-1] <= high:
            raise ValueError(
                f"energy_kev={self.energy_kev!r} with bandwidth={self.bandwidth!r} reaches from {energies[0]:.3g} to "
                f"{energies[-1]:.3g} keV and must stay in [{low:g}, {high:g}] keV; take a smaller bandwidth"
            )

    def spectrum(self) -> Spectrum:
        """The line in 161 bins of 1/20 standard deviation; an edge in it misplaces 1 % of the photons at most."""
        steps = np.arange(-80, 81) / 20
        weights = np.exp(-(steps**2) / 2)
        return Spectrum(
            self.energy_kev * (1 + self.bandwidth / _FWHM_PER_SIGMA * steps),
            weights / weights.sum(),
        )


@dataclass(frozen=True)
class MeasuredSpectrum:
    """A spectrum from a text file of two columns: energy [keV], relative number of photons.

    Columns are separated by blanks, tabs, commas or semicolons; the decimal sign is a point. What follows # or % is a
    comment; a first line without any number is a heading. Energies rise; each is the centre of its own bin, and the
    second column is the number of photons *in the bin*, not per keV. Rows of zero photons are left out.

    The file is read once, at construction. Its hash becomes part of the recipe, and a recipe that carries a hash is
    refused when the file has changed since.

    Args:
        path: the file.
        sha256: hash of the file's bytes; None takes that of the file as it is.

    Raises:
        ValueError: a file that cannot be read, is not such a table (names the line), or has another hash.
    """

    path: str
    sha256: str | None = None

    def __post_init__(self):
        if not isinstance(self.path, (str, Path)) or not str(self.path):
            raise ValueError(f"path={self.path!r} must be the name of a file with two columns, keV and photons")
        object.__setattr__(self, "path", str(self.path))  # plain JSON
        try:
            content = Path(self.path).read_bytes()
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"path={self.path!r} is not a text file of two columns, keV and photons") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"path={self.path!r} cannot be read: {reason}") from None
        found = hashlib.sha256(content).hexdigest()
        if self.sha256 not in (None, found):
            raise ValueError(
                f"path={self.path!r} has changed: its sha256 is {found}, the recipe has {self.sha256!r}; "
                "restore the file, or leave sha256 out to accept the new one"
            )
        object.__setattr__(self, "sha256", found)
        object.__setattr__(self, "_spectrum", _parse_spectrum(text, self.path))  # travels to workers with the recipe

    def spectrum(self) -> Spectrum:
        """The file's spectrum, normalised to one photon."""
        return self._spectrum


Source = Tube | Monochromatic | NarrowBand | MeasuredSpectrum


def _parse_spectrum(text: str, path: str) -> Spectrum:
    """The table of ``MeasuredSpectrum``; a ValueError names file, line and rule."""
    rows: list[tuple[float, float]] = []
    low, high = _ENERGY_RANGE_KEV
    heading_allowed = True
    for number, line in enumerate(text.splitlines(), 1):
        content = re.split(r"[#%]", line)[0].strip()
        if not content:
            continue
        where = f"path={path!r}, line {number} ({line.strip()[:40]!r})"
        cells = re.split(r"\s*[,;]\s*|\s+", content)
        values = [_number(cell) for cell in cells]
        if heading_allowed and all(value is None for value in values):
            heading_allowed = False
            continue
        heading_allowed = False
        if len(values) != 2 or None in values:
            raise ValueError(f"{where} must be two numbers: energy in keV, relative number of photons")
        energy, photons = values
        if not low <= energy <= high:
            raise ValueError(f"{where}: the energy must lie in [{low:g}, {high:g}] keV; is the file in eV?")
        if rows and energy <= rows[-1][0]:
            raise ValueError(f"{where}: energies must rise from line to line")
        if not (photons >= 0 and math.isfinite(photons)):
            raise ValueError(f"{where}: the number of photons must be finite and not negative")
        rows.append((energy, photons))
    table = np.array([row for row in rows if row[1] > 0])
    if not len(table):
        raise ValueError(f"path={path!r} holds no photons: two columns are needed, energy in keV and number of photons")
    weights = table[:, 1] / table[:, 1].max()  # first to 1, so that no sum overflows
    return Spectrum(table[:, 0].copy(), weights / weights.sum())


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


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
    if not fluence.sum() > 0:
        raise ValueError(f"filters_mm={dict(filters_mm)} absorb every photon of a {kvp} kV tube; take thinner ones")
    share = fluence / fluence.sum()
    keep = share > 1e-30  # the softest bins behind a filter: numbers too small to divide by
    return Spectrum(energies[keep], share[keep] / share[keep].sum())
