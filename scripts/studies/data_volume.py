"""How much data a network needs: UNet against Pix2Pix on 10 %, 20 % … 100 % of the training images.

The same test images for all, several seeds, each of which draws another subset and other initial weights; every
training takes the same number of steps, so that less data is not also less training, and all validation images choose
the epoch, whatever the share. The published figures are Dice
0.987 ± 0.001 (UNet) against 0.905 ± 0.136 (Pix2Pix), of other images.

Every image is a structure of its own, so a subset of images is one of volumes; slices of one volume never lie on both
sides of a split.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from bundle.volume_io import write_json
from studies.common import generate, markdown, mean_sd, scores, train, write_results

SIZES = {
    "small": {"pairs": 290, "seeds": 3, "steps": 1000, "warmup": 20, "batch": 4, "discriminator": 32},
    "full": {"pairs": 1000, "seeds": 3, "steps": 5000, "warmup": 100, "batch": 8, "discriminator": 64},
}
SHARES = tuple(k / 10 for k in range(1, 11))
NETWORKS = {"UNet": [], "Pix2Pix": ["train_pix2pix.json"]}
VALIDATIONS = 6  # times a run is validated


def run(out: Path, size: str) -> None:
    """Do the study; every step whose result lies in ``out`` is taken from there."""
    p = SIZES[size]
    dataset = generate(out, p["pairs"], seed=0)
    jobs = [(share, seed, name) for share in SHARES for seed in range(p["seeds"]) for name in NETWORKS]
    options = {  # an epoch of warm-up would be more steps for more data
        "UNet": {"lr_scheduler::warmup_steps": p["warmup"]},
        "Pix2Pix": {"discriminator_channels": p["discriminator"]},
    }
    results: dict[str, dict[str, list[list[float]]]] = {name: {} for name in NETWORKS}
    for share, seed, name in tqdm(jobs, desc="trainings", unit="run"):
        datalist, count = subset(dataset, share, seed)
        steps = count // p["batch"] if count > p["batch"] else 1  # of an epoch: the last, smaller batch is dropped
        epochs = math.ceil(p["steps"] / steps)
        trained = train(
            out / "runs" / f"{name}_{round(100 * share):03d}_{seed}",
            datalist,
            NETWORKS[name],
            max_epochs=epochs,
            val_interval=math.ceil(epochs / VALIDATIONS),
            batch_size=p["batch"],
            seed=seed,
            **options[name],
        )
        dice = [row["mean_dice"] for row in scores(trained, dataset, ("test",))]
        results[name].setdefault(f"{share:g}", []).append(dice)
    content = {"dice_of_each_image": results, "training_images": round(0.7 * p["pairs"]), "steps": p["steps"]}
    write_results(out, "data_volume", size, content, _table(results, dataset), _figure(results))


def subset(dataset: Path, share: float, seed: int) -> tuple[Path, int]:
    """A datalist with a random share of the training pairs, and how many these are; the other splits stay whole."""
    content = json.loads((dataset / "dataset.json").read_text())
    training = content["training"]
    count = max(1, round(share * len(training)))
    rng = np.random.default_rng([seed, count])
    content["training"] = [training[k] for k in sorted(rng.choice(len(training), count, replace=False))]
    content["numTraining"] = count
    path = dataset / f"dataset_{round(100 * share):03d}_{seed}.json"  # beside the original: its paths are relative
    write_json(path, content)
    return path, count


def _table(results: dict, dataset: Path) -> str:
    whole = len(json.loads((dataset / "dataset.json").read_text())["training"])
    rows = []
    for share in SHARES:
        row = [f"{share:.0%}", max(1, round(share * whole))]
        for name in NETWORKS:
            runs = results[name].get(f"{share:g}", [])
            if not runs:
                row += ["", ""]
                continue
            of_runs = mean_sd([float(np.mean(r)) for r in runs])
            of_images = mean_sd([v for r in runs for v in r])
            row += [f"{of_runs[0]:.4f} ± {of_runs[1]:.4f}", f"{of_images[1]:.4f}"]
        rows.append(row)
    header = ["share", "images", *(f"{n}: {w}" for n in NETWORKS for w in ("Dice ± sd of runs", "sd of images"))]
    note = "Dice of the test images, mirrored; mean and sd of the runs' means; sd of all images of all runs."
    return f"{markdown(header, rows)}\n\n{note}"


def _figure(results: dict) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, by_share in results.items():
        shares = [float(s) for s in by_share]
        values = [mean_sd([float(np.mean(r)) for r in runs]) for runs in by_share.values()]
        mean, sd = np.array(values).T
        axes.errorbar(np.multiply(100, shares), mean, np.nan_to_num(sd), marker="o", capsize=3, label=name)
    runs = len(next(iter(next(iter(results.values())).values())))
    axes.set(xlabel="share of the training images [%]", ylabel=f"Dice, mean and sd of {runs} runs")
    axes.legend()
    return figure
