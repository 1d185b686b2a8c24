"""What every study does: generate, train and score as the bundle does, each step once.

A step whose result is there is not done again, so a study that was stopped goes on. All steps of a study lie in its
output folder: ``data/`` and ``runs/``, one folder each. That folder may be moved, to another machine as well. A
training is a command of its own, with its output in ``log.txt``.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from bundle.inference import load_weights, segment
from bundle.metrics import score
from bundle.training import RunRecord
from bundle.volume_io import atomic_path, read_labels, read_volume, root_cause, without_nan, write_json
from processor import processor_name

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {  # options of every training that the machine decides: workers of the loader, bf16 where it is faster
    "num_workers": min(8, (os.cpu_count() or 1) // 2) if torch.cuda.is_available() else 0,
    "amp": torch.cuda.is_available() or any(map(torch.cpu.get_capabilities().get, ("amx_bf16", "avx512_bf16"))),
}
_QUIET = {"PYTHONWARNINGS": "ignore:parsing config_file"}  # MONAI's note that configs can run code


def folder_name(*words: str) -> str:
    """Words, such as the name of a network, as the name of a folder: no spaces, no commas."""
    return "_".join(" ".join(words).replace(",", "").split())


def bundle_run(configs: Sequence[str | Path | Mapping], folder: Path, **options) -> float:
    """Run ``python -m monai.bundle run`` in a process of its own.

    Args:
        configs: names in ``configs/``, paths, or overlays as mappings, which are written into ``folder``.
        folder: gets ``log.txt``, the output of the command.
        options: top-level keys to override.

    Returns:
        [s] time that it took.

    Raises:
        ValueError: it failed; says where the log is and its last line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for k, config in enumerate(configs):
        if isinstance(config, Mapping):
            write_json(folder / f"overlay_{k}.json", config)
            config = folder / f"overlay_{k}.json"
        files.append(str(config if isinstance(config, Path) else ROOT / "configs" / config))
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(ROOT), "--config_file", str(files)]
    command += ["--meta_file", str(ROOT / "configs/metadata.json")]
    command += ["--logging_file", str(ROOT / "configs/logging.conf")]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    start = time.monotonic()
    with (folder / "log.txt").open("a") as log:
        log.write(f"$ {shlex.join(command)}\n")
        log.flush()
        code = subprocess.run(command, env=os.environ | _QUIET, cwd=ROOT, stdout=log, stderr=log).returncode
    if code:
        last = (folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1]
        raise ValueError(f"a step failed: {last} ({folder}/log.txt has all)")
    return time.monotonic() - start


def generate(
    out: Path,
    count: int,
    seed: int,
    recipe: str = "generate_spheres.json",
    overlay: Mapping | None = None,
    label: str = "",
    **options,
) -> Path:
    """A data set of ``count`` pairs in ``out/data``; returns its folder.

    Args:
        out: folder of the study.
        count, seed: as on the command line of a recipe.
        recipe: a name in ``configs/``.
        overlay: changes the recipe.
        label: what tells the data set from another one of this recipe, count and seed.
        options: further keys of the recipe.

    Raises:
        ValueError: the folder holds another data set, a recipe that does not fit.
    """
    name = Path(recipe).stem.removeprefix("generate_")
    folder = out / "data" / "_".join(p for p in (name, label, f"n{count}", f"s{seed}") if p)
    parser = ConfigParser(ConfigParser.load_config_file(str(ROOT / "configs" / recipe)))
    for key, value in {"bundle_root": str(ROOT), **(overlay or {}), **options}.items():
        parser[key] = value
    workers = parser.get_parsed_content("workers") if count >= 40 else 1  # a worker takes seconds to start
    try:
        dataset = parser.get_parsed_content("dataset")
    except RuntimeError as error:
        raise root_cause(error) from error
    dataset.generate(str(folder), count, seed, workers)  # only what is not there yet
    return folder


def train(run: Path, datalist: Path, overlays: Sequence[str | Path | Mapping] = (), **options) -> Path:
    """Train into ``run`` with ``configs/train.json`` and overlays, or go on, or find it done; returns ``run``.

    On a GPU, half of the cores prepare the images. Networks compute in bf16 where the machine multiplies it faster.

    Raises:
        ValueError: ``run`` was made with other options, or with other values in the configs.
    """
    asked = {"datalist": datalist, "configs": [config_content(o) for o in ("train.json", *overlays)], **options}
    asked = json.loads(json.dumps(asked, default=lambda path: os.path.relpath(path, run)))  # a folder may be moved
    record = run / "study_run.json"
    before = json.loads(record.read_text()) if record.exists() else None
    if before and before["asked"] != asked:
        raise ValueError(f"{run} was trained with other options; choose another --out, or remove it")
    if not (before and before["done"]):
        write_json(record, {"asked": asked, "done": False})
        options |= {"datalist": datalist, "output_dir": run, **MACHINE}
        seconds = bundle_run(["train.json", *overlays], run, **options)
        write_json(record, {"asked": asked, "done": True, "command_seconds": round(seconds, 1), "machine": machine()})
    return run


