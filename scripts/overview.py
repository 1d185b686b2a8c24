"""One picture of a quickstart: truth, scan, prediction and error in 2D and 3D, curves, table, your own scan.

python scripts/overview.py results --image results/spheres/images/spheres_00012.nii.gz
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bundle.metrics import score  # noqa: E402
from bundle.pictures import FALSE_NEGATIVE, FALSE_POSITIVE, error_map, label_colours, to_grey  # noqa: E402
from bundle.volume_io import atomic_path, read_volume, write_json  # noqa: E402


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


def draw_case(axes, case: dict, title: str, n_classes: int) -> None:
    """Four panels; of a volume the middle x-z plane, across all reconstructed slices."""
    planes = {k: case[k] for k in ("scan", "truth", "pred")}
    plane_name = ""
    if case["scan"].ndim == 3:
        middle = case["scan"].shape[1] // 2
        planes = {k: v[:, middle, :] for k, v in planes.items()}
        plane_name = ", x–z plane"
    pictures = {
        f"{title}{plane_name}: truth": label_colours(planes["truth"], n_classes),
        "simulated scan": to_grey(planes["scan"]),
        f"UNet, Dice {case['scores']['mean_dice']:.4f}": label_colours(planes["pred"], n_classes),
        "error": error_map(planes["pred"], planes["truth"]),
    }
    for ax, (name, picture) in zip(axes, pictures.items(), strict=True):
        ax.imshow(picture.transpose(1, 0, 2), interpolation="nearest")
        ax.set_title(name, fontsize=10)
        ax.set_xticks([])
        ax.set_yticks([])
    width_um = planes["scan"].shape[0] * case["voxel_size_um"][0]
    axes[1].set_xlabel(f"field of view {width_um:g} µm", fontsize=9)
    handles = [plt.Rectangle((0, 0), 1, 1, color=np.array(c) / 255) for c in (FALSE_POSITIVE, FALSE_NEGATIVE)]
    axes[3].legend(handles, ["false particle", "false pore"], fontsize=7, loc="lower right")


def draw_curves(loss_axis, dice_axis, history: list[dict]) -> None:
    """Training and validation loss, and validation scores, against epochs."""
    epochs = [h["epoch"] for h in history]
    loss_axis.plot(epochs, [h["train_loss"] for h in history], label="training")
    loss_axis.plot(epochs, [h["val_loss"] for h in history], label="validation")
    loss_axis.set(title="Dice + cross-entropy loss", xlabel="epoch", yscale="log")
    loss_axis.legend(fontsize=8)
    dice_axis.plot(epochs, [1 - h["val_mean_dice"] for h in history], label="1 − Dice")
    dice_axis.plot(epochs, [1 - h["val_mean_iou"] for h in history], label="1 − IoU")
    dice_axis.set(title="validation error", xlabel="epoch", yscale="log")
    dice_axis.legend(fontsize=8)


def draw_table(ax, metrics: dict) -> None:
    """Mean scores of network and baselines on the test images."""
    rows = []
    for name, method in metrics["methods"].items():
        summary = method["summary"]
        rows.append([name, *(f"{summary[k]['mean']:.4f}" for k in ("mean_dice", "mean_iou", "accuracy"))])
    table = ax.table(
        rows, colLabels=["method", "Dice", "IoU", "accuracy"], loc="center", colWidths=[0.46, 0.18, 0.18, 0.18]
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.scale(1, 1.35)
    ax.set_title(f"{metrics['n_images']} test images, mean", fontsize=10)
    ax.axis("off")


def draw_own_scan(ax, folder: Path) -> None:
    """The overlay of the user's scan, or how to get one."""
    picture = folder / "overlay.png"
    if picture.exists():
        ax.imshow(plt.imread(picture))
        ax.set_title("your scan", fontsize=10)
    else:
        ax.text(0.5, 0.5, "your scan here:\nmake run SCAN=scan.tif", ha="center", va="center", fontsize=10)
    ax.axis("off")


def main() -> int:
    args = parse_arguments()
    out = args.out
    metrics = json.loads((out / "training/evaluation/metrics.json").read_text())
    history = json.loads((out / "training/history.json").read_text())
    names = metrics["class_names"]
    flat = load_case(args.image, out / "segmented_image", names)
    solid = load_case(out / "spheres_3d/images/spheres_00000.nii.gz", out / "segmented_volume", names)
    figure, axes = plt.subplots(3, 4, figsize=(15, 11.5), layout="constrained")
    draw_case(axes[0], flat, "test image (median)", len(names))
    draw_case(axes[1], solid, "3D volume", len(names))
    draw_curves(axes[2, 0], axes[2, 1], history)
    draw_table(axes[2, 2], metrics)
    draw_own_scan(axes[2, 3], out / "segmented_scan")
    with atomic_path(out / "overview.png") as path:
        figure.savefig(path, dpi=110, format="png")
    write_json(out / "volume_scores.json", solid["scores"])
    print(f"3D volume: Dice {solid['scores']['mean_dice']:.4f}; picture: {out / 'overview.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
