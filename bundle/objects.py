"""Sizes of what a phase is made of: distance to the interface, local thickness, and objects told apart at their necks.

All phases are measured in one pass. The frame of the image is no interface: what it cuts goes on beyond it. Needs numba
(and uses edt, if there, for a faster distance map); both come with PoreSpy.
"""

import importlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import product

import numpy as np
from scipy.ndimage import distance_transform_edt

from bundle.morphology import checked, crofton_directions, crofton_factor, per_axis, shifted_pair

NECK = 0.75  # two bodies are one if the neck is thicker than this share of the thinner body
NOISE_VOXELS = 0.75  # ... or if it is less than this thinner, which the grid alone makes
RIDGE_SLACK_VOXELS = 0.3  # a ball that sticks out of its neighbour's by less is not drawn
SLABS = 8  # parts of a volume that threads work on
SMALLEST_OBJECT = 8  # voxels in 3D, 4 in 2D: smaller ones have no shape


def interface_distance(labels: np.ndarray, voxel_size_um: float | Sequence[float]) -> np.ndarray:
    """[µm] Euclidean distance of each voxel to the nearest voxel of another class, float32 of the labels' shape.

    Infinite in an image of one class. The interface itself lies about half a voxel nearer.
    """
    labels, n_classes = checked(labels, None)
    size = per_axis(voxel_size_um, labels.ndim)
    if labels.min() == labels.max():
        return np.full(labels.shape, np.inf, np.float32)
    try:
        edt = importlib.import_module("edt")
    except ImportError:
        distance = np.zeros(labels.shape, np.float32)
        for k in range(n_classes):
            mask = labels == k
            distance[mask] = distance_transform_edt(mask, sampling=size)[mask]
        return distance
    numbers = np.ascontiguousarray(labels).astype(np.uint16) + 1  # 0 would be nobody's
    return edt.edt(numbers, anisotropy=tuple(size), black_border=False, parallel=2)


def local_thickness(
    labels: np.ndarray, voxel_size_um: float | Sequence[float], distance_um: np.ndarray | None = None
) -> np.ndarray:
    """[µm] diameter of the largest ball that fits into the phase and covers the voxel, float32 of the labels' shape.

    distance_um: what `interface_distance` gives, if it is there already.

    Balls of every radius that the distance map holds are drawn around its ridge (Hildebrand and Rüegsegger, J.
    Microsc. 185 (1997) 67). The distance to the next phase's voxels is 0 to half a voxel larger than to the
    interface: a quarter is taken off each side, so a plate of n voxels comes out as n ± 0.5. A ball's centre
    is looked for at voxels only, so a ball comes out about one voxel small. NaN in an image of one class.

    Raises:
        ValueError: labels or voxel size out of range.
        ImportError: numba is missing.
    """
    labels, _ = checked(labels, None)
    size = per_axis(voxel_size_um, labels.ndim)
    distance = interface_distance(labels, size) if distance_um is None else distance_um
    if not np.isfinite(distance).all():
        return np.full(labels.shape, np.nan, np.float32)
    find_ridge, draw_balls, *_ = _kernels()
    solid, distance = _as_3d(labels), np.ascontiguousarray(_as_3d(distance), np.float32)
    h = np.array([*size, 1.0][:3])
    slack = RIDGE_SLACK_VOXELS * min(size)
    radius = distance.copy()
    with ThreadPoolExecutor() as threads:
        slabs = [(part[0], part[-1] + 1) for part in np.array_split(np.arange(len(solid)), min(len(solid), SLABS))]
        ridges = threads.map(lambda slab: find_ridge(distance, solid, h, *slab, slack), slabs)
        centres = np.argwhere(np.concatenate(list(ridges))).astype(np.int32)
        list(threads.map(lambda slab: draw_balls(distance, centres, h, radius, *slab), slabs))
    return (2 * radius - np.float32(0.5 * np.mean(size))).reshape(labels.shape)


