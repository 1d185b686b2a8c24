"""The parts of a training: its data list, what it records about itself, averaged weights, clipped gradients."""

import copy
import json
import time
from types import SimpleNamespace

import fire
import pytest
import torch
from ignite.engine import Engine
from monai.engines import Evaluator, SupervisedTrainer
from monai.transforms import RandRotate90d
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from bundle import training
from bundle.training import (
    GradientClip,
    WeightAverage,
    load_datalist,
    read_class_names,
    resolved_config,
    shows_whole_objects,
)


@pytest.fixture
def config_files(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"max_epochs": 300, "net": {"_target_": "UNet", "channels": [4, 8]}}))
    (tmp_path / "b.json").write_text(json.dumps({"net#channels": [2, 4]}))
    return tmp_path


@pytest.mark.parametrize("style", [["--max_epochs", "7"], ["--max_epochs=7"], ["--max-epochs", "7"]])
def test_resolved_config_has_overrides(config_files, style):
    argv = ["monai", "run", "--config_file", str(config_files / "a.json"), *style, "--meta_file", "m.json"]
    config = resolved_config(argv)
    assert config == {"max_epochs": 7, "net": {"_target_": "UNet", "channels": [4, 8]}}


def test_resolved_config_merges_files_and_nested_keys(config_files):
    files = str([str(config_files / "a.json"), str(config_files / "b.json")])
    config = resolved_config(["monai", "run", "--config_file", files, "--net#_target_", "AttentionUnet"])
    assert config["net"] == {"_target_": "AttentionUnet", "channels": [2, 4]}


def test_resolved_config_reads_switches_as_fire_does(config_files):
    argv = ["run", "--config_file", str(config_files / "a.json"), "--resume", "--max_epochs", "-1", "--amp"]
    config = resolved_config(argv)
    assert (config["resume"], config["max_epochs"], config["amp"]) == (True, -1, True)
    seen = fire.Fire(lambda **given: given, [*argv[3:]])
    assert {k: config[k] for k in seen} == seen


def test_no_bundle_run_no_config():
    assert resolved_config(["pytest", "-q"]) is None


class Clocked:
    """A trainer whose steps take 1 s and whose validations take 100 s of a clock of its own."""

    def __init__(self, monkeypatch, folder, scores, interval, patience=0):
        self.now, self.validated = 0.0, []
        monkeypatch.setattr(training.time, "monotonic", lambda: self.now)
        network = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(network.parameters())
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
        self.evaluator = Evaluator.__new__(Evaluator)  # MONAI's handler asks for its type
        self.evaluator.network = network
        self.evaluator.state = SimpleNamespace(metrics={}, epoch=0, key_metric_name="score")
        self.evaluator.run = lambda epoch: self.validate(epoch, scores)
        self.trainer = Engine(lambda engine, batch: self.step())
        self.trainer.data_loader = SimpleNamespace(dataset=[])
        training.Validation(interval, self.evaluator).attach(self.trainer)
        state = training.TrainingState(str(folder), network, optimizer, scheduler, self.evaluator, patience)
        state.attach(self.trainer)

    def step(self):
        self.now += 1
        return [{"loss": 0.5}]

    def validate(self, epoch, scores):
        self.now += 100
        self.validated.append(epoch)
        self.evaluator.state.epoch, self.evaluator.state.metrics = epoch, {"score": scores.get(epoch, 0.0)}


def test_time_of_an_epoch_is_without_validation(monkeypatch, tmp_path):
    clocked = Clocked(monkeypatch, tmp_path, {}, interval=2)
    clocked.trainer.run([0, 1, 2], max_epochs=5)
    assert clocked.validated == [2, 4, 5]  # and the last one
    assert [entry["seconds"] for entry in json.loads((tmp_path / "history.json").read_text())] == [3.0] * 5


def test_patience_waits_for_a_validation(monkeypatch, tmp_path):
    clocked = Clocked(monkeypatch, tmp_path, {10: 0.5, 20: 0.6, 30: 0.55}, interval=10, patience=3)
    clocked.trainer.run([0], max_epochs=90)
    assert clocked.validated == [10, 20, 30] and clocked.trainer.state.epoch == 30


def test_curves_of_a_resumed_run_have_each_step_once(tmp_path):
    """A run of 3 steps an epoch, killed in its third, has written two steps beyond its checkpoint."""
    assert training.first_step(str(tmp_path)) is None
    (tmp_path / "history.json").write_text(json.dumps([{"epoch": 1, "iteration": 3}, {"epoch": 2, "iteration": 6}]))
    for first, steps, value in ((None, range(1, 9), 0.0), (training.first_step(tmp_path), range(7, 10), 1.0)):
        with SummaryWriter(str(tmp_path / "tensorboard"), purge_step=first, filename_suffix=f".{value}") as writer:
            for step in steps:
                writer.add_scalar("train_loss", value, step)
        time.sleep(0 if first else 1.1)  # files are read in the order of their seconds
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(event.step, event.value) for event in curves.Scalars("train_loss")]
    assert points == [(step, float(step > 6)) for step in range(1, 10)]


