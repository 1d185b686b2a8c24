"""Sofc and Porous: fractions by rank, chords by Rice's formula, the same structure at any voxel size."""

import json

import numpy as np
import pytest
from scipy import ndimage

from data_gen.microstructure.phase_fields import (
    coarsen,
    correlation_lengths,
    gaussian_field,
    grid,
    mean_chords,
    percolating_share,
    rank_offsets,
    sample_field,
    theoretical_offsets,
    voxelise,
)
from data_gen.microstructure.sofc import Porous, Sofc

PLAIN = {"heterogeneity": 0.0, "coarsening": 0.0, "coarse_share": 0.0}


def build(recipe, shape, voxel_size_um, seed=0):
    rng = np.random.default_rng(seed)
    recipe.check(shape, voxel_size_um)
    return recipe.build(shape, voxel_size_um, recipe.draw(rng), rng)


@pytest.mark.parametrize("shape", [(200, 150), (60, 60, 60), (50, 64, 46)])
@pytest.mark.parametrize("recipe", [Sofc(), Sofc(0.05, 0.5, 0.4, 0.4, 0.4, coarse_share=0), Porous(), Porous(0.02)])
def test_fractions_are_met_and_facts_are_json(recipe, shape):
    labels, facts = build(recipe, shape, 0.1)
    drawn = recipe.draw(np.random.default_rng(0))
    solid = 1 - drawn["porosity"]
    share = drawn.get("nickel_share", 1.0)
    asked = [drawn["porosity"], solid * share, solid * (1 - share)][: recipe.n_classes]
    assert labels.shape == shape and labels.dtype == np.uint8
    reached = np.bincount(labels.ravel(), minlength=recipe.n_classes) / labels.size
    np.testing.assert_allclose(reached, asked, atol=1e-3)
    np.testing.assert_allclose(facts["fraction"], reached, atol=1e-6)
    json.dumps(facts)


def test_equal_phases_have_equal_offsets_and_offsets_give_the_fractions_back():
    np.testing.assert_allclose(theoretical_offsets(np.full(3, 1 / 3)), 0, atol=1e-6)
    b = theoretical_offsets(np.array([0.5, 0.3, 0.2]))
    won = np.argmax(np.random.default_rng(0).standard_normal((400_000, 3)) + b, axis=1)
    np.testing.assert_allclose(np.bincount(won) / 4e5, [0.5, 0.3, 0.2], atol=5 * np.sqrt(0.25 / 4e5))


def test_a_two_phase_field_has_the_chord_of_rice():
    # Rice: a Gaussian field of curvature 1/l² crosses its median 1/(π l) times per length; mean chord of a half π l
    length = correlation_lengths(np.array([0.5, 0.5]), np.array([10.0, 10.0]))
    np.testing.assert_allclose(length, 10 / np.pi, rtol=1e-6)


@pytest.mark.parametrize("heterogeneity", [0.0, 0.5, 1.0])
def test_a_field_has_unit_variance_and_the_curvature_of_its_length(heterogeneity):
    structure = []
    for seed in range(16):
        field = gaussian_field((512, 512), (0.5, 0.5), 2.0, heterogeneity, np.random.default_rng(seed))
        assert float(field.mean()) == pytest.approx(0, abs=1e-4) and float(field.std()) == pytest.approx(1, abs=1e-4)
        structure.append(((field[1:] - field[:-1]) ** 2).mean())
    # E[(f(x + d) − f(x))²] = 2(1 − C(d)). The variance of one field is over 256²/(π·2²) patches, 2 % or, with long
    # tails, up to 5 %: four standard errors of 16 of them
    h = max(heterogeneity, 1e-6)
    expected = 2 * (1 - (1 + h * (0.5 / 2) ** 2 / 2) ** (-1 / h))
    assert np.mean(structure) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((1.0, 1.0, 1.0), (900, 900)), ((1.1, 0.9, 1.0), (900, 900)), ((1.0, 1.1, 0.95), (110, 110, 110))],
)
def test_mean_chords_are_those_asked(sizes, shape):
    recipe = Sofc(
        porosity=0.36,
        nickel_share=0.5,
        **dict(zip(("pore_size_um", "nickel_size_um", "ysz_size_um"), sizes, strict=True)),
        **PLAIN,
    )
    chords = [np.mean(build(recipe, shape, 0.1, seed)[1]["mean_chord_um"], axis=1) for seed in range(3)]
    # voxels of a tenth of a chord miss the shortest ones, 1–3 %; a box of ten chords spreads by 3 %: three seeds
    np.testing.assert_allclose(np.mean(chords, axis=0), sizes, rtol=0.08)


