"""One picture of a quickstart: truth, scan, prediction and error in 2D and 3D, curves, table, your own scan.

python scripts/overview.py results --image results/spheres/images/spheres_00012.nii.gz
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import imread
from matplotlib.ticker import LogLocator, NullFormatter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bundle.metrics import score  # noqa: E402
from bundle.pictures import (  # noqa: E402
    class_histogram,
    class_legend,
    error_legend,
    error_map,
    label_colours,
    scale_bar,
    show,
    to_grey,
)
from bundle.volume_io import atomic_path, read_volume, write_json  # noqa: E402

WIDTH = 14.0  # inches
COLUMNS = {"mean_dice": "Dice", "mean_iou": "IoU", "accuracy": "accuracy"}  # of the table


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the quickstart")
    parser.add_argument("--image", type=Path, required=True, help="the 2D test image that was segmented")
    return parser.parse_args()


def load_case(image: Path, segmented: Path, names: list[str]) -> dict:
    """Scan, truth, prediction and scores of a segmented image or volume of a generated data set."""
    scan = read_volume(image)
    truth = read_volume(image.parent.parent / "labels" / image.name).array
    pred = read_volume(segmented / "labels.nii.gz").array
    sizes = scan.voxel_size_um
    scores = score(pred, truth, len(names), sizes)
    return {"scan": scan.array, "truth": truth, "pred": pred, "voxel_size_um": sizes, "scores": scores}


def draw_case(row: SubFigure, case: dict, title: str, names: list[str]) -> None:
    """Truth, scan, prediction and error; of a volume the middle x-z plane, across all reconstructed slices."""
    planes = {k: case[k] for k in ("scan", "truth", "pred")}
    size_um = [n * s for n, s in zip(case["scan"].shape, case["voxel_size_um"], strict=True)]
    if case["scan"].ndim == 3:
        middle = case["scan"].shape[1] // 2
        planes = {k: v[:, middle, :] for k, v in planes.items()}
        size_um = [size_um[0], size_um[2]]
    wrong = np.mean(planes["pred"] != planes["truth"])
    pictures = {
        "truth": label_colours(planes["truth"], len(names)),
        "simulated scan": to_grey(planes["scan"]),
        f"UNet, Dice {case['scores']['mean_dice']:.4f}": label_colours(planes["pred"], len(names)),
        f"UNet's errors: {wrong:.2%} of the pixels": error_map(planes["pred"], planes["truth"]),
    }
    axes = list(row.subplots(1, len(pictures)))
    for ax, (name, picture) in zip(axes, pictures.items(), strict=True):
        show(ax, picture, size_um, name)
    scale_bar(axes[1], *size_um)
    for ax, handles in ((axes[0], class_legend(names)), (axes[3], error_legend(names))):
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "ncols": 2, "frameon": False}
        ax.legend(handles=handles, fontsize=8.5, handlelength=1, handletextpad=0.5, columnspacing=1, **below)
    heading(row, title)


def heading(row: SubFigure, title: str) -> None:
    """The bold line above a row."""
    row.suptitle(title, x=0.008, ha="left", fontsize=12, fontweight="bold")


def draw_curves(loss_axis: Axes, error_axis: Axes, history: list[dict]) -> None:
    """Training and validation loss, and what validation scores lack to 1, against epochs."""
    validated = [h for h in history if "val_loss" in h]  # not every epoch need be
    epochs = [h["epoch"] for h in validated]
    loss_axis.plot([h["epoch"] for h in history], [h["train_loss"] for h in history], label="training")
    loss_axis.plot(epochs, [h["val_loss"] for h in validated], label="validation")
    loss_axis.set_title("loss (Dice + cross-entropy)", fontsize=10)
    error_axis.plot(epochs, [1 - h["val_mean_dice"] for h in validated], "C2", label="1 − Dice")
    error_axis.plot(epochs, [1 - h["val_mean_iou"] for h in validated], "C4", label="1 − IoU")
    error_axis.set_title("validation error", fontsize=10)
    for ax in (loss_axis, error_axis):
        ax.set(xlabel="epoch", yscale="log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.grid(color="#e6e6e6", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(fontsize=9, frameon=False)


def draw_table(ax: Axes, metrics: dict) -> None:
    """Mean scores of network and baselines on the test images, the best of each column bold."""
    methods = metrics["methods"]
    means = [[method["summary"][k]["mean"] for k in COLUMNS] for method in methods.values()]
    best = [max((m for m in column if m is not None), default=None) for column in zip(*means, strict=True)]
    texts = [["–" if m is None else f"{m:.4f}" for m in row] for row in means]
    table = ax.table(
        texts,
        rowLabels=[name.replace("_", " ") for name in methods],
        colLabels=list(COLUMNS.values()),
        colWidths=[0.2] * len(COLUMNS),
        cellLoc="right",
        colLoc="right",
        bbox=(0, 0, 1, 1),
    )
    table.auto_set_font_size(False)
    for (row, column), cell in table.get_celld().items():
        cell.set(edgecolor="#bbbbbb", linewidth=0.6, fontsize=9)
        cell.visible_edges = "B"
        if row and column >= 0 and means[row - 1][column] == best[column] is not None:
            cell.get_text().set_fontweight("bold")
    ax.set_title(f"mean of {metrics['n_images']} test images", fontsize=10)
    ax.axis("off")


def best_threshold(image: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The grey value that best parts class 0 (below) from the phases, and the share of voxels it gets wrong."""
    order = np.argsort(image, axis=None)
    phase = labels.ravel()[order] > 0
    wrong = np.concatenate([[0], np.cumsum(phase)]) + np.concatenate([np.cumsum(~phase[::-1])[::-1], [0]])
    best = int(wrong.argmin())
    return float(image.ravel()[order[min(best, image.size - 1)]]), float(wrong[best] / image.size)


