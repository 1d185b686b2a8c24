"""Particles of any roundness: spheres or ellipsoids, smooth or rough, apart or grown together, evenly spread or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from data_gen.microstructure.packing import field_of_view, pack_ellipsoids
from data_gen.microstructure.particle_list import ParticleList, draw_rotations, ellipsoids
from data_gen.microstructure.random_field import rank_threshold
from data_gen.microstructure.spheres import ball_volume, draw_radii
from data_gen.parameters import Range, check_number, check_ranges, draw_ranges, lower, upper

PACKED = {2: 0.74, 3: 0.56}  # fraction to which ellipsoids pack within seconds; beyond it they flatten at contacts
MAX_FRACTION = 0.95  # at the dense end of a gradient
_FORMS = ("oblate", "prolate")
_RANGES = (
    ("fraction", 0.001, 0.9, ""),
    ("mean_radius_um", 1e-4, 1e5, "µm"),
    ("radius_cv", 0, 1, ""),
    ("aspect", 1, 10, ""),
    ("order", 0, 1, ""),
    ("roughness_um", 0, 1e4, "µm"),
    ("roughness_length_um", 1e-4, 1e5, "µm"),
    ("lumpiness", 0, 0.3, ""),
    ("gap_um", -1e4, 1e4, "µm"),
    ("neck_share", 0, 1, ""),
    ("gradient", -1.5, 1.5, ""),
)


@dataclass(frozen=True)
class Particles:
    """Packed ellipsoids with rough surfaces; ellipses where the shape is 2D. Labels: 0 outside, 1 inside.

    For smooth spheres that never touch take ``Spheres``. Here the surfaces of the whole pack are moved by a small
    common distance until the voxels meet the fraction exactly.

    Args:
        fraction: volume fraction of the particles, 0.001 to 0.9. Above about 0.74 (2D) and 0.56 (3D) the particles
            flatten each other.
        mean_radius_um: [µm] mean radius of the balls of the same volume.
        radius_cv: coefficient of variation of these radii (lognormal, cut at mean/3 and 3 × mean).
        radius_histogram: measured radii instead of the two above: ``{"edges_um": [...], "counts": [...]}``, number of
            particles in each bin.
        aspect: longest over shortest axis, 1 to 10; each particle draws its own between the two.
        form: "oblate" (one short axis) or "prolate" (one long axis). The same in 2D.
        order: how well the particles' axes line up with ``axis``: 0 isotropic, 1 aligned (see ``draw_rotations``).
        axis: axis of the box for ``order`` and ``gradient``; −1 is the last.
        roughness_um: [µm] sd of the fine surface noise.
        roughness_length_um: [µm] its correlation length.
        lumpiness: sd of the coarse surface noise as a share of the shortest semi-axis.
        gap_um: [µm] above 0: slit that is kept between neighbours; below 0: depth by which neighbours overlap.
        neck_share: share of the touching pairs without a slit: they have grown together.
        gradient: (fraction at the far end − at the near end) / mean along ``axis``; needs ``periodic=False``.
        periodic: a pack that continues through the faces; otherwise the box is a window of a larger pack.

    Numbers may be ranges, drawn per sample (``aspect`` per particle).

    Raises:
        ValueError: a value outside its range.
    """

    fraction: Range = (0.3, 0.6)
    mean_radius_um: Range = (8.0, 16.0)
    radius_cv: Range = (0.1, 0.4)
    radius_histogram: Mapping | None = None
    aspect: Range = 1.0
    form: str = "oblate"
    order: Range = 0.0
    axis: int = -1
    roughness_um: Range = 0.0
    roughness_length_um: Range = 1.0
    lumpiness: Range = 0.0
    gap_um: Range = 0.0
    neck_share: Range = 0.0
    gradient: Range = 0.0
    periodic: bool = True

    n_classes = 2

    def __post_init__(self):
        check_ranges(self, _RANGES)
        if self.form not in _FORMS:
            raise ValueError(f"form={self.form!r} must be one of {_FORMS}")
        if type(self.axis) is not int or self.axis not in (-1, 0, 1, 2):
            raise ValueError(f"axis={self.axis!r} must be 0, 1, 2 or −1, the last")
        if type(self.periodic) is not bool:
            raise ValueError(f"periodic={self.periodic!r} must be true or false")
        if self.periodic and self.gradient != 0:
            raise ValueError(f"gradient={self.gradient!r} needs periodic=False: a periodic box has no ends")
        if self.radius_histogram is not None:
            object.__setattr__(self, "radius_histogram", check_histogram(self.radius_histogram))

    def check(self, shape: tuple[int, ...], voxel_size_um: float) -> None:
        """Raise ValueError where this recipe cannot fill a box of that shape."""
        if self.axis >= len(shape):
            raise ValueError(f"axis={self.axis} of a {len(shape)}D shape must be at most {len(shape) - 1}")
        name, radius = "mean_radius_um", self.mean_radius_um
        if self.radius_histogram is not None:
            edges = self.radius_histogram["edges_um"]
            name, radius = "radius_histogram edges_um", (edges[0], edges[-1])
        check_sizes(name, radius, shape, voxel_size_um)
        if lower(self.fraction) * prod(n * voxel_size_um for n in shape) < ball_volume(lower(radius), len(shape)):
            raise ValueError(f"fraction={self.fraction!r} of a box of {tuple(shape)} voxels is less than one particle")

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
            rng: source of radii, orientations, roughness and positions.

        Returns:
            uint8 labels of that shape; a dictionary with the fraction reached, the number of particles and their list,
            which ``ParticleList.from_json(facts["particles"]).ids(voxel_size_um)`` turns into instance ids.

        Raises:
            ValueError: the fraction cannot be reached; names what can.
        """
        p = parameters
        box = np.array(shape) * float(voxel_size_um)
        steepest = 1 + abs(p["gradient"]) / 2
        dense = nominal_fraction(min(p["fraction"] * steepest, 0.9), len(shape))

        def draw_axes(room):
            if self.radius_histogram is None:
                radii = draw_radii(room, dense, p["mean_radius_um"], p["radius_cv"], rng)
            else:
                radii = draw_from_histogram(room, dense, self.radius_histogram, rng)
            return semi_axes(radii, self.aspect, self.form, len(shape), rng), 1

        look = {k: p[k] for k in ("roughness_um", "roughness_length_um", "lumpiness", "neck_share")}
        orientation = (p["order"], self.axis)
        pack = packed_particles(box, draw_axes, orientation, self.periodic, dense, p["gap_um"], rng, look)
        if not self.periodic:
            pack = field_of_view(pack, box, p["fraction"], rng, p["gradient"], self.axis)
        labels, level = fill_to(pack, voxel_size_um, p["fraction"])
        pack = replace(pack, level_um=level)
        facts = {
            "fraction_reached": float(labels.mean()),
            "n_objects": len(pack.centres_um),
            "level_um": level,
            "particles": pack.to_json(),
        }
        return labels, facts


