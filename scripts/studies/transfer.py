"""One annotated real slice: synthetic pretraining against training from scratch, scored on another slice.

The real slices are nano-CT images of NMC cathodes (Su et al., npj Comput. Mater. 8:30, 2022) with labels drawn
semi-manually: 0 active material, 1 carbon-binder domain (CBD), 2 pore. Their boundaries are uncertain by several
pixels, so the best possible figure is well below 1: the table has, beside each score, the Dice of the labels with
themselves after their interfaces were moved by 1 and 2 pixels.

Three quarters of the annotated slice are trained on, the rest chooses the epoch; the other slices are only scored. All
trainings have augmentation and the same number of steps; from scratch it is the default's learning rate, which is four
times that of the careful steps from other weights on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import distance_transform_edt
from tqdm import tqdm

from bundle.metrics import score
from bundle.pictures import class_legend, label_colours, overlay, show, to_grey
from bundle.volume_io import read_volume, write_json, write_nifti
from studies.common import Segmenter, folder_name, generate, markdown, mean_sd, train, write_results

SIZES = {
    "small": {"pairs": 150, "pretraining": 25, "epochs": 30, "seeds": 3},
    "full": {"pairs": 1000, "pretraining": 100, "epochs": 150, "seeds": 5},
}
CLASS_NAMES = ["pore", "active", "CBD"]  # of the recipe
CLASS_OF_LABEL = np.array([1, 2, 0], np.uint8)  # real label to class
SLICES = {"a_1": "a_100", "a_100": "a_1"}  # trained on, scored on
OTHER = "d_1501"  # another cell
PIXEL_UM = 0.05  # the files do not say it; the recipe's
WAYS = {
    "synthetic alone": None,
    "from scratch": {"learning_rate": 0.002},
    "pretrained": {"pretrained_part": "all"},
    "pretrained encoder": {"pretrained_part": "encoder"},
    "pretrained encoder, frozen": {"pretrained_part": "encoder", "freeze": True},
}


def run(out: Path, size: str, real: Path | None = None) -> None:
    """Do the study; ``real`` is the folder with ``a_1.tif``, ``a_1_label.tif`` and so on.

    Raises:
        ValueError: there is no such folder, a slice is missing in it or has other labels, ``out`` has other slices.
    """
    names = tuple(dict.fromkeys((*SLICES, *SLICES.values(), OTHER)))
    needed = [f"{name}{part}.tif" for name in names for part in ("", "_label")]
    missing = needed if real is None else [name for name in needed if not (real / name).is_file()]
    if missing:
        raise ValueError(
            f"--real {real}: needs the folder with {', '.join(needed)} (nmc_nanoct); {missing[0]} is not there"
        )
    datalists = {name: annotated(real, name, out / "data" / name) for name in SLICES}
    pairs = {name: real_pair(real, name) for name in names}
    p = SIZES[size]
    synthetic = generate(out, p["pairs"], 0, "generate_nmc_cathode.json")
    pretrained = train(
        out / "runs" / "pretraining",
        synthetic / "dataset.json",
        ["augment.json"],
        max_epochs=p["pretraining"],
        val_interval=5,
    )
    jobs = [
        (s, way, seed) for s in SLICES for way in WAYS for seed in range(p["seeds"] if WAYS[way] is not None else 1)
    ]
    rows = []
    for source, way, seed in tqdm(jobs, desc="trainings", unit="run"):
        trained = pretrained
        if WAYS[way] is not None:
            options = dict(WAYS[way])
            if "pretrained_part" in options:
                options["pretrained"] = pretrained / "model.pt"
            trained = train(
                out / "runs" / folder_name(source, way, str(seed)),
                datalists[source],
                ["transfer.json", "augment.json"],
                max_epochs=p["epochs"],
                val_interval=5,
                seed=seed,
                **options,
            )
        segmenter = Segmenter(trained)
        for target in (SLICES[source], OTHER):
            image, truth = pairs[target]
            values = score(segmenter(image), truth, len(CLASS_NAMES), PIXEL_UM)
            rows.append({"trained_on": source, "way": way, "seed": seed, "scored_on": target, **values})
    limits = {f"{name}, {d} px": moved_dice(pairs[name][1], d) for name in pairs for d in (1, 2)}
    content = {"rows": rows, "moved_labels_dice": limits}
    write_results(out, "transfer", size, content, _table(rows, limits), _figure(out, pairs))


def real_pair(real: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Image float32 and classes uint8 of an annotated slice, both (x, y). Raises ValueError for other labels."""
    image = read_volume(real / f"{name}.tif", PIXEL_UM).array.astype(np.float32)
    label = read_volume(real / f"{name}_label.tif", PIXEL_UM).array
    if unknown := set(np.unique(label).tolist()) - set(range(len(CLASS_OF_LABEL))):
        raise ValueError(
            f"{real / name}_label.tif has labels such as {min(unknown)}; known: 0 (active material), 1 (CBD), 2 (pore)"
        )
    return image, CLASS_OF_LABEL[label.astype(np.uint8)]


