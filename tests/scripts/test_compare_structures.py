"""The comparison of structures: its rows and curves against known structures, and the whole from files to the table."""

import json
import runpy
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.volume_io import write_tiff

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "compare_structures.py"


@pytest.fixture
def script(monkeypatch):
    """The names of the script, which nothing may import."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    return runpy.run_path(str(SCRIPT), run_name="comparison")


@pytest.fixture
def run(run_script):
    return partial(run_script, SCRIPT)


def stripes(shape=(60, 48), width=6):
    """Two phases in plane layers of equal thickness across x."""
    return np.broadcast_to((np.arange(shape[0]) // width % 2).reshape(-1, *[1] * (len(shape) - 1)), shape).astype(
        np.uint8
    )


def test_the_rows_of_stripes_are_their_closed_forms(script):
    rows = script["numbers"](script["measure"](stripes((60, 16, 20)), 0.5, ["a", "b"]))
    assert rows["fraction, a"] == rows["fraction, b"] == 0.5
    assert rows["mean chord, b [µm]"] == pytest.approx(3.0)
    inner = np.roll(stripes((60, 16, 20)), -3, 0)  # a plate at the edge of the box has no other side
    thickness = script["numbers"](script["measure"](inner, 0.5, ["a", "b"]))["local thickness, b [µm]"]
    assert thickness == pytest.approx(3.0, abs=0.25)  # half a voxel, as of any plate
    # one interface every 3 µm; Crofton's plane along an axis is 7 % small, and n − 1 of n voxels show one
    assert rows["specific surface, a [1/µm]"] == pytest.approx(9 / 10 / 3.0, rel=0.09)
    assert rows["tortuosity factor, a"] is None, "plates do not reach through along x"
    assert rows["share that percolates, a"] == pytest.approx(2 / 3)
    assert "contact share, a–b" not in rows, "two phases have one contact"


def test_a_straight_channel_has_a_tortuosity(script):
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[:6] = 1
    found = script["measure"](labels, 1.0, ["a", "b"])
    assert script["numbers"](found)["tortuosity factor, b"] is None  # not along x
    found["tortuosity"]["b"]["x"] = found["tortuosity"]["b"]["y"]
    assert script["numbers"](found)["tortuosity factor, b"] == pytest.approx(1, abs=1e-3)


def test_the_table_says_mean_spread_and_range(script):
    made = [script["measure"](stripes(width=w), 1.0, ["a", "b"]) for w in (3, 5)]
    real = [script["measure"](stripes(width=w), 1.0, ["a", "b"]) for w in (2, 6)]
    rows = {r["quantity"]: r for r in script["table"](script["Material"]("x", ["a", "b"], real, made, [0.4, 0.6]))}
    chord = rows["mean chord, b [µm]"]
    assert (chord["reached"], chord["real"], chord["real_range"]) == (pytest.approx(4), pytest.approx(4), [2, 6])
    assert chord["reached_sd"] == pytest.approx(np.sqrt(2)) and chord["target"] is None
    assert rows["fraction, b"]["target"] == 0.6
    text = script["markdown"]("x", list(rows.values()), 2, 2)
    assert "| mean chord, b [µm] |  | 4.000 (1.414) | 4.000 (2.000–6.000) |" in text
    alone = script["Material"]("x", ["a", "b"], [], made[:1], [0.4, 0.6])
    assert "| mean chord, b [µm] |  | 3.000 |  |" in script["markdown"]("x", script["table"](alone), 1, 0)


def test_the_curves_start_and_end_where_they_must(script):
    found = [script["measure"](stripes(width=6), 1.0, ["a", "b"])]
    lengths = np.array([0.0, 1.0, 5.9, 6.6, 12.0])
    correlation = script["curve"](found, "two_point", "a", lengths)[0]
    assert correlation[0] == pytest.approx(1) and correlation[1] < 1
    chords = script["curve"](found, "chord_length_um", "a", lengths)[0]
    assert chords[0] == 0 and chords[-1] == pytest.approx(1)
    assert chords[1] == pytest.approx(0) and 0 < chords[2] < 1, "all chords lie in the bin around 6"
    none = script["measure"](np.zeros((20, 20), np.uint8), 1.0, ["a", "b"])
    assert script["curve"]([none], "chord_length_um", "b", lengths).shape == (0,)


def test_from_files_to_tables_and_curves(run, tmp_path):
    rng = np.random.default_rng(0)
    cathode = np.kron(rng.choice([0, 0, 0, 1, 2], (32, 32)), np.ones((8, 8), int)).astype(np.uint8)
    volume = np.kron(rng.integers(0, 2, (6, 6, 6)), np.ones((8, 8, 8), int)).astype(np.uint8)
    electrode = np.kron(rng.integers(0, 3, (16, 16)), np.ones((8, 8), int)).astype(np.uint8)
    for name, labels in (("cathode", cathode), ("volume", volume), ("electrode", electrode)):
        write_tiff(tmp_path / f"{name}.tif", labels, None)
    code, out, err = run(
        *("--nmc", tmp_path / "cathode.tif", "--nmc-labels", 1, 2, 0, "--nmc-volume", tmp_path / "volume.tif"),
        *("--nmc-volume-set", "fines_share=0", "mean_radius_um=1.5"),
        *("--sofc", tmp_path / "electrode.tif", "--count", 1, "--seed", 3),
        *("--curves", tmp_path / "out" / "curves.png", "--json", tmp_path / "out" / "tables.json"),
    )
    assert code == 0, err
    tables = json.loads((tmp_path / "out" / "tables.json").read_text())["tables"]
    volumes = ["NMC cathode, volume", "NMC cathode, volume, arguments set"]
    assert list(tables) == ["NMC cathode", *volumes, "Ni–YSZ electrode", "closed foam", "open foam"]
    assert tables[volumes[0]][2]["real"] == tables[volumes[1]][2]["real"]
    assert tables[volumes[0]][2]["reached"] != tables[volumes[1]][2]["reached"]
    real = {"NMC cathode": [(cathode == k).mean() for k in (2, 0, 1)], "Ni–YSZ electrode": None}
    real |= {title: [(volume == k).mean() for k in (0, 1)] for title in volumes}
    for title, fractions in real.items():
        rows = tables[title]
        for row, fraction in zip(rows, fractions or [], strict=False):
            assert row["target"] == row["real"] == pytest.approx(fraction)
        for row in rows[: 2 if "volume" in title else 3]:
            assert row["reached"] == pytest.approx(row["target"], abs=1e-3)
    assert {r["quantity"] for r in tables["NMC cathode, volume"]} >= {"tortuosity factor, rest", "fraction, active"}
    assert "**NMC cathode, volume**: 1 generated, 1 real" in out and "**open foam**: 1 generated, 0 real" in out
    picture = np.asarray(Image.open(tmp_path / "out" / "curves.png").convert("RGB"))
    assert picture.shape[:2] == (6 * 235, 1050) and picture.std() > 10


@pytest.mark.parametrize(
    ("labels", "arguments", "said"),
    [
        (np.eye(8, dtype=np.uint8) * 3, ["--sofc"], "holds 0 to 3; labels must be whole numbers 0 to 2"),
        (np.eye(8, dtype=np.uint8), ["--nmc-volume"], "is an image of (8, 8)"),
        (np.ones((8, 8, 8), np.uint8), ["--nmc-volume"], "active_fraction=1.0"),
        (stripes((16, 16, 16), 4), ["--nmc-volume"], "does not fit a box of (16, 16, 16)"),
        (None, ["--sofc"], "no such file"),
    ],
)
def test_what_does_not_fit_is_one_line(run, tmp_path, labels, arguments, said):
    if labels is not None:
        write_tiff(tmp_path / "labels.tif", labels, None)
    code, out, err = run(*arguments, tmp_path / "labels.tif", "--count", 1)
    assert code == 1 and not out
    assert err.startswith("error: ") and said in err and err.count("\n") == 1


def test_a_count_of_none_is_refused(run):
    code, _, err = run("--count", 0)
    assert code == 2 and "--count 0 must be at least 1" in err