def check_histogram(histogram: Mapping) -> dict[str, list[float]]:
    """A histogram of radii as plain lists.

    Raises:
        ValueError: not rising positive edges, or not one count for each bin.
    """
    edges, counts = (list(histogram.get(k, [])) for k in ("edges_um", "counts"))
    if len(edges) < 2 or len(counts) != len(edges) - 1 or set(histogram) != {"edges_um", "counts"}:
        raise ValueError(
            f"radius_histogram={dict(histogram)!r} must hold edges_um and counts, one edge more than counts"
        )
    edges = [check_number("radius_histogram edges_um", e, 1e-4, 1e5, "µm") for e in edges]
    counts = [check_number("radius_histogram counts", c, 0, 1e12) for c in counts]
    if sorted(set(edges)) != edges or sum(counts) <= 0:
        raise ValueError(f"radius_histogram={dict(histogram)!r}: edges_um must rise and counts have a sum above 0")
    return {"edges_um": edges, "counts": counts}


def check_sizes(name: str, radius: Range, shape: tuple[int, ...], voxel_size_um: float) -> None:
    """Raise ValueError where radii are below a voxel or above a quarter of the shortest edge."""
    if lower(radius) < voxel_size_um:
        raise ValueError(
            f"{name}={radius!r} is below one voxel of {voxel_size_um:g} µm; take at least {voxel_size_um:g}"
        )
    limit = min(shape) * voxel_size_um / 4
    if upper(radius) > limit:
        raise ValueError(
            f"{name}={radius!r} does not fit a box of {tuple(shape)} voxels of {voxel_size_um:g} µm; "
            f"take at most a quarter of its shortest edge, {limit:g}"
        )


def draw_from_histogram(box: np.ndarray, fraction: float, histogram: Mapping, rng: np.random.Generator) -> np.ndarray:
    """Radii from a measured histogram, uniform within a bin, that fill a fraction of the box; largest first."""
    edges, counts = np.array(histogram["edges_um"]), np.array(histogram["counts"], float)
    target, ndim = fraction * prod(box), len(box)
    radii, filled = np.zeros(0), 0.0
    while filled < target:
        bins = rng.choice(len(counts), 64, p=counts / counts.sum())
        more = rng.uniform(edges[bins], edges[bins + 1])
        radii, filled = np.append(radii, more), filled + ball_volume(more, ndim).sum()
    volumes = np.cumsum(ball_volume(radii, ndim))
    n = max(1, int(np.abs(volumes - target).argmin()) + 1)
    return np.sort(radii[:n])[::-1]


