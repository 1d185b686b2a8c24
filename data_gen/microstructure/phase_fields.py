"""Phases that meet along smooth walls: Gaussian random fields compete for every point, and curvature rounds the winner.

Phase k holds the points where field k plus an offset is the largest. One offset per phase sets the volume fractions;
walls of three phases meet in lines at finite angles, as in a sintered body, and every pair of phases is in contact. For
two phases this is a field cut at a level. Close kin: the pluri-Gaussian electrodes of Marmet et al. (Energy Adv. 2023,
d3ya00332a), where one field cuts the other and walls meet at T-junctions.

The fields live on a grid whose spacing is set by the features in µm and never by the voxels, and are interpolated at
the voxel centres: the same box at another voxel size is the same structure.
"""

from __future__ import annotations

from math import ceil, inf, pi, sqrt

import numpy as np
from scipy import fft
from scipy.ndimage import gaussian_filter, label
from scipy.optimize import root
from scipy.special import kv, ndtr

_LEVELS = np.linspace(-9, 9, 1801)
_DENSITY = np.exp(-(_LEVELS**2) / 2) / sqrt(2 * pi)
_NODES = 2.4  # grid nodes per correlation length: a Gaussian spectrum has fallen by exp(-28) at their Nyquist frequency
_STEP = 1.4  # [nodes] width of one coarsening step; below about one node the walls are pinned to the grid
_OVERSHOOT = 0.02  # of the walls at the start: within this the asked share is met
_SPREAD = 4.0  # lengths of the fields are kept within this factor of each other
_SAMPLE = 4_000_000  # voxels that are ranked in a large volume
_SLAB = 8_000_000  # voxels that are interpolated at once


def theoretical_offsets(fractions: np.ndarray) -> np.ndarray:
    """Offsets at which independent standard normal fields win these shares of the points; the last one is 0."""

    def shares(free):
        b = np.append(free, 0.0)
        above = [ndtr(_LEVELS - o) for o in b]
        return [
            np.trapezoid(_density(b[k]) * np.prod(above[:k] + above[k + 1 :], axis=0), _LEVELS) - fractions[k]
            for k in range(len(b) - 1)
        ]

    return np.append(root(shares, np.zeros(len(fractions) - 1)).x, 0.0)


def correlation_lengths(fractions: np.ndarray, chords: np.ndarray) -> np.ndarray:
    """Correlation lengths of the fields whose phases have these mean chords.

    A line crosses walls of the phases i and j sqrt(2/π)·sqrt(1/l_i² + 1/l_j²)·D_ij times per length, where D_ij is the
    density of the event that both are equal and above all others (Rice 1945, for the difference of two fields), and
    the mean chord of a phase is 2·fraction / (its wall crossings per length).

    Three chords need not belong to any three lengths. The lengths are then the nearest, within a factor of 4 of each
    other, that keep the number of walls.

    Args:
        fractions: 2 or 3 volume fractions that sum to 1.
        chords: as many mean chord lengths.

    Returns:
        as many lengths in the unit of the chords, l = 1/sqrt(−C''(0)).

    Raises:
        ValueError: one phase has more wall than the others together.
    """
    offsets = theoretical_offsets(fractions)
    walls = 2 * fractions / chords  # crossings per length of each phase's surface
    if len(fractions) == 2:
        density = np.trapezoid(_density(offsets[0]) * _density(offsets[1]), _LEVELS)
        squared = (walls.mean() / density) ** 2 * pi / 2
        return np.full(2, sqrt(2 / squared))
    if 2 * walls.max() >= walls.sum() * (1 - 1e-6):
        k = int(walls.argmax())
        raise ValueError(
            f"phase {k} of fraction {fractions[k]:.3g} and size {chords[k]:.3g} has more surface than the other two "
            f"together, so nothing can lie on the other side of it; its size must be above "
            f"{2 * fractions[k] / (walls.sum() - walls[k]):.3g}"
        )
    pairs = {}
    for i, j, m in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
        density = np.trapezoid(_density(offsets[i]) * _density(offsets[j]) * ndtr(_LEVELS - offsets[m]), _LEVELS)
        pairs[i, j] = density, ((walls[i] + walls[j] - walls[m]) / 2 / density) ** 2 * pi / 2
    q01, q02, q12 = (pairs[p][1] for p in ((0, 1), (0, 2), (1, 2)))
    curvature = np.array([q01 + q02 - q12, q01 + q12 - q02, q02 + q12 - q01]) / 2
    curvature = np.maximum(curvature, curvature.max() / _SPREAD**2)
    made = sum(sqrt(2 / pi) * sqrt(curvature[i] + curvature[j]) * d for (i, j), (d, _) in pairs.items())
    return made / (walls.sum() / 2) / np.sqrt(curvature)


