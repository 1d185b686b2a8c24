"""The record of trained weights: what they were trained on, how they scored, which config runs them.

Everything is measured or copied from the run's own files. The evaluation must be of exactly these weights: it names
their hash, or three of its images are segmented again and must score as its table says.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from PIL import Image

from bundle.card import model_card
from bundle.inference import load_weights, segment
from bundle.model_config import (
    check_portable,
    dataset_folder,
    inference_config,
    run_channel_names,
    run_class_names,
    training_config,
)
from bundle.networks import size_multiple
from bundle.safe_config import problems
from bundle.slices import stack_neighbours
from bundle.training_range import as_network_sees, describe_dataset, image_files
from bundle.volume_io import read_volume, sha256, staged_folder, write_json

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
ACCURACY_TOLERANCE = 2e-4  # share of voxels; other processors and bfloat16 flip a few at the borders
WINDOW = {2: 64, 3: 32}  # voxels along an axis of the stored image
PICTURE_WIDTH = 1000


def promote(
    checkpoint: Path,
    name: str,
    version: str,
    out: Path,
    *,
    dataset: Path | None = None,
    changes: str = "",
    notes: str = "",
) -> Path:
    """Put the weights of a finished and evaluated run into ``out/name``, with their record and model card.

    checkpoint: ``model.pt`` in the folder of a run, beside ``run.json``, ``history.json`` and ``evaluation/``.
    name: lower-case letters, digits and single underscores. version: three numbers, larger than what is there.
    dataset: folder of the training data, by default the one that the run's config names.
    changes: what is new in this version. notes: Markdown that the card quotes as the author's own words.

    Writes ``model.pt`` (a flat state dict), ``example.npz`` (a test image and its logits), ``cases.png``, ``README.md``
    and last ``record.json``. Returns the folder. Raises FileNotFoundError or ValueError, one line, if something is
    missing, does not fit, or the evaluation is not of these weights.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    check_name(name, version)
    changelog = _changelog(out / name / "record.json", version) | {version: changes or "no description"}
    record, network, image = _record(checkpoint, name, version, changelog, notes, dataset)
    with staged_folder(out / name, last="record.json") as folder:
        _write_weights(checkpoint, folder / "model.pt")
        with torch.inference_mode():
            logits = network(torch.from_numpy(image)).float().numpy()
        np.savez(folder / "example.npz", image=image, logits=logits)
        cases = checkpoint.parent / "evaluation" / "cases.png"
        if cases.is_file():
            _write_small_picture(cases, folder / "cases.png")
        picture = "cases.png" if cases.is_file() else None
        (folder / "README.md").write_text(model_card(record, picture), encoding="utf-8")
        record["files"] = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        write_json(folder / "record.json", record)
    return out / name


def check_name(name: str, version: str) -> None:
    """Raise ValueError for a name or version that a bundle cannot have."""
    if not NAME.fullmatch(name) or re.search(r"_v\d", name):
        raise ValueError(f"name {name!r} must be lower-case letters, digits and single underscores, and not end in _v1")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ValueError(f"version {version!r} must be three numbers, for example 0.1.0")


def _changelog(path: Path, version: str) -> dict[str, str]:
    if not path.is_file():
        return {}
    changelog = json.loads(path.read_text(encoding="utf-8"))["changelog"]
    latest = max(changelog, key=_numbers)
    if _numbers(version) <= _numbers(latest):
        raise ValueError(f"version {version} must be larger than {latest}, which {path.parent} holds")
    return changelog


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _record(
    checkpoint: Path, name: str, version: str, changelog: Mapping, notes: str, dataset: Path | None
) -> tuple[dict, torch.nn.Module, np.ndarray]:
    """The record but for its files, the network with its weights, and the example's image (1, channels, window)."""
    sources = ("run.json", "history.json", "evaluation/metrics.json")
    run, history, metrics = (_read(checkpoint.parent / source) for source in sources)
    if not run.get("config"):
        raise ValueError(f"{checkpoint.parent}/run.json: holds no config; train with python -m monai.bundle run")
    check_portable(run["hyper_parameters"], "record")
    names = run_class_names(checkpoint.parent, run["config"], run.get("hyper_parameters"))
    channels = run_channel_names(run["config"], run.get("hyper_parameters"))
    config = inference_config(run["config"], names, channels)
    unsafe = problems(config, __package__, Path(__file__).parent)
    if unsafe:
        raise ValueError(f"{checkpoint.parent}/run.json: {unsafe[0]}; such a config would be refused elsewhere")
    parser = ConfigParser(config)
    network = parser.get_parsed_content("network_def")
    load_weights(network, checkpoint)
    network.eval()
    intensity = Compose(parser.get_parsed_content("intensity"))
    folder = Path(dataset) if dataset else dataset_folder(run["config"])
    data = describe_dataset(folder, lambda image: as_network_sees(image, intensity))
    if [known["name"] for known in data["classes"]] != names:
        raise ValueError(f"{folder}: has other classes than the run, {names}; give the run's data set with --dataset")
    inferer = parser.get_parsed_content("inferer")

    def predict(images: Sequence[np.ndarray]) -> np.ndarray:
        options = {"preprocessing": intensity, "inferer": inferer, "device": "cpu", "progress": False}
        return segment(images, network=network, **options).labels

    checked = _check_scores(checkpoint, metrics, folder, predict)
    network.to(memory_format=torch.contiguous_format)
    in_channels = int(parser.get_parsed_content("in_channels")) if "in_channels" in config else 1
    record = {
        "name": name,
        "version": version,
        "changelog": dict(changelog),
        "notes": notes,
        "classes": names,
        "network": {
            "name": type(network).__name__,
            "parameters": sum(p.numel() for p in network.parameters()),
            "in_channels": in_channels,
            "spatial_dims": config["spatial_dims"],
            "size_multiple": size_multiple(network, in_channels, config["spatial_dims"]),
        },
        "config": config,
        "data": data,
        "training": {
            "config": training_config(run["config"], names, channels, name),
            "hyper_parameters": run["hyper_parameters"],
            "epochs": len(history),
            "steps": history[-1]["iteration"],
            "seconds": round(sum(entry["seconds"] for entry in history)),
            "device": run.get("device"),
            "git_revision": run.get("git_revision"),
            "versions": run["versions"],
        },
        "versions": {package: run["versions"][package].split("+")[0] for package in ("monai", "torch", "numpy")},
        "evaluation": metrics | {"checked": checked},
    }
    return record, network, _example(folder, intensity, config, in_channels)


