"""The model card and MONAI's metadata, written from the record of trained weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from bundle.model_config import ROOT, closure, walk

HEADINGS = {
    "dice": "Dice",
    "iou": "IoU",
    "assd_um": "surface distance [µm]",
    "nsd": "surface Dice at 1 voxel",
    "fraction_error": "fraction error",
    "surface_error": "rel. surface error",
    "size_error": "rel. size error",
}
RELIABLE_DICE = 0.9  # of a class, below which the card warns of it; experts differ by about 0.1 from each other
USELESS_DICE = 0.7  # below which it says not to rely on the class at all
# a scanner's key, and what a network has not seen where it is off
ARTEFACTS = {
    ("detector", "photons"): "photon noise",
    ("detector", "psf_fwhm_px"): "blur of the detector",
    ("detector", "zingers"): "zingers",
    ("stripes",): "rings",
    ("motion",): "motion of the sample",
    ("scatter",): "scattered radiation",
    ("propagation",): "edge enhancement by phase contrast",
    ("zernike",): "halos of Zernike phase contrast",
    ("exposure_drift",): "drift of the exposure",
}


def model_card(record: Mapping, picture: str | None, package: str | None = None) -> str:
    """The card as Markdown, for a reader who knows neither the network nor this project.

    record: of trained weights. picture: path of the picture of test images, relative to the card, or None.
    package: of a packed bundle, None for weights in ``models/``.
    """
    sections = [
        f"# {title(record)}",
        _summary(record),
        "## When not to use it\n\n" + _bullets(limits(record)),
        "## Performance\n\n" + _performance(record, picture),
        "## Data\n\n" + _data(record["data"]),
        "## Training configuration\n\n" + _training(record),
        "## Input and output\n\n" + _input_output(record),
        "## Commands\n\n" + _commands(record, package),
        "## Versions\n\n" + _versions(record),
    ]
    if record["notes"]:
        sections.insert(2, "## Notes of the author\n\n" + record["notes"].strip())
    return "\n\n".join(sections) + "\n"


def title(record: Mapping) -> str:
    """'X-ray CT of nmc_cathode: pore, binder, particle'."""
    return f"X-ray CT of {record['data']['name']}: {', '.join(record['classes'])}"


def _summary(record: Mapping) -> str:
    network = record["network"]
    of = "" if _own_network(record) else " (MONAI)"
    source = "simulated scans" if record["data"]["recipe"] else "labelled scans"
    start = record["training"]["hyper_parameters"].get("pretrained")
    if start:
        source += f" from the weights of {start} on, whose own data this card does not describe"
    elif record["data"]["recipe"]:
        source += " only, without manual labels"
    return (
        f"**{record['name']} {record['version']}** labels every voxel of a grey X-ray CT scan as "
        f"{_listed([f'{name} ({k})' for k, name in enumerate(record['classes'])])}. It is a {network['spatial_dims']}D "
        f"{network['name']}{of} with {network['parameters']:,} parameters, trained on {source}. "
        "It was scored on images of the same kind that it had not seen in training. For research."
    )


def limits(record: Mapping) -> list[str]:
    """What the network was not trained on, one sentence each, derived from data and recipe."""
    data, names = record["data"], record["classes"]
    scores = [(row["name"], row.get("dice") or 0) for row in class_scores(record["evaluation"])]
    found = [
        f"Where {name} matters: its Dice on the test images was {dice:.2f}; "
        + ("do not rely on" if dice < USELESS_DICE else "look twice at")
        + " its voxels, its volume fraction and anything computed from them."
        for name, dice in scores
        if dice < RELIABLE_DICE
    ]
    found += [
        f"Other phases, or more of them: every voxel becomes one of {_listed(names)}, whatever it is.",
        f"Another brightness order: from dark to bright it was trained on {_listed(_by_brightness(data))}.",
        f"Another magnification: it was trained at {_span(data['voxel_size_um'])} µm per voxel. "
        + "; ".join(
            f"{known['name']} is {_span(known['width_voxels'], '.2g')} voxels wide on average"
            for known in data["classes"]
            if known["width_voxels"]
        )
        + ". Thinner and thicker structures were not seen.",
        "Another composition: in training "
        + ", ".join(f"{known['name']} filled {_span(known['fraction'], '.0%')}" for known in data["classes"])
        + " of an image.",
    ]
    scanner = (data["recipe"] or {}).get("scanner") or {}
    absent = [text for keys, text in ARTEFACTS.items() if not _present(scanner, keys)]
    noise = data["scaled"]["noise"]
    altered = _augmentation(record)
    if scanner and absent:
        but = f" in the scans, though training altered its images by {_listed(altered)}" if altered else ""
        found.append(f"Scans with {_listed(absent, 'or')}: none was simulated{but}.")
    before = ", before augmentation" if altered else ""
    found.append(
        f"Noisier scans: the noise in training was {_span(noise, '.2g')} of the grey range (0 to 1 after "
        f"scaling){before}."
    )
    if data["recipe"]:
        found.append(
            "Real scans, without a look at the result: the scores below are of simulated scans. Segment a few slices, "
            "compare them with the scan (overlay.png beside the labels), and score them against your own labels "
            "(scripts/score.py)."
        )
    if any(step.get("_target_") == "ScaleIntensityRangePercentilesd" for step in record["config"]["intensity"]):
        found.append(
            "Scans that are mostly air or mount: grey values are scaled by percentiles of the whole image; crop first."
        )
    return found


def _augmentation(record: Mapping) -> list[str]:
    """What training added to its images at random, in words, from the names of the transforms that were on."""
    config = record["training"]["config"]
    used = closure(config, ["augmentation"])
    steps = [value for key in config if key in used for _, value in walk(config[key]) if isinstance(value, Mapping)]
    names = []
    for step in steps:
        name, prob = str(step.get("_target_", "")).rpartition(".")[2], step.get("prob")
        prob = config.get(prob[1:], prob) if isinstance(prob, str) and prob.startswith("@") else prob
        if name.startswith("Rand") and prob != 0:
            names.append(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.removeprefix("Rand").removesuffix("d")).lower())
    return list(dict.fromkeys(names))


def _present(scanner: Mapping, keys: Sequence[str]) -> bool:
    value = scanner
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return bool(value) and value != [0, 0]


def _by_brightness(data: Mapping) -> list[str]:
    seen = [known for known in data["classes"] if known["mean_grey"] is not None]
    return [known["name"] for known in sorted(seen, key=lambda known: known["mean_grey"])]


def class_scores(evaluation: Mapping) -> list[dict]:
    """Mean scores of each class by the network: [{'name', 'dice', 'iou', 'fraction_error', …}]."""
    summary = evaluation["methods"][evaluation["network"]]["summary"]
    rows = []
    for k, name in enumerate(evaluation["class_names"]):
        matches = ((re.fullmatch(rf"(\w+?)_{k}", key), value["mean"]) for key, value in summary.items())
        rows.append({"name": name} | {match[1]: mean for match, mean in matches if match})
    return rows


def eval_metrics(evaluation: Mapping) -> dict[str, float]:
    """The network's mean scores as flat numbers, overall and by class, for MONAI's metadata."""
    summary = evaluation["methods"][evaluation["network"]]["summary"]
    keys = ("mean_dice", "mean_iou", "accuracy", "mean_assd_um", "mean_abs_fraction_error", "mean_abs_surface_error")
    found = {key: summary[key]["mean"] for key in keys if key in summary}
    for row in class_scores(evaluation):
        found |= {f"{key}_{_slug(row['name'])}": row[key] for key in ("dice", "iou") if key in row}
    return {key: round(value, 6) for key, value in found.items() if value is not None}


def _performance(record: Mapping, picture: str | None) -> str:
    evaluation = record["evaluation"]
    summary = evaluation["methods"][evaluation["network"]]["summary"]
    rows = class_scores(evaluation)
    columns = [key for key in HEADINGS if any(row.get(key) is not None for row in rows)]
    lines = [f"Mean over {evaluation['n_images']} test images:", ""]
    lines += ["| class | " + " | ".join(HEADINGS[key] for key in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {row['name']} | " + " | ".join(_number(row.get(key)) for key in columns) + " |" for row in rows]
    dice = summary["mean_dice"]
    lines += [
        "",
        f"Dice over the classes but the first is {_number(dice['mean'])} (standard deviation between images "
        f"{_number(dice['sd'])}, worst image {_number(dice['min'])}). Fraction error is the predicted minus the true "
        "volume fraction; surface and size errors are relative.",
    ]
    best, gain = evaluation.get("best_baseline"), evaluation.get("network_against_best_baseline")
    if best and gain:
        baseline = evaluation["methods"][best]["summary"]["mean_dice"]
        lines.append(
            f"The best classical method on the same images, {best}, reaches {_number(baseline['mean'])}; the network "
            f"is better on {gain['network_better']} of {gain['n_images']}."
        )
    how = evaluation["checked"]
    if how["by"] == "hash":
        lines.append("The evaluation names the hash of these weights.")
    else:
        lines.append(
            f"That these weights gave these scores was checked by segmenting {len(how['images'])} images again."
        )
    if picture:
        lines += ["", f"![best, median and worst test image]({picture})"]
    return "\n".join(lines)


def _data(data: Mapping) -> str:
    pairs, grey = data["pairs"], data["grey"]
    lines = [
        f"Data set `{data['name']}`: {pairs['training']} pairs for training, {pairs['validation']} for validation, "
        f"{pairs['test']} for the test; {' × '.join(map(str, data['shape']))} voxels of "
        f"{_span(data['voxel_size_um'])} µm. Grey values {_span([grey['lowest'][0], grey['highest'][1]])}; an image's "
        f"0.5 percentile is {_span(grey['percentile_0.5'])}, its 99.5 percentile {_span(grey['percentile_99.5'])} "
        f"(measured on {data['pairs_measured']} training images).",
    ]
    recipe = data["recipe"]
    if recipe:
        lines += ["", "| generated from | |", "|---|---|"]
        lines += [f"| phase {name} | {_short(phase)} |" for name, phase in recipe.get("phases", {}).items()]
        lines += [f"| {key} | {_short(recipe[key])} |" for key in ("microstructure", "scanner") if recipe.get(key)]
        lines += [f"| seed | {recipe.get('seed')} |", f"| SHA-256 of recipe.json | `{data['recipe_sha256']}` |"]
    if data["manifest_sha256"]:
        lines += ["" if not recipe else f"| SHA-256 of manifest.json | `{data['manifest_sha256']}` |"]
    lines += ["", "The whole recipe is in the record (`record.json`), key `data`."]
    return "\n".join(lines)


def _short(value: object) -> str:
    """A recipe's part on one line: what is off or empty is left out."""
    if isinstance(value, Mapping):
        parts = [(key, item) for key, item in value.items() if item not in (None, {}, [], 0, False) and key != "type"]
        inner = ", ".join(f"{key} {_short(item)}" for key, item in parts)
        kind = value.get("type", "")
        return f"{kind} ({inner})" if kind and inner else kind or inner
    if isinstance(value, list) and len(value) == 2 and all(isinstance(item, int | float) for item in value):
        return _span(value)
    return str(value)


