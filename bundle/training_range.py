"""What a network was trained on, in numbers, and how far a scan is from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from bundle.volume_io import read_volume, sha256

MOST_IMAGES = 40
VOXEL_FACTOR = 1.25  # a structure a quarter larger or smaller, in voxels, was in most training sets anyway
NOISE_FACTOR = 1.5
MEAN_MARGIN = 0.15  # of the scaled range 0…1
FRACTION_MARGIN = 0.1
# these map any linear change of the grey values to the same image
SCALE_FREE = ("ScaleIntensityRangePercentilesd", "NormalizeIntensityd", "ScaleIntensityd")


def noise_sd(image: np.ndarray) -> float:
    """Standard deviation of the noise, in grey values, of an image (x, y) or the middle slices of (x, y, z).

    The median of a second difference along both axes, scaled to Gaussian white noise (Immerkær, CVIU 64:300, 1996, with
    the median for the mean, which edges move less). Correlated noise of a reconstruction gives another number than its
    own standard deviation, so compare it only with scans of the same kind.
    """
    if image.ndim == 3:
        middle = image.shape[2] // 2
        slices = [image[..., k] for k in range(max(0, middle - 4), min(image.shape[2], middle + 4))]
        return float(np.mean([noise_sd(plane) for plane in slices]))
    response = np.diff(np.diff(image.astype(np.float32), 2, axis=0), 2, axis=1)
    return float(np.median(np.abs(response)) / 0.6745 / 6)


def grey_statistics(scaled: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation and noise of an image (x, y[, z]) as the network sees it, after ``intensity``."""
    return {"mean": float(scaled.mean()), "sd": float(scaled.std()), "noise": noise_sd(scaled)}


def image_files(pair: Mapping, folder: Path) -> list[Path]:
    """The files of the images of a sample in a ``dataset.json``, one for each channel."""
    images = pair["image"] if isinstance(pair["image"], list) else [pair["image"]]
    return [folder / image for image in images]


def describe_dataset(folder: Path, preprocess: Callable[[np.ndarray], np.ndarray]) -> dict:
    """The data set of a training run in numbers, measured on up to 40 of its training pairs, of each the first image.

    folder: holds ``dataset.json`` and, if it was generated, ``recipe.json`` and ``manifest.json``.
    preprocess: image (x, y[, z]) → the same as the network sees it, float32.

    Returns plain JSON values: name, recipe and hashes, pairs per split, shape, voxel size [µm], grey values before and
    after scaling, and for each class its share, its mean scaled grey value and its mean width along x in voxels (runs
    that the border cuts included). A range is [lowest, highest] over the images. Raises FileNotFoundError without a
    data set, ValueError for one without training pairs or an image without a voxel size.
    """
    folder = Path(folder)
    path = folder / "dataset.json"
    if not path.is_file():
        raise FileNotFoundError(f"no data set at {folder}; say with --dataset where the run's training data are")
    content = json.loads(path.read_text(encoding="utf-8"))
    names = [content["labels"][str(k)] for k in range(len(content["labels"]))]
    pairs = content.get("training") or []
    if not pairs:
        raise ValueError(f"{path}: has no training pairs")
    chosen = [pairs[k] for k in np.unique(np.linspace(0, len(pairs) - 1, min(MOST_IMAGES, len(pairs))).astype(int))]
    images = [_measure(image_files(pair, folder)[0], folder / pair["label"], preprocess, len(names)) for pair in chosen]
    sizes = [size for image in images for size in image["voxel_size_um"]]
    recipe, manifest = folder / "recipe.json", folder / "manifest.json"
    return {
        "name": content.get("name", folder.name),
        "recipe": json.loads(recipe.read_text(encoding="utf-8")) if recipe.is_file() else None,
        "recipe_sha256": sha256(recipe) if recipe.is_file() else None,
        "manifest_sha256": sha256(manifest) if manifest.is_file() else None,
        "pairs": {split: len(content.get(split) or []) for split in ("training", "validation", "test")},
        "pairs_measured": len(images),
        "shape": list(images[0]["shape"]),
        "voxel_size_um": [min(sizes), max(sizes)],
        "grey": {key: _range([image["grey"][key] for image in images]) for key in images[0]["grey"]},
        "scaled": {key: _range([image["scaled"][key] for image in images]) for key in images[0]["scaled"]},
        "classes": [_class(name, [image["classes"][k] for image in images]) for k, name in enumerate(names)],
    }


