"""The report of an evaluation: network and classical baselines on the same images, as tables and pictures.

`EvaluationReport` is an ignite handler for MONAI's `SupervisedEvaluator`; `configs/evaluate.json` names it
with `_target_`. It writes into its output folder, each file by atomic rename once all images are scored:

- `metrics.csv`: one row per image and method with every metric of `bundle.metrics.score`;
- `metrics.json`: mean, standard deviation, count, minimum and maximum per method and metric;
- `metrics.md`: the same to read;
- `cases.png`: the best, the median and the worst image of the network.
"""

import csv
import math
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing

from bundle import baselines as classical
from bundle.metrics import metric_names, score, spacing_per_axis, summarise
from bundle.pictures import (
    CLASS_COLOURS,
    class_legend,
    error_legend,
    error_map,
    grey_range,
    label_colours,
    scale_bar,
    show,
    to_grey,
)
from bundle.volume_io import atomic_path, sha256, without_nan, write_json

LOG_EVERY_S = 10.0
SUMMARY_COLUMNS = {
    "mean_dice": ("Dice", True),
    "mean_iou": ("IoU", True),
    "accuracy": ("accuracy", True),
    "mean_assd_um": ("surface distance [µm]", False),
    "mean_nsd": ("surface Dice at 1 voxel", True),
    "mean_abs_fraction_error": ("abs. fraction error", False),
    "mean_abs_surface_error": ("rel. surface error", False),
    "mean_abs_size_error": ("rel. size error", False),
}  # metric: (heading, larger is better)