def _training(record: Mapping) -> str:
    training = record["training"]
    values = training["hyper_parameters"] | {
        "epochs": training["epochs"],
        "steps": training["steps"],
        "time": f"{training['seconds'] / 60:.0f} min on {training['device']}",
        "git revision": training["git_revision"],
    }
    if _augmentation(record):
        values["augmentation"] = _listed(_augmentation(record))
    rows = "\n".join(f"| {key} | {value} |" for key, value in values.items())
    return f"| key | value |\n|---|---|\n{rows}\n\nThe whole configuration is in the record, key `training`."


def _input_output(record: Mapping) -> str:
    network, steps = record["network"], record["config"]["intensity"]
    scaling = ", ".join(
        f"{step.get('_target_')} ({', '.join(f'{k} {v}' for k, v in step.items() if k not in ('_target_', 'keys'))})"
        for step in steps
    )
    images = channel_names(record)
    channels = "one channel" if len(images) == 1 else f"{len(images)} channels, {_listed(images)},"
    if network["in_channels"] > len(images):
        channels = f"{network['in_channels']} channels, a slice and its neighbours"
        channels += f" of each of {_listed(images)}," if len(images) > 1 else ""
    return (
        f"Input: {channels} of grey values on any scale, (x, y) or (x, y, z), scaled by {scaling or 'nothing'}. A "
        f"window is {' × '.join(map(str, record['config']['roi_size']))} voxels; its sides must be multiples of "
        f"{network['size_multiple']}. Output: {len(record['classes'])} channels of logits, "
        f"{', '.join(record['classes'])}; the largest is the label."
    )


