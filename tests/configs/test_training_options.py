"""What train.json can be asked for beside its defaults: each option by its effect."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from bundle.transfer import ENCODERS
from bundle.volume_io import affine_from_voxel_size, read_volume, root_cause, write_nifti, write_tiff

SMALL = {
    "patch_size": [32, 32],
    "roi_size": [48, 48],
    "batch_size": 2,
    "channels": [4, 8],
    "strides": [2],
    "num_res_units": 1,
    "val_interval": 1,
    "max_epochs": 1,
}
NOISE = [{"_target_": "RandGaussianNoised", "keys": "image", "prob": 1.0, "std": 0.5}]


@pytest.fixture
def train(bundle_run, flat_dataset, tmp_path):
    """Train a small network into tmp_path/name with overlays and options; gives the folder of the run."""

    def run(name: str, *overlays: str, **options) -> Path:
        given = {"dataset_dir": str(flat_dataset), "output_dir": str(tmp_path / name), **SMALL, **options}
        bundle_run(["train.json", *overlays], **given)
        return tmp_path / name

    return run


def history(run: Path) -> list[dict]:
    return json.loads((run / "history.json").read_text())


def weights(run: Path, name: str = "model.pt") -> dict[str, torch.Tensor]:
    state = torch.load(run / name, weights_only=True)
    return state.get("network", state)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def parsed(root: Path, *overlays: str, **options) -> ConfigParser:
    parser = ConfigParser(
        ConfigParser.load_config_files([str(root / "configs" / n) for n in ("train.json", *overlays)])
    )
    parser.update({"bundle_root": str(root), "device": "$torch.device('cpu')", **SMALL, **options})
    return parser


def message(run, *arguments, **options) -> str:
    """What the error at the root of a run says."""
    with pytest.raises(Exception) as caught:
        run(*arguments, **options)
    error = root_cause(caught.value)
    assert "\n" not in str(error)
    return str(error)


# --------------------------------------------------------------------------------------------------- classes


@pytest.fixture
def three_phases(tmp_path) -> Path:
    """Two images of stripes, one to train and one to validate, as TIFF that the data list names."""
    folder = tmp_path / "stripes"
    folder.mkdir()
    labels = np.repeat(np.arange(48) // 8 % 3, 40).reshape(48, 40).astype(np.uint8)
    for k in range(2):
        noise = np.random.default_rng(k).normal(0, 0.05, labels.shape)
        write_tiff(folder / f"{k}.tif", (labels / 2 + noise).astype(np.float32), None)
        write_tiff(folder / f"{k}_label.tif", labels, None)
    pairs = [{"image": f"{k}.tif", "label": f"{k}_label.tif"} for k in range(2)]
    names = {"0": "pore", "1": "CBD", "2": "NMC"}
    content = {"labels": names, "tensorImageSize": "2D", "training": pairs[:1], "validation": pairs[1:]}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_classes_come_from_the_data_set(train, three_phases):
    run = train("r", dataset_dir=str(three_phases))
    assert weights(run)["model.2.0.conv.weight"].shape[1] == 3
    assert json.loads((run / "run.json").read_text())["hyper_parameters"]["classes"] == "pore, CBD, NMC"


def test_classes_that_are_named_are_checked(train, three_phases):
    names = ["pore", "CBD", "NMC"]
    assert weights(train("r", dataset_dir=str(three_phases), class_names=names))
    said = message(train, "s", dataset_dir=str(three_phases), class_names=names[::-1])
    assert "has the classes ['pore', 'CBD', 'NMC']" in said


# ---------------------------------------------------------------------------------------------- augmentation


def test_augmentation_comes_after_the_scaling_and_before_the_crop(root, flat_dataset):
    def kinds(*overlays: str) -> list[str]:
        parser = parsed(root, *overlays, dataset_dir=str(flat_dataset), augmentation=NOISE)
        return [type(t).__name__ for t in parser.get_parsed_content("train#preprocessing").transforms]

    scale, noise, patches = "ScaleIntensityRangePercentilesd", "RandGaussianNoised", "RandSpatialCropSamplesd"
    for overlays, expected in (
        ([], [scale, noise, patches]),
        (["volume_3d.json"], [scale, patches, noise]),
        (["slices_25d.json"], [scale, patches, noise, "SlicesToChannelsd", "RandSpatialCropd"]),
    ):
        assert [k for k in kinds(*overlays) if k in expected] == expected


def test_augmentation_acts_in_training_only_and_follows_the_seed(train):
    """With a learning rate of 0 the loss of an epoch depends on what was drawn alone."""
    still = {"learning_rate": 0.0, "max_epochs": 2}
    plain, noisy = history(train("plain", **still)), history(train("noisy", augmentation=NOISE, **still))
    assert noisy[0]["val_loss"] == pytest.approx(plain[0]["val_loss"], rel=1e-6)
    assert abs(noisy[0]["train_loss"] - plain[0]["train_loss"]) > 1e-4
    train("parts", augmentation=NOISE, **still | {"max_epochs": 1})
    parts = history(train("parts", augmentation=NOISE, **still))
    assert [e["train_loss"] for e in parts] == pytest.approx([e["train_loss"] for e in noisy], rel=1e-6)
    assert history(train("other", augmentation=NOISE, seed=1, **still))[0]["train_loss"] != noisy[0]["train_loss"]


@pytest.mark.parametrize("overlay", ["augment.json", None])
def test_augmentation_leaves_the_cached_images_as_they_are(root, flat_dataset, overlay):
    overlays = [overlay] if overlay and (root / "configs" / overlay).exists() else []
    options = {} if overlays else {"augmentation": NOISE}
    dataset = parsed(root, *overlays, dataset_dir=str(flat_dataset), **options).get_parsed_content("train#dataset")
    before = [{k: item[k].clone() for k in ("image", "label")} for item in dataset._cache]
    for epoch in range(3):
        dataset.transform.set_random_state(seed=epoch)
        for k in range(len(dataset)):
            dataset[k]
    for item, kept in zip(dataset._cache, before, strict=True):
        assert all(torch.equal(item[k], kept[k]) for k in kept)


# ----------------------------------------------------------------------------------------------------- 2.5D


@pytest.fixture
def ramp(tmp_path) -> Path:
    """A volume of 24 x 20 x 6 voxels whose grey value and label tell the slice: 10 z, and z mod 2."""
    folder = tmp_path / "ramp"
    folder.mkdir()
    image = np.broadcast_to(10.0 * np.arange(6, dtype=np.float32), (24, 20, 6))
    affine = affine_from_voxel_size((0.5, 0.5, 0.5))
    write_nifti(folder / "image.nii.gz", image, affine)
    write_nifti(folder / "label.nii.gz", (image // 10 % 2).astype(np.uint8), affine)
    pair = {"image": "image.nii.gz", "label": "label.nii.gz"}
    content = {"labels": {"0": "even", "1": "odd"}, "tensorImageSize": "3D", "training": [pair], "validation": [pair]}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("neighbours", [0, 1, 2])
def test_patches_of_25d_are_slices_with_their_neighbours(root, ramp, neighbours):
    options = {"dataset_dir": str(ramp), "neighbours": neighbours, "patch_size": [16, 12], "intensity": []}
    dataset = parsed(root, "slices_25d.json", patches_per_image=60, **options).get_parsed_content("train#dataset")
    dataset.transform.set_random_state(seed=0)
    middles = set()
    for patch in dataset[0]:
        assert patch["image"].shape[0] == 2 * neighbours + 1 and patch["label"].shape[0] == 1
        assert sorted(patch["image"].shape[1:]) == [12, 16] and patch["label"].shape[1:] == patch["image"].shape[1:]
        slices = (patch["image"][:, 0, 0] / 10).tolist()
        middle = round(slices[neighbours])
        expected = [min(max(middle + d, 0), 5) for d in range(-neighbours, neighbours + 1)]
        assert slices in (expected, expected[::-1])
        assert (patch["label"] == middle % 2).all()
        middles.add(middle)
    assert middles == set(range(6))  # the ends, too


@pytest.mark.parametrize("neighbours", [0, 1])
def test_slices_of_volumes_are_trained_evaluated_and_segmented(bundle_run, train, solid_dataset, tmp_path, neighbours):
    given = {"dataset_dir": str(solid_dataset), "neighbours": neighbours, "patch_size": [16, 16], "roi_size": [24, 24]}
    run = train("r", "slices_25d.json", augmentation=NOISE, **given)
    assert weights(run)["model.0.conv.unit0.conv.weight"].shape[1] == 2 * neighbours + 1
    validated = history(run)[0]["val_mean_dice"]
    train("r", "slices_25d.json", "evaluate.json", mirror=False, **{"validate#split": "validation"}, **given)
    report = json.loads((run / "evaluation/metrics.json").read_text())
    assert report["methods"]["UNet"]["summary"]["mean_dice"]["mean"] == pytest.approx(validated, abs=1e-3)
    options = {k: SMALL[k] for k in ("channels", "strides", "num_res_units")}
    bundle_run(
        ["inference.json"],
        "infer",
        dataset_dir=str(solid_dataset / "images"),
        output_dir=str(tmp_path / "labels"),
        checkpoint=str(run / "model.pt"),
        roi_size=[24, 24],
        neighbours=neighbours,
        **options,
    )
    written = sorted((tmp_path / "labels").iterdir())
    assert len(written) == 4
    image = read_volume(sorted((solid_dataset / "images").iterdir())[0])
    labels = read_volume(written[0])
    assert labels.array.shape == image.array.shape
    np.testing.assert_allclose(labels.affine, image.affine)


# ------------------------------------------------------------------------------------- weights and their steps


def test_averaged_weights_are_validated_kept_and_resumed(train):
    options = {"ema_decay": 0.9, "max_epochs": 3, "learning_rate": 0.02, "lr_scheduler": CONSTANT}
    whole = train("whole", **options)
    last = torch.load(whole / "last.pt", weights_only=True)
    average = {k.removeprefix("module."): v for k, v in last["average"].items() if k != "n_averaged"}
    assert int(last["average"]["n_averaged"]) == 6  # 2 batches in each of 3 epochs
    assert not same(average, last["network"])
    plain = history(train("plain", **options | {"ema_decay": None}))
    assert [e["train_loss"] for e in history(whole)] == pytest.approx([e["train_loss"] for e in plain], rel=1e-6)
    assert history(whole)[-1]["val_loss"] != pytest.approx(plain[-1]["val_loss"], rel=1e-4)
    first = train("parts", **options | {"max_epochs": 1})
    average = torch.load(first / "last.pt", weights_only=True)["average"]
    assert same({k.removeprefix("module."): v for k, v in average.items() if k != "n_averaged"}, weights(first))
    parts = train("parts", **options)
    again = torch.load(parts / "last.pt", weights_only=True)
    for name in last["average"]:
        torch.testing.assert_close(again["average"][name], last["average"][name], rtol=1e-4, atol=1e-6)
    assert "ema_decay" in message(train, "parts", **options | {"ema_decay": None})


CONSTANT = {"_target_": "torch.optim.lr_scheduler.ConstantLR", "optimizer": "@optimizer", "factor": 1.0}


def test_evaluation_takes_the_averaged_weights(train):
    options = {"ema_decay": 0.9, "learning_rate": 0.02}
    run = train("r", **options)
    validated = history(run)[0]["val_mean_dice"]
    train("r", "evaluate.json", mirror=False, **{"validate#split": "validation"}, **options)
    report = json.loads((run / "evaluation/metrics.json").read_text())
    assert report["methods"]["UNet"]["summary"]["mean_dice"]["mean"] == pytest.approx(validated, abs=1e-3)


def test_clipped_steps_are_short(train):
    """SGD moves the weights by at most learning rate × norm a step."""
    options = {"optimizer#_target_": "torch.optim.SGD", "learning_rate": 1.0, "lr_scheduler": CONSTANT}
    clipped = weights(train("clipped", gradient_clip=1e-3, **options), "last.pt")
    start = weights(train("still", **options | {"learning_rate": 0.0}), "last.pt")
    moved = sum((clipped[k] - start[k]).square().sum() for k in start).sqrt().item()
    assert 1e-4 < moved <= 2 * 1e-3 * (1 + 1e-4)  # two steps


@pytest.mark.parametrize("amp", [False, True])
def test_channels_last_trains_alike(train, amp):
    plain = history(train("plain", amp=amp))[0]
    last = history(train("last", channels_last=True, amp=amp))[0]
    for key in ("train_loss", "val_loss"):
        assert last[key] == pytest.approx(plain[key], rel=0.02 if amp else 1e-4)


@pytest.mark.parametrize(("amp", "channels_last"), [(False, False), (True, False), (False, True)])
def test_precision_and_memory_format_reach_the_convolutions(root, flat_dataset, tmp_path, amp, channels_last):
    """In training and in validation. With one channel both formats are one."""
    options = {"dataset_dir": str(flat_dataset), "output_dir": str(tmp_path / "r"), "amp": amp}
    parser = parsed(root, channels_last=channels_last, **options)
    network = parser.get_parsed_content("network")
    seen = []
    inner = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.in_channels > 1)
    inner.register_forward_hook(lambda m, inputs, output: seen.append((m.training, output)))
    parser.get_parsed_content("train#trainer").run()
    assert {training for training, _ in seen} == {True, False}
    assert {output.dtype for _, output in seen} == {torch.bfloat16 if amp else torch.float32}
    assert all(output.is_contiguous(memory_format=torch.channels_last) == channels_last for _, output in seen)


# ------------------------------------------------------------------------------------------------- transfer


def test_training_on_one_annotated_image_from_other_phases(root, train, tmp_path):
    """A TIFF pair of three phases through make_datalist.py, started from a network of two."""
    pretrained = train("pretrained")
    labels = np.repeat(np.arange(96) // 8 % 3, 40).reshape(96, 40).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 0.05, labels.shape)
    write_tiff(tmp_path / "a.tif", (labels / 2 + noise).astype(np.float32), None)
    write_tiff(tmp_path / "a_label.tif", labels, None)
    command = [sys.executable, str(root / "scripts/make_datalist.py"), "--images", "a.tif", "--labels", "a_label.tif"]
    command += ["--classes", "pore", "CBD", "NMC", "--out", "one"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    options = {k: v for k, v in SMALL.items() if k not in ("batch_size", "roi_size")} | {"patches_per_image": 4}
    options |= {"dataset_dir": str(tmp_path / "one"), "pretrained": str(pretrained / "model.pt"), "freeze": True}
    run = train("r", "transfer.json", steps_per_epoch=3, **options)
    assert history(run)[0]["iteration"] == 3
    old, new = weights(pretrained), weights(run, "last.pt")
    kept = {k for k in old if old[k].shape == new[k].shape}
    changed = {k.rpartition(".")[0] for k in set(old) - kept}
    assert changed and kept
    for k in kept:
        if k.rpartition(".")[0] not in changed:
            assert torch.equal(old[k], new[k]), k
    assert json.loads((run / "run.json").read_text())["hyper_parameters"]["freeze"] is True


def test_encoder_is_taken_up_and_kept(train):
    """What the encoder's names are, tests/bundle/test_transfer.py says."""
    pretrained = train("pretrained", seed=1)
    options = {"pretrained": str(pretrained / "model.pt"), "pretrained_part": "encoder", "freeze": True}
    old, new = weights(pretrained), weights(train("r", learning_rate=0.01, **options), "last.pt")
    pattern = re.compile(ENCODERS["UNet"])
    kept = {k for k in old if torch.equal(old[k], new[k])}
    assert kept == {k for k in old if pattern.match(k)} and kept != set(old)
    said = json.loads((pretrained.parent / "r/run.json").read_text())["hyper_parameters"]["pretrained"]
    assert said.startswith("model.pt (sha256 ")


