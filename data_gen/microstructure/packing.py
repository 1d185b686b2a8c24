"""Packing of ellipsoids, and the choice of what a field of view shows of a pack."""

from __future__ import annotations

from math import prod

import numpy as np

from data_gen.microstructure.kernels import near_pairs, push_apart
from data_gen.microstructure.particle_list import ParticleList

_COARSE = {2: 128, 3: 48}  # voxels along the longest edge of a box whose windows are compared


def pack_ellipsoids(
    box: np.ndarray,
    semi_axes: np.ndarray,
    rotations: np.ndarray,
    rng: np.random.Generator,
    tolerance: float = 0.02,
    max_steps: int = 200,
) -> tuple[np.ndarray, float]:
    """Centres of ellipsoids in a periodic box, pushed apart until they hardly overlap (force-biased packing).

    Every overlapping pair moves along its contact normal, the smaller one further; orientations stay.

    Args:
        box: (ndim,) edges, in the unit of the semi-axes.
        semi_axes: (n, ndim).
        rotations: (n, ndim, ndim) orthogonal, row k the direction of semi-axis k.
        rng: source of the start.
        tolerance: overlap that is left alone, as a share: both ellipsoids shrunk by it would be apart.
        max_steps: it ends then at the latest.

    Returns:
        (n, ndim) centres inside the box, and the deepest overlap that is left, as a share.
    """
    n, ndim = semi_axes.shape
    edges = np.append(box, [1e9] * (3 - ndim)).astype(float)
    centres = np.zeros((n, 3))
    centres[:, :ndim] = rng.uniform(0, box, (n, ndim))
    matrix = np.zeros((n, 3, 3))
    matrix[:, :ndim, :ndim] = np.einsum("nki,nk,nkj->nij", rotations, semi_axes**2, rotations)
    if ndim == 2:
        matrix[:, 2, 2] = semi_axes.min(1) ** 2
    packed = np.ascontiguousarray(
        matrix[:, [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]  # xx, yy, zz, xy, xz, yz
    )
    outer = semi_axes.max(1)
    inverse_mass = 1 / np.prod(semi_axes, axis=1)
    skin = 0.5 * float(np.median(outer))
    stale, pairs, worst = np.inf, None, 0.0
    for _ in range(max_steps):
        if stale > skin / 2:
            pairs, stale = near_pairs(centres, outer, edges, skin, np.argsort(centres[:, 0], kind="stable")), 0.0
        moves = np.zeros_like(centres)
        worst = push_apart(pairs, centres, edges, packed, outer, inverse_mass, tolerance, moves)
        if worst <= tolerance:
            break
        centres += moves
        centres[:, :ndim] %= box
        stale += float(np.sqrt((moves**2).sum(1).max()))
    return centres[:, :ndim], worst


def field_of_view(
    particles: ParticleList,
    box_um: np.ndarray,
    fraction: float,
    rng: np.random.Generator,
    gradient: float = 0.0,
    axis: int = -1,
) -> ParticleList:
    """A window of a larger periodic pack: one that shows about the fraction asked, or one that is thinned out.

    Args:
        particles, box_um, fraction, rng: as in ``choose_window``.
        gradient, axis: as in ``thin_out``; with a gradient the pack has to be denser than the fraction, by
            1 + |gradient| / 2.
    """
    if not gradient:
        return choose_window(particles, box_um, fraction, rng)
    window = particles.window((particles.box_um - box_um) / 2, box_um)
    return thin_out(window, gradient, axis, 1 / (1 + abs(gradient) / 2), rng)


def choose_window(
    particles: ParticleList, box_um: np.ndarray, fraction: float, rng: np.random.Generator
) -> ParticleList:
    """A field of view of a larger periodic pack that shows about the fraction asked.

    A window at random would show it only on average: a few large particles more or less change it by a tenth. Of
    all windows, one of the 2 % that come nearest is taken at random.

    Args:
        particles: a periodic pack.
        box_um: [µm] (ndim,) edges of the window, shorter than the pack's box.
        fraction: fraction of the window that the particles should fill.
        rng: source of the choice.
    """
    ndim = len(box_um)
    voxel = float(particles.box_um.max()) / _COARSE[ndim]
    shape = np.maximum((particles.box_um / voxel).round().astype(int), 4)
    # the coarse grid need not be cubic: stretch the box to whole voxels, which moves nothing by more than half of one
    grid = particles_on_grid(particles, voxel, shape)
    window = np.clip((box_um / voxel).round().astype(int), 1, shape)
    filled = _window_means(grid <= 0, window)
    misfit = np.abs(filled - fraction).ravel()
    best = np.argsort(misfit, kind="stable")[: max(1, misfit.size // 50)]
    at = np.array(np.unravel_index(best[rng.integers(len(best))], filled.shape))
    return particles.window(at * particles.box_um / shape, box_um)


def particles_on_grid(particles: ParticleList, voxel_size_um: float, shape: np.ndarray) -> np.ndarray:
    """Signed distances on a grid of about that voxel size; the list is stretched to a whole number of voxels."""
    stretch = shape * voxel_size_um / particles.box_um
    stretched = ParticleList(
        **{name: getattr(particles, name) for name in particles.__dataclass_fields__}
        | {"box_um": shape * voxel_size_um, "centres_um": particles.centres_um * stretch}
    )
    return stretched.nearest(voxel_size_um, voxel_size_um).first_um


def _window_means(mask: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Mean of a periodic mask over the window that starts at each voxel."""
    total = mask.astype(np.float64)
    for axis, width in enumerate(window):
        wrapped = np.concatenate([total, np.take(total, range(width), axis)], axis)
        sums = np.cumsum(wrapped, axis)
        sums = np.concatenate([np.zeros_like(np.take(sums, [0], axis)), sums], axis)
        n = mask.shape[axis]
        total = np.take(sums, range(width, width + n), axis) - np.take(sums, range(n), axis)
    return total / prod(window.tolist())


def thin_out(
    particles: ParticleList, gradient: float, axis: int, keep: float, rng: np.random.Generator
) -> ParticleList:
    """Take particles out at random such that the fraction rises linearly along an axis.

    Args:
        particles: particles in a box, of even density.
        gradient: (fraction at the far end − at the near end) / mean, −2 to 2.
        axis: of the box.
        keep: share of the volume that stays.
        rng: source of the choice.
    """
    at = np.clip(particles.centres_um[:, axis] / particles.box_um[axis], 0, 1) - 0.5
    weight = np.maximum(1 + gradient * at, 1e-3)
    order = np.argsort(rng.uniform(size=len(at)) / weight, kind="stable")
    volumes = np.prod(particles.semi_axes_um, axis=1)
    shown = np.all((particles.centres_um >= 0) & (particles.centres_um <= particles.box_um), axis=1)
    filled = np.cumsum((volumes * shown)[order])
    count = int(np.searchsorted(filled, keep * filled[-1])) + 1
    return particles.take(np.sort(order[:count]))
