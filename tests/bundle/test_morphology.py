"""Oracles: closed forms of balls, planes, cylinders, plates, checkerboards and Boolean models; brute force."""

import math
from itertools import permutations, product

import numpy as np
import pytest
from scipy.ndimage import label

from bundle.morphology import (
    chord_counts,
    chord_lengths,
    connectivity,
    contact_area,
    crofton_directions,
    triple_phase_boundary,
    two_point_correlation,
    volume_fractions,
)


def coordinates(shape, centre=None, size=1.0):
    """Voxel centres relative to a point, (axes, *shape)."""
    centre = (np.array(shape) - 1) / 2 if centre is None else np.asarray(centre)
    size = np.broadcast_to(size, (len(shape),))
    grid = np.indices(shape).astype(float)
    return (grid - centre.reshape(-1, *[1] * len(shape))) * size.reshape(-1, *[1] * len(shape))


def ball(shape, radius, centre=None, size=1.0):
    return (coordinates(shape, centre, size) ** 2).sum(axis=0) < radius**2


def rotation(rng):
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    return q * np.sign(np.diag(r))


def window_factor(shape, size=(1, 1, 1), directions=None):
    """An object that never touches the frame is found by more lines than the box's share: the inverse of that share."""
    pairs = [
        (weight, math.prod(n / (n - abs(s)) for n, s in zip(shape, step, strict=True)))
        for step, weight in crofton_directions(size[: len(shape)], directions)
    ]
    return sum(weight * factor for weight, factor in pairs)


