"""Battery cathode: dense NMC particles with voids and cracks, carbon-binder domain (CBD) between them, pores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from data_gen.microstructure.kernels import carve
from data_gen.microstructure.packing import field_of_view
from data_gen.microstructure.particle_list import Nearest, ParticleList, _in_3d
from data_gen.microstructure.particles import check_gradient, check_sizes, nominal_fraction, packed_particles, semi_axes
from data_gen.microstructure.random_field import TILE_CORRELATION, noise_tile, rank_threshold, smooth_field
from data_gen.microstructure.spheres import draw_radii
from data_gen.parameters import Range, check_ranges, draw, draw_ranges, lower, upper

PORE, ACTIVE, CBD = 0, 1, 2
_FRACTIONS = (("active_fraction", 0.3, 0.95), ("cbd_fraction", 0, 0.5), ("pore_fraction", 0, 0.6))
_RANGES = (
    ("mean_radius_um", 1e-3, 1e4, "µm"),
    ("radius_cv", 0, 1, ""),
    ("fines_radius_um", 1e-3, 1e4, "µm"),
    ("fines_share", 0, 1, ""),
    ("aspect", 1, 3, ""),
    ("order", 0, 1, ""),
    ("roughness_um", 0, 1e3, "µm"),
    ("roughness_length_um", 1e-3, 1e4, "µm"),
    ("lumpiness", 0, 0.2, ""),
    ("gap_um", 0, 1e3, "µm"),
    ("gap_variation", 0, 1, ""),
    ("neck_share", 0, 1, ""),
    ("neck_um", 0, 1e3, "µm"),
    ("void_share", 0, 1, ""),
    ("void_size", 0.01, 0.4, ""),
    ("crack_share", 0, 1, ""),
    ("crack_width_um", 1e-3, 1e3, "µm"),
    ("broken_share", 0, 1, ""),
    ("bridge", -5, 5, ""),
    ("film", -5, 5, ""),
    ("texture", 0.1, 5, ""),
    ("bridge_um", 1e-3, 1e3, "µm"),
    ("film_um", 1e-3, 1e3, "µm"),
    ("texture_um", 1e-3, 1e3, "µm"),
    ("texture_stretch", 1, 5, ""),
    ("nanopore", 0, 5, ""),
    ("nanopore_um", 1e-3, 1e3, "µm"),
    ("gradient", -1, 1, ""),
)
_CRACKS = 3  # at most, in a particle
_ATTEMPTS = 4


class Defects(NamedTuple):
    """What is missing inside the particles; lengths without a unit are shares of the particle's radius."""

    voids: np.ndarray  # (n,) size of the central void, 0 for none; its wall is ragged by the noise tile
    planes: np.ndarray  # (n, 3, 4) unit normal and offset of the crack planes in the particle's own axes
    sides: np.ndarray  # (n, 3, 3) direction in which a crack runs from the centre
    widths_um: np.ndarray  # (n, 3) [µm] at the centre; 0 for no crack
    tapers: np.ndarray  # (n, 3) distance at which a crack closes; 0 for one that goes through