def annotated(real: Path, name: str, folder: Path) -> Path:
    """Datalist of one annotated slice: its left three quarters to train, the rest to validate.

    Raises ValueError where ``folder`` holds another slice of that name.
    """
    image, label = real_pair(real, name)
    cut = 3 * len(image) // 4
    affine = np.diag([PIXEL_UM, PIXEL_UM, 1, 1])
    content = {"labels": {str(k): n for k, n in enumerate(CLASS_NAMES)}, "tensorImageSize": "2D"}
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in (("training", slice(None, cut)), ("validation", slice(cut, None))):
        for kind, array in (("image", image[part]), ("label", label[part])):
            file = folder / f"{split}_{kind}.nii.gz"
            if not file.exists():
                write_nifti(file, array, affine)
            elif not np.array_equal(read_volume(file).array, array):
                raise ValueError(f"{file} is not of {real / name}.tif; choose another --out for these slices")
        content[split] = [{"image": f"{split}_image.nii.gz", "label": f"{split}_label.nii.gz"}]
    content["test"] = []
    write_json(folder / "dataset.json", content)
    return folder / "dataset.json"


def moved_dice(truth: np.ndarray, distance_px: float) -> float:
    """Mean Dice, without pore, of labels with themselves after each class in turn has grown by this distance."""
    values = []
    for k in range(1, len(CLASS_NAMES)):
        grown = distance_transform_edt(truth != k) <= distance_px
        values.append(2 * (truth == k).sum() / (grown.sum() + (truth == k).sum()))
    return float(np.mean(values))


def _table(rows: list[dict], limits: dict[str, float]) -> str:
    header = ["trained on", "way", "scored on", "mean Dice", *(f"IoU {n}" for n in CLASS_NAMES), "fraction error", "n"]
    lines = []
    for key in dict.fromkeys((r["trained_on"], r["way"], r["scored_on"]) for r in rows):
        of_key = [r for r in rows if (r["trained_on"], r["way"], r["scored_on"]) == key]

        def mean(name: str, of_key: list = of_key) -> str:
            value, sd = mean_sd([r[name] for r in of_key])
            return f"{value:.3f}" if len(of_key) == 1 else f"{value:.3f} ± {sd:.3f}"

        lines.append([*key, mean("mean_dice"), *(mean(f"iou_{k}") for k in range(3)), mean("mean_abs_fraction_error")])
        lines[-1].append(len(of_key))
    note = "; ".join(f"{name}: {value:.3f}" for name, value in limits.items())
    return (
        f"{markdown(header, lines)}\n\nMean ± sd of n runs. Dice of the labels with themselves, classes grown: {note}."
    )


def _figure(out: Path, pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    source, target = next(iter(SLICES.items()))
    image, truth = pairs[target]
    size_um = [n * PIXEL_UM for n in image.shape]
    figure = Figure(figsize=(13, 3.5 * 2), layout="constrained")
    axes = figure.subplots(2, 4).flat
    learnt, labels = pairs[source]
    learnt_um = [n * PIXEL_UM for n in learnt.shape]
    show(
        axes[0],
        overlay(to_grey(learnt), labels, len(CLASS_NAMES)),
        learnt_um,
        f"{source}, left three quarters trained on",
    )
    show(axes[1], to_grey(image), size_um, f"{target}, scored on")
    show(axes[2], label_colours(truth, len(CLASS_NAMES)), size_um, "label")
    for k, way in enumerate(WAYS, start=3):
        name = "pretraining" if WAYS[way] is None else folder_name(source, way, "0")
        show(axes[k], label_colours(Segmenter(out / "runs" / name)(image), len(CLASS_NAMES)), size_um, f"{way}, seed 0")
    figure.legend(handles=class_legend(CLASS_NAMES), loc="outside lower center", ncols=len(CLASS_NAMES))
    return figure