class EvaluationReport:
    """Scores every image of a `SupervisedEvaluator` run, network and baselines alike, and writes the report.

    Args:
        output_dir: folder of the report; made if missing, files of an earlier report are replaced.
        class_names: name of each class, background first; their number is the number of classes.
        network_name: name of the network's rows and columns.
        baselines: True for all of `bundle.baselines.BASELINES`, False for none, or the names of some.
        spacing_um: [µm] pixel or voxel size, one number or one per axis; None takes it from the affine of
            the image's MetaTensor, which is in µm by this project's convention.
        checkpoint: file of the weights, whose SHA-256 is then in `metrics.json`: promoting weights asks for it.

    What it takes from `engine.state.output` after postprocessing: a list of dicts (decollated) or one dict
    of batches with, per image,

    - `image`: (C, x, y) or (C, x, y, z), the grey values the network saw, of which baselines and pictures take the
      first channel;
    - `label`, `pred`: (1, spatial) whole class numbers, or (classes, spatial) one-hot, logits or
      probabilities, of which the largest channel counts.

    The baselines see the same preprocessed image as the network, and
    `bundle.baselines.segment_in_truth_order` tells them from the true labels which grey level is which
    class. A baseline that cannot segment an image (all in one grey value) has an empty row that says why;
    the count `n` shows it.

    Errors: `ValueError`, one line with the name of the image, for wrong shapes, channels or labels and for
    an image without a voxel size. Only for runs in one process.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        class_names: Sequence[str],
        network_name: str = "unet",
        baselines: bool | Sequence[str] = True,
        spacing_um: float | Sequence[float] | None = None,
        checkpoint: str | os.PathLike | None = None,
    ) -> None:
        if isinstance(class_names, str) or not 2 <= len(class_names) <= len(CLASS_COLOURS):
            raise ValueError(f"class_names = {class_names!r}; it must list 2 to {len(CLASS_COLOURS)} names")
        chosen = list(classical.BASELINES) if baselines is True else list(baselines or [])
        self._notes = {network_name: "the trained network"}
        self._notes |= {name: classical.describe(name) for name in chosen}
        if network_name in chosen:
            raise ValueError(f"network_name = '{network_name}' is the name of a baseline; choose another")
        self.output_dir = Path(output_dir)
        self.class_names = [str(name) for name in class_names]
        self.network_name = network_name
        self.baselines = chosen
        self.spacing_um = spacing_um
        self.checkpoint = checkpoint

    def attach(self, engine: Engine) -> None:
        """Registers the handler; MONAI's engines call this for everything in `val_handlers`."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score_iteration)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        if idist.get_world_size() > 1:
            raise ValueError("EvaluationReport needs all images in one process: evaluate without torchrun")
        self._rows: list[dict] = []  # {"image", "method", "error", **metrics}
        self._paths: list[str] = []
        # One slice per image waits on disk until the scores are known, since nobody knows the median before.
        self._slices = Path(tempfile.mkdtemp(prefix="evaluation-"))
        self._drop_slices = weakref.finalize(self, shutil.rmtree, self._slices, ignore_errors=True)
        self._started_s = self._logged_s = time.monotonic()

    def _score_iteration(self, engine: Engine) -> None:
        for item in _items(engine.state.output):
            self._score_image(item)
        now_s = time.monotonic()
        if now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            done, total = engine.state.iteration, engine.state.epoch_length
            text = f"Evaluation: {len(self._paths)} images scored"
            if total:
                left_s = (now_s - self._started_s) * (total / done - 1)
                text += f", batch {done} of {total}, about {left_s:.0f} s left"
            engine.logger.info(text)

    def _score_image(self, item: dict) -> None:
        index = len(self._paths)
        path = _path_of(item.get("image"), index)
        try:
            image, truth, pred, spacing_um = self._arrays(item)
            labels, errors = {self.network_name: pred}, {}
            for name in self.baselines:
                try:
                    labels[name] = classical.segment_in_truth_order(name, image, truth, len(self.class_names))
                except ValueError as error:
                    errors[name] = str(error)
            scores = {name: score(x, truth, len(self.class_names), spacing_um) for name, x in labels.items()}
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        nothing = dict.fromkeys(metric_names(len(self.class_names)), math.nan)
        for name in self._notes:
            row = {"image": path, "method": name, "error": errors.get(name, "")}
            self._rows.append(row | scores.get(name, nothing))
        self._paths.append(path)
        _save_slice(self._slice_path(index), image, truth, labels, self.network_name, spacing_um)

    def _arrays(self, item: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[float]]:
        for key in ("image", "label", "pred"):
            if not isinstance(item.get(key), torch.Tensor):
                raise ValueError(f"the evaluator's output has no tensor '{key}'; it holds {sorted(item)}")
        image = item["image"].detach().cpu().float().numpy()[0]
        truth = _class_map(item["label"], len(self.class_names), "label")
        pred = _class_map(item["pred"], len(self.class_names), "pred")
        if not image.shape == truth.shape == pred.shape:
            raise ValueError(f"image {image.shape}, label {truth.shape}, pred {pred.shape} must match")
        return image, truth, pred, self._spacing(item["image"])

    def _spacing(self, image: torch.Tensor) -> list[float]:
        ndim = image.ndim - 1
        if self.spacing_um is not None:
            return spacing_per_axis(self.spacing_um, ndim)
        if not isinstance(image, MetaTensor):
            raise ValueError("the image is no MetaTensor with an affine; give spacing_um")
        return [float(s) for s in affine_to_spacing(image.affine, r=ndim)]

    def _slice_path(self, index: int) -> Path:
        return self._slices / f"{index}.npz"

    def _write(self, engine: Engine) -> None:
        if not self._rows:
            raise ValueError("there was no image to evaluate")
        names = _short_names(self._paths)
        for row in self._rows:
            row["image"] = names[row["image"]]
        report = _report(self._rows, self._notes, self.class_names, self.network_name)
        with atomic_path(self.output_dir / "metrics.csv") as path:
            _write_csv(path, self._rows)
        if self.checkpoint is not None:
            report["weights_sha256"] = sha256(Path(self.checkpoint))
        write_json(self.output_dir / "metrics.json", without_nan(report))
        with atomic_path(self.output_dir / "metrics.md") as path:
            path.write_text(_markdown(report), encoding="utf-8")
        self._draw_cases(report)
        self._drop_slices()
        engine.logger.info(f"Evaluation: {_headline(report)}")
        engine.logger.info(f"Evaluation: metrics.csv, .json, .md, cases.png in {self.output_dir.resolve()}")

    def _draw_cases(self, report: dict) -> None:
        rows = [row for row in self._rows if row["method"] == self.network_name]
        # An image of background only has no Dice; such an image is never a case unless there is nothing else.
        key = "mean_dice" if any(math.isfinite(row["mean_dice"]) for row in rows) else "accuracy"
        ranked = sorted((i for i, row in enumerate(rows) if math.isfinite(row[key])), key=lambda i: -rows[i][key])
        picked = {"best": ranked[0], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[-1]}
        cases = []
        for rank, index in picked.items():
            if index not in [case["index"] for case in cases]:  # fewer than three images
                with np.load(self._slice_path(index)) as stored:
                    case = dict(stored)
                of_image = self._rows[index * len(self._notes) : (index + 1) * len(self._notes)]
                scores = {row["method"]: row for row in of_image}
                title = f"{rank}: {rows[index]['image']}{case['note']}"
                cases.append({"index": index, "title": title, "scores": scores} | case)
        figure = _case_figure(cases, self.network_name, report["best_baseline"], self.class_names)
        with atomic_path(self.output_dir / "cases.png") as path:
            figure.savefig(path, format="png", dpi=150)