def gaussian_field(
    nodes: tuple[int, ...],
    spacing: tuple[float, ...],
    length: float,
    heterogeneity: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Periodic Gaussian random field of mean 0 and variance 1.

    Its covariance is (1 + h·r²/(2l²))^(−1/h) (Cauchy class; Gneiting and Schlather 2004), exp(−r²/(2l²)) for h = 0:
    the curvature at 0, and with it the amount of wall, depends on l alone, and h adds correlation at a distance, so
    that coarse and fine regions lie side by side.

    Args:
        nodes: grid nodes along each axis.
        spacing, length: distance of two nodes along each axis, and l, in one unit.
        heterogeneity: h, from 0 to 2.
        rng: source of the white noise.

    Returns:
        float32 array of ``nodes``.
    """
    noise = rng.standard_normal(nodes, dtype=np.float32)
    spectrum = fft.rfftn(noise)
    spectrum *= np.sqrt(_cauchy_spectrum(_wave_number(nodes, spacing) * length, heterogeneity, len(nodes)))
    field = fft.irfftn(spectrum, nodes)
    field -= field.mean()
    field /= max(float(field.std()), 1e-12)
    return field


def grid(
    box: tuple[float, ...], length: float, per_length: float = _NODES
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Nodes and spacing of a periodic grid for fields whose shortest correlation length is ``length``.

    The number of nodes follows from the box in µm; a rounding error in it does not change that number.
    """
    nodes = tuple(fft.next_fast_len(max(ceil(edge * per_length / length - 1e-6), 4), real=True) for edge in box)
    return nodes, tuple(edge / n for edge, n in zip(box, nodes, strict=True))


def rank_offsets(fields: list[np.ndarray], fractions: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Offsets for which each phase wins its fraction of the points, by ranks, one phase after the other.

    Phase k takes the points where its lead over the best other one is largest, as many as its fraction asks; that is
    coordinate descent on a convex function (semi-discrete optimal transport), which has one minimum.
    """
    offsets = np.array(start, float)
    flat = [f.ravel() for f in fields]
    for _ in range(60):
        worst = 0.0
        for k in range(len(flat)):
            lead = flat[k] - _best_other(flat, offsets, k)
            at = min(max(round((1 - fractions[k]) * lead.size), 0), lead.size - 1)
            share_before = float((lead + np.float32(offsets[k]) > 0).mean())
            worst = max(worst, abs(share_before - fractions[k]))
            if fractions[k] > 0:
                offsets[k] = -float(np.partition(lead, at)[at]) + 1e-9
        if worst < 5e-5:
            break
    return offsets


def grade(fields: list[np.ndarray], fractions: np.ndarray, gradient: float, axis: int) -> None:
    """Shift the field of phase 0, in place, so that its share rises linearly along an axis.

    The shift is read off the distribution of its lead over the others, which is taken to be the same all over the box.
    The box is no longer periodic along the axis.

    Args:
        fields, fractions: as for ``rank_offsets``.
        gradient: (share at the far end − at the near end) / mean.
        axis: of the arrays.
    """
    if not gradient:
        return
    offsets = _node_offsets(fields, fractions)
    stride = ceil((fields[0].size / 1e6) ** (1 / fields[0].ndim))
    flat = [f[(slice(None, None, stride),) * f.ndim].ravel() for f in fields]
    lead = flat[0] + np.float32(offsets[0]) - _best_other(flat, offsets, 0)
    n = fields[0].shape[axis]
    share = fractions[0] * (1 + gradient * (np.arange(n) / n - 0.5))  # node 0 lies on the corner
    shift = -np.quantile(lead, 1 - share).astype(np.float32)
    fields[0] += np.expand_dims(shift, [a for a in range(fields[0].ndim) if a != axis % fields[0].ndim])


def coarsen(fields: list[np.ndarray], fractions: np.ndarray, share: float) -> tuple[list[np.ndarray], float]:
    """Let curvature flow remove a share of the walls at constant volume fractions.

    Threshold dynamics (Merriman, Bence and Osher 1994; Esedoğlu and Otto 2015, equal surface energies; volumes kept by
    offsets as in Jacobs, Merkurjev and Esedoğlu 2018): blur the indicator of every phase, let the largest one win.
    Indicators are anti-aliased, so that walls move by less than a node. Necks thin out, small grains vanish and large
    ones grow, as in sintering. Lengths are in nodes, so the flow is isotropic in the coordinates of the grid.

    Args:
        fields: one array per phase, as for ``rank_offsets``.
        fractions: volume fractions.
        share: of the walls to remove, 0 or more and below 1. A structure that is at rest keeps its walls.

    Returns:
        new fields; share of the walls that went.
    """
    offsets = _node_offsets(fields, fractions)
    before = walls = _wall_density(fields, offsets)
    gradient = max(float(np.mean([np.abs(np.diff(f, axis=0)).mean() for f in fields])) * sqrt(2), 1e-6)
    wanted = before * (1 - share)
    if share <= 0 or before == 0:
        return fields, 0.0
    for _ in range(100):
        covered, last = _coverage(fields, offsets, gradient)[:-1], walls
        narrower = 1.0
        for _ in range(3):
            width = _STEP * narrower
            fields = [gaussian_filter(w, width, mode="wrap", truncate=3) for w in covered]
            fields.append(1 - sum(fields))
            offsets = _node_offsets(fields, fractions)
            walls = _wall_density(fields, offsets)
            if walls >= wanted - _OVERSHOOT * before:
                break
            narrower *= sqrt((last - wanted) / (last - walls))  # walls move by width² times their curvature
        gradient = 2 / (sqrt(2 * pi) * width)  # of the lead across a flat wall after that blur
        if walls <= wanted + _OVERSHOOT * before:
            break
    return fields, 1 - walls / before


def node_labels(fields: list[np.ndarray], fractions: np.ndarray) -> np.ndarray:
    """uint8 winning phase at every node of the grid, for what shall not depend on the voxels."""
    return _winner(fields, _node_offsets(fields, fractions))


def voxelise(fields: list[np.ndarray], shape: tuple[int, ...], fractions: np.ndarray) -> np.ndarray:
    """Winning phase at every voxel centre, its fractions met by rank.

    Args:
        fields: one array per phase on a periodic grid that spans the box; node 0 lies on its corner.
        shape: voxels along each axis.
        fractions: volume fractions.

    Returns:
        uint8 labels of that shape.
    """
    weights = [_interpolation(n, f) for n, f in zip(shape, fields[0].shape, strict=True)]
    stride = max(1, ceil((np.prod(shape, dtype=float) / _SAMPLE) ** (1 / len(shape))))
    sample = [_interpolate(f, [w[::stride] for w in weights]) for f in fields]
    offsets = rank_offsets(sample, fractions, np.zeros(len(fields)))
    del sample
    labels = np.empty(shape, np.uint8)
    rows = max(1, _SLAB * shape[0] // int(np.prod(shape, dtype=float)))
    for first in range(0, shape[0], rows):
        slab = [weights[0][first : first + rows], *weights[1:]]
        labels[first : first + rows] = _winner([_interpolate(f, slab) for f in fields], offsets)
    return labels


def sample_field(field: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """float32 values of a periodic field at the voxel centres of a box that it spans."""
    return _interpolate(field, [_interpolation(n, m) for n, m in zip(shape, field.shape, strict=True)])


def mean_chords(labels: np.ndarray, k: int, voxel_size_um: float) -> list[float | None]:
    """[µm] Mean chord of a phase along each axis: twice its fraction by its wall crossings per length.

    Counting crossings has no bias at the border (Underwood 1970); None where the phase has no wall.
    """
    inside = labels == k
    chords = []
    for axis in range(labels.ndim):
        lines = np.moveaxis(inside, axis, 0)
        crossings = np.count_nonzero(lines[1:] != lines[:-1]) / lines[1:].size
        chords.append(round(float(2 * inside.mean() / crossings * voxel_size_um), 4) if crossings else None)
    return chords


def percolating_share(labels: np.ndarray, k: int) -> list[float | None]:
    """Share of a phase in clusters that connect both faces of the box, along each axis; None where it is absent.

    Voxels are connected through faces.
    """
    clusters, n = label(labels == k)
    if n == 0:
        return [None] * labels.ndim
    sizes = np.bincount(clusters.ravel(), minlength=n + 1)
    sizes[0] = 0
    shares = []
    for axis in range(labels.ndim):
        faces = [np.bincount(clusters.take(at, axis).ravel(), minlength=n + 1) > 0 for at in (0, -1)]
        shares.append(round(float(sizes[faces[0] & faces[1]].sum() / sizes.sum()), 5))
    return shares


def _density(offset: float) -> np.ndarray:
    return np.exp(-((_LEVELS - offset) ** 2) / 2) / sqrt(2 * pi)


def _wave_number(nodes: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    waves = [2 * pi * fft.fftfreq(n, d).astype(np.float32) for n, d in zip(nodes[:-1], spacing[:-1], strict=True)]
    waves.append(2 * pi * fft.rfftfreq(nodes[-1], spacing[-1]).astype(np.float32))
    return np.sqrt(sum(w**2 for w in np.ix_(*waves)))


def _cauchy_spectrum(k: np.ndarray, h: float, ndim: int) -> np.ndarray:
    """Fourier transform of the covariance at wave numbers in 1/l, up to a factor."""
    if h < 1e-3:
        return np.exp(-(k**2) / 2)
    order = 1 / h - ndim / 2
    x = np.linspace(1e-3, float(k.max()) * sqrt(2 / h) + 1e-3, 4096)  # tabulated: a Bessel function per node is slow
    table = np.where(x < 60, x**order * kv(order, np.minimum(x, 60)), 0)
    spectrum = np.interp(np.maximum(k * sqrt(2 / h), x[0]), x, table).astype(np.float32)
    return spectrum


def _node_offsets(fields: list[np.ndarray], fractions: np.ndarray) -> np.ndarray:
    stride = ceil((fields[0].size / 1e6) ** (1 / fields[0].ndim))
    sample = [f[(slice(None, None, stride),) * f.ndim] for f in fields]
    return rank_offsets(sample, fractions, np.zeros(len(fields)))


def _winner(fields: list[np.ndarray], offsets: np.ndarray) -> np.ndarray:
    """uint8 index of the largest field plus offset; argmax along a leading axis is ten times slower."""
    best = fields[0] + np.float32(offsets[0])
    won = np.zeros(best.shape, np.uint8)
    for k in range(1, len(fields)):
        other = fields[k] + np.float32(offsets[k])
        np.putmask(won, other > best, k)
        np.maximum(best, other, out=best)
    return won


def _best_other(flat: list[np.ndarray], offsets: np.ndarray, k: int) -> np.ndarray:
    best = np.full(flat[0].shape, -inf, np.float32)
    for j, f in enumerate(flat):
        if j != k:
            np.maximum(best, f + np.float32(offsets[j]), out=best)
    return best


def _coverage(fields: list[np.ndarray], offsets: np.ndarray, gradient: float) -> list[np.ndarray]:
    """Share of each node's cell that a phase fills, if its lead falls by ``gradient`` per node across the wall."""
    covered = []
    for k, f in enumerate(fields):
        lead = f + np.float32(offsets[k]) - _best_other(fields, offsets, k)
        lead *= np.float32(1 / gradient)
        lead += np.float32(0.5)
        covered.append(np.clip(lead, 0, 1, out=lead))
    total = np.maximum(sum(covered), np.float32(1e-3))
    return [c / total for c in covered]


def _wall_density(fields: list[np.ndarray], offsets: np.ndarray) -> float:
    """Wall crossings per step along the grid, mean over axes."""
    labels = _winner(fields, offsets)
    return float(np.mean([(np.diff(labels, axis=a) != 0).mean() for a in range(labels.ndim)]))


def _interpolation(n_voxels: int, n_nodes: int) -> np.ndarray:
    """(voxels, nodes) weights of periodic cubic convolution at voxel centres (Keys 1981, a = −1/2)."""
    at = (np.arange(n_voxels) + 0.5) / n_voxels * n_nodes
    first = np.floor(at).astype(int)
    t = at - first
    taps = np.stack(
        [
            ((-t + 2) * t - 1) * t / 2,
            ((3 * t - 5) * t * t + 2) / 2,
            ((-3 * t + 4) * t + 1) * t / 2,
            (t - 1) * t * t / 2,
        ]
    )
    weights = np.zeros((n_voxels, n_nodes), np.float32)
    for k in range(4):
        np.add.at(weights, (np.arange(n_voxels), (first + k - 1) % n_nodes), taps[k].astype(np.float32))
    return weights


def _interpolate(field: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """Weights of each axis applied one after the other, as matrix products."""
    for axis, w in enumerate(weights):
        field = np.moveaxis(np.tensordot(w, field, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(field)