@dataclass(frozen=True)
class NmcCathode:
    """Calendered cathode of secondary NMC particles. Labels: 0 pore, 1 active material, 2 carbon-binder domain.

    The particles are ellipsoids with lumps and rough surfaces, packed as a list, cut by the field of view; neighbours
    have grown together (neck) or keep a slit. The CBD is the upper rank, among all voxels that are not active, of a
    sum of four fields: nearness of the two next surfaces (bridges), nearness of the next one (films), a random texture
    and a finer one (nanopores). All three fractions are exact.

    The defaults are measured on the labels of Su et al., npj Comput. Mater. 8:30 (2022), with their unstated voxel
    taken as 0.05 µm: active 0.49–0.91, CBD 0.035–0.315, pore 0.025–0.39; mean chords 19–88 voxels (active) and 4–10
    (CBD, pore).

    Args:
        active_fraction, cbd_fraction, pore_fraction: active is drawn first, then CBD from what the pores leave of its
            range.
        mean_radius_um: [µm] mean radius of the large particles (by number).
        radius_cv: coefficient of variation of the radii (lognormal, cut at mean/3 and 3 × mean), large and fine.
        fines_radius_um, fines_share: [µm] mean radius of the fine particles between them, and their share of the active
            volume: cathodes are blends of two sizes.
        aspect: longest over shortest axis of a particle; each draws its own.
        order: how well the short axes line up with the thickness after calendering, 0 to 1.
        roughness_um, roughness_length_um: [µm] sd and correlation length of the surface noise.
        lumpiness: sd of the coarse surface noise as a share of a particle's shortest semi-axis.
        gap_um, gap_variation: [µm] width of the slit between neighbours, and its sd along the slit as a share of it.
        neck_share, neck_um: share of the neighbours without a slit, and [µm] the size of the necks between them.
        void_share: share of the large particles (above 0.7 mean radii) with a void in the centre.
        void_size: its radius as a share of the particle's.
        crack_share: share of the particles with one to three cracks from the centre.
        crack_width_um: [µm] width of a crack at the centre; a particle that is broken through opens to twice that.
        broken_share: share of the particles that are broken through.
        bridge, film, texture, nanopore: weights of the four fields; a negative one keeps the CBD away.
        bridge_um, film_um: [µm] distances over which nearness falls to 1/e.
        texture_um, nanopore_um: [µm] correlation lengths of the two textures.
        texture_stretch: the texture is that much longer across the last axis, the electrode's thickness.
        gradient: (active fraction at the far end of the last axis − at the near end) / mean.

    All may be ranges, drawn per sample (``aspect`` and the sizes of voids and cracks per particle).

    Raises:
        ValueError: a value outside its range, or fractions that cannot sum to 1.
    """

    active_fraction: Range = (0.49, 0.91)
    cbd_fraction: Range = (0.035, 0.315)
    pore_fraction: Range = (0.025, 0.39)
    mean_radius_um: Range = (1.5, 3.0)
    radius_cv: Range = (0.2, 0.6)
    fines_radius_um: Range = (0.5, 1.0)
    fines_share: Range = (0.2, 0.7)
    aspect: Range = (1.0, 1.6)
    order: Range = (0.0, 0.6)
    roughness_um: Range = (0.04, 0.12)
    roughness_length_um: Range = (0.1, 0.25)
    lumpiness: Range = (0.04, 0.1)
    gap_um: Range = (0.1, 0.25)
    gap_variation: Range = (0.5, 1.0)
    neck_share: Range = (0.3, 0.9)
    neck_um: Range = (0.05, 0.2)
    void_share: Range = (0.0, 0.6)
    void_size: Range = (0.03, 0.12)
    crack_share: Range = (0.0, 0.15)
    crack_width_um: Range = (0.1, 0.25)
    broken_share: Range = (0.0, 0.05)
    bridge: Range = (-0.3, 0.6)
    film: Range = (-0.4, 0.8)
    texture: Range = 1.0
    bridge_um: Range = 0.4
    film_um: Range = (0.1, 0.3)
    texture_um: Range = (0.08, 0.18)
    texture_stretch: Range = (1.0, 3.0)
    nanopore: Range = (0.3, 0.8)
    nanopore_um: Range = (0.06, 0.1)
    gradient: Range = 0.0

    n_classes = 3

    def __post_init__(self):
        check_ranges(self, (*_FRACTIONS, *_RANGES))
        low, high = self._active_range()
        if low > high + 1e-9:
            raise ValueError(
                f"active_fraction={self.active_fraction!r} leaves no CBD and pore in cbd_fraction="
                f"{self.cbd_fraction!r} and pore_fraction={self.pore_fraction!r}: they must sum to 1; "
                f"nearest valid active_fraction: {1 - lower(self.cbd_fraction) - lower(self.pore_fraction):g}"
            )

        check_gradient("active_fraction", (low, high), self.gradient)

    def _active_range(self) -> tuple[float, float]:
        """The active fractions that CBD and pore can complete to 1."""
        return (
            max(lower(self.active_fraction), 1 - upper(self.cbd_fraction) - upper(self.pore_fraction)),
            min(upper(self.active_fraction), 1 - lower(self.cbd_fraction) - lower(self.pore_fraction)),
        )

    def check(self, shape: tuple[int, ...], voxel_size_um: float) -> None:
        """Raise ValueError where this recipe cannot fill a box of that shape."""
        check_sizes("mean_radius_um", self.mean_radius_um, shape, voxel_size_um)
        check_sizes("fines_radius_um", self.fines_radius_um, shape, voxel_size_um)

    def draw(self, rng: np.random.Generator) -> dict:
        """The parameters of one sample; fractions that sum to 1. ``void_size`` and ``aspect`` stay ranges."""
        active = _between(*self._active_range(), rng)
        cbd = _between(
            max(lower(self.cbd_fraction), 1 - active - upper(self.pore_fraction)),
            min(upper(self.cbd_fraction), 1 - active - lower(self.pore_fraction)),
            rng,
        )
        drawn = {"active_fraction": active, "cbd_fraction": cbd, "pore_fraction": 1 - active - cbd}
        per_particle = ("aspect", "void_size")
        return drawn | draw_ranges(self, (name for name, *_ in _RANGES if name not in per_particle), rng)

    def build(
        self, shape: tuple[int, ...], voxel_size_um: float, parameters: dict, rng: np.random.Generator
    ) -> tuple[np.ndarray, dict]:
        """Pack, break and paint one sample.

        Args:
            shape: voxels along each axis, 2 or 3 of them.
            voxel_size_um: [µm] edge of a voxel.
            parameters: what ``draw`` gave.
            rng: source of everything else.

        Returns:
            uint8 labels of that shape; a dictionary with the fractions, the distance that all surfaces were moved to
            meet them, gap and neck share (a density out of reach halves the slits and the share of pairs that have
            them), numbers of particles with defects, and the particles (``ParticleList``).

        Raises:
            ValueError: the active fraction cannot be reached; names what can.
        """
        p = parameters
        box = np.array(shape) * float(voxel_size_um)
        steepest = 1 + abs(p["gradient"]) / 2
        densest = min(p["active_fraction"] * steepest, max(p["active_fraction"], 0.9))
        dense = nominal_fraction(densest, len(shape)) + 0.02
        look = {
            k: p[k]
            for k in ("roughness_um", "roughness_length_um", "lumpiness", "gap_variation", "neck_share", "neck_um")
        }

        def draw_axes(room):
            return semi_axes(blend(room, dense, p, rng), self.aspect, "oblate", len(shape), rng), ACTIVE

        particles = packed_particles(box, draw_axes, (p["order"], -1), False, dense, p["gap_um"], rng, look)
        particles = field_of_view(particles, box, p["active_fraction"] + 0.02, rng, p["gradient"])
        defects = draw_defects(particles.radii_um, len(shape), self.void_size, p, rng)
        limit = 0.5 * p["fines_radius_um"] + 0.15 * p["mean_radius_um"]
        nearest = particles.nearest(voxel_size_um, max(2 * p["bridge_um"], 1.01 * limit))
        hollow = find_defects(nearest, particles, defects, voxel_size_um)
        for attempt in range(_ATTEMPTS):
            surface = particles.surface(nearest, voxel_size_um)
            surface[hollow] = np.inf
            try:
                labels, level = paint_active(surface, p["active_fraction"], limit)
                break
            except ValueError:
                if attempt == _ATTEMPTS - 1:
                    raise
            # what is pressed that dense has few slits left
            particles = replace(particles, gap_um=particles.gap_um / 2, neck_share=(1 + particles.neck_share) / 2)
        paint_cbd(labels, nearest, hollow, level, voxel_size_um, p, rng)
        particles = replace(particles, level_um=level)
        facts = {
            "fractions_reached": [float((labels == k).mean()) for k in range(3)],
            "level_um": level,
            "gap_um": particles.gap_um,
            "neck_share": particles.neck_share,
            "n_objects": len(particles.centres_um),
            "n_with_void": int((defects.voids > 0).sum()),
            "n_cracked": int((defects.widths_um[:, 0] > 0).sum()),
            "particles": particles.to_json(),
        }
        return labels, facts


