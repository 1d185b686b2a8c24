"""Polymer foams: Laguerre cells of a bubble packing, walls on their faces, struts (Plateau borders) on their edges."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.spatial import ConvexHull

from data_gen.microstructure.spheres import draw_radii, pack
from data_gen.parameters import Range, check_ranges, draw, lower, upper

MIN_VOXELS = 2.0  # what walls and struts must be expected to have
LEAK_VOXELS = 3**0.5  # a thinner wall can be crossed by one step between voxels that share a corner
_PACKED = 0.48  # fraction of the bubbles in the packing that the cells grow from
_GAP = 0.04  # they are kept apart by this share of their radii; with it 3 times faster than 0.55 without, cells alike
_DEPTH = 3.0  # edge of the smallest packing, in cell diameters
_EDGE = 0.36 * 0.816  # mean edge of a cell over its diameter (Kelvin's cell); cosine of edge and third face's normal
_BLUNT = np.float32(0.1)
_MODEL_EDGE, _MODEL_VOXELS = 4.0, 12  # edge of the foam that ``check`` measures, voxels along a cell of it
_CHUNK = 60_000  # voxels that are worked on at once: the arrays of a chunk stay in the cache


@dataclass(frozen=True)
class Foam:
    """Closed and open polymer foams; a 2D shape is a section through a 3D foam.

    Bubbles of lognormal radii are packed without overlap, and each is the seed of a Laguerre (power) cell: its cell is
    larger where the bubble is larger (Redenbach, Comput. Mater. Sci. 44, 1397, 2009). A wall is what lies within half
    its thickness of a face. A strut follows an edge; its section is a Plateau border, three arcs that are tangent to
    the faces (Weaire and Hutzler, The Physics of Foams, 1999), and it thickens towards the nodes as measured on
    polyurethane (Jang, Kraynik and Kyriakides, Int. J. Solids Struct. 45, 1845, 2008).

    Where ``porosity`` is given, walls and struts are scaled by one common factor to meet it within 1e-3, and the facts
    hold the thicknesses that came out; where it is None they are as asked, and the porosity comes out.

    Args:
        cell_diameter_um: [µm] mean diameter of the cells.
        cell_cv: coefficient of variation (sd / mean) of the bubble radii, up to 0.6.
        wall_um: [µm] thickness of the walls.
        strut_um: [µm] thickness of the struts half way between two nodes: diameter of the largest circle in their
            section. At least 1.2 wall_um, the circle that fits where three walls meet.
        porosity: volume fraction of the pores, 0.5 to 0.97, or None.
        broken_windows: share of the faces that have lost their wall: 0 is a closed foam, 1 a reticulated one.
        strut_concavity: 0 for round struts, 1 for Plateau borders with cusps along the walls.
        elongation: height over width of the cells along ``rise_axis``.
        gradient: walls and struts grow along ``rise_axis`` from 1 − gradient to 1 + gradient times their mean; to 0.5.
        rise_axis: 0, 1 or 2; axis 2 of a 2D shape is the one that the section is normal to.
        periodic: whether cells go on at the opposite face of the box; else the box is cut out of a larger foam.

    All but the last two may be ranges, drawn per sample. Labels: 0 pore, 1 polymer.

    Raises:
        ValueError: a value outside its range.
    """

    cell_diameter_um: Range = (210.0, 240.0)
    cell_cv: Range = (0.1, 0.3)
    wall_um: Range = 10.0
    strut_um: Range = (13.0, 17.0)
    porosity: Range | None = (0.82, 0.90)
    broken_windows: Range = 0.0
    strut_concavity: Range = (0.5, 1.0)
    elongation: Range = (1.0, 1.2)
    gradient: Range = 0.0
    rise_axis: int = 1
    periodic: bool = False

    n_classes = 2

    def __post_init__(self):
        bounds = (
            ("cell_diameter_um", 1e-3, 1e6, "µm"),
            ("cell_cv", 0, 0.6),
            ("wall_um", 1e-5, 1e5, "µm"),
            ("strut_um", 1e-5, 1e5, "µm"),
            ("porosity", 0.5, 0.97),
            ("broken_windows", 0, 1),
            ("strut_concavity", 0, 1),
            ("elongation", 0.5, 2),
            ("gradient", 0, 0.5),
        )
        check_ranges(self, (bound for bound in bounds if getattr(self, bound[0]) is not None or bound[0] != "porosity"))
        if type(self.rise_axis) is not int or self.rise_axis not in (0, 1, 2):
            raise ValueError(f"rise_axis={self.rise_axis!r} must be 0, 1 or 2")
        if type(self.periodic) is not bool:
            raise ValueError(f"periodic={self.periodic!r} must be true or false")
        if lower(self.strut_um) < 1.2 * upper(self.wall_um):
            raise ValueError(
                f"strut_um={self.strut_um!r} must be at least 1.2 wall_um={self.wall_um!r}, the circle that fits where "
                f"three walls meet; nearest valid: {1.2 * upper(self.wall_um):g}"
            )
        if self.porosity is None and upper(self.wall_um) > 0.2 * lower(self.cell_diameter_um):
            raise ValueError(
                f"wall_um={self.wall_um!r} must be at most a fifth of cell_diameter_um={self.cell_diameter_um!r}; "
                f"nearest valid: {0.2 * lower(self.cell_diameter_um):g}"
            )

    def check(self, shape: tuple[int, ...], voxel_size_um: float) -> None:
        """Raise ValueError where the box is too small for cells, or the voxels too large for walls and struts."""
        edges = np.array(shape) * voxel_size_um / (3 if self.periodic else 1)
        stretches = [
            _stretch(e, self.rise_axis)[: len(shape)] for e in (lower(self.elongation), upper(self.elongation))
        ]
        limit = min((edges / stretch).min() for stretch in stretches)
        if upper(self.cell_diameter_um) > limit:
            raise ValueError(
                f"cell_diameter_um={self.cell_diameter_um!r} does not fit a box of {tuple(shape)} voxels of "
                f"{voxel_size_um:g} µm; take at most {limit:g} µm{' or periodic false' if self.periodic else ''}"
            )
        scale = 1.0
        diameter, broken = lower(self.cell_diameter_um), lower(self.broken_windows)
        wall, strut = lower(self.wall_um), lower(self.strut_um)
        if self.porosity is not None:  # the thinnest: most porous, smallest cells, most polymer in the struts
            thin = {"porosity": upper(self.porosity), "broken_windows": broken, "elongation": upper(self.elongation)}
            scales = [
                _model_scale(
                    w / diameter, s / diameter, cell_cv=cv, strut_concavity=upper(self.strut_concavity), **thin
                )
                for w, s in {(wall, upper(self.strut_um)), (upper(self.wall_um), strut)}
                for cv in {lower(self.cell_cv), upper(self.cell_cv)}
            ]
            scale = min(scales)
            # In a box of few cells the factor scatters from sample to sample. Two sd of it, as measured over 16 seeds,
            # must not take the walls below what ``build`` refuses.
            n_cells = np.prod(np.array(shape) * voxel_size_um / diameter)
            scatter = (2 * upper(self.cell_cv) + (0.4 if len(shape) == 2 else 0)) / n_cells**0.5
            scale *= min(1, MIN_VOXELS / LEAK_VOXELS * (1 - min(scatter, 0.4)))
        scale *= 1 - upper(self.gradient)
        _refuse_thin(broken, wall * scale, strut * scale, voxel_size_um, MIN_VOXELS)

    def draw(self, rng: np.random.Generator) -> dict[str, float | None]:
        """The parameters of one sample."""
        names = (
            *("cell_diameter_um", "cell_cv", "wall_um", "strut_um", "porosity", "broken_windows"),
            *("strut_concavity", "elongation", "gradient"),
        )
        return {name: None if getattr(self, name) is None else draw(getattr(self, name), rng) for name in names}

    def build(
        self, shape: tuple[int, ...], voxel_size_um: float, parameters: dict, rng: np.random.Generator
    ) -> tuple[np.ndarray, dict]:
        """Pack, tessellate and paint one sample.

        Args:
            shape: voxels along each axis, 2 or 3 of them.
            voxel_size_um: [µm] edge of a voxel.
            parameters: what ``draw`` gave.
            rng: source of radii, positions and broken windows.

        Returns:
            uint8 labels of that shape. Facts: the porosity, the wall and strut thickness that came out [µm]; of the
            packing, the share of broken windows, the number of windows and the cells' diameter [µm] (of the mean cell
            volume); number of cells in the box, centres [µm] (n, 3) and radii [µm] of their bubbles, which may lie
            outside of it. A 2D section is at z = 0.

        Raises:
            ValueError: walls (struts, where all windows are broken) thinner than √3 voxels, which would leak (``check``
                asks for 2).
        """
        stretch = _stretch(parameters["elongation"], self.rise_axis)
        view = np.ones(3)
        view[: len(shape)] = np.array(shape) * float(voxel_size_um)
        diameter = parameters["cell_diameter_um"]
        # Cells are packed in a space without elongation; there the box is shorter by the stretch.
        box, origin = _packing_box(view / stretch, len(shape), diameter, self.periodic)
        foam = make_cells(box, diameter, parameters["cell_cv"], parameters["broken_windows"], stretch, rng)
        order, is_seen = thickness_order(
            foam, shape, voxel_size_um, origin * stretch, parameters["wall_um"], parameters["strut_um"],
            parameters["strut_concavity"], diameter,
        )  # fmt: skip
        if parameters["gradient"] and self.rise_axis < len(shape):
            n = shape[self.rise_axis]
            along = 1 + parameters["gradient"] * (2 * (np.arange(n) + 0.5) / n - 1)
            order /= np.expand_dims(along.astype(np.float32), [a for a in range(len(shape)) if a != self.rise_axis])
        if parameters["porosity"] is None:
            scale = 1.0
        else:
            solid = min(max(round((1 - parameters["porosity"]) * order.size), 1), order.size)
            scale = float(np.partition(order, solid - 1, axis=None)[solid - 1])
        labels = (order <= scale).astype(np.uint8)
        wall, strut = parameters["wall_um"] * scale, parameters["strut_um"] * scale
        thin = 1 - parameters["gradient"]
        _refuse_thin(parameters["broken_windows"], wall * thin, strut * thin, voxel_size_um, LEAK_VOXELS)
        centres = (foam.centres[is_seen] - origin) * stretch
        middle = np.where(np.arange(3) < len(shape), view / 2, 0)
        centres -= foam.box * np.round((centres - middle) / foam.box)  # the image that is nearest to the box
        facts = {
            "porosity": float(1 - labels.mean()),
            "wall_um": wall,
            "strut_um": strut,
            "broken_windows": foam.broken_share,
            "n_windows": foam.n_windows,
            "n_cells": len(centres),
            "cell_diameter_um": float((6 / np.pi * np.prod(box) / len(foam.centres)) ** (1 / 3)),
            "centres_um": centres.round(4).tolist(),
            "radii_um": foam.radii[is_seen].round(4).tolist(),
        }
        return labels, facts

    def ids(self, shape: tuple[int, ...], voxel_size_um: float, parameters: dict, facts: dict) -> np.ndarray:
        """The cell that each voxel lies in, walls and struts included: index of its bubble in ``facts``, from 0.

        Args:
            shape, voxel_size_um: voxels of the sample's box, at any resolution, and their edge in µm.
            parameters, facts: what ``draw`` and ``build`` gave.

        Returns:
            int32 array of that shape.
        """
        stretch = _stretch(parameters["elongation"], self.rise_axis)
        period = np.append(np.array(shape) * voxel_size_um, np.inf)[:3] if self.periodic else np.full(3, np.inf)
        at = [(np.arange(n) + 0.5) * voxel_size_um for n in shape] + [np.zeros(1)] * (3 - len(shape))
        best, ids = np.full(tuple(len(a) for a in at), np.inf, np.float32), np.zeros([len(a) for a in at], np.int32)
        for k, (centre, radius) in enumerate(zip(facts["centres_um"], facts["radii_um"], strict=True)):
            power = np.float32(-(radius**2))
            for axis, (a, c) in enumerate(zip(at, centre, strict=True)):
                away = a - c
                if np.isfinite(period[axis]):
                    away -= period[axis] * np.round(away / period[axis])
                power = power + np.expand_dims((away / stretch[axis]) ** 2, [b for b in range(3) if b != axis])
            nearer = power < best
            best[nearer], ids[nearer] = power[nearer], k
        return ids.reshape(shape)


class Cells(NamedTuple):
    """Laguerre cells of a periodic packing.

    Attributes:
        centres, radii: (n, 3) and (n,) of the bubbles, in the packing's space.
        box: (3,) edges of the packing, stretched.
        planes: for each cell, (faces, 4): distance to a face of a point at x from the cell's centre is x·a + d.
        intact: for each cell, (faces,) bool, whether the face has its wall.
        reach: (n, 2, 3) lowest and highest corner of each cell, from its centre, stretched.
        centres_stretched: (n, 3).
        broken_share, n_windows: share of broken faces among all that the packing has.
    """

    centres: np.ndarray
    radii: np.ndarray
    box: np.ndarray
    planes: list[np.ndarray]
    intact: list[np.ndarray]
    reach: np.ndarray
    centres_stretched: np.ndarray
    broken_share: float
    n_windows: int


def make_cells(
    box: np.ndarray, diameter: float, cv: float, broken: float, stretch: np.ndarray, rng: np.random.Generator
) -> Cells:
    """Pack bubbles in a periodic box, tessellate it, and break a share of the windows."""
    radii = draw_radii(box, _PACKED, diameter / 2 * _PACKED ** (1 / 3), cv, rng)
    centres = pack(box, radii, rng, _GAP)
    return laguerre_cells(centres, radii, box, broken, stretch, rng)


def laguerre_cells(
    centres: np.ndarray,
    radii: np.ndarray,
    box: np.ndarray,
    broken: float,
    stretch: np.ndarray,
    rng: np.random.Generator,
) -> Cells:
    """Laguerre tessellation of a periodic packing: the lower hull of the points lifted to |x|² − r² (Aurenhammer 1987).

    Args:
        centres, radii, box: (n, 3), (n,) and (3,); no two balls overlap.
        broken: share of the faces without a wall; that many, rounded, are chosen.
        stretch: (3,) factors from the packing's space to the foam's.
        rng: chooses the broken faces.
    """
    n = len(centres)
    margin = 2 * (np.prod(box) / n) ** (1 / 3) + 2 * radii.max()
    images = [np.arange(-int(np.ceil(margin / b)), int(np.ceil(margin / b)) + 1) for b in box]
    shifts = np.stack(np.meshgrid(*images, indexing="ij"), -1).reshape(-1, 3)
    shifts = shifts[np.argsort(np.abs(shifts).sum(1), kind="stable")]  # the cells of the box itself come first
    points = (centres + shifts[:, None] * box).reshape(-1, 3)
    owner = np.tile(np.arange(n), len(shifts))
    near = ((points >= -margin) & (points < box + margin)).all(1)
    near[:n] = True
    points, owner = points[near], owner[near]
    middle = points - box / 2
    hull = ConvexHull(np.c_[middle, (middle**2).sum(1) - radii[owner] ** 2], qhull_options="Qt")
    below = hull.equations[:, 3] < 0
    tetrahedra, normals = hull.simplices[below], hull.equations[below]
    vertices = -normals[:, :3] / (2 * normals[:, 3:4]) + box / 2
    pairs = np.concatenate([tetrahedra[:, [a, b]] for a in range(4) for b in range(4) if a != b])
    pairs = np.unique(pairs[pairs[:, 0] < n], axis=0)
    corner_cell, corner = tetrahedra.ravel(), np.repeat(vertices, 4, axis=0)
    inside = corner_cell < n
    reach = np.stack([np.full((n, 3), np.inf), np.full((n, 3), -np.inf)], 1)
    np.minimum.at(reach[:, 0], corner_cell[inside], corner[inside])
    np.maximum.at(reach[:, 1], corner_cell[inside], corner[inside])
    reach = (reach - centres[:, None]) * stretch

    # |x − c_j|² − r_j² − |x − c_i|² + r_i², over twice its slope in the foam's space, is the distance to the face.
    i, j = pairs.T
    apart = points[j] - points[i]
    slope = -apart / stretch
    offset = ((apart**2).sum(1) - radii[owner[j]] ** 2 + radii[i] ** 2) / 2
    length = np.linalg.norm(slope, axis=1)
    planes = np.c_[slope, offset] / length[:, None]
    is_intact = _intact(i, owner[j], apart, broken, rng)
    first = np.searchsorted(i, np.arange(1, n))
    return Cells(
        centres, radii, box * stretch, np.split(planes, first), np.split(is_intact, first), reach, centres * stretch,
        float(1 - is_intact.mean()), len(i) // 2,
    )  # fmt: skip


def _intact(i, j, apart, broken, rng) -> np.ndarray:
    """Whether each face has its wall: the same from both of its cells."""
    flip = (i > j) | ((i == j) & (apart[:, 0] < 0))
    apart = np.round(np.where(flip, -1, 1)[:, None] * apart / np.abs(apart).max() * 1e6) + 0.0
    key = np.c_[np.minimum(i, j), np.maximum(i, j), apart]
    _, face = np.unique(key, axis=0, return_inverse=True)
    face = face.ravel()
    rank = rng.permutation(face.max() + 1)
    return rank[face] >= round(broken * len(rank))


def thickness_order(
    cells: Cells,
    shape: tuple[int, ...],
    voxel_size_um: float,
    origin_um: np.ndarray,
    wall_um: float,
    strut_um: float,
    concavity: float,
    diameter_um: float,
) -> tuple[np.ndarray, np.ndarray]:
    """By what factor walls and struts have to be scaled for each voxel to be polymer.

    b1 ≤ b2 ≤ b3 are the distances to the three nearest faces of a voxel's cell. A wall is b1 ≤ wall/2. An edge between
    faces at 120° is at distance √(4/3 (b1² + b2² − b1 b2)), which gives round struts; arcs of radius R that are tangent
    to both faces give b1 + b2 + √(3 b1 b2) = R/2. Both scale with the strut.

    Args:
        cells: tessellation, periodic in its box.
        shape: voxels along x, y and, in 3D, z; a 2D shape is the section at z = 0.
        voxel_size_um: [µm] edge of a voxel.
        origin_um: [µm] (3,) where in the packing the box begins.
        wall_um, strut_um, concavity, diameter_um: as in ``Foam``.

    Returns:
        float32 array of that shape, at least 0; (n,) bool, which cells hold a voxel of it.
    """
    full = tuple(shape) + (1,) * (3 - len(shape))
    start = np.array(origin_um, float) + 0.5 * float(voxel_size_um) * (np.arange(3) < len(shape))
    order = np.full(full, np.inf, np.float32)
    is_seen = np.zeros(len(cells.centres), bool)
    for cell in range(len(cells.centres)):
        low, high = cells.centres_stretched[cell] + cells.reach[cell]
        spans = [_periodic_spans(low[a], high[a], start[a], voxel_size_um, full[a], cells.box[a]) for a in range(3)]
        for x0, x1, dx in spans[0]:
            for y0, y1, dy in spans[1]:
                for z0, z1, dz in spans[2]:
                    rows = max(1, _CHUNK // ((y1 - y0) * (z1 - z0)))
                    for r in range(x0, x1, rows):
                        where = np.s_[r : min(r + rows, x1), y0:y1, z0:z1]
                        position = [
                            (np.arange(s.start, s.stop) * voxel_size_um + o + d - c).astype(np.float32)
                            for s, o, d, c in zip(
                                where, start, (dx, dy, dz), cells.centres_stretched[cell], strict=True
                            )
                        ]
                        value = _order_in_cell(
                            position, cells.planes[cell], cells.intact[cell], wall_um, strut_um, concavity, diameter_um
                        )
                        np.minimum(order[where], value, out=order[where])
                        is_seen[cell] |= np.isfinite(value).any()
    return order.reshape(shape), is_seen


def _periodic_spans(low, high, start, voxel, n, box) -> list[tuple[int, int, float]]:
    """Voxel ranges [first, end) of an axis that the images of an interval cover, and each image's shift."""
    spans = []
    for k in range(int(np.floor((start - high) / box)), int(np.ceil((start + n * voxel - low) / box)) + 1):
        first = max(int(np.ceil((low + k * box - start) / voxel - 1e-9)), 0)
        end = min(int(np.floor((high + k * box - start) / voxel + 1e-9)) + 1, n)
        if first < end:
            spans.append((first, end, -k * box))
    return spans


