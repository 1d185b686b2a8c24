"""Oracles: plates, cylinders, balls, ellipsoids and close packings of balls; brute force on small arrays."""

import builtins
import importlib
import math

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from bundle import objects
from bundle.objects import interface_distance, local_thickness, object_table, split_objects


def grid(shape, centre, size=(1, 1, 1)):
    steps = np.reshape(size[: len(shape)], (-1, *[1] * len(shape)))
    return (np.indices(shape) - np.reshape(centre, (-1, *[1] * len(shape)))) * steps


def balls(shape, centres, radius):
    labels = np.zeros(shape, np.uint8)
    for c in centres:
        labels[(grid(shape, c) ** 2).sum(axis=0) < radius**2] = 1
    return labels


def random_labels(rng, shape):
    noise = rng.integers(0, 3, [-(-n // 3) for n in shape])
    for axis in range(len(shape)):
        noise = noise.repeat(3, axis)
    return noise[tuple(slice(n) for n in shape)].astype(np.uint8)


# ------------------------------------------------------------------------------------------ distance


@pytest.mark.parametrize("shape", [(20, 31), (14, 18, 11)])
@pytest.mark.parametrize("size", [(1, 1, 1), (0.5, 1.25, 2)])
def test_distance_of_all_phases_is_scipys_of_each(shape, size, monkeypatch):
    labels = random_labels(np.random.default_rng(0), shape)
    spacing = size[: len(shape)]
    each = sum(distance_transform_edt(labels == k, sampling=spacing) for k in range(3))
    np.testing.assert_allclose(interface_distance(labels, spacing), each, rtol=1e-5)
    load = importlib.import_module

    def without_edt(name):
        if name == "edt":
            raise ImportError(name)
        return load(name)

    monkeypatch.setattr(objects.importlib, "import_module", without_edt)
    np.testing.assert_allclose(interface_distance(labels, spacing), each, rtol=1e-5)


def test_one_phase_has_no_interface():
    labels = np.ones((5, 6, 7), np.uint8)
    assert np.isinf(interface_distance(labels, 1.0)).all()
    assert np.isnan(local_thickness(labels, 1.0)).all()
    assert (split_objects(labels, 1.0) == 0).all()
    table = object_table(labels, 1.0)
    assert table["voxels"].tolist() == [210] and not table["inside"].any()


# ------------------------------------------------------------------------------------------ thickness


@pytest.mark.parametrize("n", range(1, 10))
def test_a_plate_is_as_thick_as_it_is_to_half_a_voxel(n):
    labels = np.zeros((40, 20, 18), np.uint8)
    labels[15 : 15 + n] = 1
    found = local_thickness(labels, 0.2)[labels == 1]
    assert found.min() == found.max() == pytest.approx(0.2 * n, abs=0.1 * 1.0001)


def test_cylinders_and_balls_have_their_diameter_and_a_narrow_part_its_own():
    disc = balls((60, 60), [(29.3, 30.1)], 20.0)
    rod = np.repeat(disc[..., None], 12, axis=2)
    for labels in (disc, rod):
        found = local_thickness(labels, 0.5)[labels == 1]
        # the nearest voxel is up to √2/2 beside the true centre: twice that, and half a voxel, of 0.5 µm
        assert np.median(found) == pytest.approx(20.0, abs=(math.sqrt(2) + 0.5) * 0.5)
        assert found.mean() == pytest.approx(20.0, abs=(math.sqrt(2) + 0.5) * 0.5)
    ball = balls((50, 50, 50), [(24.2, 25.1, 24.6)], 17.0)
    assert local_thickness(ball, 1.0)[ball == 1].mean() == pytest.approx(34, abs=math.sqrt(3) + 0.5)
    dumbbell = balls((30, 90), [(14, 17), (14, 72)], 12)
    dumbbell[12:17, 17:73] = 1  # a neck five wide
    found = local_thickness(dumbbell, 1.0)
    assert found[14, 45] == pytest.approx(5, abs=0.5) and found[14, 17] == pytest.approx(24, abs=1)


@pytest.mark.parametrize("size", [(1.0, 1.0, 1.0), (0.7, 1.0, 1.6)])
def test_thickness_is_the_largest_ball_by_brute_force(size):
    rng = np.random.default_rng(1)
    for shape in ((18, 22), (11, 12, 10)):
        labels, spacing = random_labels(rng, shape), size[: len(shape)]
        distance = interface_distance(labels, spacing)
        points = np.argwhere(np.ones(shape)) * spacing
        gap2 = ((points[:, None] - points[None]) ** 2).sum(axis=-1)
        radius = distance.ravel().astype(float)
        covered = gap2 < radius**2 * 0.99999  # the centre's ball reaches the voxel
        expected = np.where(covered, radius, 0).max(axis=1).reshape(shape)
        found = (local_thickness(labels, spacing) + 0.5 * np.mean(spacing)) / 2
        assert (found <= expected + 1e-5).all() and (found >= distance - 1e-5).all()
        # balls that stick out of another's by 0.3 voxels or less are not drawn
        assert np.mean(found) == pytest.approx(np.mean(expected), rel=0.02)


def test_thickness_does_not_care_for_axes_mirrors_or_units():
    rng = np.random.default_rng(2)
    for shape in ((20, 17), (12, 15, 13)):
        labels = random_labels(rng, shape)
        truth = local_thickness(labels, 1.0)
        np.testing.assert_allclose(local_thickness(labels.T[::-1], 1.0), truth.T[::-1], atol=1e-5)
        np.testing.assert_allclose(local_thickness(labels, 0.25), truth * 0.25, atol=1e-5)


# ------------------------------------------------------------------------------------------ objects


def lattice(cell, basis, cells):
    return [
        (np.array([x, y, z]) + b) * cell - 0.37
        for x in range(-1, cells + 1)
        for y in range(-1, cells + 1)
        for z in range(-1, cells + 1)
        for b in np.array(basis)
    ]


SIMPLE = ([(0.5, 0.5, 0.5)], 0.5)
FACE_CENTRED = ([(0.25, 0.25, 0.25), (0.75, 0.75, 0.25), (0.75, 0.25, 0.75), (0.25, 0.75, 0.75)], math.sqrt(2) / 4)


@pytest.mark.parametrize(("packing", "cell", "fraction"), [(SIMPLE, 20, math.pi / 6), (FACE_CENTRED, 28, 0.74048)])
def test_touching_balls_of_a_close_packing_are_told_apart(packing, cell, fraction):
    basis, radius = packing[0], packing[1] * cell
    cells = 4 if len(basis) == 1 else 3
    centres, shape = lattice(cell, basis, cells), (cells * cell,) * 3
    points = np.moveaxis(np.indices(shape), 0, -1)
    labels = (cKDTree(centres).query(points)[0] < radius).astype(np.uint8)
    assert labels.mean() == pytest.approx(fraction, rel=0.01)
    table = object_table(labels, 0.1)
    whole = [c for c in centres if (c - radius > 0.5).all() and (c + radius < cells * cell - 1.5).all()]
    mine = (table["phase"] == 1) & table["inside"] & (table["voxels"] > 8)
    assert mine.sum() == len(whole) >= 8
    np.testing.assert_allclose(table["diameter_um"][mine], 0.2 * radius, rtol=0.01)
    np.testing.assert_allclose(table["sphericity"][mine], 1, rtol=0.03)
    distance = np.linalg.norm(table["centre_um"][mine][:, None] - (np.array(whole) + 0.5) * 0.1, axis=-1)
    assert distance.min(axis=1).max() < 0.05  # half a voxel


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_an_ellipsoid_has_its_axes_and_directions(ndim, seed):
    rng = np.random.default_rng(seed)
    axes = np.array([6.0, 9.5, 15.0])[-ndim:]
    frame = np.linalg.qr(rng.standard_normal((ndim, ndim)))[0]  # columns are the directions
    size = np.array([1.0, 0.8, 1.2])[:ndim]
    shape = tuple(np.ceil(40 / size).astype(int))
    x = grid(shape, (np.array(shape) - 1) / 2 + 0.2, size)
    labels = ((np.tensordot(frame.T, x, 1) / axes.reshape(-1, *[1] * ndim)) ** 2).sum(axis=0) < 1
    table = object_table(labels.astype(np.uint8), size)
    (k,) = np.flatnonzero(table["phase"] == 1)
    assert table["long_um"][k] == pytest.approx(2 * axes[-1], rel=0.03)
    assert table["short_um"][k] == pytest.approx(2 * axes[0], rel=0.03)
    assert abs(table["long_axis"][k] @ frame[:, -1]) > math.cos(math.radians(3))
    assert abs(table["short_axis"][k] @ frame[:, 0]) > math.cos(math.radians(3))
    assert table["sphericity"][k] < 0.97


def test_a_disc_is_round_and_a_square_less_so():
    disc = balls((50, 50), [(24.4, 24.7)], 18)
    table = object_table(disc, 1.0)
    assert table["sphericity"][table["phase"] == 1] == pytest.approx(1, abs=0.02)
    square = np.zeros((50, 50), np.uint8)
    square[12:36, 14:38] = 1
    table = object_table(square, 1.0)
    # of a square: perimeter of the equal disc over its own, √π/2 = 0.886; its sides along the axes
    # come out 1.4 % short, and the steps of (2, 1) cut its corners
    assert table["sphericity"][table["phase"] == 1] == pytest.approx(math.sqrt(math.pi) / 2, rel=0.04)


def test_the_neck_decides():
    two = balls((24, 60), [(12, 17), (12, 37)], 12)  # saddle √(12² − 10²) = 6.6 of 12
    assert len(np.unique(split_objects(two, 1.0)[two == 1])) == 2
    assert len(np.unique(split_objects(two, 1.0, neck=0.5)[two == 1])) == 1
    with pytest.raises(ValueError, match="neck=0"):
        split_objects(two, 1.0, neck=0)


def test_border_weights_give_the_true_number_and_mean_size():
    # squares of 4 and of 24 in equal numbers, at random in a field seen through a window of 60
    rng, small, large = np.random.default_rng(3), [], []
    for _ in range(400):
        labels = np.zeros((60, 60), np.uint8)
        side = (4, 24)[_ % 2]
        x, y = rng.integers(-24, 84, 2)
        labels[max(0, x) : max(0, x + side), max(0, y) : max(0, y + side)] = 1
        if not labels.any():
            continue
        table = object_table(labels, 1.0, labels.astype(np.int32))
        (small, large)[_ % 2].append(table["weight"][table["phase"] == 1].sum())
    # 200 of each, uniform over 108² corners: 58² of them count as one window (a corner voxel with room on both sides)
    expected, sd = 200 * 58**2 / 108**2, math.sqrt(200 * 58**2 / 108**2 * (58 / 35) ** 2)
    assert sum(small) == pytest.approx(expected, abs=4 * sd)
    assert sum(large) == pytest.approx(expected, abs=4 * sd)


def test_every_voxel_belongs_to_one_object_of_its_phase():
    rng = np.random.default_rng(4)
    for _ in range(15):
        labels = random_labels(rng, tuple(rng.integers(4, 20, rng.integers(2, 4))))
        numbers = split_objects(labels, 1.0)
        table = object_table(labels, 1.0, numbers)
        assert numbers.min() == 0 and numbers.max() == len(table["phase"]) - 1
        np.testing.assert_array_equal(table["phase"][numbers], labels)
        assert table["voxels"].sum() == labels.size
        assert np.isfinite(table["long_um"]).all() and (table["short_um"] <= table["long_um"]).all()


def test_without_numba_one_line_says_so(monkeypatch):
    load = builtins.__import__
    monkeypatch.setattr(objects, "_kernels", objects._kernels.__wrapped__)

    def without_numba(name):
        if name == "numba":
            raise ImportError(name)
        return load(name)

    monkeypatch.setattr(objects.importlib, "import_module", without_numba)
    with pytest.raises(ImportError, match="need numba: pip install numba"):
        local_thickness(np.eye(8, dtype=np.uint8), 1.0, np.ones((8, 8), np.float32))
