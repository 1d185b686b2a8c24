"""The script from end to end with a small bundle, and every error a user can make: one line, exit code 2."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from finished_run import finished_bundle
from PIL import Image

from bundle import inference
from bundle.volume_io import read_volume, sha256, write_nifti, write_tiff

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "segment.py"
NAMES = ["pore", "carbon binder", "NMC"]
THRESHOLDS = (0.3, 0.7)  # of 255: between two grey values


def threshold_weights(dimension):
    """A 1×1 convolution that splits at the thresholds: class i wins where i·v − b_i is the largest."""
    a, b = THRESHOLDS
    weight = torch.tensor([0.0, 1, 2]).reshape(3, 1, *[1] * dimension)
    return {"conv.weight": 30 * weight, "conv.bias": 30 * torch.tensor([0, -a, -a - b])}


def write_bundle(folder, dimension=2, **changes):
    """configs/inference.json and models/model.pt with the keys of the real ones."""
    window = [16] * dimension
    scale = {
        "_target_": "ScaleIntensityRanged",
        "keys": ["image"],
        "a_min": 0,
        "a_max": 255,
        "b_min": 0,
        "b_max": 1,
    }
    load = {
        "_target_": "LoadImaged",
        "keys": ["image"],
        "reader": "bundle.monai_io.VolumeReader",
        "image_only": True,
        "ensure_channel_first": True,
    }
    config = {
        "imports": ["$import torch"],
        "spatial_dims": dimension,
        "class_names": NAMES,
        "network_def": {
            "_target_": "Convolution",
            "spatial_dims": "@spatial_dims",
            "in_channels": 1,
            "out_channels": "$len(@class_names)",
            "kernel_size": 1,
            "conv_only": True,
        },
        "intensity": [scale],
        "preprocessing": {"_target_": "Compose", "transforms": "$[@load] + @intensity"},
        "load": load,
        "inferer": {"_target_": "bundle.inference.VolumeInferer", "roi_size": window, "overlap": 0.25},
    } | changes
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    torch.save(threshold_weights(dimension), folder / "models" / "model.pt")
    return [
        "--config",
        str(folder / "configs" / "inference.json"),
        "--checkpoint",
        str(folder / "models" / "model.pt"),
    ]


def scan(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def expected_labels(array):
    return np.digitize(array / np.float32(255), THRESHOLDS).astype(np.uint8)


@pytest.fixture
def run(run_script):
    return partial(run_script, SCRIPT)


def assert_error(result, *words):
    code, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("segment.py: ")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in err
    for word in words:
        assert word in lines[0]


def test_from_another_folder_in_its_own_process(tmp_path):
    """No help from the tests' working directory or sys.path."""
    array = scan(21, 34)
    tifffile.imwrite(tmp_path / "scan.tif", array.T)
    options = write_bundle(tmp_path / "b")
    command = [sys.executable, SCRIPT, "scan.tif", "--voxel-size-um", "0.05", "--out", "new/out", *options]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "carbon binder" in result.stdout and "results: new/out/" in result.stdout
    np.testing.assert_array_equal(read_volume(tmp_path / "new/out/labels.tif").array, expected_labels(array))


@pytest.mark.parametrize(("dimension", "shape"), [(2, (21, 34)), (2, (21, 34, 12)), (3, (21, 34, 12))])
def test_results(tmp_path, run, dimension, shape):
    array, sizes = scan(*shape), (0.05, 0.07, 0.11)[: len(shape)]
    write_tiff(tmp_path / "scan.tif", array, sizes)
    options = write_bundle(tmp_path / "b", dimension)
    out = tmp_path / "out"
    code, printed, _ = run(tmp_path / "scan.tif", "--out", out, "--probabilities", "--overlap", 0.5, *options)
    assert code == 0
    labels = expected_labels(array)
    for name in ("labels.tif", "labels.nii.gz"):
        volume = read_volume(out / name)
        np.testing.assert_array_equal(volume.array, labels)
        assert volume.array.dtype == np.uint8
        assert volume.voxel_size_um == pytest.approx(sizes, rel=1e-6)
    maps = [read_volume(out / f"probability_{n}.nii.gz").array for n in ("pore", "carbon_binder", "NMC")]
    np.testing.assert_allclose(np.sum(maps, axis=0), 1, atol=2e-3)
    np.testing.assert_array_equal(np.argmax(maps, axis=0), labels)
    with Image.open(out / "overlay.png") as picture:
        assert min(picture.size) > 500
    report = json.loads((out / "report.json").read_text())
    assert report["shape"] == list(shape) and report["input"] == "scan.tif"
    assert report["voxel_size_um"] == pytest.approx(sizes)
    assert [row["name"] for row in report["classes"]] == NAMES
    assert [row["voxels"] for row in report["classes"]] == np.bincount(labels.ravel(), minlength=3).tolist()
    assert sum(row["fraction"] for row in report["classes"]) == pytest.approx(1)
    assert report["model"] == {"file": "model.pt", "sha256": sha256(tmp_path / "b/models/model.pt")}
    assert report["inference"]["overlap"] == 0.5 and report["inference"]["roi_size"] == [16] * dimension
    assert report["seconds"] >= 0 and report["mvoxels_per_second"] > 0 and report["peak_memory_mb"] > 0
    assert report["device"] in printed and str(tmp_path) not in json.dumps(report)
    assert sorted(path.name for path in out.iterdir()) == report["files"]

    # again without probabilities: what no longer belongs to the labels is gone, a stranger's file is not
    (out / "probability_mine.nii.gz").write_text("mine")
    assert run(tmp_path / "scan.tif", "--out", out, *options)[0] == 0
    assert {path.name for path in out.iterdir()} == {
        "labels.tif", "labels.nii.gz", "overlay.png", "report.json", "probability_mine.nii.gz"
    }  # fmt: skip


