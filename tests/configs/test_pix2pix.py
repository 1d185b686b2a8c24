"""The Pix2Pix overlay trains both players, goes on after a kill, and leaves a generator like any other network."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import UNet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bundle.inference import load_weights
from bundle.training import TrainingState
from bundle.volume_io import read_volume, root_cause, write_nifti

NETWORK = {"channels": [4, 8], "strides": [2], "num_res_units": 1, "roi_size": [48, 48]}
SMALL = {
    **NETWORK,
    "patch_size": [32, 32],
    "batch_size": 2,
    "image_interval": 1,
    "val_interval": 1,
    "discriminator_channels": 4,
    "discriminator_layers": 2,
}
FILES = ["train.json", "train_pix2pix.json"]


def history(output_dir: Path) -> list[dict]:
    return json.loads((output_dir / "history.json").read_text())


@pytest.fixture(scope="module")
def trained(bundle_run, flat_dataset, tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("pix2pix") / "run"
    bundle_run(FILES, dataset_dir=str(flat_dataset), output_dir=str(output_dir), max_epochs=4, **SMALL)
    return output_dir


def test_history_and_record(trained):
    entries = history(trained)
    assert [h["epoch"] for h in entries] == [1, 2, 3, 4]
    # constant to the end of epoch 2 of 4, then linear to zero
    assert [h["learning_rate"] for h in entries] == pytest.approx([2e-4, 2e-4, 1e-4, 0], abs=1e-12)
    assert all(0 <= h["val_mean_dice"] <= 1 and 0 <= h["val_loss"] <= 1 for h in entries)
    kept = json.loads((trained / "run.json").read_text())["hyper_parameters"]
    assert (kept["loss"], kept["reconstruction_weight"], kept["adversarial_criterion"]) == ("LabelL1Loss", 100, "bce")


def test_tensorboard_shows_both_players(trained):
    board = EventAccumulator(str(trained / "tensorboard"))
    board.Reload()
    players = {
        "generator/adversarial",
        "generator/reconstruction",
        "discriminator/loss_real",
        "discriminator/loss_fake",
        "discriminator/accuracy",
    }
    assert players | {"train_loss", "learning_rate", "dice/pore", "iou/particle", "val_mean_dice"} <= set(
        board.Tags()["scalars"]
    )
    assert board.Tags()["images"] == ["validation: image, label, prediction, error"]
    at = {tag: [e.value for e in board.Scalars(tag)] for tag in (*players, "train_loss")}
    assert {len(values) for values in at.values()} == {8}  # 2 batches in each of 4 epochs
    total = np.add(at["generator/adversarial"], np.multiply(100, at["generator/reconstruction"]))
    assert at["train_loss"] == pytest.approx(total, rel=1e-5)
    assert all(0 <= value <= 1 for value in at["discriminator/accuracy"])


def test_killed_and_resumed_run_equals_an_uninterrupted_one(bundle_run, flat_dataset, trained, tmp_path, monkeypatch):
    options = {"dataset_dir": str(flat_dataset), "output_dir": str(tmp_path / "parts"), "max_epochs": 4, **SMALL}

    class Killed(BaseException):
        pass

    start_epoch = TrainingState._start_epoch

    def die_in_epoch_3(self, engine):
        start_epoch(self, engine)
        if engine.state.epoch == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "_start_epoch", die_in_epoch_3)
        with pytest.raises((Killed, RuntimeError)):  # MONAI's ConfigParser turns what is raised into a RuntimeError
            bundle_run(FILES, **options)
    assert [h["epoch"] for h in history(tmp_path / "parts")] == [1, 2]
    bundle_run(FILES, **options)

    whole, parts = history(trained), history(tmp_path / "parts")
    for a, b in zip(whole, parts, strict=True):
        for key in ("iteration", "learning_rate", "train_loss", "val_loss", "val_mean_dice"):
            assert a[key] == pytest.approx(b[key], rel=1e-5), (a["epoch"], key)
    one, two = (torch.load(d / "last.pt", weights_only=True) for d in (trained, tmp_path / "parts"))
    for name in ("network", "discriminator"):
        for key, value in one[name].items():
            torch.testing.assert_close(value, two[name][key], rtol=1e-5, atol=1e-7)
    for name in ("optimizer", "discriminator_optimizer"):
        for index, kept in one[name]["state"].items():
            assert kept["step"] == two[name]["state"][index]["step"] == 8
            torch.testing.assert_close(kept["exp_avg"], two[name]["state"][index]["exp_avg"], rtol=1e-4, atol=1e-7)
        assert tuple(one[name]["param_groups"][0]["betas"]) == (0.5, 0.999)
    for name in ("lr_scheduler", "discriminator_lr_scheduler"):
        assert one[name]["last_epoch"] == two[name]["last_epoch"] == 8


def test_run_made_longer_follows_the_longer_schedule(bundle_run, flat_dataset, tmp_path):
    options = {"dataset_dir": str(flat_dataset), "output_dir": str(tmp_path / "r"), **SMALL}
    bundle_run(FILES, max_epochs=1, **options)
    bundle_run(FILES, max_epochs=3, **options)
    rates = [h["learning_rate"] for h in history(tmp_path / "r")]
    assert rates == pytest.approx([0, 4e-4 / 3, 0], abs=1e-12)
    last = torch.load(tmp_path / "r/last.pt", weights_only=True)
    assert last["discriminator_lr_scheduler"]["t_total"] == last["lr_scheduler"]["t_total"] == 6


def test_checkpoint_without_a_discriminator_is_refused(bundle_run, flat_dataset, trained, tmp_path):
    state = torch.load(trained / "last.pt", weights_only=True)
    torch.save({k: v for k, v in state.items() if not k.startswith("discriminator")}, tmp_path / "last.pt")
    with pytest.raises(RuntimeError) as caught:
        bundle_run(FILES, dataset_dir=str(flat_dataset), output_dir=str(tmp_path), max_epochs=5, **SMALL)
    error = root_cause(caught.value)
    assert "another network" in str(error)
    assert "discriminator" in str(error)


def test_players_are_not_dropped_by_a_run_without_them(bundle_run, flat_dataset, trained):
    before = (trained / "last.pt").read_bytes()
    options = {k: v for k, v in SMALL.items() if not k.startswith("discriminator")}
    with pytest.raises(RuntimeError) as caught:
        bundle_run(["train.json"], dataset_dir=str(flat_dataset), output_dir=str(trained), max_epochs=9, **options)
    error = root_cause(caught.value)
    assert "is of a run with discriminator, discriminator_lr_scheduler, discriminator_optimizer" in str(error)
    assert (trained / "last.pt").read_bytes() == before


def test_generator_is_shipped_alone_and_segments(bundle_run, flat_dataset, trained, tmp_path):
    network = UNet(2, 1, 2, NETWORK["channels"], NETWORK["strides"], num_res_units=1, norm="instance")
    load_weights(network, trained / "model.pt")
    assert set(torch.load(trained / "model.pt", weights_only=True)) == set(network.state_dict())
    options = {
        "dataset_dir": str(flat_dataset / "images"),
        "output_dir": str(tmp_path),
        "checkpoint": str(trained / "model.pt"),
    }
    bundle_run(["inference.json"], "infer", **options, **NETWORK)
    labels = read_volume(sorted(tmp_path.iterdir())[0])
    assert labels.array.shape == (48, 64)
    assert labels.array.dtype == np.uint8


def test_script_segments_with_the_generator_of_a_run(bundle_run, flat_dataset, tmp_path, monkeypatch, root, run_script):
    options = {**SMALL, "dataset_dir": str(flat_dataset), "output_dir": str(tmp_path / "run"), "max_epochs": 1}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    files = str([str(root / "configs" / name) for name in FILES])
    monkeypatch.setattr(sys, "argv", ["run", "--config_file", files, "--bundle_root", str(root), *words])
    bundle_run(FILES, **options)  # run.json has the command's config
    image = sorted((flat_dataset / "images").iterdir())[0]
    arguments = (image, "--checkpoint", tmp_path / "run/model.pt", "--out", tmp_path / "out")
    assert run_script(root / "scripts/segment.py", *arguments)[0] == 0
    labels = read_volume(tmp_path / "out/labels.nii.gz").array
    assert labels.shape == (48, 64) and labels.dtype == np.uint8 and labels.max() <= 1


def test_trains_in_3d_after_the_volume_overlay(bundle_run, solid_dataset, tmp_path):
    options = {**SMALL, "patch_size": [16, 16, 16], "roi_size": [24, 24, 24], "adversarial_criterion": "least_squares"}
    options |= {"dataset_dir": str(solid_dataset), "output_dir": str(tmp_path / "r"), "max_epochs": 1}
    bundle_run(["train.json", "volume_3d.json", "train_pix2pix.json"], **options)
    weights = torch.load(tmp_path / "r/last.pt", weights_only=True)["discriminator"]
    assert weights["initial_conv.conv.weight"].shape == (4, 3, 4, 4, 4)


@pytest.fixture
def three_classes(flat_dataset, tmp_path) -> Path:
    """The flat data set with the particles of the lower half as a third class."""
    datalist = json.loads((flat_dataset / "dataset.json").read_text())
    for split in ("training", "validation", "test"):
        for pair in datalist[split]:
            label = read_volume(flat_dataset / pair["label"])
            array = label.array.copy()
            array[array.shape[0] // 2 :] *= 2
            name = Path(pair["label"]).name
            write_nifti(tmp_path / name, array, label.affine)
            pair |= {"image": str(flat_dataset / pair["image"]), "label": name}
    datalist["labels"] = {"0": "pore", "1": "nickel", "2": "ceramic"}
    (tmp_path / "dataset.json").write_text(json.dumps(datalist))
    return tmp_path


def test_three_classes_with_a_pix2pix_generator_and_cross_entropy(bundle_run, three_classes, tmp_path):
    # the paper's U-Net: strided convolutions without residual units, batch norm, dropout as noise
    generator = {"num_res_units": 0, "network_def#norm": "batch", "network_def#dropout": 0.5}
    generator |= {"channels": [4, 8, 8], "strides": [2, 2]}
    options = {**SMALL, **generator, "cross_entropy_weight": 1, "label_smoothing": 0.1, "max_epochs": 1}
    options |= {"ema_decay": 0.9, "gradient_clip": 1.0}
    bundle_run(FILES, dataset_dir=str(three_classes), output_dir=str(tmp_path / "r"), **options)
    last = torch.load(tmp_path / "r/last.pt", weights_only=True)
    assert last["discriminator"]["initial_conv.conv.weight"].shape == (4, 4, 4, 4)
    shipped = torch.load(tmp_path / "r/model.pt", weights_only=True)
    assert set(shipped) == set(last["network"])
    assert not torch.equal(*(w["model.0.conv.weight"] for w in (shipped, last["network"])))  # the average's
    board = EventAccumulator(str(tmp_path / "r/tensorboard"))
    board.Reload()
    assert {"generator/cross_entropy", "dice/ceramic"} <= set(board.Tags()["scalars"])


def test_default_discriminator_sees_patches_of_70_pixels(root):
    parser = ConfigParser(ConfigParser.load_config_files([str(root / "configs" / name) for name in FILES]))
    parser["class_names"], parser["channel_names"] = ["pore", "particle"], ["CT"]
    discriminator = parser.get_parsed_content("discriminator_def")
    assert sum(p.numel() for p in discriminator.parameters()) > 2.7e6
    image = torch.zeros(1, 3, 128, 128, requires_grad=True)
    # without instance norm, which mixes all positions, one output depends on 70 x 70 pixels (paper, appendix 6.1.2)
    for module in discriminator.modules():
        if hasattr(module, "N"):
            module.N = torch.nn.Identity()
    verdict = discriminator(image)[-1]
    verdict[0, 0, verdict.shape[2] // 2, verdict.shape[3] // 2].backward()
    seen = image.grad[0].abs().sum(0).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [70, 70]
