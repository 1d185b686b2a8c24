"""A run folder as training and evaluation leave it, made without training: a network with random weights."""

import csv
import functools
import json
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from PIL import Image

from bundle.inference import segment
from bundle.metrics import score, summarise
from bundle.model_config import inference_config
from bundle.package import pack
from bundle.record import promote
from bundle.volume_io import read_volume

ROOT = Path(__file__).resolve().parent.parent
NAMES = ["pore", "particle"]
SMALL = {"patch_size": [32, 32], "roi_size": [32, 32], "channels": [4, 8], "strides": [2], "num_res_units": 1}


def training_config(dataset: Path, *overlays: str, **changes) -> dict:
    """configs/train.json with overlays and a small network, as run.json keeps it."""
    files = [str(ROOT / "configs" / name) for name in ("train.json", *overlays)]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    set_by_overlays = {key for file in files[1:] for key in json.loads(Path(file).read_text())}
    small = {key: value for key, value in SMALL.items() if key not in set_by_overlays}
    for key, value in {**small, "dataset_dir": str(dataset), "output_dir": str(dataset / "run"), **changes}.items():
        parser[key] = value
    return parser.get()


def make_run(folder: Path, dataset: Path, *overlays: str, seed: int = 0, **changes) -> Path:
    """Write the run into ``folder``, with true scores of its test images; returns the checkpoint."""
    (folder / "evaluation").mkdir(parents=True)
    config = training_config(dataset, *overlays, **changes)
    parser = ConfigParser(inference_config(config, NAMES))
    torch.manual_seed(seed)
    network = parser.get_parsed_content("network_def")
    torch.save(network.state_dict(), folder / "model.pt")
    versions = {"monai": "1.6.1", "torch": "2.13.0+cpu", "numpy": "2.4.6", "python": "3.11.7"}
    run = {
        "config": config,
        "hyper_parameters": {"network": "UNet", "classes": ", ".join(NAMES)},
        "versions": versions,
        "git_revision": "0123456789ab",
        "device": "cpu",
    }
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "history.json").write_text(json.dumps([{"epoch": 1, "iteration": 2, "seconds": 3.0}]))
    rows = []
    for pair in json.loads((dataset / "dataset.json").read_text())["test"]:
        image, label = (read_volume(dataset / pair[key]) for key in ("image", "label"))
        labels = segment(
            image.array,
            network=network,
            preprocessing=Compose(parser.get_parsed_content("intensity")),
            inferer=parser.get_parsed_content("inferer"),
            device="cpu",
            progress=False,
        ).labels
        rows.append((Path(pair["image"]).name, score(labels, label.array, 2, [0.5] * labels.ndim)))
    summary = {
        key: {name: None if isinstance(v, float) and np.isnan(v) else v for name, v in values.items()}
        for key, values in summarise([scores for _, scores in rows]).items()
    }
    metrics = {
        "n_images": len(rows),
        "class_names": NAMES,
        "network": "UNet",
        "best_baseline": None,
        "network_against_best_baseline": None,
        "methods": {"UNet": {"note": "the trained network", "failed": 0, "summary": summary}},
    }
    (folder / "evaluation/metrics.json").write_text(json.dumps(metrics))
    with open(folder / "evaluation/metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "method", "accuracy"])
        writer.writerows([name, "UNet", scores["accuracy"]] for name, scores in rows)
    return folder / "model.pt"


@functools.cache
def finished_bundle(dataset: Path) -> tuple[Path, Path, Path, Path]:
    """Checkpoint, promoted folder, packed folder and zip of 'spheres' 0.1.0, made once; not to be written to."""
    base = dataset.parent / "spheres_bundle"
    checkpoint = make_run(base / "run", dataset)
    noise = np.random.default_rng(0).integers(0, 255, (300, 2000, 3)).astype(np.uint8)
    Image.fromarray(noise).save(checkpoint.parent / "evaluation" / "cases.png")
    promoted = promote(checkpoint, "spheres", "0.1.0", base / "models", changes="First", notes="Mind the *gap*.")
    folder, archive, left_out = pack(promoted, base / "dist")
    assert not left_out
    return checkpoint, promoted, folder, archive
