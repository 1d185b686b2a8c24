"""Pictures of images, labels and errors as RGB arrays, axis order kept: (x, y) in, (x, y, 3) out."""

from __future__ import annotations

import numpy as np

# Okabe and Ito's colours, which colour-blind readers can tell apart; class 0 (pore, background) is dark.
CLASS_COLOURS = np.array(
    [
        (38, 38, 46),
        (230, 159, 0),
        (86, 180, 233),
        (0, 158, 115),
        (240, 228, 66),
        (0, 114, 178),
        (213, 94, 0),
        (204, 121, 167),
    ],
    np.uint8,
)
FALSE_POSITIVE, FALSE_NEGATIVE, OTHER_ERROR = (213, 94, 0), (0, 114, 178), (240, 228, 66)


def to_grey(image: np.ndarray, low_percent: float = 0.5, high_percent: float = 99.5) -> np.ndarray:
    """uint8 RGB of a grey image, stretched between two percentiles."""
    low, high = np.percentile(image, [low_percent, high_percent])
    scaled = np.clip((image - low) / max(high - low, 1e-12), 0, 1)
    return np.repeat((scaled * 255).astype(np.uint8)[..., None], 3, axis=-1)


def label_colours(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """uint8 RGB of a label image.

    Raises:
        ValueError: more classes than colours.
    """
    if n_classes > len(CLASS_COLOURS):
        raise ValueError(f"{n_classes} classes, colours for {len(CLASS_COLOURS)}")
    return CLASS_COLOURS[labels.astype(int)]


def error_map(pred: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """uint8 RGB: false positive (phase where there is pore), false negative (the reverse), phases swapped.

    Where the prediction is right, light grey for phases and white for pore.
    """
    picture = np.full((*truth.shape, 3), 255, np.uint8)
    picture[(truth > 0) & (pred == truth)] = 225
    picture[(pred > 0) & (truth == 0)] = FALSE_POSITIVE
    picture[(pred == 0) & (truth > 0)] = FALSE_NEGATIVE
    picture[(pred != truth) & (pred > 0) & (truth > 0)] = OTHER_ERROR
    return picture
