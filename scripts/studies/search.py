"""Hyper-parameters by Optuna: random trials pruned by Hyperband, then a refinement by TPE on what they showed.

The study lies in a journal file, or in any database that Optuna knows; several processes, or machines that share the
file, may work on it at once, and each may be stopped and started again. Each trial is a training run of the bundle with
a TensorBoard of its own. The best configuration is written as an overlay for ``configs/train.json``.

The refinement is pruned by the median of the whole trials: with Hyperband, TPE would learn from the trials of one of
its brackets only. Trials whose loss is not finite, or that lack memory, count as pruned; any other failure ends it.

Hyperband: Li et al., JMLR 18 (2018) 185. TPE: Bergstra et al., NIPS 24 (2011).
"""

from __future__ import annotations

import hashlib
import json
import logging
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import torch
from filelock import FileLock
from ignite.engine import Events
from matplotlib import colormaps
from matplotlib.figure import Figure
from monai.bundle import ConfigParser, ConfigWorkflow
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from bundle.training import LossNotFiniteError
from bundle.volume_io import one_line, root_cause, write_json
from studies.common import (
    MACHINE,
    ROOT,
    config_content,
    generate,
    history,
    markdown,
    mean_sd,
    scores,
    train,
    write_results,
)

SIZES = {
    "small": {"pairs": 150, "epochs": 9, "trials": 10},
    "full": {"pairs": 1000, "epochs": 60, "trials": 100},
}
SEED = 0  # of the first trial; the seed of each next one is one more
REPORTS = 12  # validations of a whole trial, each reported to the pruner


STAGES = {  # sampler, pruner
    "Hyperband": (
        optuna.samplers.RandomSampler,
        optuna.pruners.HyperbandPruner(min_resource=1, max_resource=REPORTS, reduction_factor=3),
    ),
    "TPE": (
        partial(optuna.samplers.TPESampler, n_startup_trials=0, multivariate=True, constant_liar=True),
        optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=REPORTS // 4),
    ),
}


def run(out: Path, size: str, trials: int | None = None, storage: str | None = None) -> None:
    """Do the study.

    Args:
        out: folder of the study.
        size: a key of ``SIZES``.
        trials: of each of the two stages, at least 1; those that are in the storage count.
        storage: path of the journal or URL of a database; by default ``out/journal.log``. On several machines let one
            make its database before the others start.

    Raises:
        ValueError: ``trials`` below 1, a storage that cannot be opened or has another search, a trial that failed, none
            that was completed.
    """
    p = SIZES[size]
    count = p["trials"] if trials is None else trials
    if count < 1:
        raise ValueError(f"--trials {count} must be at least 1")
    out.mkdir(parents=True, exist_ok=True)
    journal = None if storage and "://" in storage else Path(storage) if storage else out / "journal.log"
    backing = _journal(journal) if journal else storage
    lock = FileLock(f"{journal}.ask" if journal else out / "ask")  # beside a journal, which several machines may share
    with lock:  # two workers may make it at once
        try:
            study = optuna.create_study(study_name="search", storage=backing, load_if_exists=True, direction="maximize")
        except (SQLAlchemyError, ImportError) as error:
            raise ValueError(f"--storage {storage}: {one_line(error)}") from error
        _check_search(study, {"size": size, **p, "train.json": _digest(config_content("train.json"))})
    with FileLock(out / "lock"):
        dataset = generate(out, p["pairs"], 0)
    for stage, (sampler, study.pruner) in STAGES.items():
        while (done := len(_finished(study, stage))) < count:
            print(f"{stage}: trial {done + 1} of {count}", flush=True)
            with lock:
                study.sampler = sampler(seed=SEED + len(study.get_trials()))
                trial = study.ask()
                study.sampler = sampler(seed=SEED + trial.number)  # where workers share a database, but no lock
                trial.set_user_attr("stage", stage)
            try:
                study.tell(trial, objective(trial, out, dataset, p["epochs"]))
            except optuna.TrialPruned:
                study.tell(trial, state=TrialState.PRUNED)
            except (OSError, ValueError, RuntimeError) as error:
                study.tell(trial, state=TrialState.FAIL)
                raise ValueError(f"trial {trial.number} failed: {one_line(error)}") from error
    with FileLock(out / "lock"):
        _finish(study, out, size, dataset, p["epochs"])


def _check_search(study: optuna.Study, asked: dict) -> None:
    """Note what the search is in the storage, or raise ValueError where it holds another one."""
    before = study.user_attrs.get("search")
    if before is None and not study.get_trials():
        study.set_user_attr("search", asked)
    elif before != asked:
        changed = [key for key in asked if (before or {}).get(key) != asked[key]]
        raise ValueError(
            f"the storage holds a search with another {', '.join(changed)}; choose another --out or --storage"
        )


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _finished(study: optuna.Study, stage: str | None = None) -> list[optuna.trial.FrozenTrial]:
    """Trials that ran whole or were pruned, of a stage or of all."""
    trials = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    return [trial for trial in trials if stage in (None, trial.user_attrs["stage"])]