def test_classes_in_another_order_are_refused(train, three_phases):
    run = train("r", dataset_dir=str(three_phases))
    content = json.loads((three_phases / "dataset.json").read_text())
    content["labels"] = {"0": "pore", "1": "NMC", "2": "CBD"}
    (three_phases / "dataset.json").write_text(json.dumps(content))
    assert "is of the classes ['pore', 'CBD', 'NMC'], here ['pore', 'NMC', 'CBD']" in message(
        train, "r", dataset_dir=str(three_phases), max_epochs=2
    )
    assert len(history(run)) == 1


def test_another_schedule_is_refused(train):
    train("r")
    assert "its lr_scheduler is WarmupCosineSchedule, here ConstantLR" in message(
        train, "r", lr_scheduler=CONSTANT, max_epochs=2
    )


def test_windows_are_checked_before_the_images_are_read(train, monkeypatch):
    monkeypatch.setattr("bundle.monai_io.VolumeReader.read", lambda *a, **k: pytest.fail("read"))
    assert "roi_size [47, 47] must be 2 multiples of 2" in message(train, "r", roi_size=[47, 47])


def test_images_smaller_than_a_patch_go_on_as_their_mirror_image(root, flat_dataset):
    options = {"dataset_dir": str(flat_dataset), "patch_size": [64, 64]}
    dataset = parsed(root, **options).get_parsed_content("train#dataset")
    dataset.transform.set_random_state(seed=0)
    for item in dataset:
        assert all(item[0][k].shape == (1, 64, 64) for k in ("image", "label"))
    padded = dataset._cache[0]  # padded in the cache: 48 pixels from 8 to 56
    for key in ("image", "label"):
        values = padded[key].as_tensor()
        assert torch.equal(values[:, :8], values[:, 8:16].flip(1)) and values.shape == (1, 64, 64)


