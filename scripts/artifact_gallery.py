"""Draw every artefact of the simulated scanner at three strengths beside a clean scan, on one page.

    python scripts/artifact_gallery.py docs/artifacts.png

All scans are of one object, a cylinder of titania with particles of NMC532 in air, and go the whole way from the phases
through the sinogram to the reconstruction. Grey is the attenuation, from the same black to the same white in every
picture, but for beam hardening and local tomography, which change its scale and are shown from their own first to last
percentile. A name with a number in front of the strengths tells what stays the same.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bundle.volume_io import atomic_path  # noqa: E402
from data_gen.artifacts import ExposureDrift, Motion, Propagation, Scatter, Stripes, Zernike  # noqa: E402
from data_gen.dataset import phase_fractions  # noqa: E402
from data_gen.detector import Detector  # noqa: E402
from data_gen.geometry import ConeBeam, ParallelBeam  # noqa: E402
from data_gen.materials import LIBRARY, Material  # noqa: E402
from data_gen.microstructure import Spheres  # noqa: E402
from data_gen.scan import Scanner  # noqa: E402
from data_gen.spectrum import Monochromatic, Tube  # noqa: E402

PIXELS, SUBVOXELS, VOXEL_UM, DIAMETER = 112, 5, 4.0, 0.92
TITANIA = Material("TiO2", 3.0)  # porous
MATERIALS = [LIBRARY["air"], TITANIA, LIBRARY["NMC532"]]
SOURCE, VIEWS = Monochromatic(30.0), 360
BLACK, WHITE = -0.4, 1.6  # times µ of NMC532
GREYS = 28  # few enough that the noise does not fill the file


@dataclass(frozen=True)
class Row:
    """An artefact at three strengths: names, scanners, the object's voxels, its diameter by the field of view."""

    name: str
    strengths: tuple[str, ...]
    scanners: tuple[Scanner, ...]
    voxel_um: float | tuple[float, ...] = VOXEL_UM
    diameter: float | tuple[float, ...] = DIAMETER
    own_window: bool = False


def scanner(**parts) -> Scanner:
    return Scanner(**{"source": SOURCE, "geometry": ParallelBeam(VIEWS), "normalisation": "none"} | parts)


def artefact(name: str, unit: str, values: tuple, make, **options) -> Row:
    """A row whose scanners differ in one value."""
    return Row(name, tuple(f"{v:g}{unit}" for v in values), tuple(make(v) for v in values), **options)