def test_sizes_that_no_three_phases_can_have_are_refused():
    with pytest.raises(ValueError, match="more surface than the other two"):
        Sofc(pore_size_um=0.1, nickel_size_um=1, ysz_size_um=1)
    with pytest.raises(ValueError, match="more surface than the other two"):
        Sofc(pore_size_um=[0.1, 1], nickel_size_um=1, ysz_size_um=1)


@pytest.mark.parametrize("shape", [(96, 128), (24, 32, 40)])
def test_the_same_seed_at_another_voxel_size_is_the_same_structure(shape):
    recipe = Sofc(anisotropy=1.3, axis=0, coarse_size_um=1.2)
    coarse, facts = build(recipe, shape, 0.15, seed=4)
    fine, fine_facts = build(recipe, tuple(3 * n for n in shape), 0.05, seed=4)
    middle = fine[(slice(1, None, 3),) * len(shape)]
    # voxel centres coincide; only walls within the small change of the offsets may differ
    assert (coarse == middle).mean() > 0.98
    assert facts["percolating_share"] == fine_facts["percolating_share"]


def test_anisotropy_stretches_along_its_axis_only():
    recipe = Sofc(
        porosity=0.35,
        nickel_share=0.5,
        pore_size_um=0.6,
        nickel_size_um=0.6,
        ysz_size_um=0.6,
        anisotropy=2.0,
        axis=1,
        **PLAIN,
    )
    _, facts = build(recipe, (600, 600), 0.1)
    for across, along in facts["mean_chord_um"]:
        assert along / across == pytest.approx(2.0, rel=0.1)  # voxels of a sixth of a chord hide short ones across


@pytest.mark.parametrize("kind", [Sofc, Porous])
@pytest.mark.parametrize("coarsening", [0.0, 0.4])
def test_the_gradient_is_the_one_asked(kind, coarsening):
    recipe = kind(porosity=0.35, gradient=0.8, axis=0, coarsening=coarsening, heterogeneity=0.0)
    profiles = [(build(recipe, (400, 400), 0.065, seed)[0] == 0).mean(1) for seed in range(6)]
    slope, mean = np.polyfit((np.arange(400) + 0.5) / 400 - 0.5, np.mean(profiles, 0) / 0.35, 1)
    # between samples of some hundreds of pores it scatters by 0.15; coarsening adds a tenth of doubt
    assert slope == pytest.approx(0.8, abs=3 * 0.15 / 6**0.5 + (0.08 if coarsening else 0))
    assert mean == pytest.approx(1, abs=3e-3)


def test_a_gradient_too_steep_is_refused():
    with pytest.raises(
        ValueError, match=r"gradient=1\.0 takes porosity=.* above 0\.95 at one end; take at most 0\.375"
    ):
        Porous(porosity=[0.5, 0.8], gradient=1.0)


def test_three_phases_percolate_in_3d():
    _, facts = build(Sofc(porosity=0.35, nickel_share=0.5, **PLAIN), (80, 80, 80), 0.1)
    assert np.min(facts["percolating_share"]) > 0.9


def test_few_pores_are_closed_and_a_dense_body_is_solid():
    _, facts = build(Porous(porosity=0.02, pore_size_um=0.5), (80, 80, 80), 0.1)
    assert facts["percolating_share"][0] == [0.0, 0.0, 0.0] and min(facts["percolating_share"][1]) > 0.999
    labels, _ = build(Porous(porosity=0), (20, 20), 0.1)
    assert (labels == 1).all()


def test_coarsening_removes_the_share_of_the_walls_and_keeps_the_fractions():
    fractions = np.array([0.4, 0.35, 0.25])
    rng = np.random.default_rng(0)
    fields = [gaussian_field((256, 256), (1, 1), 3.0, 0.0, rng) for _ in range(3)]
    before = voxelise(fields, (256, 256), fractions)
    after_fields, removed = coarsen(fields, fractions, 0.4)
    after = voxelise(after_fields, (256, 256), fractions)
    assert removed == pytest.approx(0.4, abs=0.03)
    np.testing.assert_allclose(np.bincount(after.ravel()) / after.size, fractions, atol=1e-3)
    grown = [np.mean(mean_chords(after, k, 1.0)) / np.mean(mean_chords(before, k, 1.0)) for k in range(3)]
    assert min(grown) > 1.3
    n_before, n_after = (sum(ndimage.label(x == k)[1] for k in range(3)) for x in (before, after))
    assert n_after < n_before / 1.5  # the small grains are the first to go