def test_resumed_run_goes_on_from_its_own_weights(train):
    pretrained = train("pretrained", seed=1)
    still = {"pretrained": str(pretrained / "model.pt"), "learning_rate": 0.0}
    run = train("r", **still)
    assert same(weights(run), weights(pretrained))
    state = torch.load(run / "last.pt", weights_only=True)
    state["network"] = {k: v + 1 for k, v in state["network"].items()}
    torch.save(state, run / "last.pt")
    train("r", **still | {"max_epochs": 2})
    assert same(weights(run, "last.pt"), state["network"])


# ------------------------------------------------------------------------------------------ several processes

WHOLE = {  # one step an epoch that sees every pixel, so that the order of the images does not matter
    "train#random_transforms": [],
    "patch_size": [48, 64],
    "optimizer#_target_": "torch.optim.SGD",  # Adam's first steps magnify rounding
    "learning_rate": 0.1,
    "lr_scheduler": CONSTANT,
    "ema_decay": 0.5,
}


@pytest.fixture
def train_in_two(root, flat_dataset, tmp_path):
    """``train`` in two processes; overlays may be paths, and come before multi_gpu_train.json."""

    def run(name: str, *overlays: str | Path, **options) -> Path:
        files = [str(root / "configs" / file) for file in ("train.json", *overlays, "multi_gpu_train.json")]
        given = {"dataset_dir": flat_dataset, "output_dir": tmp_path / name, **SMALL, **options, "bundle_root": root}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
        command += ["monai.bundle", "run", "--config_file", str(files)]
        for key, value in given.items():
            command += [f"--{key}", str(value)]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return tmp_path / name

    return run


