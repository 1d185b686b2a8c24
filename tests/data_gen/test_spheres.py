"""Sphere packs: nothing overlaps, the fraction is met, and painting is the geometry of circles."""

import json
from itertools import product

import numpy as np
import pytest

from data_gen.microstructure.spheres import MAX_FRACTION, Spheres, ball_volume, draw_radii, pack, paint, sphere_ids


def deepest_overlap(box, centres, radii):
    """Largest r_i + r_j − distance over all pairs and all periodic images, each ball's own images included."""
    deepest = -np.inf
    for shift in product((-1, 0, 1), repeat=len(box)):
        distance = np.linalg.norm(centres[:, None] - centres[None] + np.array(shift) * box, axis=-1)
        overlap = radii[:, None] + radii[None] - distance
        if not any(shift):
            np.fill_diagonal(overlap, -np.inf)
        deepest = max(deepest, overlap.max())
    return deepest


def sample(box, seed, **parameters):
    rng = np.random.default_rng(seed)
    box = np.array(box, float)
    radii = draw_radii(box, rng=rng, **parameters)
    return box, pack(box, radii, rng), radii


@pytest.mark.parametrize(
    ("box", "fraction", "mean", "cv"),
    [
        ((64, 64), 0.45, 4, 0.3),
        ((64, 64), MAX_FRACTION[2], 4, 0.2),
        ((64, 64), MAX_FRACTION[2], 4, 0.0),
        ((40, 90), 0.6, 4, 0.4),
        ((32, 32, 32), 0.4, 4, 0.3),
        ((24, 24, 24), MAX_FRACTION[3], 3, 0.2),
        ((20, 24, 40), 0.45, 3, 0.2),
    ],
)
def test_no_two_spheres_overlap(box, fraction, mean, cv):
    box, centres, radii = sample(box, 0, fraction=fraction, mean_radius_um=mean, radius_cv=cv)
    assert len(radii) > 10
    assert deepest_overlap(box, centres, radii) <= 0
    assert (centres >= 0).all() and (centres < box).all()
    assert ball_volume(radii, len(box)).sum() / np.prod(box) == pytest.approx(fraction, rel=1e-12)


@pytest.mark.parametrize(
    ("box", "fraction", "mean", "cv", "seeds"),
    [
        ((64, 64), 0.6, 16, 0.4, (0, 2, 9, 11)),  # what check() allows: a quarter of the edge
        ((32, 32, 32), 0.45, 8, 0.4, (0, 1, 2)),
        ((32, 32, 32), 0.45, 4, 1.0, (0, 1, 2)),
    ],
)
def test_large_spheres_do_not_overlap_either(box, fraction, mean, cv, seeds):
    packed = 0
    for seed in seeds:
        try:
            box, centres, radii = sample(box, seed, fraction=fraction, mean_radius_um=mean, radius_cv=cv)
        except ValueError:  # a few large spheres may not fit: an honest answer
            continue
        packed += 1
        assert deepest_overlap(box, centres, radii) <= 0, f"seed {seed}: {len(radii)} spheres"
    assert packed


@pytest.mark.parametrize(("shape", "fraction", "mean"), [((128, 128), 0.55, 6), ((40, 40, 40), 0.4, 5)])
def test_the_fraction_of_the_voxels_is_the_fraction_of_the_list(shape, fraction, mean):
    parameters = {"fraction": fraction, "mean_radius_um": mean * 0.5, "radius_cv": 0.3}
    labels, facts = Spheres().build(shape, 0.5, parameters, np.random.default_rng(1))
    radii = np.array(facts["radii_um"]) / 0.5
    assert labels.shape == shape and labels.dtype == np.uint8 and set(np.unique(labels)) == {0, 1}
    assert facts["n_objects"] == len(radii) == len(facts["centres_um"])
    # lattice points in a ball at random: variance r/(2π²) Σ|k|⁻³ = 0.458 r in 2D (Kendall 1948), r²/(2π²) Σ|k|⁻⁴ =
    # 0.837 r² in 3D; four standard deviations of their sum
    variance = 0.458 * radii.sum() if len(shape) == 2 else 0.837 * (radii**2).sum()
    assert abs(labels.sum() - fraction * labels.size) < 4 * np.sqrt(variance)


@pytest.mark.parametrize("radius", [3.3, 10.0, 30.0])
def test_the_area_of_a_circle(radius):
    rng = np.random.default_rng(0)
    areas = np.array([paint((80, 80), 1.0, rng.uniform(0, 80, (1, 2)), np.array([radius])).sum() for _ in range(100)])
    sd = np.sqrt(0.458 * radius)  # Kendall, as above
    assert abs(areas.mean() - np.pi * radius**2) < 4 * sd / np.sqrt(100)
    assert np.abs(areas - np.pi * radius**2).max() < 5 * sd + 1