def _items(output: dict | Sequence[dict]) -> list[dict]:
    """The output of one iteration as one dict per image, decollated or not."""
    if not isinstance(output, dict):
        return list(output)
    count = len(output["image"])
    return [{key: value[i] for key, value in output.items()} for i in range(count)]


def _path_of(image: object, index: int) -> str:
    path = image.meta.get("filename_or_obj") if isinstance(image, MetaTensor) else None
    if isinstance(path, list | tuple):
        path = path[0] if path else None
    return str(path) if path else f"image_{index:04d}"


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """{path: file name}; the path below the common folder where file names alone would be ambiguous."""
    unique = sorted(set(paths))
    if len({Path(path).name for path in unique}) == len(unique):
        return {path: Path(path).name for path in unique}
    if len({os.path.isabs(path) for path in unique}) > 1:
        return {path: path for path in unique}
    common = os.path.commonpath(unique)
    return {path: os.path.relpath(path, common) for path in unique}


def _class_map(tensor: torch.Tensor, n_classes: int, name: str) -> np.ndarray:
    """(1 or n_classes, spatial) -> uint8 (spatial); values are checked by `score`."""
    array = tensor.detach().cpu()
    if array.shape[0] not in (1, n_classes):
        raise ValueError(f"{name} has shape {tuple(array.shape)}; its first axis must be 1 or {n_classes} classes")
    if array.shape[0] > 1:
        return array.argmax(dim=0).numpy().astype(np.uint8)
    values = array[0].numpy()
    if not np.all((values >= 0) & (values < n_classes) & (values == np.round(values))):
        raise ValueError(f"{name} has one channel, which must hold whole class numbers 0 to {n_classes - 1}")
    return values.astype(np.uint8)


def _save_slice(
    path: Path,
    image: np.ndarray,
    truth: np.ndarray,
    labels: dict,
    network_name: str,
    spacing_um: Sequence[float],
) -> None:
    """Keeps as uint8 what `cases.png` may need: the image, or its slice along z with most network errors."""
    where: tuple = (...,)
    note = ""
    if truth.ndim == 3:
        wrong = np.count_nonzero(labels[network_name] != truth, axis=(0, 1))
        z = int(wrong.argmax()) if wrong.any() else truth.shape[2] // 2
        where = (..., z)
        note = f"   (slice {z + 1} of {truth.shape[2]}, with most errors; figures are the volume's)"
    planes = {f"labels_{name}": array[where] for name, array in labels.items()}
    np.savez(
        path,
        grey=to_grey(image[where], grey_range(image))[..., 0],
        truth=truth[where],
        spacing_um=spacing_um[:2],
        note=note,
        **planes,
    )


