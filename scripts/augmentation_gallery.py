"""Draw every augmentation at three strengths, the simulator's sinogram version above the image version, and time them.

    python scripts/augmentation_gallery.py --out docs

writes augmentation.png and prints a table: the correlation of what each artefact changes in the image, made in the
sinogram and made in the image with the same parameters (of noise, of its radial power spectrum), the ratio of their
amplitudes (root mean square, image by sinogram), and the median CPU time for an image of 256² on one core. The object
is a cylinder of titania with particles of NMC532 in air. The image versions start from the clean scan and never see a
sinogram, but for the readings that zingers hit. Below are those that the simulator has no version of.

    python scripts/augmentation_gallery.py --parts

prints the correlation and the ratio of amplitudes where the image does not show the whole object in air: patches of a
slice of 256², a sample that is wider than the field of view, and particles in air up to the border of the image.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import monai.transforms as mt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bundle import image_artifacts as ia  # noqa: E402
from bundle import transforms as bt  # noqa: E402
from bundle.volume_io import atomic_path  # noqa: E402
from data_gen.artifacts import Motion, Scatter, Stripes, Zernike, add_stripes, move  # noqa: E402
from data_gen.dataset import phase_fractions  # noqa: E402
from data_gen.detector import Detector  # noqa: E402
from data_gen.geometry import ParallelBeam, Views  # noqa: E402
from data_gen.materials import LIBRARY, Material  # noqa: E402
from data_gen.microstructure import Spheres  # noqa: E402
from data_gen.scan import Scanner  # noqa: E402
from data_gen.spectrum import Monochromatic, Tube  # noqa: E402

PIXELS, SUBVOXELS, VOXEL_UM, DIAMETER, VIEWS = 128, 3, 4.0, 0.92, 360
MATERIALS = [LIBRARY["air"], Material("TiO2", 3.0), LIBRARY["NMC532"]]
SOURCE = Monochromatic(30.0)
GREY_1 = float(MATERIALS[2].attenuation_1_cm(SOURCE.energy_kev))  # [1/cm] of NMC532: grey 1
LINE_1 = GREY_1 * VOXEL_UM * 1e-4  # line integral of one pixel of grey 1
BLACK, WHITE = -0.4, 1.6
TIMED, REPEATS = 256, 15


@dataclass(frozen=True)
class Case:
    """One strength: its name, the image version, and the scanner of the sinogram version, if there is one.

    ``in_image`` takes the clean image (1, x, y) and what the scanner drew.
    """

    strength: str
    in_image: Callable[[torch.Tensor, dict], torch.Tensor]
    scanner: Scanner | None = None
    clean: Scanner | None = None  # what the scanner would be without the artefact, if not the plain one
    voxel_um: float = VOXEL_UM
    oversize: bool = False  # the object sticks out of the field of view
    random: bool = False  # spectra are compared, not values
    group: int = SUBVOXELS  # sub-voxels in a voxel of the sinogram version, along each edge; it is then interpolated


@dataclass(frozen=True)
class Row:
    """An artefact at three strengths, and the transform to be timed."""

    name: str
    cases: tuple[Case, ...]
    timed: mt.MapTransform


def scanner(**parts) -> Scanner:
    return Scanner(**{"source": SOURCE, "geometry": ParallelBeam(VIEWS), "normalisation": "none"} | parts)


def rows() -> list[Row]:
    always = {"keys": "image", "prob": 1.0}
    half = partial(ParallelBeam, VIEWS)
    turn = ParallelBeam(2 * VIEWS, angular_range_deg=360)
    hard = scanner(source=Tube(filters_mm={"Al": 1.0}, energy_step_kev=0.5))
    hardening = ((1.0, 0.12), (4.0, 0.24), (16.0, 0.34))  # voxel [µm], strength
    return [
        Row(
            "drift over 180°",
            tuple(Case(f"{v} px", _move, scanner(motion=Motion(drift_px=v))) for v in (2, 5, 10)),
            bt.RandMotiond(**always, kinds=[1, 0, 0, 0], full_turn=0),
        ),
        Row(
            "drift over 360°",
            tuple(
                Case(f"{v} px", _move, scanner(motion=Motion(drift_px=v), geometry=turn), scanner(geometry=turn))
                for v in (2, 5, 10)
            ),
            bt.RandMotiond(**always, kinds=[1, 0, 0, 0], full_turn=1),
        ),
        Row(
            "jumps, shaking",
            tuple(
                Case(f"{v} px, sd {v / 8:g} px", _move, scanner(motion=Motion(jump_px=v, n_jumps=2, jitter_px=v / 8)))
                for v in (2, 4, 8)
            ),
            bt.RandMotiond(**always, kinds=[0, 1, 1, 0], full_turn=0),
        ),
        Row(
            "wrong centre",
            tuple(
                Case(
                    f"{v} px",
                    lambda image, _, v=v: ia.shift_views(image, ia.view_shifts(VIEWS, offset_px=v)),
                    scanner(geometry=half(centre_offset_px=v)),
                )
                for v in (0.5, 1.5, 4)
            ),
            bt.RandMotiond(**always, kinds=[0, 0, 0, 1], full_turn=0),
        ),
        Row(
            "few views",
            tuple(
                Case(str(v), lambda image, _, v=v: ia.keep_views(image, v), scanner(geometry=ParallelBeam(v)))
                for v in (90, 45, 20)
            ),
            bt.RandSparseViewsd(**always),
        ),
        Row(
            "missing wedge, measured",
            tuple(
                Case(
                    f"{v}°",
                    lambda image, _, v=v: ia.missing_wedge(image, -v / VIEWS / 2, v),
                    scanner(geometry=half(angular_range_deg=v)),
                )
                for v in (160, 130, 90)
            ),
            bt.RandMissingWedged(**always),
        ),
        Row(
            "rings, sd of each pixel's gain",
            tuple(Case(f"{v}", _rings, scanner(stripes=Stripes(gain_sd=v))) for v in (0.003, 0.01, 0.03)),
            bt.RandRingsd(**always, partial=0, full_turn=0),
        ),
        Row(
            "stripes of 5 %, 360°, share",
            tuple(
                Case(
                    f"{v}",
                    _rings,
                    scanner(stripes=Stripes(full_share=v, error_sd=0.05), geometry=turn),
                    scanner(geometry=turn),
                )
                for v in (0.01, 0.03, 0.1)
            ),
            bt.RandRingsd(**always, partial=0, full_turn=1),
        ),
        Row(
            "partial stripes of 5 %, share",
            tuple(
                Case(f"{v}", _partial_rings, scanner(stripes=Stripes(partial_share=v, error_sd=0.05)))
                for v in (0.01, 0.03, 0.1)
            ),
            bt.RandRingsd(**always, partial=1, full_turn=0),
        ),
        Row(
            "counting noise",
            tuple(
                Case(f"{v} photons", partial(_noise, v), scanner(detector=Detector(photons=v)), random=True)
                for v in (10000, 1000, 200)
            ),
            bt.RandReconstructionNoised(**always),
        ),
        Row(
            "point spread",
            tuple(
                Case(
                    f"{v} px",
                    # whose weights are means over a pixel, which add its variance
                    lambda image, _, v=v: mt.GaussianSmooth(math.sqrt((v / ia.FWHM_PER_SIGMA) ** 2 - 1 / 12))(image),
                    scanner(detector=Detector(psf_fwhm_px=v)),
                )
                for v in (1.5, 3, 6)
            ),
            mt.RandGaussianSmoothd(**always, sigma_x=(0.3, 2.3), sigma_y=(0.3, 2.3)),
        ),
        Row(
            "Zernike halo, 15 px, alpha",
            tuple(
                Case(f"{v}", lambda image, _, v=v: ia.halo(image, v, 15.0), scanner(zernike=Zernike(v, 15)))
                for v in (0.3, 0.6, 0.9)
            ),
            bt.RandHalod(**always),
        ),
        Row(
            "beam hardening, 140 kV, 1 mm Al",
            tuple(
                Case(
                    f"{v * PIXELS / 1e3:.2g} mm",
                    lambda image, _, s=s: ia.harden(image, s),
                    hard,
                    voxel_um=v,
                )
                for v, s in hardening
            ),
            bt.RandBeamHardeningd(**always),
        ),
        Row(
            "scatter, 60 px, fraction",
            tuple(Case(f"{v}", partial(_scatter, v), scanner(scatter=Scatter(v, 60))) for v in (0.1, 0.3, 1.0)),
            bt.RandScatterd(**always),
        ),
        Row(
            "local tomography, sample by field",
            tuple(
                Case(
                    f"{v}",
                    partial(_rim, v / np.sqrt(2)),
                    scanner(),
                    oversize=True,
                )
                for v in (1.6, 1.8, 2.0)
            ),
            bt.RandLocalTomographyd(**always),
        ),
        Row(
            "cupping: only the radial part of hardening",
            tuple(
                Case(
                    f"{v * PIXELS / 1e3:.2g} mm",
                    lambda image, _, s=s: ia.cupping(image, s, DIAMETER * PIXELS / 2),
                    hard,
                    voxel_um=v,
                )
                for v, s in hardening
            ),
            bt.RandCuppingd(**always),
        ),
        Row(
            "zinger streaks, share of readings",
            tuple(
                Case(f"{share:g}", partial(_streaks, hit), hit)
                for share in (1e-4, 5e-4, 2e-3)
                for hit in [scanner(detector=Detector(zingers=share))]
            ),
            bt.RandStreaksd(**always),
        ),
        Row(
            "dots, share",
            tuple(Case(f"{v}", lambda image, _, v=v: ia.dots(image, v, 1.0, 1)) for v in (1e-3, 5e-3, 2e-2)),
            bt.RandDotsd(**always),
        ),
        Row(
            "Poisson-like noise, sd at grey 1",
            tuple(Case(f"{v}", lambda image, _, v=v: ia.grey_noise(image, v, 1)) for v in (0.05, 0.15, 0.4)),
            bt.RandGreyNoised(**always),
        ),
        monai("white noise, sd", (0.05, 0.1, 0.2), lambda v: mt.RandGaussianNoise(1.0, std=v, sample_std=False),
              mt.RandGaussianNoised(**always, std=0.1)),
        monai("gamma", (0.5, 0.7, 1.6), mt.AdjustContrast, bt.RandGammad(**always, gamma=(0.7, 1.4))),
        monai("sharpening", (0.5, 1, 2), lambda v: mt.GaussianSharpen(sigma1=0.3, sigma2=1.0, alpha=v),
              mt.RandGaussianSharpend(**always)),
        Row(
            "low resolution",
            tuple(
                Case(
                    f"{SUBVOXELS / g:g}",
                    lambda image, _, v=SUBVOXELS / g: _coarser(image, v),
                    scanner(),
                    voxel_um=VOXEL_UM * g / SUBVOXELS,
                    group=g,
                )
                for g in (4, 6, 8)
            ),
            mt.RandSimulateLowResolutiond(**always, downsample_mode="area", upsample_mode="bilinear"),
        ),
        monai(
            "shading",
            (0.05, 0.1, 0.2),
            lambda v: mt.RandBiasField(prob=1.0, coeff_range=(-v, v)).set_random_state(1),
            mt.RandBiasFieldd(**always),
        ),
        monai("inversion", ("",), lambda _: ia.invert_intensity, bt.RandInvertIntensityd(**always)),
    ]  # fmt: skip


def monai(name: str, values: tuple, make: Callable, timed: mt.MapTransform) -> Row:
    """A row of a transform on arrays that needs no scan."""

    def case(value) -> Case:
        transform = make(value)
        return Case(f"{value}", lambda image, _: transform(image))

    return Row(name, tuple(map(case, values)), timed)


def _move(image: torch.Tensor, drawn: dict) -> torch.Tensor:
    range_deg = drawn["range_deg"]
    n = round(VIEWS * range_deg / 180)
    at_rest = Views(np.deg2rad(range_deg * np.arange(n) / n), np.zeros(n), np.ones(n))
    shift = move(at_rest, drawn["motion"]).shift_px
    return ia.shift_views(image, torch.from_numpy(shift), 0.0, range_deg)


def _rings(image: torch.Tensor, drawn: dict) -> torch.Tensor:
    detectors = ParallelBeam(VIEWS).detectors((PIXELS, PIXELS, 1), VOXEL_UM)[0]
    gain = add_stripes(np.ones((2, detectors), np.float32), drawn["stripes"])[:1]
    stripes = torch.from_numpy(-np.log(gain) / LINE_1)
    whole = drawn["range_deg"] == 360
    pattern = ia.ring_pattern((PIXELS, PIXELS), stripes, window_deg=drawn["range_deg"], full_turn=whole)
    return ia.add_rings(image, pattern)


def _partial_rings(image: torch.Tensor, drawn: dict) -> torch.Tensor:
    """Each stripe over the run of views that it has in the simulator."""
    detectors = ParallelBeam(VIEWS).detectors((PIXELS, PIXELS, 1), VOXEL_UM)[0]
    errors = torch.from_numpy(-np.log(add_stripes(np.ones((VIEWS, detectors), np.float32), drawn["stripes"])) / LINE_1)
    step = 180 / VIEWS  # a view stands for half a step to either side
    for at in (errors != 0).any(0).nonzero()[:, 0]:
        run = errors[:, at].nonzero()[:, 0]
        stripe = torch.zeros(1, detectors)
        stripe[0, at] = errors[run[0], at]
        window = {"first_angle_deg": float(run[0] - 0.5) * step, "window_deg": len(run) * step}
        image = ia.add_rings(image, ia.ring_pattern((PIXELS, PIXELS), stripe, **window))
    return image


def _coarser(image: torch.Tensor, zoom: float) -> torch.Tensor:
    return mt.RandSimulateLowResolution(1.0, "area", "bilinear", (zoom, zoom))(image)


def _noise(photons: float, image: torch.Tensor, drawn: dict) -> torch.Tensor:
    # variance of filtered back-projection, (π²/18 − 1/6) / (views · counts) by pixel², where nothing absorbs
    air = np.sqrt((np.pi**2 / 18 - 1 / 6) / (VIEWS * photons)) / LINE_1
    sd = air * np.sqrt(np.exp(_lines(image)).mean())
    return ia.reconstruction_noise(image, float(sd), 1, depth=float(_lines(image).max()))


def _scatter(fraction: float, image: torch.Tensor, drawn: dict) -> torch.Tensor:
    return ia.scatter(image, fraction, float(_lines(image).max()), 60.0)


def _lines(image: torch.Tensor) -> np.ndarray:
    """Line integrals through the cylinder, of which those that miss it do not count."""
    scan = ia.SmallScan(image)
    lines = scan.lines.numpy() * scan.step * LINE_1
    return lines[lines > 0.05 * lines.max()]


def _streaks(which: Scanner, image: torch.Tensor, drawn: dict) -> torch.Tensor:
    sample = build(DIAMETER)
    sinograms = [w.sinogram(sample, MATERIALS, VOXEL_UM, drawn, (PIXELS, PIXELS)) for w in (which, scanner())]
    change = (sinograms[0] - sinograms[1])[..., 0]
    views, detectors = np.nonzero(np.abs(change) > 1e-3)
    heights = np.pi / (4 * VIEWS) * change[views, detectors] / LINE_1
    return ia.streaks(image, 180 / VIEWS * views, detectors - (change.shape[1] - 1) / 2, heights)


def _rim(outer: float, image: torch.Tensor, drawn: dict) -> torch.Tensor:
    field = PIXELS / np.sqrt(2)  # the detector sees the diagonal
    # of a disc like the image the mean of the line integrals that are cut off, (1/(R − a)) ∫ 2 √(R² − s²) ds, a to R
    s = np.linspace(1, outer, 200)
    lines = 2 * field * np.sqrt(outer**2 - s**2).mean() * float(image.mean())
    return ia.local_tomography(image, lines / (np.pi * field), field, outer=outer)


def build(diameter: float, group: int = SUBVOXELS, matrix: int = 1) -> np.ndarray:
    """Fractions of air, titania and NMC532 of a cylinder this wide, by the field of view, in voxels of ``group``.

    Between the particles lies the material ``matrix``, titania or air.
    """
    n = PIXELS * max(1, int(np.ceil(diameter)))
    fine, rng = n * SUBVOXELS, np.random.default_rng(7)
    spheres = Spheres(fraction=0.35, mean_radius_um=7 * VOXEL_UM, radius_cv=0.35)
    labels = np.array([matrix, 2], np.uint8)[
        spheres.build((fine, fine), VOXEL_UM / SUBVOXELS, spheres.draw(rng), rng)[0]
    ]
    at = np.arange(fine) - (fine - 1) / 2
    labels[at[:, None] ** 2 + at**2 > (diameter * PIXELS * SUBVOXELS / 2) ** 2] = 0
    return phase_fractions(labels, 3, (group, group))


def scan(which: Scanner, fractions: np.ndarray, voxel_um: float = VOXEL_UM, shape=(PIXELS, PIXELS)):
    """Grey values (1 is NMC532), and what was drawn with the range of angles."""
    rng = np.random.default_rng(3)
    drawn = which.draw(rng)
    image = which.scan(fractions, MATERIALS, voxel_um, drawn, rng, shape)[0] / GREY_1
    return image, drawn | {"range_deg": which.geometry.angular_range_deg}


def pictures(row: Row) -> list[tuple[str, np.ndarray | None, np.ndarray, tuple[float, float] | None]]:
    """Of each strength its name, both versions, and the correlation and the ratio in amplitude of what they change."""
    out = []
    for case in row.cases:
        wide = float(case.strength) if case.oversize else DIAMETER
        fractions = build(wide)
        clean = scan(case.clean or scanner(), fractions, shape=fractions.shape[1:])[0]
        middle = (clean.shape[0] - PIXELS) // 2
        clean = clean[middle : middle + PIXELS, middle : middle + PIXELS]
        simulated, drawn = None, {}
        if case.group != SUBVOXELS:
            coarse = build(wide, case.group)
            coarse, drawn = scan(case.scanner, coarse, case.voxel_um, coarse.shape[1:])
            small = torch.from_numpy(coarse)[None, None]
            simulated = F.interpolate(small, (PIXELS, PIXELS), mode="bilinear")[0, 0].numpy()
        elif case.scanner:
            simulated, drawn = scan(case.scanner, fractions, case.voxel_um)
        image = torch.from_numpy(np.ascontiguousarray(clean))[None]
        made = np.asarray(case.in_image(image, drawn))[0]
        agreement = None
        if simulated is not None:
            scale = [float((a * clean).sum() / (clean * clean).sum()) for a in (simulated, made)]
            if case.scanner.source is not SOURCE:  # another energy has another grey 1
                simulated = simulated / scale[0]
                made = made / scale[1]
            changes = [simulated - clean, made - clean]
            amplitude = float(np.sqrt((changes[1] ** 2).mean() / (changes[0] ** 2).mean()))
            if case.random:
                changes = [_spectrum(change) for change in changes]
            agreement = float(np.corrcoef(*(change.ravel() for change in changes))[0, 1]), amplitude
        out.append((case.strength, simulated, made, agreement))
    return out


def _spectrum(noise: np.ndarray) -> np.ndarray:
    """Mean power in rings of frequency up to 0.5 cycles/pixel, 0.03 wide."""
    k = np.hypot(np.fft.fftfreq(PIXELS)[:, None], np.fft.fftfreq(PIXELS))
    ring = np.minimum((k * 32).astype(int), 16)
    return (np.bincount(ring.ravel(), np.abs(np.fft.fft2(noise)).ravel() ** 2) / np.bincount(ring.ravel()))[:16]


def milliseconds(transform: mt.MapTransform) -> float:
    """Median CPU time of one call on an image of 256²."""
    data = {"image": torch.rand(1, TIMED, TIMED, generator=torch.Generator().manual_seed(0))}
    times = []
    for _ in range(REPEATS + 2):
        start = time.thread_time()
        transform(data)
        times.append(time.thread_time() - start)
    return 1e3 * float(np.median(times[2:]))


def parts(only: list[str] | None = None) -> str:
    """Of images that do not show the whole object in air, how near the image versions come; a table.

    ``only``: rows whose name contains one of these.
    """
    jumps = Motion(jump_px=4, n_jumps=2)
    scanners = {  # and image versions
        "few views, 45": ({"geometry": ParallelBeam(45)}, lambda image, _: ia.keep_views(image, 45)),
        "wedge, 130° measured": (
            {"geometry": ParallelBeam(VIEWS, angular_range_deg=130)},
            lambda image, _: ia.missing_wedge(image, -65 / VIEWS, 130),
        ),
        "drift of 8 px": ({"motion": Motion(drift_px=8)}, _move),
        "two jumps of 4 px": ({"motion": jumps}, _move),
        "shaking, sd 1 px": ({"motion": Motion(jitter_px=1)}, _move),
    }
    middle = slice(PIXELS // 2, -PIXELS // 2)
    slice_, wide, cut = build(2 * 0.85), build(1.8), build(1.8, matrix=0)[:, middle, middle]
    tube = {"source": Tube(kvp=140, anode_angle_deg=12, energy_step_kev=0.5)}
    objects = {  # sample, shape of its image, voxel [µm], scanner, edges of the patches with their number along an axis
        "patches of 64², 96², 128²": (slice_, (2 * PIXELS,) * 2, VOXEL_UM, {}, ((64, 8), (96, 6), (128, 4))),
        "sample of 1.8 fields": (wide, (PIXELS,) * 2, VOXEL_UM, {}, ((PIXELS, 1),)),
        "particles cut by the border": (cut, (PIXELS,) * 2, 1.0, tube, ((PIXELS, 1),)),
    }
    lines = [["", *(f"{name}: {what}" for name in objects for what in ("correlation", "amplitude"))]]
    for name, (changed, act) in scanners.items():
        if only and not any(word in name for word in only):
            continue
        cells = [name]
        for sample, shape, voxel_um, common, edges in objects.values():
            clean = scan(scanner(**common), sample, voxel_um, shape)[0]
            simulated, drawn = scan(scanner(**common, **changed), sample, voxel_um, shape)
            low, high = np.percentile(clean, (0.5, 99.5))  # as a network gets it
            clean, simulated = (clean - low) / (high - low), (simulated - low) / (high - low)
            found = [np.mean(list(_agreements(clean, simulated, drawn, act, *edge)), axis=0) for edge in edges]
            cells += [" / ".join(f"{values[k]:.2f}" for values in found) for k in (0, 1)]
        lines.append(cells)
    rows_ = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([rows_[0], "|---" * len(lines[0]) + "|", *rows_[1:]])


def _agreements(clean, simulated, drawn, act, edge: int, count: int):
    """Correlation and amplitude in ``count``² patches of the middle of a slice."""
    margin = 0 if count == 1 else PIXELS // 4
    places = np.linspace(margin, len(clean) - margin - edge, count).round().astype(int)
    for x in places:
        for y in places:
            patch = clean[x : x + edge, y : y + edge]
            made = np.asarray(act(torch.from_numpy(np.ascontiguousarray(patch))[None], drawn))[0]
            changes = simulated[x : x + edge, y : y + edge] - patch, made - patch
            yield (
                np.corrcoef(*map(np.ravel, changes))[0, 1],
                np.sqrt((changes[1] ** 2).mean() / (changes[0] ** 2).mean()),
            )


def draw(found: list[tuple[Row, list]]) -> Figure:
    """Two rows of artefacts side by side; of each, the sinogram version above the image version."""
    gap, between, margin, title, per_line, side = 2, 12, 6, 38, 2, 12
    both = [item for item in found if item[1][0][1] is not None]
    alone = [item for item in found if item[1][0][1] is None]
    lines = [part[i : i + per_line] for part in (both, alone) for i in range(0, len(part), per_line)]
    heights = [title + (PIXELS + gap) * (2 if line[0] in both else 1) for line in lines]
    width = 2 * margin + per_line * (3 * (PIXELS + gap) + between + side)
    height = 2 * margin + sum(heights)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")

    def text(x: float, y: float, words: str, **options) -> None:
        figure.text(x / width, 1 - y / height, words, **options)

    top = margin
    for line, tall in zip(lines, heights, strict=True):
        for column, (row, shown) in enumerate(line):
            left = margin + side + column * (3 * (PIXELS + gap) + between + side)
            text(left, top + 9, row.name, fontsize=7, fontweight="bold")
            for k, (strength, *versions, agreement) in enumerate(shown):
                x, y = left + k * (PIXELS + gap), top + title
                text(x, top + 21, strength, fontsize=6.5)
                if agreement is not None:
                    text(x, top + 33, f"r = {agreement[0]:.3f}, amplitude {agreement[1]:.2f}", fontsize=6.5)
                for picture, source in zip(versions, ("sinogram", "image"), strict=True):
                    if picture is None:
                        continue
                    if k == 0:
                        text(left - 3, y + PIXELS / 2, source, fontsize=6, rotation=90, ha="right", va="center")
                    axes = figure.add_axes((x / width, 1 - (y + PIXELS) / height, PIXELS / width, PIXELS / height))
                    axes.imshow(picture, cmap="gray", vmin=BLACK, vmax=WHITE, interpolation="nearest")
                    axes.set_axis_off()
                    y += PIXELS + gap
        top += tall
    return figure


def main() -> int:
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for augmentation.png")
    parser.add_argument("--parts", action="store_true", help="print the table of images that do not show the whole")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows whose name contains one of these")
    args = parser.parse_args()
    if args.parts == (args.out is not None):
        parser.error("one of --out and --parts is needed")
    torch.set_num_threads(1)
    if args.parts:
        print(parts(args.only))
        return 0
    chosen = [row for row in rows() if not args.only or any(name in row.name for name in args.only)]
    if not chosen:
        parser.error(f"--only {' '.join(args.only)}: no row has this in its name; rows: "
                     + ", ".join(row.name for row in rows()))  # fmt: skip
    found = []
    print("| artefact | transform | strengths | correlation | amplitude | ms |\n|---|---|---|---|---|---|")
    for row in chosen:
        shown = pictures(row)
        found.append((row, shown))
        found_of = [found for *_, found in shown]
        strengths = " / ".join(strength for strength, *_ in shown)
        columns = [" / ".join("–" if f is None else f"{f[k]:.{3 - k}f}" for f in found_of) for k in (0, 1)]
        cells = [row.name, type(row.timed).__name__, strengths, *columns, f"{milliseconds(row.timed):.1f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    with atomic_path(args.out / "augmentation.png") as path:
        draw(found).savefig(path, format="png")
        with Image.open(path) as full:
            grey = full.convert("L")
        grey.save(path, format="png", optimize=True)
    print(f"{args.out / 'augmentation.png'}: {(args.out / 'augmentation.png').stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
