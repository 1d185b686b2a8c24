"""Reconstruction: filtered back-projection (parallel, fan, FDK), ASTRA's SIRT and CGLS, ring filters, phase retrieval.

A recipe names one of ``FBP``, ``SIRT`` and ``CGLS``; each has ``reconstruct(sinogram, angles_rad, shape, distance)``.
Lengths are voxels and coordinates those of ``data_gen.ray_kernels``: the result is in the sinogram's values per voxel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import fft

from data_gen import projection
from data_gen.parameters import check_number
from data_gen.projection import FILTERS
from data_gen.ray_kernels import LANES

PADDINGS = ("zero", "edge")
RING_FILTERS = ("sorting", "filtering", "all")

_VIEWS = 16  # filtered at a time: with 16 slices of 768 samples 0.8 MB, which stays in the cache
_KEV_UM = 1.239841984e-3  # h c: wavelength [µm] times photon energy [keV]
_TAPER_RAD = np.deg2rad(10)  # least fall of the weights at the ends of a fan's scan (Noo et al., as below)


@dataclass(frozen=True)
class FBP:
    """Filtered back-projection: parallel beam, fan beam (one slice) or cone beam (FDK, several slices).

    Parallel: Kak & Slaney, Principles of Computerized Tomographic Imaging, 1988, section 3.3; fan: section 3.4.2; cone:
    Feldkamp, Davis & Kress, J. Opt. Soc. Am. A 1, 612 (1984).

    Rays that were measured twice count half each: opposite views of a parallel beam wherever they fall, so 180°, 360°
    and what lies between are all right; for a fan by the smooth weights of Noo et al. (``fan_weights``). What was never
    measured is taken as zero and not compensated: a limited angle keeps its streaks and loses grey value. FDK is exact
    in the mid-plane and approximate away from it.

    Args:
        filter_name: one of ``FILTERS``.
        padding: what lies beyond the detector: "zero" for a sample inside the field of view, "edge" (the outermost
            value) for one that sticks out: it removes the bright rim of local tomography, though not its grey offset.

    Raises:
        ValueError: an unknown filter or padding.
    """

    filter_name: str = "ram-lak"
    padding: str = "zero"

    def __post_init__(self):
        _check_name("filter_name", self.filter_name, FILTERS)
        _check_name("padding", self.padding, PADDINGS)

    def reconstruct(
        self,
        sinogram: np.ndarray,
        angles_rad: np.ndarray,
        shape: tuple[int, int, int],
        distance: float | None = None,
        progress: Callable = iter,
    ) -> np.ndarray:
        """Reconstruct a stack of slices.

        Args:
            sinogram: float32 (angles, detectors across, slices or detectors along), line integrals.
            angles_rad: [rad] (angles,); equally spaced for a fan or cone beam, any for a parallel one.
            shape: (x, y, slices) of the result.
            distance: [voxels] source to axis; None for a parallel beam. A single slice is a fan beam.
            progress: wraps the iterable of blocks, of slices or of views; e.g. tqdm.

        Returns:
            float32 of that shape, in the sinogram's values per voxel.

        Raises:
            ValueError: shapes that do not fit, a source inside the object.
        """
        angles = _check_scan(sinogram, angles_rad, shape, distance)
        if distance is not None:
            return self._cone(sinogram, angles, shape, float(distance), progress)
        weights = parallel_weights(angles)
        out = np.empty(shape, np.float32)
        for first in progress(range(0, shape[2], LANES)):
            part = sinogram[..., first : first + LANES]
            part = filter_views(part, self.filter_name, self.padding, weights)
            out[..., first : first + LANES] = projection.backproject(part, angles, (*shape[:2], part.shape[2]))
        return out

    def _cone(self, sinogram, angles, shape, distance: float, progress: Callable) -> np.ndarray:
        across, along = (np.arange(n) - (n - 1) / 2 for n in sinogram.shape[1:])
        if shape[2] == 1:
            along = np.zeros(1)
        cosine = distance / np.sqrt(distance**2 + across[:, None] ** 2 + along**2)
        weights = fan_weights(angles, np.arctan(across / distance))
        out = np.zeros(shape, np.float32)
        views = max(_VIEWS, -(-len(angles) // 20))  # a block costs one addition of the volume
        for first in progress(range(0, len(angles), views)):
            block = slice(first, first + views)
            part = sinogram[block] * (weights[block, :, None] * cosine).astype(np.float32)
            part = filter_views(part, self.filter_name, self.padding)
            out += projection.backproject(part, angles[block], shape, distance)
        return out


@dataclass(frozen=True)
class SIRT:
    """Simultaneous iterative reconstruction by ASTRA on the CPU: parallel beam, or fan beam of one slice.

    A slice of 256² from 360 views takes a third of a second per iteration.

    Args:
        iterations: how many, at least 1.
        min_constraint: no voxel falls below this value, 0 as a rule; None for no bound.

    Raises:
        ValueError: a value outside its range.
    """

    iterations: int = 100
    min_constraint: float | None = None

    def __post_init__(self):
        _check_iterations(self.iterations)
        if self.min_constraint is not None:
            check_number("min_constraint", self.min_constraint, -1e9, 1e9)

    def reconstruct(self, sinogram, angles_rad, shape, distance=None, progress: Callable = iter) -> np.ndarray:
        """As ``FBP.reconstruct``; ``progress`` wraps the slices. A cone beam raises ValueError."""
        options = {} if self.min_constraint is None else {"MinConstraint": float(self.min_constraint)}
        return _iterate("SIRT", self.iterations, options, sinogram, angles_rad, shape, distance, progress)


@dataclass(frozen=True)
class CGLS:
    """Conjugate gradients on the least-squares problem by ASTRA on the CPU: parallel beam, or fan beam of one slice.

    Converges in tens of iterations, and fits the noise if it is not stopped.

    Args:
        iterations: how many, at least 1.

    Raises:
        ValueError: a value outside its range.
    """

    iterations: int = 20

    def __post_init__(self):
        _check_iterations(self.iterations)

    def reconstruct(self, sinogram, angles_rad, shape, distance=None, progress: Callable = iter) -> np.ndarray:
        """As ``FBP.reconstruct``; ``progress`` wraps the slices. A cone beam raises ValueError."""
        return _iterate("CGLS", self.iterations, {}, sinogram, angles_rad, shape, distance, progress)


def filter_gain(filter_name: str, length: int) -> np.ndarray:
    """Frequency response of a filter at the frequencies of ``scipy.fft.rfft``, in the definition and scale of ASTRA.

    The ramp is the transform of its band-limited kernel (Kak & Slaney, 1988, eq. 61 of chapter 3), 1/4 at 0, −1/(πn)²
    at odd n and 0 at even n: |f| sampled directly would lose the mean. The others are windows on it.

    Args:
        filter_name: one of ``FILTERS``.
        length: even number of samples, at least twice the detectors for a convolution that does not wrap.

    Returns:
        float64 (length / 2 + 1,), |f| in cycles per sample at low frequencies.
    """
    lag = np.minimum(np.arange(length), length - np.arange(length))
    kernel = np.where(lag % 2 == 1, -1 / (np.pi * np.maximum(lag, 1)) ** 2, 0.0)
    kernel[0] = 0.25
    frequency = np.arange(length // 2 + 1) / length
    q = 2 * frequency
    window = {
        "ram-lak": lambda: 1.0,
        "shepp-logan": lambda: np.sinc(frequency),
        "cosine": lambda: np.cos(np.pi * frequency),
        "hamming": lambda: 0.54 + 0.46 * np.cos(2 * np.pi * frequency),
        "hann": lambda: 0.5 + 0.5 * np.cos(2 * np.pi * frequency),
        "parzen": lambda: np.where(q <= 0.5, 1 - 6 * q**2 * (1 - q), 2 * (1 - q) ** 3),
    }[filter_name]()
    return fft.rfft(kernel).real * window


def filter_views(
    sinogram: np.ndarray, filter_name: str, padding: str = "zero", weights: np.ndarray | None = None
) -> np.ndarray:
    """Filter every view across the detector.

    Args:
        sinogram: float32 (angles, detectors, slices).
        filter_name: one of ``FILTERS``.
        padding: one of ``PADDINGS``.
        weights: (angles,) factor on each view; None for 1.

    Returns:
        float32 of the same shape.
    """
    detectors = sinogram.shape[1]
    length = 2 * fft.next_fast_len(detectors, real=True)
    gain = filter_gain(filter_name, length).astype(np.float32)[:, None]
    weights = None if weights is None else weights.astype(np.float32)[:, None, None]
    out = np.empty(sinogram.shape, np.float32)
    for first in range(0, len(sinogram), _VIEWS):
        block = slice(first, first + _VIEWS)
        part = sinogram[block] if padding == "zero" else _extend(sinogram[block], length)
        spectrum = fft.rfft(part, length, axis=1, workers=1)
        parts = spectrum.view(np.float32)  # real and imaginary in turn: half the products of complex times complex
        parts *= gain if weights is None else gain * weights[block]
        out[block] = fft.irfft(spectrum, length, axis=1, overwrite_x=True, workers=1)[:, :detectors]
    return out


def parallel_weights(angles_rad: np.ndarray) -> np.ndarray:
    """Share of the half turn that each view of a parallel beam stands for.

    Opposite views see the same rays, so angles count modulo π, and a view stands for half the way to either neighbour.
    The widest gap counts no more than the second widest: the missing wedge of a limited angle is nobody's.

    Args:
        angles_rad: [rad] (angles,), in any order.

    Returns:
        [rad] float64 (angles,). π / n each for n views over 180° or 360°, range / n over less than 180°.
    """
    turned = np.mod(angles_rad, np.pi)
    order = np.argsort(turned, kind="stable")
    gaps = np.diff(turned[order], append=turned[order[0]] + np.pi)
    gaps = np.minimum(gaps, np.partition(gaps, -2)[-2] if len(gaps) > 1 else np.pi)
    weights = np.empty(len(gaps))
    weights[order] = (gaps + np.roll(gaps, 1)) / 2
    return weights


def fan_weights(angles_rad: np.ndarray, fan_rad: np.ndarray) -> np.ndarray:
    """Angular step times the share with which a ray of a fan or cone beam counts: 1/2 over a full turn.

    Over less, w = c(θ) / (c(θ) + c(θ')) with the view θ' = θ − 2γ ± π that sees the ray from its other end, where c
    rises and falls as a sin² at the ends of the scan (Noo et al., Phys. Med. Biol. 47, 2525 (2002)). At the central ray
    this is the weight of Parker (Med. Phys. 9, 254 (1982)).

    Args:
        angles_rad: [rad] (angles,), equally spaced.
        fan_rad: [rad] (detectors,), angle of each detector's ray from the central one, as the detector runs.

    Returns:
        [rad] float64 (angles, detectors).
    """
    step = abs(angles_rad[-1] - angles_rad[0]) / max(len(angles_rad) - 1, 1) or 2 * np.pi
    angular_range = step * len(angles_rad)
    if angular_range > 2 * np.pi - step / 2:
        return np.full((len(angles_rad), len(fan_rad)), step * np.pi / angular_range)
    taper = min(max(angular_range - np.pi, _TAPER_RAD), angular_range / 2)

    def c(angle):
        inside = np.clip(np.minimum(angle, angular_range - angle) / taper, 0, 1)
        return np.sin(np.pi / 2 * inside) ** 2

    angle = (angles_rad - angles_rad.min() + step / 2)[:, None]
    other = angle - 2 * fan_rad
    return step * c(angle) / (c(angle) + c(other + np.pi) + c(other - np.pi))


def remove_rings(
    sinogram: np.ndarray, method: str, size: int = 21, snr: float = 3.0, progress: Callable = iter
) -> np.ndarray:
    """Remove the stripes of a sinogram that would become rings, slice by slice, by algotom.

    Vo, Atwood & Drakopoulos, Opt. Express 26, 28396 (2018). They work on the transmission exp(−sinogram), where a gain
    error is a factor and air is 1: in the sinogram "all" would divide by air's zero. A stripe is told from the sample
    by a median along the detector: what is left of it is up to the change of the sample's profile within a pixel.

    Args:
        sinogram: float32 (angles, detectors, slices).
        method: "sorting" (algorithm 3, full and partial stripes), "filtering" (algorithm 2, full stripes) or "all" (6,
            5, 4 and 3, also wide, fluctuating and dead stripes; it needs data with noise, flattens what is as wide as
            its window, and may take a sample's sharp edge for a stripe). Algorithm 1 (fitting) is not offered: it
            blurs a clean sinogram.
        size: [detector pixels] window of the median, more than twice the widest stripe; "all" takes it for narrow
            stripes and 2.5 times as much for wide ones.
        snr: "all" takes as a stripe what stands out by more than this ratio; above 1.
        progress: wraps the iterable of slices, e.g. tqdm.

    Returns:
        float32 of the same shape.

    Raises:
        ValueError: an unknown method, a window wider than the detector, "all" on data without noise.
    """
    from algotom.prep import removal  # takes two seconds to import

    _check_name("method", method, RING_FILTERS)
    if not isinstance(size, int):
        raise ValueError(f"size={size!r} must be an integer")
    check_number("size", size, 3, sinogram.shape[1] / (2.5 if method == "all" else 1))
    check_number("snr", snr, 1, 1e3)
    clean = {
        "sorting": lambda image: removal.remove_stripe_based_sorting(image, size),
        "filtering": lambda image: removal.remove_stripe_based_filtering(image, size=size),
        "all": lambda image: removal.remove_all_stripe(image, snr, int(2.5 * size), size),
    }[method]
    out = np.empty(sinogram.shape, np.float32)
    for k in progress(range(sinogram.shape[2])):
        transmission = np.exp(-sinogram[..., k])
        low = transmission.min()  # the filters may undershoot it, even zero
        try:
            with np.errstate(invalid="raise"):  # 0/0 where the views do not differ
                out[..., k] = -np.log(np.maximum(clean(transmission), low))
        except (ValueError, FloatingPointError) as error:
            if isinstance(error, ValueError) and "noise" not in str(error):
                raise
            raise ValueError(f"method={method!r} finds no noise to compare stripes with; take 'sorting'") from None
    return out


@dataclass(frozen=True)
class Paganin:
    """Phase retrieval of a homogeneous object from one distance (Paganin et al., J. Microsc. 206, 33 (2002), eq. 10).

    −ln F⁻¹{F{T} / (1 + π λ (z / M) (δ/β) |f|²)}: a low-pass of length √(λ (z / M) (δ/β) / 4π) that inverts near-field
    propagation where all matter has the same δ/β.

    Args:
        delta_beta: δ/β of the refractive index 1 − δ + iβ, 1 to 10⁵; 100 to 1000 as a rule. 0 retrieves nothing: −ln T.

    Raises:
        ValueError: a value outside its range.
    """

    delta_beta: float

    def __post_init__(self):
        check_number("delta_beta", self.delta_beta, 0, 1e5)

    def retrieve(
        self,
        transmission: np.ndarray,
        distance_mm: float,
        energy_kev: float,
        voxel_size_um: float,
        magnification: float = 1.0,
        progress: Callable = iter,
    ) -> np.ndarray:
        """The line integrals of µ behind a propagated transmission: two-dimensional, along the detector for one slice.

        Args:
            transmission: float32 (angles, detectors, slices), flat-field corrected, above 0. All slices at once: the
                filter joins neighbours.
            distance_mm: [mm] object to detector.
            energy_kev: [keV] photon energy; the mean one of a polychromatic beam.
            voxel_size_um: [µm] detector pixel as seen at the object.
            magnification: of the object on the detector; 1 for a parallel beam.
            progress: wraps the iterable of views, e.g. tqdm.

        Returns:
            float32 of the same shape: sinogram, −ln of the retrieved transmission.

        Raises:
            ValueError: a transmission that is not positive, a value outside its range.
        """
        check_number("distance_mm", distance_mm, 0, 1e6, "mm")
        check_number("energy_kev", energy_kev, 0.1, 800, "keV")
        check_number("voxel_size_um", voxel_size_um, 1e-4, 1e4, "µm")
        check_number("magnification", magnification, 1, 1e5)
        low = float(transmission.min())
        if not low > 0:
            raise ValueError(f"transmission must be above 0 to take its logarithm, its least value is {low:g}")
        area_um2 = _KEV_UM / energy_kev * distance_mm * 1e3 / magnification * self.delta_beta / (4 * np.pi)
        length_px = np.sqrt(area_um2) / voxel_size_um
        pads = [_margins(n, int(np.ceil(10 * length_px))) for n in transmission.shape[1:]]  # e⁻¹⁰ of it wraps
        padded = [n + before + after for n, (before, after) in zip(transmission.shape[1:], pads, strict=True)]
        inner = tuple(slice(before, size - after) for size, (before, after) in zip(padded, pads, strict=True))
        square = fft.fftfreq(padded[0])[:, None] ** 2 + fft.rfftfreq(padded[1]) ** 2
        gain = (1 / (1 + (2 * np.pi * length_px) ** 2 * square)).astype(np.float32)
        out = np.empty(transmission.shape, np.float32)
        for i in progress(range(len(transmission))):
            view = np.pad(np.asarray(transmission[i], np.float32), pads, mode="edge")
            spectrum = fft.rfft2(view, workers=1)
            spectrum *= gain
            retrieved = fft.irfft2(spectrum, s=padded, workers=1)[inner]
            # the filter's kernel is positive: only ringing goes below the least value
            np.log(np.maximum(retrieved, np.float32(low)), out=out[i])
        return np.negative(out, out=out)


def _iterate(algorithm, iterations, options, sinogram, angles_rad, shape, distance, progress) -> np.ndarray:
    angles = _check_scan(sinogram, angles_rad, shape, distance)
    if distance is not None and shape[2] > 1:
        raise ValueError(f"{algorithm} takes a fan beam of one slice, but no cone beam of {shape[2]}; take FBP")
    return projection.astra_iterate(
        sinogram, angles, shape, algorithm, iterations, distance, options, progress=progress
    )


def _margins(size: int, margin: int) -> tuple[int, int]:
    """Samples to add before and after: the margin, at most ``size``, and what makes the total a fast length."""
    margin = min(size, margin) if size > 1 else 0
    return margin, fft.next_fast_len(size + 2 * margin, real=True) - size - margin


def _extend(views: np.ndarray, length: int) -> np.ndarray:
    """The views with their last value after them, and their first one where the cyclic convolution comes round."""
    detectors = views.shape[1]
    middle = (length + detectors) // 2
    out = np.empty((len(views), length, views.shape[2]), np.float32)
    out[:, :detectors] = views
    out[:, detectors:middle] = views[:, -1:]
    out[:, middle:] = views[:, :1]
    return out


def _check_scan(sinogram, angles_rad, shape, distance: float | None) -> np.ndarray:
    angles = np.asarray(angles_rad, float)
    if sinogram.ndim != 3 or angles.shape != (len(sinogram),) or len(shape) != 3:
        raise ValueError(
            f"a sinogram (angles, detectors, slices), as many angles and a shape (x, y, slices) are needed, got "
            f"{sinogram.shape}, {angles.shape} and {tuple(shape)}"
        )
    if (distance is None or shape[2] == 1) and sinogram.shape[2] != shape[2]:
        raise ValueError(f"{shape[2]} slices need a sinogram of as many, got {sinogram.shape[2]}")
    if distance is not None and distance <= np.hypot(*shape[:2]) / 2:
        raise ValueError(
            f"distance={distance:.4g} voxels puts the source inside an object of {shape[0]} × {shape[1]} voxels; "
            f"it must exceed {np.hypot(*shape[:2]) / 2:.4g}"
        )
    return angles


def _check_name(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r} is unknown; known: {', '.join(known)}")


def _check_iterations(iterations: int) -> None:
    if isinstance(iterations, bool) or not isinstance(iterations, int) or not 1 <= iterations <= 100000:
        raise ValueError(f"iterations={iterations!r} must be an integer in [1, 100000]")
