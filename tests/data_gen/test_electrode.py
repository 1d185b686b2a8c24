"""The cathode: exact fractions, inside what real labels measure, and defects where they were put."""

import json

import numpy as np
import pytest

from data_gen.microstructure.electrode import ACTIVE, CBD, PORE, NmcCathode, draw_defects
from data_gen.microstructure.particle_list import ParticleList

SHAPES = [(256, 256), (300, 260), (72, 64, 80)]
SMALL = {"mean_radius_um": 0.8, "fines_radius_um": 0.4}


def build(recipe, shape, seed=0, voxel=0.05):
    rng = np.random.default_rng(seed)
    drawn = recipe.draw(rng)
    return (*recipe.build(shape, voxel, drawn, rng), drawn)


def mean_chord(mask):
    """Mean run length of a mask along its axes, in voxels: voxels over the number of runs."""
    runs = 0
    for axis in range(mask.ndim):
        first = np.take(mask, [0], axis)
        runs += first.sum() + (np.diff(mask.astype(np.int8), axis=axis) == 1).sum()
    return mask.ndim * mask.sum() / runs


def contact_shares(labels):
    """Shares of the voxel faces active–CBD, active–pore and CBD–pore."""
    counts = np.zeros((3, 3))
    for axis in range(labels.ndim):
        a = np.moveaxis(labels, axis, 0)
        np.add.at(counts, (a[:-1].ravel(), a[1:].ravel()), 1)
    counts += counts.T
    faces = np.array([counts[ACTIVE, CBD], counts[ACTIVE, PORE], counts[CBD, PORE]])
    return faces / faces.sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_fractions_are_exact_and_the_list_is_the_active_material(shape):
    recipe = NmcCathode(**SMALL, void_share=0, crack_share=0, broken_share=0)
    recipe.check(shape, 0.05)
    labels, facts, drawn = build(recipe, shape)
    assert labels.shape == shape and labels.dtype == np.uint8
    asked = [drawn[k] for k in ("pore_fraction", "active_fraction", "cbd_fraction")]
    assert facts["fractions_reached"] == pytest.approx(asked, abs=1e-3)
    assert [(labels == k).mean() for k in range(3)] == facts["fractions_reached"]
    ids = ParticleList.from_json(json.loads(json.dumps(facts["particles"]))).ids(0.05)
    assert ((ids > 0) != (labels == ACTIVE)).mean() < 1e-3


def test_the_defaults_lie_within_the_real_labels():
    """Medians of twelve samples against the ranges of 24 labels of Su et al. (2022), in voxels of 0.05 µm."""
    samples = [build(NmcCathode(), (320, 320), seed)[0] for seed in range(12)]
    fractions = np.median([[(s == k).mean() for k in range(3)] for s in samples], axis=0)
    assert 0.025 < fractions[PORE] < 0.39 and 0.49 < fractions[ACTIVE] < 0.91 and 0.035 < fractions[CBD] < 0.315
    pore, active, cbd = (np.median([mean_chord(s == k) for s in samples]) for k in range(3))
    assert 19 < active < 88 and 4 < cbd < 10 and 4 < pore < 10
    # measured medians 0.35, 0.21, 0.42; a third of the spread that the labels have among themselves
    shares = np.median([contact_shares(s) for s in samples], axis=0)
    np.testing.assert_allclose(shares, [0.35, 0.21, 0.42], atol=0.12)


@pytest.mark.parametrize(("active", "cbd", "pore"), [(0.91, 0.035, 0.055), (0.49, 0.315, 0.195), (0.585, 0.025, 0.39)])
def test_the_edges_of_the_measured_fractions(active, cbd, pore):
    recipe = NmcCathode(active_fraction=active, cbd_fraction=cbd, pore_fraction=pore, mean_radius_um=1.5)
    labels, _, _ = build(recipe, (256, 256), 4)
    assert [(labels == k).mean() for k in range(3)] == pytest.approx([pore, active, cbd], abs=1e-3)


@pytest.mark.parametrize("kind", [{"void_share": 1.0}, {"crack_share": 1.0}, {"broken_share": 1.0}])
def test_defects_are_pores_inside_particles(kind):
    none = {"void_share": 0, "crack_share": 0, "broken_share": 0}
    fractions = {"active_fraction": 0.6, "cbd_fraction": 0.1, "pore_fraction": 0.3}
    recipe = NmcCathode(**fractions, **SMALL, **none | kind, gap_um=0, neck_share=1)
    labels, facts, _ = build(recipe, (256, 256))
    inside = ParticleList.from_json(facts["particles"]).ids(0.05) > 0
    missing = inside & (labels != ACTIVE)
    assert missing.mean() > 0.003
    assert (labels[missing] == PORE).mean() > 0.99
    assert facts["n_with_void"] + facts["n_cracked"] > 0


def test_shares_of_defects_are_those_asked():
    p = {"mean_radius_um": 1.0, "void_share": 0.5, "crack_share": 0.2, "broken_share": 0.1, "crack_width_um": 0.1}
    radii = np.full(20_000, 1.0)
    defects = draw_defects(radii, 3, (0.1, 0.2), p, np.random.default_rng(0))
    tolerance = 4 * 0.5 / np.sqrt(len(radii))
    assert (defects.voids > 0).mean() == pytest.approx(0.5, abs=tolerance)
    assert (defects.widths_um[:, 0] > 0).mean() == pytest.approx(0.3, abs=tolerance)
    through = (defects.widths_um[:, 0] > 0) & (defects.tapers[:, 0] == 0)
    assert through.mean() == pytest.approx(0.1, abs=tolerance)
    np.testing.assert_allclose((defects.planes[..., :3] * defects.sides).sum(-1), 0, atol=1e-9)
    assert draw_defects(0.5 * radii, 3, (0.1, 0.2), p, np.random.default_rng(0)).voids.max() == 0  # fines have none