def rows() -> list[Row]:
    near = ConeBeam(VIEWS, source_object_mm=20, source_detector_mm=100)
    hard = scanner(source=Tube(filters_mm={"Al": 1.0}, energy_step_kev=0.5))
    few = {"photons": 3000, "electrons_per_photon": 10}
    full = _beam(angular_range_deg=360)
    return [
        artefact("counting noise", " photons", (10000, 1000, 100), lambda v: _detector(photons=v)),
        artefact(
            "electronic noise, 3000 photons", " e", (300, 1000, 3000), lambda v: _detector(**few, electronic_noise_e=v)
        ),
        artefact("point spread", " px", (1.5, 3, 6), lambda v: _detector(psf_fwhm_px=v)),
        artefact(
            "focal spot, fan beam, magnification 5",
            " µm",
            (8, 16, 32),
            lambda v: scanner(geometry=near, detector=Detector(focal_spot_um=v)),
        ),
        artefact("drift of the pixels' gain, sd", "", (0.003, 0.01, 0.03), lambda v: _detector(flat_drift=v)),
        artefact("full stripes of 10 %, share", "", (0.01, 0.03, 0.1), lambda v: _stripes("full_share", v)),
        artefact("partial stripes of 10 %, share", "", (0.01, 0.03, 0.1), lambda v: _stripes("partial_share", v)),
        artefact("drifting stripes of 10 %, share", "", (0.01, 0.03, 0.1), lambda v: _stripes("drifting_share", v)),
        artefact(
            "fluctuating stripes of 10 %, share", "", (0.01, 0.03, 0.1), lambda v: _stripes("fluctuating_share", v)
        ),
        artefact(
            "offset stripes, 360°, share", "", (0.01, 0.03, 0.1), lambda v: _stripes("offset_share", v, geometry=full)
        ),
        artefact("unresponsive pixels", "", (0.005, 0.01, 0.03), lambda v: _stripes("unresponsive_share", v)),
        artefact("dead pixels", "", (0.01, 0.02, 0.05), lambda v: _detector(dead_pixels=v)),
        artefact("hot pixels", "", (0.01, 0.02, 0.05), lambda v: _detector(hot_pixels=v)),
        artefact("zingers, rate", "", (1e-4, 1e-3, 1e-2), lambda v: _detector(zingers=v)),
        artefact("converter", " bits", (8, 6, 4), lambda v: _detector(bits=v, saturation=1.2)),
        artefact("full well, of the open beam", "", (0.9, 0.7, 0.5), lambda v: _detector(saturation=v)),
        artefact("drift", " px", (2, 4, 8), lambda v: scanner(motion=Motion(drift_px=v))),
        artefact("jitter, sd", " px", (0.3, 1, 3), lambda v: scanner(motion=Motion(jitter_px=v))),
        artefact("two jumps", " px", (1, 2, 4), lambda v: scanner(motion=Motion(jump_px=v, n_jumps=2))),
        artefact("growing error of the angle", "°", (2, 4, 8), lambda v: scanner(motion=Motion(rotation_drift_deg=v))),
        artefact(
            "white error of the angle, sd", "°", (0.5, 1, 3), lambda v: scanner(motion=Motion(rotation_jitter_deg=v))
        ),
        artefact("growth in mid-scan", "", (0.02, 0.05, 0.1), lambda v: scanner(motion=Motion(growth=v))),
        Row(
            "beam hardening, 140 kV, 1 mm Al, field of view",
            ("0.11 mm", "0.45 mm", "1.8 mm"),
            (hard,) * 3,
            voxel_um=(1.0, 4.0, 16.0),
            own_window=True,
        ),
        artefact("scatter, fraction", "", (0.1, 0.3, 1.0), lambda v: scanner(scatter=Scatter(v, 60))),
        artefact("glare, fraction", "", (0.05, 0.15, 0.5), lambda v: scanner(scatter=Scatter(v, 60, source="glare"))),
        artefact("propagation", " mm", (10, 30, 100), lambda v: scanner(propagation=Propagation(v))),
        artefact("Zernike halo, alpha", "", (0.3, 0.6, 0.9), lambda v: scanner(zernike=Zernike(v, 15))),
        artefact("walk of the exposure, sd", "", (0.03, 0.1, 0.3), lambda v: scanner(exposure_drift=ExposureDrift(v))),
        artefact(
            "decay of the beam, 4 refills",
            "",
            (0.05, 0.2, 0.5),
            lambda v: scanner(exposure_drift=ExposureDrift(decay=v, n_top_ups=4)),
        ),
        artefact("wrong centre, 180°", " px", (0.5, 1.5, 4), lambda v: scanner(geometry=_beam(centre_offset_px=v))),
        artefact(
            "wrong centre, 360°",
            " px",
            (0.5, 1.5, 4),
            lambda v: scanner(geometry=_beam(angular_range_deg=360, centre_offset_px=v)),
        ),
        artefact("sparse views", "", (90, 45, 20), lambda v: scanner(geometry=ParallelBeam(v))),
        artefact("limited angle", "°", (160, 130, 90), lambda v: scanner(geometry=_beam(angular_range_deg=v))),
        Row(
            "local tomography, sample by field of view",
            ("1.1", "1.5", "2"),
            (scanner(),) * 3,
            diameter=(1.1, 1.5, 2.0),
            own_window=True,
        ),
    ]


