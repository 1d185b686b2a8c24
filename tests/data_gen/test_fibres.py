"""Fibres: fractions by rank, tubes are tubes, chains have their persistence length, deposits sit on fibres."""

import json

import numpy as np
import pytest
from scipy import ndimage

from data_gen.microstructure.fibres import Fibres, _Canvas, _paint_fibre, _worm_like_chain

FULL = {"fibre_fraction": 0.15, "deposit_fraction": 0.1, "impurity_fraction": 0.01}
BARE = {"deposit_fraction": 0, "impurity_fraction": 0}


def build(recipe, shape, voxel_size_um, seed=0):
    rng = np.random.default_rng(seed)
    recipe.check(shape, voxel_size_um)
    return recipe.build(shape, voxel_size_um, recipe.draw(rng), rng)


@pytest.mark.parametrize("shape", [(256, 200), (64, 64, 64), (40, 72, 56)])
def test_fractions_are_met_to_a_voxel(shape):
    labels, facts = build(Fibres(**FULL), shape, 0.05)
    reached = np.bincount(labels.ravel(), minlength=4) / labels.size
    assert labels.shape == shape and labels.dtype == np.uint8
    # voxels of equal distance go together: at most a few
    np.testing.assert_allclose(reached[1:], [0.15, 0.1, 0.01], atol=10 / labels.size)
    np.testing.assert_allclose(facts["fraction"], reached, atol=1e-6)
    assert abs(facts["surface_moved_um"]) < 0.6 * 0.2
    json.dumps(facts)


def test_classes_follow_the_fractions():
    assert Fibres(**BARE).n_classes == 2
    assert Fibres(deposit_fraction=[0, 0.1], impurity_fraction=0).n_classes == 3
    assert Fibres(deposit_fraction=0, impurity_fraction=0.01).n_classes == 4
    labels, facts = build(Fibres(**BARE), (128, 128), 0.05)
    assert set(np.unique(labels)) == {0, 1} and len(facts["fraction"]) == 2


def test_a_straight_fibre_is_a_tube():
    canvas = _Canvas((40, 40, 60), 0.5, 1.0)
    gap = canvas.blank()
    line = np.array([[10.0, 9.7, z] for z in np.arange(0, 30.1, 1.0)])  # through the periodic box, once around
    _paint_fibre(canvas, gap, line, 3.0)
    x, y, _ = np.ogrid[:40, :40, :60]
    expected = np.hypot((x + 0.5) * 0.5 - 10, (y + 0.5) * 0.5 - 9.7) - 3.0 + np.zeros((1, 1, 60))
    known = np.isfinite(gap)
    assert (known == (expected <= 0.6 * 3.0)).mean() > 0.999
    np.testing.assert_allclose(gap[known], expected[known], atol=1e-4)


def test_a_fibre_wraps_around_the_box_and_a_plane_cuts_it():
    line = np.array([[x, 19.8, 0.3] for x in np.arange(-4.0, 25.0, 1.5)])
    cube = _Canvas((20, 20, 20), 1.0, 1.0)
    gap = cube.blank()
    _paint_fibre(cube, gap, line, 2.5)
    moved = cube.blank()
    _paint_fibre(cube, moved, line + np.array([3, 7, 11]), 2.5)
    np.testing.assert_allclose(np.roll(gap, (3, 7, 11), (0, 1, 2)), moved, atol=1e-5)
    plane = _Canvas((20, 20), 1.0, 5.0)  # cuts at z = 2.5
    cut = plane.blank()
    _paint_fibre(plane, cut, line + np.array([0, 0, 2.7]), 2.5)  # axis 0.5 above the plane, as voxel centres at z = 0.8
    np.testing.assert_allclose(cut[5, 19], np.hypot(0.3, 0.5) - 2.5, atol=1e-5)


@pytest.mark.parametrize("persistence", [2.0, 5.0])
def test_the_direction_of_a_chain_is_forgotten_over_its_persistence_length(persistence):
    p = {"radius_um": 0.1, "radius_cv": 0.0, "persistence_um": persistence, "flatness": 0.0}
    line, radius = _worm_like_chain(40_000, 0.1, np.full(3, 10.0), p, 2, np.random.default_rng(0))
    tangents = np.diff(line, axis=0) / 0.1
    lag = round(persistence / 0.1)
    cosine = float((tangents[lag:] * tangents[:-lag]).sum(1).mean())
    # 4 mm in at least 800 pieces of one persistence length: standard error of the mean below 0.6/√800 = 0.02
    assert radius == 0.1 and cosine == pytest.approx(np.exp(-1), abs=0.07)


def test_a_flat_mat_lies_flat():
    p = {"radius_um": 0.1, "radius_cv": 0.2, "persistence_um": 2.0, "flatness": 1.0}
    line, _ = _worm_like_chain(500, 0.1, np.full(3, 10.0), p, 1, np.random.default_rng(0))
    assert np.ptp(line[:, 1]) < 1e-9 and np.ptp(line[:, 0]) > 1


