"""How good a segmentation is: overlap, surface distance in µm, and errors of the properties measured on it.

`score` judges one image, `summarise` a set of them; `VolumeFractionError` and `PropertyError` are MONAI metrics for
training and evaluation configs. Overlap and surface distances are MONAI's.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric, compute_dice, compute_iou, do_metric_reduction
from monai.metrics.utils import get_surface_distance
from monai.networks import one_hot
from monai.utils import MetricReduction
from scipy.ndimage import binary_erosion

from bundle.morphology import SHORTEST_AXIS, chord_lengths, contact_area


def score(pred: np.ndarray, truth: np.ndarray, n_classes: int, spacing_um: float | Sequence[float]) -> dict[str, float]:
    """Every metric of one predicted label map.

    Args:
        pred, truth: class numbers 0 ... n_classes - 1, integers of shape (x, y) or (x, y, z); class 0 is
            background.
        n_classes: number of classes, at least 2.
        spacing_um: [µm] pixel or voxel size, one number or one per axis.

    Returns a flat dict of floats, k being a class number:
        `dice_k`, `iou_k`: overlap of each class (with 0); NaN where `truth` has no voxel of class k (MONAI's
            convention: a false positive there counts in the other classes, in the accuracy and in the
            fraction error).
        `mean_dice`, `mean_iou`: over the classes without 0. `mean_iou_all`: over all classes.
        `accuracy`: share of voxels with the right class.
        `assd_um_k`: [µm] average symmetric surface distance of class k >= 1; NaN if one of the two has no
            surface of that class. `mean_assd_um`: their mean. A missed class therefore shows in Dice and in
            `n` of `summarise`, not here.
        `nsd_k`, `mean_nsd`: normalised surface Dice, the share of both surfaces within one voxel (the
            longest edge of an anisotropic one) of the other; 0 if only one of the two has a surface of that
            class, NaN if neither.
        `fraction_error_k`: volume fraction of class k (with 0) in `pred` minus that in `truth`.
        `mean_abs_fraction_error`: mean over all classes of its absolute value.
        `surface_error_k`, `size_error_k`: relative error of the specific surface (2D: perimeter) and of the mean
            chord of class k (with 0), prediction / truth − 1; NaN where `truth` has none, or an axis of 2 voxels.
        `mean_abs_surface_error`, `mean_abs_size_error`: means over all classes of their absolute values.
        `absent_classes`: number of classes that `truth` does not hold.
    Means leave NaN out, and are NaN if nothing is left.

    A surface is the set of a class's voxels with a face neighbour of another class. The frame of the image
    is no surface: it cuts through the material. MONAI's `compute_average_surface_distance` counts it, at
    distance 0 where prediction and truth both touch it; for objects away from the frame the two agree.

    Raises `ValueError` for shapes that differ or are not 2D or 3D, labels that are not whole numbers in
    range, and a voxel size that is not positive.

    Source: `monai.metrics.compute_dice`, `compute_iou`, `utils.get_surface_distance`; surface Dice after
    Nikolov et al., J. Med. Internet Res. 23 (2021) e26151.
    """
    if n_classes < 2:
        raise ValueError(f"n_classes = {n_classes}; there must be at least 2, background included")
    pred, truth = _class_numbers(pred, n_classes, "pred"), _class_numbers(truth, n_classes, "truth")
    if pred.shape != truth.shape:
        raise ValueError(f"pred {pred.shape} and truth {truth.shape} must have the same shape")
    spacing = spacing_per_axis(spacing_um, pred.ndim)

    pred_1hot, truth_1hot = _batch_one_hot(pred, n_classes), _batch_one_hot(truth, n_classes)
    dice = compute_dice(pred_1hot, truth_1hot, include_background=True)[0].tolist()
    iou = compute_iou(pred_1hot, truth_1hot, include_background=True)[0].tolist()
    n_pred, n_truth = (np.bincount(labels.ravel(), minlength=n_classes) for labels in (pred, truth))
    fraction_error = ((n_pred - n_truth) / pred.size).tolist()
    properties = _property_errors(pred, truth, n_classes, spacing)
    surface = [_surface_scores(pred == k, truth == k, spacing) for k in range(1, n_classes)]

    result = {
        "mean_dice": _nanmean(dice[1:]),
        "mean_iou": _nanmean(iou[1:]),
        "mean_iou_all": _nanmean(iou),
        "accuracy": float(np.mean(pred == truth)),
        "mean_assd_um": _nanmean([assd for assd, _ in surface]),
        "mean_nsd": _nanmean([nsd for _, nsd in surface]),
        "mean_abs_fraction_error": float(np.mean(np.abs(fraction_error))),
        "mean_abs_surface_error": _nanmean(np.abs(properties["surface"]).tolist()),
        "mean_abs_size_error": _nanmean(np.abs(properties["size"]).tolist()),
        "absent_classes": float(np.count_nonzero(n_truth == 0)),
    }
    result |= {f"dice_{k}": value for k, value in enumerate(dice)}
    result |= {f"iou_{k}": value for k, value in enumerate(iou)}
    result |= {f"assd_um_{k}": assd for k, (assd, _) in enumerate(surface, start=1)}
    result |= {f"nsd_{k}": nsd for k, (_, nsd) in enumerate(surface, start=1)}
    result |= {f"fraction_error_{k}": value for k, value in enumerate(fraction_error)}
    for name in ("surface", "size"):
        result |= {f"{name}_error_{k}": value for k, value in enumerate(properties[name].tolist())}
    return result


def metric_names(n_classes: int) -> list[str]:
    """The keys of `score` for `n_classes` classes, in its order."""
    names = ["mean_dice", "mean_iou", "mean_iou_all", "accuracy", "mean_assd_um", "mean_nsd"]
    names += ["mean_abs_fraction_error", "mean_abs_surface_error", "mean_abs_size_error", "absent_classes"]
    names += [f"{kind}_{k}" for kind in ("dice", "iou") for k in range(n_classes)]
    names += [f"{kind}_{k}" for kind in ("assd_um", "nsd") for k in range(1, n_classes)]
    return names + [f"{kind}_error_{k}" for kind in ("fraction", "surface", "size") for k in range(n_classes)]


def summarise(scores: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, sample standard deviation, count, smallest and largest value of each metric over images.

    Args:
        scores: dicts of `score`, all with the same keys. NaN is left out; `n` counts what is left.

    Returns {metric: {"mean", "sd", "n", "min", "max"}}; `sd` (n - 1 in the denominator) is NaN for n < 2,
    everything but `n` is NaN for n = 0. Raises `ValueError` for no scores or keys that differ.
    """
    if not scores:
        raise ValueError("there are no scores to summarise")
    if any(set(s) != set(scores[0]) for s in scores):
        raise ValueError("the scores do not all hold the same metrics")
    return {name: _statistics([s[name] for s in scores]) for name in scores[0]}