def test_two_processes_train_and_score_as_one(train, train_in_two, tmp_path):
    one = train("one", **WHOLE, batch_size=4)
    shutil.copytree(one, tmp_path / "two")
    train("one", **WHOLE, batch_size=4, max_epochs=3)
    two = train_in_two("two", **WHOLE, batch_size=2, max_epochs=3)
    whole, split = history(one), history(two)
    assert [e["epoch"] for e in split] == [1, 2, 3]
    for a, b in zip(whole, split, strict=True):
        for key in ("iteration", "train_loss", "val_loss", "val_mean_dice", "val_class_iou"):
            assert b[key] == pytest.approx(a[key], rel=1e-4), (a["epoch"], key)
    for name in ("model.pt", "last.pt"):
        expected, found = weights(one, name), weights(two, name)
        for k in expected:
            torch.testing.assert_close(found[k], expected[k], rtol=1e-3, atol=1e-5)
    record = json.loads((two / "run.json").read_text())
    assert record["processes"] == 2
    assert len(list((two / "tensorboard").glob("events*"))) == 2  # one of each run


def test_both_players_in_two_processes_are_those_of_one(train, train_in_two, tmp_path):
    """Batches of 2 patches in each of two processes, or of 4 in one: the same gradients."""
    steps = {
        part: {"_target_": "torch.optim.SGD", "params": f"$@{network}.parameters()", "lr": 0.01}
        for part, network in (("optimizer", "network"), ("discriminator_optimizer", "discriminator"))
    }
    (tmp_path / "sgd.json").write_text(json.dumps(steps))
    players = {"discriminator_channels": 4, "discriminator_layers": 2, "max_epochs": 2}
    plain = {k: v for k, v in WHOLE.items() if k != "optimizer#_target_"} | players
    overlays = ("train_pix2pix.json", tmp_path / "sgd.json")
    one = train("one", *overlays, **plain, batch_size=4)
    two = train_in_two("two", *overlays, **plain, batch_size=2)
    expected, found = (torch.load(run / "last.pt", weights_only=True) for run in (one, two))
    for part in ("network", "discriminator"):
        assert expected[part].keys() == found[part].keys()
        for k, value in expected[part].items():
            torch.testing.assert_close(found[part][k], value, rtol=1e-3, atol=1e-5, msg=f"{part} {k}")
    for a, b in zip(history(one), history(two), strict=True):
        assert b["val_mean_dice"] == pytest.approx(a["val_mean_dice"], rel=1e-4)


