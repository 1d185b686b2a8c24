"""Slices of an image seen as tomography sees them: their spectrum by angle, the ramp filter, a small scan of them.

What ``image_artifacts`` is made of; images, slices and angles are as described there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from scipy.fft import next_fast_len
from scipy.optimize import brentq
from torch import Tensor
from torch.nn import functional as F

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))
FADE_PX = 2.5  # over which an image falls to 1/e beyond its border
FINER = 16  # samples of a detector pixel in the tables of rings


def to_slices(image: Tensor) -> Tensor:
    """(slices, x, y) of all channels of (channels, x, y[, z])."""
    return image if image.ndim == 3 else image.movedim(-1, 1).flatten(0, 1)


def from_slices(slices: Tensor, like: Tensor) -> Tensor:
    """Back from ``to_slices`` of ``like``."""
    if like.ndim == 3:
        return slices
    return slices.unflatten(0, (len(like), -1)).movedim(1, -1).contiguous()


def beyond_border(slices: Tensor, widths: Sequence[int]) -> Tensor:
    """Slices (slices, x, y) with a border, in which the value at their edge fades to zero.

    A reconstruction goes on beyond its object, and beyond a field of view there is something like what lies at its
    edge. Cut off there, an image has an edge that moves and makes streaks; of its mirror image too much comes back.

    Args:
        slices: see above.
        widths: [pixels] of the border: before and after x, before and after y.
    """
    n_x, n_y = slices.shape[1:]
    padded = F.pad(slices[None], (*widths[2:], *widths[:2]), mode="replicate")[0]
    return padded.mul_(_fading((n_x, n_y), tuple(widths), slices.device))


@lru_cache(maxsize=8)
def _fading(shape: tuple[int, int], widths: tuple[int, ...], device: torch.device) -> Tensor:
    away = []  # [pixels] distance of rows and of columns from the image
    for n, before, after in zip(shape, widths[::2], widths[1::2], strict=True):
        place = torch.arange(-before, n + after, device=device)
        away.append((place - place.clamp(0, n - 1)).float())
    return torch.exp(-torch.hypot(away[0][:, None], away[1]) / FADE_PX)


def filter_slices(image: Tensor, mask: Callable[[Tensor, Tensor], Tensor], margin: int) -> Tensor:
    """Multiply the spectrum of each slice, embedded in a square with a border (``beyond_border``).

    Args:
        image: (channels, x, y[, z]).
        mask: (k, angle) of ``polar_frequencies`` → real or complex gain; complex ones conjugate at opposite places.
        margin: [pixels] least width of the border.
    """
    slices = to_slices(image)
    size = next_fast_len(max(slices.shape[1:]) + 2 * margin)
    size += size % 2
    widths = []
    for n in slices.shape[1:]:
        widths += [(size - n) // 2, size - n - (size - n) // 2]
    spectrum = torch.fft.rfft2(beyond_border(slices, widths))
    out = torch.fft.irfft2(spectrum * mask(*polar_frequencies(size, image.device)), s=(size, size))
    return from_slices(out[:, widths[0] : size - widths[1], widths[2] : size - widths[3]], image)


@lru_cache(maxsize=8)
def polar_frequencies(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """k [cycles/pixel] and angle [rad], −π to π, of the half spectrum of a square; a cell is 1/size wide."""
    along_x, along_y = torch.fft.fftfreq(size, device=device)[:, None], torch.fft.rfftfreq(size, device=device)
    return torch.hypot(along_x, along_y), torch.atan2(-along_x, along_y)


@lru_cache(maxsize=8)
def pixel_axes(shape: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """[pixels] distance of rows (x, 1) and of columns (y,) from the middle."""
    rows, columns = (torch.arange(n, device=device) - (n - 1) / 2 for n in shape)
    return rows[:, None], columns


@lru_cache(maxsize=4)
def polar_places(shape: tuple[int, int], centre_px: tuple[float, float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Radius [pixels] and angle [rad], as of a detector, of each pixel about a centre."""
    rows, columns = pixel_axes(shape, device)
    rows, columns = rows - centre_px[0], columns - centre_px[1]
    return torch.hypot(rows, columns), torch.atan2(-rows, columns)