def test_nifti_keeps_its_affine(tmp_path, run):
    array = scan(12, 20, 9)
    affine = np.array([[0, -0.1, 0, 3], [0.1, 0, 0, -4], [0, 0, -0.2, 5], [0, 0, 0, 1]])
    write_nifti(tmp_path / "scan.nii.gz", array, affine)
    assert run(tmp_path / "scan.nii.gz", "--out", tmp_path / "out", *write_bundle(tmp_path / "b"))[0] == 0
    result = nib.load(tmp_path / "out/labels.nii.gz")
    np.testing.assert_allclose(result.affine, affine, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(result.dataobj), expected_labels(array))


def test_training_checkpoint_is_accepted(tmp_path, run):
    write_tiff(tmp_path / "scan.tif", scan(16, 16), 1.0)
    options = write_bundle(tmp_path / "b")
    torch.save({"network": threshold_weights(2), "epoch": 1}, tmp_path / "b/models/model.pt")
    assert run(tmp_path / "scan.tif", "--out", tmp_path / "out", *options)[0] == 0


def test_mistakes_in_the_scan(tmp_path, run):
    options = [*write_bundle(tmp_path / "b"), "--out", tmp_path / "new" / "out"]
    assert_error(run(tmp_path / "scan.tif", *options), "scan.tif: no such file")
    tifffile.imwrite(tmp_path / "scan.tif", scan(16, 17))
    assert_error(run(tmp_path / "scan.tif", *options), "--voxel-size-um", "µm")
    assert_error(run(tmp_path / "scan.tif", *options, "--voxel-size-um", 0), "voxel_size_um", "positive")
    assert_error(run(tmp_path / "scan.tif", *options, "--voxel-size-um", 1, 2, 3), "does not fit 2 axes")
    (tmp_path / "junk.tif").write_text("junk")
    assert_error(run(tmp_path / "junk.tif", *options, "--voxel-size-um", 1), "junk.tif", "not a TIFF")
    write_tiff(tmp_path / "small.tif", scan(5, 16), 1.0)
    assert_error(run(tmp_path / "small.tif", *options), "shorter than 8")
    write_tiff(tmp_path / "nan.tif", np.full((16, 16), np.nan, np.float32), 1.0)
    assert_error(run(tmp_path / "nan.tif", *options), "256 of 256 values are NaN")
    write_tiff(tmp_path / "flat.tif", np.zeros((16, 16), np.uint8), 1.0)
    assert_error(run(tmp_path / "flat.tif", *options), "every voxel is 0")
    assert not (tmp_path / "new").exists()


