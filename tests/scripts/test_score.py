"""scripts/score.py on images whose scores are known."""

import json
import subprocess
import sys

import numpy as np
import pytest

from bundle.volume_io import write_tiff


@pytest.fixture
def files(tmp_path):
    truth = np.zeros((32, 40), np.uint8)  # values of another convention: 0 is the bright phase
    truth[:, 20:] = 2
    scan = np.where(truth == 0, 0.9, 0.1) + np.random.default_rng(0).normal(0, 0.01, truth.shape)
    labels = (truth == 0).astype(np.uint8)
    labels[:, 18:20] = 0  # 2 of 20 columns of the phase are missed
    for name, array in (("scan", scan.astype(np.float32)), ("truth", truth), ("labels", labels)):
        write_tiff(tmp_path / f"{name}.tif", array, (1.0, 1.0))
    return tmp_path


def score(root, folder, *more) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        str(root / "scripts/score.py"),
        *(f"{n}.tif" for n in ("scan", "truth", "labels")),
        *more,
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_known_scores(root, files):
    result = score(root, files, "--map", "0:1", "2:0", "--json", "score.json")
    assert result.returncode == 0, result.stderr
    scores = json.loads((files / "score.json").read_text())["scores"]
    assert scores["network"]["mean_iou"] == pytest.approx(18 / 20)
    assert scores["network"]["accuracy"] == pytest.approx(38 / 40)
    assert scores["otsu"]["mean_dice"] == 1


@pytest.mark.parametrize(("pairs", "said"), [(["0:1"], "[2]"), (["0=1"], "FROM:TO")])
def test_bad_map_is_one_line(root, files, pairs, said):
    result = score(root, files, "--map", *pairs)
    assert result.returncode == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
