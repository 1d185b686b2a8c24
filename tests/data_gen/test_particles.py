"""Particle lists: what is painted is the geometry of the list, at any resolution, and the pack meets what was asked."""

import json

import numpy as np
import pytest

from data_gen.microstructure.kernels import near_pairs
from data_gen.microstructure.packing import pack_ellipsoids, thin_out
from data_gen.microstructure.particle_list import ParticleList, draw_rotations, ellipsoids
from data_gen.microstructure.particles import Particles, draw_from_histogram
from data_gen.microstructure.random_field import noise_tile, rank_threshold, smooth_field
from data_gen.microstructure.spheres import paint

SHAPES = [(96, 64), (64, 64), (40, 32, 48)]
ROUGH = {"aspect": [1, 2], "roughness_um": 0.2, "roughness_length_um": 1.0, "lumpiness": 0.08, "gap_um": 0.3}


def one(box, centre, axes, rotation=None, **look):
    ndim = len(box)
    rotation = np.eye(ndim) if rotation is None else rotation
    arrays = (np.array(a, float)[None] for a in (centre, axes, rotation))
    return ellipsoids(np.array(box, float), *arrays, np.random.default_rng(0), **look)


def build(recipe, shape, seed=0, voxel=0.5):
    rng = np.random.default_rng(seed)
    return recipe.build(shape, voxel, recipe.draw(rng), rng)


@pytest.mark.parametrize("shape", SHAPES)
def test_smooth_balls_are_those_of_the_sphere_painter(shape):
    rng = np.random.default_rng(0)
    centres, radii = rng.uniform(0, np.array(shape) * 0.5, (9, len(shape))), rng.uniform(1, 5, 9)
    axes, eyes = np.repeat(radii[:, None], len(shape), 1), np.repeat(np.eye(len(shape))[None], 9, 0)
    balls = ellipsoids(np.array(shape) * 0.5, centres, axes, eyes, rng)
    np.testing.assert_array_equal(balls.ids(0.5) > 0, paint(shape, 0.5, centres, radii) > 0)


@pytest.mark.parametrize(("axes", "measure"), [((6.0, 2.0), np.pi), ((6.0, 2.0, 3.0), 4 / 3 * np.pi)])
def test_the_volume_of_an_ellipsoid_in_any_direction(axes, measure):
    ndim = len(axes)
    rotation = draw_rotations(1, ndim, 0.0, 0, np.random.default_rng(1))[0]
    filled = (one([20] * ndim, [10.1] * ndim, axes, rotation).ids(0.25) > 0).sum() * 0.25**ndim
    # lattice noise of a ball of the same volume (test_spheres): 0.5 % in 2D and 0.1 % in 3D at most, four sd
    assert filled == pytest.approx(measure * np.prod(axes), rel=0.02 if ndim == 2 else 0.005)


def test_the_distance_is_exact_for_a_ball_and_the_normal_one_at_the_poles_of_an_ellipsoid():
    near = one([20, 20], [10, 10], [4, 4]).nearest(0.5, 3.0)
    x = (np.arange(40) + 0.5) * 0.5 - 10
    expected = np.minimum(np.hypot(x[:, None], x) - 4, 3)
    np.testing.assert_allclose(near.first_um, expected, atol=1e-5)
    thin = one([20, 20], [10.25, 10.25], [6, 2]).nearest(0.5, 3.0).first_um
    np.testing.assert_allclose(thin[20, 20:27], np.arange(7) * 0.5 - 2, atol=1e-5)