def places_between(place: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The entry of a table of n before each place, and how far it is on the way to the next; inside the table."""
    place = place.clamp(0, n - 1)
    low = place.long().clamp(max=n - 2)
    return low, place - low


def lookup(table: Tensor, low: Tensor, share: Tensor) -> Tensor:
    """The last axis of a table (..., n) at ``places_between``, linear between entries: (..., *low.shape)."""
    flat = low.flatten()
    one, other = (table.index_select(-1, at).unflatten(-1, low.shape) for at in (flat, flat + 1))
    return torch.lerp(one, other, share)


def ramp_kernel(n: int) -> Tensor:
    """The band-limited ramp at lags 0 to n − 1, float32 (Kak & Slaney, 1988, eq. 61 of chapter 3)."""
    lag = torch.arange(n, dtype=torch.float64)
    kernel = torch.where(lag % 2 == 1, -1 / (math.pi * lag.clamp(min=1)) ** 2, 0.0)
    kernel[0] = 0.25
    return kernel.float()


@lru_cache(maxsize=8)
def ramp_matrix(detectors: int, device: torch.device) -> Tensor:
    """The ramp filter as a matrix (detectors, detectors)."""
    lag = torch.arange(detectors)
    return ramp_kernel(detectors)[(lag[:, None] - lag).abs()].to(device)


@lru_cache(maxsize=8)
def circle_places(first: int, last: int, detectors: int, device: torch.device) -> Tensor:
    """Where the circles between two radii meet a detector, by radius and angle, int32.

    In entries of the detector with a pixel more at each end, sampled ``FINER`` times finer.
    """
    radii = torch.linspace(first, last, 4 * (last - first) + 1, device=device)
    n = max(180, 2 * last)  # steps of half a turn: 1.6 pixels on the largest circle, as of a usual scan
    angles = (torch.arange(n, device=device) + 0.5) * (math.pi / n)
    place = torch.outer(radii, angles.cos()) + (detectors + 1) / 2
    return (place.clamp(0, detectors + 1) * FINER).round().int()


@lru_cache(maxsize=32)
def point_spread(fwhm_px: float) -> Tensor:
    """Weights of a Gaussian at the pixels, of variance σ² exactly, as the simulator's detector has it; float64, odd.

    Samples of that very Gaussian would be too narrow where σ is below 0.6 pixels.
    """
    sigma = fwhm_px / FWHM_PER_SIGMA
    if sigma < 1e-3:
        return torch.ones(1, dtype=torch.float64)
    reach = math.ceil(4 * sigma) + 1
    place = torch.arange(-reach, reach + 1, dtype=torch.float64)

    def weights(width: float) -> Tensor:
        return torch.softmax(-((place / width) ** 2) / 2, 0)

    return weights(brentq(lambda w: float(weights(w) @ place**2) - sigma**2, 0.05, 1.1 * sigma + 0.5, xtol=1e-10))


def noise_gain(shape: tuple[int, int], psf_px: float, device: torch.device) -> Tensor:
    """Gain on the half spectrum of white noise that gives reconstruction noise of variance 1."""
    along_x = torch.fft.fftfreq(shape[0], device=device).abs()[:, None]
    along_y = torch.fft.rfftfreq(shape[1], device=device)
    half = point_spread(psf_px)[len(point_spread(psf_px)) // 2 :].tolist()
    power = torch.zeros(shape[0], len(along_y), device=device)
    for x in (along_x, 1 - along_x):  # the frequency itself, and the nearest that the pixels cannot tell from it
        for y in (along_y, 1 - along_y):
            k = torch.hypot(x, y)
            sampled = (k - k.round()) ** 2
            turn = 2 * math.pi * k
            blur = half[0] + 2 * sum(weight * torch.cos(lag * turn) for lag, weight in enumerate(half[1:], start=1))
            power += sampled * blur**2 / k.clamp(min=1e-6) * torch.sinc(k) ** 4
    both = torch.full((len(along_y),), 2.0, device=device)  # half of the spectrum stands for the other half
    both[0] = 1
    if shape[1] % 2 == 0:
        both[-1] = 1
    return (power * (shape[0] * shape[1] / (power * both).sum())).sqrt()


def axis_mixture(slices: int, psf_px: float, device: torch.device) -> Tensor:
    """Symmetric (slices, slices): correlates white noise along the axis as a point spread does, variance kept."""
    weights = point_spread(psf_px)
    reach = len(weights) // 2
    lags = torch.arange(slices)
    spread = F.conv1d(F.pad(weights, (2 * reach, 2 * reach))[None, None], weights[None, None])[0, 0]  # of pairs, by lag
    spread = F.pad(spread / spread.max(), (0, slices))[2 * reach :]
    values, modes = torch.linalg.eigh(spread[(lags[:, None] - lags).abs()])
    return (modes * values.clamp(min=0).sqrt() @ modes.T).to(device, torch.float32)


@lru_cache(maxsize=32)
def cosine_modes(n: int, sigma_px: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Orthonormal cosines (n, modes), those of a mirrored field, that a Gaussian passes, and its gains (modes,).

    A blur of σ pixels leaves 1.9 n/σ of them, so a wide one costs next to nothing; no kernel is cut off.
    """
    wave_number = torch.arange(n, dtype=torch.float64) * (math.pi / n)
    gain = torch.exp(-((sigma_px * wave_number) ** 2) / 2)
    gain = gain[gain > 2e-8]  # float32's rounding
    modes = torch.cos(torch.outer(torch.arange(n) + 0.5, wave_number[: len(gain)])) * math.sqrt(2 / n)
    modes[:, 0] = math.sqrt(1 / n)
    return modes.to(device, torch.float32), gain.to(device, torch.float32)


class SmallScan:
    """A scan of an image of reduced resolution, for changes of its line integrals that are smooth in the image.

    Args:
        image: (channels, x, y[, z]); zero beyond its border.
        pixels: of the longer edge of the small one, at most.
        views: over 180°.

    Attributes:
        step: pixels of the image in one of the small one, along each edge.
        slices: (slices, x, y), the image averaged over groups of pixels.
        lines: (views, slices, detectors), line integrals [grey · small pixels].
        largest: the largest of them, scalar tensor.
    """

    def __init__(self, image: Tensor, pixels: int = 64, views: int = 48):
        self.step = math.ceil(max(image.shape[1:3]) / pixels)
        self._image_shape = image.shape
        small = F.interpolate(image[None], [math.ceil(n / self.step) for n in image.shape[1:]], mode="area")[0]
        self.slices = to_slices(small)
        self._rays, self._places = _rays(tuple(self.slices.shape[1:]), views, image.device)
        self.lines = self._sample(self.slices[None].expand(len(self._rays), *self.slices.shape), self._rays).sum(2)
        self.largest = self.lines.max().clamp(min=1e-6)

    @staticmethod
    def _sample(values: Tensor, places: Tensor) -> Tensor:
        return F.grid_sample(values, places, padding_mode="zeros", align_corners=False)

    def back(self, lines: Tensor) -> Tensor:
        """Mean over the views of what they hold at each place, with the voxels of the image."""
        small = self._sample(lines[:, :, None], self._places).mean(0)
        return self.enlarged(small)

    def reconstruct(self, lines: Tensor) -> Tensor:
        """Filtered back-projection, with the voxels of the image."""
        return math.pi * self.back(lines @ ramp_matrix(lines.shape[-1], lines.device))

    def enlarged(self, slices: Tensor) -> Tensor:
        """Small slices interpolated to the voxels of the image."""
        if len(self._image_shape) == 3:
            return F.interpolate(slices[None], self._image_shape[1:], mode="bilinear")[0]
        small = slices.unflatten(0, (self._image_shape[0], -1)).movedim(1, -1)
        return F.interpolate(small[None], self._image_shape[1:], mode="trilinear")[0]


@lru_cache(maxsize=8)
def _rays(shape: tuple[int, int], views: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Places for ``grid_sample``: (views, along the ray, detectors, 2) in a slice, (views, x, y, 2) in a view."""
    angles = torch.arange(views, device=device)[:, None, None] * (math.pi / views)
    cosine, sine = angles.cos(), angles.sin()
    detectors = math.ceil(math.hypot(*shape))
    along, across = pixel_axes((detectors, detectors), device)
    row, column = -sine * across - cosine * along, cosine * across - sine * along
    rays = torch.stack([column * (2 / shape[1]), row * (2 / shape[0])], -1)
    rows, columns = pixel_axes(shape, device)
    detector = cosine * columns - sine * rows
    return rays, torch.stack([detector * (2 / detectors), torch.zeros_like(detector)], -1)
