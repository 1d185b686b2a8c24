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

import ignite.distributed as idist
import numpy as np
import torch
from fire.parser import DefaultParseValue
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.data import DistributedSampler, load_decathlon_datalist
from monai.data.utils import set_rnd
from monai.engines.utils import IterationEvents
from monai.handlers import ValidationHandler
from monai.transforms import RandRotate90d
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import RandomSampler, Sampler

from bundle.networks import size_multiple
from bundle.training_range import image_files
from bundle.volume_io import atomic_path, one_line, write_json

_PROGRESS = {"kinds", "class_names", "epoch", "iteration", "best_score", "best_epoch", "history"}  # no parts of a run
_PACKAGES = ("monai", "torch", "pytorch-ignite", "numpy", "nibabel", "tensorboard")


def read_class_names(path: str) -> list[str]:
    """The names of the classes of a data set, in the order of the labels; 0 is the first.

    Args:
        path: a decathlon-style ``dataset.json``, whose ``labels`` are ``{"0": name, "1": name, …}``.

    Raises:
        FileNotFoundError: no such data set.
        ValueError: it is no JSON, or does not name two or more classes 0, 1, … each by a text of its own.
    """
    content = _read_datalist(Path(path))
    labels = content.get("labels")
    names = list(labels.values()) if isinstance(labels, dict) else []
    numbered = isinstance(labels, dict) and set(labels) == {str(k) for k in range(len(labels))}
    texts = all(isinstance(name, str) and name for name in names)
    if not numbered or not texts or len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"{path}: labels is {labels!r}; it must name each class once, from 0 on, for example "
            '{"0": "pore", "1": "particle"}'
        )
    return [labels[str(k)] for k in range(len(labels))]


def read_channel_names(path: str) -> list[str]:
    """The names of the images that each sample of a data set has, one channel each, in their order.

    Args:
        path: a decathlon-style ``dataset.json``; its ``channel_names`` are ``{"0": name, …}``, one image where it has
            none.

    Raises:
        FileNotFoundError: no such data set.
        ValueError: it is no JSON, or does not number its channels 0, 1, ….
    """
    names = _read_datalist(Path(path)).get("channel_names", {"0": "CT"})
    if not (isinstance(names, dict) and names and set(names) == {str(k) for k in range(len(names))}):
        raise ValueError(
            f'{path}: channel_names is {names!r}; it must number the images of a sample, for example {{"0": "CT"}}'
        )
    return [str(names[str(k)]) for k in range(len(names))]


def load_datalist(
    path: str,
    split: str,
    class_names: Sequence[str],
    data_dims: int,
    limit: int | None = None,
    channel_names: Sequence[str] = ("CT",),
) -> list[dict[str, str | list[str]]]:
    """Image and label paths of one split of a decathlon-style ``dataset.json``, checked before the work starts.

    Args:
        path: the JSON file; paths inside are relative to its folder.
        split: ``training``, ``validation`` or ``test``.
        class_names: the classes that the network is built for, in the order of the labels.
        data_dims: 2 or 3, what the configs are for: images, or volumes (which a 2D network can take slice by slice).
        limit: use only the first so many pairs.
        channel_names: the images of a sample that the network is built for; only their number is compared.

    Returns:
        one ``{"image": path, "label": path}`` for each pair; where the data set has several channels, the image is a
        list of paths, one for each.

    Raises:
        FileNotFoundError: no such data set, or a file that it lists is missing.
        ValueError: other classes, other dimensions, another number of channels, an empty split, or one that does not
            give every process a pair.
    """
    source = Path(path)
    content = _read_datalist(source)
    names = read_class_names(path)
    if names != list(class_names):
        raise ValueError(f"{source} has the classes {names}, the network is built for class_names={list(class_names)}")
    if content.get("tensorImageSize", f"{data_dims}D") != f"{data_dims}D":
        raise ValueError(
            f"{source} is {content['tensorImageSize']}, the configs are for {data_dims}D data; volumes take one of two "
            "overlays after configs/train.json: configs/volume_3d.json (3D network) or configs/slices_25d.json (2D "
            "network on slices), images take none"
        )
    pairs = load_decathlon_datalist(source, is_segmentation=True, data_list_key=split)[:limit]
    if not pairs:
        raise ValueError(f"{source}: the split {split!r} is empty")
    processes = idist.get_world_size()
    if len(pairs) < processes:
        raise ValueError(f"{source}: the split {split!r} has {len(pairs)} pairs; {processes} processes need one each")
    channels = read_channel_names(path)
    if len(channels) != len(channel_names):
        raise ValueError(f"{source} has the channels {channels}, the network is built for {list(channel_names)}")
    for pair in pairs:
        images = image_files(pair, Path())
        if len(images) != len(channels):
            raise ValueError(
                f"{source} has the channels {channels}, and {images[0]} stands in a sample of {len(images)} images; "
                "each sample lists one for each channel"
            )
        for file in (*images, Path(pair["label"])):
            if not file.is_file():
                raise FileNotFoundError(f"{source} lists {file}, which does not exist; generate the data set again")
    return pairs