SPY = """
import json
from ignite.engine import Events

class Spy:
    def __init__(self, rank):
        self.rank = rank

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine):
        image = engine.state.batch[0]["image"]
        seen = [engine.state.epoch, image.meta["filename_or_obj"][-8], float(image.sum())]
        with open(f"rank_{self.rank}", "a") as file:
            file.write(json.dumps(seen) + "\\n")
"""


def test_two_processes_share_the_pairs_and_draw_patches_of_their_own(train_in_two, flat_dataset, tmp_path):
    """Five copies of one image: names tell which is whose, sums tell which patch was cut out."""
    (tmp_path / "spy.py").write_text(SPY)
    (tmp_path / "spy.json").write_text(json.dumps({"+train#handlers": [{"_target_": "spy.Spy", "rank": "@rank"}]}))
    content = json.loads((flat_dataset / "dataset.json").read_text())
    for part in ("image", "label"):
        for k in range(5):
            shutil.copy(flat_dataset / content["training"][0][part], tmp_path / f"{part}_{k}.nii.gz")
    validation = [{k: str(flat_dataset / v) for k, v in p.items()} for p in content["validation"]]
    content["training"] = [{part: f"{part}_{k}.nii.gz" for part in ("image", "label")} for k in range(5)]
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"validation": validation}))
    train_in_two("two", tmp_path / "spy.json", dataset_dir=tmp_path, batch_size=1, max_epochs=2, learning_rate=0.0)
    ranks = [[json.loads(line) for line in (tmp_path / f"rank_{k}").read_text().splitlines()] for k in (0, 1)]
    assert [[epoch for epoch, _, _ in rank] for rank in ranks] == [[1, 1, 1, 2, 2, 2]] * 2
    names = [[[name for e, name, _ in rank if e == epoch] for rank in ranks] for epoch in (1, 2)]
    assert all(set(one + two) == set("01234") and set(one) != set(two) for one, two in names)
    assert names[0] != names[1]  # another order in each epoch
    sums = [total for rank in ranks for _, _, total in rank]
    assert len(set(sums)) == len(sums)  # and never the same patch