def _order_in_cell(position, planes, intact, wall_um, strut_um, concavity, diameter_um) -> np.ndarray:
    """``thickness_order`` at the voxels of one cell; infinite outside it."""
    x, y, z = (p.reshape([-1 if a == b else 1 for b in range(3)]) for a, p in enumerate(position))
    shape = np.broadcast_shapes(x.shape, y.shape, z.shape)
    b1, b2, b3, wall = (np.full(shape, np.inf, np.float32) for _ in range(4))
    b, second = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for (ax, ay, az, d), has_wall in zip(planes.astype(np.float32), intact, strict=True):
        np.add(ax * x + ay * y, az * z + d, out=b)
        if has_wall:
            np.minimum(wall, b, out=wall)
        np.maximum(b1, b, out=second)
        np.minimum(b1, b, out=b1)
        np.maximum(b2, second, out=b)
        np.minimum(b2, second, out=b2)
        np.minimum(b3, b, out=b3)
    outside = b1 < -1e-5 * diameter_um  # float32: a voxel on a face belongs to both cells rather than to none
    for v in (b1, b2, b3, wall):
        np.maximum(v, 0, out=v)
    # Without a floor the cusps of a border would thin out to nothing along a broken window; they end at a tenth.
    np.maximum(b1, _BLUNT * b2, out=b1)
    near_node = np.clip(0.5 - b3 / np.float32(_EDGE * diameter_um), 0, 0.5)
    thicker = np.sqrt(36 * near_node**4 + near_node**2 + 1)
    product = b1 * b2
    cusped = (b1 + b2 + np.sqrt(3 * product)) / np.float32(1.5 + 3**0.5)
    round_ = np.sqrt((b1 * b1 + b2 * b2 - product) * np.float32(4 / 3))
    strut = (concavity * cusped + (1 - concavity) * round_) * np.float32(2 / strut_um) / thicker
    np.minimum(strut, wall * np.float32(2 / wall_um), out=strut)
    strut[outside] = np.inf
    return strut