def test_mistakes_in_the_options(tmp_path, run):
    write_tiff(tmp_path / "scan.tif", scan(16, 17), 1.0)
    config, model = write_bundle(tmp_path / "b")[1::2]
    here = [tmp_path / "scan.tif", "--out", tmp_path / "out"]
    assert_error(run(*here, "--config", tmp_path / "none.json", "--checkpoint", model), "none.json", "--config")
    assert_error(
        run(*here, "--config", config, "--checkpoint", tmp_path / "none.pt"),
        "none.pt",
        "train one",
        "--checkpoint",
    )
    options = ["--config", config, "--checkpoint", model]
    assert_error(run(*here, *options, "--overlap", 1), "--overlap 1.0", "below 1")
    assert_error(run(*here, *options, "--device", "abacus"), "--device abacus", "auto, cpu or cuda")
    if not torch.cuda.is_available():
        assert_error(run(*here, *options, "--device", "cuda"), "--device cuda")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    assert_error(run(tmp_path / "scan.tif", "--out", tmp_path / "file", *options), "file: is a file", "--out")
    assert run(tmp_path / "scan.tif", *options)[0] == 2  # no --out: argparse's own message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inferer": None}, ["inference.json: lacks inferer"]),
        ({"class_names": "pore"}, ["class_names 'pore'", "list"]),
        ({"network_def": {"_target_": "NoSuchNet"}}, ["network_def", "NoSuchNet"]),
        ({"class_names": NAMES[:2]}, ["model.pt: does not fit", "(3, 1, 1, 1)", "(2, 1, 1, 1)"]),
        (
            {"inferer": {"_target_": "bundle.inference.VolumeInferer", "roi_size": [0, 1]}},
            ["inferer", "roi_size"],
        ),
    ],
)
def test_mistakes_in_the_config(tmp_path, run, changes, words):
    write_tiff(tmp_path / "scan.tif", scan(16, 17), 1.0)
    options = write_bundle(tmp_path / "b", **changes)
    assert_error(run(tmp_path / "scan.tif", "--out", tmp_path / "out", *options), *words)
    assert not (tmp_path / "out").exists()


def test_a_class_too_few_named(tmp_path, run):
    write_tiff(tmp_path / "scan.tif", scan(16, 17), 1.0)
    options = write_bundle(tmp_path / "b")
    path = tmp_path / "b/configs/inference.json"
    config = json.loads(path.read_text())
    config["network_def"]["out_channels"] = 3
    config["class_names"] = NAMES[:2]
    path.write_text(json.dumps(config))
    assert_error(run(tmp_path / "scan.tif", "--out", tmp_path / "out", *options), "gives 3 channels", "needed are 2")
    path.write_text("{")
    assert_error(run(tmp_path / "scan.tif", "--out", tmp_path / "out", *options), "no readable config")


def test_3d_network_on_an_image_and_damaged_weights(tmp_path, run):
    write_tiff(tmp_path / "scan.tif", scan(16, 17), 1.0)
    options = write_bundle(tmp_path / "b", 3)
    assert_error(run(tmp_path / "scan.tif", "--out", tmp_path / "out", *options), "2D image", "3D network")
    options = write_bundle(tmp_path / "c")
    (tmp_path / "c/models/model.pt").write_text("junk")
    assert_error(run(tmp_path / "scan.tif", "--out", tmp_path / "out", *options), "model.pt", "weights")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "cannot write labels.tif: full")])
def test_interruption_and_full_disk_leave_the_old_results(tmp_path, run, monkeypatch, error):
    write_tiff(tmp_path / "scan.tif", scan(16, 17), 1.0)
    options = write_bundle(tmp_path / "b")
    out = tmp_path / "out"
    assert run(tmp_path / "scan.tif", "--out", out, *options)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("bundle.volume_io.write_nifti", fail)
    code, _, err = run(tmp_path / "scan.tif", "--out", out, *options)
    assert code == (130 if error is KeyboardInterrupt else 2)
    assert (
        err.strip()
        .splitlines()[-1]
        .startswith("interrupted" if error is KeyboardInterrupt else "segment.py: [Errno 28] cannot write")
    )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_blocks_in_the_script(tmp_path, run, monkeypatch):
    monkeypatch.setattr(inference, "BLOCK_VOXELS", 500)
    array = scan(21, 34, 12)
    write_tiff(tmp_path / "scan.tif", array, 1.0)
    assert run(tmp_path / "scan.tif", "--out", tmp_path / "out", *write_bundle(tmp_path / "b"))[0] == 0
    np.testing.assert_array_equal(read_volume(tmp_path / "out/labels.tif").array, expected_labels(array))


# ------------------------------------------------------------------------------------------ bundles and runs


@pytest.fixture(scope="module")
def trained(flat_dataset):
    """A run's checkpoint, its weights promoted, and the bundle's zip."""
    checkpoint, promoted, _, archive = finished_bundle(flat_dataset)
    return checkpoint, promoted, archive


