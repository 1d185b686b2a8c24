"""Check the simulated scanner against closed forms and independent tables; exit code 1 when one check fails.

    python scripts/validate_physics.py --json results/physics.json --out docs

Each row has a quantity, its oracle, the measured error and a tolerance that follows from the discretisation, the
statistics or the accuracy of the oracle, never from what the code gives. With --out the errors of the energy sampling
are drawn, the default marked.
"""

import argparse
import os
import sys
import time
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # ASTRA's CPU projectors are the reference, on every machine

import numpy as np
import xraydb
from matplotlib.figure import Figure
from spekpy import Spek
from spekpy.DataTables import MuData, get_atomic_weight_data

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bundle.volume_io import atomic_path, write_json  # noqa: E402
from data_gen.artifacts import Stripes, add_stripes  # noqa: E402
from data_gen.detector import Detector  # noqa: E402
from data_gen.geometry import ConeBeam, ParallelBeam, Views  # noqa: E402
from data_gen.image_quality import edge_width  # noqa: E402
from data_gen.materials import LIBRARY, Material  # noqa: E402
from data_gen.projection import astra_iterate, forward  # noqa: E402
from data_gen.reconstruction import FBP  # noqa: E402
from data_gen.scan import Scanner, merge_energies, transmission  # noqa: E402
from data_gen.spectrum import Monochromatic, Spectrum, Tube  # noqa: E402

AIR, AL, GRAPHITE, NMC, NICKEL, YSZ = (LIBRARY[name] for name in ("air", "Al", "graphite", "NMC532", "Ni", "YSZ"))
ATOMS = {  # of the compounds, written out: the oracle of the mixture rule does not read formulas
    "NMC532": {"Li": 1, "Ni": 0.5, "Mn": 0.3, "Co": 0.2, "O": 2},
    "YSZ": {"Zr": 0.852, "Y": 0.148, "O": 1.926},
    "polyurethane": {"C": 27, "H": 36, "N": 2, "O": 10},
}
TABLE_ERROR = 0.01  # what the tables of attenuation claim above 10 keV away from edges
EPS = 2.0**-24  # rounding of float32
JOSEPH_RMS_PX = np.sqrt(2) / np.sqrt(12) * np.sqrt(2)  # a ray that enters and leaves, each within one step of √2
UM = 1e-4  # cm


@dataclass(frozen=True)
class Check:
    """One row of the table; it passes where the error is no more than the tolerance."""

    quantity: str
    oracle: str
    measured: str
    error: float
    tolerance: float
    why: str

    @property
    def passed(self) -> bool:
        return bool(self.error <= self.tolerance)


def disc(n: int, radius: float, centre: tuple[float, float] = (0, 0), fine: int = 8) -> np.ndarray:
    """Area fraction of a disc in n × n pixels; centre (x, y) in pixels from the rotation axis, float32."""
    at = (np.arange(n * fine) + 0.5) / fine - n / 2
    inside = (at - centre[0]) ** 2 + (-at[:, None] - centre[1]) ** 2 <= radius**2
    return inside.reshape(n, fine, n, fine).mean((1, 3)).astype(np.float32)


def far(n: int) -> np.ndarray:
    """Distance of each pixel from the axis."""
    at = np.arange(n) + 0.5 - n / 2
    return np.hypot(at[:, None], at)


def scan(scanner: Scanner, fractions, materials, voxel_size_um: float = 1.0, seed: int = 0) -> np.ndarray:
    """The image [1/cm] of phase fractions."""
    rng = np.random.default_rng(seed)
    return scanner.scan(np.asarray(fractions), materials, voxel_size_um, scanner.draw(rng), rng)[0]


def at_rest(geometry: ParallelBeam, start_angle_deg: float = 0.0) -> Views:
    return geometry.views({"start_angle_deg": start_angle_deg, "centre_offset_px": 0.0})


def response(spectrum: Spectrum) -> np.ndarray:
    """Share of each energy in the signal of an ideal energy-integrating detector."""
    charge = spectrum.weights * spectrum.energies_kev
    return charge / charge.sum()


def nodes(table: MuData, element: str) -> tuple[np.ndarray, np.ndarray]:
    """[keV], [cm²/g] of the NIST table from 10 to 800 keV, further than 5 % from any edge of the element."""
    number = xraydb.atomic_number(element)
    energies = np.array(table.mu_over_rho_coefficients_energies[number - 1], float) * 1e3
    edges = np.array([edge.energy for edge in xraydb.xray_edges(element).values()]) / 1e3
    away = (np.abs(energies[:, None] / edges - 1) > 0.05).all(1)
    use = away & (energies >= 10) & (energies <= 800)
    return energies[use], np.array(table.mu_over_rho_coefficients[number - 1], float)[use]


# Matter and spectrum