def test_the_surface_noise_has_the_amplitude_and_the_length_asked():
    amplitude, length, radius = 0.3, 2.0, 40.0
    heights, lags = [], []
    for seed in range(4):
        rough = one([100, 100], [50, 50], [radius, radius], roughness_um=amplitude, roughness_length_um=length)
        rough.offsets[:] = np.random.default_rng(seed).uniform(0, 64, (1, 3))
        smooth = one([100, 100], [50, 50], [radius, radius])
        ring = np.abs(smooth.nearest(0.5, 5.0).first_um) < 0.3
        h = (smooth.nearest(0.5, 5.0).first_um - rough.nearest(0.5, 5.0).first_um)[ring]
        at = np.argwhere(ring)
        angle = np.arctan2(*(at + 0.5 - 100).T)
        h = np.interp(np.linspace(-np.pi, np.pi, 2000), np.sort(angle), h[np.argsort(angle)])
        heights.append(h)
        lags.append((h * np.roll(h, round(length / (2 * np.pi * radius) * 2000))).mean() / (h**2).mean())
    # 4 rings of 251 µm hold about 4·251/(2·√π) = 280 independent heights of length 2: sd to 4 %, three of them, and
    # the interpolation of the tile takes up to 5 %
    assert np.std(heights) == pytest.approx(amplitude, rel=0.17)
    assert np.mean(lags) == pytest.approx(np.exp(-0.5), abs=0.12)  # covariance exp(−d²/2ℓ²) at d = ℓ


def test_the_same_list_at_another_resolution_is_the_same_pack():
    recipe = Particles(fraction=0.55, mean_radius_um=4, **ROUGH)
    _, facts = build(recipe, (96, 80))
    pack = ParticleList.from_json(json.loads(json.dumps(facts["particles"])))
    coarse, fine = pack.ids(0.5), pack.ids(0.1)
    assert fine.shape == (480, 400)
    # the middle of a coarse voxel is the middle of the third of its five fine ones
    assert (fine[2::5, 2::5] != coarse).mean() < 1e-3  # rounding of the list to 1e-6 µm
    with pytest.raises(ValueError, match=r"voxel_size_um=0\.33"):
        pack.ids(0.33)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("periodic", [True, False])
def test_the_fraction_is_met_and_ids_are_the_labels(shape, periodic):
    recipe = Particles(fraction=0.5, mean_radius_um=3, radius_cv=0.3, periodic=periodic, **ROUGH)
    recipe.check(shape, 0.5)
    labels, facts = build(recipe, shape, 3)
    assert labels.shape == shape and labels.dtype == np.uint8
    assert labels.mean() == pytest.approx(0.5, abs=1.5 / labels.size + 1e-4)
    ids = ParticleList.from_json(facts["particles"]).ids(0.5)
    assert ((ids > 0) != labels).mean() < 1e-3
    assert ids.max() <= facts["n_objects"]


@pytest.mark.parametrize(
    ("fraction", "shape"), [(0.74, (96, 96)), (0.9, (96, 96)), (0.001, (300, 300)), (0.75, (40, 40, 40))]
)
def test_the_edges_of_the_fraction(fraction, shape):
    labels, _ = build(Particles(fraction=fraction, mean_radius_um=2.5, radius_cv=0.3), shape)
    assert labels.mean() == pytest.approx(fraction, rel=0.005)


def test_a_gap_keeps_particles_apart():
    labels, facts = build(Particles(fraction=0.6, mean_radius_um=4, gap_um=1.2), (128, 128), voxel=0.4)
    ids = ParticleList.from_json(facts["particles"]).ids(0.4)
    for axis in (0, 1):
        a, b = np.take(ids, range(127), axis), np.take(ids, range(1, 128), axis)
        assert not ((a > 0) & (b > 0) & (a != b)).any()
    assert labels.mean() == pytest.approx(0.6, abs=1e-3)


def test_necks_join_what_a_gap_parts():
    def touching(share):
        _, facts = build(
            Particles(fraction=0.8, mean_radius_um=4, gap_um=0.6, neck_share=share), (128, 128), voxel=0.25
        )
        ids = ParticleList.from_json(facts["particles"]).ids(0.25)
        return ((ids[1:] > 0) & (ids[:-1] > 0) & (ids[1:] != ids[:-1])).sum()

    assert touching(0.0) == 0 and 0 < touching(0.5) < touching(1.0)