def objective(trial: optuna.Trial, out: Path, dataset: Path, epochs: int) -> float:
    """Train one trial and return its best validation Dice.

    Raises:
        optuna.TrialPruned: the pruner stopped it, its loss was not finite, or it lacked memory.
        RuntimeError: it failed otherwise.
    """
    folder = out / "trials" / f"{trial.number:04d}"
    write_json(folder / "overlay.json", overlay(suggest(trial)))
    flow = ConfigWorkflow(
        config_file=[str(ROOT / "configs/train.json"), str(folder / "overlay.json")],
        meta_file=str(ROOT / "configs/metadata.json"),
        logging_file=str(ROOT / "configs/logging.conf"),
        workflow_type="train",
        bundle_root=str(ROOT),
        datalist=str(dataset / "dataset.json"),
        output_dir=str(folder),
        max_epochs=epochs,
        val_interval=max(1, epochs // REPORTS),
        resume=False,
        **MACHINE,
    )
    flow.initialize()
    logging.getLogger("ignite").setLevel(logging.WARNING)
    record, trainer, evaluator = (
        flow.parser.get_parsed_content(k) for k in ("record", "train#trainer", "validate#evaluator")
    )
    record.config = {k: v for k, v in flow.parser.get().items() if not k.startswith("_")}
    pruned = False

    @evaluator.on(Events.COMPLETED)
    def report(engine):
        nonlocal pruned
        value = engine.state.metrics[engine.state.key_metric_name]
        trial.report(float(value), trainer.state.epoch // max(1, epochs // REPORTS))
        if trainer.state.epoch < epochs and trial.should_prune():  # one that ran whole is complete
            pruned = True
            trainer.terminate()

    try:
        flow.run()
    except RuntimeError as error:  # MONAI wraps what a training raises
        cause = root_cause(error)
        memory = isinstance(cause, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(cause)
        if not (memory or isinstance(cause, LossNotFiniteError)):
            raise cause from error
        logging.getLogger("study").warning(f"trial {trial.number} failed: {one_line(cause)}")
        trial.set_user_attr("failed", one_line(cause))
        raise optuna.TrialPruned from error
    flow.finalize()
    if pruned:
        raise optuna.TrialPruned
    return max(entry["val_mean_dice"] for entry in history(folder) if "val_mean_dice" in entry)


def suggest(trial: optuna.Trial) -> dict:
    """Draw the hyper-parameters of a trial."""
    values = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 2e-2, log=True),
        "decay_power": trial.suggest_float("decay_power", 0.5, 3),
        "batch_size": trial.suggest_categorical("batch_size", [4, 8, 16]),
        "filters": trial.suggest_categorical("filters", [8, 16, 32]),
        "kernel_size": trial.suggest_categorical("kernel_size", [3, 5]),
        "depth": trial.suggest_int("depth", 2, 4),
        "pooling": trial.suggest_categorical("pooling", ["strided", "max with indices"]),
        "loss": trial.suggest_categorical("loss", ["dice_ce", "ce", "dice", "focal", "boundary"]),
    }
    return values


def overlay(values: dict) -> dict:
    """The overlay for ``configs/train.json`` with these hyper-parameters.

    Strided convolutions are MONAI's UNet, max-pooling with indices LRCS-Net.
    """
    width, depth, kernel = values["filters"], values["depth"], values["kernel_size"]
    ports = {"spatial_dims": "@spatial_dims", "in_channels": "@in_channels", "out_channels": "@num_classes"}
    networks = {
        "strided": {
            "_target_": "UNet",
            **ports,
            "channels": [width * 2**k for k in range(depth + 1)],
            "strides": [2] * depth,
            "kernel_size": kernel,
            "up_kernel_size": 3,
            "num_res_units": 2,
            "norm": "instance",
        },
        "max with indices": {
            "_target_": "bundle.networks.LRCSNet",
            **ports,
            "filters": width,
            "kernel_size": kernel,
            "depth": depth,
        },
    }
    return {
        "learning_rate": values["learning_rate"],
        "batch_size": values["batch_size"],
        "lr_scheduler": {
            "_target_": "torch.optim.lr_scheduler.PolynomialLR",
            "optimizer": "@optimizer",
            "total_iters": "$@max_epochs * @iterations_per_epoch",
            "power": values["decay_power"],
        },
        "network_def": networks[values["pooling"]],
        **dict.fromkeys(("channels", "strides", "num_res_units")),  # of train.json's network
        **{f"record#hyper_parameters#{name}": value for name, value in values.items()},  # for TensorBoard
        **ConfigParser.load_config_file(str(ROOT / "configs" / f"loss_{values['loss']}.json")),
    }


def _journal(path: Path) -> JournalStorage:
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))


