"""Densities of interfaces and lines, connectivity, chords and correlation of a label volume.

Every function takes `labels`, an integer array (x, y) or (x, y, z) of class numbers, and the voxel size in µm, one
number or one per axis, and looks at all phases in one pass. The frame of the image is no interface: what is counted
is divided by the places at which it could have been seen, so a volume and its parts agree on average.
"""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy import fft
from scipy.ndimage import uniform_filter
from scipy.spatial import SphericalVoronoi
from skimage.measure import label as label_components

MAX_CLASSES = 256
SHORTEST_AXIS = 3  # voxels: a diagonal step of a 2D direction, and one more
SLAB_VOXELS = 4_000_000  # of large volumes, so many are counted at a time
DIRECTION_WINDOW = 5  # voxels around a triple line in which its direction is told


def volume_fractions(labels: np.ndarray, n_classes: int | None = None) -> np.ndarray:
    """Share of the voxels of each class, float64 (classes,); their sum is 1."""
    labels, n_classes = checked(labels, n_classes)
    return np.bincount(labels.ravel(), minlength=n_classes) / labels.size


def contact_area(
    labels: np.ndarray,
    voxel_size_um: float | Sequence[float],
    n_classes: int | None = None,
    directions: int | None = None,
) -> np.ndarray:
    """[1/µm] area of the interface of every pair of phases per volume; in 2D its length per area.

    Args:
        labels: class numbers 0 ... n_classes - 1 (default: up to the largest that occurs).
        voxel_size_um: [µm] one or one per axis.
        directions: of the test lines; 13 in 3D, 4 or 8 (default) in 2D.

    Returns a symmetric float64 array (classes, classes) with zeros on its diagonal. The specific surface area of
    a phase is the sum of its row.

    The count of changes along the lattice's directions is Crofton's integral, weighted by the part of the sphere
    that is nearest to each direction (Ohser and Mücklich, Statistical Analysis of Microstructures in Materials
    Science, 2000, section 4.2; here for any voxel size). It is exact on average over orientations. A plane that
    stands along an axis comes out 7.3 % small in 3D, and a line 5.2 % with 4, 1.4 % with 8 directions; along the
    rim of an interface a ring of about a third of a voxel is lost.

    Raises:
        ValueError: labels, voxel size or number of directions out of range.
    """
    labels, n_classes = checked(labels, n_classes)
    size = per_axis(voxel_size_um, labels.ndim)
    density = np.zeros((n_classes, n_classes))
    for step, weight in crofton_directions(size, directions):
        pairs = math.prod(n - abs(s) for n, s in zip(labels.shape, step, strict=True))
        length_um = math.hypot(*(s * h for s, h in zip(step, size, strict=True)))
        density += weight * _changes(labels, step, n_classes) / (pairs * length_um)
    density = (density + density.T) * crofton_factor(labels.ndim)
    np.fill_diagonal(density, 0)
    return density


def crofton_factor(ndim: int) -> float:
    """Interface per volume over mean number of crossings per length of a test line: 2 in 3D, π/2 in 2D."""
    return 2.0 if ndim == 3 else math.pi / 2


def crofton_directions(size_um: Sequence[float], directions: int | None = None) -> list[tuple[tuple[int, ...], float]]:
    """(voxel step, weight) of each direction; the weights are shares of the half sphere or half circle and sum to 1."""
    ndim = len(size_um)
    allowed = (13,) if ndim == 3 else (8, 4)
    if directions not in (None, *allowed):
        raise ValueError(f"directions={directions} of a {ndim}D image must be {' or '.join(map(str, allowed))}")
    reach = 2 if ndim == 2 and directions != 4 else 1
    steps = [s for s in product(range(-reach, reach + 1), repeat=ndim) if any(s) and s > (0,) * ndim]
    steps = [s for s in steps if math.gcd(*s) == 1]
    vectors = np.array(steps) * np.asarray(size_um)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    if ndim == 3:
        weights = SphericalVoronoi(np.concatenate([units, -units])).calculate_areas()[: len(steps)] / (2 * math.pi)
    else:
        angles = np.arctan2(units[:, 1], units[:, 0]) % math.pi
        order = np.argsort(angles)
        gaps = np.diff(angles[order], append=angles[order[0]] + math.pi)
        weights = np.empty(len(steps))
        weights[order] = (gaps + np.roll(gaps, 1)) / (2 * math.pi)
    return list(zip(steps, weights.tolist(), strict=True))


