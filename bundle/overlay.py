"""The picture of a segmentation: slices, coloured labels, grey values of each class, a scale bar."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

# Okabe and Ito's colours, which the colour-blind tell apart
CLASS_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#F0E442", "#56B4E9", "#7F7F7F")
OVERLAY_ALPHA = 0.45
LARGEST_PICTURE = 1200  # pixels along a slice; larger slices are thinned
HISTOGRAM_VOXELS = 2_000_000


def segmentation_figure(
    image: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    voxel_size_um: Sequence[float],
    title: str = "",
) -> Figure:
    """Grey slices over the same slices with coloured labels, and the grey-value histogram of each class.

    image: (x, y) or (x, y, z); of a volume the three middle slices are shown. x runs right and y down as in
    Fiji.
    labels: integer array of the same shape, indices into ``class_names``.
    voxel_size_um: [µm] one per axis.

    Returns a matplotlib Figure that no window knows; save it with ``figure.savefig``.
    """
    names = "xyz"[: image.ndim]
    planes = [(0, 1)] if image.ndim == 2 else [(0, 1), (0, 2), (1, 2)]
    sizes = [
        [n * s for n, s in zip(image.shape, voxel_size_um, strict=True)][i] for plane in planes for i in plane
    ]
    widths, heights = sizes[::2], sizes[1::2]
    tallest = max(h / w for h, w in zip(heights, widths, strict=True))
    panel = 3.6  # inches
    rows = min(max(tallest, 0.35), 1.6) * panel
    figure = Figure(figsize=(panel * len(planes) + 4.6, 2 * rows + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, len(planes) + 1, width_ratios=[1.0] * len(planes) + [1.15])
    low, high = _grey_range(image)
    colours = np.array([_rgb(i) for i in range(len(class_names))])
    for column, plane in enumerate(planes):
        index = tuple(slice(None) if i in plane else n // 2 for i, n in enumerate(image.shape))
        step = math.ceil(max(image.shape[i] for i in plane) / LARGEST_PICTURE)
        grey = np.asarray(image[index])[::step, ::step].T.astype(np.float32)
        classes = labels[index][::step, ::step].T
        extent = (
            0,
            image.shape[plane[0]] * voxel_size_um[plane[0]],
            image.shape[plane[1]] * voxel_size_um[plane[1]],
            0,
        )
        where = ", ".join(f"{names[i]} = {n // 2}" for i, n in enumerate(image.shape) if i not in plane)
        caption = f"{names[plane[0]]}{names[plane[1]]}" + (f", {where}" if where else "")
        shown = np.clip((grey - low) / (high - low), 0, 1)[..., None].repeat(3, axis=-1)
        coloured = (1 - OVERLAY_ALPHA) * shown + OVERLAY_ALPHA * colours[classes]
        for row, picture in enumerate((shown, coloured)):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(picture, extent=extent, interpolation="nearest", aspect="equal")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(f"{caption}: {'grey values' if row == 0 else 'labels'}", fontsize=10)
            _scale_bar(axes, extent[1], extent[2])
    _histogram(figure.add_subplot(grid[0, -1]), image, labels, class_names, (low, high))
    _legend(figure.add_subplot(grid[1, -1]), labels, class_names)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _rgb(label: int) -> tuple[float, float, float]:
    text = CLASS_COLOURS[label % len(CLASS_COLOURS)]
    return tuple(int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))


def _thin(array: np.ndarray) -> np.ndarray:
    """Every n-th voxel along each axis, about HISTOGRAM_VOXELS in all."""
    step = max(1, math.ceil((array.size / HISTOGRAM_VOXELS) ** (1 / array.ndim)))
    return array[(slice(None, None, step),) * array.ndim]


def _grey_range(image: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(_thin(image).astype(np.float32), (0.5, 99.5))
    return (float(low), float(high)) if high > low else (float(image.min()), float(image.max()) + 1e-6)


def _scale_bar(axes, width_um: float, height_um: float) -> None:
    """A bar of 1, 2 or 5 times a power of ten, about a fifth of the width."""
    target = width_um / 5
    power = 10 ** math.floor(math.log10(target))
    length = max(step * power for step in (1, 2, 5) if step * power <= target * 1.0001)
    left, base = 0.04 * width_um, height_um - 0.04 * width_um
    thickness = 0.018 * width_um
    outline = {"facecolor": "white", "edgecolor": "black", "linewidth": 0.8}
    axes.add_patch(Rectangle((left, base - thickness), length, thickness, **outline))
    text = f"{length:g} µm" if length >= 0.1 else f"{length * 1000:g} nm"
    label = axes.text(
        left + length / 2, base - 1.6 * thickness, text, color="white", ha="center", va="bottom", fontsize=9
    )
    label.set_path_effects([withStroke(linewidth=2, foreground="black")])


def _histogram(axes, image, labels, class_names, grey_range) -> None:
    grey, classes = _thin(image), _thin(labels)
    low, high = grey_range
    margin = 0.08 * (high - low)
    low, high = low - margin, high + margin
    if image.dtype.kind in "ui":  # whole grey values a bin, or bins beat against the integers
        step = max(1, math.ceil((high - low) / 64))
        edges = np.arange(math.floor(low), math.ceil(high) + step + 1, step) - 0.5
    else:
        edges = np.linspace(low, high, 129)
    for label, _ in enumerate(class_names):
        counts = np.histogram(grey[classes == label], edges)[0] / grey.size * 100
        axes.stairs(counts, edges, fill=True, color=_rgb(label), alpha=0.4)
        axes.stairs(counts, edges, color=_rgb(label), linewidth=1.2)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("grey value")
    axes.set_ylabel("voxels [%]")
    axes.set_title("grey values of each class", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes, labels: np.ndarray, class_names: Sequence[str]) -> None:
    counts = np.bincount(labels.ravel(), minlength=len(class_names))
    handles = [
        Patch(facecolor=_rgb(i), label=f"{name}: {counts[i] / labels.size:.1%}")
        for i, name in enumerate(class_names)
    ]
    axes.axis("off")
    axes.legend(
        handles=handles,
        loc="upper left",
        frameon=False,
        fontsize=11,
        title="share of voxels",
        alignment="left",
    )