def test_two_processes_validate_with_the_same_running_statistics(root, train_in_two, flat_dataset, tmp_path):
    """Each saw other batches and has other images, one more than the other; one process finds the same scores."""
    content = json.loads((flat_dataset / "dataset.json").read_text())
    for split, pairs in content.items():
        if split in ("training", "validation", "test"):
            content[split] = [{k: str(flat_dataset / v) for k, v in pair.items()} for pair in pairs]
    content["validation"] += content["test"][:1]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    flat_dataset = tmp_path
    narrow = {"channels": [4, 8], "strides": [2], "num_res_units": None}
    given = {"dataset_dir": str(flat_dataset), "learning_rate": 0.01}
    run = train_in_two("two", "network_attention_unet.json", **narrow, **given)
    options = {"dataset_dir": str(flat_dataset), "output_dir": str(run), "pretrained": str(run / "model.pt")}
    parser = parsed(root, "network_attention_unet.json", **options | narrow)
    assert any("running_mean" in k for k in weights(run))
    evaluator = parser.get_parsed_content("validate#evaluator")
    evaluator.run()
    (entry,) = history(run)
    assert entry["val_mean_dice"] == pytest.approx(evaluator.state.metrics["val_mean_dice"], rel=1e-5)


# --------------------------------------------------------------------------------------------------- together


@pytest.mark.parametrize(
    "overlays",
    [
        ["slices_25d.json", "network_segresnet.json", "loss_focal.json", "augment.json"],  # with neighbours
        ["augment.json", "loss_boundary.json", "network_segresnet.json", "volume_3d.json", "transfer.json"],
    ],
)
def test_overlays_combine(train, solid_dataset, overlays):
    """SegResNet halves its window three times."""
    size = [16] * (3 if "volume_3d.json" in overlays else 2)
    given = {"patch_size": size, "roi_size": size, "patches_per_image": 2, "dataset_dir": str(solid_dataset)}
    options = {k: None for k in ("channels", "strides", "num_res_units")}  # not SegResNet's
    entry = history(train("r", *overlays, **options, **given))[0]
    assert np.isfinite([entry["train_loss"], entry["val_loss"]]).all() and 0 < entry["val_mean_dice"] < 1