def test_the_volume_of_a_sphere_and_the_unit_of_lengths():
    labels = paint((30, 30, 30), 0.5, np.array([[7.3, 7.6, 7.1]]), np.array([5.0]))
    assert abs(labels.sum() - 4 / 3 * np.pi * 10**3) < 4 * np.sqrt(0.837) * 10
    at = (np.argwhere(labels) + 0.5) * 0.5
    np.testing.assert_allclose(at.mean(0), [7.3, 7.6, 7.1], atol=0.05)  # a tenth of a voxel; half a voxel off shows
    assert [ball_volume(np.array([2.0]), n)[0] for n in (2, 3)] == pytest.approx([4 * np.pi, 32 / 3 * np.pi])


def brute_force(shape, voxel, centre, radius):
    """Voxels whose centre is within the radius of the centre or of one of its images."""
    axes = []
    for n, c in zip(shape, centre, strict=True):
        away = np.abs((np.arange(n) + 0.5) * voxel - c) % (n * voxel)
        axes.append(np.minimum(away, n * voxel - away) ** 2)
    return (sum(np.ix_(*axes)) <= radius**2).astype(np.uint8)


@pytest.mark.parametrize(
    ("shape", "centre", "radius"),
    [
        ((40, 30), (1.2, 29.1), 9.0),
        ((40, 30), (39.9, 0.1), 12.3),
        ((20, 16, 24), (0.4, 15.8, 23.5), 6.2),
        ((8, 8), (4.0, 4.0), 3.6),  # nearly as wide as the box: min(box) / 2.2
        ((9, 12), (0.3, 11.0), 4.05),
        ((8, 8, 8), (1.0, 4.0, 6.5), 3.6),
    ],
)
def test_painting_wraps_around_the_box(shape, centre, radius):
    labels = paint(shape, 0.5, np.array([centre]) * 0.5, np.array([radius]) * 0.5)
    np.testing.assert_array_equal(labels, brute_force(shape, 0.5, np.array(centre) * 0.5, radius * 0.5))


def test_moving_a_pack_across_the_border_rolls_the_labels():
    box, centres, radii = sample((40, 30), 3, fraction=0.5, mean_radius_um=3, radius_cv=0.3)
    moved = paint((40, 30), 1.0, (centres + np.array([17, 22])) % box, radii)
    np.testing.assert_array_equal(moved, np.roll(paint((40, 30), 1.0, centres, radii), (17, 22), (0, 1)))


@pytest.mark.parametrize(("shape", "fraction"), [((64, 64), 0.75), ((28, 28, 28), 0.55)])
def test_no_voxel_is_claimed_twice(shape, fraction):
    _, centres, radii = sample(shape, 5, fraction=fraction, mean_radius_um=4, radius_cv=0.2)
    alone = [paint(shape, 1.0, c[None], r[None]) for c, r in zip(centres, radii, strict=True)]
    claims = np.sum(alone, axis=0, dtype=int)
    assert claims.max() == 1
    np.testing.assert_array_equal(claims, paint(shape, 1.0, centres, radii))


@pytest.mark.parametrize("cv", [0.0, 0.1, 0.3])
def test_radii_have_the_mean_and_the_spread_asked(cv):
    box = np.array([4000.0, 4000.0])
    radii = draw_radii(box, 0.5, 10.0, cv, np.random.default_rng(0))
    n = len(radii)
    assert n > 20_000
    # 3 × and mean/3 lie beyond 3.7 sd of ln r at cv = 0.3: the cut is not felt. Five standard errors, and one ball.
    # The common factor is √(target / drawn), within one ball of 1.
    assert radii.mean() == pytest.approx(10.0, rel=5 * cv / np.sqrt(n) + 9 / n)
    # the standard error of sd: √((kurtosis − 1) / 4n), lognormal kurtosis ≤ 4.7 at cv ≤ 0.3
    assert radii.std() / radii.mean() == pytest.approx(cv, rel=5 * np.sqrt(3.7 / 4 / n), abs=1e-9)
    assert (np.diff(radii) <= 0).all()


def test_radii_stay_within_a_third_and_three_times_the_mean():
    radii = draw_radii(np.array([3000.0, 3000.0]), 0.5, 10.0, 1.0, np.random.default_rng(0))
    scale = 1 + 9 / len(radii) * 9  # the common factor: one ball of up to nine mean areas
    assert radii.min() >= 10 / 3 / scale and radii.max() <= 30 * scale