def shows_whole_objects(path: str, spatial_dims: int) -> bool:
    """Whether what is augmented holds the whole object, in air, as far as the data set's ``recipe.json`` tells.

    Not a patch of a volume, nor a slice out of which the sample sticks. Without a recipe it is not known, and a real
    scan most often shows a part: so no.

    Args:
        path: the ``dataset.json``, beside which a generated data set has its recipe.
        spatial_dims: of the network; in 3D patches are augmented.
    """
    recipe = Path(path).with_name("recipe.json")
    if spatial_dims == 3 or not recipe.is_file():
        return False
    diameter = json.loads(recipe.read_text(encoding="utf-8")).get("sample_diameter")
    return diameter is None or bool(np.max(diameter) <= 1)


def _read_datalist(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(
            f"no data set at {path}; make one: python -m monai.bundle run "
            f"--config_file configs/generate_spheres.json --count 1000 --output_dir {path.parent}"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; a data list is an object with labels and splits")
    return content


def check_windows(
    network: torch.nn.Module,
    in_channels: int,
    spatial_dims: int,
    patch_size: Sequence[int],
    roi_size: Sequence[int],
    transforms: Sequence = (),
) -> None:
    """Stop before the work starts where the network cannot take the windows that it will be given.

    Args:
        network: maps (B, in_channels, window) to logits of the same window.
        in_channels: of its input.
        spatial_dims: 2 or 3, axes of a window.
        patch_size: [voxels] of training.
        roi_size: [voxels] of validation.
        transforms: those of training; where MONAI's RandRotate90d is one of them, the axes that it turns must be alike.

    Raises:
        ValueError: another number of axes, sizes that the network cannot halve, or patches that change shape.
    """
    multiple = size_multiple(network, in_channels, spatial_dims, smallest=2)
    for name, size in (("patch_size", patch_size), ("roi_size", roi_size)):
        whole = len(size) == spatial_dims and all(n == int(n) and n > 0 and n % multiple == 0 for n in size)
        if not whole:
            raise ValueError(
                f"{name} {list(size)} must be {spatial_dims} multiples of {multiple}, for this {type(network).__name__}"
            )
    for turned in (t.spatial_axes for t in transforms if isinstance(t, RandRotate90d)):
        if len({patch_size[axis] for axis in turned}) > 1:
            raise ValueError(
                f"patch_size {list(patch_size)} must be the same along the axes {list(turned)}, which are turned by 90°"
            )


def epoch_sampler(dataset: Any, batch_size: int, steps: int | None = None, seed: int = 0) -> Sampler:
    """What an epoch of training consists of.

    Args:
        dataset: of all pairs.
        batch_size: of one process.
        steps: batches of an epoch, of pairs drawn with replacement, for few pairs; None for every pair once.
        seed: of the order where several processes share the pairs; else torch's own state decides.

    Raises:
        ValueError: ``steps`` below 1.
    """
    if steps is not None:
        if steps < 1:
            raise ValueError(f"steps_per_epoch {steps} must be at least 1, or null for every pair once")
        return RandomSampler(dataset, replacement=True, num_samples=steps * batch_size)
    if idist.get_world_size() > 1:
        return DistributedSampler(dataset, even_divisible=True, shuffle=True, seed=seed)
    return RandomSampler(dataset)


def first_step(output_dir: str) -> int | None:
    """The step from which a resumed run writes its curves; None for a new one.

    A killed run has written steps beyond its last checkpoint, which TensorBoard is to forget.
    """
    path = Path(output_dir) / "history.json"
    return json.loads(path.read_text(encoding="utf-8"))[-1]["iteration"] + 1 if path.is_file() else None


class LossNotFiniteError(ValueError):
    """The loss of a step was NaN or infinite."""


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

    With several processes rank 0 writes, all ranks read, and each draws random transforms of its own.

    Args:
        output_dir: where the files go.
        network, optimizer, lr_scheduler: what is saved and restored; besides, what the trainer names in
            ``extra_parts`` (name to object with a state dict), if it does.
        evaluator: validates; its key metric decides (larger is better), its network's weights are ``model.pt``.
        patience: epochs without improvement before the run stops; 0 never stops.
        resume: go on from ``last.pt`` if there is one; otherwise an existing one is an error.
        seed: of the random transforms.
        average: fed after every step, saved and restored.
        class_names: of the labels, in their order.

    Raises:
        ValueError: ``output_dir`` holds a run of another network, optimiser, schedule, trainer or order of classes, or
            holds a run and ``resume`` is off.
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
        average: WeightAverage | None = None,
        class_names: Sequence[str] = (),
    ):
        self.class_names = list(class_names)
        self.output_dir = Path(output_dir)
        self.parts = {"network": unwrapped(network), "optimizer": optimizer, "lr_scheduler": lr_scheduler}
        self.average = average
        if average is not None and average.decay is not None:
            self.parts["average"] = average
        self.evaluator, self.patience, self.resume, self.seed = evaluator, patience, resume, seed
        self.best_score, self.best_epoch = -math.inf, 0
        self.history: list[dict] = []
        self.logger = logging.getLogger("training")
        self._losses: list[float] = []
        self._epoch_start = self._epoch_seconds = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the validation handler."""
        engine.add_event_handler(Events.STARTED, self._restore)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep_loss)
        if self.average is not None:
            self.average.attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)

    def _restore(self, engine: Engine) -> None:
        self.parts |= getattr(engine, "extra_parts", {})
        path = self.output_dir / "last.pt"
        if not path.exists():
            return
        if not self.resume:
            raise ValueError(f"{self.output_dir} holds a run; choose a new output_dir, or go on with --resume True")
        state = torch.load(path, map_location="cpu", weights_only=True)
        self._check(state, path)
        try:
            self._load(state)
        except (RuntimeError, KeyError, ValueError) as error:
            line = f"no {error} in it" if isinstance(error, KeyError) else str(error).splitlines()[0]
            raise ValueError(f"{path} is of another network or optimiser ({line}); choose a new output_dir") from None
        self.history, self.best_score, self.best_epoch = state["history"], state["best_score"], state["best_epoch"]
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        self.logger.info(f"resumed {path} after epoch {state['epoch']}, best score {self.best_score:.4f}")
        if engine.state.epoch >= engine.state.max_epochs:
            self.logger.info(f"all {engine.state.max_epochs} epochs are done; raise --max_epochs to train on")
        elif self._stops_early(self.history[-1]):
            self.logger.info("it was stopped early; raise --early_stop_patience to train on")
            engine.terminate()

    def _check(self, state: Mapping[str, Any], path: Path) -> None:
        """Raise ValueError for the checkpoint of a run with other parts or classes."""
        unknown = sorted(state.keys() - self.parts.keys() - _PROGRESS)
        if unknown:
            raise ValueError(
                f"{path} is of a run with {', '.join(unknown)}, which this one has not; give the options of before "
                "(ema_decay, the overlays), or choose a new output_dir"
            )
        kinds = {name: type(part).__name__ for name, part in self.parts.items()}
        for name, before in state.get("kinds", {}).items():
            if name in kinds and kinds[name] != before:
                raise ValueError(f"{path}: its {name} is {before}, here {kinds[name]}; choose a new output_dir")
        classes = state.get("class_names", self.class_names)
        if classes != self.class_names:
            raise ValueError(f"{path} is of the classes {classes}, here {self.class_names}; choose a new output_dir")

    def _stops_early(self, entry: Mapping[str, Any]) -> bool:
        """Whether a run ends with the epoch of this entry of the history, since its score has not improved."""
        validated = self.evaluator.state.key_metric_name in entry
        return bool(self.patience) and validated and entry["epoch"] - self.best_epoch >= self.patience

    def _load(self, state: dict) -> None:
        """Take up the saved parts; what the run is asked for now, its schedules and learning rates, wins over them."""
        for name, part in self.parts.items():
            saved = state[name]
            if isinstance(part, LRScheduler):
                asked = set(inspect.signature(type(part)).parameters) - {"last_epoch"} | {"base_lrs"}
                saved |= {k: v for k, v in part.state_dict().items() if k in asked}
            elif isinstance(part, torch.optim.Optimizer):
                for old, new in zip(saved["param_groups"], part.param_groups, strict=True):
                    before, now = (group.get("initial_lr", group["lr"]) for group in (old, new))
                    old["lr"] = old["lr"] * (now / before) if before else now
                    old |= {k: v for k, v in new.items() if k not in ("params", "lr")}
            part.load_state_dict(saved)

    def _start_epoch(self, engine: Engine) -> None:
        entropy = [self.seed, engine.state.epoch, idist.get_rank()]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        torch.manual_seed(seed)
        set_rnd(engine.data_loader.dataset, seed)
        self._losses, self._epoch_start, self._epoch_seconds = [], time.monotonic(), 0.0

    def _keep_loss(self, engine: Engine) -> None:
        loss = float(engine.state.output[0]["loss"])
        if not math.isfinite(loss):
            kept = f"{self.output_dir}/last.pt holds the epoch before; " if self.history else ""
            raise LossNotFiniteError(
                f"the loss is {loss} in epoch {engine.state.epoch}; {kept}try a smaller learning_rate"
            )
        self._losses.append(loss)
        self._epoch_seconds = time.monotonic() - self._epoch_start  # up to the last step: without validation

    def _end_epoch(self, engine: Engine) -> None:
        entry = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "seconds": round(self._epoch_seconds, 3),
            "learning_rate": self.parts["optimizer"].param_groups[0]["lr"],
            "train_loss": idist.all_reduce(float(np.mean(self._losses))) / idist.get_world_size(),
        }
        validated = self.evaluator.state.metrics and self.evaluator.state.epoch == engine.state.epoch
        if validated:
            metrics = self.evaluator.state.metrics
            entry |= {name: float(value) for name, value in metrics.items()}
            score = float(metrics[self.evaluator.state.key_metric_name])
            if score > self.best_score:
                self.best_score, self.best_epoch = score, engine.state.epoch
                _save(unwrapped(self.evaluator.network).state_dict(), self.output_dir / "model.pt")
        self.history.append(entry)
        _save(
            {
                **{name: part.state_dict() for name, part in self.parts.items()},
                "kinds": {name: type(part).__name__ for name, part in self.parts.items()},
                "class_names": self.class_names,
                "epoch": engine.state.epoch,
                "iteration": engine.state.iteration,
                "best_score": self.best_score,
                "best_epoch": self.best_epoch,
                "history": self.history,
            },
            self.output_dir / "last.pt",
        )
        if idist.get_rank() == 0:
            write_json(self.output_dir / "history.json", self.history)
        if self._stops_early(entry):
            self.logger.info(f"no better score since epoch {self.best_epoch}: stopped after {engine.state.epoch}")
            engine.terminate()


class Validation(ValidationHandler):
    """MONAI's ValidationHandler by epochs that also validates the last one, whatever the interval.

    Else the end of the learning rate's schedule, where the weights are best, might never be looked at. Raises
    ValueError for an ``interval`` below 1 epoch.
    """

    def __init__(self, interval: int, validator: Engine):
        if interval < 1:
            raise ValueError(f"val_interval {interval} must be at least 1 epoch")
        super().__init__(interval, validator)

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""

        def due(engine: Engine, epoch: int) -> bool:
            return epoch % self.interval == 0 or epoch == engine.state.max_epochs

        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=due), self)


class WeightAverage:
    """Exponential moving average of the weights of a network, which is then what is validated and kept.

    The first step copies the weights; after step n = 2, 3, …: average ← d·average + (1 − d)·weights with
    d = min(decay, n / (n + 9)), so that the random start is soon forgotten (Tarvainen and Valpola, arXiv 1703.01780;
    the ramp is TensorFlow's ``ExponentialMovingAverage``, whose steps count from 0). Buffers, such as running
    statistics, are copied.

    Args:
        network: the one that is trained.
        decay: 0 < decay < 1, for example 0.999; None for no average.

    ``network`` is the average, or without one the trained network itself, never wrapped for several processes.

    Raises:
        ValueError: ``decay`` out of range.
    """

    def __init__(self, network: torch.nn.Module, decay: float | None = None):
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"ema_decay {decay} must be above 0 and below 1, for example 0.999, or null for none")
        self.decay, self._trained, self._average = decay, unwrapped(network), None
        self.network = self._trained
        if decay is not None:
            self._average = AveragedModel(self._trained, multi_avg_fn=self._blend)
            self.network = self._average.module.requires_grad_(False)

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        if self._average is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: self._average.update_parameters(self._trained))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Averaged weights and the number of steps; empty without an average."""
        return {} if self._average is None else self._average.state_dict()

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up what ``state_dict`` gave."""
        self._average.load_state_dict(state)

    def _blend(self, averaged: list[torch.Tensor], weights: list[torch.Tensor], steps: torch.Tensor) -> None:
        n = int(steps) + 1  # torch copies the weights in the first step
        torch._foreach_lerp_(averaged, weights, 1 - min(self.decay, n / (n + 9)))


class GradientClip:
    """Scales the gradients of a step down where their norm, over all parameters, is above ``max_norm`` (> 0).

    None does nothing. Raises ValueError for another ``max_norm``, and for a trainer that accumulates gradients, whose
    sums it would clip half-made.
    """

    def __init__(self, max_norm: float | None = None):
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"gradient_clip {max_norm} must be above 0, for example 1.0, or null for none")
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI trainer."""
        if self.max_norm is None:
            return
        if getattr(engine, "accumulation_steps", 1) > 1:
            raise ValueError(f"gradient_clip {self.max_norm} does not work with accumulation_steps; leave one of them")
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._clip)

    def _clip(self, engine: Engine) -> None:
        if engine.scaler is not None:  # CUDA's float16: gradients are scaled until the optimiser steps
            engine.scaler.unscale_(engine.optimizer)
        parameters = [p for group in engine.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)


class ShareBuffers:
    """Gives rank 0's buffers (running statistics) to all ranks when the evaluator starts: all validate one network.

    Training gives each rank statistics of its own batches. Validation takes the network without its
    DistributedDataParallel, whose forward pass would wait for ranks that have fewer windows.
    """

    def __init__(self, network: torch.nn.Module):
        self.network = unwrapped(network)

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.STARTED, self._share)

    def _share(self, engine: Engine) -> None:
        for buffer in self.network.buffers():
            torch.distributed.broadcast(buffer, 0)