def _beam(**options) -> ParallelBeam:
    return ParallelBeam(VIEWS, **options)


def _stripes(share: str, value: float, **parts) -> Scanner:
    return scanner(stripes=Stripes(**{share: value}, error_sd=0.1), **parts)


def _detector(**options) -> Scanner:
    return scanner(detector=Detector(**options))


def build(diameter: float) -> np.ndarray:
    """Fractions of air, graphite and NMC532 of a cylinder so wide, in the pixels of the field of view or more."""
    n = PIXELS * max(1, int(np.ceil(diameter)))
    fine, rng = n * SUBVOXELS, np.random.default_rng(7)
    spheres = Spheres(fraction=0.35, mean_radius_um=7 * VOXEL_UM, radius_cv=0.35)
    labels = spheres.build((fine, fine), VOXEL_UM / SUBVOXELS, spheres.draw(rng), rng)[0] + np.uint8(1)
    at = np.arange(fine) - (fine - 1) / 2
    labels[at[:, None] ** 2 + at**2 > (diameter * PIXELS * SUBVOXELS / 2) ** 2] = 0
    return phase_fractions(labels, 3, (SUBVOXELS, SUBVOXELS))


def scan(which: Scanner, fractions: np.ndarray, voxel_um: float) -> np.ndarray:
    rng = np.random.default_rng(3)
    return which.scan(fractions, MATERIALS, voxel_um, which.draw(rng), rng, (PIXELS, PIXELS))[0]


def grey(image: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((image - low) / (high - low), 0, 1)


def draw(table: list[Row]) -> Figure:
    """Lines of a clean scan and two artefacts."""
    gap, between, margin, title, per_line = 2, 8, 6, 24, 2
    lines = -(-len(table) // per_line)
    width = 2 * margin + (1 + 3 * per_line) * (PIXELS + gap) + per_line * between
    height = 2 * margin + lines * (PIXELS + title + gap)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
    objects = {d: build(d) for d in {DIAMETER, *(d for row in table for d in per_strength(row.diameter))}}
    white = float(MATERIALS[2].attenuation_1_cm(SOURCE.energy_kev))
    window = (BLACK * white, WHITE * white)

    def add(line: int, column: int, picture: np.ndarray, text: str, name: str = "") -> None:
        left = margin + column * (PIXELS + gap) + -(-column // 3) * between
        top = margin + line * (PIXELS + title + gap)
        place = (left / width, 1 - (top + title + PIXELS) / height, PIXELS / width, PIXELS / height)
        ax = figure.add_axes(place)
        ax.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set_axis_off()
        figure.text(left / width, 1 - (top + title - 3) / height, text, fontsize=6.5)
        figure.text(left / width, 1 - (top + title - 13) / height, name, fontsize=6.5, fontweight="bold")

    clean = grey(scan(scanner(), objects[DIAMETER], VOXEL_UM), *window)
    for i, row in enumerate(table):
        line, group = divmod(i, per_line)
        if group == 0:
            add(line, 0, clean, "clean")
        settings = zip(row.strengths, row.scanners, *map(per_strength, (row.voxel_um, row.diameter)), strict=True)
        for k, (strength, which, voxel_um, diameter) in enumerate(settings):
            image = scan(which, objects[diameter], voxel_um)
            shown = window
            if row.own_window:
                low, high = np.percentile(image, (1, 99))
                shown = (low - 0.2 * (high - low), high + 0.2 * (high - low))
            add(line, 1 + 3 * group + k, grey(image, *shown), strength, row.name if k == 0 else "")
    return figure


def per_strength(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,) * 3


def main() -> int:
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path, help="PNG file")
    args = parser.parse_args()
    figure = draw(rows())
    with atomic_path(args.picture) as path:
        figure.savefig(path, format="png")
        with Image.open(path) as full:
            few = full.convert("L").quantize(GREYS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(path, format="png", optimize=True)
    print(f"{args.picture}: {args.picture.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