def _commands(record: Mapping, package: str | None) -> str:
    name, size = record["name"], f"{sum(record['data']['voxel_size_um']) / 2:.4g}"
    if package is None:
        return (
            "```bash\n"
            f"python scripts/segment.py scan.tif --voxel-size-um {size} --bundle models/{name} --out results/scan\n"
            f"python scripts/share.py verify models/{name}\n```"
        )
    return f"""```bash
pip install -r {name}/requirements.txt
python {name}/scripts/segment.py scan.tif --voxel-size-um {size} --out results/scan
python -m monai.bundle run --config_file {name}/configs/inference.json --bundle_root {name} --dataset_dir scans
```

```python
from monai.bundle import load
network = load("{name}", bundle_dir=".", workflow_type="inference")  # {_load_note(record, package)}
```

The Python package inside is `{package}`, a name of its own, so that several bundles work in one process. From the
folder of the bundle, `python -m {package}.trust FILE.zip` checks a bundle before it is unpacked and run."""


def _own_network(record: Mapping) -> bool:
    return str(record["config"]["network_def"]["_target_"]).startswith(f"{__package__}.")


def _load_note(record: Mapping, package: str) -> str:
    if _own_network(record):
        return f"first: sys.path.append('{record['name']}'), since the network is a class of {package}"
    return "a torch.nn.Module with its weights"


