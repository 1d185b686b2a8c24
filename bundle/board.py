"""The TensorBoard of a training run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch.utils.tensorboard import SummaryWriter

from bundle.pictures import error_map, label_colours, to_grey
from bundle.training import RunRecord


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
        image_interval: least number of epochs between panels; validations draw them, the first and the last always.
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
        self.last_panels = -image_interval  # epoch

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
        if epoch - self.last_panels >= self.image_interval or epoch == engine.state.max_epochs:
            self.last_panels = epoch
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