def split_objects(
    labels: np.ndarray,
    voxel_size_um: float | Sequence[float],
    distance_um: np.ndarray | None = None,
    neck: float = NECK,
) -> np.ndarray:
    """Number of the object that each voxel belongs to, int32 from 0, every phase cut at its necks.

    neck: (0 ... 1) two bodies stay one object where the neck's thickness is above this share of the thinner body's.

    The watershed of the distance map, flooded from the deepest voxel down; basins that meet at a shallow saddle are
    merged (persistence), which needs no smoothing and no search for markers.

    Raises:
        ValueError: labels, voxel size or neck out of range.
        ImportError: numba is missing.
    """
    labels, _ = checked(labels, None)
    size = per_axis(voxel_size_um, labels.ndim)
    if not 0 < neck <= 1:
        raise ValueError(f"neck={neck} must be above 0 and at most 1, such as {NECK}")
    distance = interface_distance(labels, size) if distance_um is None else distance_um
    if not np.isfinite(distance).all():
        return np.zeros(labels.shape, np.int32)
    *_, flood, _ = _kernels()
    flat = np.ascontiguousarray(distance, np.float32).ravel()
    order = np.argsort(-flat, kind="stable").astype(np.int32 if flat.size < 2**31 else np.int64)
    return flood(order, flat, _as_3d(labels), np.array([*size, 1.0][:3]), neck, NOISE_VOXELS * min(size)).reshape(
        labels.shape
    )


