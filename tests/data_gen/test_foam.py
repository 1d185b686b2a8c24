"""Foams: cells are Laguerre cells, closed ones are closed, borders are arcs, and the porosity is met."""

import json
from functools import cache

import numpy as np
import pytest
from scipy import ndimage as ndi

from data_gen.microstructure.foam import LEAK_VOXELS, Foam, laguerre_cells, thickness_order

NO_STRETCH = np.ones(3)


def cells_of(centres, radii, box, broken=0.0, stretch=NO_STRETCH, seed=0):
    centres, radii, box = (np.array(v, float) for v in (centres, radii, box))
    return laguerre_cells(centres, radii, box, broken, np.array(stretch, float), np.random.default_rng(seed))


def order_of(cells, shape, voxel=1.0, wall=2.0, strut=2.4, concavity=1.0, diameter=20.0):
    return thickness_order(cells, shape, voxel, np.zeros(3), wall, strut, concavity, diameter)[0]


def random_packing(n=12, edge=30.0, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)[:n] * edge / 3
    return (centres + rng.uniform(-1.5, 1.5, (n, 3))) % edge, rng.uniform(2.0, 3.4, n), np.full(3, edge)


@cache
def built(seed=1, shape=(64, 60, 56), voxel=4.0, **recipe):
    recipe = Foam(**{"cell_diameter_um": 120.0, "wall_um": 10.0, "strut_um": 16.0, "porosity": 0.7} | recipe)
    rng = np.random.default_rng(seed)
    parameters = recipe.draw(rng)
    return *recipe.build(shape, voxel, parameters, rng), parameters


def pores(labels):
    """Sizes of the pores, joined across faces, edges and corners."""
    named, _ = ndi.label(labels == 0, np.ones((3,) * labels.ndim))
    return np.sort(np.bincount(named.ravel())[1:])[::-1]


@pytest.mark.parametrize("stretch", [(1, 1, 1), (0.8, 1.25, 1)])
def test_the_nearest_face_is_that_of_the_power_diagram(stretch):
    """Against all pairs of seeds and images: |x − c|² − r² says whose cell it is and how far the face is."""
    centres, radii, box = random_packing(27)
    stretch = np.array(stretch, float)
    cells = cells_of(centres, radii, box, stretch=stretch)
    shape, voxel = (15, 14, 13), 2.0
    order = order_of(cells, shape, voxel, wall=2.0, strut=1e9)  # struts would need no scaling: walls only below
    shifts = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    seeds, weights = (centres + shifts * box).reshape(-1, 3), np.tile(radii**2, 27)
    x = (np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3) + 0.5) * voxel
    power = ((x[:, None] / stretch - seeds) ** 2).sum(-1) - weights
    own = power.argmin(1)
    slope = np.linalg.norm((seeds[own][:, None] - seeds) / stretch, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        distance = (power - power.min(1, keepdims=True)) / (2 * slope)
    distance[np.arange(len(x)), own] = np.inf
    assert (order.ravel() <= distance.min(1) + 1e-4).all()
    walls = order_of(cells, shape, voxel, wall=2.0, strut=1e-9).ravel()
    np.testing.assert_allclose(walls, distance.min(1), atol=3e-4)  # a voxel within 1e-5 diameters of a face is on it


def test_cubic_cells_with_walls_alone():
    """Seeds on a cubic lattice of pitch a make cubes; walls of thickness t leave (1 − t/a)³."""
    pitch, n, voxel = 20.0, 3, 0.5
    grid = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1).reshape(-1, 3)
    jitter = np.random.default_rng(0).uniform(-1e-6, 1e-6, (n**3, 3))  # no five cells meet in a point
    cells = cells_of((grid + 0.5) * pitch + jitter, np.full(n**3, 8.0), [pitch * n] * 3)
    order = order_of(cells, (120, 120, 120), voxel, wall=2.0, strut=1e-9)
    for wall in (2.0, 3.0, 5.0):  # multiples of two voxels, or half way between: exact
        pore = (order > wall / 2.0).mean()
        assert pore == pytest.approx((1 - wall / pitch) ** 3, abs=1e-3)


def hexagons(pitch):
    """Columns of hexagonal cells along z, in a box of two columns."""
    height = 80.0
    return [[0, 0, 0], [pitch / 2, pitch * 3**0.5 / 2, 0]], [1.0, 1.0], [pitch, pitch * 3**0.5, height]


