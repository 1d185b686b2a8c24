"""The inference config of a trained network, taken from the record of its run; no value is written by hand."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "configs" / "inference.json"

# what a workflow, a command or a script asks an inference config for; all else must be reached from these
ENTRY_POINTS = (
    "imports", "bundle_root", "device", "class_names", "spatial_dims", "network_def", "intensity", "inferer",
    "initialize", "run", "finalize",
)  # fmt: skip
OF_THE_RUN = ("spatial_dims", "neighbours", "roi_size", "intensity", "network_def")
WITHOUT_OTHER_WEIGHTS = {"pretrained": None, "pretrained_part": "all", "freeze": False}
_REFERENCE = re.compile(r"@(\w+)")


def walk(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in a config with its place, 'train#dataset#data'; a container comes before what it holds."""
    yield where, value
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return
    for key, item in items:
        yield from walk(item, f"{where}#{key}" if where else str(key))


def references(value: Any) -> set[str]:
    """The top-level keys of a config that a value in it refers to with '@'."""
    texts = [text for _, text in walk(value) if isinstance(text, str) and text.startswith(("@", "$"))]
    return {name for text in texts for name in _REFERENCE.findall(text)}


def closure(config: Mapping, keys: Sequence[str]) -> set[str]:
    """``keys`` and every top-level key that they need, as far as the config has them."""
    found: set[str] = set()
    waiting = [key for key in keys if key in config]
    while waiting:
        key = waiting.pop()
        if key not in found:
            found.add(key)
            waiting += [name for name in references(config[key]) if name in config]
    return found


def inference_config(
    run: Mapping, class_names: Sequence[str], channel_names: Sequence[str] = ("CT",), template: Mapping | None = None
) -> dict:
    """The inference config of the network that a training config describes.

    run: the resolved training config (``run.json``, key 'config').
    class_names: of the labels, 0 first; they become part of the config.
    channel_names: of the images that a sample consists of, likewise.
    template: the inference config to fill, by default ``configs/inference.json``.

    Network, window, scaling of grey values and what they refer to come from the run; reading, blending and writing from
    the template. Keys that nothing uses are left out. Raises ValueError for a run without a network, or one that refers
    to what it lacks.
    """
    if template is None:
        template = json.loads(TEMPLATE.read_text(encoding="utf-8"))
    if "network_def" not in run:
        raise ValueError("the run's config has no network_def; give the run.json of a training run")
    config = copy.deepcopy(dict(template))
    config |= {key: copy.deepcopy(run[key]) for key in OF_THE_RUN if key in run}
    config["class_names"] = [str(name) for name in class_names]
    config["num_classes"] = "$len(@class_names)"
    config["channel_names"] = [str(name) for name in channel_names]
    of_the_data = ("class_names", "num_classes", "channel_names")
    without_data = {key: value for key, value in run.items() if key not in of_the_data}
    config |= {key: copy.deepcopy(run[key]) for key in closure(without_data, ["network_def"])}
    needed = closure(config, ENTRY_POINTS)
    config = {key: value for key, value in config.items() if key in needed}
    missing = references(config) - config.keys()
    if missing:
        raise ValueError(f"the run's config refers to {', '.join(sorted(missing))}, which it does not have")
    return config


def training_config(run: Mapping, class_names: Sequence[str], channel_names: Sequence[str], name: str) -> dict:
    """The training config of a run made portable: names of the data written out, folders relative to the bundle."""
    config = copy.deepcopy(dict(run)) | {
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": f"$@bundle_root + '/runs/{name}'",
        "class_names": [str(n) for n in class_names],
        "channel_names": [str(n) for n in channel_names],
    }
    config |= {key: value for key, value in WITHOUT_OTHER_WEIGHTS.items() if key in config}
    check_portable(config, "config")
    return config


def check_portable(values: Mapping, what: str) -> None:
    """Raise ValueError where the run's config or hyper-parameters name an absolute path."""
    for where, value in walk(values):
        if isinstance(value, str) and re.match(r"(/|~|[A-Za-z]:\\)", value):
            raise ValueError(f"the run's {what} names a path of this machine, {where} = {value!r}; a bundle cannot")


def run_class_names(run_folder: Path, config: Mapping, hyper_parameters: Mapping | None = None) -> list[str]:
    """The class names of a run: from its config, its evaluation, its data set or its hyper-parameters.

    Raises ValueError where none of them says it.
    """
    if isinstance(config.get("class_names"), list):
        return list(config["class_names"])
    evaluation = run_folder / "evaluation" / "metrics.json"
    if evaluation.is_file():
        return list(json.loads(evaluation.read_text(encoding="utf-8"))["class_names"])
    datalist = dataset_folder(config) / "dataset.json"
    if datalist.is_file():
        labels = json.loads(datalist.read_text(encoding="utf-8"))["labels"]
        return [labels[str(k)] for k in range(len(labels))]
    classes = (hyper_parameters or {}).get("classes")
    if classes:
        return classes.split(", ")
    raise ValueError(
        f"{run_folder}: the class names are unknown, since {datalist} is gone; evaluate the run (configs/evaluate.json)"
    )


def run_channel_names(config: Mapping, hyper_parameters: Mapping | None = None) -> list[str]:
    """The names of the images of a sample of a run: from its config, its data set or its hyper-parameters."""
    if isinstance(config.get("channel_names"), list):
        return list(config["channel_names"])
    datalist = dataset_folder(config) / "dataset.json"
    if "channel_names" in config and datalist.is_file():
        names = json.loads(datalist.read_text(encoding="utf-8")).get("channel_names", {"0": "CT"})
        return [names[str(k)] for k in range(len(names))]
    return (hyper_parameters or {}).get("images", "CT").split(", ")


def dataset_folder(config: Mapping) -> Path:
    """The folder of the data set that a run's config names; relative ones are taken from the repository."""
    text = str(config.get("dataset_dir", ""))
    match = re.fullmatch(r"\$@bundle_root \+ '/?(.*)'", text)
    if match:
        return ROOT / match[1]
    path = Path(text)
    return path if path.is_dir() else ROOT / path


def checkpoint_config(checkpoint: Path) -> dict | None:
    """The inference config of the network in a checkpoint, from the record beside it; None if there is none.

    The record is ``record.json`` of promoted weights or ``run.json`` of a training run. Raises ValueError, one line
    that begins with its path, if it cannot be used.
    """
    promoted, run = checkpoint.parent / "record.json", checkpoint.parent / "run.json"
    path = promoted if promoted.is_file() else run
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if path is promoted:
            return content["config"]
        if not content.get("config"):
            raise ValueError("holds no config, since the run was not started with python -m monai.bundle run")
        config, values = content["config"], content.get("hyper_parameters")
        classes = run_class_names(checkpoint.parent, config, values)
        return inference_config(config, classes, run_channel_names(config, values))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}; name the network's config with --config") from error