@pytest.mark.parametrize("shape", [(48, 48), (20, 20, 20)])
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(shape):
    recipe = Spheres(fraction=[0.3, 0.5], mean_radius_um=[3, 4], radius_cv=0.2)

    def build(seed):
        rng = np.random.default_rng(seed)
        return recipe.build(shape, 1.0, recipe.draw(rng), rng)

    (first, facts), (again, facts_again), (other, _) = build(1), build(1), build(2)
    assert first.tobytes() == again.tobytes() and facts == facts_again
    assert first.tobytes() != other.tobytes()


def test_the_global_generators_are_left_alone():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    Spheres().build((40, 40), 1.0, {"fraction": 0.4, "mean_radius_um": 4.0, "radius_cv": 0.2}, np.random.default_rng(0))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("shape", [(96, 80), (32, 40, 36)])
def test_ids_tell_the_spheres_apart_at_any_voxel_size(shape):
    recipe, rng = Spheres(fraction=0.4, mean_radius_um=4.0, radius_cv=0.2), np.random.default_rng(4)
    labels, facts = recipe.build(shape, 1.0, recipe.draw(rng), rng)
    facts = json.loads(json.dumps(facts))
    ids = sphere_ids(shape, 1.0, facts)
    # coordinates are kept to 1e-4 µm: a voxel centre on a surface may change sides
    assert ((ids > 0) != (labels > 0)).mean() < 1e-3
    fine = sphere_ids(tuple(3 * n for n in shape), 1 / 3, facts)
    assert np.array_equal(fine[tuple(slice(1, None, 3) for _ in shape)], ids), "every third voxel centre is the same"
    volumes = np.bincount(fine.ravel(), minlength=facts["n_objects"] + 1)[1:] / 3 ** len(shape)
    # a digitised ball of 4 voxels or more (12 fine ones): well within 3 % of its volume
    np.testing.assert_allclose(volumes, ball_volume(facts["radii_um"], len(shape)), rtol=0.03)


def test_parameters_are_drawn_within_their_ranges():
    recipe = Spheres(fraction=[0.3, 0.4], mean_radius_um=5, radius_cv=[0.1, 0.2])
    drawn = [recipe.draw(np.random.default_rng(k)) for k in range(50)]
    assert all(0.3 <= d["fraction"] <= 0.4 and d["mean_radius_um"] == 5 and 0.1 <= d["radius_cv"] <= 0.2 for d in drawn)
    assert len({d["fraction"] for d in drawn}) == 50


@pytest.mark.parametrize(
    "arguments",
    [
        {"fraction": 0.8},
        {"fraction": 0},
        {"fraction": [0.5, 0.3]},
        {"fraction": "0.5"},
        {"mean_radius_um": 0},
        {"mean_radius_um": None},
        {"radius_cv": -0.1},
        {"radius_cv": 1.1},
        {"radius_cv": float("nan")},
    ],
)
def test_bad_recipes(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}=") as caught:
        Spheres(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "shape", "names"),
    [
        ({"fraction": 0.7}, (64, 64, 64), "fraction of 3D spheres.*0.6"),
        ({"fraction": [0.3, 0.61]}, (64, 64, 64), "fraction of 3D spheres"),
        ({"mean_radius_um": 0.5}, (64, 64), "below one voxel"),
        ({"mean_radius_um": [4, 17]}, (64, 200), "quarter of its shortest edge, 16"),
        ({"mean_radius_um": 9}, (64, 64, 32), "quarter of its shortest edge, 8"),
    ],
)
def test_what_cannot_be_built_is_refused_before_the_work(arguments, shape, names):
    recipe = Spheres(**{"fraction": 0.4, "mean_radius_um": 4} | arguments)
    with pytest.raises(ValueError, match=names):
        recipe.check(shape, 1.0)


def test_what_can_be_built_passes_the_check():
    Spheres(fraction=0.75, mean_radius_um=[1, 16]).check((64, 64), 1.0)
    Spheres(fraction=0.6, mean_radius_um=4).check((64, 64, 64), 1.0)


def test_a_box_too_empty_for_one_sphere_is_refused():
    # 1 % of the box is a circle of radius 3.6: asked was 16, and radii are met within the spread or refused
    with pytest.raises(ValueError, match=r"mean_radius_um|fraction"):
        Spheres(fraction=0.01, mean_radius_um=16, radius_cv=0.1).check((64, 64), 1.0)


def test_a_pack_that_cannot_be_found_says_so():
    with pytest.raises(ValueError, match="no packing of 3 spheres") as caught:  # 3 discs of 0.45: more than the box
        pack(np.array([1.0, 1.0]), np.full(3, 0.45), np.random.default_rng(0))
    assert "\n" not in str(caught.value)
