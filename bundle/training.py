"""What a training run needs and MONAI lacks: a checked data list, state that survives a kill, a record, a board."""

from __future__ import annotations

import ast
import inspect
import json
import logging
import math
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fire.parser import DefaultParseValue
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.data import load_decathlon_datalist
from monai.data.utils import set_rnd
from torch.utils.tensorboard import SummaryWriter

from bundle.pictures import error_map, label_colours, to_grey
from bundle.volume_io import atomic_path, write_json

_PACKAGES = ("monai", "torch", "pytorch-ignite", "numpy", "nibabel", "tensorboard")


def load_datalist(
    path: str, split: str, class_names: Sequence[str], spatial_dims: int, limit: int | None = None
) -> list[dict[str, str]]:
    """Image and label paths of one split of a decathlon-style ``dataset.json``, checked before the work starts.

    Args:
        path: the JSON file; paths inside are relative to its folder.
        split: ``training``, ``validation`` or ``test``.
        class_names: the classes that the network is built for, in the order of the labels.
        spatial_dims: 2 or 3, what the network is built for.
        limit: use only the first so many pairs.

    Returns:
        one ``{"image": path, "label": path}`` for each pair.

    Raises:
        FileNotFoundError: no such data set, or a file that it lists is missing.
        ValueError: other classes, other dimensions, an empty split.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(
            f"no data set at {source}; make one: python -m monai.bundle run "
            f"--config_file configs/generate_spheres.json --count 1000 --output_dir {source.parent}"
        )
    content = json.loads(source.read_text())
    names = [content["labels"][str(k)] for k in range(len(content["labels"]))]
    if names != list(class_names):
        raise ValueError(f"{source} has the classes {names}, the network is built for class_names={list(class_names)}")
    if content.get("tensorImageSize", f"{spatial_dims}D") != f"{spatial_dims}D":
        raise ValueError(
            f"{source} is {content['tensorImageSize']}, the network is built for spatial_dims={spatial_dims}; "
            "3D data take the overlay: --config_file \"['configs/train.json','configs/volume_3d.json']\""
        )
    pairs = load_decathlon_datalist(source, is_segmentation=True, data_list_key=split)[:limit]
    if not pairs:
        raise ValueError(f"{source}: the split {split!r} is empty")
    for pair in pairs:
        for file in pair.values():
            if not Path(file).is_file():
                raise FileNotFoundError(f"{source} lists {file}, which does not exist; generate the data set again")
    return pairs


class TrainingState:
    """Keeps a training run on disk, so that one that was killed goes on where its last epoch ended.

    Writes into ``output_dir``, each by atomic rename: ``last.pt`` after every epoch (weights, optimiser, schedule,
    epoch, best score, history), ``model.pt`` when the validation score is better than ever (weights alone, a flat state
    dict as MONAI bundles ship it) and ``history.json`` (one entry an epoch). Stops the run when the score has not
    improved for ``patience`` epochs. Seeds the random transforms by (seed, epoch), so that a resumed run draws what an
    uninterrupted one would have drawn.

    MONAI's CheckpointSaver writes in place, so a kill can leave half a file, and neither it nor EarlyStopHandler
    carries the best score over to a resumed run; that is why this exists. It belongs after the validation handler,
    and before the board, which would otherwise overwrite the record of a run that this refuses to touch.

    Args:
        output_dir: where the files go.
        network, optimizer, lr_scheduler: what is saved and restored.
        evaluator: validates; its key metric decides (larger is better).
        patience: epochs without improvement before the run stops; 0 never stops.
        resume: go on from ``last.pt`` if there is one; otherwise an existing one is an error.
        seed: of the random transforms.

    Raises:
        ValueError: ``output_dir`` holds a run of another network, or holds a run and ``resume`` is off.
    """

    def __init__(
        self,
        output_dir: str,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any,
        evaluator: Engine,
        patience: int = 0,
        resume: bool = True,
        seed: int = 0,
    ):
        self.output_dir = Path(output_dir)
        self.parts = {"network": network, "optimizer": optimizer, "lr_scheduler": lr_scheduler}
        self.evaluator, self.patience, self.resume, self.seed = evaluator, patience, resume, seed
        self.best_score, self.best_epoch = -math.inf, 0
        self.history: list[dict] = []
        self.logger = logging.getLogger("training")
        self._losses: list[float] = []
        self._epoch_start = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the validation handler."""
        engine.add_event_handler(Events.STARTED, self._restore)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        engine.add_event_handler(Events.COMPLETED, self._complete)

    def _restore(self, engine: Engine) -> None:
        path = self.output_dir / "last.pt"
        if not path.exists():
            return
        if not self.resume:
            raise ValueError(f"{self.output_dir} holds a run; choose a new output_dir, or go on with --resume True")
        state = torch.load(path, map_location="cpu", weights_only=True)
        # a run that is made longer follows the longer schedule: its own arguments win over the saved ones
        schedule = self.parts["lr_scheduler"]
        arguments = set(inspect.signature(type(schedule)).parameters) - {"last_epoch"}
        try:
            state["lr_scheduler"] |= {k: v for k, v in schedule.state_dict().items() if k in arguments}
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
        except (RuntimeError, KeyError, ValueError) as error:
            line = str(error).splitlines()[0]
            raise ValueError(f"{path} is of another network or optimiser ({line}); choose a new output_dir") from None
        self.history, self.best_score, self.best_epoch = state["history"], state["best_score"], state["best_epoch"]
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        self.logger.info(f"resumed {path} after epoch {state['epoch']}, best score {self.best_score:.4f}")
        if engine.state.epoch >= engine.state.max_epochs:
            self.logger.info(f"all {engine.state.max_epochs} epochs are done; raise --max_epochs to train on")

    def _start_epoch(self, engine: Engine) -> None:
        seed = int(np.random.SeedSequence([self.seed, engine.state.epoch]).generate_state(1)[0])
        torch.manual_seed(seed)
        set_rnd(engine.data_loader.dataset, seed)
        self._losses, self._epoch_start = [], time.monotonic()

    def _keep_loss(self, engine: Engine) -> None:
        loss = float(engine.state.output[0]["loss"])
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} in epoch {engine.state.epoch}; {self.output_dir}/last.pt holds the epoch before; "
                "try a smaller learning_rate"
            )
        self._losses.append(loss)

    def _end_epoch(self, engine: Engine) -> None:
        entry = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "seconds": round(time.monotonic() - self._epoch_start, 3),
            "learning_rate": self.parts["optimizer"].param_groups[0]["lr"],
            "train_loss": float(np.mean(self._losses)),
        }
        validated = self.evaluator.state.metrics and self.evaluator.state.epoch == engine.state.epoch
        if validated:
            metrics = self.evaluator.state.metrics
            entry |= {name: float(value) for name, value in metrics.items()}
            score = float(metrics[self.evaluator.state.key_metric_name])
            if score > self.best_score:
                self.best_score, self.best_epoch = score, engine.state.epoch
                _save(self.parts["network"].state_dict(), self.output_dir / "model.pt")
        self.history.append(entry)
        _save(
            {
                **{name: part.state_dict() for name, part in self.parts.items()},
                "epoch": engine.state.epoch,
                "iteration": engine.state.iteration,
                "best_score": self.best_score,
                "best_epoch": self.best_epoch,
                "history": self.history,
            },
            self.output_dir / "last.pt",
        )
        write_json(self.output_dir / "history.json", self.history)
        if self.patience and self.best_epoch and engine.state.epoch - self.best_epoch >= self.patience:
            self.logger.info(f"no better score since epoch {self.best_epoch}: stopped after {engine.state.epoch}")
            engine.terminate()

    def _complete(self, engine: Engine) -> None:
        if not self.best_epoch:  # fewer epochs than val_interval
            self.logger.warning("no validation was run: model.pt holds the weights of the last epoch")
            _save(self.parts["network"].state_dict(), self.output_dir / "model.pt")


