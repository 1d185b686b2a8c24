"""The script from end to end, and every error a user can make: one line, exit code 2, nothing left behind."""

import csv
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.quantify import properties
from bundle.volume_io import write_nifti, write_tiff

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "quantify.py"


def blocks(shape):
    labels = np.random.default_rng(0).integers(0, 3, [-(-n // 4) for n in shape])
    for axis in range(len(shape)):
        labels = labels.repeat(4, axis)
    return labels[tuple(slice(n) for n in shape)].astype(np.uint8)


@pytest.fixture
def run(run_script):
    return partial(run_script, SCRIPT)


def test_from_another_folder_in_its_own_process(tmp_path):
    write_tiff(tmp_path / "labels.tif", blocks((24, 28)), None)
    command = [sys.executable, SCRIPT, "labels.tif", "--voxel-size-um", "0.05", "--out", "new/out"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "volume_fraction" in result.stdout and "results: new/out/" in result.stdout
    assert sorted(p.name for p in (tmp_path / "new/out").iterdir()) == [
        "properties.csv", "properties.json", "properties.png",
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(30, 26), (24, 20, 28)])
def test_results(tmp_path, run, shape):
    labels, sizes = blocks(shape), (0.05, 0.07, 0.06)[: len(shape)]
    write_tiff(tmp_path / "labels.tif", labels, sizes)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    code, printed, err = run(tmp_path / "labels.tif", "--out", out, "--names", "pore", "Ni", "YSZ", "--tortuosity")
    assert code == 0 and "1/µm²" in printed and "tortuosity" in err
    found = json.loads((out / "properties.json").read_text())
    assert found["voxel_size_um"] == pytest.approx(sizes) and found["class_names"] == ["pore", "Ni", "YSZ"]
    truth = properties(labels, found["voxel_size_um"], ["pore", "Ni", "YSZ"])
    for section, value in truth.items():
        if section != "seconds":
            assert found[section] == value
    assert set(found["tortuosity"]["Ni"]) == set("xyz"[: len(shape)])
    with open(out / "properties.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    (row,) = [r for r in table if (r["quantity"], r["of"]) == ("volume_fraction", "Ni")]
    assert float(row["value"]) == truth["volume_fraction"]["Ni"]
    assert float(row["low"]) <= float(row["high"])
    with Image.open(out / "properties.png") as picture:
        assert min(picture.size) > 900
    assert (out / "mine.txt").read_text() == "kept"
    assert not list(out.glob(".tmp*"))


def test_only_what_was_asked_for(tmp_path, run):
    write_nifti(tmp_path / "labels.nii.gz", blocks((20, 20, 20)), np.diag([0.1, 0.1, 0.1, 1]))
    code, _, _ = run(tmp_path / "labels.nii.gz", "--out", tmp_path / "o", "--only", "chords")
    assert code == 0
    assert list(json.loads((tmp_path / "o/properties.json").read_text())["seconds"]) == ["chords"]


@pytest.mark.parametrize(
    ("array", "options", "words"),
    [
        (blocks((20, 20)), [], "voxel size; give it with --voxel-size-um"),
        (blocks((20, 20)), ["--voxel-size-um", "-1"], "voxel_size_um"),
        (blocks((20, 20)), ["--voxel-size-um", "1", "--names", "a", "b"], "holds class 2; --names gives only 2"),
        (np.arange(400, dtype=np.uint16).reshape(20, 20), ["--voxel-size-um", "1"], "class numbers 0 to 255"),
        (np.arange(200, dtype=np.uint8).reshape(20, 10), ["--voxel-size-um", "1"], "is it a grey scan?"),
        (np.full((20, 20), 0.5, np.float32), ["--voxel-size-um", "1"], "whole class numbers"),
        (np.full((20, 20), np.nan, np.float32), ["--voxel-size-um", "1"], "class numbers 0 to 255"),
        (np.zeros((20, 2), np.uint8), ["--voxel-size-um", "1"], "3 or more"),
        (None, ["--voxel-size-um", "1"], "no such file"),
    ],
)
def test_mistakes_are_one_line(tmp_path, run, array, options, words):
    if array is not None:
        write_tiff(tmp_path / "labels.tif", array, None)
    code, _, err = run(tmp_path / "labels.tif", "--out", tmp_path / "a" / "out", *options)
    lines = [line for line in err.splitlines() if line.startswith("quantify.py: ")]
    assert code == 2 and len(lines) == 1 and words in lines[0] and "Traceback" not in err
    assert not (tmp_path / "a").exists()


def test_out_must_be_a_folder(tmp_path, run):
    (tmp_path / "out").write_text("")
    code, _, err = run(tmp_path / "labels.tif", "--out", tmp_path / "out")
    assert code == 2 and "is a file" in err