class Halving(torch.nn.Module):
    """Takes windows of multiples of 4."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, image):
        small = torch.nn.functional.avg_pool2d(image, 4)
        return self.scale * small.repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.mark.parametrize(
    ("patch", "roi", "said"),
    [
        ([32, 32], [47, 48], r"roi_size \[47, 48\] must be 2 multiples of 4, for this Halving"),
        ([31, 31], [48, 48], r"patch_size \[31, 31\] must be 2 multiples of 4"),
        ([32, 32, 32], [48, 48], "patch_size .* must be 2 multiples of 4"),
        ([32, 0], [48, 48], "patch_size .* must be 2 multiples of 4"),
        ([32, 16], [48, 48], r"patch_size \[32, 16\] must be the same along the axes \[0, 1\]"),
    ],
)
def test_windows_that_the_network_cannot_take(patch, roi, said):
    turns = [RandRotate90d("image", spatial_axes=(0, 1))]
    training.check_windows(Halving(), 1, 2, [32, 32], [48, 64], turns)
    training.check_windows(Halving(), 1, 2, [32, 16], [48, 64])
    with pytest.raises(ValueError, match=said):
        training.check_windows(Halving(), 1, 2, patch, roi, turns)


def test_interval_and_steps_out_of_range():
    with pytest.raises(ValueError, match="val_interval 0 must be at least 1 epoch"):
        training.Validation(0, Evaluator.__new__(Evaluator))
    with pytest.raises(ValueError, match="steps_per_epoch 0 must be at least 1"):
        training.epoch_sampler([0, 1], batch_size=2, steps=0)


def test_split_and_limit(flat_dataset):
    names = ["pore", "particle"]
    path = str(flat_dataset / "dataset.json")
    splits = {s: load_datalist(path, s, names, 2) for s in ("training", "validation", "test")}
    assert [len(v) for v in splits.values()] == [4, 2, 2]
    assert len({p["image"] for pairs in splits.values() for p in pairs}) == 8
    assert len(load_datalist(path, "training", names, 2, limit=3)) == 3


def test_every_process_needs_a_pair(flat_dataset, monkeypatch):
    path, names = str(flat_dataset / "dataset.json"), ["pore", "particle"]
    monkeypatch.setattr(training.idist, "get_world_size", lambda: 3)
    assert len(load_datalist(path, "training", names, 2)) == 4
    with pytest.raises(ValueError, match="'validation' has 2 pairs; 3 processes need one each"):
        load_datalist(path, "validation", names, 2)


def test_file_that_is_gone_is_named(flat_dataset, tmp_path):
    datalist = json.loads((flat_dataset / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(datalist))
    with pytest.raises(FileNotFoundError, match="tiny_"):
        load_datalist(str(tmp_path / "dataset.json"), "training", ["pore", "particle"], 2)


def write_datalist(folder, **content) -> str:
    (folder / "dataset.json").write_text(json.dumps(content))
    return str(folder / "dataset.json")


def test_class_names_come_in_the_order_of_the_labels(tmp_path):
    path = write_datalist(tmp_path, labels={"1": "NMC", "2": "CBD", "0": "pore"})
    assert read_class_names(path) == ["pore", "NMC", "CBD"]


@pytest.mark.parametrize(
    "labels",
    [
        None,
        ["pore", "NMC"],
        {"0": "pore"},
        {"0": "pore", "2": "NMC"},
        {"0": "pore", "1": "pore"},
        {"0": "pore", "1": 1},
        {"0": "pore", "1": ""},
    ],
)
def test_class_names_that_are_none_are_refused(tmp_path, labels):
    path = write_datalist(tmp_path, labels=labels)
    with pytest.raises(ValueError, match="must name each class once") as caught:
        read_class_names(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_data_list_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data set at"):
        read_class_names(str(tmp_path / "dataset.json"))
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        read_class_names(str(tmp_path / "dataset.json"))
    with pytest.raises(ValueError, match="holds a list"):
        (tmp_path / "dataset.json").write_text("[1]")
        read_class_names(str(tmp_path / "dataset.json"))


@pytest.mark.parametrize(
    ("recipe", "dims", "whole"),
    [
        ({"sample_diameter": None}, 2, True),
        ({"sample_diameter": [0.8, 1.0]}, 2, True),
        ({"sample_diameter": [0.9, 1.3]}, 2, False),  # some stick out of the field of view
        ({"sample_diameter": 1.2}, 2, False),
        ({"sample_diameter": None}, 3, False),  # a patch
        (None, 2, False),  # an annotated scan
    ],
)
def test_the_recipe_tells_whether_the_object_is_whole(tmp_path, recipe, dims, whole):
    if recipe is not None:
        (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    assert shows_whole_objects(str(tmp_path / "dataset.json"), dims) is whole


def test_dimensions_of_the_data_are_checked(flat_dataset, solid_dataset):
    names = ["pore", "particle"]
    assert len(load_datalist(str(solid_dataset / "dataset.json"), "training", names, 3)) == 2
    for folder, dims in ((solid_dataset, 2), (flat_dataset, 3)):
        with pytest.raises(ValueError, match=r"volume_3d\.json.*slices_25d\.json"):
            load_datalist(str(folder / "dataset.json"), "training", names, dims)


# ------------------------------------------------------------------------------------------- averaged weights


def stepped(average: WeightAverage, network: torch.nn.Module, values: list[float]) -> None:
    """Let the network's weights be each value in turn, one iteration each."""

    def step(engine, value):
        with torch.no_grad():
            network.weight.fill_(value)
            network.running.fill_(value)

    engine = Engine(step)
    average.attach(engine)
    engine.run(values)