def attenuation(quick: bool) -> list[Check]:
    table, weights = MuData("nist_mu.dat"), get_atomic_weight_data()
    elements = sorted({e for m in LIBRARY.values() for e in m.mass_fractions()}, key=xraydb.atomic_number)
    worst, count = (0.0, ""), 0
    for element in elements:
        energies, theirs = nodes(table, element)
        error = np.abs(Material(element, 1.0).attenuation_1_cm(energies) / theirs - 1)
        count += len(energies)
        worst = max(worst, (float(error.max()), f"{element} at {energies[error.argmax()]:g} keV"))
    why = "accuracy that both tables claim; both evaluate the same cross-sections, so this tests reading and units"
    rows = [
        Check(
            f"µ/ρ of the {len(elements)} elements in the material library, {count} nodes from 10 to 800 keV",
            "NIST table that SpekPy carries, at its nodes more than 5 % from an edge",
            f"{worst[0]:.3%} at worst ({worst[1]})",
            worst[0],
            TABLE_ERROR,
            why,
        )
    ]
    worst = (0.0, "")
    for name, atoms in ATOMS.items():
        masses = {e: n * weights[e][1] for e, n in atoms.items()}
        tables = [dict(zip(*nodes(table, e), strict=True)) for e in atoms]
        energies = sorted(set.intersection(*(set(t) for t in tables)))
        mixed = [sum(m * t[e] for m, t in zip(masses.values(), tables, strict=True)) for e in energies]
        theirs = LIBRARY[name].density_g_cm3 * np.array(mixed) / sum(masses.values())
        error = np.abs(LIBRARY[name].attenuation_1_cm(energies) / theirs - 1)
        worst = max(worst, (float(error.max()), f"{name} at {energies[error.argmax()]:g} keV"))
    rows.append(
        Check(
            f"µ of {', '.join(ATOMS)}",
            "mixture rule by hand from the NIST table and its atomic weights",
            f"{worst[0]:.3%} at worst ({worst[1]})",
            worst[0],
            TABLE_ERROR,
            "as above",
        )
    )
    return rows


def interpolated(element: str, energies: np.ndarray) -> np.ndarray:
    """µ/ρ as SpekPy has it, a power law between the nodes of the table."""
    return MuData("nist_mu.dat").get_mu_over_rho(xraydb.atomic_number(element), energies)


def filters(quick: bool) -> list[Check]:
    """Transmission and mean energy behind a filter: SpekPy filters its own spectrum, this integrates over the bare."""
    rows = []
    for name, thickness_mm in (("Al", 1.0), ("Cu", 0.25))[: 1 if quick else 2]:
        density = {"Al": 2.70, "Cu": 8.96}[name]
        tube = Spek(kvp=140, th=12, physics="casim", dk=0.5)
        energies, bare = tube.get_spectrum()
        depth = Material(name, density).attenuation_1_cm(energies) * thickness_mm / 10
        ours = bare * np.exp(-depth)
        theirs = tube.filter(name, thickness_mm).get_spectrum()[1]
        share, shape = ours.sum() / bare.sum(), ours / ours.sum()
        error = abs(share / (theirs.sum() / bare.sum()) - 1)
        # between the nodes SpekPy follows a power law, off by what the same rule does to our table; d ln T = −d depth
        off = np.abs(interpolated(name, energies) * density * thickness_mm / 10 - depth)
        rows.append(
            Check(
                f"transmission of {thickness_mm:g} mm {name}, 140 kV tungsten tube",
                "numerical integral of the unfiltered spectrum against SpekPy's filter",
                f"{share:.4f} against {theirs.sum() / bare.sum():.4f}",
                error,
                float(shape @ off + 0.001 * (shape @ depth)),
                "relative; SpekPy's power law between the nodes of its table, weighed by the transmitted photons, and "
                "0.1 % of the depth for the tables",
            )
        )
        mean = shape @ energies
        library = Tube(filters_mm={name: thickness_mm}, energy_step_kev=0.5).spectrum().mean_energy_kev
        rows.append(
            Check(
                f"mean energy behind {thickness_mm:g} mm {name} [keV]",
                "the same integral, its first moment",
                f"{library:.3f} against {mean:.3f}",
                abs(library - mean),
                float(shape @ (np.abs(energies - mean) * (off + 0.001 * depth))),
                "keV; the same difference of the tables, weighed by the distance from the mean",
            )
        )
    mean = Tube(energy_step_kev=0.5).spectrum().mean_energy_kev
    rows.append(
        Check(
            "mean energy of 140 kV, 12°, unfiltered [keV]",
            "published value, 38.51 keV",
            f"{mean:.4f}",
            abs(mean - 38.51),
            0.005,
            "keV; half of the last printed digit",
        )
    )
    return rows