def _measure(image_path: Path, label_path: Path, preprocess: Callable, n_classes: int) -> dict:
    image, labels = read_volume(image_path), read_volume(label_path).array
    if not image.voxel_size_um:
        raise ValueError(
            f"{image_path}: does not say how large a voxel is, which the record of a network needs; make the data set "
            "with --voxel-size-um"
        )
    scaled = preprocess(image.array)
    low, high = np.percentile(image.array, [0.5, 99.5])
    classes = []
    for k in range(n_classes):
        mask = labels == k
        runs = np.count_nonzero(mask[0]) + np.count_nonzero(mask[1:] & ~mask[:-1])
        voxels = int(mask.sum())
        classes.append(
            {
                "fraction": voxels / mask.size,
                "mean_grey": float(scaled[mask].mean()) if voxels else None,
                "width_voxels": voxels / runs if voxels else None,
            }
        )
    return {
        "shape": image.array.shape,
        "voxel_size_um": image.voxel_size_um,
        "grey": {
            "lowest": float(image.array.min()),
            "percentile_0.5": float(low),
            "percentile_99.5": float(high),
            "highest": float(image.array.max()),
        },
        "scaled": grey_statistics(scaled),
        "classes": classes,
    }


def _range(values: Sequence[float]) -> list[float]:
    return [min(values), max(values)]


def _class(name: str, images: Sequence[Mapping]) -> dict:
    widths = [image["width_voxels"] for image in images if image["width_voxels"] is not None]
    greys = [image["mean_grey"] for image in images if image["mean_grey"] is not None]
    return {
        "name": name,
        "fraction": _range([image["fraction"] for image in images]),
        "mean_grey": float(np.mean(greys)) if greys else None,
        "width_voxels": _range(widths) if widths else None,
    }


def scan_mismatches(
    data: Mapping, scan: np.ndarray, scaled: np.ndarray, voxel_size_um: Sequence[float], intensity: Sequence[Mapping]
) -> list[str]:
    """What about a scan lies outside what the network was trained on, one sentence each with what to do.

    data: from ``describe_dataset``. scan: (x, y[, z]) as read; scaled: as the network sees it.
    voxel_size_um: [µm] one size per axis. intensity: the config of the scaling, which says whether it is relative.
    """
    found = []
    low, high = data["voxel_size_um"]
    worst = max(voxel_size_um, key=lambda size: max(low / size, size / high))
    if max(low / worst, worst / high) > VOXEL_FACTOR:
        trained = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        factor = low / worst if worst < low else worst / high
        found.append(
            f"voxel size {worst:g} µm, trained at {trained} µm: structures of one size in µm look {factor:.2g} times "
            f"{'larger' if worst < low else 'smaller'} to the network; resample the scan to {trained} µm, or train at "
            f"{worst:g} µm (generate with --voxel_size_um {worst:g})"
        )
    if not any(step.get("_target_") in SCALE_FREE for step in intensity):
        low, high = data["grey"]["percentile_0.5"][0], data["grey"]["percentile_99.5"][1]
        margin = 0.1 * (high - low)
        p_low, p_high = np.percentile(scan, [0.5, 99.5])
        if p_low < low - margin or p_high > high + margin:
            found.append(
                f"grey values {p_low:g} to {p_high:g}, trained on {low:g} to {high:g}, and this network does not "
                "rescale them: bring the scan to that range first"
            )
    statistics, trained = grey_statistics(scaled), data["scaled"]
    low, high = trained["noise"]
    if statistics["noise"] > NOISE_FACTOR * high:
        found.append(
            f"noise {statistics['noise']:.3g} of the grey range, trained on {low:.3g} to {high:.3g}: denoise the scan "
            "(a median or non-local-means filter), or train with this noise (a scanner_*.json overlay)"
        )
    low, high = trained["mean"]
    if not low - MEAN_MARGIN <= statistics["mean"] <= high + MEAN_MARGIN:
        found.append(
            f"mean grey value {statistics['mean']:.2f} after scaling, trained on {low:.2f} to {high:.2f}: crop what is "
            "not sample (air around it, the corners outside a round field of view), invert a scan whose contrast is "
            "the other way round, or train with the phases in this proportion"
        )
    return found


def fraction_mismatches(data: Mapping, fractions: Sequence[float]) -> list[str]:
    """Classes whose share of a segmentation lies outside the training data, one sentence each with what to do.

    fractions: volume fraction of each class, in the order of the labels.
    """
    found = []
    for known, fraction in zip(data["classes"], fractions, strict=True):
        low, high = known["fraction"]
        if not low - FRACTION_MARGIN <= fraction <= high + FRACTION_MARGIN:
            found.append(
                f"{known['name']} fills {fraction:.0%} of the result, {low:.0%} to {high:.0%} of the training images: "
                "look at overlay.png before using the numbers"
            )
    return found


def as_network_sees(image: np.ndarray, intensity: Callable) -> np.ndarray:
    """An image (x, y[, z]) of any real dtype, scaled by a MONAI dictionary transform of 'image'; float32."""
    tensor = torch.from_numpy(np.array(image, dtype=np.float32, order="C"))[None]
    return np.asarray(intensity({"image": tensor})["image"], dtype=np.float32)[0]