class VolumeFractionError(CumulativeIterationMetric):
    """MONAI metric: absolute error of the volume fraction of each class, as a share of the image (0 ... 1).

    Takes one-hot `y_pred` and `y` of shape (batch, classes, spatial...), or lists of (classes, spatial...),
    as the other MONAI metrics do; gives (batch, classes). `aggregate` returns the mean over classes and
    images (or another MONAI `reduction`). In a config::

        {"_target_": "IgniteMetricHandler", "metric_fn": {"_target_": "bundle.metrics.VolumeFractionError"},
         "output_transform": "$monai.handlers.from_engine(['pred', 'label'])"}

    Raises `ValueError` for shapes that differ or a single channel, of which no fractions can be told.
    """

    def __init__(self, include_background: bool = True, reduction: MetricReduction | str = MetricReduction.MEAN):
        super().__init__()
        self.include_background = include_background
        self.reduction = reduction

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        if y is None or y_pred.shape != y.shape:
            raise ValueError(f"y_pred {tuple(y_pred.shape)} and y {y if y is None else tuple(y.shape)} differ")
        if y_pred.ndim < 3 or y_pred.shape[1] < 2:
            raise ValueError(f"y_pred {tuple(y_pred.shape)} must be one-hot (batch, classes, spatial...)")
        spatial = tuple(range(2, y_pred.ndim))
        error = (y_pred.float().mean(dim=spatial) - y.float().mean(dim=spatial)).abs()
        return error if self.include_background else error[:, 1:]

    def aggregate(self, reduction: MetricReduction | str | None = None) -> torch.Tensor:
        """The errors of all images so far, reduced as MONAI's `do_metric_reduction` does."""
        data = self.get_buffer()
        if not isinstance(data, torch.Tensor):
            raise ValueError("VolumeFractionError has no images to aggregate")
        return do_metric_reduction(data, reduction or self.reduction)[0]