@pytest.mark.parametrize("strut", [1.5, 3.0])
def test_a_plateau_border_has_the_area_and_the_inscribed_circle_of_three_arcs(strut):
    """Edges at 120°: arcs of radius R enclose (√3 − π/2) R² and a circle of diameter 2 (2/√3 − 1) R."""
    pitch, voxel = 30.0, 0.05
    centres, radii, box = hexagons(pitch)
    shape = (round(pitch / voxel), round(pitch * 3**0.5 / voxel))
    order = order_of(cells_of(centres, radii, box), shape, voxel, wall=1e-9, strut=strut, diameter=1e-3)
    radius = strut / (2 * (2 / 3**0.5 - 1))
    box_area = pitch**2 * 3**0.5
    area = 4 * (3**0.5 - np.pi / 2) * radius**2  # two cells, two edges each
    # the cusps are blunt: at most their last (π/6 and 0.1 of the height) tenth is missing
    assert 0.88 * area < (order <= 1).mean() * box_area < 1.001 * area
    depth = ndi.distance_transform_edt(np.tile(order <= 1, (2, 2))) * voxel
    assert 2 * depth.max() == pytest.approx(strut, abs=2 * voxel)


def test_round_struts_are_round():
    pitch, voxel = 30.0, 0.05
    centres, radii, box = hexagons(pitch)
    shape = (round(pitch / voxel), round(pitch * 3**0.5 / voxel))
    order = order_of(cells_of(centres, radii, box), shape, voxel, wall=1e-9, strut=4.0, concavity=0.0, diameter=1e-3)
    # a disc around each of four edges, less what the blunted faces add or take: 3 %
    assert (order <= 1).mean() * pitch**2 * 3**0.5 == pytest.approx(4 * np.pi * 2.0**2, rel=0.03)


@pytest.mark.parametrize(
    "recipe",
    [
        {"periodic": False},
        {"periodic": True, "cell_diameter_um": 70.0, "porosity": 0.55},
        {"cell_cv": 0.5, "elongation": 1.4},
        {"gradient": 0.3, "porosity": 0.55},
    ],
)
def test_closed_cells_are_closed(recipe):
    """Every pore lies in the cell of one bubble, and no two bubbles share one."""
    labels, facts, _ = built(**recipe)
    sizes = pores(labels)
    assert sizes[0] / sizes.sum() < 0.5 and (sizes > 8).sum() >= 4
    named, _ = ndi.label(labels == 0, np.ones((3, 3, 3)))
    at = np.floor(np.array(facts["centres_um"]) / 4.0).astype(int)
    at = at[((at >= 0) & (at < labels.shape)).all(1)]
    pore_of_bubble = named[tuple(at.T)]
    assert len(at) >= 3 and (pore_of_bubble > 0).all() and len(set(pore_of_bubble)) == len(at)


@pytest.mark.parametrize(
    "recipe", [{"periodic": False}, {"periodic": True, "cell_diameter_um": 70.0, "porosity": 0.55}]
)
def test_ids_name_the_cells(recipe):
    """Every pore of a closed foam lies in one cell; neighbouring cells meet inside walls."""
    labels, facts, parameters = built(**recipe)
    ids = Foam(**recipe).ids(labels.shape, 4.0, parameters, json.loads(json.dumps(facts)))
    assert ids.shape == labels.shape and set(np.unique(ids)) == set(range(facts["n_cells"]))
    for axis in range(3):
        near, far = (np.moveaxis(a, axis, 0) for a in (ids, labels))
        open_step = (near[1:] != near[:-1]) & (far[1:] == 0) & (far[:-1] == 0)
        assert open_step.mean() < 1e-5, "a step from pore to pore stays in a cell: walls are two voxels thick or more"
    at = np.floor(np.array(facts["centres_um"]) / 4.0).astype(int)
    inside = ((at >= 0) & (at < labels.shape)).all(1)
    assert np.array_equal(ids[tuple(at[inside].T)], np.flatnonzero(inside)), "a bubble lies in its own cell"


