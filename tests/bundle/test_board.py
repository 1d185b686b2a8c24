"""The TensorBoard of a run: when it draws pictures."""

from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from ignite.engine import Engine, Events

from bundle.board import TrainingBoard


@pytest.mark.parametrize(
    ("interval", "epochs", "every", "expected"),
    [(1, 3, 1, [1, 2, 3]), (6, 24, 10, [6, 18, 24]), (5, 30, 10, [5, 15, 25, 30]), (5, 12, 100, [5])],
)
def test_validations_draw_panels(monkeypatch, interval, epochs, every, expected):
    writer, evaluator = Mock(), SimpleNamespace(state=SimpleNamespace(epoch=0, metric_details={}, metrics={}))
    board = TrainingBoard(writer, Mock(), evaluator, Mock(param_groups=[{"lr": 1}]), ["a", "b"], {}, every)
    monkeypatch.setattr(board, "_panels", lambda: np.zeros((3, 4, 4), np.uint8))
    trainer = Engine(lambda engine, batch: None)

    @trainer.on(Events.EPOCH_COMPLETED(every=interval))
    def validate(engine):
        evaluator.state.epoch = engine.state.epoch

    trainer.add_event_handler(Events.EPOCH_COMPLETED, board._log)
    trainer.run([0], max_epochs=epochs)
    assert [call.args[2] for call in writer.add_image.call_args_list] == expected