def random_labels(rng, shape=None, classes=3):
    shape = shape or tuple(rng.integers(5, 14, rng.integers(2, 4)))
    coarse = rng.integers(0, classes, [-(-n // 2) for n in shape])
    for axis in range(len(shape)):
        coarse = coarse.repeat(2, axis)
    return coarse[tuple(slice(n) for n in shape)].astype(np.uint8)


def overlapping_balls(rng, shape, radius, density):
    """A Boolean model; balls whose centres lie outside the box are there too. 1 is solid."""
    wide = [n + 2 * radius for n in shape]
    centres = rng.random((rng.poisson(density * math.prod(wide)), len(shape))) * wide - radius
    grid = np.indices(shape).astype(float)
    solid = np.zeros(shape, bool)
    for c in centres:
        box = tuple(slice(max(0, int(x - radius)), max(0, int(x + radius) + 2)) for x in c)
        solid[box] |= ((grid[(slice(None), *box)] - c.reshape(-1, *[1] * len(shape))) ** 2).sum(axis=0) < radius**2
    return solid.astype(np.uint8)


# ------------------------------------------------------------------------------------------ surface and contact


def test_weights_are_those_of_the_cubic_lattice():
    # Ohser and Mücklich 2000, table 4.1, for 26 neighbours; a line has two ends
    book = {1: 2 * 0.045778, 2: 2 * 0.036981, 3: 2 * 0.035196}
    found = crofton_directions([0.3, 0.3, 0.3])
    assert len(found) == 13
    assert all(weight == pytest.approx(book[sum(map(abs, step))], rel=1e-4) for step, weight in found)
    for sizes, directions in (([1, 2, 0.5], None), ([1, 1], 4), ([1, 1], 8), ([1, 3], 8)):
        assert sum(weight for _, weight in crofton_directions(sizes, directions)) == pytest.approx(1)


@pytest.mark.parametrize("radius", [5, 8, 14, 22])
def test_surface_of_a_ball_within_2_percent(radius):
    shape = (2 * radius + 7, 2 * radius + 9, 2 * radius + 6)
    labels = ball(shape, radius, (np.array(shape) - 1) / 2 + [0.2, -0.3, 0.4]).astype(np.uint8)
    truth = 4 * math.pi * radius**2 / labels.size * window_factor(shape)
    assert contact_area(labels, 1.0)[0, 1] == pytest.approx(truth, rel=0.02)


@pytest.mark.parametrize("directions", [4, 8])
@pytest.mark.parametrize("radius", [8, 20])
def test_perimeter_of_a_disc_within_2_percent(radius, directions):
    shape, rng = (2 * radius + 9, 2 * radius + 12), np.random.default_rng(0)
    centres = (np.array(shape) - 1) / 2 + rng.random((10, 2))
    found = [contact_area(ball(shape, radius, c).astype(np.uint8), 1.0, directions=directions)[0, 1] for c in centres]
    truth = 2 * math.pi * radius / math.prod(shape) * window_factor(shape, directions=directions)
    assert np.mean(found) == pytest.approx(truth, rel=0.01)
    np.testing.assert_allclose(found, truth, rtol=0.02 if directions == 8 else 0.035)


def test_flat_voxels_are_measured_as_cubes_are():
    size = (1.0, 0.6, 1.5)
    shape = (40, 66, 28)
    labels = ball(shape, 16, size=size).astype(np.uint8)
    truth = 4 * math.pi * 16**2 / (labels.size * math.prod(size)) * window_factor(shape, size)
    assert contact_area(labels, size)[0, 1] == pytest.approx(truth, rel=0.03)


def test_oblique_planes_are_right_on_average_and_within_the_known_bounds():
    # Crofton's sum for a plane of normal u is 2 Σ w |u·d|: between 0.927 (along an axis) and 1.05, its mean is 1
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(60):
        normal = rotation(rng)[0]
        bands = np.floor(np.tensordot(normal, coordinates((40, 40, 40), rng.random(3)), 1) / 10) % 2
        ratios.append(contact_area(bands.astype(np.uint8), 1.0)[0, 1] * 10)  # one plane every 10 voxels
    assert np.mean(ratios) == pytest.approx(1, abs=0.015)
    assert min(ratios) > 0.92 and max(ratios) < 1.07
    axis_aligned = contact_area(np.indices((40, 40, 40))[0] // 10 % 2, 1.0)[0, 1] * 39 / 3
    assert axis_aligned == pytest.approx(0.927, abs=1e-3)


def test_contacts_of_three_phases_add_up_and_have_their_closed_form():
    # a ball cut in two by a plane through its centre: half its surface each, and a disc between the halves
    rng, radius, n = np.random.default_rng(1), 15, 40
    found = np.zeros((3, 3))
    for _ in range(10):
        x = coordinates((n, n, n), (n - 1) / 2 + rng.random(3))
        labels = np.where((x**2).sum(axis=0) < radius**2, 1 + (np.tensordot(rotation(rng)[0], x, 1) > 0), 0)
        found += contact_area(labels, 1.0) * n**3 / window_factor((n, n, n)) / 10
    assert found[0, 1] == pytest.approx(2 * math.pi * radius**2, rel=0.02)
    assert found[0, 2] == pytest.approx(2 * math.pi * radius**2, rel=0.02)
    # a step across the disc that ends outside the ball is lost: a ring of about a third of a voxel along the rim
    assert found[1, 2] == pytest.approx(math.pi * (radius - 0.3) ** 2, rel=0.02)
    np.testing.assert_array_equal(found, found.T)


def test_cylinder_has_its_surface_chords_and_section():
    radius = 12
    labels = np.repeat(ball((41, 41), radius)[..., None], 20, axis=2).astype(np.uint8)
    # Crofton is exact for the mean over all directions, not for one cylinder: within a plane's bounds
    surface = contact_area(labels, 1.0)[0, 1] / window_factor((41, 41, 10**6))
    assert surface == pytest.approx(2 * math.pi * radius / 41**2, rel=0.05)
    chords = chord_lengths(labels, 1.0)[1]
    assert chords["mean_z"] is None  # no chord along the axis shows an end
    # mean chord of a disc is πr/2; lines are one voxel apart, and its shortest chords are lost
    places = 40 - np.arange(41)
    weights = chord_counts(labels)[0][1] * np.maximum(places, 1)
    assert (weights @ np.arange(41)) / weights.sum() == pytest.approx(math.pi * radius / 2, rel=0.03)


# ------------------------------------------------------------------------------------------ triple lines


def test_a_triple_line_along_an_axis_is_exact():
    labels = np.zeros((12, 15, 20), np.uint8)
    labels[5:] = 1
    labels[5:, 7:] = 2
    found = triple_phase_boundary(labels, (0.5, 0.25, 2.0))
    assert found["total"] == pytest.approx(1 / (11 * 0.5 * 14 * 0.25))
    for axis in range(3):
        assert triple_phase_boundary(np.moveaxis(labels, 0, axis), 1.0)["total"] == pytest.approx(1 / (11 * 14))
    assert triple_phase_boundary(np.minimum(labels, 1), 1.0)["total"] == 0


def test_plates_of_three_phases_meet_in_known_lines():
    # plates 8 thick that alternate 1, 2 above y = 20, over one half space 0: a line a plate boundary
    labels = np.zeros((48, 40, 16), np.uint8)
    labels[:, 20:] = 1 + (np.arange(48) // 8 % 2)[:, None, None]
    assert triple_phase_boundary(labels, 1.0)["total"] == pytest.approx(5 / (47 * 39))


def test_oblique_triple_lines_within_4_percent():
    rng, n, ratios = np.random.default_rng(2), 48, []
    for _ in range(20):
        frame, centre = rotation(rng), (n - 1) / 2 + rng.uniform(-4, 4, 3)
        u, v, _ = np.tensordot(frame, coordinates((n, n, n), centre), 1)
        labels = np.digitize(np.arctan2(v, u), [-math.pi / 3, math.pi / 3]).astype(np.uint8)
        points = centre + np.linspace(-2 * n, 2 * n, 40001)[:, None] * frame[2]
        # edges are seen between the outer voxels' centres across them, and over n voxels along them
        length = ((points >= -0.5) & (points <= n - 0.5)).all(axis=1).sum() * 4 * n / 40000
        ratios.append(triple_phase_boundary(labels, 1.0)["total"] * n**3 / length / (n / (n - 1)) ** 2)
    assert np.mean(ratios) == pytest.approx(1, abs=0.02)
    assert min(ratios) > 0.94 and max(ratios) < 1.06


@pytest.mark.parametrize("radius", [8, 14])
def test_triple_line_around_a_ball_on_an_interface(radius):
    rng, n, lengths = np.random.default_rng(3), 44, []
    for _ in range(8):
        x = coordinates((n, n, n), (n - 1) / 2 + rng.uniform(-0.5, 0.5, 3))
        labels = (np.tensordot(rotation(rng)[0], x, 1) > 0).astype(np.uint8)
        labels[(x**2).sum(axis=0) < radius**2] = 2
        lengths.append(triple_phase_boundary(labels, 1.0)["total"] * n * (n - 1) ** 2)
    assert np.mean(lengths) == pytest.approx(2 * math.pi * radius, rel=0.05)


def test_only_lines_of_phases_that_reach_through_percolate():
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[:, 10:] = 1
    labels[:, 10:, 10:] = 2  # one line along x, all three phases reach through
    found = triple_phase_boundary(labels, 1.0)
    assert found["percolating_x"] == pytest.approx(found["total"])
    assert found["percolating_y"] == 0  # phase 0 ends at y = 10
    labels[10, :, :] = np.where(labels[10] == 2, 1, labels[10])  # cuts phase 2
    assert triple_phase_boundary(labels, 1.0)["percolating_x"] == 0


def test_three_of_four_phases_can_be_named():
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[4:], labels[4:, 4:] = 1, 2
    labels[:4, 4:] = 3  # four phases around one line
    assert triple_phase_boundary(labels, 1.0)["total"] == pytest.approx(1 / 64)
    assert triple_phase_boundary(labels, 1.0, [0, 1, 2])["total"] == pytest.approx(1 / 64)
    assert triple_phase_boundary(labels, 1.0, [0, 1, 5])["total"] == 0
    with pytest.raises(ValueError, match="phases="):
        triple_phase_boundary(labels, 1.0, [0, 1, 1])


def test_triple_points_of_an_image():
    labels = np.zeros((20, 30), np.uint8)
    labels[10:] = 1
    labels[10:, 8:16] = 2  # two points
    assert triple_phase_boundary(labels, 0.5)["total"] == pytest.approx(2 / (19 * 29 * 0.25))


# ------------------------------------------------------------------------------------------ connectivity


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_checkerboard_is_half_and_half_and_connects_nothing(ndim):
    labels = (np.indices((16,) * ndim) // 4).sum(axis=0) % 2
    np.testing.assert_array_equal(volume_fractions(labels), [0.5, 0.5])
    for row in connectivity(labels):
        assert row["components"] == 4**ndim / 2
        assert row["largest_share"] == pytest.approx(2 / 4**ndim)
        assert row["percolating_share_x"] == row["percolating_share_y"] == 0


def test_a_channel_percolates_along_its_axis_only_and_a_cavity_is_closed():
    labels = np.ones((12, 14, 16), np.uint8)
    labels[:, 5, 5] = 0  # 12 voxels from end to end
    labels[4:7, 10, 10] = 0  # a cavity of 3
    pore, solid = connectivity(labels)
    assert pore == {
        "components": 2,
        "largest_share": 12 / 15,
        "closed_share": 3 / 15,
        "percolating_share_x": 12 / 15,
        "percolating_share_y": 0.0,
        "percolating_share_z": 0.0,
    }
    assert solid["percolating_share_y"] == 1 and solid["closed_share"] == 0
    assert connectivity(labels, 3)[2]["largest_share"] is None


def test_components_are_those_of_scipy():
    rng = np.random.default_rng(4)
    for _ in range(10):
        labels = random_labels(rng)
        assert [row["components"] for row in connectivity(labels, 3)] == [label(labels == k)[1] for k in range(3)]


# ------------------------------------------------------------------------------------------ chords


def test_chords_of_plates_are_their_thicknesses():
    labels = np.tile(np.repeat([0, 1], (5, 7)), 6)[:, None, None] * np.ones((1, 10, 12), int)
    zero, one = chord_lengths(labels, 0.5)
    assert (zero["mean"], one["mean"]) == pytest.approx((2.5, 3.5))
    assert zero["sd"] == one["sd"] == 0 and one["mean_y"] is None


def test_long_chords_count_as_often_as_they_are():
    # lines of alternating phases whose lengths are 3 or 41, equally often, seen through windows of 60
    rng = np.random.default_rng(5)
    lines = []
    for _ in range(3000):
        lengths = rng.choice([3, 41], 40)
        line = np.repeat(np.arange(40) % 2, lengths)
        start = rng.integers(0, len(line) - 200)
        lines.append(line[start : start + 60])
    labels = np.array(lines)
    counts = chord_counts(labels)[1].sum(axis=0)
    share = counts[41] / (counts[3] + counts[41])
    seen = counts[41] * (59 - 41)  # chords of 41, without the weight
    assert share == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(seen))
    uncorrected = np.array([counts[3] * 56, seen])
    assert uncorrected[1] / uncorrected.sum() < 0.3


def test_mean_chord_is_four_fractions_over_the_surface():
    # Crofton misses a share of the cusps where balls overlap, and a few chords are longer than the box
    labels = [overlapping_balls(np.random.default_rng(seed), (96, 80, 88), 5, 1.2e-3) for seed in range(3)]
    for k in (0, 1):
        chord = np.mean([chord_lengths(x, 1.0)[k]["mean"] for x in labels])
        ratio = np.mean([4 * volume_fractions(x)[k] / contact_area(x, 1.0)[0, 1] for x in labels])
        assert chord == pytest.approx(ratio, rel=0.05)
        if k == 0:  # Boolean model: exponential with mean 1/(density π r²), of which the grid sees whole voxels
            continuous = 1 / (1.2e-3 * math.pi * 25)
            assert chord == pytest.approx(1 / (1 - math.exp(-1 / continuous)), rel=0.03)


# ------------------------------------------------------------------------------------------ correlation


def test_correlation_is_the_count_of_pairs():
    rng = np.random.default_rng(7)
    for shape in ((9, 11), (8, 9, 10)):
        labels = random_labels(rng, shape)
        distances, curves = two_point_correlation(labels, 1.0, max_distance_um=4.0)
        points = np.argwhere(np.ones(shape))
        gaps = np.linalg.norm(points[:, None] - points[None], axis=-1).ravel()
        kept = gaps <= 4 + 1e-9
        bins = np.rint(gaps[kept]).astype(int)
        for k in range(3):
            mine = (labels == k).ravel()
            both = np.logical_and.outer(mine, mine).ravel()[kept]
            expected = np.bincount(bins, both) / np.bincount(bins)
            np.testing.assert_allclose(curves[k], expected, atol=1e-5)
        np.testing.assert_allclose(distances, np.bincount(bins, gaps[kept]) / np.bincount(bins), atol=1e-6)


def test_correlation_of_overlapping_balls_is_its_closed_form():
    # void of a Boolean model: exp(-density × volume of two balls' union), Torquato, Random Heterogeneous Materials, 5.2
    radius, density = 6.0, 7e-4
    curves = []
    for seed in range(6):
        labels = overlapping_balls(np.random.default_rng(seed), (64, 64, 64), int(radius), density)
        distances, found = two_point_correlation(labels, 1.0, 2)
        curves.append(found[0])
    one = 4 / 3 * math.pi * radius**3
    r = np.minimum(distances, 2 * radius)
    union = one * (1 + 3 * r / (4 * radius) - r**3 / (16 * radius**3))
    error = np.std(curves, axis=0, ddof=1) / math.sqrt(len(curves))
    np.testing.assert_array_less(abs(np.mean(curves, axis=0) - np.exp(-density * union)), 4 * error + 0.004)


# ------------------------------------------------------------------------------------------ laws


def all_numbers(labels, size):
    chords = [row["mean"] for row in chord_lengths(labels, size, 3)]
    return {
        "fraction": volume_fractions(labels, 3),
        "contact": contact_area(labels, size, 3),
        "triple": triple_phase_boundary(labels, size)["total"],
        "components": [row["components"] for row in connectivity(labels, 3)],
        "chords": np.array([np.nan if c is None else c for c in chords]),
        "correlation": two_point_correlation(labels, size, 3)[1],
    }


def test_axes_and_mirrors_leave_every_number_unchanged():
    rng = np.random.default_rng(9)
    for _ in range(6):
        labels = random_labels(rng, shape=tuple(rng.integers(8, 14, rng.integers(2, 4))))
        size = rng.uniform(0.5, 2, labels.ndim)
        truth = all_numbers(labels, size)
        for axes in permutations(range(labels.ndim)):
            found = all_numbers(np.flip(labels.transpose(axes), axis=0), size[list(axes)])
            for name, value in truth.items():
                np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_voxel_size_scales_each_number_with_its_power():
    labels = random_labels(np.random.default_rng(10), (12, 14, 10))
    one, three = all_numbers(labels, 1.0), all_numbers(labels, 3.0)
    powers = {"fraction": 0, "contact": -1, "triple": -2, "components": 0, "chords": 1, "correlation": 0}
    for name, power in powers.items():
        np.testing.assert_allclose(three[name], np.array(one[name]) * 3.0**power, rtol=1e-5, atol=1e-9, err_msg=name)


def test_laws_hold_for_random_shapes():
    rng = np.random.default_rng(11)
    for _ in range(25):
        labels = random_labels(rng, classes=int(rng.integers(1, 5)))
        fractions, contact = volume_fractions(labels, 4), contact_area(labels, 1.0, 4)
        assert fractions.sum() == pytest.approx(1)
        assert (contact >= 0).all() and (contact == contact.T).all() and (contact[fractions == 0] == 0).all()
        merged = contact_area(np.where(labels == 3, 2, labels), 1.0, 4)
        assert merged[0, 2] == pytest.approx(contact[0, 2] + contact[0, 3])  # contacts are additive over phases
        distances, curves = two_point_correlation(labels, 1.0, 4)
        np.testing.assert_allclose(curves[:, 0], fractions, atol=1e-6)
        assert (curves <= fractions[:, None] / (1 - distances / min(labels.shape)) ** labels.ndim + 1e-6).all()
        triple = triple_phase_boundary(labels, 1.0)
        assert all(0 <= triple[f"percolating_{a}"] <= triple["total"] + 1e-12 for a in "xyz"[: labels.ndim])
        for row in connectivity(labels, 4):
            assert row["components"] == 0 or 0 < row["largest_share"] <= 1


def test_a_volume_and_its_parts_agree_on_average():
    labels = overlapping_balls(np.random.default_rng(12), (72, 72, 72), 5, 9e-4)
    parts = [labels[tuple(slice(36 * i, 36 * i + 36) for i in index)] for index in product((0, 1), repeat=3)]
    whole = contact_area(labels, 1.0)[0, 1]
    values = [contact_area(part, 1.0)[0, 1] for part in parts]
    assert np.mean(values) == pytest.approx(whole, rel=0.02)


@pytest.mark.parametrize(
    ("labels", "size", "message"),
    [
        (np.zeros((5, 5)), 1.0, "integer type"),
        (np.zeros(5, int), 1.0, "shape"),
        (np.zeros((5, 2, 5), int), 1.0, "3 or more"),
        (np.full((5, 5), -1), 1.0, "classes are 0 to"),
        (np.full((5, 5), 256), 1.0, "classes are 0 to 255"),
        (np.zeros((5, 5), int), 0.0, "voxel_size_um=0.0"),
        (np.zeros((5, 5), int), (1, 1, 1), "voxel_size_um"),
        (np.zeros((5, 5), int), "a", "voxel_size_um"),
        (np.zeros((5, 5), int), float("nan"), "voxel_size_um"),
    ],
)
def test_bad_input_is_one_clear_error(labels, size, message):
    with pytest.raises(ValueError, match=message) as caught:
        contact_area(labels, size)
    assert "\n" not in str(caught.value)


def test_bad_options():
    labels = np.zeros((8, 8), int)
    with pytest.raises(ValueError, match="directions=5 of a 2D"):
        contact_area(labels, 1.0, directions=5)
    with pytest.raises(ValueError, match="max_distance_um=5"):
        two_point_correlation(labels, 1.0, max_distance_um=5)
    with pytest.raises(ValueError, match="hold 0 to 2; classes are 0 to 1"):
        contact_area(np.diag([2, 2, 2]), 1.0, n_classes=2)
