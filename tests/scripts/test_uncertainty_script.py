"""The script from end to end, what its numbers mean, and the errors a user can make: one line, nothing left behind."""

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
from bundle.uncertainty import shift_interface
from bundle.volume_io import write_tiff

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "uncertainty.py"


def layers(shape, periods=2):
    """Three phases in plane layers across x."""
    thickness = -(-shape[0] // (3 * periods))
    return np.broadcast_to((np.arange(shape[0]) // thickness % 3).reshape(-1, *[1] * (len(shape) - 1)), shape).astype(
        np.uint8
    )


@pytest.fixture
def run(run_script):
    return partial(run_script, SCRIPT)


def test_from_another_folder_in_its_own_process(tmp_path):
    write_tiff(tmp_path / "labels.tif", layers((48, 40)), None)
    command = [
        sys.executable,
        SCRIPT,
        "labels.tif",
        "--voxel-size-um",
        "0.05",
        "--n",
        "2",
        "--only",
        "chords",
        "--out",
        "new/out",
    ]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "volume_fraction 0" in result.stdout and "results: new/out/" in result.stdout
    assert sorted(p.name for p in (tmp_path / "new/out").iterdir()) == [
        "uncertainty.csv", "uncertainty.json", "uncertainty.png",
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["shift", "spread"])
def test_results(tmp_path, run, method):
    labels, sizes = layers((36, 24, 28), periods=1), (0.05, 0.06, 0.07)
    write_tiff(tmp_path / "labels.tif", labels, sizes)
    out = tmp_path / "out"
    names, fixed = ["pore", "Ni", "YSZ"], ["--n", 3, "--seed", 1, "--fwhm-px", 3, "--names", "pore", "Ni", "YSZ"]
    some = ["--only", "interfaces", "chords", "--tortuosity", "Ni"]
    code, printed, err = run(tmp_path / "labels.tif", "--out", out, "--method", method, *fixed, *some)
    assert code == 0 and "1/µm" in printed and "3 of 3" in err
    found = json.loads((out / "uncertainty.json").read_text())
    assert found["method"]["name"] == method and found["voxel_size_um"] == pytest.approx(sizes)
    by_name = {(p["quantity"], p["of"]): p for p in found["properties"]}
    truth = properties(labels, found["voxel_size_um"], names, ["interfaces", "chords"])
    assert by_name["specific_surface_area", "Ni"]["value"] == truth["specific_surface_area_1_per_um"]["Ni"]
    # plane layers along y: a straight channel, within the residual at which the solver stops
    straight = by_name["tortuosity.y.tortuosity_factor", "Ni"]
    assert straight["value"] == pytest.approx(1, abs=2e-3) and straight["mean"] > 1
    assert by_name["tortuosity.x.tortuosity_factor", "Ni"]["value"] is None  # the layers bar the way along x
    assert by_name["contact_share", "pore|Ni"]["value"] == pytest.approx(0.5, abs=1e-9)
    shares = [sum(p["values"][k] for (q, _), p in by_name.items() if q == "volume_fraction") for k in range(3)]
    assert shares == pytest.approx([1, 1, 1])
    for p in found["properties"]:
        values = np.array([v for v in p["values"] if v is not None], float)
        assert p["n"] == len(values)
        if len(values) > 1:
            assert p["mean"] == pytest.approx(values.mean()) and p["sd"] == pytest.approx(values.std(ddof=1))
    drift = found["volume_fraction_drift"]["Ni"]
    fraction = by_name["volume_fraction", "Ni"]
    assert fraction["mean"] - fraction["value"] == pytest.approx(drift)
    moved = found["displacement"]
    assert sum(moved["density_1_per_px"]) == pytest.approx(1)  # bins of one voxel
    # patches of 8 voxels, 12 on an interface, both interfaces, 3 labels: relative sd of a width about 1 / √(2 × 72)
    assert moved["reached_fwhm_px"] == pytest.approx(3, rel=0.3)
    with open(out / "uncertainty.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    (row,) = [r for r in table if (r["quantity"], r["of"]) == ("volume_fraction", "Ni")]
    assert float(row["p2.5"]) <= float(row["p50"]) <= float(row["p97.5"]) and float(row["sd"]) == fraction["sd"]
    with Image.open(out / "uncertainty.png") as picture:
        assert min(picture.size) > 900
    assert not list(out.glob(".tmp*"))


def test_seed_and_fractions(tmp_path, run):
    labels = layers((48, 40))
    write_tiff(tmp_path / "labels.tif", labels, 0.1)
    more = ["--only", "interfaces", "--n", 2, "--keep-fractions", "--seed", 1]
    code, _, _ = run(tmp_path / "labels.tif", "--out", tmp_path / "o", *more)
    assert code == 0
    result = json.loads((tmp_path / "o/uncertainty.json").read_text())
    # three phases are restored within 1e-4 of the area or one pixel
    assert max(abs(v) for v in result["volume_fraction_drift"].values()) <= 1 / labels.size + 1e-4
    (found,) = [p for p in result["properties"] if (p["quantity"], p["of"]) == ("specific_perimeter", "1")]
    for k, child in enumerate(np.random.default_rng(1).spawn(2)):  # nothing but the seed decides
        moved = shift_interface(labels, child, 4.0, 8.0, True)
        again = properties(moved, result["voxel_size_um"], sections=["interfaces"])["specific_perimeter_1_per_um"]["1"]
        assert found["values"][k] == again


@pytest.mark.parametrize(
    ("array", "options", "words"),
    [
        (layers((24, 20)), [], "voxel size; give it with --voxel-size-um"),
        (layers((24, 20)), ["--voxel-size-um", "1", "--names", "a", "b"], "holds class 2; --names gives only 2"),
        (layers((24, 20)), ["--voxel-size-um", "1", "--tortuosity", "a"], "must be among 0, 1, 2"),
        (layers((24, 20)), ["--voxel-size-um", "1", "--n", "1"], "--n 1"),
        (layers((24, 20)), ["--voxel-size-um", "1", "--fwhm-px", "-1"], "--fwhm-px -1"),
        (
            layers((24, 20)),
            ["--voxel-size-um", "1", "--method", "spread", "--fwhm-px", "30", "--only", "chords"],
            "was not reached",
        ),
        (np.zeros((20, 20), np.uint8), ["--voxel-size-um", "1"], "one class only"),
        (np.arange(200, dtype=np.uint8).reshape(20, 10), ["--voxel-size-um", "1"], "is it a grey scan?"),
        (np.full((20, 20), 0.5, np.float32), ["--voxel-size-um", "1"], "whole class numbers"),
        (None, ["--voxel-size-um", "1"], "no such file"),
    ],
)
def test_mistakes_are_one_line(tmp_path, run, array, options, words):
    if array is not None:
        write_tiff(tmp_path / "labels.tif", array, None)
    code, _, err = run(tmp_path / "labels.tif", "--out", tmp_path / "a" / "out", *options)
    lines = [line for line in err.splitlines() if line.startswith("uncertainty.py: ")]
    assert code == 2 and len(lines) == 1 and words in lines[0] and "Traceback" not in err
    assert not (tmp_path / "a").exists()
