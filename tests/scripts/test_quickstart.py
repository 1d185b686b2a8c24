"""The whole job on tiny data, as `make run` starts it."""

import json
import subprocess
import sys

import numpy as np
import pytest

from bundle.volume_io import read_volume, write_tiff


def quickstart(root, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(root / "scripts/quickstart.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def done(root, flat_dataset, tmp_path_factory):
    """The finished job, with a scan of the user's."""
    folder = tmp_path_factory.mktemp("quickstart")
    scan = read_volume(flat_dataset / "images/tiny_00000.nii.gz")
    write_tiff(folder / "scan.tif", scan.array, None)
    arguments = ["--pairs", 10, "--epochs", 5, "--size", 64, "--volume-size", 64, "--out", folder / "out"]
    result = quickstart(root, *arguments, "--scan", folder / "scan.tif", "--voxel-size-um", 0.5)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result, folder / "out"


def test_everything_is_made(done):
    result, out = done
    for name in (
        "overview.png",
        "seconds.json",
        "volume_scores.json",
        "training/model.pt",
        "training/history.json",
        "training/evaluation/metrics.md",
        "training/evaluation/cases.png",
        "segmented_volume/labels.tif",
        "segmented_image/report.json",
        "segmented_scan/labels.nii.gz",
    ):
        assert (out / name).stat().st_size > 0, name
    for said in ("Done in", str(out / "overview.png"), "Next:", "tensorboard"):
        assert said in result.stdout


def test_volume_score_is_that_of_the_files(done):
    _, out = done
    truth = read_volume(out / "spheres_3d/labels/spheres_00000.nii.gz").array
    pred = read_volume(out / "segmented_volume/labels.tif").array
    scores = json.loads((out / "volume_scores.json").read_text())
    assert scores["accuracy"] == pytest.approx(np.mean(truth == pred))


def test_scan_without_voxel_size_is_refused_before_any_work(root, tmp_path):
    write_tiff(tmp_path / "scan.tif", np.random.default_rng(0).random((32, 32), dtype=np.float32), None)
    result = quickstart(root, "--scan", tmp_path / "scan.tif", "--out", tmp_path / "out")
    assert result.returncode == 2
    assert "VOXEL_SIZE_UM" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