def test_run_promoted_weights_and_bundle_give_the_same_labels(tmp_path, run, trained, flat_dataset):
    """Network and window come from the run's record, not from configs/inference.json, whose network is larger."""
    checkpoint, promoted, archive = trained
    scan_path = sorted((flat_dataset / "images").iterdir())[0]
    found = {}
    for name, options in {
        "run": ["--checkpoint", checkpoint],
        "promoted": ["--bundle", promoted],
        "weights": ["--checkpoint", promoted / "model.pt"],
        "zip": ["--bundle", archive],
    }.items():
        code, printed, err = run(scan_path, "--out", tmp_path / name, "--device", "cpu", *options)
        assert code == 0, err
        assert (name == "run") != ("spheres 0.1.0, checked" in printed)
        found[name] = read_volume(tmp_path / name / "labels.tif").array
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert report["inference"]["roi_size"] == [32, 32]
        # the scan is of the training data; that the untrained network finds too much of one class is warned of
        assert all("fills" in warning for warning in report["warnings"]) and (name != "run" or not report["warnings"])
        assert report["model"]["sha256"] == sha256(checkpoint)
        assert report["model"].get("bundle") == (None if name == "run" else "spheres 0.1.0")
        assert [row["name"] for row in report["classes"]] == ["pore", "particle"]
    assert all(np.array_equal(found["run"], labels) for labels in found.values())


def test_scan_unlike_the_training_data_is_warned_of(tmp_path, run, trained, flat_dataset):
    image = read_volume(sorted((flat_dataset / "images").iterdir())[0]).array
    noisy = image + np.random.default_rng(0).normal(0, np.ptp(image), image.shape).astype(np.float32)
    write_tiff(tmp_path / "scan.tif", noisy, 0.05)
    code, _, err = run(tmp_path / "scan.tif", "--bundle", trained[2], "--out", tmp_path / "out")
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert code == 0 and "voxel size 0.05 µm, trained at 0.5 µm" in warnings[0] and "noise" in warnings[1], err
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert [f"warning: {text}" for text in report["warnings"]] == warnings


def test_bundle_that_fails_is_not_run(tmp_path, run, trained):
    from bundle.archive import unpack

    write_tiff(tmp_path / "scan.tif", scan(40, 40), 0.5)
    (tmp_path / "unpacked").mkdir()
    folder = unpack(trained[2], tmp_path / "unpacked")
    (folder / "LICENSE").write_text("mine")
    here = [tmp_path / "scan.tif", "--bundle", folder, "--out", tmp_path / "out"]
    assert_error(run(*here), "refused: manifest: LICENSE was changed", "share.py verify")
    assert_error(run(*here, "--trust", "cubes"), "refused: manifest")
    assert not (tmp_path / "out").exists()
    code, _, err = run(*here, "--trust", "spheres")
    assert code == 0 and "note: manifest: LICENSE was changed" in err


def test_foreign_code_in_a_bundle_is_said_and_not_run(tmp_path, run, trained):
    from bundle.archive import unpack

    write_tiff(tmp_path / "scan.tif", scan(40, 40), 0.5)
    (tmp_path / "unpacked").mkdir()
    folder = unpack(trained[2], tmp_path / "unpacked")
    module = folder / "spheres_0_1_0/inference.py"
    module.write_text(module.read_text() + "\nraise SystemExit('ran')\n")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["spheres_0_1_0/inference.py"] = sha256(module)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    code, _, err = run(tmp_path / "scan.tif", "--bundle", folder, "--out", tmp_path / "out")
    assert code == 0 and "note: code: spheres_0_1_0/inference.py is not this project's" in err


def test_mistakes_in_the_choice_of_network(tmp_path, run, trained):
    write_tiff(tmp_path / "scan.tif", scan(40, 40), 0.5)
    here = [tmp_path / "scan.tif", "--out", tmp_path / "out"]
    assert_error(run(*here, "--bundle", trained[2], "--checkpoint", trained[0]), "either --bundle or --checkpoint")
    assert_error(run(*here, "--bundle", tmp_path / "none.zip"), "none.zip: no such bundle", "--bundle")
    copy = tmp_path / "r"
    shutil.copytree(trained[0].parent, copy)
    record = json.loads((copy / "run.json").read_text())
    record["config"]["intensity"].append({"_target_": "os.system", "command": "true"})
    (copy / "run.json").write_text(json.dumps(record))
    assert_error(run(*here, "--checkpoint", copy / "model.pt"), "run.json", "os.system", "--config")
    (copy / "run.json").write_text(json.dumps({"config": None}))
    assert_error(run(*here, "--checkpoint", copy / "model.pt"), "run.json: holds no config", "--config")