def slab(quick: bool) -> list[Check]:
    """From the spectrum to the signal behind a block whose rays at 0° and 90° are whole numbers of voxels long."""
    tube = Tube(filters_mm={"Al": 1.0}, energy_step_kev=0.5 if quick else 0.1)
    spectrum, scanner = tube.spectrum(), Scanner(source=tube, geometry=ParallelBeam(2))
    n, rows, views = 16, [], at_rest(scanner.geometry)
    fractions = np.zeros((3, n, n, 1), np.float32)
    fractions[1, : n // 4], fractions[2, n // 4 :] = 1, 1
    for name, material, voxels_um in (("NMC532", NMC, (5, 200, 2000)), ("Ni", NICKEL, (2, 50, 800))):
        worst, bound, least = 0.0, 0.0, 1.0
        for voxel_um in voxels_um:
            signal = scanner.project(fractions, [AIR, GRAPHITE, material], voxel_um, views, (n, n)).signal
            ours = -np.log(signal[0, signal.shape[1] // 2, 0].astype(float))
            paths = np.array([n // 4, 3 * n // 4]) * voxel_um * UM
            mu = np.stack([m.attenuation_1_cm(spectrum.energies_kev) for m in (GRAPHITE, material)])
            depth = paths @ mu
            passed = response(spectrum) * np.exp(-depth)
            theirs = -np.log(passed.sum())
            worst, least = max(worst, abs(ours - theirs)), min(least, float(passed.sum()))
            bound = max(bound, float(passed / passed.sum() @ depth**2) * 0.05**2 / 8 + EPS * (700 + 4 * depth.max()))
        rows.append(
            Check(
                f"−ln T of graphite and {name}, 1 mm Al, transmissions down to {least:.1e}",
                f"float64 sum over all {tube.energy_step_kev:g} keV bins",
                f"off by {worst:.1e}",
                worst,
                bound,
                "bins of like µ are joined: (optical depth)² · 0.05² / 8 of each one's share; float32 sums",
            )
        )
    return rows


# Geometry


def chords(quick: bool) -> list[Check]:
    n, radius, centre = 192, 60.0, (17.3, -9.6)
    geometry = ParallelBeam(180)
    views = at_rest(geometry)
    width = geometry.detectors((n, n, 1), 1.0)[0]
    ours = forward(disc(n, radius, centre)[..., None], views, (width, 1))[..., 0]
    angles = views.angles_rad[:, None]
    miss = np.arange(width) - (width - 1) / 2 - (centre[0] * np.cos(angles) + centre[1] * np.sin(angles))
    error = ours - 2 * np.sqrt(np.clip(radius**2 - miss**2, 0, None))
    error = error[np.abs(miss) < 0.9 * radius]
    rows = [
        Check(
            f"chords of an off-centre disc, radius {radius:g} px, 180 views, one by one",
            "2√(R² − u²), rays within 0.9 R",
            f"{np.sqrt((error**2).mean()):.3f} px rms ({np.abs(error).max():.2f} at most)",
            float(np.sqrt((error**2).mean())),
            JOSEPH_RMS_PX,
            "px rms; Joseph's samples lie up to √2 px apart: √2/√12 at either end of the chord",
        )
    ]
    blur = -0.5 * (1 / 12 + 1 / 6 * 0.82) * 2 * 0.9 / np.sqrt(1 - 0.9**2) / (0.9 * radius)  # ½ variance · mean chord''
    rows.append(
        Check(
            "the same, mean",
            f"−½ (variance of pixel and interpolation) · chord'' = {blur:.4f} px",
            f"{error.mean():.4f} px",
            float(abs(error.mean() - blur)),
            JOSEPH_RMS_PX / np.sqrt(180),
            "px; the rms above over the views, of which each meets the grid differently",
        )
    )
    return rows


def cone(quick: bool) -> list[Check]:
    n, radius, distance, fine = 48, 16.0, 90.0, 3
    centre = np.array([2.3, -1.7, 3.1])  # x, y, z from the axis
    at = (np.arange(n * fine) + 0.5) / fine - n / 2
    inside = (-at[:, None, None] - centre[1]) ** 2 + (at[:, None] - centre[0]) ** 2 + (at - centre[2]) ** 2 <= radius**2
    ball = inside.reshape(n, fine, n, fine, n, fine).mean((1, 3, 5)).astype(np.float32)
    geometry = ConeBeam(n_angles=24, source_object_mm=distance * 1e-3, source_detector_mm=1.0)
    views = at_rest(geometry)
    size = geometry.detectors((n, n, n), 1.0)
    ours = forward(ball, views, size, geometry.distance_px(1.0))
    u, v = (np.arange(k) - (k - 1) / 2 for k in size)
    cos, sin = np.cos(views.angles_rad)[:, None, None], np.sin(views.angles_rad)[:, None, None]
    source = np.stack([distance * sin, -distance * cos, 0 * sin], -1)
    ray = np.stack(np.broadcast_arrays(u[:, None] * cos, u[:, None] * sin, v), -1) - source
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    miss = np.linalg.norm(np.cross(centre - source, ray), axis=-1)
    error = (ours - 2 * np.sqrt(np.clip(radius**2 - miss**2, 0, None)))[miss < 0.9 * radius]
    return [
        Check(
            f"cone beam, chords of an off-centre ball, radius {radius:g} voxels, source {distance:g} voxels away",
            "distance of each ray from the centre, rays within 0.9 R",
            f"{np.sqrt((error**2).mean()):.3f} px rms",
            float(np.sqrt((error**2).mean())),
            JOSEPH_RMS_PX * np.sqrt(1.5),
            "px rms; as for the disc, the steps up to √3 long where a ray is also oblique to the slices",
        )
    ]


def adjointness(quick: bool) -> list[Check]:
    rng, n = np.random.default_rng(6), 64
    geometry = ParallelBeam(45)
    views = at_rest(geometry, 3)
    width = geometry.detectors((n, n, 1), 1.0)[0]
    image, sinogram = rng.random((n, n, 1), np.float32), rng.random((45, width, 1), np.float32)
    there = np.vdot(forward(image, views, (width, 1), backend="astra").astype(float), sinogram)
    back = astra_iterate(sinogram, views.angles_rad, (n, n, 1), "BP", 1)
    error = abs(there / np.vdot(image.astype(float), back) - 1)
    compiled = np.vdot(forward(image, views, (width, 1)).astype(float), sinogram)
    return [
        Check(
            "adjointness of ASTRA's linear projector and its back-projection",
            "⟨Ax, y⟩ = ⟨x, Aᵀy⟩, random x and y",
            f"{error:.1e}",
            float(error),
            np.sqrt(2) * n * EPS,
            "relative; float32 sums of up to √2 · 64 positive terms",
        ),
        Check(
            "the compiled projector against that adjoint",
            "the same product",
            f"{abs(compiled / there - 1):.1e}",
            float(abs(compiled / there - 1)),
            np.sqrt(2) * n * EPS,
            "as above: the same weights",
        ),
    ]


def invariance(quick: bool) -> list[Check]:
    n = 64
    image = np.random.default_rng(2).random((n, n, 1), np.float32)
    geometry = ParallelBeam(36, angular_range_deg=180)
    views = {a: at_rest(geometry, a) for a in (2, -88)}
    width = geometry.detectors((n, n, 1), 1.0)[0]
    turned = forward(np.rot90(image), views[2], (width, 1))  # by +90°, against the clock
    error = np.abs(turned - forward(image, views[-88], (width, 1))).max()
    return [
        Check(
            "object turned by 90° = start angle turned by −90°",
            "the same sinogram",
            f"{error:.1e} px at most",
            float(error),
            n * np.sqrt(2) * n / np.sqrt(2) * 4 * EPS,
            "px; samples along a ray, each at a position of up to n/√2 px after some four float32 roundings",
        )
    ]


def centre_shift(quick: bool) -> list[Check]:
    """Behind a wrong axis every ray passes a small disc at the distance of the offset: a ring, of 180° one half.

    The ramp makes a positive constant of the disc's chords and a negative tail beside them. So f(r) rises up to
    r = offset + radius, where the lines stop to touch the disc, and falls with infinite slope behind it.
    """
    n, offset, radius, rows = 192, 20.0, 2.0, []
    at, small = np.arange(n) + 0.5 - n / 2, disc(192, 2.0)
    for angular_range, what in ((180.0, "half a ring"), (360.0, "ring")):
        geometry = ParallelBeam(720, angular_range, centre_offset_px=offset)
        scanner = Scanner(source=Monochromatic(40.0), geometry=geometry, normalisation="none")
        image = scan(scanner, [1 - small, small], [AIR, NMC])
        axis = 4 * offset / np.pi if angular_range == 180 else 0.0  # below the middle: the disc is shown at its label
        row = int(n / 2 + axis)
        line = image[row - (axis == 0) : row + 1].mean(0)  # through the axis, along the detector of the first view
        left, right = (float(at[part][line[part].argmax()]) for part in (at < 0, at > 0))
        rows.append(
            Check(
                f"centre of rotation off by {offset:g} px, {angular_range:g}° scan of a disc of {radius:g} px: "
                f"width of the {what} [px]",
                f"2 (offset + radius) = {2 * (offset + radius):g} between the peaks",
                f"{right - left:g}",
                abs(right - left - 2 * (offset + radius)),
                2.0,
                "px; each peak on the grid of pixels",
            )
        )
        if angular_range == 180:
            down = at[:, None] - axis
            ring = np.abs(np.hypot(down, at) - offset) < radius
            upper, lower = (image[ring & (sign * down < -offset / 2)].mean() for sign in (1, -1))
            rows.append(
                Check(
                    "the same, brightness of the half that 180° leave out over that of the other",
                    "0: the lines touch the half ring from angle 0 to 180° only",
                    f"{lower / upper:+.3f}",
                    abs(lower / upper),
                    0.5,
                    "share; a shift of the wrong sign gives the reciprocal, both halves alike 1",
                )
            )
    return rows


# Noise, blur and faults


def noise(quick: bool) -> list[Check]:
    views, worst, level = 40 if quick else 200, 0.0, ""
    for photons in (200, 2_000, 20_000, 200_000):
        for transmitted in (0.05, 1.0):
            detector = Detector(photons=photons)
            signal = np.full((views, 100, 50), transmitted, np.float32)
            measured = detector.detect(signal, None, detector.draw(np.random.default_rng(photons)))
            ratio = float(measured.var(dtype=float)) * photons / transmitted
            if abs(ratio - 1) > worst:
                worst, level = abs(ratio - 1), f"{photons} photons, T = {transmitted:g}"
    size = views * 100 * 50
    rows = [
        Check(
            "variance of the transmission × photons / T, 200 to 200 000 photons, T = 0.05 and 1",
            "1 (Poisson)",
            f"off by {worst:.2%} at worst ({level})",
            worst,
            float(4.5 * np.sqrt((2 + 1 / 10) / size)),
            f"4.5 standard errors of a variance of {size} samples (8 such levels), kurtosis of 10 photons included",
        )
    ]
    n_angles, n, slices, photons = 180, 64, 16 if quick else 64, 20_000
    detector = Detector(photons=photons)
    ones = np.ones((n_angles, 2 * n, slices), np.float32)
    sinogram = -np.log(detector.detect(ones, None, detector.draw(np.random.default_rng(1))))
    angles = np.pi * np.arange(n_angles) / n_angles
    image = FBP().reconstruct(sinogram, angles, (n, n, slices))
    closed = (np.pi**2 / 18 - 1 / 6) / (n_angles * photons)
    # white noise behind the ramp: variance 1/12, −1/(2π²) with its neighbour; between pixels a mean of the two
    at = np.arange(n) + 0.5 - n / 2
    t = np.mod((at * np.cos(angles)[:, None])[:, None] + (at * np.sin(angles)[:, None])[..., None] - 0.5, 1)
    views = ((1 - t) ** 2 + t**2) / 12 - 2 * t * (1 - t) / (2 * np.pi**2)
    grid = float(views.mean() * np.pi**2 / (n_angles * photons) / closed - 1)
    ratio = float(image.var(dtype=float)) / closed
    rows.append(
        Check(
            "variance of an FBP image, ram-lak, 180 views, relative",
            "(π²/18 − 1/6) / (N_θ · I₀): white noise through the ramp and linear interpolation",
            f"off by {ratio - 1:+.2%}",
            abs(ratio - 1),
            # noise of spectrum ∝ f: Σ ρ² = ∫S²/(∫S)² = 1.43; of −ln: 1.5 / I₀
            float(abs(grid) + 4 * np.sqrt(2 * 1.43 / image.size) + 1.5 / photons),
            f"the oracle takes pixels to fall evenly between detectors, here they give {grid:+.2%}; and 4 standard "
            f"errors of {image.size} pixels whose noise has the spectrum of the ramp",
        )
    )
    return rows


def blur(quick: bool) -> list[Check]:
    rows, worst, bound = [], 0.0, 0.0
    for fwhm in (0.8, 2.0, 6.0):
        detector = Detector(psf_fwhm_px=fwhm)
        step = np.where(np.arange(200) < 100, 1, 0.5).astype(np.float32)[None]
        line = -np.diff(detector.detect(step, None, detector.draw(np.random.default_rng(0)))[0].astype(float))
        place = np.arange(199) - 99
        sigma = np.sqrt(line @ place**2 / line.sum() - (line @ place / line.sum()) ** 2)
        worst = max(worst, abs(sigma * np.sqrt(8 * np.log(2)) / fwhm - 1))
        support = np.ceil(4 * fwhm / 2.355) + 1
        bound = max(bound, 2 * EPS * support**3 / (fwhm / 2.355) ** 2)
    rows.append(
        Check(
            "width of the point spread from a knife edge, 0.8 to 6 px",
            "second moment of the line spread, √(8 ln 2) σ",
            f"off by {worst:.1e}",
            float(worst),
            float(bound),
            "relative; float32 rounding of the edge's values, weighed by their distance squared",
        )
    )
    n, radius, fwhm = 256, 90.0, 4.0
    widths = {}
    for psf in (0.0, fwhm):
        scanner = Scanner(
            source=Monochromatic(40.0),
            geometry=ParallelBeam(400),
            detector=Detector(psf_fwhm_px=psf),
            normalisation="none",
        )
        image = scan(scanner, [1 - disc(n, radius), disc(n, radius)], [AIR, NMC], 0.01)  # thin: −ln T is linear
        widths[psf] = edge_width(image, (disc(n, radius) > 0.5).astype(np.uint8), 1, 0)
    reached = np.sqrt(widths[fwhm] ** 2 - widths[0.0] ** 2)
    rows.append(
        Check(
            f"point spread of {fwhm:g} px in the reconstruction of a disc",
            "edge widths with and without it subtract in squares: a blur of the views is one of the image",
            f"{reached:.3f} px",
            abs(reached / fwhm - 1),
            0.05,
            "relative; the fit samples an edge every half pixel: up to 5 % (data_gen.image_quality)",
        )
    )
    return rows


def cupping(quick: bool) -> list[Check]:
    """f(r) = (2/π) ∫₀^{π/2} µ_eff(2 √(R² − r²) cos φ) dφ: Abel's inversion of the disc's polychromatic sinogram.

    µ_eff(L) = −d ln T / dL is the mean µ behind the path L. The inversion is exact; the integral over φ and the sum
    over the spectrum are numerical, in float64.
    """
    n, radius, rows = 192, 80.0, []
    tube = Tube(filters_mm={"Al": 1.0}, energy_step_kev=0.5)
    spectrum, distance = tube.spectrum(), far(n)
    scanner = Scanner(source=tube, geometry=ParallelBeam(360), normalisation="none")
    weight = response(spectrum)
    phi = (np.arange(200) + 0.5) / 200 * np.pi / 2

    def exact(r_px: np.ndarray, mu: np.ndarray, voxel_um: float) -> np.ndarray:
        path = 2 * np.sqrt(radius**2 - r_px[:, None] ** 2) * np.cos(phi) * voxel_um * UM
        passed = weight * np.exp(-path[..., None] * mu)
        return (passed @ mu / passed.sum(-1)).mean(1)

    for name, material, diameter_mm in (("NMC532", NMC, 0.1), ("NMC532", NMC, 0.5), ("Ni", NICKEL, 0.1)):
        voxel_um = diameter_mm * 1e3 / (2 * radius)
        fraction = disc(n, radius)
        image = scan(scanner, [1 - fraction, fraction], [AIR, material], voxel_um)
        mu = material.attenuation_1_cm(spectrum.energies_kev)
        rings = {"centre": distance < 0.1 * radius, "rim": np.abs(distance - 0.9 * radius) < 2}
        ours = {k: float(image[mask].mean()) for k, mask in rings.items()}
        at = np.sqrt(np.linspace(0, 0.95**2, 40)) * radius  # the profile is smooth in r²
        profile = exact(at, mu, voxel_um)
        theirs = {k: float(np.interp(distance[mask] ** 2, at**2, profile).mean()) for k, mask in rings.items()}
        depth, expected = (1 - v["centre"] / v["rim"] for v in (ours, theirs))
        rows.append(
            Check(
                f"cupping of {diameter_mm:g} mm {name}, 140 kV, 1 mm Al: 1 − centre / value at 0.9 R",
                "Abel's inversion of the analytic sinogram, (2/π) ∫ µ_eff(2√(R² − r²) cos φ) dφ",
                f"{depth:.2%} against {expected:.2%}; centre {ours['centre']:.3f} against {theirs['centre']:.3f} 1/cm",
                abs(depth - expected),
                3 * JOSEPH_RMS_PX / np.sqrt(360) / (2 * radius) * np.hypot(1, 1 / np.sqrt(1 - 0.9**2)),
                "share of the grey value; 3 standard errors of the chords of 360 views, 0.58/√360 px of 160 px, "
                "of 70 px at 0.9 R",
            )
        )
    return rows


def rings(quick: bool) -> list[Check]:
    """f(r) = ½ ∫₀^{2π} q(r cos α) dα for stripes of 360°, with q the ramp's kernel, linear between the pixels."""
    width, n_angles, n = 129, 1440, 91
    stripes = Stripes(full_share=1.5 / width, error_sd=0.05).draw(np.random.default_rng(4))  # rounds to 2 pixels
    sinogram = -np.log(add_stripes(np.ones((n_angles, width, 1), np.float32), stripes))
    gains = sinogram[0, :, 0].astype(float)
    angles = 2 * np.pi * np.arange(n_angles) / n_angles
    image = FBP().reconstruct(sinogram, angles, (n, n, 1))[..., 0]
    lag = np.arange(-width, width + 1)
    kernel = np.where(lag % 2 == 1, -1 / (np.pi * np.where(lag == 0, 1, lag)) ** 2, 0.0)
    kernel[width] = 0.25
    filtered = np.convolve(gains, kernel)[width : 2 * width]
    alpha = (np.arange(20000) + 0.5) / 20000 * 2 * np.pi
    radii = np.arange(1, n // 2)
    exact = [np.pi * np.interp(r * np.cos(alpha) + (width - 1) / 2, np.arange(width), filtered).mean() for r in radii]
    middle = n // 2  # whole radii to either side of the axis, along the detector of the first view
    ours = (image[middle, middle + radii] + image[middle, middle - radii]) / 2
    highest = np.abs(exact).max()
    # trapezoidal rule, (h²/8) r per unit of a kink; a stripe's kinks add up to 1.4 of its gain, met 2 × 2 times
    kinks = np.pi * 4 * 1.4 * np.abs(gains).max() * (2 * np.pi / n_angles) ** 2 * radii[-1] / 8 / (2 * np.pi)
    double = FBP().reconstruct(2 * sinogram, angles, (n, n, 1))[..., 0]
    linear = float(np.abs(double - 2 * image).max() / np.abs(double).max())
    at = np.flatnonzero(gains)
    return [
        Check(
            f"rings of two pixels with wrong gains ({', '.join(f'{np.expm1(-gains[k]):+.1%}' for k in at)}), 360° scan",
            "½ ∫ q(r cos α) dα with the kernel of the band-limited ramp times ln gain, along a diameter",
            f"off by {np.abs(ours - exact).max() / highest:.2%} of the highest ring",
            float(np.abs(ours - exact).max() / highest),
            float(kinks / highest),
            f"share of the ring; the sum over {n_angles} views for the integral, at the kinks of q",
        ),
        Check(
            "amplitude of the rings when ln gain is doubled",
            "doubled",
            f"off by {linear:.1e}",
            linear,
            n_angles * EPS,
            f"share of the ring; float32 sums over {n_angles} views",
        ),
    ]


def grey_values(quick: bool) -> list[Check]:
    n, angles = 256, 360
    outer, inner = disc(n, 110), disc(n, 50)
    scanner = Scanner(source=Monochromatic(40.0), geometry=ParallelBeam(angles), normalisation="none")
    image = scan(scanner, [1 - outer, outer - inner, inner], [AIR, GRAPHITE, NMC])
    distance = far(n)
    steep = NMC.attenuation_1_cm(40.0) - GRAPHITE.attenuation_1_cm(40.0)
    masks = {
        "air": (AIR, (distance > 114) & (distance < 127)),
        "graphite": (GRAPHITE, (distance > 56) & (distance < 104)),
        "NMC532": (NMC, distance < 44),
    }
    rows = []
    for name, (material, mask) in masks.items():
        measured, mu = float(image[mask].mean()), float(material.attenuation_1_cm(40.0))
        rows.append(
            Check(
                f"grey value of {name} at 40 keV [1/cm]",
                f"its µ, {mu:.4g}",
                f"{measured:.4f}",
                abs(measured - mu),
                float(3 * JOSEPH_RMS_PX / np.sqrt(angles) / 100 * steep),
                "1/cm; 3 standard errors of the chords of 360 views, 0.58/√360 px of 100 px, times the highest step",
            )
        )
    return rows


# Energy sampling

STEPS_KEV = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
FINEST_KEV = 0.01  # parts W Lα₂, 8.335 keV, from the K edge of nickel, 8.333 keV; 0.02 keV bins do not
SPREADS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
DEFAULT_STEP_KEV = Tube().energy_step_kev
DEFAULT_SPREAD = signature(merge_energies).parameters["spread"].default
DEPTHS = np.geomspace(0.05, 5, 15)  # path times mean µ
FILTERS_MM = {"no filter": 0.0, "0.5 mm Al": 0.5, "1 mm Al": 1.0}
PHASES = {"Ni": NICKEL, "NMC532": NMC, "YSZ": YSZ, "graphite": GRAPHITE}


def minus_log(spectrum: Spectrum, material: Material, paths_cm: np.ndarray) -> np.ndarray:
    mu = material.attenuation_1_cm(spectrum.energies_kev)
    return -np.log(np.exp(-np.outer(paths_cm, mu)) @ response(spectrum))


def sampling_errors(quick: bool) -> dict:
    """Largest relative error of −ln T, by filter and phase, against the width of bins and the spread of joined ones.

    Each spectrum is filtered bin by bin, as SpekPy does it. Quick: a tube of 25 kV, which has the same L lines.
    """
    kvp = 25.0 if quick else 140.0
    energies, fluence = Spek(kvp=kvp, th=12, physics="casim", dk=FINEST_KEV).get_spectrum()
    bare = {step: Tube(kvp=kvp, energy_step_kev=step).spectrum() for step in STEPS_KEV}
    bare[FINEST_KEV] = Spectrum(energies[fluence > 0], fluence[fluence > 0])
    result = {"kvp": kvp, "steps_kev": STEPS_KEV, "spreads": SPREADS, "step": {}, "spread": {}, "bound": {}}
    result["groups"] = {}
    for filter_name, thickness_mm in FILTERS_MM.items():
        behind = {
            step: Spectrum(s.energies_kev, s.weights * np.exp(-AL.attenuation_1_cm(s.energies_kev) * thickness_mm / 10))
            for step, s in bare.items()
        }
        fine = behind.pop(FINEST_KEV)
        library = Tube(kvp=kvp, filters_mm={"Al": thickness_mm}).spectrum()
        for name, material in PHASES.items():
            label = f"{name}, {filter_name}"
            paths = DEPTHS / (response(fine) @ material.attenuation_1_cm(fine.energies_kev))
            truth = minus_log(fine, material, paths)
            errors = [np.abs(minus_log(s, material, paths) / truth - 1).max() for s in behind.values()]
            result["step"][label] = [float(e) for e in errors]
            mu, share = material.attenuation_1_cm(library.energies_kev), response(library)
            truth, depth = minus_log(library, material, paths), np.outer(paths, mu)
            passed = share * np.exp(-depth)
            second = (passed * depth**2).sum(1) / passed.sum(1) / 8 / truth  # times spread²: bound of merge_energies
            merged = [merge_energies(share, mu[None], spread) for spread in SPREADS]
            ours = [-np.log(transmission(paths[None], m, w).astype(float)) for w, m in merged]
            result["spread"][label] = [float(np.abs(o / truth - 1).max()) for o in ours]
            result["bound"][label] = [float((second * s**2 + EPS * len(share) / 2 / truth).max()) for s in SPREADS]
            result["groups"][label] = [len(weights) for weights, _ in merged]
    return result


def sampling(errors: dict) -> list[Check]:
    at = STEPS_KEV.index(DEFAULT_STEP_KEV)
    name, worst = max(((k, v[at]) for k, v in errors["step"].items()), key=lambda item: item[1])
    rows = [
        Check(
            f"bins of {DEFAULT_STEP_KEV:g} keV, {errors['kvp']:g} kV: error of −ln T, paths of 0.05 to 5 mean lengths",
            f"bins of {FINEST_KEV:g} keV; {', '.join(PHASES)}; without a filter, behind 0.5 and 1 mm Al",
            f"{worst:.2%} at worst ({name})",
            worst,
            TABLE_ERROR,
            "relative; the tables of attenuation are good to 1 %, the sampling shall add less",
        )
    ]
    at = SPREADS.index(DEFAULT_SPREAD)
    # a NaN shall win
    name = max(errors["spread"], key=lambda k: np.nan_to_num(errors["spread"][k][at], nan=np.inf))
    worst, bound = errors["spread"][name][at], errors["bound"][name][at]
    rows.append(
        Check(
            f"bins joined where µ differs by less than {DEFAULT_SPREAD:.0%}: error of −ln T",
            "float64 sum over all bins",
            f"{worst:.1e} at worst ({name})",
            worst,
            bound,
            "relative; a group of optical depth x errs by x² · spread² / 8 of its share; float32 sums",
        )
    )
    return rows


def draw_sampling(errors: dict, path: Path) -> None:
    """Error against the width of the bins, and against the spread of joined bins; the defaults marked."""
    figure = Figure(figsize=(12, 4.3), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    styles = dict(zip(FILTERS_MM, ("-", "--", ":"), strict=True))
    colours = dict(zip(PHASES, ("C3", "C0", "C2", "C7"), strict=True))
    for ax, x, key in ((left, STEPS_KEV, "step"), (right, SPREADS, "spread")):
        for label, values in errors[key].items():
            material, filter_name = label.split(", ")
            ax.plot(x, values, styles[filter_name], color=colours[material], marker="o", markersize=3, label=label)
        ax.set(xscale="log", yscale="log", ylabel="largest relative error of −ln T")
        ax.axhline(TABLE_ERROR, color="black", linewidth=0.6)
        ax.grid(color="#e6e6e6", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    left.set(xlabel="width of the energy bins [keV]", title="Bins of the tube's spectrum, against 0.01 keV")
    right.set(xlabel="largest spread of µ in a group", title="Neighbouring bins joined, against all 0.1 keV bins")
    left.text(2, TABLE_ERROR * 1.1, "tables: 1 %", ha="right", fontsize=8)
    least, most = (f(g[SPREADS.index(DEFAULT_SPREAD)] for g in errors["groups"].values()) for f in (min, max))
    for ax, at, text in (
        (left, DEFAULT_STEP_KEV, "default"),
        (right, DEFAULT_SPREAD, f"default: {least}–{most} groups"),
    ):
        ax.axvline(at, color="black", linestyle="--", linewidth=1)
        ax.text(
            at * 0.96, 0.97, text, rotation=90, ha="right", va="top", fontsize=8, transform=ax.get_xaxis_transform()
        )
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside right center")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


CHECKS = (
    attenuation,
    filters,
    slab,
    chords,
    cone,
    adjointness,
    invariance,
    centre_shift,
    noise,
    blur,
    cupping,
    rings,
    grey_values,
)


def markdown(checks: list[Check]) -> str:
    lines = ["| quantity | oracle | measured | error | tolerance | why | |", "|---|---|---|---|---|---|---|"]
    for c in checks:
        verdict = "pass" if c.passed else "**FAIL**"
        lines.append(
            f"| {c.quantity} | {c.oracle} | {c.measured} | {c.error:.2g} | {c.tolerance:.2g} | {c.why} | {verdict} |"
        )
    return "\n".join(lines)


def finite(value):
    """None for what JSON cannot say: NaN and infinity."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def main() -> int:
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--out", type=Path, help="folder for the picture of the energy sampling")
    parser.add_argument(
        "--quick", action="store_true", help="fewer samples, wider tolerances where they are statistics"
    )
    args = parser.parse_args()
    started, rows = time.perf_counter(), []
    for check in CHECKS:
        print(f"{check.__name__} ... ", end="", file=sys.stderr, flush=True)
        begun = time.perf_counter()
        rows += check(args.quick)
        print(f"{time.perf_counter() - begun:.1f} s", file=sys.stderr)
    print("energy sampling ...", file=sys.stderr, flush=True)
    errors = sampling_errors(args.quick)
    rows += sampling(errors)
    print(markdown(rows))
    failed = [row.quantity for row in rows if not row.passed]
    if args.json:
        table = [asdict(row) | {"error": finite(row.error), "passed": row.passed} for row in rows]
        write_json(
            args.json, {"quick": args.quick, "failed": failed, "checks": table, "energy_sampling": finite(errors)}
        )
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        draw_sampling(errors, args.out / "energy_sampling.png")
    seconds = time.perf_counter() - started
    print(f"\n{len(rows) - len(failed)} of {len(rows)} checks pass, {seconds:.0f} s", file=sys.stderr)
    for quantity in failed:
        print(f"failed: {quantity}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