def one_weight() -> torch.nn.Module:
    network = torch.nn.Linear(1, 1, bias=False)
    network.register_buffer("running", torch.zeros(1))
    return network


def test_average_is_the_recursion(seed=0):
    values = torch.rand(60, generator=torch.Generator().manual_seed(seed)).double().tolist()
    network = one_weight().double()
    average = WeightAverage(network, 0.8)
    stepped(average, network, values)
    expected = values[0]
    for n, value in enumerate(values[1:], start=2):
        d = min(0.8, n / (n + 9))
        expected = d * expected + (1 - d) * value
    assert average.network.weight.item() == pytest.approx(expected, rel=1e-12)
    assert average.network.running.item() == values[-1]  # statistics are copied
    assert network.weight.item() == values[-1]


def test_average_goes_on_where_it_was_saved():
    values = [0.1, 0.5, 0.2, 0.9, 0.4, 0.7]
    whole, parts = one_weight(), one_weight()
    one, two = WeightAverage(whole, 0.9), WeightAverage(parts, 0.9)
    stepped(one, whole, values)
    stepped(two, parts, values[:3])
    again = WeightAverage(parts, 0.9)
    again.load_state_dict(copy.deepcopy(two.state_dict()))
    stepped(again, parts, values[3:])
    assert torch.equal(one.network.weight, again.network.weight)


def test_no_average_is_the_network_itself():
    network = one_weight()
    average = WeightAverage(network, None)
    stepped(average, network, [1.0, 2.0])
    assert average.network is network and average.state_dict() == {}


@pytest.mark.parametrize("decay", [0, 1, -0.5, 1.5])
def test_average_out_of_range(decay):
    with pytest.raises(ValueError, match=f"ema_decay {decay}"):
        WeightAverage(one_weight(), decay)


# ------------------------------------------------------------------------------------------- clipped gradients


@pytest.mark.parametrize("max_norm", [None, 0.5, 1e9])
def test_step_of_sgd_is_as_long_as_the_clipped_gradient(max_norm):
    network = torch.nn.Linear(4, 1, bias=False)
    start = network.weight.detach().clone()
    images = torch.full((2, 4), 3.0)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[{"image": images, "label": torch.zeros(2, 1)}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=lambda pred, label: pred.mean(),  # its gradient is (3, 3, 3, 3), of norm 6
        train_handlers=[GradientClip(max_norm)],
        decollate=False,
    )
    trainer.run()
    length = (network.weight.detach() - start).norm().item()
    assert length == pytest.approx(0.5 if max_norm == 0.5 else 6.0, rel=1e-5)


def test_clipping_takes_the_scale_of_amp_off_first():
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((weight * 3).sum()).backward()
    GradientClip(0.5)._clip(SimpleNamespace(scaler=scaler, optimizer=optimizer))
    assert weight.grad.norm().item() == pytest.approx(0.5, rel=1e-5)
    scaler.step(optimizer)
    assert weight.detach().norm().item() == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("max_norm", [0, -1.0])
def test_clipping_out_of_range(max_norm):
    with pytest.raises(ValueError, match="gradient_clip"):
        GradientClip(max_norm)


def test_clipping_refuses_accumulated_gradients():
    with pytest.raises(ValueError, match="accumulation_steps"):
        GradientClip(1.0).attach(SimpleNamespace(accumulation_steps=2))