class RunRecord:
    """What a run was: command, resolved config, versions, git revision, device; kept as ``run.json``.

    Args:
        output_dir: where the file goes.
        hyper_parameters: name to number or text, what a reader would want to compare between runs.
    """

    def __init__(self, output_dir: str, hyper_parameters: Mapping[str, Any]):
        self.output_dir, self.hyper_parameters = Path(output_dir), dict(hyper_parameters)

    @cached_property
    def content(self) -> dict:
        """The record as plain JSON values, made once: it reads the config files and asks git."""
        return {
            "command": sys.argv,
            "hyper_parameters": {k: _plain(v) for k, v in self.hyper_parameters.items()},
            "config": resolved_config(sys.argv),
            "versions": {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
            "git_revision": _git_revision(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "threads": torch.get_num_threads(),
        }

    def write(self) -> None:
        """Write ``run.json`` into ``output_dir``."""
        write_json(self.output_dir / "run.json", self.content)


class TrainingBoard:
    """TensorBoard of a run: what MONAI's TensorBoardStatsHandler does not show.

    Learning rate, Dice and IoU of each class, panels of image, label, prediction and error, the hyper-parameters and
    the run's configuration as text. Share the ``SummaryWriter`` with MONAI's handlers, so that a run is one event file.

    Args:
        summary_writer: the shared writer.
        record: gives configuration and hyper-parameters, and is written to disk when the run starts.
        evaluator: its ``metric_details`` hold (images, classes) scores, its output the pictures.
        optimizer: its learning rate is logged.
        class_names: in the order of the labels.
        per_class: name of a metric in ``metric_details`` to the tag it gets.
        image_interval: epochs between panels.
    """

    def __init__(
        self,
        summary_writer: SummaryWriter,
        record: RunRecord,
        evaluator: Engine,
        optimizer: torch.optim.Optimizer,
        class_names: Sequence[str],
        per_class: Mapping[str, str],
        image_interval: int = 1,
    ):
        self.writer, self.record, self.evaluator, self.optimizer = summary_writer, record, evaluator, optimizer
        self.class_names, self.per_class, self.image_interval = list(class_names), dict(per_class), image_interval

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the validation handler."""
        engine.add_event_handler(Events.STARTED, self._describe)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def _describe(self, engine: Engine) -> None:
        self.record.write()
        content = self.record.content
        rows = "\n".join(f"| {k} | {v} |" for k, v in content["hyper_parameters"].items())
        self.writer.add_text("hyper-parameters", f"| name | value |\n|---|---|\n{rows}", engine.state.epoch)
        text = json.dumps(content, indent=2)
        self.writer.add_text("run", "\n".join(f"    {line}" for line in text.splitlines()), engine.state.epoch)

    def _log(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        self.writer.add_scalar("learning_rate", self.optimizer.param_groups[0]["lr"], epoch)
        if self.evaluator.state.epoch != epoch:
            return
        for metric, tag in self.per_class.items():
            scores = self.evaluator.state.metric_details[metric].float().nanmean(0)
            for name, score in zip(self.class_names, scores, strict=True):
                self.writer.add_scalar(f"{tag}/{name}", float(score), epoch)
        if epoch % self.image_interval == 0:
            self.writer.add_image("validation: image, label, prediction, error", self._panels(), epoch)
        self.writer.flush()

    def _panels(self, most: int = 4) -> np.ndarray:
        """uint8 (3, rows, columns): the last validation batch, one image a row."""
        rows = []
        for item in self.evaluator.state.output[:most]:
            image, label, pred = (item[k].detach().cpu().float().numpy() for k in ("image", "label", "pred"))
            label, pred = label.argmax(0), pred.argmax(0)
            image = image[0]
            if image.ndim == 3:
                middle = image.shape[-1] // 2
                image, label, pred = image[..., middle], label[..., middle], pred[..., middle]
            n = len(self.class_names)
            panels = [to_grey(image), label_colours(label, n), label_colours(pred, n), error_map(pred, label)]
            rows.append(np.concatenate([p.transpose(1, 0, 2) for p in panels], axis=1))  # (x, y) to rows, columns
        width = max(r.shape[1] for r in rows)
        rows = [np.pad(r, ((0, 2), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
        return np.concatenate(rows).transpose(2, 0, 1)

    def _close(self, engine: Engine) -> None:
        scores = {f"final/{k}": float(v) for k, v in self.evaluator.state.metrics.items()}
        values = self.record.content["hyper_parameters"]
        plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in values.items()}
        if scores:
            self.writer.add_hparams(plain, scores, run_name="hyper_parameters", global_step=engine.state.epoch)
        self.writer.close()


def resolved_config(argv: Sequence[str]) -> dict | None:
    """The merged config of a ``python -m monai.bundle run`` command line, overrides included.

    Returns:
        plain JSON values, or None where the command is not a bundle run (a workflow built in Python).
    """
    words = [w.split("=", 1) if w.startswith("--") else [w] for w in argv]
    flat = [part for word in words for part in word]
    if "--config_file" not in flat:
        return None
    options: dict[str, Any] = {}
    for k, word in enumerate(flat[:-1]):
        if word.startswith("--"):
            options[word[2:]] = DefaultParseValue(flat[k + 1])
    files = options.pop("config_file")
    files = ast.literal_eval(files) if isinstance(files, str) and files.startswith("[") else files
    for key in ("meta_file", "logging_file", "args_file", "run_id", "init_id", "final_id", "tracking"):
        options.pop(key, None)
    try:
        parser = ConfigParser(ConfigParser.load_config_files(files))
    except (FileNotFoundError, ValueError):
        return None
    for key, value in options.items():
        parser[key] = value
    return parser.get()


def _save(state: Mapping[str, Any], path: Path) -> None:
    with atomic_path(path) as temporary:
        torch.save(dict(state), temporary)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
