"""The graphite anode: exact fractions, flakes that lie as asked, and a third phase that is where it belongs."""

import json

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from data_gen.microstructure.graphite import GRAPHITE, PORE, THIRD, GraphiteAnode
from data_gen.microstructure.particle_list import ParticleList

SHAPES = [(160, 160), (200, 128), (48, 40, 56)]
SMALL = {"mean_radius_um": 3.0, "gap_um": 0.4, "silicon_radius_um": 0.8}


def build(recipe, shape, seed=0, voxel=0.4):
    rng = np.random.default_rng(seed)
    drawn = recipe.draw(rng)
    return (*recipe.build(shape, voxel, drawn, rng), drawn)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("third", ["none", "silicon", "binder"])
def test_fractions_are_exact(shape, third):
    recipe = GraphiteAnode(third=third, **SMALL)
    recipe.check(shape, 0.4)
    labels, facts, drawn = build(recipe, shape)
    assert labels.shape == shape and labels.dtype == np.uint8 and labels.max() == recipe.n_classes - 1
    asked = [drawn["graphite_fraction"]] + [drawn["third_fraction"]] * (third != "none")
    assert facts["fractions_reached"][1:] == pytest.approx(asked, abs=1e-3)
    pack = ParticleList.from_json(json.loads(json.dumps(facts["particles"])))
    solids = np.append(0, pack.kinds)[pack.ids(0.4)]
    if third == "binder":
        solids = np.where(labels == THIRD, THIRD, solids)
    assert (solids != labels).mean() < 1e-3


@pytest.mark.parametrize(("fraction", "shape"), [(0.2, (160, 160)), (0.75, (160, 160)), (0.75, (48, 48, 48))])
def test_the_edges_of_the_fraction(fraction, shape):
    labels, _, _ = build(GraphiteAnode(graphite_fraction=fraction, **SMALL), shape, 1)
    assert (labels == GRAPHITE).mean() == pytest.approx(fraction, abs=1e-3)


def faces(labels, axis):
    return (np.diff((labels == GRAPHITE).astype(int), axis=axis) != 0).mean()


@pytest.mark.parametrize("shape", [(200, 200), (64, 64, 64)])
def test_aligned_flakes_have_more_surface_across_the_thickness(shape):
    fixed = {**SMALL, "mean_radius_um": 2.5, "aspect": 4, "gap_um": 0, "neck_share": 1}
    flat, _, _ = build(GraphiteAnode(graphite_fraction=0.5, order=1.0, **fixed), shape)
    any_way, _, _ = build(GraphiteAnode(graphite_fraction=0.5, order=0.0, **fixed), shape)
    # an ellipse or oblate ellipsoid projects along its short axis four times the area that it shows from the side
    assert faces(flat, -1) > 2 * faces(flat, 0)
    assert faces(any_way, -1) == pytest.approx(faces(any_way, 0), rel=0.3)


def test_binder_sits_nearer_to_graphite_than_pores_do():
    labels, _, _ = build(
        GraphiteAnode(third="binder", graphite_fraction=0.55, third_fraction=0.08, **SMALL), (200, 200)
    )
    away = distance_transform_edt(labels != GRAPHITE)
    assert away[labels == THIRD].mean() < away[labels == PORE].mean()


def test_the_gradient_is_the_one_asked():
    recipe = GraphiteAnode(graphite_fraction=0.5, third="silicon", third_fraction=0.08, gradient=0.8)
    samples = [build(recipe, (240, 240), seed)[0] > 0 for seed in range(6)]
    near, far = np.mean([s.reshape(240, 2, 120).mean((0, 2)) for s in samples], 0)
    # 1 ∓ 0.2 in the middle of the halves, less what flakes flatten at the dense end; it scatters by 0.15
    assert (far - near) / 0.58 == pytest.approx(0.37, abs=3 * 0.15 / 6**0.5)


@pytest.mark.parametrize("shape", [(96, 128), (40, 40, 48)])
def test_the_same_seed_gives_the_same_bytes(shape):
    recipe = GraphiteAnode(third="silicon", **SMALL)
    (first, facts, _), (again, facts_again, _), (other, _, _) = (build(recipe, shape, seed) for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() and json.dumps(facts) == json.dumps(facts_again)
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    "arguments",
    [
        {"graphite_fraction": 0.9},
        {"graphite_fraction": 0.8, "third": "silicon", "third_fraction": 0.2},
        {"third": "tin"},
        {"third_fraction": 0},
        {"aspect": 9},
        {"order": -0.1},
        {"gap_um": -1},
    ],
)
def test_bad_recipes(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}=") as caught:
        GraphiteAnode(**arguments)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused_before_the_work():
    with pytest.raises(ValueError, match=r"mean_radius_um.*quarter"):
        GraphiteAnode().check((32, 32), 0.4)
    with pytest.raises(ValueError, match=r"silicon_radius_um.*below one voxel"):
        GraphiteAnode(third="silicon").check((64, 64), 1.0)


def test_a_fraction_out_of_reach_says_what_can_be_reached():
    with pytest.raises(ValueError, match=r"graphite_fraction=0\.850 cannot be reached.*reachable: 0\.\d"):
        build(GraphiteAnode(graphite_fraction=0.85, mean_radius_um=2.0, gap_um=3.0, neck_share=0), (128, 128))