def draw_defects(radii_um: np.ndarray, ndim: int, void_size: Range, p: dict, rng: np.random.Generator) -> Defects:
    """Voids and cracks of a list of particles; ``p`` as ``NmcCathode.draw`` gave it."""
    n = len(radii_um)
    large = radii_um > 0.7 * p["mean_radius_um"]
    voids = np.where((rng.uniform(size=n) < p["void_share"]) & large, draw_each(void_size, n, rng), 0.0)
    fate = rng.uniform(size=n)
    broken = fate < p["broken_share"]
    cracked = (fate >= p["broken_share"]) & (fate < p["broken_share"] + p["crack_share"])
    normals = rng.standard_normal((n, _CRACKS, 3))
    sides = rng.standard_normal((n, _CRACKS, 3))
    if ndim == 2:
        normals[..., 2] = sides[..., 2] = 0
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    sides -= (sides * normals).sum(-1, keepdims=True) * normals
    sides /= np.maximum(np.linalg.norm(sides, axis=-1, keepdims=True), 1e-12)
    offsets = rng.uniform(-0.03, 0.03, (n, _CRACKS))
    offsets[broken] = rng.uniform(-0.5, 0.5, (int(broken.sum()), _CRACKS))
    count = rng.integers(1, _CRACKS + 1, n)
    runs = (np.arange(_CRACKS) < count[:, None]) & (broken | cracked)[:, None]
    widths = runs * p["crack_width_um"] * rng.uniform(0.5, 1.5, (n, _CRACKS)) * np.where(broken, 1.5, 1.0)[:, None]
    widths = np.minimum(widths, 0.3 * radii_um[:, None])
    tapers = np.where(broken[:, None], 0.0, rng.uniform(0.5, 1.1, (n, _CRACKS)))
    return Defects(voids, np.concatenate([normals, offsets[..., None]], axis=-1), sides, widths, tapers)