def _finish(study: optuna.Study, out: Path, size: str, dataset: Path, epochs: int) -> None:
    """Train the best configuration and the default once more, as long as each other, and write the results."""
    if not study.get_trials(states=(TrialState.COMPLETE,)):
        raise ValueError(f"no trial of {out} was completed; the last lines that were printed say why")
    best = study.best_trial
    write_json(out / "best.json", overlay(best.params))
    interval = max(1, epochs // REPORTS)
    rows = []
    for name, run, overlays in (
        ("default", "default", []),
        ("best found", f"trial_{best.number:04d}", [out / "best.json"]),
    ):
        trained = train(
            out / "runs" / run,
            dataset / "dataset.json",
            overlays,
            max_epochs=epochs,
            val_interval=interval,
        )
        mean, sd = mean_sd([v["mean_dice"] for v in scores(trained, dataset, ("test",))])
        rows.append([name, f"{mean:.4f} ± {sd:.4f}"])
    trials = _finished(study)
    whole = study.get_trials(states=(TrialState.COMPLETE,))
    importance = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
    )
    table = markdown(["configuration", "test Dice"], rows)
    table += "\n\n" + markdown(
        ["hyper-parameter", "best", "importance"],
        [
            [k, v if not isinstance(v, float) else f"{v:.3g}", f"{importance.get(k, 0):.2f}"]
            for k, v in best.params.items()
        ],
    )
    table += f"\n\nImportance by PED-ANOVA on the {len(whole)} whole trials; pooling also chooses the network."
    for stage in STAGES:
        of_stage = _finished(study, stage)
        values = [t.value for t in of_stage if t.state == TrialState.COMPLETE]
        table += f"\n\n{stage}: {len(of_stage)} trials, {len(of_stage) - len(values)} pruned"
        table += f", best validation Dice {max(values):.4f}." if values else "."
    table += f"\n\nBest: trial {best.number}; its overlay is {out.name}/best.json."
    content = {
        "best": best.params,
        "best_validation_dice": best.value,
        "test_dice": dict(rows),
        "importance": importance,
        "trials": [
            {"number": t.number, "state": t.state.name, "params": t.params, "reports": t.intermediate_values}
            | {"stage": t.user_attrs["stage"], "value": t.value}
            for t in trials
        ],
    }
    write_results(out, "search", size, content, table, _figure(trials, importance))


def _figure(trials: list, importance: dict) -> Figure:
    """Learning curves of all trials, importance, and parallel coordinates coloured by the score."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    upper, lower = figure.subfigures(2, 1)
    left, right = upper.subplots(1, 2)
    values = [max(t.intermediate_values.values(), default=0) for t in trials]
    low, high = sorted(values)[len(values) // 4], max(values)
    colour = [colormaps["viridis"](float(c)) for c in np.clip((np.array(values) - low) / (high - low or 1), 0, 1)]
    for trial, c in zip(trials, colour, strict=True):
        steps = sorted(trial.intermediate_values)
        left.plot(steps, [trial.intermediate_values[s] for s in steps], color=c, marker=".", linewidth=1)
    left.set(xlabel="validation", ylabel="Dice", ylim=(low - (high - low), high + 0.1 * (high - low)))
    right.barh(list(importance)[::-1], list(importance.values())[::-1])
    right.set(xlabel=f"importance (PED-ANOVA, n = {sum(t.state == TrialState.COMPLETE for t in trials)} whole trials)")
    axes = lower.subplots()
    names = list(trials[0].params)
    scaled, ticks = [], []
    for name in names:
        column = [t.params[name] for t in trials]
        options = sorted(set(column), key=lambda v: (isinstance(v, str), v))
        places = {v: k / max(1, len(options) - 1) for k, v in enumerate(options)}
        scaled.append([places[v] for v in column])
        ticks.append(options if len(options) < 7 else [f"{options[0]:.2g}", f"{options[-1]:.2g}"])
    for k in sorted(range(len(trials)), key=lambda k: values[k]):
        axes.plot(range(len(names)), [column[k] for column in scaled], color=colour[k], linewidth=1)
    for x, labels in enumerate(ticks):
        for k, label in enumerate(labels):
            axes.annotate(str(label), (x, k / max(1, len(labels) - 1)), (3, 2), textcoords="offset points", fontsize=7)
    axes.set_xticks(range(len(names)), names)
    axes.set(
        yticks=[],
        title=f"{len(trials)} trials; colour: best validation Dice, {low:.3f} (dark) to {high:.3f} (bright); "
        "ranks of the values that were drawn",
    )
    return figure