def _report(rows: list[dict], notes: dict[str, str], class_names: list[str], network_name: str) -> dict:
    """What `metrics.json` holds, NaN still in it."""
    names = metric_names(len(class_names))
    scores = {method: [row for row in rows if row["method"] == method] for method in notes}
    methods = {}
    for method, of_method in scores.items():
        methods[method] = {
            "note": notes[method],
            "failed": sum(bool(row["error"]) for row in of_method),
            "summary": summarise([{name: row[name] for name in names} for row in of_method]),
        }
    report = {
        "n_images": len(scores[network_name]),
        "class_names": class_names,
        "network": network_name,
        "best_baseline": None,
        "network_against_best_baseline": None,
        "methods": methods,
    }
    ranked = [m for m in methods if m != network_name and math.isfinite(methods[m]["summary"]["mean_dice"]["mean"])]
    if ranked:
        best = max(ranked, key=lambda m: methods[m]["summary"]["mean_dice"]["mean"])
        gains = [n["mean_dice"] - b["mean_dice"] for n, b in zip(scores[network_name], scores[best], strict=True)]
        gains = [gain for gain in gains if math.isfinite(gain)]
        report["best_baseline"] = best
        report["network_against_best_baseline"] = {
            "n_images": len(gains),
            "network_better": sum(gain > 0 for gain in gains),
            "mean_dice_gain": sum(gains) / len(gains) if gains else math.nan,
        }
    return report


def _write_csv(path: Path, rows: list[dict]) -> None:
    """Rows of the report: NaN is an empty cell."""
    columns = [*(name for name in rows[0] if name != "error"), "error"]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_cell(row[column]) for column in columns])


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return "" if math.isnan(value) else f"{value:.7g}"


def _headline(report: dict) -> str:
    dice = report["methods"][report["network"]]["summary"]["mean_dice"]
    text = f"{report['network']} reaches Dice {_mean_sd(dice)} on {report['n_images']} images"
    best, against = report["best_baseline"], report["network_against_best_baseline"]
    if best is None:
        return f"{text}."
    return (
        f"{text}; the best baseline ({best}) {_mean_sd(report['methods'][best]['summary']['mean_dice'])}. "
        f"The network is better on {against['network_better']} of {against['n_images']}."
    )


def _mean_sd(statistics: dict[str, float]) -> str:
    mean, sd = statistics["mean"], statistics["sd"]
    if math.isnan(mean):
        return "–"
    return f"{mean:.4f}" if math.isnan(sd) else f"{mean:.4f} ± {sd:.4f}"