def machine() -> str:
    """What a training runs on and how: processor, threads, precision."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name()
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"{device}, {threads}, {'half precision' if MACHINE['amp'] else 'fp32'}, torch {torch.__version__}"


def history(run: Path) -> list[dict]:
    """One entry an epoch, as ``bundle.training.TrainingState`` writes it."""
    return json.loads((run / "history.json").read_text())


def training_seconds(run: Path) -> tuple[float, float]:
    """[s] time of all epochs, validation not counted: as it was, and at the pace of the fastest tenth of them.

    Other work on the machine makes an epoch longer and never shorter, so the second is what an idle machine would take.
    """
    seconds = [entry["seconds"] for entry in history(run)]
    return sum(seconds), len(seconds) * float(np.percentile(seconds, 10))


def minutes(seconds: tuple[float, float]) -> str:
    """'12.1 (10.4)', from ``training_seconds``."""
    return f"{seconds[0] / 60:.1f} ({seconds[1] / 60:.1f})"


def pairs_of(dataset: Path, splits: Sequence[str] = ("training", "validation", "test")) -> list[dict[str, Path]]:
    """Image and label paths of the splits of a data set."""
    content = json.loads((dataset / "dataset.json").read_text())
    return [{k: dataset / pair[k] for k in ("image", "label")} for split in splits for pair in content[split]]


class Segmenter:
    """The network of a run as it was validated, with its preprocessing.

    Args:
        run: folder of a training run made by ``train``.
        mirror: average over mirror images, as ``configs/evaluate.json`` does.
    """

    def __init__(self, run: Path, mirror: bool = True):
        config = json.loads((run / "run.json").read_text())["config"]
        parser = ConfigParser(config)
        parser["datalist"] = str(run / json.loads((run / "study_run.json").read_text())["asked"]["datalist"])
        parser["mirror"] = mirror
        self.class_names = parser.get_parsed_content("class_names")
        self.network = parser.get_parsed_content("network_def")
        self.preprocessing = Compose(parser.get_parsed_content("intensity"))
        self.inferer = parser.get_parsed_content("validate#inferer")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        load_weights(self.network, run / "model.pt")
        self.parameters = sum(p.numel() for p in self.network.parameters())

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Class numbers, uint8, of a grey image or volume."""
        return self.result(image).labels

    def result(self, image: np.ndarray):
        """The ``bundle.inference`` result, which has the time as well."""
        return segment(
            image,
            network=self.network,
            preprocessing=self.preprocessing,
            inferer=self.inferer,
            device=self.device,
            progress=False,
            classes=len(self.class_names),
        )


def scores(
    run: Path, dataset: Path, splits: Sequence[str] = ("training", "validation", "test"), limit: int | None = None
) -> list[dict]:
    """Every metric of ``bundle.metrics.score`` for each image of a data set, kept in the run's folder.

    ``seconds`` and ``voxels`` of the segmentation come besides.
    """
    file = run / "scores" / f"{dataset.name}_{'-'.join(splits)}{'' if limit is None else f'_{limit}'}.json"
    if file.exists():
        return json.loads(file.read_text())
    segmenter = Segmenter(run)
    rows = []
    for pair in pairs_of(dataset, splits)[:limit]:
        truth, voxel_size_um = read_labels(pair["label"])
        result = segmenter.result(read_volume(pair["image"]).array)
        row = score(result.labels, truth, len(segmenter.class_names), voxel_size_um)
        rows.append(row | {"image": pair["image"].name, "seconds": result.seconds, "voxels": result.labels.size})
    write_json(file, without_nan(rows))
    return json.loads(file.read_text())


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    """Dice of two bool images."""
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the latter is NaN of one value."""
    values = np.asarray([v for v in values if v is not None], float)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def earlier_rows(out: Path, size: str, key: Sequence[str]) -> dict[Hashable, dict]:
    """The rows of ``results.json``, by the values of ``key``: what earlier commands have found.

    Raises ValueError where they were of another size.
    """
    file = out / "results.json"
    if not file.exists():
        return {}
    content = json.loads(file.read_text())
    if content["size"] != size:
        raise ValueError(f"{file} has results of the size {content['size']}, not {size}; choose another --out")
    return {tuple(row[k] for k in key): row for row in content["rows"]}


def write_results(out: Path, name: str, size: str, content: Mapping, table: str, figure) -> None:
    """``results.json``, ``results.md`` and ``results.png`` of a study, with what it was trained and is scored on."""
    done = [json.loads(file.read_text()) for file in sorted(out.glob("runs/*/study_run.json"))]
    records = [json.loads(file.read_text()) for file in sorted(out.glob("runs/*/run.json"))]
    ran_on = {
        "study": name,
        "size": size,
        **{k: v for k, v in RunRecord(str(out), {}).content.items() if k not in ("config", "hyper_parameters")},
        "trained_on": sorted({run["machine"] for run in done if "machine" in run}),
        "revisions": sorted({record["git_revision"] or "unknown" for record in records}),
        "scored_on": machine(),
    }
    write_json(out / "results.json", without_nan({**ran_on, **content}))
    with atomic_path(out / "results.md") as path:
        where = "; ".join(ran_on["trained_on"]) or ran_on["scored_on"]
        where = f"trained on {where}; revision {', '.join(ran_on['revisions']) or ran_on['git_revision']}"
        path.write_text(f"{table}\n\n`{shlex.join(ran_on['command'])}`; {where}\n", encoding="utf-8")
    with atomic_path(out / "results.png") as path:
        figure.savefig(path, format="png", dpi=130)
    print(f"\n{table}\n\n{out}/results.md, .json, .png")


def check_names(option: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raises ValueError where a name is not known."""
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--{option} {unknown[0]!r} is unknown; known: {', '.join(map(repr, known))}")


def markdown(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)


def config_content(config: str | Path | Mapping) -> dict:
    """What a config says, but for its description."""
    if not isinstance(config, Mapping):
        config = ConfigParser.load_config_file(str(ROOT / "configs" / config))
    return {key: value for key, value in config.items() if key != "_desc_"}
