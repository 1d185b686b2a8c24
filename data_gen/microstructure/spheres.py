"""Spheres (3D) and circles (2D) of different sizes that do not overlap: packed as a list, painted analytically."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gamma, pi, prod

import numpy as np
from scipy.spatial import cKDTree

from data_gen.parameters import Range, check_range, check_ranges, draw_ranges, lower, upper

MAX_FRACTION = {2: 0.75, 3: 0.60}
_SPREAD = 3.0  # radii are cut at mean/3 and mean×3
_MAX_STEPS = 20000


@dataclass(frozen=True)
class Spheres:
    """Non-overlapping spheres in a periodic box, with lognormal radii; circles where the shape is 2D.

    A periodic box has no empty rim, and the objects that cross its faces look like particles that the field of view
    clips.

    Args:
        fraction: volume fraction of the spheres, up to 0.75 in 2D and 0.60 in 3D.
        mean_radius_um: [µm] mean of the radii.
        radius_cv: coefficient of variation (sd / mean) of the radii before they are cut at mean/3 and 3×mean.

    All three may be ranges, drawn per sample. Labels: 0 outside, 1 inside.

    Raises:
        ValueError: a value outside its range.
    """

    fraction: Range = (0.3, 0.6)
    mean_radius_um: Range = (8.0, 16.0)
    radius_cv: Range = (0.1, 0.4)

    n_classes = 2

    def __post_init__(self):
        check_ranges(
            self,
            [("fraction", 0.001, MAX_FRACTION[2]), ("mean_radius_um", 1e-4, 1e5, "µm"), ("radius_cv", 0, 1)],
        )

    def check(self, shape: tuple[int, ...], voxel_size_um: float) -> None:
        """Raise ValueError where this recipe cannot fill a box of that shape."""
        check_range(f"fraction of {len(shape)}D spheres", self.fraction, 0.001, MAX_FRACTION[len(shape)])
        if lower(self.mean_radius_um) < voxel_size_um:
            raise ValueError(
                f"mean_radius_um={self.mean_radius_um!r} is below one voxel of {voxel_size_um:g} µm; "
                f"take at least {voxel_size_um:g}"
            )
        filled_um = lower(self.fraction) * prod(n * voxel_size_um for n in shape)
        if filled_um < ball_volume(upper(self.mean_radius_um), len(shape)):
            raise ValueError(
                f"fraction={self.fraction!r} of a box of {tuple(shape)} voxels of {voxel_size_um:g} µm is less than "
                f"one sphere of mean_radius_um={self.mean_radius_um!r}; take smaller spheres or a bigger box"
            )
        limit = min(shape) * voxel_size_um / 4
        if upper(self.mean_radius_um) > limit:
            raise ValueError(
                f"mean_radius_um={self.mean_radius_um!r} does not fit a box of {tuple(shape)} voxels of "
                f"{voxel_size_um:g} µm; take at most a quarter of its shortest edge, {limit:g}"
            )

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """The parameters of one sample."""
        return draw_ranges(self, ("fraction", "mean_radius_um", "radius_cv"), rng)

    def build(
        self, shape: tuple[int, ...], voxel_size_um: float, parameters: dict[str, float], rng: np.random.Generator
    ) -> tuple[np.ndarray, dict]:
        """Pack and paint one sample.

        Args:
            shape: voxels along each axis, 2 or 3 of them.
            voxel_size_um: [µm] edge of a voxel.
            parameters: what ``draw`` gave.
            rng: source of radii and positions.

        Returns:
            uint8 labels of that shape; a dictionary with the number of objects, their centres and radii in µm.
        """
        box = np.array(shape) * float(voxel_size_um)
        radii = draw_radii(box, rng=rng, **parameters)
        centres = pack(box, radii, rng)
        facts = {"n_objects": len(radii), "centres_um": centres.round(4).tolist(), "radii_um": radii.round(4).tolist()}
        return paint(shape, voxel_size_um, centres, radii), facts


def ball_volume(radii: np.ndarray, ndim: int) -> np.ndarray:
    """Volume of balls in ``ndim`` dimensions (area of circles in 2D)."""
    return pi ** (ndim / 2) / gamma(ndim / 2 + 1) * np.asarray(radii) ** ndim


def draw_radii(
    box: np.ndarray, fraction: float, mean_radius_um: float, radius_cv: float, rng: np.random.Generator
) -> np.ndarray:
    """Lognormal radii whose balls fill exactly ``fraction`` of the box, largest first.

    Radii are drawn until they fill it, then all are scaled by the same factor (near 1) to meet it.
    """
    ndim, target = len(box), fraction * prod(box)
    sigma = np.sqrt(np.log1p(radius_cv**2))
    largest = min(_SPREAD * mean_radius_um, min(box) / 2.2)
    radii: list[float] = []
    filled = 0.0
    while filled < target:
        radius = mean_radius_um * rng.lognormal(-(sigma**2) / 2, sigma)
        radius = min(max(radius, mean_radius_um / _SPREAD), largest)
        radii.append(radius)
        filled += float(ball_volume(radius, ndim))
    if len(radii) > 1 and filled - target > target - (filled - ball_volume(radii[-1], ndim)):
        filled -= float(ball_volume(radii.pop(), ndim))  # without the last one it is nearer
    return np.sort(radii)[::-1] * (target / filled) ** (1 / ndim)


def pack(box: np.ndarray, radii: np.ndarray, rng: np.random.Generator, gap: float = 1e-3) -> np.ndarray:
    """Centres of balls in a periodic box such that no two overlap (force-biased packing).

    Balls start at random and every overlapping pair is pushed apart along its axis by its overlap, the smaller ball
    further, until none is left.

    Args:
        box: edges of the box, in the unit of the radii.
        radii: (n,) radii.
        rng: source of the start.
        gap: share of each radius that is kept free, so that rounding cannot make balls touch.

    Returns:
        (n, ndim) centres inside the box.

    Raises:
        ValueError: no packing was found; names the fraction asked and the worst overlap that is left.
    """
    ndim = len(box)
    inflated = radii * (1 + gap)
    centres = rng.uniform(0, box, size=(len(radii), ndim))
    inverse_mass = 1 / ball_volume(inflated, ndim)
    reach = 2 * inflated.max()
    for _ in range(_MAX_STEPS):
        pairs = cKDTree(centres, boxsize=box).query_pairs(reach, output_type="ndarray")
        i, j = pairs.T
        between = centres[i] - centres[j]
        between -= box * np.round(between / box)
        distance = np.sqrt((between**2).sum(1))
        overlap = inflated[i] + inflated[j] - distance
        touching = overlap > 0
        if not touching.any() or (overlap[touching] < gap / 2 * np.minimum(radii[i], radii[j])[touching]).all():
            return centres
        i, j, between, distance, overlap = (v[touching] for v in (i, j, between, distance, overlap))
        direction = between / np.maximum(distance, 1e-12)[:, None]
        share = inverse_mass[i] / (inverse_mass[i] + inverse_mass[j])
        step = overlap[:, None] * direction
        np.add.at(centres, i, share[:, None] * step)
        np.add.at(centres, j, -(1 - share)[:, None] * step)
        centres %= box
    filled = ball_volume(radii, ndim).sum() / prod(box)
    raise ValueError(
        f"no packing of {len(radii)} spheres at fraction {filled:.3f} after {_MAX_STEPS} steps: the worst overlap is "
        f"{overlap.max():.3g} of radius {radii.mean():.3g}; ask for a lower fraction or smaller spheres"
    )


def paint(shape: tuple[int, ...], voxel_size_um: float, centres_um: np.ndarray, radii_um: np.ndarray) -> np.ndarray:
    """Label the voxels whose centres lie in a ball of a periodic box.

    Args:
        shape: voxels along each axis.
        voxel_size_um: [µm] edge of a voxel; voxel i covers i to i + 1 times it.
        centres_um, radii_um: [µm] (n, ndim) and (n,).

    Returns:
        uint8 array of that shape, 1 inside.
    """
    labels = np.zeros(shape, np.uint8)
    for where, inside in _balls(shape, centres_um / voxel_size_um, radii_um / voxel_size_um):
        labels[where] |= inside
    return labels


def sphere_ids(shape: tuple[int, ...], voxel_size_um: float, facts: dict) -> np.ndarray:
    """Instance ids of a sample at any voxel size: 0 outside, 1 + index of the sphere inside. int32 of that shape.

    Args:
        shape, voxel_size_um: voxels of the sample's box, and their edge in µm.
        facts: what ``Spheres.build`` gave.
    """
    ids = np.zeros(shape, np.int32)
    centres, radii = (np.array(facts[name]) / voxel_size_um for name in ("centres_um", "radii_um"))
    for k, (where, inside) in enumerate(_balls(shape, centres, radii)):
        ids[where] = np.where(inside, k + 1, ids[where])
    return ids


def _balls(
    shape: tuple[int, ...], centres: np.ndarray, radii: np.ndarray
) -> Iterator[tuple[tuple[np.ndarray, ...], np.ndarray]]:
    """For each ball of a periodic box, lengths in voxels: the index of the voxels around it, and which are inside."""
    for centre, radius in zip(centres, radii, strict=True):
        voxels, squared = [], []
        for c, n in zip(centre, shape, strict=True):
            reached = np.arange(int(np.floor(c - radius)), int(np.ceil(c + radius)) + 1)[:n]
            distance = reached + 0.5 - c
            squared.append((distance - n * np.round(distance / n)) ** 2)
            voxels.append(reached % n)
        yield np.ix_(*voxels), sum(np.ix_(*squared)) <= radius**2