def _markdown(report: dict) -> str:
    class_names, methods = report["class_names"], report["methods"]
    columns = dict(SUMMARY_COLUMNS)
    if len(class_names) > 2:
        columns |= {f"dice_{k}": (f"Dice {name}", True) for k, name in enumerate(class_names)}
    best = {metric: _best_mean(methods, metric, larger) for metric, (_, larger) in columns.items()}
    lines = [
        "# Evaluation",
        "",
        _headline(report),
        "",
        "| method | " + " | ".join(heading for heading, _ in columns.values()) + " | n |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for method, of_method in methods.items():
        cells = []
        for metric in columns:
            statistics = of_method["summary"][metric]
            text = _mean_sd(statistics)
            cells.append(f"**{text}**" if statistics["mean"] == best[metric] else text)
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {of_method['summary']['accuracy']['n']} |")
    foreground = ", ".join(class_names[1:])
    lines += [
        "",
        "Mean ± standard deviation between images; bold is the best mean of a column. Classes:"
        f" {class_names[0]} (background), {foreground}. Dice, IoU and the surface metrics are means over"
        f" {foreground}; the fraction error is the mean over all classes of |predicted − true| volume"
        " fraction; n counts the images that the method could segment.",
    ]
    missing = {method: _missing_surfaces(of_method["summary"]) for method, of_method in methods.items()}
    if any(missing.values()):
        text = ", ".join(f"{method} {count}" for method, count in missing.items() if count)
        lines += ["", f"Surfaces without a distance (class not in the truth, or not found): {text}."]
    lines += ["", "## Methods", ""]
    lines += [f"- **{method}**: {of_method['note']}" for method, of_method in methods.items()]
    if report["best_baseline"] is not None:
        lines += [
            "",
            "A baseline knows only the order of grey values. For each image it is told how many classes there"
            " are, and its k-th darkest class counts as the class with the k-th lowest mean grey value under"
            " the true labels; and the best of them is picked on these very images. All of this favours the"
            " baselines.",
        ]
    return "\n".join(lines) + "\n"


def _missing_surfaces(summary: dict) -> int:
    """How many foreground classes of segmented images have no surface distance."""
    counts = [statistics["n"] for metric, statistics in summary.items() if metric.startswith("assd_um_")]
    return sum(summary["accuracy"]["n"] - count for count in counts)


def _best_mean(methods: dict, metric: str, larger: bool) -> float:
    means = [m["summary"][metric]["mean"] for m in methods.values()]
    means = [mean for mean in means if math.isfinite(mean)]
    if len(means) < 2:
        return math.nan
    return max(means) if larger else min(means)


def _case_figure(cases: list[dict], network_name: str, best_baseline: str | None, class_names: list[str]) -> Figure:
    """One row per case: scan, truth, prediction, best baseline, errors of the prediction.

    A case holds `title`, `scores` ({method: row of the report}) and the arrays of `_save_slice`.
    """
    n_columns = 5 if best_baseline else 4
    heights = [2.7 * _height_over_width(case) + 0.6 for case in cases]
    figure = Figure(figsize=(2.75 * n_columns, sum(heights) + 0.4), layout="constrained", facecolor="white")
    rows = figure.subfigures(len(cases), 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, case in zip(rows, cases, strict=True):
        row.suptitle(case["title"], x=0.01, ha="left", fontsize=11, fontweight="bold")
        _draw_case(list(row.subplots(1, n_columns)), case, network_name, best_baseline, len(class_names))
    handles = class_legend(class_names) + error_legend(class_names)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def _draw_case(axes: list[Axes], case: dict, network_name: str, best_baseline: str | None, n_classes: int) -> None:
    truth, pred, scores = case["truth"], case[f"labels_{network_name}"], case["scores"]
    grey = np.repeat(case["grey"][..., None], 3, axis=-1)
    panels = [
        ("scan", grey),
        ("truth", label_colours(truth, n_classes)),
        (f"{network_name}   Dice {scores[network_name]['mean_dice']:.4f}", label_colours(pred, n_classes)),
    ]
    if best_baseline:
        of_baseline = case.get(f"labels_{best_baseline}")
        if of_baseline is None:
            panels.append((f"{best_baseline}   failed", np.full_like(grey, 255)))
        else:
            dice = scores[best_baseline]["mean_dice"]
            panels.append((f"{best_baseline}   Dice {dice:.4f}", label_colours(of_baseline, n_classes)))
    wrong = 1 - scores[network_name]["accuracy"]
    panels.append((f"{network_name} errors   {wrong:.2%}", error_map(pred, truth)))
    size_um = np.array(truth.shape) * case["spacing_um"]
    for ax, (title, rgb) in zip(axes, panels, strict=True):
        show(ax, rgb, size_um, title)
    scale_bar(axes[0], *size_um)


def _height_over_width(case: dict) -> float:
    width_um, height_um = np.array(case["truth"].shape) * case["spacing_um"]
    return float(np.clip(height_um / width_um, 0.3, 3))