def test_open_cells_are_one_pore_in_one_skeleton():
    labels, facts, _ = built(broken_windows=1.0, porosity=0.9, shape=(80, 80, 80), voxel=3.0)
    sizes = pores(labels)
    assert facts["broken_windows"] == 1 and sizes[0] / sizes.sum() > 0.999
    struts, _ = ndi.label(labels, np.ones((3, 3, 3)))
    assert np.bincount(struts.ravel())[1:].max() / labels.sum() > 0.98  # bits are cut off at the faces of the box


def test_broken_windows_connect_cells_step_by_step():
    largest = [pores(built(broken_windows=share)[0])[0] for share in (0.0, 0.1, 0.4, 1.0)]
    assert largest == sorted(largest) and largest[-1] > 3 * largest[0]
    assert built(broken_windows=0.4)[1]["broken_windows"] == pytest.approx(0.4, abs=1 / built()[1]["n_windows"])


@pytest.mark.parametrize("shape", [(256, 200), (64, 60, 56)])
@pytest.mark.parametrize("porosity", [0.5, 0.82, 0.9])
def test_the_porosity_is_met_and_wall_and_strut_keep_their_ratio(shape, porosity):
    voxel = 4.0 if len(shape) == 2 else 6.0
    labels, facts, _ = built(shape=shape, voxel=voxel, porosity=porosity, cell_diameter_um=380.0, wall_um=12.0)
    assert labels.shape == shape and labels.dtype == np.uint8 and set(np.unique(labels)) == {0, 1}
    assert 1 - labels.mean() == pytest.approx(porosity, abs=1e-3) == facts["porosity"]
    assert facts["strut_um"] / facts["wall_um"] == pytest.approx(16 / 12)


def test_without_a_porosity_walls_are_as_thick_as_asked():
    labels, facts, _ = built(porosity=None, wall_um=16.0, strut_um=19.2, shape=(100, 90, 40))
    assert (facts["wall_um"], facts["strut_um"]) == (16.0, 19.2)
    # chords through a wall are t/cos of the angle, so the thinnest of many is near t; a voxel each side
    runs = np.diff(np.flatnonzero(np.diff(np.pad(labels, ((1, 1), (0, 0), (0, 0))).ravel(order="F"))))[::2]
    assert np.percentile(runs, 10) * 4.0 == pytest.approx(16.0, abs=2 * 4.0)


def test_the_same_recipe_at_another_voxel_size_is_the_same_foam():
    fine, facts, _ = built(shape=(96, 120, 72), voxel=4.0 / 3)
    coarse, coarse_facts, _ = built(shape=(32, 40, 24))
    blocks = fine.reshape(32, 3, 40, 3, 24, 3).mean((1, 3, 5)) > 0.5
    assert facts["centres_um"] == coarse_facts["centres_um"]
    assert facts["wall_um"] == pytest.approx(coarse_facts["wall_um"], rel=0.01)
    # where they differ, the surface passes within a fraction of the voxel: a few of the surface voxels
    surface = ndi.binary_dilation(coarse) & ~ndi.binary_erosion(coarse)
    assert (blocks != coarse).sum() < 0.05 * surface.sum()


def test_a_2d_shape_is_a_section_of_a_3d_foam():
    centres, radii, box = random_packing(27)
    cells = cells_of(centres, radii, box)
    flat = order_of(cells, (60, 60), 0.5)
    moved = cells_of(
        (centres + np.array([0, 0, 0.25])) % box, radii, box
    )  # a voxel's centre lies half a voxel above z = 0
    np.testing.assert_allclose(flat, order_of(moved, (60, 60, 4), 0.5)[..., 0], atol=1e-3)


def test_moving_the_packing_rolls_the_foam():
    centres, radii, box = random_packing(27)
    still = order_of(cells_of(centres, radii, box), (30, 30, 30))
    moved = order_of(cells_of((centres + np.array([7, 11, 16])) % box, radii, box), (30, 30, 30))
    np.testing.assert_allclose(moved, np.roll(still, (7, 11, 16), (0, 1, 2)), atol=1e-3)


def test_cells_are_elongated_along_the_rise_axis():
    for axis in (0, 1, 2):
        labels, _, _ = built(elongation=1.6, rise_axis=axis, shape=(70, 70, 70), voxel=6.0)
        faces = [np.count_nonzero(np.diff(labels, axis=a)) for a in range(3)]
        # chords are longer along the axis by the elongation: the crossings per line are fewer
        assert np.mean([faces[a] for a in range(3) if a != axis]) / faces[axis] == pytest.approx(1.6, rel=0.2)