def _versions(record: Mapping) -> str:
    packages = ", ".join(f"{name} {value}" for name, value in record["versions"].items())
    changes = "\n".join(f"- {version}: {text}" for version, text in reversed(record["changelog"].items()))
    where = "the `requirements.txt` of the repository or of the packed bundle has every package"
    return f"Trained with {packages}; {where}.\n\n{changes}\n\nLicence: Apache-2.0."


def front_matter(record: Mapping) -> str:
    """The YAML block by which Hugging Face finds and lists a model; each value is JSON, which YAML includes."""
    evaluation = record["evaluation"]
    tags = ["monai", "x-ray-ct", "tomography", "materials-science", "segmentation", "microstructure"]
    tags += ["synthetic-data"] * bool(record["data"]["recipe"]) + [_slug(n, "-") for n in record["classes"]]
    scores = [{"type": key, "value": value} for key, value in eval_metrics(evaluation).items()]
    results = [
        {
            "task": {"type": "image-segmentation"},
            "dataset": {"name": record["data"]["name"], "type": _slug(record["data"]["name"], "-")},
            "metrics": scores,
        }
    ]
    values = {
        "license": "apache-2.0",
        "library_name": "monai",
        "pipeline_tag": "image-segmentation",
        "tags": tags,
        "model-index": [{"name": record["name"], "results": results}],
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "---\n" + "\n".join(lines) + "\n---\n"


def channel_names(record: Mapping) -> list[str]:
    """The names of the images that a sample consists of."""
    return record["config"].get("channel_names", ["CT"])


def metadata(record: Mapping, pins: Mapping[str, str]) -> dict:
    """MONAI's ``metadata.json`` of a packed bundle.

    pins: package → version of everything the bundle needs.
    """
    base = json.loads((ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))
    network, names, data = record["network"], record["classes"], record["data"]
    shape = [f"{network['size_multiple']}*n"] * network["spatial_dims"]
    images = channel_names(record)
    slices = network["in_channels"] // len(images)
    described = images if len(images) > 1 else ["image"]
    if slices > 1:
        described = [f"{image} slice {k}".removeprefix("image ") for image in described for k in range(slices)]
    channels = {str(k): text for k, text in enumerate(described)}
    numbered = ", ".join(f"{k} is {name}" for k, name in enumerate(names))
    recipe = f"recipe SHA-256 {data['recipe_sha256']}" if data["recipe"] else "labelled scans"
    common = {"type": "image", "spatial_shape": shape, "dtype": "float32", "is_patch_data": True}
    return base | {
        "version": record["version"],
        "changelog": record["changelog"],
        "monai_version": pins["monai"],
        "pytorch_version": pins["torch"],
        "numpy_version": pins["numpy"],
        "required_packages_version": {k: v for k, v in pins.items() if k not in ("monai", "torch", "numpy")},
        "name": title(record),
        "task": f"Segmentation of X-ray CT of {data['name']} into {_listed(names)}",
        "description": re.sub(r"\*\*", "", _summary(record)),
        "data_source": f"data set {data['name']}, {recipe}",
        "image_classes": f"X-ray CT, {_listed(images) if len(images) > 1 else 'one channel'}, any grey scale",
        "label_classes": f"single channel, {numbered}",
        "pred_classes": f"{len(names)}-channel logits: channel {numbered.replace(', ', ', channel ')}",
        "eval_metrics": eval_metrics(record["evaluation"]),
        "intended_use": "For research. Not to be used for: " + " ".join(limits(record)),
        "network_data_format": {
            "inputs": {
                "image": common
                | {
                    "format": "magnitude",
                    "modality": "CT",
                    "num_channels": network["in_channels"],
                    "value_range": [0, 1],
                    "channel_def": channels,
                }
            },
            "outputs": {
                "pred": common
                | {
                    "format": "segmentation",
                    "num_channels": len(names),
                    "value_range": [],
                    "channel_def": {str(k): name for k, name in enumerate(names)},
                }
            },
        },
    }


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _listed(words: Sequence[str], last: str = "and") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def _span(pair: Sequence[float], form: str = ".3g") -> str:
    low, high = (format(value, form) for value in pair)
    return low if low == high else f"{low} to {high}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _slug(name: str, joint: str = "_") -> str:
    return re.sub(r"[^a-z0-9]+", joint, name.lower()).strip(joint)
