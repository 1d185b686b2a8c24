"""Smooth random fields whose feature size is a length in µm, and exact volume fractions by rank."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

from data_gen.microstructure.kernels import interpolate

TILE_NODES = 64
_TILE_SD = 2.0  # [nodes] of the Gaussian that smooths the tile
TILE_CORRELATION = _TILE_SD * 2**0.5  # [nodes] white noise after a Gaussian of sd s: covariance exp(−d²/4s²)
_NODES_PER_SD = 1.5


@lru_cache(1)
def noise_tile() -> np.ndarray:
    """The periodic cube of smooth noise that roughens surfaces, the same in every process.

    Returns:
        (64, 64, 64) float32, mean 0 and sd 1, covariance exp(−d² / 2ℓ²) with ℓ = ``TILE_CORRELATION`` nodes.
    """
    white = np.random.default_rng(20220215).standard_normal((TILE_NODES,) * 3)
    tile = gaussian_filter(white, _TILE_SD, mode="wrap")
    tile = ((tile - tile.mean()) / tile.std()).astype(np.float32)
    tile.setflags(write=False)
    return tile


def smooth_field(
    shape: tuple[int, ...], voxel_size_um: float, correlation_um: float | Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """A Gaussian random field, mean 0 and sd 1, with covariance exp(−d² / 2ℓ²).

    It is drawn on nodes a third to a half of ℓ apart and interpolated: the same generator gives the same field on a
    coarser or a finer grid over the same box. A length that voxels cannot show is drawn as 1.06 of them:
    the nodes are half a voxel apart or more.

    Args:
        shape: voxels along each axis, 2 or 3 of them.
        voxel_size_um: [µm] edge of a voxel.
        correlation_um: [µm] ℓ, one for all axes or one for each.
        rng: source of the field.

    Returns:
        float32 array of that shape.
    """
    ndim = len(shape)
    smoothing = np.broadcast_to(np.asarray(correlation_um, float), ndim) / 2**0.5
    smoothing = np.maximum(smoothing, _NODES_PER_SD * voxel_size_um / 2)
    spacing = smoothing / _NODES_PER_SD
    nodes = [int(np.ceil(round(n * voxel_size_um / s, 6))) + 2 for n, s in zip(shape, spacing, strict=True)]
    # wrap: the same variance at the edge as inside
    lattice = gaussian_filter(rng.standard_normal(nodes, dtype=np.float32), _NODES_PER_SD, mode="wrap", truncate=3)
    gain = 1 / (2 * _NODES_PER_SD * np.pi**0.5) ** (ndim / 2)  # sd of white noise after the filter
    field = interpolate(_in_3d(lattice), tuple(shape) + (1,) * (3 - ndim), _in_3d(voxel_size_um / spacing))
    return (field / np.float32(gain)).reshape(shape)


def _in_3d(array: np.ndarray) -> np.ndarray:
    """A lattice with its missing axes added; a vector of lengths padded with 1."""
    if array.ndim == 1:
        return np.append(array, np.ones(3 - len(array)))
    return np.ascontiguousarray(array.reshape(array.shape + (1,) * (3 - array.ndim)))


def rank_threshold(values: np.ndarray, count: int) -> float:
    """The value that ``count`` of the values do not exceed: ``values <= threshold`` is exact but for ties.

    Args:
        values: 1D float array; it is reordered in place.
        count: 0 to its length.

    Returns:
        the threshold; −inf where count is 0.
    """
    if count <= 0:
        return -np.inf
    values.partition(count - 1)
    return float(values[count - 1])
