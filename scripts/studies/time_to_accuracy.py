"""Minutes to a Dice of 0.9943 on the published protocol: recipes, each with schedules of growing length.

A recipe is a set of overlays and options; a schedule anneals its learning rate to zero within its own epochs, so each
length is a training of its own. A recipe ends with the first length that reaches the target on the validation images,
mirrored as the test images are; these are only scored.

What limits the figure is the data set's own blur and noise, so that is measured beside: a threshold half-way between
the phases' median grey values, taken with the truth, on the test images and on the same structures scanned without
noise and with one energy, where nothing but the scanner's blur is between a voxel and its label.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from bundle.volume_io import read_labels, read_volume
from studies.common import (
    check_names,
    dice,
    earlier_rows,
    folder_name,
    generate,
    markdown,
    mean_sd,
    minutes,
    pairs_of,
    scores,
    train,
    training_seconds,
    write_results,
)

TARGET = 0.9943
SIZES = {
    "small": {"pairs": 200, "epochs": (5, 15, 45), "target": 0.985},
    "full": {"pairs": 1000, "epochs": (30, 40, 50, 60, 80, 120), "target": TARGET},
}
IDEAL = {
    "scanner::noise_sd": 0.0,
    "source": {"_target_": "data_gen.spectrum.Monochromatic", "energy_kev": 60.0},
}
RECIPES: dict[str, tuple[list[str], dict]] = {
    "default": ([], {}),
    "batches of 8": ([], {"batch_size": 8}),
    "channels-last": ([], {"channels_last": True}),
    "UNet of the paper": (["network_unet_paper.json"], {}),
    "SegResNet": (["network_segresnet.json"], {}),
    "SegResNet, patches of 160": (["network_segresnet.json"], {"patch_size": [160, 160]}),
    "averaged weights": ([], {"ema_decay": 0.99}),
}


def run(out: Path, size: str, recipes: tuple[str, ...] = tuple(RECIPES)) -> None:
    """Do the study; every step whose result lies in ``out`` is taken from there."""
    check_names("recipes", recipes, list(RECIPES))
    p = SIZES[size]
    dataset = generate(out, p["pairs"], 0)
    ideal = generate(out, p["pairs"], 0, overlay=IDEAL, label="ideal")
    limits = {name: mean_sd(half_way_dice(d)) for name, d in (("as it is", dataset), ("ideal", ideal))}
    rows = earlier_rows(out, size, ("recipe", "epochs"))
    for recipe in tqdm(recipes, desc="recipes", unit="recipe"):
        overlays, options = RECIPES[recipe]
        for epochs in p["epochs"]:
            folder = out / "runs" / folder_name(recipe, str(epochs))
            trained = train(
                folder,
                dataset / "dataset.json",
                overlays,
                max_epochs=epochs,
                val_interval=max(1, epochs // 5),
                **options,
            )
            values, chosen = (scores(trained, dataset, (split,)) for split in ("test", "validation"))
            row = {"recipe": recipe, "epochs": epochs, "training_seconds": training_seconds(trained)}
            row |= {"dice": mean_sd([v["mean_dice"] for v in values]), "n": len(values)}
            row |= {"iou": mean_sd([v["mean_iou"] for v in values])}
            row["validation_dice"] = mean_sd([v["mean_dice"] for v in chosen])[0]
            rows[recipe, epochs] = row
            found = sorted(rows.values(), key=lambda r: (list(RECIPES).index(r["recipe"]), r["epochs"]))
            content = {"target": p["target"], "rows": found, "half_way_dice": limits}
            table = f"{_table(found, p['target'])}\n\n{_limits(limits)}"
            write_results(out, "time", size, content, table, _figure(found, p["target"]))
            if row["validation_dice"] >= p["target"]:
                break


def half_way_dice(dataset: Path) -> list[float]:
    """Dice of each test image segmented by a threshold half-way between the medians of the two phases."""
    values = []
    for pair in pairs_of(dataset, ("test",)):
        grey, truth = read_volume(pair["image"]).array, read_labels(pair["label"])[0] > 0
        values.append(dice(grey > (np.median(grey[truth]) + np.median(grey[~truth])) / 2, truth))
    return values


def _limits(limits: dict[str, tuple[float, float]]) -> str:
    seen, ideal = (f"{mean:.4f} ± {sd:.4f}" for mean, sd in (limits["as it is"], limits["ideal"]))
    return (
        f"A threshold half-way between the phases: {seen} on the test images, {ideal} on the same structures without "
        "noise and with one energy."
    )


def _table(rows: list[dict], target: float) -> str:
    header = ["recipe", "epochs", "training [min]", "validation Dice", f"≥ {target}", "test Dice", "IoU"]
    lines = []
    for r in rows:
        line = [r["recipe"], r["epochs"], minutes(r["training_seconds"]), f"{r['validation_dice']:.4f}"]
        line += ["yes" if r["validation_dice"] >= target else ""]
        lines.append([*line, f"{r['dice'][0]:.4f} ± {r['dice'][1]:.4f}", f"{r['iou'][0]:.4f}"])
    note = (
        f"Mean ± sd of {rows[0]['n']} test images, mirrored. Minutes of the epochs, without validation, as they were, "
    )
    return f"{markdown(header, lines)}\n\n{note}and in brackets at the pace of the fastest."


def _figure(rows: list[dict], target: float) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for recipe in dict.fromkeys(r["recipe"] for r in rows):
        points = [(r["training_seconds"][1] / 60, r["dice"][0]) for r in rows if r["recipe"] == recipe]
        axes.plot(*zip(*points, strict=True), marker="o", label=recipe)
    axes.axhline(target, color="black", linewidth=0.8, linestyle="--")
    axes.set(xlabel="training, at the pace of the fastest epochs [min]", xscale="log")
    axes.set(ylabel=f"Dice, n = {rows[0]['n']} test images, one seed")
    for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        ticks(lambda x, _: f"{x:g}")  # minutes, no powers of ten
    axes.legend(fontsize=7)
    return figure