class PropertyError(CumulativeIterationMetric):
    """MONAI metric: absolute error of one measured property of each class, prediction against truth.

    Args:
        quantity: "fraction": volume fraction, as a share of the image; "surface": specific surface area (2D:
            perimeter) and "size": mean chord length, relative to the truth's.
        include_background: whether class 0 counts.
        voxel_size_um: [µm] one or one per axis; only the ratio of its axes matters.
        reduction: MONAI's.

    Takes one-hot `y_pred` and `y` as `VolumeFractionError` does and gives (batch, classes), NaN where the truth lacks
    the property; means leave NaN out. In a config::

        {"_target_": "IgniteMetricHandler", "metric_fn": {"_target_": "bundle.metrics.PropertyError", "quantity":
         "surface"}, "output_transform": "$monai.handlers.from_engine(['pred', 'label'])"}

    Raises `ValueError` for an unknown quantity, shapes that differ or a single channel.
    """

    def __init__(
        self,
        quantity: str = "surface",
        include_background: bool = True,
        voxel_size_um: float | Sequence[float] = 1.0,
        reduction: MetricReduction | str = MetricReduction.MEAN,
    ):
        super().__init__()
        if quantity not in ("fraction", "surface", "size"):
            raise ValueError(f"quantity={quantity!r} must be fraction, surface or size")
        self.quantity = quantity
        self.include_background = include_background
        self.voxel_size_um = voxel_size_um
        self.reduction = reduction

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        fraction = VolumeFractionError()._compute_tensor(y_pred, y)  # checks the shapes, too
        if self.quantity == "fraction":
            errors = fraction
        else:
            n_classes = y_pred.shape[1]
            spacing = spacing_per_axis(self.voxel_size_um, y_pred.ndim - 2)
            pred, truth = (x.argmax(dim=1).to(torch.uint8).cpu().numpy() for x in (y_pred, y))
            pairs = zip(pred, truth, strict=True)
            found = [np.abs(_property_errors(a, b, n_classes, spacing)[self.quantity]) for a, b in pairs]
            errors = torch.as_tensor(np.array(found), dtype=torch.float32, device=y_pred.device)
        return errors if self.include_background else errors[:, 1:]

    def aggregate(self, reduction: MetricReduction | str | None = None) -> torch.Tensor:
        """The errors of all images so far, reduced as MONAI's `do_metric_reduction` does."""
        data = self.get_buffer()
        if not isinstance(data, torch.Tensor):
            raise ValueError("PropertyError has no images to aggregate")
        return do_metric_reduction(data, reduction or self.reduction)[0]