def _between(low: float, high: float, rng: np.random.Generator) -> float:
    """Uniform between two bounds that rounding may have crossed."""
    return draw((low, max(low, high)), rng)


def draw_each(value: Range, n: int, rng: np.random.Generator) -> np.ndarray:
    """A range drawn for each of n particles."""
    return rng.uniform(lower(value), upper(value), n)


def find_defects(nearest: Nearest, particles: ParticleList, defects: Defects, voxel_size_um: float) -> np.ndarray:
    """Bool grid: True in the voids and cracks."""
    solid = np.ones(nearest.owner.shape, bool)
    deep = solid.shape + (1,) * (3 - solid.ndim)
    centres, _, rotations = _in_3d(particles.centres_um, particles.semi_axes_um, particles.rotations)
    carve(
        solid.reshape(deep),
        nearest.first_um.reshape(deep),
        nearest.owner.reshape(deep),
        float(voxel_size_um),
        centres,
        particles.radii_um,
        rotations,
        np.ascontiguousarray(particles.offsets),
        particles.periodic,
        *defects,
        noise_tile(),
        TILE_CORRELATION,
    )
    return ~solid


def paint_active(surface: np.ndarray, fraction: float, limit_um: float) -> tuple[np.ndarray, float]:
    """Labels with the active material, and the distance in µm by which all surfaces were moved to meet its fraction.

    Raises:
        ValueError: it cannot be met within the limit.
    """
    level = rank_threshold(surface.ravel().copy(), round(fraction * surface.size))
    if not -limit_um <= level < limit_um:
        reachable = float((surface < (limit_um if level > 0 else -limit_um)).mean())
        raise ValueError(
            f"active_fraction={fraction:.3f} cannot be reached with these particles; reachable: {reachable:.3f}. Take "
            "a smaller gap_um, crack_share or mean_radius_um, or a larger box"
        )
    return (surface <= level).astype(np.uint8), level


def blend(box: np.ndarray, fraction: float, p: dict, rng: np.random.Generator) -> np.ndarray:
    """[µm] radii of large and fine particles that fill a fraction of a box, largest first."""
    parts = [np.zeros(0)]
    for share, mean in ((1 - p["fines_share"], p["mean_radius_um"]), (p["fines_share"], p["fines_radius_um"])):
        if share > 0:
            parts.append(draw_radii(box, fraction * share, mean, p["radius_cv"], rng))
    return np.sort(np.concatenate(parts))[::-1]


def paint_cbd(
    labels: np.ndarray, nearest: Nearest, hollow: np.ndarray, level: float, voxel_size_um: float, p: dict, rng
) -> None:
    """Label the CBD, in place: exactly its fraction of all voxels, the highest rank of the sum of the four fields.

    Args:
        labels: uint8, with the active material.
        nearest: distances to the particles.
        hollow: bool, voids and cracks: they get CBD only when nothing else is left.
        level: [µm] by which the surfaces were moved.
        voxel_size_um: [µm] edge of a voxel.
        p: parameters, as ``NmcCathode.draw`` gave them.
        rng: source of the textures.
    """
    between = labels == PORE
    first, second = nearest.first_um[between] - np.float32(level), nearest.second_um[between] - np.float32(level)
    stretch = np.array([p["texture_stretch"]] * (labels.ndim - 1) + [1.0])
    score = (
        np.float32(p["texture"]) * smooth_field(labels.shape, voxel_size_um, p["texture_um"] * stretch, rng)[between]
    )
    if p["nanopore"]:
        fine = smooth_field(labels.shape, voxel_size_um, p["nanopore_um"] * stretch**0.5, rng)[between]
        score += np.float32(p["nanopore"]) * fine
    score += np.float32(p["bridge"]) * _standard(np.exp(-np.maximum(first + second, 0) / np.float32(p["bridge_um"])))
    score += np.float32(p["film"]) * _standard(np.exp(-np.maximum(first, 0) / np.float32(p["film_um"])))
    score[hollow[between]] -= 1e3
    chosen = -score <= rank_threshold(-score, round(p["cbd_fraction"] * labels.size))
    labels[between] = np.where(chosen, CBD, PORE)


def _standard(values: np.ndarray) -> np.ndarray:
    """Values with mean 0 and sd 1, so that weights compare."""
    sd = float(values.std()) if values.size else 0.0
    return (values - values.mean()) / np.float32(sd) if sd > 0 else np.zeros_like(values)
