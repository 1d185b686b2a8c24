"""Particles as a list in µm: ellipsoids with rough surfaces that are voxelised at any resolution, with instance ids."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np

from data_gen.microstructure.kernels import CLIP_SD, join, nearest_surfaces
from data_gen.microstructure.random_field import TILE_CORRELATION, TILE_NODES, noise_tile


class Nearest(NamedTuple):
    """What a grid knows of the particles around its voxels. Shapes are the grid's."""

    first_um: np.ndarray  # float32 [µm] signed distance to the nearest surface, negative inside; cut at the reach
    second_um: np.ndarray  # float32 [µm] the same of the second nearest particle
    owner: np.ndarray  # int32 index of the nearest particle, −1 where none is in reach
    runner_up: np.ndarray  # int32 index of the second nearest


@dataclass(frozen=True)
class ParticleList:
    """Star-shaped particles in a box: ellipsoids with two layers of surface noise.

    The surface of a particle is where its smooth ellipsoid, followed along the ray from the centre, is left by the
    height of the noise there (measured along the normal, to first order). Distances are exact for spheres and first
    order in the distance otherwise: (t − 1) / |∇t| with t² = Σ(x_k / a_k)².

    Args:
        box_um: [µm] (ndim,) edges of the box; its corner is the origin.
        centres_um: [µm] (n, ndim).
        semi_axes_um: [µm] (n, ndim).
        rotations: (n, ndim, ndim) orthogonal; row k is the direction of semi-axis k.
        rough_um: [µm] (n, 2) sd and correlation length of the fine surface noise; sd 0 is smooth.
        lumpy_um: [µm] (n, 2) the same for the coarse noise, as long as a particle: lumps and facets.
        offsets: (n, 3) where a particle reads the noise tile: its roughness seed, 0 to 64.
        periodic: particles that leave through a face come back at the other; otherwise they are cut.
        kinds: label of every particle, (n,) where there are several.
        level_um: [µm] all surfaces are moved outwards by this; (n,) where the kinds differ.
        gap_um: [µm] width of the slit that is kept between two particles that touch.
        gap_variation: sd of that width as a share of it, along the slit.
        neck_share: share of the touching pairs that have no slit: they have grown together.
        neck_um: [µm] size of those necks: the wedge at a contact is filled by 0.69 times it.
        seed: of the choice of those pairs.
    """

    box_um: np.ndarray
    centres_um: np.ndarray
    semi_axes_um: np.ndarray
    rotations: np.ndarray
    rough_um: np.ndarray
    lumpy_um: np.ndarray
    offsets: np.ndarray
    periodic: bool = True
    kinds: np.ndarray | int = 1
    level_um: np.ndarray | float = 0.0
    gap_um: float = 0.0
    gap_variation: float = 0.0
    neck_share: float = 0.0
    neck_um: float = 0.0
    seed: int = 0

    @property
    def radii_um(self) -> np.ndarray:
        """[µm] (n,) radii of the balls (circles) of the same volume as the smooth ellipsoids."""
        return np.prod(self.semi_axes_um, axis=1) ** (1 / self.semi_axes_um.shape[1])

    def shape(self, voxel_size_um: float) -> tuple[int, ...]:
        """Voxels of the box at a voxel size.

        Raises:
            ValueError: the box is not a whole number of voxels.
        """
        voxels = self.box_um / voxel_size_um
        if np.abs(voxels - voxels.round()).max() > 1e-6 * voxels.max():
            raise ValueError(
                f"voxel_size_um={voxel_size_um!r} does not divide a box of {self.box_um.tolist()} µm; nearest valid: "
                f"{self.box_um[0] / max(round(voxels[0]), 1):g}"
            )
        return tuple(int(n) for n in voxels.round())

    def nearest(self, voxel_size_um: float, reach_um: float = 0.0) -> Nearest:
        """Distances to the two nearest surfaces, before ``level_um``, at every voxel centre of the box.

        Args:
            voxel_size_um: [µm] edge of a voxel.
            reach_um: [µm] how far outside a particle its distance is needed; larger ones read as this.
        """
        shape = self.shape(voxel_size_um)
        centres, axes, rotations = _in_3d(self.centres_um, self.semi_axes_um, self.rotations)
        extents = np.zeros_like(centres)
        reached = self._reached_um(reach_um)[:, :, None] * self.rotations
        extents[:, : len(shape)] = np.sqrt((reached**2).sum(1))
        fields = nearest_surfaces(
            shape + (1,) * (3 - len(shape)),
            float(voxel_size_um),
            centres,
            axes,
            rotations,
            np.ascontiguousarray(self.rough_um, float),
            np.ascontiguousarray(self.lumpy_um, float),
            np.ascontiguousarray(self.offsets, float),
            extents,
            self.periodic,
            float(reach_um),
            noise_tile(),
            TILE_CORRELATION,
        )
        return Nearest(*(field.reshape(shape) for field in fields))

    def surface(self, nearest: Nearest, voxel_size_um: float) -> np.ndarray:
        """[µm] signed distance to the solid, with slits (infinite) and necks at the contacts. float32 of the grid."""
        volumes = [f.reshape(f.shape + (1,) * (3 - f.ndim)) for f in nearest]
        numbers = (voxel_size_um, self.gap_um, self.gap_variation, self.neck_share, self.neck_um)
        joined = join(*volumes, *map(float, numbers), int(self.seed), noise_tile(), TILE_CORRELATION)
        return joined.reshape(nearest.owner.shape)

    def ids(self, voxel_size_um: float) -> np.ndarray:
        """Instance ids on a grid: 0 outside, 1 + index of the particle inside. int32 of the box's shape."""
        levels = np.broadcast_to(np.asarray(self.level_um, np.float32), len(self.centres_um))
        reach = max(float(levels.max(initial=0)), 0.0) + self.gap_um * (1 + CLIP_SD * self.gap_variation)
        nearest = self.nearest(voxel_size_um, reach + 7 * self.neck_um + voxel_size_um)
        inside = nearest.owner >= 0
        inside &= self.surface(nearest, voxel_size_um) <= levels[nearest.owner]
        return np.where(inside, nearest.owner + 1, 0).astype(np.int32)

    def window(self, origin_um: np.ndarray, box_um: np.ndarray) -> ParticleList:
        """The particles of a periodic box that a smaller window shows, cut at its edges.

        Args:
            origin_um: [µm] (ndim,) the window's corner.
            box_um: [µm] (ndim,) its edges. A particle that it shows twice is in the list twice.
        """
        box_um = np.asarray(box_um, float)
        margin = self._reached_um(0.0).max(1, keepdims=True)
        centres, chosen = [], []
        for shift in product((-1, 0, 1), repeat=len(box_um)):
            at = (self.centres_um - origin_um) % self.box_um + np.array(shift) * self.box_um
            shown = np.flatnonzero(np.all((at > -margin) & (at < box_um + margin), axis=1))
            centres.append(at[shown])
            chosen.append(shown)
        pack = self.take(np.concatenate(chosen))
        return replace(pack, centres_um=np.concatenate(centres), box_um=box_um, periodic=False)

    def _reached_um(self, reach_um: float) -> np.ndarray:
        """(n, ndim) semi-axes of ellipsoids that hold the particles, their noise and a reach.

        A height h along the normal is h |∇t| along the ray, as a share of the radius there, and |∇t| is at most one
        over the shortest semi-axis.
        """
        height = CLIP_SD * (self.rough_um[:, 0] + self.lumpy_um[:, 0]) + reach_um
        return self.semi_axes_um * (1 + height / self.semi_axes_um.min(1))[:, None]

    def take(self, chosen: np.ndarray) -> ParticleList:
        """The particles that a mask or a list of indices chooses, in that order."""
        names = ("centres_um", "semi_axes_um", "rotations", "rough_um", "lumpy_um", "offsets")
        names += tuple(name for name in ("kinds", "level_um") if np.ndim(getattr(self, name)))
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})

    def to_json(self) -> dict:
        """Plain JSON values; ``from_json`` gives the list back, to 1e-6 µm."""
        values = {}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            values[name] = value.round(6).tolist() if isinstance(value, np.ndarray) else value
        return values

    @classmethod
    def from_json(cls, values: dict) -> ParticleList:
        """The list that ``to_json`` wrote."""
        return cls(**{k: np.array(v) if isinstance(v, list) else v for k, v in values.items()})