def test_the_gradient_is_the_one_asked():
    recipe = Particles(fraction=0.4, mean_radius_um=1.5, radius_cv=0.2, gradient=1.0, axis=0, periodic=False)
    halves = [build(recipe, (160, 160), seed)[0].reshape(2, 80, 160).mean((1, 2)) for seed in range(4)]
    near, far = np.mean(halves, 0)
    # a line through 1 ∓ ½ at the ends is 1 ∓ ¼ in the middle of the halves; some 130 particles a half
    assert (far - near) / 0.4 == pytest.approx(0.5, abs=0.15)


def test_thinning_keeps_the_share_asked():
    rng = np.random.default_rng(0)
    n = 4000
    pack = ellipsoids(
        np.ones(2), rng.uniform(size=(n, 2)), np.full((n, 2), 0.001), np.repeat(np.eye(2)[None], n, 0), rng
    )
    kept = thin_out(pack, 1.0, 0, 1 / 1.5, rng).centres_um[:, 0]
    assert len(kept) == pytest.approx(n / 1.5, abs=2)
    # density ∝ 1 + (x − ½): mean ½ + 1/12, sd of the mean 0.29/√2667
    assert kept.mean() == pytest.approx(0.5 + 1 / 12, abs=4 * 0.29 / 50)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("order", [0.0, 0.5, 0.9])
def test_orientations_have_the_order_asked(ndim, order):
    rows = draw_rotations(20_000, ndim, order, -1, np.random.default_rng(0))
    np.testing.assert_allclose(rows @ rows.transpose(0, 2, 1), np.broadcast_to(np.eye(ndim), rows.shape), atol=1e-9)
    cos2 = rows[:, 0, -1] ** 2
    reached = 2 * cos2 - 1 if ndim == 2 else (3 * cos2 - 1) / 2
    assert reached.mean() == pytest.approx(order, abs=4 * 0.71 / np.sqrt(20_000))  # sd of cos 2θ at most 1/√2
    assert draw_rotations(3, ndim, 1.0, 0, np.random.default_rng(0))[:, 0, 0] == pytest.approx(1)


@pytest.mark.parametrize("ndim", [2, 3])
def test_packed_ellipsoids_hardly_overlap(ndim):
    rng = np.random.default_rng(0)
    n = 60
    axes = np.array([0.35] + [1.0] * (ndim - 1)) * rng.uniform(0.7, 1.3, (n, 1))
    volume = (np.pi if ndim == 2 else 4 / 3 * np.pi) * np.prod(axes, 1).sum()
    box = np.full(ndim, (volume / (0.55 if ndim == 2 else 0.4)) ** (1 / ndim))
    rotations = draw_rotations(n, ndim, 0.5, 0, rng)
    centres, worst = pack_ellipsoids(box, axes, rotations, rng)
    assert worst <= 0.02
    shrunk = axes * 0.98
    voxel = box[0] / (200 if ndim == 2 else 90)
    alone = sum(
        (ellipsoids(box, c[None], a[None], r[None], rng).ids(voxel) > 0).astype(int)
        for c, a, r in zip(centres, shrunk, rotations, strict=True)
    )
    assert alone.max() == 1


@pytest.mark.parametrize("ndim", [2, 3])
def test_pairs_are_those_of_brute_force(ndim):
    rng = np.random.default_rng(ndim)
    box = np.append(rng.uniform(8, 12, ndim), [1e9] * (3 - ndim))
    centres = np.zeros((150, 3))
    centres[:, :ndim] = rng.uniform(0, box[:ndim], (150, ndim))
    radii = rng.uniform(0.1, 2.0, 150)
    between = centres[:, None] - centres
    between -= box * np.round(between / box)
    near = np.sqrt((between**2).sum(-1)) < radii[:, None] + radii + 0.2
    found = near_pairs(centres, radii, box, 0.2, np.argsort(centres[:, 0]))
    assert {frozenset(p) for p in found.tolist()} == {frozenset(p) for p in np.argwhere(np.triu(near, 1)).tolist()}
    assert len(found) == np.triu(near, 1).sum()