def shifted_pair(array: np.ndarray, step: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Two views of `array`: voxels, and the voxels one `step` further."""
    here = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(step, array.shape, strict=True))
    there = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(step, array.shape, strict=True))
    return array[here], array[there]


def _changes(labels: np.ndarray, step: tuple[int, ...], n_classes: int) -> np.ndarray:
    """How often each ordered pair of classes lies one step apart, (classes, classes)."""
    here, there = shifted_pair(labels, step)
    code = np.uint8 if n_classes**2 <= 256 else np.uint16
    counts = np.zeros(n_classes**2, np.int64)
    rows = max(1, SLAB_VOXELS * len(here) // max(here.size, 1))
    for start in range(0, len(here), rows):
        part = slice(start, start + rows)
        codes = here[part].astype(code) * code(n_classes) + there[part]
        counts += np.bincount(codes.ravel(), minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes)


# ------------------------------------------------------------------------------------------ triple lines


def triple_phase_boundary(
    labels: np.ndarray, voxel_size_um: float | Sequence[float], phases: Sequence[int] | None = None
) -> dict[str, float]:
    """Length of the lines where three phases meet, per volume [1/µm²]; in 2D, triple points per area [1/µm²].

    phases: three class numbers, for the lines where these three meet; None takes any three.

    Returns {"total", "percolating_x", "percolating_y"[, "percolating_z"]}: a line percolates along an axis if each
    of the voxels around it belongs to a part of its phase that reaches from the first to the last slice.

    A line is a chain of voxel edges with three phases among the four voxels around it, and longer than the curve
    that it follows: 1.5 times on the mean over directions, once along an axis, √3 along a diagonal. Each edge is
    therefore multiplied by |m|₂/|m|₁ of the edges' mean direction m in a window of 5 voxels.
    Mean factor 1.5: Saltykov's relation for lines on a cubic lattice.

    Raises:
        ValueError: labels, voxel size or phases out of range.
    """
    labels, _ = checked(labels, None)
    size = per_axis(voxel_size_um, labels.ndim)
    if phases is not None:
        if len(set(phases)) != 3 or not all(0 <= int(p) < MAX_CLASSES for p in phases):
            raise ValueError(f"phases={phases!r} must be three different class numbers, such as [0, 1, 2]")
        table = np.zeros(MAX_CLASSES, np.uint8)  # what is no such phase counts as none
        table[list(phases)] = (1, 2, 3)
        reduced = table[labels]
    else:
        reduced = labels
    components, spans = _components(labels)
    if labels.ndim == 2:
        corners = _corners(reduced, (0, 1))
        triple = _three_phases(corners, phases is not None)
        places = triple.size * math.prod(size)
        return _triple_sums(triple, np.ones(1), _corners(components, (0, 1)), spans, places)

    edges = [_three_phases(_corners(reduced, _others(k)), phases is not None) for k in range(3)]
    lengths = _edge_lengths(edges, labels.shape, size)
    result: dict[str, float] = {}
    for k, (triple, length) in enumerate(zip(edges, lengths, strict=True)):
        sums = _triple_sums(triple, length, _corners(components, _others(k)), spans, triple.size * math.prod(size))
        result = {name: result.get(name, 0.0) + value for name, value in sums.items()}
    return result


def _others(axis: int) -> tuple[int, int]:
    return tuple(k for k in range(3) if k != axis)  # type: ignore[return-value]


def _corners(array: np.ndarray, plane: tuple[int, int]) -> list[np.ndarray]:
    """Four views: the voxels around each voxel edge that stands on `plane`."""
    views = []
    for a, b in product((slice(None, -1), slice(1, None)), repeat=2):
        index = [slice(None)] * array.ndim
        index[plane[0]], index[plane[1]] = a, b
        views.append(array[tuple(index)])
    return views


def _three_phases(corners: list[np.ndarray], no_zero: bool) -> np.ndarray:
    """Where three or more classes meet; `no_zero`: class 0 is none of them."""
    p, q, r, s = corners
    if no_zero:
        return np.logical_and.reduce([(p == k) | (q == k) | (r == k) | (s == k) for k in (1, 2, 3)])
    kinds = (q != p).view(np.uint8) + ((r != p) & (r != q)).view(np.uint8)
    kinds += ((s != p) & (s != q) & (s != r)).view(np.uint8)
    return kinds >= 2


def _edge_lengths(edges: list[np.ndarray], shape: tuple[int, ...], size: Sequence[float]) -> list[np.ndarray]:
    """[µm] the share of the curve's length that stands for each marked edge, a flat array per direction."""
    means = []
    for k, (edge, h) in enumerate(zip(edges, size, strict=True)):
        around = np.zeros(shape, np.float32)  # an edge lies between four voxels: each has its part of it
        for corner in _corners(around, _others(k)):
            corner += edge
        means.append(uniform_filter(around, DIRECTION_WINDOW, mode="constant") * np.float32(h))
    lengths = []
    for k, (edge, h) in enumerate(zip(edges, size, strict=True)):
        x, y, z = (sum(c[edge].astype(np.float64) for c in _corners(mean, _others(k))) for mean in means)
        total = np.maximum(x + y + z, 1e-12)
        lengths.append(h * np.sqrt(x**2 + y**2 + z**2) / total)
    return lengths


def _triple_sums(
    triple: np.ndarray, length: np.ndarray, corners: list[np.ndarray], spans: list[np.ndarray], places: float
) -> dict[str, float]:
    """Sum of `length` over the marked edges, of all and of those whose corners' components span, per `places`."""
    lengths = np.broadcast_to(length, (np.count_nonzero(triple),))
    around = [corner[triple] for corner in corners]
    result = {"total": float(lengths.sum() / places)}
    for name, span in zip("xyz", spans, strict=False):
        active = np.logical_and.reduce([span[c] for c in around])
        result[f"percolating_{name}"] = float(lengths[active].sum() / places)
    return result


# ------------------------------------------------------------------------------------------ connectivity


def connectivity(labels: np.ndarray, n_classes: int | None = None) -> list[dict[str, float | int | None]]:
    """How each phase hangs together, voxels being neighbours if they share a face (in 2D an edge).

    Returns for each class a dict: `components`: their number; `largest_share`: of the phase's voxels that are in its
    largest component; `closed_share`: that are in components which touch no face of the box;
    `percolating_share_x` ...: that are in components which reach from the first to the last slice along the axis.
    Shares are None for a class without a voxel.
    """
    labels, n_classes = checked(labels, n_classes)
    components, spans = _components(labels)
    sizes = np.bincount(components.ravel())
    phase = np.empty(len(sizes), np.uint8)
    phase[components.ravel()] = labels.ravel()
    touching = np.zeros(len(sizes), bool)
    for axis in range(labels.ndim):
        for end in (0, -1):
            touching[np.unique(components.take(end, axis))] = True
    result = []
    for k in range(n_classes):
        mine = (phase == k) & (sizes > 0)
        total = int(sizes[mine].sum())
        row: dict[str, float | int | None] = {"components": int(mine.sum())}
        shares = {"largest_share": sizes[mine].max(initial=0), "closed_share": sizes[mine & ~touching].sum()}
        shares |= {f"percolating_share_{n}": sizes[mine & s].sum() for n, s in zip("xyz", spans, strict=False)}
        result.append(row | {name: float(v / total) if total else None for name, v in shares.items()})
    return result


def _components(labels: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Component numbers of all phases at once, and for each axis which components reach through the box."""
    components = label_components(labels, background=-1, connectivity=1)
    n = int(components.max()) + 1
    spans = []
    for axis in range(labels.ndim):
        span = np.zeros(n, bool)
        span[np.intersect1d(components.take(0, axis), components.take(-1, axis))] = True
        spans.append(span)
    return components, spans


# ------------------------------------------------------------------------------------------ chords


def chord_counts(labels: np.ndarray, n_classes: int | None = None) -> list[np.ndarray]:
    """Number of chords of each length in voxels along each axis, corrected for the border.

    Returns for each axis float64 (classes, voxels of the axis): entry [k, n] stands for the chords of n voxels of
    class k, each weighted by 1 / (N - 1 - n), the inverse of the number of places at which a chord of n voxels
    shows both ends in a line of N. Chords that the frame cuts are left out. Without the weights long chords are
    missing (Miles, Adv. Appl. Probab. 6 (1974) 9; Serra, Image Analysis and Mathematical Morphology, 1982).
    """
    labels, n_classes = checked(labels, n_classes)
    counts = []
    for axis, length in enumerate(labels.shape):
        lines = np.ascontiguousarray(np.moveaxis(labels, axis, -1)).reshape(-1, length)
        row, last = np.nonzero(lines[:, 1:] != lines[:, :-1])  # the last voxel before each change
        whole = row[1:] == row[:-1]
        run = (last[1:] - last[:-1])[whole]
        phase = lines[row[1:][whole], last[1:][whole]].astype(np.int64)
        found = np.bincount(phase * length + run, minlength=n_classes * length).reshape(n_classes, length)
        places = np.maximum(length - 1 - np.arange(length), 1)
        counts.append(found / places)
    return counts


def chord_lengths(
    labels: np.ndarray, voxel_size_um: float | Sequence[float], n_classes: int | None = None
) -> list[dict[str, float | None]]:
    """[µm] `mean` and `sd` over all axes, and `mean_x` ... of each class; None where no chord shows both ends.

    In an isotropic structure the mean is 4 × fraction / specific surface (3D) or π × fraction / specific
    perimeter (2D). Chords longer than the box are never seen: the mean is small by 4 % where the box is five mean
    chords wide, if lengths are exponentially distributed.
    """
    labels, n_classes = checked(labels, n_classes)
    size = per_axis(voxel_size_um, labels.ndim)
    counts = chord_counts(labels, n_classes)
    result = []
    for k in range(n_classes):
        row = {}
        totals = np.zeros(3)
        for name, h, count in zip("xyz", size, counts, strict=False):
            length_um = np.arange(count.shape[1]) * h
            per_um = count[k] / (labels.size / count.shape[1] * h)  # chords per length of all test lines
            sums = np.array([per_um.sum(), per_um @ length_um, per_um @ length_um**2])
            row[f"mean_{name}"] = float(sums[1] / sums[0]) if sums[0] else None
            totals += sums
        summary: dict[str, float | None] = {"mean": None, "sd": None}
        if totals[0]:
            mean = float(totals[1] / totals[0])
            summary = {"mean": mean, "sd": math.sqrt(max(0.0, totals[2] / totals[0] - mean**2))}
        result.append(summary | row)
    return result


# ------------------------------------------------------------------------------------------ correlation


def two_point_correlation(
    labels: np.ndarray,
    voxel_size_um: float | Sequence[float],
    n_classes: int | None = None,
    max_distance_um: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The chance that two points at a distance are both in a phase, averaged over all directions.

    max_distance_um: [µm] default a quarter of the shortest edge; at most half of it.

    Returns (distances [µm] (bins,), probabilities (classes, bins)), float64; bin 0 is distance 0, where the
    probability is the volume fraction. Bins are as wide as the largest voxel edge. The image is not taken to be
    periodic: each lag is divided by the number of voxel pairs that have it.
    """
    labels, n_classes = checked(labels, n_classes)
    size = per_axis(voxel_size_um, labels.ndim)
    edge_um = min(n * h for n, h in zip(labels.shape, size, strict=True))
    reach_um = edge_um / 4 if max_distance_um is None else max_distance_um
    if not 0 < reach_um <= edge_um / 2:
        raise ValueError(f"max_distance_um={max_distance_um} must be above 0 and at most {edge_um / 2:g}, half an edge")
    reach = [max(1, int(reach_um / h + 1e-9)) for h in size]
    padded = [fft.next_fast_len(n + r, real=True) for n, r in zip(labels.shape, reach, strict=True)]
    lags = [np.arange(-r, r + 1) for r in reach[:-1]] + [np.arange(reach[-1] + 1)]
    where = np.ix_(*(lag % n for lag, n in zip(lags, padded, strict=True)))
    squares = sum(
        (lag * h).reshape([-1 if i == axis else 1 for i in range(labels.ndim)]) ** 2
        for axis, (lag, h) in enumerate(zip(lags, size, strict=True))
    )
    distance = np.sqrt(squares)
    pairs = np.ones(distance.shape)
    for axis, (lag, n) in enumerate(zip(lags, labels.shape, strict=True)):
        pairs = pairs * (n - abs(lag)).reshape([-1 if i == axis else 1 for i in range(labels.ndim)])
    pairs[..., 1:] *= 2  # a lag and its opposite
    bins = np.rint(distance / max(size)).astype(np.int64).ravel()
    bins[(bins == 0) & (distance.ravel() > 0)] = 1
    kept = distance.ravel() <= reach_um * (1 + 1e-9)
    weights, bins = pairs.ravel()[kept], bins[kept]
    total = np.bincount(bins, weights)
    filled = total > 0
    curves = []
    for k in range(n_classes):
        spectrum = fft.rfftn((labels == k).astype(np.float32), s=padded, workers=2)
        power = spectrum.real**2 + spectrum.imag**2
        del spectrum
        together = fft.irfftn(power, s=padded, workers=2)[where].astype(np.float64)
        together[..., 1:] *= 2
        curves.append(np.bincount(bins, together.ravel()[kept])[filled] / total[filled])
    distances = np.bincount(bins, distance.ravel()[kept] * weights)[filled] / total[filled]
    return distances, np.array(curves)


# ------------------------------------------------------------------------------------------ checks


def checked(labels: np.ndarray, n_classes: int | None) -> tuple[np.ndarray, int]:
    """Labels as uint8 and the number of classes.

    Raises ValueError unless they are whole numbers from 0 below `n_classes`, at most 256, 2D or 3D, each axis of 3
    voxels or more.
    """
    labels = np.asarray(labels)
    if labels.ndim not in (2, 3) or min(labels.shape, default=0) < SHORTEST_AXIS:
        raise ValueError(f"labels have shape {labels.shape}; give (x, y) or (x, y, z), {SHORTEST_AXIS} or more each")
    if labels.dtype.kind not in "uib":
        raise ValueError(f"labels are {labels.dtype}; give class numbers in an integer type such as uint8")
    low, high = int(labels.min()), int(labels.max())
    limit = MAX_CLASSES if n_classes is None else n_classes
    if low < 0 or high >= limit or not 1 <= limit <= MAX_CLASSES:
        raise ValueError(f"labels hold {low} to {high}; classes are 0 to {min(limit, MAX_CLASSES) - 1}")
    # in one order in memory: TIFF stacks come transposed, and sums over them would differ in the last digit
    return np.ascontiguousarray(labels, np.uint8), high + 1 if n_classes is None else n_classes


def per_axis(voxel_size_um: float | Sequence[float], ndim: int) -> list[float]:
    """[µm] one positive voxel size per axis, from one number or one per axis; else ValueError."""
    try:
        values = np.broadcast_to(np.asarray(voxel_size_um, dtype=float), (ndim,)).tolist()
    except (ValueError, TypeError):
        values = []
    if len(values) != ndim or not all(math.isfinite(v) and v > 0 for v in values):
        raise ValueError(f"voxel_size_um={voxel_size_um}: must be one positive length or {ndim} of them, in µm")
    return values
