"""Fibre electrodes (Li–O₂, carbon nanotubes): curved entangled fibres, deposits on them and metal impurities."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import ceil, log, pi, prod

import numpy as np

from data_gen.microstructure.phase_fields import gaussian_field, grid, percolating_share, sample_field
from data_gen.microstructure.spheres import ball_volume
from data_gen.parameters import Range, check_ranges, draw_ranges, lower, upper

_STEP = 2.0  # radii between two points of a centreline
_REACH = 1.6  # radii up to which the distance to a centreline is known: the rank may move a surface by 0.6 radii
_DEPTH = 30.0  # radii: thickness of the slab of fibres that a 2D sample cuts
_SIZE_CV = 0.3  # of deposits and impurities


@dataclass(frozen=True)
class Fibres:
    """Entangled fibres with deposits on them and metal impurities among them.

    Fibres are worm-like chains in a periodic box and may overlap; enough are drawn for the fraction (Boolean model),
    and it is then met by moving all surfaces by one small distance. Deposits are discs of random orientation on the
    fibres and are roughened by a random field; such is Li₂O₂ from slow discharge (Mitchell et al. 2013, J. Phys. Chem.
    Lett. 4, 1060). Impurities are spheres on fibres, like catalyst left from synthesis. A 2D sample is a plane
    through a 3D structure. Impurities claim their voxels first, then fibres, then deposits, each its fraction by rank.
    Sizes are those that nano-CT of such electrodes at voxels of tens of nm resolves; a single nanotube is far below.

    Args:
        fibre_fraction: volume fraction of the fibres, without what impurities cover.
        radius_um: [µm] mean radius of the fibres.
        radius_cv: coefficient of variation of the radii, one radius a fibre.
        persistence_um: [µm] length along a fibre over which the mean cosine of its turning falls to 1/e.
        flatness: 0 for fibres in all directions, 1 for fibres normal to ``axis``, as in a pressed mat.
        axis: normal of the mat; 2 (the one that a 2D sample cuts along) is none of a 2D sample's own axes.
        deposit_fraction: volume fraction of the deposits.
        deposit_size_um: [µm] mean diameter of a disc before they merge.
        deposit_aspect: thickness over diameter of a disc.
        deposit_roughness: sd of the roughening, in disc radii.
        impurity_fraction: volume fraction of the impurities.
        impurity_radius_um: [µm] mean radius of an impurity.

    All but ``axis`` may be ranges. Labels: 0 pore, 1 fibre, 2 deposit, 3 impurity; a sample has two classes where the
    deposits' and the impurities' fraction is 0, three where the impurities' is, four otherwise.

    Raises:
        ValueError: a value outside its range.
    """

    fibre_fraction: Range = (0.1, 0.2)
    radius_um: Range = (0.1, 0.2)
    radius_cv: Range = 0.25
    persistence_um: Range = (1.5, 4.0)
    flatness: Range = 0.3
    axis: int = 2
    deposit_fraction: Range = (0.0, 0.15)
    deposit_size_um: Range = (0.5, 1.0)
    deposit_aspect: Range = (0.4, 0.7)
    deposit_roughness: Range = (0.05, 0.15)
    impurity_fraction: Range = (0.001, 0.006)
    impurity_radius_um: Range = (0.15, 0.3)

    def __post_init__(self):
        check_ranges(self, ((f.name, *_LIMITS[f.name]) for f in fields(self) if f.name != "axis"))
        if type(self.axis) is not int or self.axis not in (0, 1, 2):
            raise ValueError(f"axis={self.axis!r} must be 0, 1 or 2")
        total = sum(upper(getattr(self, n)) for n in ("fibre_fraction", "deposit_fraction", "impurity_fraction"))
        if total > 0.9:
            raise ValueError(
                f"fibre_fraction, deposit_fraction and impurity_fraction sum to up to {total:g}; at most 0.9 is made"
            )

    @property
    def n_classes(self) -> int:
        return 4 if upper(self.impurity_fraction) > 0 else 3 if upper(self.deposit_fraction) > 0 else 2

    def check(self, shape: tuple[int, ...], voxel_size_um: float) -> None:
        """Raise ValueError where this recipe cannot fill a box of that shape."""
        edge = min(shape) * voxel_size_um
        if lower(self.radius_um) < voxel_size_um:
            raise ValueError(
                f"radius_um={self.radius_um!r} is below one voxel of {voxel_size_um:g} µm; take at least "
                f"{voxel_size_um:g}"
            )
        for name, used, sizes in (
            ("radius_um", 1.0, 8),
            ("deposit_size_um", upper(self.deposit_fraction), 2),
            ("impurity_radius_um", upper(self.impurity_fraction), 4),
        ):
            if used > 0 and upper(getattr(self, name)) > edge / sizes:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} does not fit a box of {tuple(shape)} voxels of "
                    f"{voxel_size_um:g} µm; take at most 1/{sizes} of its shortest edge, {edge / sizes:g}"
                )
        for name, radius in (
            ("deposit", upper(self.deposit_size_um) / 2),
            ("impurity", upper(self.impurity_radius_um)),
        ):
            share = getattr(self, f"{name}_fraction")
            one = ball_volume(radius, len(shape)) / prod(n * voxel_size_um for n in shape)
            if upper(share) > 0 and upper(share) < one:
                raise ValueError(
                    f"{name}_fraction={share!r} is less than one of radius {radius:g} µm in a box of {tuple(shape)} "
                    f"voxels of {voxel_size_um:g} µm ({one:.2g}); take 0, more, smaller ones or a bigger box"
                )

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """The parameters of one sample."""
        return draw_ranges(self, (f.name for f in fields(self) if f.name != "axis"), rng)

    def build(
        self, shape: tuple[int, ...], voxel_size_um: float, parameters: dict[str, float], rng: np.random.Generator
    ) -> tuple[np.ndarray, dict]:
        """One sample.

        Args:
            shape: voxels along each axis, 2 or 3 of them.
            voxel_size_um: [µm] edge of a voxel.
            parameters: what ``draw`` gave.
            rng: source of fibres, deposits and impurities.

        Returns:
            uint8 labels of that shape; facts: ``fraction`` of each class, number and total length of the fibres, by how
            much their surfaces were moved [µm], the factor on the impurities' radii, numbers of deposits and
            impurities, the seeds of fibres, impurities, deposits and texture, and the share of the fibres that connects
            the faces of the box along each axis (3D).
        """
        p = parameters
        seeds = rng.integers(2**63, size=4)
        canvas = _Canvas(shape, voxel_size_um, _DEPTH * p["radius_um"])
        labels = np.zeros(shape, np.uint8)

        lines, radii, gap = _fibres(canvas, p, self.axis, np.random.default_rng(seeds[0]))
        points = np.concatenate([line for line in lines if len(line)])
        surface = np.concatenate([np.full(len(line), r) for line, r in zip(lines, radii, strict=True)])

        scale = n_impurities = 0
        if p["impurity_fraction"] > 0:
            score, n_impurities = _impurities(canvas, points, p, np.random.default_rng(seeds[1]))
            scale = _claim(labels, score, 3, p["impurity_fraction"])
        moved = _claim(labels, gap, 1, p["fibre_fraction"])
        n_deposits = 0
        if p["deposit_fraction"] > 0:
            score, n_deposits = _deposits(canvas, points, surface, p, np.random.default_rng(seeds[2]))
            score += np.float32(p["deposit_roughness"]) * _texture(canvas, p, np.random.default_rng(seeds[3]))
            _claim(labels, score, 2, p["deposit_fraction"])
        counts = np.bincount(labels.ravel(), minlength=self.n_classes) / labels.size
        facts = {
            "fraction": counts.round(6).tolist(),
            "n_fibres": len(lines),
            "fibre_length_um": round(sum(len(line) for line in lines) * _STEP * p["radius_um"], 3),
            "surface_moved_um": round(moved, 5),
            "n_deposits": n_deposits,
            "n_impurities": n_impurities,
            "seeds": seeds.tolist(),
            "impurity_radius_factor": round(float(scale), 4),
        }
        if len(shape) == 3:
            facts["fibre_percolating_share"] = percolating_share(labels, 1)
        return labels, facts

    def centrelines(
        self, shape: tuple[int, ...], voxel_size_um: float, parameters: dict, facts: dict
    ) -> list[tuple[np.ndarray, float]]:
        """The fibres of a sample, from its seed: (n, 3) points [µm] of each centreline, and its radius [µm].

        Args:
            shape, voxel_size_um: voxels of the sample's box, and their edge in µm; the box is periodic, and that of a
                2D sample is 30 mean radii deep, with the section in the middle.
            parameters, facts: what ``draw`` and ``build`` gave.
        """
        canvas = _Canvas(shape, voxel_size_um, _DEPTH * parameters["radius_um"])
        rng = np.random.default_rng(facts["seeds"][0])
        _, n_steps = _how_many(canvas, parameters)
        step = _STEP * parameters["radius_um"]
        return [
            _worm_like_chain(n_steps, step, canvas.box, parameters, self.axis, rng) for _ in range(facts["n_fibres"])
        ]

    def ids(self, shape: tuple[int, ...], voxel_size_um: float, parameters: dict, facts: dict) -> np.ndarray:
        """Instance ids of a sample at any voxel size: 0 outside the fibres, 1 + index of the nearest fibre inside.

        Voxels of impurities that lie on a fibre carry its id, too. Arguments as for ``centrelines``.

        Returns:
            int32 array of that shape.
        """
        canvas = _Canvas(shape, voxel_size_um, _DEPTH * parameters["radius_um"])
        gap, ids = canvas.blank(), np.zeros(shape, np.int32)
        for k, (line, radius) in enumerate(self.centrelines(shape, voxel_size_um, parameters, facts)):
            before = gap.copy()
            _paint_fibre(canvas, gap, line, radius)
            ids[gap < before] = k + 1
        ids[gap > facts["surface_moved_um"] + 1e-5] = 0  # it was rounded to that
        return ids


_LIMITS = {
    "fibre_fraction": (0.005, 0.6, ""),
    "radius_um": (1e-4, 1e5, "µm"),
    "radius_cv": (0, 1, ""),
    "persistence_um": (1e-4, 1e6, "µm"),
    "flatness": (0, 1, ""),
    "deposit_fraction": (0, 0.6, ""),
    "deposit_size_um": (1e-4, 1e5, "µm"),
    "deposit_aspect": (0.1, 1, ""),
    "deposit_roughness": (0, 0.5, ""),
    "impurity_fraction": (0, 0.3, ""),
    "impurity_radius_um": (1e-4, 1e5, "µm"),
}


class _Canvas:
    """Paints the smallest of many distances near points of a periodic 3D box; a 2D one is the box's middle plane."""

    def __init__(self, shape: tuple[int, ...], voxel_size_um: float, depth_um: float):
        self.shape, self.voxel, self.ndim = shape, voxel_size_um, len(shape)
        self.box = np.array([n * voxel_size_um for n in shape] + [depth_um] * (3 - len(shape)))

    def blank(self) -> np.ndarray:
        return np.full(self.shape, np.inf, np.float32)

    def near(self, points: np.ndarray, reach: np.ndarray | float) -> np.ndarray:
        """Which points can be felt on the canvas: all in 3D, those near the plane in 2D."""
        if self.ndim == 3:
            return np.ones(len(points), bool)
        away = points[:, 2] % self.box[2] - self.box[2] / 2
        return np.abs(away) <= reach

    def offsets(self, point: np.ndarray, reach: float) -> tuple[tuple, list[np.ndarray]]:
        """Index of the voxels within ``reach`` of a point, and their distances from it along each axis [µm]."""
        ranges, away = [], []
        for axis, (c, n) in enumerate(zip(point, self.shape, strict=False)):
            first = ceil((c - reach) / self.voxel - 0.5)
            at = np.arange(first, min(int((c + reach) // self.voxel) + 1, first + n))
            ranges.append(at)
            along = [-1 if a == axis else 1 for a in range(self.ndim)]
            away.append(((at + 0.5) * self.voxel - c).astype(np.float32).reshape(along))
        if self.ndim == 2:
            away.append(np.float32(self.box[2] / 2 - point[2] % self.box[2]))
        if all(at.size and at[0] >= 0 and at[-1] < n for at, n in zip(ranges, self.shape, strict=True)):
            return tuple(slice(at[0], at[-1] + 1) for at in ranges), away  # views are much faster than index arrays
        return np.ix_(*(at % n for at, n in zip(ranges, self.shape, strict=True))), away


def _fibres(canvas: _Canvas, p: dict, axis: int, rng: np.random.Generator) -> tuple[list, list, np.ndarray]:
    """Fibres until their voxels suffice: centrelines [µm], radii [µm] and the distance to the nearest surface [µm]."""
    step = _STEP * p["radius_um"]
    n_fibres, n_steps = _how_many(canvas, p)
    lines, radii, gap = [], [], canvas.blank()
    wanted = p["fibre_fraction"] * gap.size
    while len(lines) < n_fibres or np.count_nonzero(gap < 0.4 * p["radius_um"]) < wanted:
        line, radius = _worm_like_chain(n_steps, step, canvas.box, p, axis, rng)
        _paint_fibre(canvas, gap, line, radius)
        lines.append(line)
        radii.append(radius)
        if len(lines) > 20 * n_fibres + 100:
            raise ValueError(f"fibre_fraction={p['fibre_fraction']:.3g} was not reached with {len(lines)} fibres")
    return lines, radii, gap


def _how_many(canvas: _Canvas, p: dict) -> tuple[int, int]:
    """Number of fibres that the fraction is expected to take, and of steps along each."""
    # Boolean model: fraction = 1 − exp(−length·π·E[r²] / volume)
    area = pi * p["radius_um"] ** 2 * (1 + p["radius_cv"] ** 2)
    length = -log(1 - p["fibre_fraction"]) * prod(canvas.box) / area
    n_fibres = max(1, round(length / (2 * canvas.box.max())))
    return n_fibres, ceil(length / n_fibres / (_STEP * p["radius_um"]))


def _worm_like_chain(
    n: int, step: float, box: np.ndarray, p: dict, axis: int, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """(n, 3) points of a centreline [µm] and its radius [µm].

    The direction turns at random by angles of variance 2·step/persistence, so that the mean cosine falls as
    exp(−distance/persistence) (Kratky and Porod 1949).
    """
    sigma = np.sqrt(np.log1p(p["radius_cv"] ** 2))
    radius = p["radius_um"] * float(np.clip(rng.lognormal(-(sigma**2) / 2, sigma), 1 / 3, 3))
    squeeze = np.ones(3)
    squeeze[axis] = 1 - p["flatness"]
    start = rng.uniform(0, box)
    direction = rng.standard_normal(3) * squeeze
    direction /= np.linalg.norm(direction)
    kicks = rng.standard_normal((n, 3)) * squeeze * min(np.sqrt(step / p["persistence_um"]), 1.0)
    directions = np.empty((n, 3))
    for k in range(n):
        directions[k] = direction
        kick = kicks[k] - (kicks[k] @ direction) * direction
        angle = np.sqrt(kick @ kick)
        if angle > 0:
            direction = np.cos(angle) * direction + np.sin(angle) / angle * kick
            direction /= np.sqrt(direction @ direction)  # rounding must not add up
    return start + step * np.cumsum(directions, axis=0), radius


def _paint_fibre(canvas: _Canvas, gap: np.ndarray, line: np.ndarray, radius: float) -> None:
    """Lower ``gap`` to the distance from the surface of the tube around a centreline, where that is below 0.6 radii."""
    starts, along = line[:-1], np.diff(line, axis=0)
    lengths = np.sqrt((along**2).sum(1))
    reach = _REACH * radius
    for k in np.flatnonzero(canvas.near(starts + along / 2, reach + lengths.max(initial=0) / 2)):
        middle, half = (starts[k] + along[k] / 2) % canvas.box, lengths[k] / 2
        index, away = canvas.offsets(middle, reach + half)
        unit = along[k] / lengths[k]
        axial = sum(float(u) * a for u, a in zip(unit, away, strict=True))
        nearest = np.clip(axial, -half, half)
        squared = sum(a**2 for a in away)
        squared += nearest * (nearest - 2 * axial)  # |a − nearest·unit|²
        near = np.sqrt(np.maximum(squared, 0, out=squared), out=squared)
        near -= np.float32(radius)
        np.putmask(near, near > np.float32(reach - radius), np.inf)
        gap[index] = np.minimum(gap[index], near)


def _impurities(canvas: _Canvas, points: np.ndarray, p: dict, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Distance to the nearest impurity's centre in its radii; the number of impurities."""
    radius, ndim = p["impurity_radius_um"], canvas.ndim
    sigma = np.sqrt(np.log1p(_SIZE_CV**2))
    moment = np.exp(sigma**2 / 2 * ndim * (ndim - 1))
    volume = prod(canvas.box[:ndim])
    n = max(1, round(-log(1 - p["impurity_fraction"]) * volume / (ball_volume(radius, ndim) * moment)))
    on = points[canvas.near(points, radius)] if ndim == 2 else points
    on = on if len(on) else points
    centres = on[rng.integers(len(on), size=n)] % canvas.box
    if ndim == 2:
        centres[:, 2] = canvas.box[2] / 2  # sections with the radii asked, not cuts of unknown size
    sizes = radius * rng.lognormal(-(sigma**2) / 2, sigma, n)
    score = canvas.blank()
    for centre, size in zip(centres, sizes, strict=True):
        index, away = canvas.offsets(centre, 2.5 * size)
        near = np.sqrt(sum(a**2 for a in away)) / np.float32(size)
        score[index] = np.minimum(score[index], near)
    return score, n


def _deposits(
    canvas: _Canvas, points: np.ndarray, surface: np.ndarray, p: dict, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Distance to the nearest disc's centre in its radii, measured in the shape of the disc; the number of discs."""
    radius, aspect = p["deposit_size_um"] / 2, p["deposit_aspect"]
    # more than the Boolean model asks for: fibres cover a part of each disc
    n = max(1, round(-1.5 * log(1 - p["deposit_fraction"]) * prod(canvas.box) / (ball_volume(radius, 3) * aspect)))
    at = rng.integers(len(points), size=n)
    normals = rng.standard_normal((n, 3))
    normals /= np.linalg.norm(normals, axis=1)[:, None]
    centres = (points[at] + normals * surface[at][:, None]) % canvas.box
    sigma = np.sqrt(np.log1p(_SIZE_CV**2))
    sizes = radius * rng.lognormal(-(sigma**2) / 2, sigma, n)
    score = canvas.blank()
    for k in np.flatnonzero(canvas.near(centres, 1.6 * sizes)):
        index, away = canvas.offsets(centres[k], 1.6 * sizes[k])
        height = sum(float(u) * a for u, a in zip(normals[k], away, strict=True))
        squared = sum(a**2 for a in away)
        squared += np.float32(1 / aspect**2 - 1) * height**2
        near = np.sqrt(squared, out=squared) / np.float32(sizes[k])
        score[index] = np.minimum(score[index], near)
    return score, n


def _texture(canvas: _Canvas, p: dict, rng: np.random.Generator) -> np.ndarray:
    """Random field with a correlation length of a quarter of a disc."""
    box, length = tuple(canvas.box[: canvas.ndim]), p["deposit_size_um"] / 4
    nodes, spacing = grid(box, length, per_length=2)  # roughness: no smooth level set is asked of it
    return sample_field(gaussian_field(nodes, spacing, length, 0.3, rng), canvas.shape)


def _claim(labels: np.ndarray, score: np.ndarray, label: int, fraction: float) -> float:
    """Give the label to the free voxels of lowest score, as many as the fraction asks; the score of the last of them.

    Raises:
        ValueError: too few voxels have a score; names the fraction that is reachable.
    """
    score[labels > 0] = np.inf
    wanted = round(fraction * labels.size)
    if wanted == 0:
        return 0.0
    reachable = np.count_nonzero(np.isfinite(score))
    if reachable < wanted:
        raise ValueError(
            f"label {label}: fraction {fraction:.4g} was asked, at most {reachable / labels.size:.4g} fits here"
        )
    level = np.partition(score.ravel(), wanted - 1)[wanted - 1]
    labels[score <= level] = label
    return float(level)