def test_radii_follow_a_measured_histogram():
    histogram = {"edges_um": [1.0, 2.0, 3.0, 5.0], "counts": [3, 0, 1]}
    radii = draw_from_histogram(np.array([2000.0, 2000.0]), 0.5, histogram, np.random.default_rng(0))
    counts, _ = np.histogram(radii, histogram["edges_um"])
    n = len(radii)
    assert counts[1] == 0 and counts.sum() == n
    assert counts[0] / n == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / n))
    assert np.pi * (radii**2).sum() / 4e6 == pytest.approx(0.5, abs=np.pi * 25 / 4e6)


@pytest.mark.parametrize("shape", [(200, 160), (40, 50, 60)])
def test_a_smooth_field_is_standard_and_has_its_length(shape):
    field = smooth_field(shape, 0.5, 1.5, np.random.default_rng(0))
    assert field.shape == shape and field.dtype == np.float32
    # linear interpolation between nodes 0.47 ℓ apart takes at most 5 % of the variance an axis
    assert 0.85 < field.std() < 1.1
    lag = (field[3:] * field[:-3]).mean() / field.var()
    assert lag == pytest.approx(np.exp(-0.5), abs=0.08)
    fine = smooth_field(tuple(3 * n for n in shape), 0.5 / 3, 1.5, np.random.default_rng(0))
    np.testing.assert_allclose(fine[(slice(1, None, 3),) * len(shape)], field, atol=1e-4)


def test_a_field_finer_than_the_voxels_costs_no_more_and_is_noise_to_them():
    field = smooth_field((200, 160), 1.0, 1e-3, np.random.default_rng(0))
    assert field.std() == pytest.approx(1, abs=0.05)
    # drawn with a length of 1.06 voxels: exp(−2²/2·1.06²) = 0.17 at two voxels, next to nothing at three
    assert abs((field[3:] * field[:-3]).mean()) < 0.08


def test_the_tile_is_fixed_and_standard():
    tile = noise_tile()
    assert tile.mean() == pytest.approx(0, abs=1e-4) and tile.std() == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="read-only"):
        tile[0] = 0


def test_rank_threshold_counts():
    values = np.random.default_rng(0).normal(size=1000)
    assert (values <= rank_threshold(values.copy(), 123)).sum() == 123
    assert rank_threshold(values, 0) == -np.inf


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_seed_gives_the_same_bytes(shape):
    recipe = Particles(mean_radius_um=3, periodic=False, **ROUGH)
    (first, facts), (again, facts_again), (other, _) = (build(recipe, shape, seed) for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() and json.dumps(facts) == json.dumps(facts_again)
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    "arguments",
    [
        {"fraction": 0.95},
        {"aspect": 0.5},
        {"form": "cube"},
        {"order": 1.1},
        {"axis": 3},
        {"periodic": 1},
        {"gradient": 0.5},
        {"lumpiness": 0.5},
        {"radius_histogram": {"edges_um": [1, 2], "counts": [1, 2]}},
        {"radius_histogram": {"edges_um": [2, 1], "counts": [1]}},
        {"radius_histogram": {"edges_um": [1, 2], "counts": [0]}},
    ],
)
def test_bad_recipes(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}=") as caught:
        Particles(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"mean_radius_um": 0.4}, "below one voxel"),
        ({"mean_radius_um": 9}, "quarter of its shortest edge"),
        ({"mean_radius_um": 4, "axis": 2}, "axis=2"),
        ({"mean_radius_um": 8, "fraction": 0.1}, "less than one particle"),
        ({"radius_histogram": {"edges_um": [0.1, 2], "counts": [1]}}, "radius_histogram"),
    ],
)
def test_what_cannot_be_built_is_refused_before_the_work(arguments, names):
    with pytest.raises(ValueError, match=names):
        Particles(**arguments).check((64, 64), 0.5)


def test_a_fraction_out_of_reach_says_what_can_be_reached():
    with pytest.raises(ValueError, match=r"fraction=0\.900 cannot be reached.*reachable: 0\.\d"):
        build(Particles(fraction=0.9, mean_radius_um=2, gap_um=2.0), (64, 64))