@lru_cache(maxsize=64)
def _model_scale(wall, strut, porosity, broken_windows, cell_cv, strut_concavity, elongation) -> float:
    """The factor that walls and struts of a foam with cells of diameter 1 need for a porosity: built once, coarsely."""
    stretch = _stretch(elongation, 0)
    cells = make_cells(np.full(3, _MODEL_EDGE), 1.0, cell_cv, broken_windows, stretch, np.random.default_rng(0))
    shape = tuple(np.round(cells.box * _MODEL_VOXELS).astype(int))
    order, _ = thickness_order(cells, shape, 1 / _MODEL_VOXELS, np.zeros(3), wall, strut, strut_concavity, 1.0)
    return float(np.quantile(order, 1 - porosity))


def _stretch(elongation: float, axis: int) -> np.ndarray:
    """Factors along x, y, z that make cells ``elongation`` times higher than wide, of the same volume."""
    stretch = np.full(3, elongation ** (-1 / 3))
    stretch[axis] = elongation ** (2 / 3)
    return stretch


def _packing_box(view: np.ndarray, ndim: int, diameter: float, periodic: bool) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the packing that a view is cut from, and where in it the view begins."""
    box, origin = view.copy(), np.zeros(3)
    if not periodic:
        box[:ndim] = np.maximum(view[:ndim] + 2 * diameter, _DEPTH * diameter)
        origin[:ndim] = diameter
    box[ndim:] = _DEPTH * diameter
    return np.array([float(f"{edge:.9g}") for edge in box]), origin  # the same at any voxel size, to the last bit


def _refuse_thin(broken: float, wall_um: float, strut_um: float, voxel_size_um: float, voxels: float) -> None:
    name, thickness = ("struts", strut_um) if broken == 1 else ("walls", wall_um)
    if thickness < voxels * voxel_size_um * (1 - 1e-9):
        raise ValueError(
            f"the {name} come out at {thickness:.4g} µm in the thinnest case, {thickness / voxel_size_um:.3g} voxels "
            f"of {voxel_size_um:g} µm: below {voxels:.3g} voxels they have holes; take a voxel_size_um of at most "
            f"{thickness / voxels:.3g}, or cells that are {voxels * voxel_size_um / thickness:.3g} times larger"
        )