def _property_errors(
    pred: np.ndarray, truth: np.ndarray, n_classes: int, spacing: Sequence[float]
) -> dict[str, np.ndarray]:
    """Relative errors {"surface", "size"} of each class, float64 (classes,); NaN where the truth has none."""
    thick = [k for k, n in enumerate(truth.shape) if n > 1]  # a volume of one slice is an image
    nothing = np.full(n_classes, np.nan)
    if len(thick) < 2 or min(truth.shape[k] for k in thick) < SHORTEST_AXIS:
        return {"surface": nothing, "size": nothing}
    size = [spacing[k] for k in thick]
    surfaces, chords = [], []
    for labels in (np.squeeze(pred), np.squeeze(truth)):
        surfaces.append(contact_area(labels, size, n_classes).sum(axis=1))
        means = [row["mean"] for row in chord_lengths(labels, size, n_classes)]
        chords.append(np.array([0.0 if mean is None else mean for mean in means]))
    return {name: _relative(*found) for name, found in (("surface", surfaces), ("size", chords))}


def _relative(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    return np.divide(found, true, out=np.full(len(true), np.nan), where=true > 0) - 1


def _class_numbers(labels: np.ndarray, n_classes: int, name: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim not in (2, 3) or labels.size == 0:
        raise ValueError(f"{name} has shape {labels.shape}; it must be (x, y) or (x, y, z) and not empty")
    if not np.all((labels >= 0) & (labels < n_classes)):  # also catches NaN
        raise ValueError(f"{name} holds {labels.min()} to {labels.max()}; classes are 0 to {n_classes - 1}")
    whole = labels.astype(np.uint8)
    if not np.array_equal(whole, labels):
        raise ValueError(f"{name} must hold whole class numbers, not probabilities")
    return whole


def spacing_per_axis(spacing_um: float | Sequence[float], ndim: int) -> list[float]:
    """[µm] one positive length per axis, from one number or `ndim` of them; else `ValueError`."""
    values = np.atleast_1d(np.asarray(spacing_um, dtype=float)).tolist()
    values = values * ndim if len(values) == 1 else values
    if len(values) != ndim or not all(math.isfinite(v) and v > 0 for v in values):
        raise ValueError(f"spacing_um = {spacing_um}; it must be one positive length or {ndim} of them")
    return values


def _batch_one_hot(labels: np.ndarray, n_classes: int) -> torch.Tensor:
    """(spatial) class numbers -> (1, n_classes, spatial) float32."""
    return one_hot(torch.from_numpy(labels)[None, None].long(), num_classes=n_classes)


def _surface_scores(pred: np.ndarray, truth: np.ndarray, spacing: list[float]) -> tuple[float, float]:
    """(average symmetric surface distance [µm], surface Dice at one voxel) of one class, given as masks."""
    pred_edge, truth_edge = _inner_surface(pred), _inner_surface(truth)
    if not (pred_edge.any() or truth_edge.any()):
        return math.nan, math.nan
    if not (pred_edge.any() and truth_edge.any()):
        return math.nan, 0.0
    distance_um = np.concatenate(
        [
            get_surface_distance(pred_edge, truth_edge, spacing=spacing),
            get_surface_distance(truth_edge, pred_edge, spacing=spacing),
        ]
    ).astype(np.float64)
    one_voxel_um = max(spacing) * (1 + 1e-6)  # MONAI's distances are float32
    return float(distance_um.mean()), float(np.mean(distance_um <= one_voxel_um))


def _inner_surface(mask: np.ndarray) -> np.ndarray:
    """The voxels of `mask` with a face neighbour outside it; what lies beyond the frame counts as inside."""
    return mask & ~binary_erosion(mask, border_value=1)


def _nanmean(values: Sequence[float]) -> float:
    return _statistics(values)["mean"]


def _statistics(values: Sequence[float]) -> dict[str, float]:
    kept = np.array([v for v in values if not math.isnan(v)])
    n = len(kept)
    if n == 0:
        return {"mean": math.nan, "sd": math.nan, "n": 0, "min": math.nan, "max": math.nan}
    sd = float(kept.std(ddof=1)) if n > 1 else math.nan
    return {"mean": float(kept.mean()), "sd": sd, "n": n, "min": float(kept.min()), "max": float(kept.max())}
