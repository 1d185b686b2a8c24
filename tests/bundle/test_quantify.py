"""The whole table: laws of units, axes and JSON; windows and intervals of noise with known scatter."""

import json
import math

import numpy as np
import pytest

from bundle.property_pictures import properties_figure
from bundle.quantify import SECTIONS, confidence_intervals, flat_numbers, properties, representative_volume, rows

QUICK = [s for s in SECTIONS if s != "tortuosity"]


def blocks(seed, shape, edge=4, classes=3):
    """Random cubes of `edge` voxels."""
    labels = np.random.default_rng(seed).integers(0, classes, [-(-n // edge) for n in shape])
    for axis in range(len(shape)):
        labels = labels.repeat(edge, axis)
    return labels[tuple(slice(n) for n in shape)].astype(np.uint8)


@pytest.mark.parametrize("shape", [(40, 52), (28, 24, 32), (3, 3), (3, 4, 5)])
@pytest.mark.parametrize("classes", [1, 2, 4])
def test_everything_of_any_shape_is_json_with_units(shape, classes):
    labels = blocks(0, shape, 4, classes)
    names = [f"phase {k}" for k in range(classes)]
    found = properties(labels, 0.1, names, SECTIONS)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert list(found["seconds"]) == list(SECTIONS)
    assert sum(found["volume_fraction"].values()) == pytest.approx(1)
    assert ("specific_surface_area_1_per_um" in found) == (len(shape) == 3)
    table = rows(found)
    assert {row["unit"] for row in table} <= {"", "µm", "1/µm", "1/µm²", "1/µm³"}
    keys = [(row["quantity"], row["of"]) for row in table]
    assert len(set(keys)) == len(keys)


def test_an_absent_class_has_no_numbers():
    found = properties(blocks(1, (20, 24, 16), 4, 2), 0.1, ["a", "b", "c"], QUICK)
    assert found["volume_fraction"]["c"] == 0 and found["specific_surface_area_1_per_um"]["c"] == 0
    assert found["chord_length_um"]["c"]["mean"] is None and found["local_thickness_um"]["c"]["mean"] is None
    assert found["objects"]["c"]["count"] == 0 and found["connectivity"]["c"]["largest_share"] is None


@pytest.mark.parametrize("shape", [(48, 44), (26, 28, 24)])
def test_each_number_scales_with_its_unit(shape):
    labels = blocks(2, shape)
    one, half = (rows(properties(labels, h, sections=QUICK)) for h in (1.0, 0.5))
    powers = {"": 0, "µm": 1, "1/µm": -1, "1/µm²": -2, "1/µm³": -3}
    assert len(one) == len(half) > 40
    for a, b in zip(one, half, strict=True):
        assert (a["quantity"], a["of"]) == (b["quantity"], b["of"])
        for key in ("value", "low", "high"):
            expected = None if a[key] is None else pytest.approx(a[key] * 0.5 ** powers[a["unit"]], rel=1e-4, abs=1e-9)
            assert b[key] == expected, a


def test_axes_change_names_only():
    # ellipsoids in a box: objects far from each other, so that no basin hangs on the order of its voxels
    rng, labels = np.random.default_rng(3), np.zeros((48, 40, 44), np.uint8)
    grid = np.indices(labels.shape)
    for centre in ((12, 10, 11), (35, 28, 31), (12, 29, 32), (36, 10, 12)):
        axes = rng.uniform(4, 9, 3)
        labels[sum(((g - c) / a) ** 2 for g, c, a in zip(grid, centre, axes, strict=True)) < 1] = 1 + (axes[0] > 6.5)
    turned = {"x": "z", "y": "x", "z": "y"}  # new axis: old axis
    one = {(r["quantity"], r["of"]): r["value"] for r in rows(properties(labels, 1.0, sections=QUICK))}
    two = {
        (r["quantity"], r["of"]): r["value"] for r in rows(properties(labels.transpose(2, 0, 1), 1.0, sections=QUICK))
    }
    for (quantity, of), value in two.items():
        head, _, last = quantity.rpartition("_")
        old = f"{head}_{turned[last]}" if last in turned else quantity
        truth = one[old, of]
        assert value == (None if truth is None else pytest.approx(truth, rel=1e-3, abs=1e-6)), quantity


def test_the_numbers_are_those_of_a_known_structure():
    # one ball of radius 10 voxels = 1 µm in a box of 4.4 µm
    labels = (((np.indices((44, 44, 44)) - 21.6) ** 2).sum(axis=0) < 100).astype(np.uint8)
    found = properties(labels, 0.1, ["pore", "ball"])
    ball = found["objects"]["ball"]
    assert ball["count"] == ball["count_inside"] == 1
    assert ball["diameter_um"]["mean"] == pytest.approx(2, rel=0.01)
    assert ball["sphericity_mean"] == pytest.approx(1, abs=0.02)
    assert ball["aspect_ratio_mean"] == pytest.approx(1, abs=0.02)
    assert found["local_thickness_um"]["ball"]["p50"] == pytest.approx(2, abs=0.1 * (math.sqrt(3) + 0.5))
    assert found["volume_fraction"]["ball"] == pytest.approx(4 / 3 * math.pi / 4.4**3, rel=0.01)
    assert found["connectivity"]["ball"]["closed_share"] == 1
    assert found["triple_phase_boundary_1_per_um2"]["total"] == 0


def test_parallel_rods_have_an_orientation():
    labels = np.zeros((40, 40, 40), np.uint8)
    for x in range(4, 40, 8):
        for z in range(4, 40, 8):
            labels[x : x + 3, 6:34, z : z + 3] = 1
    rods = properties(labels, 1.0, sections=["objects"])["objects"]["1"]
    assert rods["count_inside"] == 25 and rods["long_axis"]["order"] == pytest.approx(1, abs=1e-6)
    assert np.abs(rods["long_axis"]["direction"]) == pytest.approx([0, 1, 0], abs=1e-6)
    assert rods["aspect_ratio_mean"] == pytest.approx(28 / 3, rel=0.01)


def test_windows_of_noise_scatter_with_the_root_of_their_volume():
    labels = (np.random.default_rng(4).random((96, 96, 96)) < 0.3).astype(np.uint8)
    for row in representative_volume(labels, 0.1, ["0", "1"]):
        voxels = math.prod(edge / 0.1 for edge in row["window_um"])
        expected = math.sqrt(0.21 / voxels)
        # the sd of n windows is itself uncertain by 1/√(2(n − 1))
        assert row["fraction_sd"]["1"] == pytest.approx(expected, rel=4 / math.sqrt(2 * (row["windows"] - 1)))
        assert row["fraction_sd"]["0"] == pytest.approx(row["fraction_sd"]["1"])


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng, held, n = np.random.default_rng(5), 0, 200
    for _ in range(n):
        labels = (rng.random((12, 12, 12)) < 0.3).astype(np.uint8)
        found = confidence_intervals(labels, lambda part: {"fraction": float(part.mean())})["fraction"]
        assert found["n"] == 8 and found["low"] < found["mean"] < found["high"]
        held += found["low"] <= 0.3 <= found["high"]
    assert held / n == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / n))


def test_intervals_leave_out_what_is_missing():
    labels = np.zeros((12, 12), np.uint8)
    labels[:3, :3] = 1
    found = confidence_intervals(labels, lambda part: {"x": 1.0 if part.any() else None}, parts=2)
    assert found["x"] == {"mean": 1.0, "low": None, "high": None, "n": 1}
    with pytest.raises(ValueError, match="parts=5 must be 2 to 4"):
        confidence_intervals(labels, lambda part: {}, parts=5)


def test_the_quick_numbers_are_those_of_the_table():
    labels = blocks(6, (30, 28, 26))
    found, quick = (
        properties(labels, 0.2, sections=["interfaces", "chords"]),
        flat_numbers(labels, 0.2, ["0", "1", "2"]),
    )
    assert quick["volume_fraction/1"] == found["volume_fraction"]["1"]
    assert quick["contact_area_1_per_um/0|2"] == found["contact_area_1_per_um"]["0|2"]
    assert quick["chord_length_um/2"] == found["chord_length_um"]["2"]["mean"]


def test_the_same_labels_give_the_same_numbers_and_stay_as_they_are():
    labels = blocks(7, (30, 28, 26))
    before = labels.copy()
    labels.flags.writeable = False
    one, two = (properties(labels, 0.2) for _ in range(2))
    one.pop("seconds"), two.pop("seconds")
    assert one == two
    np.testing.assert_array_equal(labels, before)
    view = np.asfortranarray(labels.astype(np.int64))
    three = properties(view, 0.2)
    three.pop("seconds")
    assert three == one


@pytest.mark.parametrize("shape", [(40, 30), (20, 22, 24)])
@pytest.mark.parametrize("sections", [QUICK, ["chords"], []])
def test_the_picture_shows_what_was_measured(tmp_path, shape, sections):
    labels = blocks(8, shape)
    found = properties(labels, 0.1, ["pore", "Ni", "YSZ"], sections)
    properties_figure(labels, found, "labels").savefig(tmp_path / "page.png", dpi=40)
    assert (tmp_path / "page.png").stat().st_size > 3000


def test_progress_names_each_section():
    seen = []
    properties(blocks(9, (12, 12)), 1.0, sections=["chords", "interfaces"], progress=seen.append)
    assert seen == ["interfaces", "chords"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": np.zeros((5, 5))}, "integer type"),
        ({"voxel_size_um": 0}, "voxel_size_um=0"),
        ({"class_names": ["a"]}, "hold 0 to 2; classes are 0 to 0"),
        ({"class_names": ["a", "a", "b"]}, "must differ"),
        ({"sections": ["surface"]}, r"sections=\['surface'\] must be among interfaces"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        properties(**{"labels": blocks(10, (12, 12)), "voxel_size_um": 1.0} | arguments)
    assert "\n" not in str(caught.value)