def _read(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = "give the model.pt of a run"
        if path.name == "metrics.json":
            hint = "evaluate the run first (configs/evaluate.json)"
        raise FileNotFoundError(f"{path}: no such file; {hint}") from None
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON: {error}") from error


def _check_scores(checkpoint: Path, metrics: Mapping, data: Path, predict: Callable) -> dict:
    """How it was made sure that the evaluation is of these weights. Raises ValueError if it is not."""
    digest = sha256(checkpoint)
    if "weights_sha256" in metrics:
        if metrics["weights_sha256"] != digest:
            raise ValueError(
                f"{checkpoint}: its evaluation is of other weights; evaluate again (configs/evaluate.json)"
            )
        return {"by": "hash", "sha256": digest}
    pairs = {image_files(pair, data)[0].name: pair for pair in _read(data / "dataset.json").get("test") or []}
    table = checkpoint.parent / "evaluation" / "metrics.csv"
    with open(table, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == metrics["network"] and row["image"] in pairs]
    if not rows:
        raise ValueError(
            f"{table}: none of its images is in the test split of {data}; give the data set with --dataset"
        )
    images = []
    for row in [rows[k] for k in sorted({0, len(rows) // 2, len(rows) - 1})]:
        pair = pairs[row["image"]]
        labels = predict([read_volume(file).array for file in image_files(pair, data)])
        accuracy = float(np.mean(labels == read_volume(data / pair["label"]).array))
        if abs(accuracy - float(row["accuracy"])) > ACCURACY_TOLERANCE:
            raise ValueError(
                f"{checkpoint}: its evaluation is of other weights, other data or other settings: {row['image']} has "
                f"accuracy {float(row['accuracy']):.5f} in metrics.csv and {accuracy:.5f} now; evaluate again"
            )
        images.append({"image": row["image"], "accuracy_in_table": float(row["accuracy"]), "accuracy_now": accuracy})
    return {"by": "segmenting again", "sha256": digest, "images": images}


def _example(folder: Path, intensity: Callable, config: Mapping, in_channels: int) -> np.ndarray:
    """The middle of the first test sample as the network sees it, float32 (1, channels, window)."""
    content = _read(folder / "dataset.json")
    files = image_files((content.get("test") or content["training"])[0], folder)
    image = np.stack([as_network_sees(read_volume(file).array, intensity) for file in files])
    dims, shape = config["spatial_dims"], image.shape[1:]
    size = [min(WINDOW[dims], roi) for roi in config["roi_size"]]
    missing = [(0, max(0, n - length)) for n, length in zip(size, shape, strict=False)]
    image = np.pad(image, [(0, 0), *missing, *[(0, 0)] * (len(shape) - dims)], mode="edge")
    starts = [max(0, length - n) // 2 for n, length in zip(size, shape, strict=False)]
    window = image[(slice(None), *(slice(start, start + n) for start, n in zip(starts, size, strict=True)))]
    stacked = stack_neighbours(torch.from_numpy(window)[None], (in_channels // len(files) - 1) // 2)
    if len(shape) > dims:
        stacked = stacked[..., shape[-1] // 2]
    return np.ascontiguousarray(stacked, dtype=np.float32)


def _write_weights(checkpoint: Path, target: Path) -> None:
    """A flat state dict: the run's own file, byte for byte, where it is one."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if all(torch.is_tensor(value) for value in state.values()):
        shutil.copyfile(checkpoint, target)
    else:
        torch.save(state["network"], target)


def _write_small_picture(source: Path, target: Path) -> None:
    with Image.open(source) as picture:
        picture = picture.convert("RGB")
        picture.thumbnail((PICTURE_WIDTH, 10 * PICTURE_WIDTH))
        picture.quantize(64).save(target, optimize=True)


def read_record(folder: Path) -> dict:
    """The record of promoted weights. Raises FileNotFoundError if the folder holds none."""
    return _read(Path(folder) / "record.json")
