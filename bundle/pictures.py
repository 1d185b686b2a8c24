"""Every picture's colours, greys, scale bars and legends; and the picture of a segmentation.

Arrays keep the order of their axes: (x, y) in, RGB (x, y, 3) out. Matplotlib is imported where something is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

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
TINT = 0.45  # share of the class's colour in an overlay
LARGEST_PICTURE = 1200  # pixels along a slice; larger slices are thinned
COUNTED_VOXELS = 2_000_000  # of larger images, so many are looked at for grey range and histogram


def palette(n_classes: int) -> np.ndarray:
    """uint8 (n_classes, 3); from the ninth class on, the colours of the phases repeat."""
    phases = len(CLASS_COLOURS) - 1
    return CLASS_COLOURS[[0, *(1 + k % phases for k in range(n_classes - 1))]]


def label_colours(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """uint8 RGB of a label image."""
    return palette(n_classes)[labels.astype(int)]


def grey_range(image: np.ndarray) -> tuple[float, float]:
    """The grey values shown as black and white: percentiles 0.5 and 99.5, the extremes where those are one value."""
    low, high = np.percentile(_thin(image).astype(np.float32), (0.5, 99.5))
    return (float(low), float(high)) if high > low else (float(image.min()), float(image.max()))


def to_grey(image: np.ndarray, black_white: tuple[float, float] | None = None) -> np.ndarray:
    """uint8 RGB of a grey image, black to white over its own `grey_range` or the one given."""
    low, high = black_white or grey_range(image)
    scaled = np.clip((image - low) / max(high - low, 1e-12), 0, 1)
    return np.repeat((scaled * 255).astype(np.uint8)[..., None], 3, axis=-1)


def overlay(grey: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """uint8 RGB: the scan (RGB of `to_grey`), tinted where there is a phase and as it was in class 0."""
    tinted = (1 - TINT) * grey + TINT * label_colours(labels, n_classes)
    return np.where(labels[..., None] > 0, tinted, grey).astype(np.uint8)


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


def class_legend(class_names: Sequence[str]) -> list[Patch]:
    """Legend handles of `label_colours`, `overlay` and `class_histogram`."""
    return [_patch(c, n) for c, n in zip(palette(len(class_names)), class_names, strict=True)]


def error_legend(class_names: Sequence[str]) -> list[Patch]:
    """Legend handles of `error_map`."""
    pore, phase = class_names[0], class_names[1] if len(class_names) == 2 else "a phase"
    handles = [
        _patch(FALSE_POSITIVE, f"{pore} taken for {phase}"),
        _patch(FALSE_NEGATIVE, f"{phase} taken for {pore}"),
    ]
    return handles if len(class_names) == 2 else [*handles, _patch(OTHER_ERROR, "one phase taken for another")]


def show(axes: Axes, picture: np.ndarray, size_um: Sequence[float], title: str = "") -> None:
    """Draw RGB (x, y, 3) of this size [µm]: x runs right and y down, as in Fiji; a thin frame, no ticks."""
    width_um, height_um = size_um
    axes.imshow(picture.swapaxes(0, 1), extent=(0, width_um, height_um, 0), interpolation="nearest", aspect="equal")
    axes.set_title(title, fontsize=10)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color="#888888", linewidth=0.6)


def scale_bar(axes: Axes, width_um: float, height_um: float) -> None:
    """A bar of 1, 2 or 5 times a power of ten, at most a quarter of the width, in a picture that `show` drew."""
    from matplotlib.patheffects import withStroke

    longest = width_um / 4
    power = 10.0 ** math.floor(math.log10(longest))
    length = max(step * power for step in (1, 2, 5) if step * power <= longest * 1.0001)
    left, base = 0.04 * width_um, height_um - 0.05 * min(width_um, height_um)
    (bar,) = axes.plot([left, left + length], [base, base], color="white", linewidth=3, solid_capstyle="butt")
    bar.set_path_effects([withStroke(linewidth=4.5, foreground="black")])
    text = f"{length:g} µm" if length >= 0.1 else f"{length * 1000:g} nm"
    label = axes.annotate(text, (left, base), (0, 4), textcoords="offset points", color="white", fontsize=9)
    label.set_path_effects([withStroke(linewidth=2.5, foreground="black")])


def class_histogram(axes: Axes, image: np.ndarray, labels: np.ndarray, n_classes: int) -> None:
    """Share of the voxels against grey value, a filled curve for each class."""
    low, high = grey_range(image)
    grey, classes = _thin(image), _thin(labels)
    margin = 0.08 * (high - low) or 0.5
    low, high = low - margin, high + margin
    if image.dtype.kind in "ui":  # whole grey values a bin, or bins beat against the integers
        step = max(1, math.ceil((high - low) / 64))
        edges = np.arange(math.floor(low), math.ceil(high) + step + 1, step) - 0.5
    else:
        edges = np.linspace(low, high, 129)
    for label, colour in enumerate(palette(n_classes) / 255):
        counts = np.histogram(grey[classes == label], edges)[0] / grey.size * 100
        axes.stairs(counts, edges, fill=True, color=colour, alpha=0.4)
        axes.stairs(counts, edges, color=colour, linewidth=1.2)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.set(xlabel="grey value", ylabel="voxels [%]")
    axes.spines[["top", "right"]].set_visible(False)


def segmentation_figure(
    image: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    voxel_size_um: Sequence[float],
    title: str = "",
) -> Figure:
    """Grey slices over the same slices with tinted phases, and the grey-value histogram of each class.

    image: (x, y) or (x, y, z); of a volume the three middle slices are shown. x runs right and y down as in
    Fiji.
    labels: integer array of the same shape, indices into ``class_names``.
    voxel_size_um: [µm] one per axis.

    Returns a matplotlib Figure that no window knows; save it with ``figure.savefig``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    planes = [(0, 1)] if image.ndim == 2 else [(0, 1), (0, 2), (1, 2)]
    size_um = [n * s for n, s in zip(image.shape, voxel_size_um, strict=True)]
    tallest = max(size_um[j] / size_um[i] for i, j in planes)
    panel = 3.6  # inches
    rows = min(max(tallest, 0.35), 1.6) * panel
    figure = Figure(figsize=(panel * len(planes) + 4.6, 2 * rows + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, len(planes) + 1, width_ratios=[1.0] * len(planes) + [1.15])
    black_white = grey_range(image)
    for column, plane in enumerate(planes):
        index = tuple(slice(None) if i in plane else n // 2 for i, n in enumerate(image.shape))
        step = math.ceil(max(image.shape[i] for i in plane) / LARGEST_PICTURE)
        grey = to_grey(np.asarray(image[index])[::step, ::step].astype(np.float32), black_white)
        tinted = overlay(grey, labels[index][::step, ::step], len(class_names))
        where = [f"{'xyz'[i]} = {n // 2}" for i, n in enumerate(image.shape) if i not in plane]
        caption = ", ".join([f"{'xyz'[plane[0]]}{'xyz'[plane[1]]}", *where])
        plane_um = [size_um[i] for i in plane]
        for row, (picture, name) in enumerate(((grey, "grey values"), (tinted, "labels"))):
            axes = figure.add_subplot(grid[row, column])
            show(axes, picture, plane_um, f"{caption}: {name}")
            scale_bar(axes, *plane_um)
    axes = figure.add_subplot(grid[0, -1])
    class_histogram(axes, image, labels, len(class_names))
    axes.set_title("grey values of each class", fontsize=10)
    counts = np.bincount(labels.ravel(), minlength=len(class_names))
    shares = [f"{name}: {count / labels.size:.1%}" for name, count in zip(class_names, counts, strict=True)]
    shares[0] += " (not tinted)"
    axes = figure.add_subplot(grid[1, -1])
    axes.axis("off")
    axes.legend(
        handles=class_legend(shares),
        loc="upper left",
        frameon=False,
        fontsize=11,
        title="share of voxels",
        alignment="left",
    )
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _patch(colour: Sequence[int], label: str) -> Patch:
    from matplotlib.patches import Patch

    return Patch(facecolor=np.array(colour) / 255, edgecolor="#888888", linewidth=0.6, label=label)


def _thin(array: np.ndarray) -> np.ndarray:
    """Every n-th voxel along each axis, about COUNTED_VOXELS in all."""
    step = max(1, math.ceil((array.size / COUNTED_VOXELS) ** (1 / array.ndim)))
    return array[(slice(None, None, step),) * array.ndim]