def object_table(
    labels: np.ndarray,
    voxel_size_um: float | Sequence[float],
    objects: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """One row per object: columns of equal length.

    objects: what `split_objects` gives; any partition of the phases into numbers 0, 1, ... will do.

    `phase`: class number. `voxels`. `inside`: touches no face of the box. `weight`: 1 over the share of positions in
    which an object of this extent lies inside the box (Miles and Lantuéjoul), 0 if it is not inside; weighted sums
    are free of the border's preference for small objects. `volume_um3` (2D `area_um2`).
    `diameter_um`: of the ball (disc) of equal volume. `sphericity`: surface of that ball (perimeter of that disc)
    over the object's own by Crofton; NaN below 8 voxels (2D: 4). `long_um`, `short_um`: longest and shortest axis
    of the ellipsoid of equal moments. `long_axis`, `short_axis`: their directions, unit vectors (objects, axes),
    sign without meaning. `centre_um`: (objects, axes), from the corner of the box.
    """
    labels, _ = checked(labels, None)
    size = per_axis(voxel_size_um, labels.ndim)
    objects = split_objects(labels, size) if objects is None else objects
    ndim, n = labels.ndim, int(objects.max()) + 1
    *_, measure = _kernels()
    sums, low, high, phase = measure(_as_3d(objects), _as_3d(labels), n)
    volume_voxels = sums[:, 0]
    h = np.array(size)
    centre = sums[:, 1 : 1 + ndim] / volume_voxels[:, None]
    second = np.empty((n, ndim, ndim))
    columns = {(0, 0): 4, (1, 1): 5, (2, 2): 6, (0, 1): 7, (0, 2): 8, (1, 2): 9}
    for i, j in product(range(ndim), repeat=2):
        moment = sums[:, columns[min(i, j), max(i, j)]] / volume_voxels - centre[:, i] * centre[:, j]
        second[:, i, j] = (moment + (i == j) / 12) * h[i] * h[j]  # 1/12: a voxel is a box, not a point
    values, vectors = np.linalg.eigh(second)
    semi_axes = np.sqrt((ndim + 2) * np.maximum(values, 0))
    shape = np.array(labels.shape)
    low, high = low[:, :ndim], high[:, :ndim]
    inside = (low > 0).all(1) & (high < shape - 1).all(1)
    extent = high - low + 1
    positions = np.prod(np.maximum(shape - 1 - extent, 1) / (shape - 2), axis=1)
    volume_um = volume_voxels * np.prod(h)
    if ndim == 3:
        diameter = np.cbrt(6 * volume_um / math.pi)
        own = math.pi * diameter**2
    else:
        diameter = np.sqrt(4 * volume_um / math.pi)
        own = math.pi * diameter
    surface = _object_surfaces(objects, size, n)
    whole = (volume_voxels >= (SMALLEST_OBJECT if ndim == 3 else 4)) & (surface > 0) & inside
    sphericity = np.full(n, np.nan)
    np.divide(own, surface, out=sphericity, where=whole)
    return {
        "phase": phase,
        "voxels": volume_voxels.astype(np.int64),
        "inside": inside,
        "weight": np.where(inside, 1 / positions, 0.0),
        ("volume_um3" if ndim == 3 else "area_um2"): volume_um,
        "diameter_um": diameter,
        "sphericity": sphericity,
        "long_um": 2 * semi_axes[:, -1],
        "short_um": 2 * semi_axes[:, 0],
        "long_axis": vectors[:, :, -1],
        "short_axis": vectors[:, :, 0],
        "centre_um": (centre + 0.5) * h,
    }


def _object_surfaces(objects: np.ndarray, size: Sequence[float], n: int) -> np.ndarray:
    """[µm²] (2D [µm]) Crofton's surface of every object, contacts with other objects included, (n,)."""
    surface = np.zeros(n)
    for step, weight in crofton_directions(size):
        here, there = shifted_pair(objects, step)
        differ = here != there
        crossings = np.bincount(here[differ], minlength=n) + np.bincount(there[differ], minlength=n)
        surface += crossings * weight / math.hypot(*(s * h for s, h in zip(step, size, strict=True)))
    return surface * crofton_factor(objects.ndim) * math.prod(size)


def _as_3d(array: np.ndarray) -> np.ndarray:
    return array if array.ndim == 3 else array[..., None]


# ------------------------------------------------------------------------------------------ compiled loops


@cache
def _kernels() -> tuple:
    """The loops below, compiled at the first call; numba is imported here and nowhere else."""
    try:
        numba = importlib.import_module("numba")
    except ImportError as error:
        raise ImportError("local thickness and objects need numba: pip install numba") from error
    compiled = numba.njit(cache=True, nogil=True)
    return compiled(_find_ridge), compiled(_draw_balls), compiled(_flood), compiled(_measure)


def _find_ridge(distance, labels, size, start, stop, slack):
    """Whether no neighbour's ball holds the whole of a voxel's own ball, bool, for start <= x < stop."""
    _, ny, nz = distance.shape
    ridge = np.ones((stop - start, ny, nz), np.bool_)
    for dx in range(-1, 2):
        for dy in range(-1, 2):
            for dz in range(-1, 2):
                if dx == 0 and dy == 0 and dz == 0:
                    continue
                step = math.sqrt((dx * size[0]) ** 2 + (dy * size[1]) ** 2 + (dz * size[2]) ** 2) - slack
                for x in range(max(start, -dx), min(stop, distance.shape[0] - dx)):
                    for y in range(max(0, -dy), min(ny, ny - dy)):
                        for z in range(max(0, -dz), min(nz, nz - dz)):
                            larger = distance[x + dx, y + dy, z + dz] >= distance[x, y, z] + step
                            if larger and labels[x + dx, y + dy, z + dz] == labels[x, y, z]:
                                ridge[x - start, y, z] = False
    return ridge


def _draw_balls(distance, centres, size, radius, start, stop):
    """Raise `radius`, for start <= x < stop, to that of the largest ball that reaches over the voxel."""
    _, ny, nz = distance.shape
    hx, hy, hz = size
    for n in range(len(centres)):
        x, y, z = centres[n]
        r = distance[x, y, z]
        square = float(r) * r * 0.99999  # a voxel at the very distance is the next phase's
        span = int(r / hx)
        for i in range(max(start, x - span), min(stop, x + span + 1)):
            left_x = square - ((i - x) * hx) ** 2
            if left_x < 0:
                continue
            reach_y = int(math.sqrt(left_x) / hy)
            for j in range(max(0, y - reach_y), min(ny, y + reach_y + 1)):
                left = left_x - ((j - y) * hy) ** 2
                if left < 0:
                    continue
                reach = int(math.sqrt(left) / hz)
                for k in range(max(0, z - reach), min(nz, z + reach + 1)):
                    if radius[i, j, k] < r:
                        radius[i, j, k] = r


def _flood(order, distance, labels, size, neck, noise):
    """Object numbers from 0, int32 of the labels' shape. `order`: flat voxel indices, the deepest first."""
    nx, ny, nz = labels.shape
    basin = np.full(labels.size, -1, np.int32)
    parent = np.empty(labels.size, np.int32)
    peak = np.empty(labels.size, np.float32)
    found = 0
    for index in order:
        x, y, z = index // (ny * nz), index // nz % ny, index % nz
        depth = distance[index]
        best, steepest = -1, -1.0  # the voxel joins the basin that lies up the steepest slope
        for i in range(max(0, x - 1), min(nx, x + 2)):
            for j in range(max(0, y - 1), min(ny, y + 2)):
                for k in range(max(0, z - 1), min(nz, z + 2)):
                    other = (i * ny + j) * nz + k
                    if basin[other] < 0 or labels[i, j, k] != labels[x, y, z]:
                        continue
                    root = basin[other]
                    while parent[root] != root:
                        parent[root] = parent[parent[root]]
                        root = parent[root]
                    step = math.sqrt(((i - x) * size[0]) ** 2 + ((j - y) * size[1]) ** 2 + ((k - z) * size[2]) ** 2)
                    slope = (distance[other] - depth) / step
                    if best < 0:
                        best, steepest = root, slope
                    elif root != best:
                        low = min(peak[root], peak[best])
                        if depth >= neck * low or low - depth <= noise:
                            if peak[root] > peak[best]:
                                parent[best] = root
                                best = root
                            else:
                                parent[root] = best
                            steepest = max(steepest, slope)
                        elif slope > steepest:
                            best, steepest = root, slope
                    else:
                        steepest = max(steepest, slope)
        if best < 0:
            best = found
            parent[best] = best
            peak[best] = depth
            found += 1
        basin[index] = best
    number = np.full(found, -1, np.int32)
    count = 0
    for index in range(labels.size):  # numbered in the order of the voxels
        root = basin[index]
        while parent[root] != root:
            root = parent[root]
        if number[root] < 0:
            number[root] = count
            count += 1
        basin[index] = number[root]
    return basin


def _measure(objects, labels, n):
    """Sums of 1, x, y, z, xx, yy, zz, xy, xz, yz; lowest and highest index per axis; phase."""
    sums = np.zeros((n, 10))
    low = np.full((n, 3), 2**31 - 1, np.int64)
    high = np.full((n, 3), -1, np.int64)
    phase = np.zeros(n, np.uint8)
    nx, ny, nz = objects.shape
    for x in range(nx):
        for y in range(ny):
            for z in range(nz):
                o = objects[x, y, z]
                phase[o] = labels[x, y, z]
                s = sums[o]
                s[0] += 1.0
                s[1] += x
                s[2] += y
                s[3] += z
                s[4] += float(x) * x
                s[5] += float(y) * y
                s[6] += float(z) * z
                s[7] += float(x) * y
                s[8] += float(x) * z
                s[9] += float(y) * z
                low[o, 0] = min(low[o, 0], x)
                low[o, 1] = min(low[o, 1], y)
                low[o, 2] = min(low[o, 2], z)
                high[o, 0] = max(high[o, 0], x)
                high[o, 1] = max(high[o, 1], y)
                high[o, 2] = max(high[o, 2], z)
    return sums, low, high, phase
