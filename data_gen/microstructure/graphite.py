"""Graphite anode: platelets that lie flat, packed densely, with silicon particles or binder between them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from data_gen.microstructure.electrode import paint_cbd
from data_gen.microstructure.packing import field_of_view
from data_gen.microstructure.particle_list import Nearest, ParticleList
from data_gen.microstructure.particles import check_gradient, check_sizes, nominal_fraction, packed_particles, semi_axes
from data_gen.microstructure.random_field import rank_threshold
from data_gen.microstructure.spheres import draw_radii
from data_gen.parameters import Range, check_ranges, draw_ranges, upper

PORE, GRAPHITE, THIRD = 0, 1, 2
_THIRDS = ("none", "silicon", "binder")
_MAX_SOLID = 0.9
_RANGES = (
    ("graphite_fraction", 0.2, 0.85, ""),
    ("third_fraction", 0.001, 0.4, ""),
    ("mean_radius_um", 1e-3, 1e4, "µm"),
    ("radius_cv", 0, 1, ""),
    ("aspect", 1, 8, ""),
    ("order", 0, 1, ""),
    ("roughness_um", 0, 1e3, "µm"),
    ("roughness_length_um", 1e-3, 1e4, "µm"),
    ("lumpiness", 0, 0.25, ""),
    ("gap_um", 0, 1e3, "µm"),
    ("neck_share", 0, 1, ""),
    ("silicon_radius_um", 1e-3, 1e4, "µm"),
    ("binder_um", 1e-3, 1e3, "µm"),
    ("gradient", -1, 1, ""),
)
_ATTEMPTS = 4
_WIDEST = 3.0  # longest semi-axis of a flake, in mean radii
_SILICON_ASPECT = (1.0, 1.8)  # milled fragments


@dataclass(frozen=True)
class GraphiteAnode:
    """Calendered anode of graphite flakes. Labels: 0 pore, 1 graphite, and 2 silicon or binder where asked.

    The flakes are oblate, lumpy and rough, with their short axes near the electrode's thickness, the last axis. They
    pack to what flakes pack to and flatten each other beyond it. Silicon particles are packed with them; binder is
    the upper rank, in the pores, of the nearness of the two next surfaces with a random texture. All fractions are
    exact.

    Default sizes are typical of flakes with a median diameter of 8–16 µm (assumed, not measured here); solid
    0.55–0.75.

    Args:
        graphite_fraction: volume fraction of the flakes.
        third: "none", "silicon" or "binder".
        third_fraction: volume fraction of the third phase, if there is one.
        mean_radius_um: [µm] mean radius of the balls (circles) of the flakes' volumes.
        radius_cv: coefficient of variation of these radii.
        aspect: width over thickness of a flake; each draws its own.
        order: how well the short axes line up with the last axis of the box: 0 isotropic, 1 aligned.
        roughness_um, roughness_length_um: [µm] sd and correlation length of the fine surface noise.
        lumpiness: sd of the coarse surface noise as a share of the half thickness.
        gap_um: [µm] slit between neighbours.
        neck_share: share of the touching neighbours without one.
        silicon_radius_um: [µm] mean radius of the silicon particles.
        binder_um: [µm] distance over which a surface attracts binder, and the correlation length of its texture.
        gradient: (solid fraction at the far end of the last axis − at the near end) / mean.

    All numbers may be ranges, drawn per sample (``aspect`` per flake).

    Raises:
        ValueError: a value outside its range, or more than 0.9 solid.
    """

    graphite_fraction: Range = (0.55, 0.72)
    third: str = "none"
    third_fraction: Range = (0.02, 0.08)
    mean_radius_um: Range = (3.0, 6.0)
    radius_cv: Range = (0.3, 0.6)
    aspect: Range = (1.5, 4.5)
    order: Range = (0.3, 0.8)
    roughness_um: Range = (0.1, 0.25)
    roughness_length_um: Range = (0.8, 2.0)
    lumpiness: Range = (0.06, 0.12)
    gap_um: Range = (0.3, 0.8)
    neck_share: Range = (0.2, 0.7)
    silicon_radius_um: Range = (0.8, 1.5)
    binder_um: Range = (0.4, 0.8)
    gradient: Range = 0.0

    def __post_init__(self):
        check_ranges(self, _RANGES)
        if self.third not in _THIRDS:
            raise ValueError(f"third={self.third!r} must be one of {_THIRDS}")
        solid = upper(self.graphite_fraction) + (upper(self.third_fraction) if self.third != "none" else 0)
        if solid > _MAX_SOLID + 1e-9:
            raise ValueError(
                f"graphite_fraction={self.graphite_fraction!r} and third_fraction={self.third_fraction!r} must leave "
                f"{1 - _MAX_SOLID:g} pore; nearest valid graphite_fraction: "
                f"{upper(self.graphite_fraction) - solid + _MAX_SOLID:g}"
            )
        check_gradient("graphite_fraction", (0.0, solid), self.gradient)

    @property
    def n_classes(self) -> int:
        """Number of labels: 2, and 3 with a third phase."""
        return 2 if self.third == "none" else 3

    def check(self, shape: tuple[int, ...], voxel_size_um: float) -> None:
        """Raise ValueError where this recipe cannot fill a box of that shape."""
        check_sizes("mean_radius_um", self.mean_radius_um, shape, voxel_size_um)
        if self.third == "silicon":
            check_sizes("silicon_radius_um", self.silicon_radius_um, shape, voxel_size_um)

    def draw(self, rng: np.random.Generator) -> dict:
        """The parameters of one sample; ``aspect`` stays a range."""
        return draw_ranges(self, (name for name, *_ in _RANGES if name != "aspect"), rng)

    def build(
        self, shape: tuple[int, ...], voxel_size_um: float, parameters: dict, rng: np.random.Generator
    ) -> tuple[np.ndarray, dict]:
        """Pack and paint one sample.

        Args:
            shape: voxels along each axis, 2 or 3 of them.
            voxel_size_um: [µm] edge of a voxel.
            parameters: what ``draw`` gave.
            rng: source of everything else.

        Returns:
            uint8 labels of that shape; a dictionary with the fractions, the distances by which the surfaces of each
            kind were moved to meet them, the slit (a density out of reach halves it), and the particles
            (``ParticleList``).

        Raises:
            ValueError: a fraction cannot be reached; names what can.
        """
        p, ndim = parameters, len(shape)
        box = np.array(shape) * float(voxel_size_um)
        silicon = p["third_fraction"] if self.third == "silicon" else 0.0
        solid = p["graphite_fraction"] + silicon
        steepest = 1 + abs(p["gradient"]) / 2
        dense = nominal_fraction(min(solid * steepest, 0.9), ndim) + 0.02

        def draw_axes(room):
            radii = draw_radii(room, dense - silicon * steepest, p["mean_radius_um"], p["radius_cv"], rng)
            axes, kinds = semi_axes(radii, self.aspect, "oblate", ndim, rng), np.full(len(radii), GRAPHITE)
            axes *= np.minimum(1, _WIDEST * p["mean_radius_um"] / axes.max(1))[:, None]
            if silicon:
                small = draw_radii(
                    room,
                    silicon * 1.3 * steepest,  # some of it is lost in contacts
                    p["silicon_radius_um"],
                    p["radius_cv"],
                    rng,
                )
                axes = np.concatenate([axes, semi_axes(small, _SILICON_ASPECT, "oblate", ndim, rng)])
                kinds = np.append(kinds, np.full(len(small), THIRD))
            return axes, kinds

        look = {k: p[k] for k in ("roughness_um", "roughness_length_um", "lumpiness", "neck_share")}
        look |= {"gap_variation": 0.7, "neck_um": p["gap_um"] / 2}
        particles = packed_particles(box, draw_axes, (p["order"], -1), False, dense, p["gap_um"], rng, look)
        particles = field_of_view(particles, box, solid + 0.02, rng, p["gradient"])
        nearest = particles.nearest(voxel_size_um, max(0.3 * p["mean_radius_um"], 2 * p["binder_um"]))
        for attempt in range(_ATTEMPTS):
            try:
                labels, levels = paint_kinds(particles, nearest, voxel_size_um, p, silicon)
                break
            except ValueError:
                if attempt == _ATTEMPTS - 1:
                    raise
            # what is pressed that dense has narrow slits
            particles = replace(particles, gap_um=particles.gap_um / 2)
        if self.third == "binder":
            score = {"cbd_fraction": p["third_fraction"], "bridge": 1.5, "film": 0.4, "texture": 0.7, "nanopore": 0.3}
            score |= {"bridge_um": p["binder_um"], "film_um": p["binder_um"], "texture_um": p["binder_um"]}
            score |= {"nanopore_um": p["binder_um"] / 3, "texture_stretch": 1.0}
            hollow = np.zeros(shape, bool)
            paint_cbd(labels, nearest, hollow, float(levels[GRAPHITE]), voxel_size_um, score, rng)
        particles = replace(particles, level_um=levels[particles.kinds])
        facts = {
            "fractions_reached": [float((labels == k).mean()) for k in range(self.n_classes)],
            "levels_um": levels[1:].tolist(),
            "gap_um": particles.gap_um,
            "n_objects": len(particles.centres_um),
            "particles": particles.to_json(),
        }
        return labels, facts


def paint_kinds(
    particles: ParticleList, nearest: Nearest, voxel_size_um: float, p: dict, silicon: float
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 labels of graphite and silicon, and the distance [µm] by which each label's surfaces were moved."""
    surface = particles.surface(nearest, voxel_size_um)
    kind = np.where(nearest.owner >= 0, particles.kinds[nearest.owner], PORE).astype(np.uint8)
    labels, levels = np.zeros(surface.shape, np.uint8), np.zeros(3)
    limit = 0.3 * p["mean_radius_um"]
    for label, fraction in ((GRAPHITE, p["graphite_fraction"]), (THIRD, silicon)):
        if fraction:
            mine = kind == label
            levels[label] = _level(surface[mine], fraction, labels.size, limit, label)
            labels[mine & (surface <= levels[label])] = label
    return labels, levels


def _level(surface: np.ndarray, fraction: float, size: int, limit: float, label: int) -> float:
    """[µm] level at which the voxels of one kind make up a fraction of the box."""
    count = round(fraction * size)
    level = rank_threshold(surface, count) if count <= surface.size else np.inf
    if not abs(level) < limit:
        names = ("pore", "graphite_fraction", "third_fraction")
        reachable = float((surface < (limit if level > 0 else -limit)).sum() / size)
        raise ValueError(
            f"{names[label]}={fraction:.3f} cannot be reached with these particles; reachable: {reachable:.3f}. Take a "
            "smaller gap_um, smaller particles or a larger box"
        )
    return level
