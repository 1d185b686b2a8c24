"""Measures of a grey CT image with its label map: contrast, noise, sharpness and shading.

They compare simulated scans with real ones. A grey value may have any unit and offset: every scalar that ``describe``
gives is the same after image → gain · image + offset. Labels of real scans are wrong by several pixels near an
interface, so grey values are read deep inside a phase, edges are found again in the image, and averages are medians.

An image is (x, y) or (x, y, z); a volume is measured slice by slice along z and the slices are pooled. A phase is a
label or a tuple of labels that count as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.special import erf

Phase = int | Sequence[int]

FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))  # Gaussian: full width at half maximum, 2.355 σ
RISE_PER_SIGMA = 2.5631  # error function: from 10 % to 90 % of the step, 2 · 1.2816 σ
_MAD_TO_SD = 1.4826  # Gaussian: standard deviation over the median absolute deviation
_FEWEST_PIXELS, _FEWEST_EDGES = 30, 12  # a median of fewer has no use
_BACKGROUND_DEPTH_PX = 1.0  # what fills the gaps between particles is thin


class NotMeasurableError(ValueError):
    """The image has too little of what a measure needs: the phase is missing, or too thin."""


class Edges(NamedTuple):
    """Edges that an error function fits, one entry each, and their mean aligned profile from ``a`` to ``b``."""

    width_px: np.ndarray  # full width at half maximum of the line spread function
    shift_px: np.ndarray  # of the edge in the image from the interface of the label, towards b
    step: np.ndarray  # grey value of a less that of b
    distance_px: np.ndarray  # from the edge, negative in a
    profile: np.ndarray  # mean grey value at those distances; NaN where no edge reaches


class NoisePower(NamedTuple):
    """Radial noise power spectrum; ``sum(power * area)`` is the variance of the noise."""

    frequency: np.ndarray  # [cycles/px] mean of each ring; the last rings are the corners beyond 0.5
    power: np.ndarray  # [grey² px²]
    area: np.ndarray  # [cycles²/px²] of each ring in the Fourier plane; sums to 1
    anisotropy: float  # mean power within 45° of the axis of the first index over that of the second; 1 is isotropic
    n_patches: int

    @property
    def variance(self) -> float:
        """[grey²] of the noise."""
        return float(self.power @ self.area)

    @property
    def centroid(self) -> float:
        """[cycles/px] mean frequency of the power; 0.383 for white noise (mean distance from a square's centre)."""
        return float((self.frequency * self.power) @ self.area / self.variance)

    @property
    def low_over_high(self) -> float:
        """Mean power below 0.25 cycles/px over that from 0.25 to 0.5; 1 for white noise, below 1 for sharp FBP."""
        # the lowest three rings hold what the detrended surface left, spread by the window
        low = (self.frequency < 0.25) & (np.arange(self.frequency.size) > 2)
        high = (self.frequency >= 0.25) & (self.frequency < 0.5)
        mean = [self.power[band] @ self.area[band] / self.area[band].sum() for band in (low, high)]
        return float(mean[0] / mean[1])


def _slices(image: np.ndarray, label: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Float64 and label of each slice along z, after a check of both."""
    image, label = np.asarray(image), np.asarray(label)
    if image.ndim not in (2, 3) or image.shape != label.shape:
        raise ValueError(f"image {image.shape} and label {label.shape} must have one shape, (x, y) or (x, y, z)")
    if label.dtype.kind not in "ui":
        raise ValueError(f"label is {label.dtype}; it must hold integers")
    if image.dtype.kind not in "uif" or not np.isfinite(image).all():
        raise ValueError("image must hold finite real numbers")
    for k in range(image.shape[2] if image.ndim == 3 else 1):
        at = (..., k) if image.ndim == 3 else ...
        yield image[at].astype(float), label[at]


def _is(label: np.ndarray, phase: Phase) -> np.ndarray:
    return np.isin(label, phase)


def _depth(mask: np.ndarray) -> np.ndarray:
    """[px] distance of each pixel's centre to the nearest one outside the mask, less half: to the interface."""
    if mask.all():
        return np.full(mask.shape, np.inf)
    return ndimage.distance_transform_edt(mask) - 0.5 * mask


def clean_label(label: np.ndarray, speck_px: int) -> np.ndarray:
    """The label without specks: 4-connected pieces of at most ``speck_px`` pixels become the nearest larger piece's.

    Hand-made labels have dust, and a single wrong pixel takes a disc of the erosion depth from an interior.
    """
    if label.ndim == 3:
        return np.stack([clean_label(label[..., k], speck_px) for k in range(label.shape[2])], axis=-1)
    dust = np.zeros(label.shape, bool)
    for phase in np.unique(label):
        piece, count = ndimage.label(label == phase)
        dust |= np.isin(piece, 1 + np.flatnonzero(np.bincount(piece.ravel(), minlength=count + 1)[1:] <= speck_px))
    if dust.all() or not dust.any():
        return label
    nearest = ndimage.distance_transform_edt(dust, return_distances=False, return_indices=True)
    return label[tuple(nearest)]


def _spread(values: np.ndarray) -> float:
    """Standard deviation of a Gaussian with the same median absolute deviation: blind to voids, cracks and zingers."""
    return float(_MAD_TO_SD * np.median(np.abs(values - np.median(values))))


def _high_pass(grey: np.ndarray, mask: np.ndarray, sigma_px: float) -> np.ndarray:
    """Grey value less its Gaussian mean over the pixels of the mask."""
    share = ndimage.gaussian_filter(mask.astype(float), sigma_px)
    mean = ndimage.gaussian_filter(np.where(mask, grey, 0.0), sigma_px) / np.maximum(share, 1e-12)
    return grey - mean


def level_and_noise(
    image: np.ndarray, label: np.ndarray, phase: Phase, *, depth_px: float = 3.0, high_pass_px: float | None = None
) -> tuple[float, float]:
    """Grey value and noise of a phase, from its interior.

    Args:
        image: (x, y[, z]), grey values.
        label: integers of that shape.
        phase: a label, or several that count as one.
        depth_px: [px] pixels nearer to an interface are left out.
        high_pass_px: [px] noise is the residual from a Gaussian mean of this σ over the interior, since structure
            inside a phase is not noise. The mean takes 3/(4π high_pass_px²) of white variance with it (0.3 % at 9
            px). None: the whole spread.

    Returns:
        median, and standard deviation as 1.4826 times the median absolute deviation.

    Raises:
        NotMeasurableError: the interior has fewer than 30 pixels.
    """
    values, residuals = [], []
    for grey, classes in _slices(image, label):
        inside = _depth(_is(classes, phase)) >= depth_px
        values.append(grey[inside])
        if high_pass_px is not None and inside.any():
            residuals.append(_high_pass(grey, inside, high_pass_px)[inside])
    pooled = np.concatenate(values)
    if pooled.size < _FEWEST_PIXELS:
        raise NotMeasurableError(f"phase {phase} has {pooled.size} pixels that are {depth_px:g} px from an interface")
    return float(np.median(pooled)), _spread(pooled if high_pass_px is None else np.concatenate(residuals))


def contrast_to_noise(
    image: np.ndarray,
    label: np.ndarray,
    a: Phase,
    b: Phase,
    *,
    depth_px: float = 3.0,
    high_pass_px: float | None = None,
) -> float:
    """Contrast-to-noise ratio (m_a − m_b) / √((s_a² + s_b²) / 2), signed, with m and s from ``level_and_noise``.

    With the whole spread (``high_pass_px=None``) it is the separability of two classes; with a high-passed noise it
    is the ratio that a dose changes. The definition is that of Timischl 2015, Scanning 37:54, with the median and the
    median absolute deviation for mean and standard deviation.

    Raises:
        NotMeasurableError: an interior is too small, or has no noise at all.
    """
    (level_a, noise_a), (level_b, noise_b) = (
        level_and_noise(image, label, phase, depth_px=depth_px, high_pass_px=high_pass_px) for phase in (a, b)
    )
    noise = np.sqrt((noise_a**2 + noise_b**2) / 2)
    if noise == 0:
        raise NotMeasurableError(f"phases {a} and {b} have no noise")
    return float((level_a - level_b) / noise)


def _profiles(grey: np.ndarray, label: np.ndarray, a: Phase, b: Phase, at_px: np.ndarray, most: int) -> np.ndarray:
    """Grey values along normals of the interface, from a to b, (edges, positions); each is a mean of 5 parallel ones.

    The mean is over 4 px along the interface: it brings the noise down and widens an edge of curvature radius R by
    less than (2 px)²/(2R). The normal is the gradient of the smoothed label, so that a ragged label does not turn it.
    """
    in_a, in_b = _is(label, a), _is(label, b)
    points = np.argwhere(in_a & ndimage.binary_dilation(in_b))
    reach = at_px[-1] + 2
    points = points[((points >= reach) & (points <= np.array(grey.shape) - 1 - reach)).all(1)]
    points = points[:: -(-len(points) // most) or 1]
    if not len(points):
        return np.empty((0, at_px.size))
    smooth = ndimage.gaussian_filter(in_a.astype(float), 3.0)
    normal = -np.stack([g[tuple(points.T)] for g in np.gradient(smooth)], axis=1)
    length = np.linalg.norm(normal, axis=1)
    points, normal = points[length > 1e-3], normal[length > 1e-3] / length[length > 1e-3, None]
    tangent = np.stack([-normal[:, 1], normal[:, 0]], axis=1)
    beside = np.arange(-2, 3)
    where = (
        points[:, :, None, None]
        + normal[:, :, None, None] * (at_px[:, None] + 0.5)  # the interface is half a pixel from the last one of a
        + tangent[:, :, None, None] * beside[None, None, None]
    )  # (edges, 2, positions, 5)
    values = ndimage.map_coordinates(grey, np.moveaxis(where, 1, 0), order=3, mode="nearest")
    return values.mean(-1)


def _fit(profiles: np.ndarray, at_px: np.ndarray, max_shift_px: float) -> np.ndarray:
    """σ, position, step and R² (4, edges) of the error function nearest to each profile, by a search over templates.

    The search has no start to choose and no failure; σ is refined by a parabola through the best three. σ is NaN at
    the ends of its range, where the profile is too short or the edge is below the sampling.
    """
    shifts = np.arange(-max_shift_px, max_shift_px + 0.01, 0.25)
    sigmas = np.geomspace(0.2, at_px[-1] / 2, 40)
    templates = erf((at_px - shifts[:, None, None]) / (np.sqrt(2) * sigmas[:, None]))  # (shifts, sigmas, positions)
    templates -= templates.mean(-1, keepdims=True)
    norm = np.linalg.norm(templates, axis=-1, keepdims=True)
    centred = profiles - profiles.mean(-1, keepdims=True)
    score = centred @ (templates / norm).reshape(-1, at_px.size).T  # (edges, shifts · sigmas)
    best = np.abs(score).argmax(1)
    i, j = np.divmod(best, sigmas.size)
    rows = np.arange(len(profiles))
    step = -2 * score[rows, best] / norm.ravel()[best]
    r2 = score[rows, best] ** 2 / np.maximum((centred**2).sum(-1), 1e-300)
    cube = np.abs(score).reshape(len(profiles), shifts.size, sigmas.size)
    inner = np.clip(j, 1, sigmas.size - 2)
    low, mid, high = (cube[rows, i, inner + k] for k in (-1, 0, 1))
    curve = low - 2 * mid + high
    offset = np.where(curve < 0, (low - high) / np.where(curve < 0, 2 * curve, 1), 0.0)
    sigma = sigmas[inner] * (sigmas[1] / sigmas[0]) ** np.clip(offset, -1, 1)
    return np.stack([np.where(inner == j, sigma, np.nan), shifts[i], step, r2])


def fit_edges(
    image: np.ndarray,
    label: np.ndarray,
    a: Phase,
    b: Phase,
    *,
    reach_px: float = 10.0,
    max_shift_px: float = 4.0,
    least_r2: float = 0.8,
    most_edges: int = 2000,
) -> Edges:
    """Error functions fitted to the grey value along the normals of the interface between two phases.

    Position, width and both levels of each profile are free, so a label that is wrong by up to ``max_shift_px``
    moves the fit and does not widen it. The largest width is that of σ = ``reach_px``/2: where edges have long
    tails the median grows with the reach, so compare widths of one reach. Below σ = 1 px the sampling adds up to
    5 %. Kept are the profiles with R² ≥ ``least_r2`` and a step of the sign of the contrast between the phases, at
    least half as high: this leaves out gaps narrower than the profile, interfaces that only the label has, and
    edges within ``reach_px`` of the border. A step of contrast-to-noise c in white noise has R² near 1/(1 +
    0.8/c²), since 5 profiles are averaged: below c = 2 the limit needs lowering. White noise also sharpens some
    fits: the median width is 4 % low at c = 5 and 12 % at c = 3, the lowest tenth 6 % at c = 20 and a third at
    c = 5.

    Args:
        image, label: as in ``level_and_noise``.
        a, b: the phases on either side.
        reach_px: [px] half the length of a profile.
        max_shift_px: [px] largest distance of the edge from the label's interface.
        least_r2: smallest share of the profile's variance that the fit explains.
        most_edges: profiles taken in a slice, evenly along the list of interface pixels.

    Raises:
        NotMeasurableError: fewer than 12 profiles are kept.
    """
    at_px = np.arange(-reach_px, reach_px + 0.01, 0.5)
    found = [_profiles(grey, classes, a, b, at_px, most_edges) for grey, classes in _slices(image, label)]
    profiles = np.concatenate(found)
    if len(profiles) < _FEWEST_EDGES:
        raise NotMeasurableError(f"phases {a} and {b} share {len(profiles)} interface pixels away from the border")
    # slice by slice: the scores of a whole volume would fill the memory
    sigma, shift, step, r2 = np.concatenate([_fit(some, at_px, max_shift_px) for some in found], axis=1)
    contrast = float(np.median(image[_is(label, a)])) - float(np.median(image[_is(label, b)]))
    good = (r2 >= least_r2) & np.isfinite(sigma) & (step * np.sign(contrast) >= abs(contrast) / 2)
    if good.sum() < _FEWEST_EDGES:
        raise NotMeasurableError(f"{good.sum()} of {len(profiles)} profiles from phase {a} to {b} look like an edge")
    shift, profiles = shift[good], profiles[good]
    aligned = np.stack([np.interp(at_px + s, at_px, p, np.nan, np.nan) for s, p in zip(shift, profiles, strict=True)])
    inside = np.isfinite(aligned).sum(0)
    mean = np.where(inside > 0, np.nansum(aligned, 0) / np.maximum(inside, 1), np.nan)
    return Edges(FWHM_PER_SIGMA * sigma[good], shift, step[good], at_px, mean)


def edge_width(image: np.ndarray, label: np.ndarray, a: Phase, b: Phase, *, quantile: float = 0.5, **options) -> float:
    """[px] full width at half maximum of the line spread function across an interface; a quantile over its edges.

    It is 2.355 σ of the fitted error function; its rise from 10 to 90 % is 1.0883 times that. It includes the pixel:
    an edge blurred with σ and integrated over pixels has √(σ² + 1/12). In a slice of a volume, surfaces
    oblique to the slice look wider; ``quantile=0.1`` is nearer to the resolution.

    Args:
        image, label, a, b, options: as in ``fit_edges``.
        quantile: of the widths, in [0, 1].

    Raises:
        NotMeasurableError: as in ``fit_edges``.
    """
    return float(np.quantile(fit_edges(image, label, a, b, **options).width_px, quantile))


def _patches(grey: np.ndarray, inside: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Square patches that lie wholly in the mask, half overlapping."""
    corners = np.pad(np.cumsum(np.cumsum(inside, 0), 1), ((1, 0), (1, 0)))
    filled = corners[size:, size:] - corners[:-size, size:] - corners[size:, :-size] + corners[:-size, :-size]
    step = size // 2
    for x, y in np.argwhere(filled[::step, ::step] == size**2) * step:
        yield grey[x : x + size, y : y + size]


def noise_power_spectrum(
    image: np.ndarray, label: np.ndarray, phase: Phase, *, patch_px: int = 32, depth_px: float = 3.0
) -> NoisePower:
    """Radially averaged noise power spectrum of the interior of a phase.

    Half-overlapping square patches are freed of a quadratic surface (shading is not noise), multiplied by a Hann
    window w and transformed: NPS(u, v) = |DFT(w·n)|² / Σw², in grey² px², whose sum over the patch_px² frequencies,
    each 1/patch_px² of the plane, is the variance (ICRU Report 87; Siewerdsen et al. 2002, Med. Phys. 29:2655).
    Patches with more than twice the median variance hold a crack or a void and are left out. Fitting the surface
    takes 12.7/patch_px² times the power at the lowest frequencies from the variance: 1.2 % of white noise at 32 px.

    Args:
        image, label, phase, depth_px: as in ``level_and_noise``.
        patch_px: [px] edge of a patch, even; lower it when a phase has no room.

    Raises:
        NotMeasurableError: no patch fits.
    """
    if type(patch_px) is not int or patch_px < 8 or patch_px % 2:
        raise ValueError(f"patch_px={patch_px!r} must be an even integer of at least 8")
    found = [
        patch
        for grey, classes in _slices(image, label)
        for patch in _patches(grey, _depth(_is(classes, phase)) >= depth_px, patch_px)
    ]
    if not found:
        raise NotMeasurableError(f"phase {phase} has no room for a patch of {patch_px} px, {depth_px:g} px inside")
    values = np.stack(found).reshape(len(found), -1)
    hann = np.sin(np.pi * (np.arange(patch_px) + 0.5) / patch_px) ** 2
    window = np.outer(hann, hann).ravel()
    at = np.linspace(-1, 1, patch_px)
    surface = np.stack([np.outer(at**i, at**j).ravel() * window for i in range(3) for j in range(3 - i)], axis=1)
    basis, _ = np.linalg.qr(surface)  # the fit weighs the pixels as the transform does
    noise = values * window
    noise -= noise @ basis @ basis.T
    variance = (noise**2).sum(1)
    noise = noise[variance <= 2 * np.median(variance)].reshape(-1, patch_px, patch_px)
    power = (np.abs(np.fft.fft2(noise)) ** 2).mean(0) / (window**2).sum()
    u, v = np.meshgrid(np.fft.fftfreq(patch_px), np.fft.fftfreq(patch_px), indexing="ij")
    frequency = np.hypot(u, v)
    ring = np.rint(frequency * patch_px).astype(int).ravel()
    count = np.bincount(ring)
    first, second = (power[(p > q) & (frequency < 0.5)].mean() for p, q in ((abs(u), abs(v)), (abs(v), abs(u))))
    return NoisePower(
        np.bincount(ring, frequency.ravel()) / count,
        np.bincount(ring, power.ravel()) / count,
        count / patch_px**2,
        float(first / second) if second > 0 else float("nan"),
        len(noise),
    )


def grey_by_distance(
    image: np.ndarray, label: np.ndarray, a: Phase, b: Phase, reach_px: int = 30
) -> tuple[np.ndarray, np.ndarray]:
    """Median grey value of the pixels of two phases at each whole distance from ``a``'s interface.

    Returns:
        [px] distances in steps of 1, negative in ``a``, and the median at each, NaN where it has under 30 pixels.
        Cupping bends the side of a dense phase, a phase-contrast halo bends both.
    """
    distances, values = [], []
    for grey, classes in _slices(image, label):
        in_a, in_b = _is(classes, a), _is(classes, b)
        far = np.where(in_a, -_depth(in_a), _depth(~in_a))[in_a | in_b]
        near = np.isfinite(far) & (np.abs(far) < reach_px)
        distances.append(np.floor(far[near]).astype(int) + reach_px)
        values.append(grey[in_a | in_b][near])
    which, grey = np.concatenate(distances), np.concatenate(values)
    median = [
        np.median(grey[which == k]) if (which == k).sum() >= _FEWEST_PIXELS else np.nan for k in range(2 * reach_px)
    ]
    return np.arange(-reach_px, reach_px) + 0.5, np.array(median)


def _particles(image, label, phase: Phase, depth_px: float, least_radius_px: float) -> list[tuple[np.ndarray, ...]]:
    """Depth and grey value of the pixels of each particle: a piece of the eroded phase that is deep enough."""
    found = []
    for grey, classes in _slices(image, label):
        depth = _depth(_is(classes, phase))
        piece, count = ndimage.label(depth >= depth_px)
        if count and np.isfinite(depth).all():
            radius = ndimage.maximum(depth, piece, np.arange(1, count + 1))
            for k in 1 + np.flatnonzero(radius >= least_radius_px):
                at = piece == k
                found.append((depth[at], grey[at]))
    if not found:
        raise NotMeasurableError(f"phase {phase} has no particle with {least_radius_px:g} px to its interface")
    return found


def cupping(
    image: np.ndarray,
    label: np.ndarray,
    phase: Phase,
    background: Phase,
    *,
    depth_px: float = 5.0,
    least_radius_px: float = 15.0,
) -> float:
    """Cupping of the particles, 1 − centre/rim, with the grey value of the background as zero; median over particles.

    A particle is a connected piece of the phase eroded by ``depth_px``, with R px from its deepest pixel to the
    interface. Its rim is the outer third of the depths from ``depth_px`` to R, its centre the inner third, each by its
    median. Positive where the centre is darker than the rim (as by beam hardening), for a phase brighter than its
    background or darker.

    Args:
        image, label, phase: as in ``level_and_noise``.
        depth_px: [px] as there; take more than the blur reaches, or the rim is darker by it.
        background: the phase whose grey value is zero, e.g. the pore.
        least_radius_px: [px] smallest R of a particle.

    Raises:
        NotMeasurableError: no particle is large enough, or the background has no interior.
    """
    zero, _ = level_and_noise(image, label, background, depth_px=_BACKGROUND_DEPTH_PX)
    drops = []
    for depth, grey in _particles(image, label, phase, depth_px, least_radius_px):
        third = (depth.max() - depth_px) / 3
        rim = np.median(grey[depth <= depth_px + third]) - zero
        centre = np.median(grey[depth >= depth.max() - third]) - zero
        if rim:
            drops.append(1 - centre / rim)
    if not drops:
        raise NotMeasurableError(f"phase {phase} is as grey as its background {background}")
    return float(np.median(drops))


def field_cupping(
    image: np.ndarray, label: np.ndarray, phase: Phase, background: Phase, *, depth_px: float = 3.0, rings: int = 12
) -> float:
    """Cupping of the whole field, 1 − centre/rim of one phase, with the grey value of the background as zero.

    A parabola in the distance r to the image's centre is fitted to the medians of the phase's interior in rings of
    equal area out to half the shorter side, R; each weighs as many as it has pixels. Centre is the parabola's value at
    0, rim that at R. The background's level is that of the whole field.

    Raises:
        NotMeasurableError: fewer than three rings hold 30 pixels.
    """
    zero, _ = level_and_noise(image, label, background, depth_px=_BACKGROUND_DEPTH_PX)
    share, values = [], []
    for grey, classes in _slices(image, label):
        x, y = np.ogrid[: grey.shape[0], : grey.shape[1]]
        centre = (np.array(grey.shape) - 1) / 2
        square = ((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (min(grey.shape) / 2) ** 2
        inside = (_depth(_is(classes, phase)) >= depth_px) & (square < 1)
        share.append(square[inside])
        values.append(grey[inside])
    square, grey = np.concatenate(share), np.concatenate(values)
    ring = np.floor(square * rings).astype(int)
    full = [k for k in range(rings) if (ring == k).sum() >= _FEWEST_PIXELS]
    if len(full) < 3:
        raise NotMeasurableError(f"phase {phase} fills {len(full)} of {rings} rings about the centre")
    at, level, weight = np.array(
        [(square[ring == k].mean(), np.median(grey[ring == k]), (ring == k).sum()) for k in full]
    ).T
    slope, middle = np.polyfit(at, level - zero, 1, w=np.sqrt(weight))
    return float(slope / (middle + slope)) if middle + slope else float("nan")


def particle_spread(
    image: np.ndarray,
    label: np.ndarray,
    phase: Phase,
    background: Phase,
    *,
    depth_px: float = 5.0,
    least_radius_px: float = 10.0,
) -> float:
    """Spread of the particles' median grey values over the contrast with the background: shading between particles.

    Raises:
        NotMeasurableError: fewer than three particles.
    """
    zero, _ = level_and_noise(image, label, background, depth_px=_BACKGROUND_DEPTH_PX)
    level = np.array([np.median(grey) for _, grey in _particles(image, label, phase, depth_px, least_radius_px)])
    if level.size < 3:
        raise NotMeasurableError(f"phase {phase} has {level.size} particles")
    return _spread(level) / abs(float(np.median(level)) - zero)


def describe(
    image: np.ndarray,
    label: np.ndarray,
    phase: Phase,
    background: Phase,
    *,
    depth_px: float = 3.0,
    high_pass_px: float = 9.0,
    patch_px: int = 32,
    speck_px: int = 0,
) -> dict[str, float | None]:
    """All scalars of a phase against its background; None where the image has too little to measure one.

    Args:
        image: (x, y[, z]), grey values in any unit.
        label: integers of that shape.
        phase: the dense phase: its particles are measured.
        background: what surrounds it; a tuple joins several labels.
        depth_px, high_pass_px, patch_px: as in the functions above.
        speck_px: pieces of the label of at most this many pixels are removed first.

    Returns:
        ``separability`` and ``contrast_to_noise``: ``contrast_to_noise`` of the whole spread, and of the high-passed
        noise; ``noise_over_contrast``: noise of the phase by its power spectrum over the contrast;
        ``edge_fwhm_px``, ``edge_fwhm_sharp_px``: median and lowest tenth; ``label_error_px``: median distance of an
        edge from the label's interface; ``noise_centroid`` [cycles/px], ``noise_low_over_high``,
        ``noise_anisotropy``: of the phase; ``cupping``, ``field_cupping``, ``particle_spread``: relative to the
        contrast, at their own depths. All are plain floats and go into JSON.
    """
    if speck_px:
        label = clean_label(label, speck_px)
    next(_slices(image, label))  # input that is wrong is an error, not a None
    both = {"image": image, "label": label}
    scalars: dict[str, float | None] = {}

    def put(names: str, measure) -> None:
        names = names.split()
        try:
            values = np.atleast_1d(measure()).tolist()
        except NotMeasurableError:
            values = [None] * len(names)
        scalars.update({n: v if v is None or np.isfinite(v) else None for n, v in zip(names, values, strict=True)})

    def noise():
        power = noise_power_spectrum(**both, phase=phase, patch_px=patch_px, depth_px=depth_px)
        level, zero = (
            level_and_noise(**both, phase=p, depth_px=d)[0]
            for p, d in ((phase, depth_px), (background, _BACKGROUND_DEPTH_PX))
        )
        contrast = abs(level - zero)
        if not np.sqrt(power.variance) > 1e-7 * contrast > 0:  # what rounding leaves is no noise
            raise NotMeasurableError(f"phase {phase} has no noise, or no contrast with {background}")
        return np.sqrt(power.variance) / contrast, power.centroid, power.low_over_high, power.anisotropy

    def edges():
        found = fit_edges(**both, a=phase, b=background)
        return *np.quantile(found.width_px, [0.5, 0.1]), np.median(np.abs(found.shift_px))

    pair = {"a": phase, "b": background, "depth_px": depth_px}
    shade = {"phase": phase, "background": background}  # with its own depth: blur must not pass for shading
    put("separability", lambda: contrast_to_noise(**both, **pair))
    put("contrast_to_noise", lambda: contrast_to_noise(**both, **pair, high_pass_px=high_pass_px))
    put("edge_fwhm_px edge_fwhm_sharp_px label_error_px", edges)
    put("noise_over_contrast noise_centroid noise_low_over_high noise_anisotropy", noise)
    put("cupping", lambda: cupping(**both, **shade))
    put("field_cupping", lambda: field_cupping(**both, **shade))
    put("particle_spread", lambda: particle_spread(**both, **shade))
    return scalars