def semi_axes(radii: np.ndarray, aspect: Range, form: str, ndim: int, rng: np.random.Generator) -> np.ndarray:
    """(n, ndim) semi-axes of the radii's volumes; the first differs from the rest by an aspect drawn for each."""
    k = rng.uniform(lower(aspect), upper(aspect), len(radii))
    if form == "oblate":
        k = 1 / k
    return radii[:, None] * np.column_stack([k ** ((ndim - 1) / ndim)] + [k ** (-1 / ndim)] * (ndim - 1))


def check_gradient(name: str, fraction: Range, gradient: Range) -> None:
    """Raise ValueError where a gradient takes a fraction above what particles can fill at one end of the box."""
    steepest = max(abs(lower(gradient)), abs(upper(gradient)))
    if steepest and upper(fraction) * (1 + steepest / 2) > MAX_FRACTION:
        raise ValueError(
            f"gradient={gradient!r} takes {name}={fraction!r} above {MAX_FRACTION:g} at one end; take at most "
            f"{max(0.0, 2 * (MAX_FRACTION / upper(fraction) - 1)):.3g}"
        )


def nominal_fraction(fraction: float, ndim: int) -> float:
    """What particles must fill, overlaps counted twice, to fill a fraction when they flatten each other.

    Fitted: it keeps the common shift of the surfaces small.
    """
    return fraction + 0.6 * max(0.0, fraction - PACKED[ndim])


def packed_particles(
    box: np.ndarray,
    draw_axes: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | int]],
    orientation: tuple[float, int],
    periodic: bool,
    dense: float,
    gap_um: float,
    rng: np.random.Generator,
    look: dict,
) -> ParticleList:
    """A periodic pack: of the box, or where it is to be cut, of a box that is larger by the longest semi-axis.

    Args:
        box: [µm] (ndim,) edges.
        draw_axes: function of a box that draws the semi-axes (n, ndim) that fill it, and the particles' kinds.
        orientation: order and axis of ``draw_rotations``.
        periodic: the pack is the box itself.
        dense: fraction that the particles fill.
        gap_um: [µm] above 0: slit that is kept between neighbours; below 0: depth by which they overlap.
        rng: source of everything.
        look: roughness and the rest of ``particle_list.ellipsoids``.
    """
    ndim = len(box)
    room = box
    axes, kinds = draw_axes(box)
    if not periodic:
        longest = axes.max()
        room = box + longest
        axes, kinds = draw_axes(room)
        axes *= np.minimum(1, longest / axes.max(1))[:, None]
    axes *= np.minimum(1, room.min() / 2.2 / axes.max(1))[:, None]  # no particle meets its own image
    rotations = draw_rotations(len(axes), ndim, *orientation, rng)
    # beyond what packs, smaller particles are packed and the real ones overlap: their contacts become flat
    apart = np.maximum(axes + gap_um / 2, 0.3 * axes)
    crowded = dense / PACKED[ndim] * float(np.prod(apart, axis=1).sum() / np.prod(axes, axis=1).sum())
    apart *= min(1.0, 1 / crowded) ** (1 / ndim)
    centres, _ = pack_ellipsoids(room, apart, rotations, rng)
    seed = int(rng.integers(2**31))
    return ellipsoids(room, centres, axes, rotations, rng, kinds=kinds, gap_um=max(gap_um, 0.0), seed=seed, **look)


def fill_to(particles: ParticleList, voxel_size_um: float, fraction: float) -> tuple[np.ndarray, float]:
    """Voxels of the particles after all surfaces moved by the one distance that meets the fraction.

    Returns:
        uint8 labels, and the distance in µm.

    Raises:
        ValueError: it would have to be more than half the mean radius; names the fraction that can be reached.
    """
    limit = 0.5 * float(particles.radii_um.mean()) if len(particles.centres_um) else 0.0
    nearest = particles.nearest(voxel_size_um, limit)
    surface = particles.surface(nearest, voxel_size_um)
    count = round(fraction * surface.size)
    level = rank_threshold(surface.ravel().copy(), count)
    if not -limit <= level < limit * 0.999:
        reachable = float((np.abs(surface) < limit * 0.999).mean() + (surface <= -limit).mean())
        raise ValueError(
            f"fraction={fraction:.3f} cannot be reached by moving the surfaces of these particles by at most "
            f"{limit:.3g} µm; reachable: {min(reachable, 1):.3f}. Take a smaller gap_um, "
            "smaller particles or a larger box"
        )
    return (surface <= level).astype(np.uint8), level
