"""What augmentation buys: networks trained with and without it, on scans that are corrupted in the sinogram.

One training set of clean scans. One network without augmentation, one with all of ``configs/augment.json``, and one
with each family of it alone. Test sets of the same recipe, clean and corrupted by the simulator at three strengths.
Four further networks, the oracles, are trained without augmentation on scans that the simulator made with that very
corruption, the middle one: what it leaves to be learnt by a network of this size in this time.

A scan with motion has no single truth. The label here is the object at the mean pose that the scan shows: each view
counts by the direction that it sees, so that it is where the resting object lies that fits the scan best, by least
squares (``data_gen.artifacts.move``). The reconstruction shows it there, and a label that is drawn on one belongs to it
too; the mean over time lies elsewhere, by d/2π for a drift of d pixels over 180°, which no image tells. Each motion
figure has a second beside it, the Dice after the best shift of the prediction by whole pixels: what is lost by shape.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from skimage.measure import perimeter_crofton
from skimage.registration import phase_cross_correlation
from tqdm import tqdm

from bundle.pictures import error_legend, error_map, show, to_grey
from bundle.uncertainty import signed_distance
from bundle.volume_io import read_labels, read_volume, write_json
from studies.common import (
    Segmenter,
    check_names,
    config_content,
    dice,
    earlier_rows,
    folder_name,
    generate,
    markdown,
    mean_sd,
    pairs_of,
    train,
    write_results,
)

SIZES = {
    "small": {"pairs": 300, "test_images": 40, "epochs": 80, "filters": 8},
    "medium": {"pairs": 300, "test_images": 40, "epochs": 200, "filters": 16},
    "full": {"pairs": 1000, "test_images": 100, "epochs": 150, "filters": 16},
}
STRENGTHS = ("weak", "middle", "strong")
PROBABILITIES = {
    key.removesuffix("_prob"): value
    for key, value in config_content("augment.json").items()
    if key.endswith("_prob") and key != "clean_prob"
}
FAMILIES = tuple(family for family, value in PROBABILITIES.items() if value)  # those that the overlay has on
ORACLES = {f"{name}, simulated": name for name in ("motion", "noise", "white noise", "sparse")}
NETWORKS = ("none", "all", *ORACLES, *FAMILIES)
OPTIONS = {"batch_size": 2, "patches_per_image": 4}  # an image is augmented whole, which takes long
TRAIN_SEED, TEST_SEED = 0, 1000


def _stripes(error_sd: float) -> dict:
    return {
        "scanner::stripes": {
            "_target_": "data_gen.artifacts.Stripes",
            "gain_sd": error_sd / 4,
            "error_sd": error_sd,
            "full_share": 0.05,
            "partial_share": 0.03,
            "fluctuating_share": 0.02,
        }
    }


def _motion(px: float) -> dict:
    return {
        "scanner::motion": {
            "_target_": "data_gen.artifacts.Motion",
            "drift_px": px,
            "jump_px": px,
            "n_jumps": 1,
            "jitter_px": px / 8,
        }
    }


def _photons(photons: float) -> dict:
    return {"scanner::detector::photons": photons}


def _blur(fwhm_px: float) -> dict:
    return {"scanner::detector::psf_fwhm_px": fwhm_px}


def _views(n_angles: int) -> dict:
    return {"scanner::geometry::n_angles": n_angles}


# each at weak, middle, strong; the middle ones were set so that a small network without augmentation loses on them what
# an earlier prototype lost: Dice 0.96 (rings), 0.79 (motion), 0.83 (noise), 0.96 (sparse), 0.82 (together)
CORRUPTIONS = {
    "rings": [_stripes(e) for e in (0.01, 0.02, 0.04)],
    "motion": [_motion(d) for d in (5, 11.5, 20)],
    "noise": [_photons(n) for n in (8000, 2000, 500)],
    "white noise": [{"scanner::noise_sd": s} for s in (0.05, 0.10, 0.20)],
    "blur": [_blur(w) for w in (1.5, 3.0, 5.0)],
    "sparse": [_views(n) for n in (80, 38, 30)],
    "together": [
        _stripes(e) | _motion(d) | _photons(n) | _blur(w) | _views(v)
        for e, d, n, w, v in ((0.005, 3, 40000, 1.0, 240), (0.01, 6, 20000, 1.5, 180), (0.02, 10, 8000, 2.0, 120))
    ],
}


def run(out: Path, size: str, networks: tuple[str, ...] = NETWORKS) -> None:
    """Do the study; every step whose result lies in ``out`` is taken from there."""
    check_names("networks", networks, NETWORKS)
    rows = earlier_rows(out, size, ("network",))
    p = SIZES[size]
    clean = generate(out, p["pairs"], TRAIN_SEED)
    tests = {("clean", "clean"): generate(out, p["test_images"], TEST_SEED)}
    steps = [(name, k) for name in CORRUPTIONS for k in range(len(STRENGTHS))]
    for name, k in tqdm(steps, desc="corrupted test sets", unit="set"):
        tests[name, STRENGTHS[k]] = generate(
            out, p["test_images"], TEST_SEED, overlay=CORRUPTIONS[name][k], label=folder_name(name, STRENGTHS[k])
        )
    limits = {s: noise_limit(tests["white noise", s], tests["clean", "clean"]) for s in STRENGTHS}
    for network in tqdm(networks, desc="networks", unit="network"):
        scans = clean
        if network in ORACLES:
            name = ORACLES[network]
            scans = generate(
                out, p["pairs"], TRAIN_SEED, overlay=CORRUPTIONS[name][1], label=folder_name(name, "middle")
            )
        augmented = network == "all" or network in FAMILIES
        trained = train(
            out / "runs" / folder_name(network),
            scans / "dataset.json",
            ["network_segresnet.json"] + augmented * ["augment.json"],
            max_epochs=p["epochs"],
            val_interval=10,
            **{"network_def::init_filters": p["filters"]},
            **OPTIONS,
            **_only(network),
        )
        found = {}
        segmenter = Segmenter(trained)
        for (name, strength), dataset in tests.items():
            values = dice_of_each(segmenter, dataset, trained / "scores" / f"{dataset.name}.json")
            entry = dict(zip(("mean", "sd"), mean_sd([v["dice"] for v in values]), strict=True), n=len(values))
            entry["shifted"] = mean_sd([v["shifted"] for v in values])[0]
            found[f"{name}/{strength}"] = entry
        rows[network,] = {"network": network, "dice": found}
        table = {name: rows[name,]["dice"] for name in NETWORKS if (name,) in rows}
        content = {"rows": [rows[name,] for name in table], "white_noise_limit": limits}
        write_results(out, "robustness", size, content, _table(table, limits), _figure(out, table, tests))


def _only(network: str) -> dict[str, float]:
    """The options that leave one family of augmentation on, where ``network`` is named after one."""
    if network not in FAMILIES:
        return {}
    return {f"{family}_prob": 0 for family in PROBABILITIES if family != network}


def dice_of_each(segmenter: Callable, dataset: Path, file: Path) -> list[dict[str, float]]:
    """Dice of each image, plain and after the best shift of the prediction by whole pixels; kept in ``file``."""
    if not file.exists():
        values = []
        for pair in pairs_of(dataset):
            truth = read_labels(pair["label"])[0] > 0
            found = segmenter(read_volume(pair["image"]).array) > 0
            # not normalised, the correlation of two masks is their overlap
            shift = phase_cross_correlation(truth.astype(float), found.astype(float), normalization=None)[0].astype(int)
            inside = tuple(slice(max(0, s), n + min(0, s)) for s, n in zip(shift, truth.shape, strict=True))
            moved, plain = np.roll(found, shift, (0, 1))[inside], dice(found, truth)
            values.append({"dice": plain, "shifted": max(plain, dice(moved, truth[inside]))})
        write_json(file, values)
    return json.loads(file.read_text())


def noise_limit(noisy: Path, clean: Path) -> dict[str, float]:
    """How near white noise lets a boundary be found where the objects are circles.

    The Cramér–Rao bound of a circle that is fitted by centre and radius. A piece of boundary that is one pixel long
    tells its place along the normal with the information Σ (slope / sd of the noise)² of the profile across it. Of
    ``length`` pixels with three parameters, each of the same mean square over the boundary, the fit is off by the
    variance 3 / (length · information), the mean amount √(2/π) of its root. What is off by δ pixels costs a Dice of
    δ / radius.

    Args:
        noisy, clean: data sets of the same structures, with and without that noise.

    Returns:
        Means over the images: ``contrast`` of the phases by the sd of the noise, ``information`` [1/px³] of a
        boundary by area, ``radius`` [px] = 2 · area / length of the boundaries, ``off`` [px] and ``dice`` at the bound.
    """
    found = []
    for with_noise, without in zip(pairs_of(noisy), pairs_of(clean), strict=True):
        truth = read_labels(with_noise["label"])[0] > 0
        scan, grey = (read_volume(pair["image"]).array for pair in (with_noise, without))
        slope, level = np.polyfit(grey.ravel(), scan.ravel(), 1)  # each scan has a scale of its own
        noise = (scan - slope * grey - level).std() / slope
        depth = -signed_distance(truth)
        bands = [np.ceil(depth) == d for d in range(-4, 6)]
        profile, place = (np.array([image[band].mean() for band in bands]) for image in (grey, depth))
        information = (np.diff(profile) ** 2 / np.diff(place)).sum() / noise**2
        radius = 2 * truth.sum() / perimeter_crofton(truth)
        off = math.sqrt(2 / math.pi * 3 / (2 * math.pi * radius * information))
        contrast = (profile[-1] - profile[0]) / noise
        found.append((contrast, information, radius, off, 1 - off / radius))
    names = ("contrast", "information", "radius", "off", "dice")
    return dict(zip(names, np.mean(found, axis=0).tolist(), strict=True))


def _table(table: dict, limits: dict) -> str:
    columns = list(next(iter(table.values())))
    header = ["trained with", *(c.replace("/", ", ") if c != "clean/clean" else "clean" for c in columns)]
    rows = []
    for network, values in table.items():
        cells = []
        for column in columns:
            v = values[column]
            extra = f" ({v['shifted']:.3f})" if column.partition("/")[0] in ("motion", "together") else ""
            cells.append(f"{v['mean']:.4f}{extra}")
        rows.append([network, *cells])
    n = next(iter(next(iter(table.values())).values()))["n"]
    turned = list(zip(header, *rows, strict=True))
    note = f"Dice, mean of n = {n} images; in brackets after the best shift of the prediction by whole pixels."
    bounds = ", ".join(f"{v['dice']:.4f} ({strength}, {v['off']:.2f} pixels off)" for strength, v in limits.items())
    note += f" Bound of circles fitted to the white noise: {bounds}."
    return f"{markdown(turned[0], turned[1:])}\n\n{note}"


def _figure(out: Path, table: dict, tests: dict) -> Figure:
    """The matrix of Dice, and one image of each corruption at the middle strength with what two networks make of it."""
    names = list(CORRUPTIONS)
    shown = ["clean", *names]
    networks = [n for n in ("none", "all") if n in table and (out / "runs" / n / "model.pt").exists()]
    texts = ["scan, middle strength", "truth", *(f"error, trained with: {n}" for n in networks)]
    figure = Figure(figsize=(2.1 * len(shown), 2.1 * len(texts) + 0.55 * len(table) + 1.5), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(0.55 * len(table) + 1.5, 2.1 * len(texts)))
    axes = upper.subplots()
    columns = list(next(iter(table.values())))
    values = np.array([[table[n][c]["mean"] for c in columns] for n in table])
    axes.imshow(values, vmin=0.7, vmax=1, cmap="viridis", aspect="auto")
    for (i, j), v in np.ndenumerate(values):
        axes.text(j, i, f"{v:.3f}", ha="center", va="center", color="white" if v < 0.9 else "black", fontsize=7)
    axes.set_yticks(range(len(table)), [f"trained with: {n}" for n in table])
    n = table[next(iter(table))][columns[0]]["n"]
    axes.set_title(f"Dice, mean of n = {n} images, one seed", fontsize=9)
    axes.set_xticks(range(len(columns)), [c.replace("/", "\n") for c in columns], fontsize=7)
    grid = lower.subplots(len(texts), len(shown), squeeze=False)
    segmenters = {n: Segmenter(out / "runs" / n) for n in networks}
    for column, name in enumerate(shown):
        pair = pairs_of(tests[name, "clean" if name == "clean" else "middle"])[0]
        image, (truth, voxel) = read_volume(pair["image"]).array, read_labels(pair["label"])
        size_um = [n * v for n, v in zip(truth.shape, voxel, strict=True)]
        show(grid[0, column], to_grey(image), size_um, name)
        show(grid[1, column], to_grey(truth.astype(np.float32)), size_um)
        for row, network in enumerate(networks, start=2):
            show(grid[row, column], error_map(segmenters[network](image), truth), size_um)
    for row, text in enumerate(texts):
        grid[row, 0].set_ylabel(text, fontsize=8)
    lower.legend(handles=error_legend(["pore", "particle"]), loc="outside lower center", ncols=2, fontsize=8)
    return figure
