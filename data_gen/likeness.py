"""Is a simulated scan like real ones? The same measures of both, with labels made the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_otsu

from data_gen.image_quality import describe

# what a scanner decides more than the structure does: these are to lie within the range of real scans
MATCHED = ("contrast_to_noise", "edge_fwhm_px", "noise_centroid", "noise_low_over_high", "cupping")
_SPECK_PX = 25  # dust of a threshold
_SMOOTHING_PX = 1.5  # so that noise does not make a ragged label


class Likeness(NamedTuple):
    """One measure of real and simulated scans; None where it could be measured in none."""

    name: str
    real: tuple[float, float] | None  # smallest, largest
    simulated: tuple[float, float, float] | None  # smallest, median, largest
    share_inside: float  # of the simulated scans, within the real range

    @property
    def median_is_inside(self) -> bool:
        return None not in (self.real, self.simulated) and self.real[0] <= self.simulated[1] <= self.real[1]


def otsu_label(image: np.ndarray) -> np.ndarray:
    """uint8 label of the bright phase, by Otsu's threshold on the smoothed image; extreme grey values do not count."""
    low, high = np.percentile(image, (0.5, 99.5))
    smooth = gaussian_filter(np.asarray(image, float), _SMOOTHING_PX)
    clipped = np.clip(image, low, high)
    bright = clipped > threshold_otsu(clipped)
    # without noise any value between two peaks is Otsu's threshold: take the middle, where it lies for real images too
    return (smooth > (clipped[bright].mean() + clipped[~bright].mean()) / 2).astype(np.uint8)


def quality(image: np.ndarray, label: np.ndarray | None = None) -> dict[str, float | None]:
    """``describe`` of the bright phase against the rest.

    Args:
        image: (x, y), grey values.
        label: 1 in the bright phase and 0 elsewhere; None takes ``otsu_label``.
    """
    return describe(image, otsu_label(image) if label is None else label, 1, 0, speck_px=_SPECK_PX)


def compare(
    real: Sequence[Mapping[str, float | None]], simulated: Sequence[Mapping[str, float | None]]
) -> list[Likeness]:
    """Each measure of ``quality``: does the simulation lie within the real range?

    Args:
        real, simulated: for each scan what ``quality`` gave.
    """
    rows = []
    for name in real[0]:
        theirs, ours = ([q[name] for q in many if q[name] is not None] for many in (real, simulated))
        span = (min(theirs), max(theirs)) if theirs else None
        inside = [span[0] <= value <= span[1] for value in ours] if span else []
        found = (min(ours), float(np.median(ours)), max(ours)) if ours else None
        rows.append(Likeness(name, span, found, float(np.mean(inside)) if inside else 0.0))
    return rows