def test_fibres_have_the_radius_asked():
    recipe = Fibres(fibre_fraction=0.05, radius_um=0.4, radius_cv=0, persistence_um=20, **BARE)
    labels, facts = build(recipe, (96, 96, 96), 0.1)
    # Boolean model: the surfaces need to move by little when the length is right; few fibres: within a tenth
    assert abs(facts["surface_moved_um"]) < 0.04
    depth = ndimage.distance_transform_edt(np.pad(labels, 12, mode="wrap"))[12:-12, 12:-12, 12:-12] * 0.1
    ridge = depth[(depth == ndimage.maximum_filter(depth, 5)) & (depth > 0.25)]
    assert np.median(ridge) == pytest.approx(0.4 + facts["surface_moved_um"], abs=0.06)  # within about half a voxel


def test_deposits_sit_on_fibres():
    recipe = Fibres(fibre_fraction=0.1, deposit_fraction=0.08, impurity_fraction=0, deposit_size_um=0.6)
    labels, _ = build(recipe, (80, 80, 80), 0.05)
    away = ndimage.distance_transform_edt(labels != 1) * 0.05
    # a disc reaches 1.6 radii of 0.3 µm (times its lognormal size) from a centre on a surface: a diameter holds most
    assert np.quantile(away[labels == 2], 0.99) < 0.6 < np.quantile(away[labels == 0], 0.9) + 0.6
    assert away[labels == 2].mean() < 0.7 * away[labels == 0].mean()


@pytest.mark.parametrize("shape", [(128, 96), (32, 48, 40)])
def test_the_same_seed_at_another_voxel_size_is_the_same_structure(shape):
    recipe = Fibres(**FULL)
    coarse, facts = build(recipe, shape, 0.09, seed=3)
    fine, fine_facts = build(recipe, tuple(3 * n for n in shape), 0.03, seed=3)
    assert (coarse == fine[(slice(1, None, 3),) * len(shape)]).mean() > 0.97
    assert facts["n_fibres"] == fine_facts["n_fibres"]


@pytest.mark.parametrize("shape", [(96, 96), (40, 48, 40)])
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(shape):
    (first, facts), (again, facts_again), (other, _) = (build(Fibres(**FULL), shape, 0.06, s) for s in (1, 1, 2))
    assert first.tobytes() == again.tobytes() and facts == facts_again
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("shape", [(192, 160), (48, 56, 64)])
def test_ids_tell_the_fibres_apart_at_any_voxel_size(shape):
    recipe, rng = Fibres(fibre_fraction=0.12, **BARE), np.random.default_rng(6)
    drawn = recipe.draw(rng)
    labels, facts = recipe.build(shape, 0.05, drawn, rng)
    facts = json.loads(json.dumps(facts))
    ids = recipe.ids(shape, 0.05, drawn, facts)
    assert ((ids > 0) != (labels == 1)).mean() < 1e-3  # the distance that surfaces were moved is kept to 1e-5 µm
    fine = recipe.ids(tuple(3 * n for n in shape), 0.05 / 3, drawn, facts)
    assert (fine[tuple(slice(1, None, 3) for _ in shape)] == ids).mean() > 0.999, "the same voxel centres"
    lines = recipe.centrelines(shape, 0.05, drawn, facts)
    assert len(lines) == facts["n_fibres"] >= len(np.unique(ids)) - 1
    length = sum(len(line) for line, _ in lines) * 2 * drawn["radius_um"]
    assert length == pytest.approx(facts["fibre_length_um"], abs=1e-2)
    if len(shape) == 3:  # the voxel of a centreline's point belongs to its fibre, or to one that crosses it there
        owned = []
        for k, (line, _) in enumerate(lines):
            at = np.floor(line / 0.05).astype(int) % shape
            owned.append((ids[tuple(at.T)] == k + 1).mean())
        assert np.mean(owned) > 0.8


def test_dense_fibres_connect():
    _, facts = build(Fibres(fibre_fraction=0.3, **BARE), (64, 64, 64), 0.08)
    assert min(facts["fibre_percolating_share"]) > 0.9


@pytest.mark.parametrize(
    "arguments",
    [
        {"fibre_fraction": 0},
        {"fibre_fraction": 0.7},
        {"radius_um": -1},
        {"radius_cv": 2},
        {"persistence_um": 0},
        {"flatness": 1.1},
        {"axis": -1},
        {"deposit_fraction": [0.2, 0.1]},
        {"deposit_size_um": "1"},
        {"deposit_aspect": 0},
        {"deposit_roughness": 0.6},
        {"impurity_fraction": 0.4},
        {"impurity_radius_um": 0},
    ],
)
def test_bad_recipes(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}=") as caught:
        Fibres(**arguments)
    assert "\n" not in str(caught.value)


def test_fractions_that_leave_no_pore_are_refused():
    with pytest.raises(ValueError, match=r"sum to up to 1;"):
        Fibres(fibre_fraction=0.5, deposit_fraction=0.4, impurity_fraction=0.1)


@pytest.mark.parametrize(
    ("arguments", "shape", "names"),
    [
        ({"radius_um": 0.05}, (256, 256), "below one voxel"),
        ({"radius_um": 2}, (128, 128), "radius_um=2.0.*1/8"),
        ({"deposit_size_um": 8}, (128, 128), "deposit_size_um"),
        ({"impurity_radius_um": 5}, (128, 128), "impurity_radius_um"),
        ({"impurity_fraction": 1e-4, "impurity_radius_um": 1}, (128, 128), "less than one"),
    ],
)
def test_what_cannot_be_built_is_refused_before_the_work(arguments, shape, names):
    with pytest.raises(ValueError, match=names):
        Fibres(**arguments).check(shape, 0.1)