def ellipsoids(
    box_um: np.ndarray,
    centres_um: np.ndarray,
    semi_axes_um: np.ndarray,
    rotations: np.ndarray,
    rng: np.random.Generator,
    roughness_um: float = 0.0,
    roughness_length_um: float = 1.0,
    lumpiness: float = 0.0,
    lump_length: float = 0.8,
    **options,
) -> ParticleList:
    """A list of particles with the same roughness and with lumps in proportion to their size.

    Args:
        box_um, centres_um, semi_axes_um, rotations: as in ``ParticleList``.
        rng: source of the roughness seeds.
        roughness_um: [µm] sd of the fine noise; at most a sixth of a particle's shortest semi-axis is used.
        roughness_length_um: [µm] its correlation length.
        lumpiness: sd of the coarse noise as a share of the shortest semi-axis.
        lump_length: its correlation length as a share of the radius.
        options: the rest of ``ParticleList``.
    """
    shortest = semi_axes_um.min(1)
    radii = np.prod(semi_axes_um, axis=1) ** (1 / semi_axes_um.shape[1])
    n = len(radii)
    return ParticleList(
        box_um=np.asarray(box_um, float),
        centres_um=centres_um,
        semi_axes_um=semi_axes_um,
        rotations=rotations,
        rough_um=np.stack([np.minimum(roughness_um, shortest / 6), np.full(n, roughness_length_um)], axis=1),
        lumpy_um=np.stack([lumpiness * shortest, lump_length * radii], axis=1),
        offsets=rng.uniform(0, TILE_NODES, (n, 3)),
        **options,
    )


