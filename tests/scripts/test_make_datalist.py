"""scripts/make_datalist.py on images whose parts and labels are known."""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from bundle.training import load_datalist, read_class_names
from bundle.volume_io import read_volume, write_nifti, write_tiff

IMAGE = np.random.default_rng(0).random((40, 16)).astype(np.float32)
LABELS = (np.arange(40)[:, None] % 3 + np.zeros((40, 16))).astype(np.uint8)
CLASSES = ["--classes", "pore", "active", "CBD"]


@pytest.fixture
def files(tmp_path) -> Path:
    for k in range(3):
        write_tiff(tmp_path / f"{k}.tif", IMAGE + k, None)
        write_tiff(tmp_path / f"{k}_label.tif", LABELS, None)
    return tmp_path


@pytest.fixture
def make(root, monkeypatch, capsys, tmp_path) -> Callable:
    """Run the script in this process on the first ``count`` files; gives what subprocess.run would give."""

    def run(count: int, *more: str, suffix: str = ".tif") -> SimpleNamespace:
        words = [str(root / "scripts/make_datalist.py"), "--out", "mine"]
        words += ["--images", *(f"{k}{suffix}" for k in range(count))]
        words += ["--labels", *(f"{k}_label{suffix}" for k in range(count)), *more]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(words[0], run_name="__main__")
        said = capsys.readouterr()
        return SimpleNamespace(returncode=caught.value.code, stdout=said.out, stderr=said.err)

    return run


def arrays(folder, split) -> list[tuple[np.ndarray, np.ndarray]]:
    content = json.loads((folder / "mine/dataset.json").read_text())
    return [tuple(read_volume(folder / "mine" / pair[k]).array for k in ("image", "label")) for pair in content[split]]


def test_sample_of_two_images(make, files):
    (files / "1_label.tif").rename(files / "other.tif")  # images 0 and 1 belong to the label of 0
    words = [*CLASSES, "--labels", "0_label.tif", "--channels", "30 keV", "60 keV"]
    done = make(2, *words)
    assert done.returncode == 0, done.stderr
    content = json.loads((files / "mine/dataset.json").read_text())
    assert content["channel_names"] == {"0": "30 keV", "1": "60 keV"}
    ((first, second),) = [pair["image"] for pair in content["validation"]]
    assert (first, second) == ("images/000_0_validation_0000.nii.gz", "images/000_0_validation_0001.nii.gz")
    for k, name in enumerate((first, second)):
        np.testing.assert_array_equal(read_volume(files / "mine" / name).array, IMAGE[30:] + k)
    done = make(3, *words, "--out", "again")
    assert done.returncode == 2 and "3 images and 1 labels; give one label file for every 2 images" in done.stderr


def test_one_image_is_cut_along_its_longest_axis(make, files):
    done = make(1, *CLASSES, "--shares", "0.5", "0.3", "0.2", "--voxel-size-um", "0.05")
    assert done.returncode == 0, done.stderr
    for split, where in (("training", slice(0, 20)), ("validation", slice(20, 32)), ("test", slice(32, 40))):
        ((image, label),) = arrays(files, split)
        np.testing.assert_array_equal(image, IMAGE[where])
        np.testing.assert_array_equal(label, LABELS[where])
        assert label.dtype == np.uint8
    path = str(files / "mine/dataset.json")
    assert read_class_names(path) == CLASSES[1:]
    (pair,) = load_datalist(path, "training", CLASSES[1:], 2)
    assert read_volume(pair["image"]).voxel_size_um == pytest.approx((0.05, 0.05))
    assert json.loads(Path(path).read_text())["voxel_size_um"] == 0.05
    assert "35.00%" in done.stdout  # 7 of 20 rows of the training part are pore


def test_values_are_translated(make, files):
    done = make(1, *CLASSES, "--map", "0:1", "1:2", "2:0")
    assert done.returncode == 0, done.stderr
    label = np.concatenate([label for split in ("training", "validation") for _, label in arrays(files, split)])
    np.testing.assert_array_equal(label, np.array([1, 2, 0])[LABELS])