def draw_histogram(ax: Axes, case: dict, names: list[str]) -> None:
    """Grey values of each true class of the test image, and how far one threshold gets: no further than the overlap."""
    class_histogram(ax, case["scan"], case["truth"], len(names))
    threshold, wrong = best_threshold(case["scan"], case["truth"])
    line = ax.axvline(threshold, ymax=0.62, color="black", linestyle="--", linewidth=1)  # below the legend
    line.set_label(f"best threshold: {wrong:.1%} wrong\n(UNet: {1 - case['scores']['accuracy']:.1%})")
    ax.legend(handles=[*class_legend(names), line], fontsize=8.5, frameon=False, loc="upper right")
    ax.set_ylim(top=1.6 * ax.get_ylim()[1])  # room for the legend
    ax.set_title("grey values of the test image", fontsize=10)


def main() -> int:
    args = parse_arguments()
    out = args.out
    metrics = json.loads((out / "training/evaluation/metrics.json").read_text())
    history = json.loads((out / "training/history.json").read_text())
    names = metrics["class_names"]
    flat = load_case(args.image, out / "segmented_image", names)
    solid = load_case(out / "spheres_3d/images/spheres_00000.nii.gz", out / "segmented_volume", names)
    own = out / "segmented_scan/overlay.png"
    heights = [WIDTH / 4 + 0.75, WIDTH / 4 + 0.75, 3.1]
    if own.exists():
        picture = imread(own)
        heights.append(min(WIDTH * picture.shape[0] / picture.shape[1], 7.5) + 0.4)
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.09, h_pad=0.05)
    rows = figure.subfigures(len(heights), 1, height_ratios=heights)
    draw_case(rows[0], flat, f"Test image of median Dice, {' × '.join(map(str, flat['scan'].shape))} pixels", names)
    voxels = " × ".join(map(str, solid["scan"].shape))
    draw_case(rows[1], solid, f"3D volume, {voxels} voxels: x–z plane, across the slices", names)
    heading(rows[2], "Training, and the same test images segmented by classical methods")
    axes = rows[2].subplots(1, 4, width_ratios=[1, 1, 1.3, 1.1])
    draw_curves(axes[0], axes[1], history)
    draw_table(axes[2], metrics)
    draw_histogram(axes[3], flat, names)
    if own.exists():
        heading(rows[3], "Your scan")
        ax = rows[3].subplots()
        ax.imshow(picture)
        ax.axis("off")
    with atomic_path(out / "overview.png") as path:
        figure.savefig(path, dpi=110, format="png")
    write_json(out / "volume_scores.json", solid["scores"])
    print(f"3D volume: Dice {solid['scores']['mean_dice']:.4f}; picture: {out / 'overview.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