def draw_rotations(n: int, ndim: int, order: float, axis: int, rng: np.random.Generator) -> np.ndarray:
    """Rotations whose first row, the particle's axis, has a given order about one axis of the box.

    Watson's distribution, density ∝ exp(κ cos²θ) in 3D and ∝ exp(κ cos 2θ) in 2D; κ follows from the order (Mardia &
    Jupp, Directional Statistics, 2000, section 9.4.2).

    Args:
        n, ndim: number of rotations; 2 or 3.
        order: ⟨(3cos²θ − 1)/2⟩ in 3D, ⟨cos 2θ⟩ in 2D: 0 isotropic, 1 aligned.
        axis: the axis of the box, −1 the last.
        rng: source of the angles.

    Returns:
        (n, ndim, ndim) float64.
    """
    u, turn = rng.uniform(size=n), rng.uniform(0, 2 * np.pi, size=n)
    axis %= ndim
    if ndim == 2:
        theta = _angles(u, order, 2) * np.where(turn < np.pi, 1, -1)
        direction = np.zeros((n, 2))
        direction[:, axis], direction[:, 1 - axis] = np.cos(theta), np.sin(theta)
        return np.stack([direction, np.stack([-direction[:, 1], direction[:, 0]], 1)], axis=1)
    theta = _angles(u, order, 3)
    normal = np.zeros((n, 3))
    normal[:, axis] = np.cos(theta)
    normal[:, (axis + 1) % 3], normal[:, (axis + 2) % 3] = np.sin(theta) * np.cos(turn), np.sin(theta) * np.sin(turn)
    spin = rng.standard_normal((n, 3))  # the other two axes: any direction across the first
    second = spin - (spin * normal).sum(1, keepdims=True) * normal
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    return np.stack([normal, second, np.cross(normal, second)], axis=1)


def _angles(u: np.ndarray, order: float, ndim: int) -> np.ndarray:
    """Polar angles in 0 to π/2 at the quantiles ``u``."""
    if order >= 0.999:
        return np.zeros_like(u)
    theta = (np.arange(4000) + 0.5) * (np.pi / 2 / 4000)
    moment = np.cos(2 * theta) if ndim == 2 else (3 * np.cos(theta) ** 2 - 1) / 2
    measure = 1.0 if ndim == 2 else np.sin(theta)

    def weights(kappa):
        w = np.exp(kappa * (np.cos(2 * theta) - 1)) * measure  # cos² = (1 + cos 2θ)/2: the same family
        return w / w.sum()

    low, high = 0.0, 2000.0
    for _ in range(60):
        kappa = (low + high) / 2
        low, high = (kappa, high) if (weights(kappa) * moment).sum() < order else (low, kappa)
    return np.interp(u, np.cumsum(weights((low + high) / 2)), theta)


def _in_3d(centres, axes, rotations):
    """Circles as the middle slice of balls: the third coordinate is 0 and the third axis their own."""
    n, ndim = centres.shape
    if ndim == 3:
        return (np.ascontiguousarray(a, dtype=float) for a in (centres, axes, rotations))
    deep = np.zeros((n, 3, 3))
    deep[:, :2, :2], deep[:, 2, 2] = rotations, 1
    return (
        np.column_stack([centres, np.zeros(n)]).astype(float),
        np.column_stack([axes, axes.max(1)]).astype(float),
        deep,
    )