@pytest.mark.parametrize(("shares", "counts"), [(("0.6", "0.2", "0.2"), (1, 1, 1)), (("0.5", "0.5", "0"), (2, 1, 0))])
def test_whole_files_in_their_order(make, files, shares, counts):
    done = make(3, *CLASSES, "--split", "file", "--shares", *shares)
    assert done.returncode == 0, done.stderr
    found = [image for split in ("training", "validation", "test") for image, _ in arrays(files, split)]
    assert tuple(len(arrays(files, split)) for split in ("training", "validation", "test")) == counts
    for k, image in enumerate(found):
        np.testing.assert_array_equal(image, IMAGE + k)


def test_volumes_are_cut_as_well(make, tmp_path):
    volume = np.random.default_rng(0).integers(0, 200, (12, 10, 32)).astype(np.uint16)
    affine = np.diag([0.5, 0.5, 1.0, 1.0])
    write_nifti(tmp_path / "0.nii.gz", volume, affine)
    write_nifti(tmp_path / "0_label.nii.gz", (volume > 100).astype(np.uint8), affine)
    done = make(1, "--classes", "pore", "solid", suffix=".nii.gz")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "mine/dataset.json").read_text())
    assert content["tensorImageSize"] == "3D" and "voxel_size_um" not in content  # it differs between the axes
    ((image, label),) = arrays(tmp_path, "validation")
    np.testing.assert_array_equal(image, volume[..., 24:])
    np.testing.assert_array_equal(label, volume[..., 24:] > 100)
    for entry in (content["training"][0]["image"], content["validation"][0]["label"]):  # each where it was in the whole
        start = nib.load(tmp_path / "mine" / entry).affine[:3, 3]
        np.testing.assert_allclose(start, (0, 0, 24 * 1.0 if "validation" in entry else 0))


def test_class_that_cannot_be_learnt_is_told(make, files):
    done = make(1, *CLASSES, "gas")
    assert done.returncode == 0
    assert "nothing in the training part is gas" in done.stderr


def test_validation_that_cannot_tell_networks_apart_is_told(make, files):
    done = make(1, *CLASSES, "--map", "0:1", "1:1", "2:0")
    assert "validation part is all" not in done.stderr
    (files / "mine/dataset.json").unlink()
    done = make(1, *CLASSES, "--map", "0:0", "1:0", "2:0")
    assert done.returncode == 0 and "the validation part is all pore" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--classes", "pore"], "two or more"),
        (["--classes", "pore", "pore"], "two or more different"),
        (["--classes", "pore", "solid"], "holds 2, which is no class"),
        ([*CLASSES, "--map", "0:1", "1:0"], "holds 2, which is no class"),
        ([*CLASSES, "--map", "0:1", "1:3", "2:0"], "class 3 does not exist"),
        ([*CLASSES, "--map", "0:1", "1:2", "0:0", "2:0"], "two classes"),
        ([*CLASSES, "--map", "0-1"], "each must be FROM:TO"),
        ([*CLASSES, "--shares", "0.5", "0.2", "0.2"], "the sum 1"),
        ([*CLASSES, "--shares", "1", "0", "0"], "above 0"),
        ([*CLASSES, "--split", "file"], "too few"),
        ([*CLASSES, "--shares", "0.9", "0.1", "0"], "validation part: shape"),
    ],
)
def test_mistakes_are_one_line(make, files, options, said):
    done = make(1, *options)
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.count("\n") == 1
    assert not (files / "mine/dataset.json").exists()


def test_other_shape_and_existing_data_set(make, files):
    write_tiff(files / "0_label.tif", LABELS[:, :8], None)
    assert "has shape (40, 8)" in make(1, *CLASSES).stderr
    (files / "mine").mkdir(exist_ok=True)
    (files / "mine/dataset.json").write_text("{}")
    assert "holds a data set" in make(1, *CLASSES).stderr


def test_help_tells_what_to_do_next(root, tmp_path):
    command = [sys.executable, str(root / "scripts/make_datalist.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "configs/transfer.json" in done.stdout