def test_films_and_bridges_draw_the_binder_to_the_surfaces():
    fixed = {"active_fraction": 0.5, "cbd_fraction": 0.2, "pore_fraction": 0.3, **SMALL, "texture": 0.3}

    def active_cbd(film):
        return contact_shares(build(NmcCathode(**fixed, film=film, bridge=0), (256, 256), 2)[0])[0]

    assert active_cbd(3.0) > 2 * active_cbd(-3.0)


def test_the_texture_is_stretched_in_the_plane():
    fixed = {"active_fraction": 0.5, "cbd_fraction": 0.25, "pore_fraction": 0.25, **SMALL, "nanopore": 0, "film": 0}
    labels, _, _ = build(NmcCathode(**fixed, bridge=0, texture_stretch=4), (256, 256))
    faces = [((np.diff(labels.astype(int), axis=a) != 0)[:255, :255]).sum() for a in (0, 1)]
    assert faces[0] < 0.8 * faces[1]  # fewer changes along x than across the thickness, y


def test_the_gradient_is_the_one_asked():
    recipe = NmcCathode(active_fraction=0.5, cbd_fraction=0.1, pore_fraction=0.4, gradient=0.8)
    samples = [build(recipe, (400, 400), seed, 0.1)[0] == ACTIVE for seed in range(8)]
    near, far = np.mean([s.reshape(400, 2, 200).mean((0, 2)) for s in samples], 0)
    # a line through 1 ∓ 0.4 at the ends is 1 ∓ 0.2 in the middle of the halves; between samples of some hundred
    # particles it scatters by 0.14
    assert (far - near) / 0.5 == pytest.approx(0.4, abs=3 * 0.14 / 8**0.5)
    assert np.mean(samples) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(("shape", "voxel"), [((128, 128), 0.05), ((36, 40, 32), 0.1)])
def test_the_same_seed_at_another_voxel_size_is_the_same_cathode(shape, voxel):
    recipe = NmcCathode(**SMALL, texture_um=0.2, nanopore=0)
    coarse = build(recipe, shape, 2, voxel)[0]
    fine = build(recipe, tuple(2 * n for n in shape), 2, voxel / 2)[0]
    same = (coarse == fine[tuple(slice(None, None, 2) for _ in shape)]).mean()
    other = (coarse == build(recipe, shape, 3, voxel)[0]).mean()
    # voxel centres of the two lie half a fine voxel apart along each axis, and CBD and pores are a few voxels wide
    assert same > 0.85 > 0.7 > other


@pytest.mark.parametrize("shape", [(128, 140), (40, 48, 44)])
def test_the_same_seed_gives_the_same_bytes(shape):
    recipe = NmcCathode(mean_radius_um=0.5, fines_radius_um=0.25)
    (first, facts, _), (again, facts_again, _), (other, _, _) = (build(recipe, shape, seed) for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() and json.dumps(facts) == json.dumps(facts_again)
    assert first.tobytes() != other.tobytes()


def test_drawn_fractions_keep_to_their_ranges():
    drawn = [NmcCathode().draw(np.random.default_rng(k)) for k in range(200)]
    for name, low, high in (("active", 0.49, 0.91), ("cbd", 0.035, 0.315), ("pore", 0.025, 0.39)):
        values = [d[f"{name}_fraction"] for d in drawn]
        assert low - 1e-9 <= min(values) and max(values) <= high + 1e-9
    assert all(sum(d[f"{k}_fraction"] for k in ("active", "cbd", "pore")) == pytest.approx(1) for d in drawn)


@pytest.mark.parametrize(
    "arguments",
    [
        {"active_fraction": 0.99},
        {"active_fraction": 0.95},  # no room for 0.035 and 0.025
        {"cbd_fraction": -0.1},
        {"mean_radius_um": 0},
        {"void_size": 0.5},
        {"texture": 0},
        {"texture_stretch": 0.5},
        {"neck_share": [0.5, 0.4]},
    ],
)
def test_bad_recipes(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}=") as caught:
        NmcCathode(**arguments)
    assert "\n" not in str(caught.value)


def test_a_gradient_too_steep_is_refused():
    with pytest.raises(
        ValueError, match=r"gradient=0\.8 takes active_fraction=.* above 0\.95 at one end; take at most"
    ):
        NmcCathode(active_fraction=0.8, pore_fraction=0.1, cbd_fraction=0.1, gradient=0.8)


def test_what_does_not_fit_is_refused_before_the_work():
    with pytest.raises(ValueError, match=r"mean_radius_um.*quarter"):
        NmcCathode().check((128, 128), 0.05)
    with pytest.raises(ValueError, match=r"fines_radius_um.*below one voxel"):
        NmcCathode().check((256, 256), 0.8)


def test_a_fraction_out_of_reach_says_what_can_be_reached():
    fractions = {"active_fraction": 0.95, "cbd_fraction": 0.02, "pore_fraction": 0.03}
    with pytest.raises(ValueError, match=r"active_fraction=0\.950 cannot be reached.*reachable: 0\.\d"):
        build(NmcCathode(**fractions, **SMALL, broken_share=1.0, crack_width_um=1.0), (128, 128))