def test_a_gradient_makes_one_end_denser():
    labels, _, _ = built(gradient=0.4, rise_axis=0, porosity=0.6, shape=(150, 60, 60))
    third = [1 - labels[s].mean() for s in (np.s_[:50], np.s_[100:])]
    assert third[0] > 0.63 and third[1] < 0.57


def test_the_cells_have_the_diameter_asked():
    _, facts, parameters = built(shape=(100, 100, 100), cell_cv=0.1)
    assert facts["cell_diameter_um"] == pytest.approx(parameters["cell_diameter_um"], rel=0.05)
    # the cells of the box tile it: their bubbles fill the packed share, those at the faces being cut
    assert facts["n_cells"] == len(facts["radii_um"]) == len(facts["centres_um"])


@pytest.mark.parametrize("shape", [(128, 96), (60, 50, 40)])
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(shape):
    recipe = Foam(cell_diameter_um=[100, 120], broken_windows=[0.1, 0.3], porosity=[0.6, 0.7])

    def build(seed):
        rng = np.random.default_rng(seed)
        return recipe.build(shape, 4.0, recipe.draw(rng), rng)

    (first, facts), (again, facts_again), (other, _) = build(1), build(1), build(2)
    assert first.tobytes() == again.tobytes() and facts == facts_again
    assert first.tobytes() != other.tobytes()


def test_walls_that_would_leak_are_refused_with_the_voxel_size_that_is_needed():
    recipe = Foam(cell_diameter_um=200.0, porosity=0.9)
    with pytest.raises(ValueError, match=r"walls come out .*2 voxels.*voxel_size_um of at most") as caught:
        recipe.check((128, 128, 128), 5.0)
    needed = float(str(caught.value).split("at most ")[1].split(",")[0])
    recipe.check((round(640 / needed * 1.01),) * 3, needed * 0.98)
    with pytest.raises(ValueError, match="struts come out"):
        Foam(cell_diameter_um=200.0, porosity=0.97, broken_windows=1.0).check((128, 128, 128), 6.0)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="voxels they have holes"):
        recipe.build((64, 64, 64), 8.0, recipe.draw(rng), rng)


@pytest.mark.parametrize("cv", [0.1, 0.5])
def test_the_check_foretells_the_walls(cv):
    """Where the check passes by little, the walls of each sample hold."""
    recipe = Foam(cell_diameter_um=100.0, cell_cv=cv, porosity=0.7, wall_um=4.0, strut_um=7.0, elongation=1.0)
    with pytest.raises(ValueError) as caught:
        recipe.check((20, 20, 20), 12.0)
    voxel = float(str(caught.value).split("at most ")[1].split(",")[0]) * 0.99
    shape = (round(240 / voxel),) * 3
    recipe.check(shape, voxel)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        _, facts = recipe.build(shape, voxel, recipe.draw(rng), rng)
        assert facts["wall_um"] >= LEAK_VOXELS * voxel


@pytest.mark.parametrize(
    "arguments",
    [
        {"porosity": 0.98},
        {"porosity": 0.4},
        {"cell_diameter_um": 0},
        {"cell_cv": 0.7},
        {"wall_um": [3, 2]},
        {"strut_um": 11.0},
        {"broken_windows": 1.1},
        {"strut_concavity": -0.1},
        {"elongation": 3},
        {"gradient": 0.6},
        {"rise_axis": 3},
        {"periodic": 1},
        {"wall_um": 100.0, "strut_um": 130.0, "porosity": None},
    ],
)
def test_bad_recipes(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}=") as caught:
        Foam(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({"periodic": True, "cell_diameter_um": 101.0}, (100, 100, 100)),
        ({"cell_diameter_um": 301.0}, (100, 200)),
        ({"cell_diameter_um": 250.0, "elongation": 2.0}, (200, 100)),
    ],
)
def test_boxes_too_small_for_the_cells_are_refused(arguments, shape):
    recipe = Foam(**{"elongation": 1.0, "porosity": None} | arguments)
    with pytest.raises(ValueError, match=r"cell_diameter_um=.*does not fit a box"):
        recipe.check(shape, 3.0)