def unwrapped(network: torch.nn.Module) -> torch.nn.Module:
    """The network inside torch's DistributedDataParallel, or the network itself."""
    return network.module if isinstance(network, DistributedDataParallel) else network


class RunRecord:
    """What a run was: command, resolved config, versions, git revision, device; kept as ``run.json``.

    Args:
        output_dir: where the file goes.
        hyper_parameters: name to number or text, what a reader would want to compare between runs.

    Attributes:
        config: by default ``resolved_config`` of the command line; who builds a workflow in Python sets it.
    """

    def __init__(self, output_dir: str, hyper_parameters: Mapping[str, Any]):
        self.output_dir, self.hyper_parameters = Path(output_dir), dict(hyper_parameters)
        self.config = resolved_config(sys.argv)

    @cached_property
    def content(self) -> dict:
        """The record as plain JSON values, made once: it asks git."""
        return {
            "command": sys.argv,
            "hyper_parameters": {k: _plain(v) for k, v in self.hyper_parameters.items()},
            "config": self.config,
            "versions": {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
            "git_revision": git_revision(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "processes": idist.get_world_size(),
            "threads": torch.get_num_threads(),
        }

    def write(self) -> None:
        """Write ``run.json`` into ``output_dir``."""
        write_json(self.output_dir / "run.json", self.content)


def resolved_config(argv: Sequence[str]) -> dict | None:
    """The merged config of a ``python -m monai.bundle run`` command line, overrides included.

    Returns:
        plain JSON values, or None where the command is not a bundle run (a workflow built in Python).
    """
    options: dict[str, Any] = {}
    for word, following in zip(argv, [*argv[1:], "--"], strict=True):
        if word.startswith("--"):  # as Fire reads it
            name, equals, value = word[2:].partition("=")
            value = value if equals else "True" if following.startswith("--") else following
            options[name.replace("-", "_")] = DefaultParseValue(value)
    files = options.pop("config_file", None)
    if files is None:
        return None
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


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def git_revision() -> str | None:
    """What ``git describe`` says of the code, None where there is no git or no repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _save(state: Mapping[str, Any], path: Path) -> None:
    if idist.get_rank() == 0:
        with atomic_path(path) as temporary:
            torch.save(dict(state), temporary)