def test_a_disc_stays_a_disc_under_coarsening():
    x, y = np.mgrid[:96, :96]
    inside = (20 - np.hypot(x - 48, y - 48)).astype(np.float32)
    fraction = (inside > 0).mean()
    fields, _ = coarsen([inside, np.zeros_like(inside)], np.array([fraction, 1 - fraction]), 0.1)  # gives up
    disc = voxelise(fields, (96, 96), np.array([fraction, 1 - fraction])) == 0
    # volume is kept, so a single disc is at rest, and a hundred steps make no polygon of it. Its voxels' centres are
    # half a voxel from the nodes; the rim is one voxel wide
    edge = disc & ~ndimage.binary_erosion(disc)
    radii = np.hypot(*(np.argwhere(edge) + 0.5 - 48).T)
    assert np.abs(radii - 20).max() < 1.5


def test_rank_offsets_meet_any_fractions():
    rng = np.random.default_rng(0)
    fields = [rng.standard_normal((50, 60)).astype(np.float32) for _ in range(3)]
    fractions = np.array([0.7, 0.05, 0.25])
    b = rank_offsets(fields, fractions, np.zeros(3))
    won = np.argmax([f + o for f, o in zip(fields, b, strict=True)], axis=0)
    np.testing.assert_allclose(np.bincount(won.ravel()) / 3000, fractions, atol=1e-3)


def test_interpolation_reproduces_a_smooth_wave():
    x = np.arange(24) / 24
    wave = np.cos(2 * np.pi * x).astype(np.float32)[:, None] * np.ones((1, 10), np.float32)
    at = (np.arange(100) + 0.5) / 100
    # Keys' cubic convolution is of third order: error below (2π/24)³ / 6
    np.testing.assert_allclose(
        sample_field(wave, (100, 7))[:, 3], np.cos(2 * np.pi * at), atol=(2 * np.pi / 24) ** 3 / 6
    )


def test_chords_and_percolation_of_stripes():
    stripes = np.zeros((40, 30), np.uint8)
    stripes[np.arange(40) % 10 < 4] = 1
    assert mean_chords(stripes, 1, 0.5)[1] is None
    # 7 walls among 39 steps, fraction 0.4
    assert mean_chords(stripes, 1, 0.5)[0] == pytest.approx(2 * 0.4 / (7 / 39) * 0.5, abs=1e-4)
    assert percolating_share(stripes, 1) == [0.0, 1.0]
    assert percolating_share(stripes, 2) == [None, None]


def test_the_grid_follows_the_box_and_not_the_voxels():
    # spacing 0.1 is no binary number: the number of nodes would fall on either side of 30
    (a, da), (b, db) = (grid((n * v, n * v), 0.3, per_length=3) for n, v in ((30, 0.1), (90, 0.1 / 3)))
    assert a == b == (30, 30) and da == pytest.approx(db) and da == pytest.approx((0.1, 0.1))


@pytest.mark.parametrize("recipe", [Sofc(), Porous()])
@pytest.mark.parametrize("shape", [(96, 96), (24, 26, 24)])
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(recipe, shape):
    (first, facts), (again, facts_again), (other, _) = (build(recipe, shape, 0.2, seed) for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() and facts == facts_again
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Sofc, {"porosity": 0.01}),
        (Sofc, {"nickel_share": 1}),
        (Sofc, {"pore_size_um": 0}),
        (Sofc, {"ysz_size_um": [1, 0.5]}),
        (Sofc, {"coarsening": 0.7}),
        (Sofc, {"heterogeneity": -1}),
        (Sofc, {"coarse_share": 0.6}),
        (Sofc, {"coarse_size_um": None}),
        (Sofc, {"anisotropy": 0.1}),
        (Sofc, {"gradient": 2}),
        (Sofc, {"axis": 3}),
        (Sofc, {"axis": 1.0}),
        (Porous, {"porosity": 0.96}),
        (Porous, {"pore_size_um": float("nan")}),
    ],
)
def test_bad_recipes(kind, arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}=") as caught:
        kind(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "shape", "voxel", "names"),
    [
        (Sofc(), (256, 256), 0.3, "below two voxels"),
        (Sofc(), (64, 20), 0.1, "quarter of its shortest edge"),
        (Sofc(), (512, 512, 512), 0.15, "too fine"),
        (Sofc(axis=2), (256, 256), 0.1, "axis=2"),
        (Sofc(coarse_size_um=8), (128, 128), 0.1, "coarse_size_um"),
        (Porous(), (256, 10), 0.1, "pore_size_um"),
    ],
)
def test_what_cannot_be_built_is_refused_before_the_work(recipe, shape, voxel, names):
    with pytest.raises(ValueError, match=names):
        recipe.check(shape, voxel)
