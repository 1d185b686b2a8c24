"""The studies of training: their parts against known answers, and one of them whole on tiny data."""

import json
import math
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from monai.bundle import ConfigParser
from scipy.ndimage import gaussian_filter
from scipy.optimize import least_squares
from scipy.special import erfc

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # as Python does for a script

from bundle.volume_io import read_labels, read_volume, write_nifti, write_tiff  # noqa: E402
from data_gen.dataset import SyntheticDataset  # noqa: E402
from studies import common, data_volume, networks, robustness, search, time_to_accuracy, transfer  # noqa: E402

SMALL = {
    "patch_size": [32, 32],
    "roi_size": [48, 48],
    "network_def::channels": [4, 8],
    "network_def::strides": [2],
    "network_def::num_res_units": 1,
}
VALUES = {"learning_rate": 1e-3, "decay_power": 1.0, "batch_size": 4, "filters": 8, "kernel_size": 3, "depth": 2}


def test_subset_takes_a_share_of_the_training_pairs_and_leaves_the_tests(flat_dataset, tmp_path):
    content = json.loads((flat_dataset / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    path, count = data_volume.subset(tmp_path, 0.5, seed=0)
    part = json.loads(path.read_text())
    whole = [p["image"] for p in content["training"]]
    assert count == round(0.5 * len(whole)) == len(part["training"])
    assert {p["image"] for p in part["training"]} < set(whole)
    assert part["test"] == content["test"] and part["validation"] == content["validation"]
    others = [json.loads(data_volume.subset(tmp_path, 0.5, seed)[0].read_text())["training"] for seed in range(1, 6)]
    assert any(other != part["training"] for other in others)


def test_moved_label_of_a_disc_is_the_closed_form():
    x, y = np.mgrid[-100:101, -100:101]
    disc = (np.hypot(x, y) <= 50).astype(np.uint8)
    truth = disc * 1
    truth[:20] = 2  # a plate, which grows by d rows
    expected_disc = 2 * 50**2 / (52**2 + 50**2)
    expected_plate = 2 * 20 / (22 + 20)
    found = transfer.moved_dice(truth, 2)
    assert found == pytest.approx((expected_disc + expected_plate) / 2, abs=0.01)  # a boundary of a quarter pixel


def test_annotated_slice_becomes_a_data_set(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (40, 32)).astype(np.uint8)
    write_tiff(tmp_path / "x.tif", labels.astype(np.float32), [0.05, 0.05])
    write_tiff(tmp_path / "x_label.tif", labels, [0.05, 0.05])
    datalist = transfer.annotated(tmp_path, "x", tmp_path / "out")
    content = json.loads(datalist.read_text())
    parts = [read_labels(tmp_path / "out" / content[s][0]["label"])[0] for s in ("training", "validation")]
    assert [p.shape for p in parts] == [(30, 32), (10, 32)]
    whole = np.concatenate(parts)
    assert np.array_equal(whole == 0, labels == 2) and np.array_equal(whole == 1, labels == 0)  # pore, active
    assert read_volume(tmp_path / "out" / content["training"][0]["image"]).array.dtype == np.float32
    assert transfer.annotated(tmp_path, "x", tmp_path / "out") == datalist  # found again
    write_tiff(tmp_path / "x.tif", labels.astype(np.float32) + 1, [0.05, 0.05])
    with pytest.raises(ValueError, match=r"training_image\.nii\.gz is not of .*x\.tif; choose another --out"):
        transfer.annotated(tmp_path, "x", tmp_path / "out")
    write_tiff(tmp_path / "x_label.tif", np.where(labels == 2, 255, labels).astype(np.uint8), [0.05, 0.05])
    with pytest.raises(ValueError, match=r"x_label\.tif has labels such as 255; known: 0"):
        transfer.real_pair(tmp_path, "x")


@pytest.mark.parametrize("pooling", ["strided", "max with indices"])
@pytest.mark.parametrize("loss", ["dice_ce", "ce", "dice", "focal", "boundary"])
def test_every_overlay_of_the_search_builds(pooling, loss):
    values = {"learning_rate": 1e-3, "decay_power": 1.0, "batch_size": 4, "filters": 4, "kernel_size": 5, "depth": 2}
    config = ConfigParser.load_config_file(str(ROOT / "configs/train.json"))
    config |= search.overlay(values | {"pooling": pooling, "loss": loss})
    parser = ConfigParser(config | {"class_names": ["a", "b", "c"], "channel_names": ["CT"]})
    network, function = parser.get_parsed_content("network_def"), parser.get_parsed_content("loss")
    logits = network(torch.zeros(2, 1, 32, 32))
    assert logits.shape == (2, 3, 32, 32)
    value = function(logits, torch.ones(2, 1, 32, 32))
    assert math.isfinite(value.item()) and value.requires_grad


def test_trial_trains_and_reports(flat_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "overlay", lambda values: SMALL | {"batch_size": 2})
    trial = optuna.trial.FixedTrial(VALUES | {"pooling": "strided", "loss": "ce"})
    best = search.objective(trial, tmp_path, flat_dataset, epochs=2)
    scores = [h["val_mean_dice"] for h in common.history(tmp_path / "trials/0000")]
    assert best == max(scores) and len(scores) == 2
    assert list((tmp_path / "trials/0000/tensorboard").iterdir())
    assert json.loads((tmp_path / "trials/0000/run.json").read_text())["config"]["batch_size"] == 2


def test_pruned_trial_stops_early(flat_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "overlay", lambda values: SMALL | {"batch_size": 2})
    monkeypatch.setattr(optuna.trial.FixedTrial, "should_prune", lambda self: True)
    with pytest.raises(optuna.TrialPruned):
        trial = optuna.trial.FixedTrial(VALUES | {"pooling": "strided", "loss": "ce"})
        search.objective(trial, tmp_path, flat_dataset, epochs=3)
    assert len(common.history(tmp_path / "trials/0000")) == 1


def test_trial_that_ran_whole_is_complete(flat_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "overlay", lambda values: SMALL | {"batch_size": 2})
    monkeypatch.setattr(optuna.trial.FixedTrial, "should_prune", lambda self: True)
    trial = optuna.trial.FixedTrial(VALUES | {"pooling": "strided", "loss": "ce"})
    assert 0 <= search.objective(trial, tmp_path, flat_dataset, epochs=1) <= 1


def test_search_whole(tmp_path, monkeypatch):
    """One trial of each stage, trained; table, picture and an overlay that train.json takes."""
    narrow = search.suggest

    def suggest(trial):
        return narrow(trial) | {"filters": 4, "depth": 2, "kernel_size": 3, "batch_size": 4}

    monkeypatch.setitem(search.SIZES, "small", {"pairs": 10, "epochs": 1, "trials": 1})
    monkeypatch.setattr(search, "suggest", suggest)
    search.run(tmp_path, "small")
    results = json.loads((tmp_path / "results.json").read_text())
    assert [t["state"] for t in results["trials"]] == ["COMPLETE"] * 2
    assert results["best_validation_dice"] == max(t["value"] for t in results["trials"])
    assert set(results["importance"]) == set(results["best"]) and set(results["test_dice"]) == {"default", "best found"}
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["learning_rate"] == results["best"]["learning_rate"]
    recorded = json.loads((tmp_path / "trials/0001/run.json").read_text())["hyper_parameters"]
    assert recorded["filters"] == 4 and recorded["decay_power"] == results["trials"][1]["params"]["decay_power"]
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_shift_of_the_prediction_is_found(flat_dataset, tmp_path):
    truths = iter([common.read_labels(pair["label"])[0] for pair in common.pairs_of(flat_dataset)])
    file = tmp_path / "x.json"
    values = robustness.dice_of_each(lambda image: np.roll(next(truths), (3, -2), (0, 1)), flat_dataset, file)
    assert [v["shifted"] for v in values] == [1.0] * 8
    assert max(v["dice"] for v in values) < 0.95


def test_bound_of_white_noise_is_that_of_fitted_circles(tmp_path):
    """Discs behind a Gaussian point spread: the closed form of the information, and a maximum-likelihood fit."""
    rng = np.random.default_rng(0)
    radius, blur, noise = 12.0, 1.5, 0.4
    y, x = (np.mgrid[:640, :640] + 0.5) / 5 - 0.5  # 5 x 5 samples in each pixel of 128 x 128
    whole = np.zeros(y.shape, bool)
    for row in range(21, 128, 42):
        for column in range(21, 128, 42):
            whole |= np.hypot(y - row - rng.random(), x - column - rng.random()) < radius
    area = whole.reshape(128, 5, 128, 5).mean((1, 3))
    grey = gaussian_filter(area, blur).astype(np.float32)
    for name, image in (("clean", grey), ("noisy", 3 + 2 * (grey + noise * rng.standard_normal(grey.shape)))):
        (tmp_path / name).mkdir()
        write_nifti(tmp_path / name / "image.nii.gz", image.astype(np.float32), np.eye(4))
        write_nifti(tmp_path / name / "label.nii.gz", (area > 0.5).astype(np.uint8), np.eye(4))
        pair = {"image": "image.nii.gz", "label": "label.nii.gz"}
        (tmp_path / name / "dataset.json").write_text(json.dumps({"training": [], "validation": [], "test": [pair]}))
    found = robustness.noise_limit(tmp_path / "noisy", tmp_path / "clean")
    assert found["contrast"] == pytest.approx(1 / noise, rel=0.03)
    assert found["radius"] == pytest.approx(radius, rel=0.01)
    spread = math.sqrt(blur**2 + 1 / 12)  # and of a pixel
    assert found["information"] == pytest.approx(1 / (2 * math.sqrt(math.pi) * spread * noise**2), rel=0.05)
    y, x = np.mgrid[-20:21, -20:21]

    def disc(parts):
        return erfc((np.hypot(y - parts[0], x - parts[1]) - parts[2]) / spread / math.sqrt(2)).ravel() / 2

    angle, off = np.linspace(0, 2 * np.pi, 60), []
    for _ in range(60):
        scan = disc((0, 0, radius)) + noise * rng.standard_normal(y.size)
        a, b, r = least_squares(lambda parts, scan=scan: disc(parts) - scan, (0, 0, radius)).x
        off.append(np.abs(a * np.cos(angle) + b * np.sin(angle) + r - radius).mean())
    assert found["off"] == pytest.approx(np.mean(off), rel=4 * np.std(off) / np.mean(off) / math.sqrt(60))
    assert found["dice"] == pytest.approx(1 - found["off"] / found["radius"])


def test_threshold_half_way_is_that_of_the_medians(tmp_path):
    truth = np.zeros((20, 20), np.uint8)
    truth[:10] = 1
    grey = np.where(truth, 3.0, 1.0).astype(np.float32)
    grey[9], grey[10], grey[11] = 1.9, 2.1, 1.5  # the half is 2: a row of particle is missed, one of pore is taken
    write_nifti(tmp_path / "image.nii.gz", grey, np.diag([0.5, 0.5, 1, 1]))
    write_nifti(tmp_path / "label.nii.gz", truth, np.diag([0.5, 0.5, 1, 1]))
    pair = {"image": "image.nii.gz", "label": "label.nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [], "test": [pair]}))
    assert time_to_accuracy.half_way_dice(tmp_path) == [pytest.approx(2 * 9 / (10 + 10))]


@pytest.fixture(scope="module")
def robust(tmp_path_factory):
    """The study of robustness, whole, with two corruptions and one network; the second run finds all of it done."""
    out = tmp_path_factory.mktemp("robustness")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(robustness.SIZES, "small", {"pairs": 10, "test_images": 2, "epochs": 1, "filters": 8})
        patch.setattr(robustness, "STRENGTHS", ("middle",))
        corruptions = {"rings": [robustness._stripes(0.02)], "white noise": [{"scanner::noise_sd": 0.1}]}
        patch.setattr(robustness, "CORRUPTIONS", corruptions)
        robustness.run(out, "small", networks=("none",))
        commands = len(list(out.rglob("log.txt")))
        started = []
        patch.setattr(common, "bundle_run", lambda *a, **k: started.append(a))
        patch.setattr(SyntheticDataset, "_write_pairs", lambda *a, **k: started.append(a))
        (out / "results.md").unlink()
        robustness.run(out, "small", networks=("none",))
    assert not started, "a finished study started something again"
    return out, commands


def test_study_writes_table_picture_and_record(robust):
    out, commands = robust
    assert commands == 1  # a training
    assert len(list((out / "data").iterdir())) == 4
    results = json.loads((out / "results.json").read_text())
    (row,) = results["rows"]
    assert row["network"] == "none" and row["dice"]["rings/middle"]["n"] == 2
    assert 0.98 < results["white_noise_limit"]["middle"]["dice"] < 1
    assert results["versions"]["torch"] and results["trained_on"] == [common.machine()] == [results["scored_on"]]
    assert "| clean |" in (out / "results.md").read_text()
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")
    assert results["revisions"] == [json.loads((out / "runs/none/run.json").read_text())["git_revision"] or "unknown"]
    with pytest.raises(ValueError, match="results of the size small, not full; choose another --out"):
        robustness.run(out, "full", networks=("none",))


def test_run_with_other_options_is_not_overwritten(robust):
    out, _ = robust
    with pytest.raises(ValueError, match="trained with other options"):
        common.train(out / "runs/none", out / "elsewhere.json", max_epochs=7)


def test_run_with_another_config_of_the_same_name_is_not_taken_for_it(tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(common, "bundle_run", lambda *a, **k: runs.append(a) or 0.0)
    overlay = tmp_path / "best.json"
    for filters in (8, 8):
        overlay.write_text(json.dumps({"_desc_": f"run {len(runs)}", "network_def::init_filters": filters}))
        common.train(tmp_path / "run", tmp_path / "dataset.json", [overlay])
    overlay.write_text(json.dumps({"network_def::init_filters": 16}))
    with pytest.raises(ValueError, match="trained with other options"):
        common.train(tmp_path / "run", tmp_path / "dataset.json", [overlay])
    assert len(runs) == 1


def test_moved_study_is_found_done(robust, tmp_path, monkeypatch):
    out, _ = robust
    moved = tmp_path / "moved"
    shutil.copytree(out, moved)
    away = out.with_name("away")
    out.rename(away)
    try:
        monkeypatch.setattr(common, "bundle_run", lambda *a, **k: pytest.fail("trained again"))
        options = json.loads((moved / "runs/none/study_run.json").read_text())["asked"]
        datalist = Path(os.path.normpath(moved / "runs/none" / options.pop("datalist")))
        assert datalist.is_relative_to(moved) and options.pop("configs")
        common.train(moved / "runs/none", datalist, ["network_segresnet.json"], **options)
        assert common.Segmenter(moved / "runs/none").class_names == ["pore", "particle"]
    finally:
        away.rename(out)


def test_data_of_another_recipe_is_not_taken_for_it(tmp_path):
    small = {"shape": [96, 96], "source": {"_target_": "data_gen.spectrum.Monochromatic", "energy_kev": 40.0}}
    folder = common.generate(tmp_path, 2, 0, overlay=small, label="x")
    assert common.generate(tmp_path, 2, 0, overlay=small, label="x") == folder
    with pytest.raises(ValueError, match="holds another data set"):
        common.generate(tmp_path, 2, 0, overlay=small | {"scanner::noise_sd": 0.5}, label="x")


@pytest.mark.parametrize("size", networks.SIZES)
@pytest.mark.parametrize("material", networks.MATERIALS)
@pytest.mark.parametrize("dims", (2, 3))
def test_every_material_fits_every_size(tmp_path, monkeypatch, size, material, dims):
    """The recipes are checked as they are made; nothing is generated."""
    made = []
    monkeypatch.setattr(SyntheticDataset, "generate", lambda self, *args: made.append(self.shape))
    monkeypatch.setattr(networks, "step_seconds", lambda *args: dict.fromkeys(networks.NETWORKS, 1.0))
    networks.run(tmp_path, size, networks=(), materials=(material,), dims=(dims,))
    assert made == [tuple(networks.SIZES[size]["shape"][dims])]
    with pytest.raises(ValueError, match="does not fit a box of"):
        common.generate(tmp_path, 1, 0, "generate_nmc_cathode.json", shape=[32, 32, 32])


def test_failed_step_says_why(tmp_path):
    with pytest.raises(ValueError, match=r"a step failed: error: .*no data set at .*log\.txt"):
        common.train(tmp_path / "run", tmp_path / "missing/dataset.json", max_epochs=1)


def test_networks_side_by_side(tmp_path, monkeypatch):
    """One network, so that its budget is its own; one test image, so that there is no spread."""
    small = {"pairs": {2: 10}, "shape": {2: [64, 64]}, "epochs": {2: 1}, "dims": (2,)}
    monkeypatch.setitem(networks.SIZES, "small", small)
    monkeypatch.setattr(networks, "NETWORKS", {"UNet": []})
    networks.run(tmp_path, "small", networks=("UNet",), materials=("spheres",))
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["equal"] for row in rows] == ["epochs", "time"]
    assert all(row["n"] == 1 and row["dice"][1] is None and 0 <= row["dice"][0] <= 1 for row in rows)
    assert all(row["times_of_unet"] == 1 and "nan" not in (tmp_path / "results.md").read_text() for row in rows)
    assert rows[0]["parameters"] == 379345 and len(list((tmp_path / "runs").glob("*/"))) == 1


def test_equal_time_follows_the_steps_and_later_commands_add_to_the_table(tmp_path, monkeypatch):
    """Steps of 1, 2 and 4 s: 8 epochs of the UNet's time are 4 and 2 of the others'."""
    lengths = {}
    seconds = dict.fromkeys(networks.NETWORKS, 1.0) | {"SegResNet": 2.0, "DynUNet": 4.0}
    monkeypatch.setitem(networks.SIZES, "small", networks.SIZES["small"] | {"epochs": {2: 8}})
    monkeypatch.setattr(networks, "generate", lambda *a, **k: tmp_path)
    monkeypatch.setattr(networks, "step_seconds", lambda *a: seconds)
    monkeypatch.setattr(
        networks, "_train", lambda case, data, name, d, count, kind: lengths.setdefault((name, kind), count)
    )
    row = {
        "epochs": 1,
        "training_seconds": (2.0, 1.0),
        "parameters": 5,
        "n": 1,
        "dice": (0.9, 0.1),
        "iou": {"pore": 0.8},
    }
    row |= dict.fromkeys(("fraction_error", "surface_error", "size_error", "mvoxel_per_s"), 0.1)
    monkeypatch.setattr(networks, "_row", lambda *a: dict(row))
    networks.run(tmp_path, "small", networks=("DynUNet", "UNet"), materials=("spheres",))
    networks.run(tmp_path, "small", networks=("SegResNet",), materials=("spheres",))
    assert lengths == {
        ("DynUNet", "epochs"): 8, ("DynUNet", "time"): 2, ("UNet", "epochs"): 8,
        ("SegResNet", "epochs"): 8, ("SegResNet", "time"): 4,
    }  # fmt: skip
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [r["network"] for r in rows] == ["UNet"] * 2 + ["SegResNet"] * 2 + ["DynUNet"] * 2
    assert [r["times_of_unet"] for r in rows] == [1, 1, 2, 1, 4, 1]


def test_steps_are_timed_once(tmp_path, flat_dataset, monkeypatch):
    few = {name: networks.NETWORKS[name] for name in ("UNet", "SegResNet")}
    monkeypatch.setattr(networks, "NETWORKS", few)
    found = networks.step_seconds(tmp_path / "steps.json", flat_dataset / "dataset.json", 2, rounds=1)
    assert found.keys() == few.keys() and all(seconds > 0 for seconds in found.values())
    monkeypatch.setattr(networks, "_step", lambda *a: pytest.fail("timed again"))
    assert networks.step_seconds(tmp_path / "steps.json", flat_dataset / "dataset.json", 2) == found


def test_time_to_accuracy_is_decided_on_the_validation_images(tmp_path, monkeypatch):
    """The test images reach the target at once, the validation images with the second length."""
    trained = []
    dice = {"test": lambda epochs: 0.99, "validation": lambda epochs: 0.97 if epochs < 15 else 0.986}

    def scores(run, dataset, splits):
        return [{"mean_dice": dice[splits[0]](int(run.name.rpartition("_")[2])), "mean_iou": 0.9}] * 2

    monkeypatch.setattr(time_to_accuracy, "generate", lambda *a, **k: tmp_path)
    monkeypatch.setattr(time_to_accuracy, "half_way_dice", lambda dataset: [0.9, 0.9])
    monkeypatch.setattr(time_to_accuracy, "train", lambda run, *a, **k: trained.append(run.name) or run)
    monkeypatch.setattr(time_to_accuracy, "scores", scores)
    monkeypatch.setattr(time_to_accuracy, "training_seconds", lambda run: (120.0, 60.0))
    time_to_accuracy.run(tmp_path, "small", recipes=("default",))
    assert trained == ["default_5", "default_15"]
    time_to_accuracy.run(tmp_path, "small", recipes=("SegResNet",))
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [(r["recipe"], r["epochs"]) for r in rows] == [(n, e) for n in ("default", "SegResNet") for e in (5, 15)]
    assert "| default | 15 | 2.0 (1.0) | 0.9860 | yes | 0.9900 ± 0.0000 |" in (tmp_path / "results.md").read_text()


def test_search_goes_on_and_survives_a_failure(tmp_path, monkeypatch):
    """Trials without training: the second of them fails, the study is stopped after the third and goes on."""
    seen = []

    def objective(trial, out, dataset, epochs):
        seen.append((trial.number, trial.user_attrs["stage"], search.suggest(trial)["learning_rate"]))
        if trial.number == 1:
            raise optuna.TrialPruned
        return seen[-1][2]

    monkeypatch.setattr(search, "generate", lambda *a, **k: tmp_path)
    monkeypatch.setattr(search, "objective", objective)
    monkeypatch.setattr(search, "_finish", lambda study, *a: seen.append(study.best_value))
    search.run(tmp_path / "a", "small", trials=2)
    assert [entry[:2] for entry in seen[:4]] == [(0, "Hyperband"), (1, "Hyperband"), (2, "TPE"), (3, "TPE")]
    assert seen[4] == max(rate for number, _, rate in seen[:4] if number != 1)
    whole = seen.copy()
    seen.clear()
    search.run(tmp_path / "b", "small", trials=1)
    search.run(tmp_path / "b", "small", trials=2)
    assert seen[0] == whole[0] and len({entry[2] for entry in whole[:4]}) == 4  # same seed, same trials; none twice
    stages = [entry[:2] for entry in seen if isinstance(entry, tuple)]
    assert stages == [(0, "Hyperband"), (1, "TPE"), (2, "Hyperband"), (3, "TPE")]  # trials of each stage
    with pytest.raises(ValueError, match=r"holds a search with another size, pairs, epochs, trials; choose another"):
        search.run(tmp_path / "b", "full", trials=2)
    with pytest.raises(ValueError, match="--trials 0 must be at least 1"):
        search.run(tmp_path / "c", "small", trials=0)


def test_failure_of_another_kind_ends_the_search_and_is_tried_again(tmp_path, monkeypatch, flat_dataset):
    """A folder of trials beside a storage that does not know them: nothing that tells of hyper-parameters."""
    monkeypatch.setattr(search, "overlay", lambda values: SMALL | {"batch_size": 2})
    monkeypatch.setitem(search.SIZES, "small", {"pairs": 8, "epochs": 1, "trials": 1})
    monkeypatch.setattr(search, "generate", lambda *a, **k: flat_dataset)
    monkeypatch.setattr(search, "_finish", lambda *a: None)
    (tmp_path / "trials/0000").mkdir(parents=True)
    (tmp_path / "trials/0000/last.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"trial 0 failed: .*trials/0000 holds a run; choose a new output_dir"):
        search.run(tmp_path, "small")
    search.run(tmp_path, "small")
    study = optuna.load_study(study_name="search", storage=search._journal(tmp_path / "journal.log"))
    assert [trial.state.name for trial in study.get_trials()] == ["FAIL", "COMPLETE", "COMPLETE"]


@pytest.mark.parametrize(
    ("storage", "outs"), [("sqlite:///{}/search.db", ("one", "one")), ("{}/shared/journal.log", ("one", "two"))]
)
def test_workers_share_the_trials(tmp_path, monkeypatch, storage, outs):
    """Two workers on one storage, on one machine or two: no trial twice, at most one too many each."""
    seen = []

    def objective(trial, out, dataset, epochs):
        seen.append((trial.number, search.suggest(trial)["learning_rate"]))
        return seen[-1][1]

    monkeypatch.setattr(search, "generate", lambda *a, **k: tmp_path)
    monkeypatch.setattr(search, "objective", objective)
    monkeypatch.setattr(search, "_finish", lambda *a: None)
    with ThreadPoolExecutor(2) as pool:
        work = [pool.submit(search.run, tmp_path / out, "small", 4, storage.format(tmp_path)) for out in outs]
        [w.result() for w in work]
    assert 8 <= len(seen) <= 10
    assert len({number for number, _ in seen}) == len({rate for _, rate in seen}) == len(seen)


def test_failed_trial_counts_as_pruned(tmp_path, monkeypatch, flat_dataset):
    monkeypatch.setattr(search, "overlay", lambda values: SMALL | {"batch_size": 2, "learning_rate": 1e30})
    trial = optuna.trial.FixedTrial(VALUES | {"pooling": "strided", "loss": "ce"})
    with pytest.raises(optuna.TrialPruned):
        search.objective(trial, tmp_path, flat_dataset, epochs=2)
    assert "loss is" in trial.user_attrs["failed"]


def test_data_volume_whole(tmp_path, monkeypatch):
    """One share, one seed, both networks on tiny images: steps are equal, the table and the picture are written."""
    tiny = {"pairs": 10, "seeds": 1, "steps": 4, "warmup": 2, "batch": 2, "discriminator": 4}
    monkeypatch.setitem(data_volume.SIZES, "small", tiny)
    monkeypatch.setattr(data_volume, "SHARES", (0.6,))
    data_volume.run(tmp_path, "small")
    results = json.loads((tmp_path / "results.json").read_text())
    assert {name: np.shape(v["0.6"]) for name, v in results["dice_of_each_image"].items()} == {
        "UNet": (1, 1),
        "Pix2Pix": (1, 1),
    }
    for run in ("UNet_060_0", "Pix2Pix_060_0"):
        assert common.history(tmp_path / "runs" / run)[-1]["iteration"] == 4  # 2 epochs of 2 steps, of 4 images
    assert (tmp_path / "results.md").read_text().count("| 60% | 4 |") == 1


def test_transfer_whole(tmp_path, monkeypatch):
    """Slices made up; one seed, one epoch: every way trains, each is scored on the other slice and the other cell."""
    rng = np.random.default_rng(0)
    real = tmp_path / "real"
    real.mkdir()
    for name in (*transfer.SLICES, transfer.OTHER):
        labels = np.kron(rng.integers(0, 3, (16, 12)), np.ones((8, 8))).astype(np.uint8)
        write_tiff(real / f"{name}.tif", labels + rng.normal(0, 0.2, labels.shape).astype(np.float32), [0.05, 0.05])
        write_tiff(real / f"{name}_label.tif", labels, [0.05, 0.05])
    monkeypatch.setitem(transfer.SIZES, "small", {"pairs": 10, "pretraining": 1, "epochs": 1, "seeds": 1})
    monkeypatch.setattr(transfer, "SLICES", {"a_1": "a_100"})
    out = tmp_path / "out"
    transfer.run(out, "small", real=real)
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [(r["way"], r["scored_on"]) for r in rows] == [
        (way, target) for way in transfer.WAYS for target in ("a_100", "d_1501")
    ]
    frozen = torch.load(out / "runs/a_1_pretrained_encoder_frozen_0/model.pt", weights_only=True)
    before = torch.load(out / "runs/pretraining/model.pt", weights_only=True)
    assert torch.equal(frozen["model.0.conv.unit0.conv.weight"], before["model.0.conv.unit0.conv.weight"])
    config = json.loads((out / "runs/a_1_from_scratch_0/run.json").read_text())["config"]
    assert config["whole_object"]["_target_"].endswith("shows_whole_objects")


def test_unknown_names_are_refused(tmp_path):
    for study, option, known in ((robustness, "networks", "ring"), (networks, "networks", "UNet")):
        with pytest.raises(ValueError, match=f"--{option} 'rings' is unknown; known: .*'{known}'"):
            study.run(tmp_path, "small", networks=("rings",))
    with pytest.raises(ValueError, match="--recipes 'x' is unknown"):
        time_to_accuracy.run(tmp_path, "small", recipes=("x",))
    assert not list(tmp_path.iterdir())


def test_mistakes_are_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "scripts/study.py"), "volume", "--out", str(tmp_path), "--trials", "3"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and result.stderr == "study.py: --trials is no option of the study 'volume'\n"
    for storage in ("sqlite:////nowhere/x.db", "unknown://x"):
        with pytest.raises(ValueError, match=f"--storage {storage}: "):
            search.run(tmp_path / "search", "small", storage=storage)
    with pytest.raises(ValueError, match=r"--real .*: needs the folder with a_1.tif"):
        transfer.run(tmp_path, "small", real=tmp_path)
    for name in ("a_1", "a_1_label", "a_100"):
        (tmp_path / f"{name}.tif").touch()
    with pytest.raises(ValueError, match=r"a_100_label\.tif is not there"):
        transfer.run(tmp_path, "small", real=tmp_path)
