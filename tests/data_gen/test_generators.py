"""What holds for every microstructure: any shape, plain facts, the same bytes in another process."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bundle.volume_io import write_tiff
from data_gen import microstructure
from data_gen.microstructure import (
    Fibres,
    Foam,
    GraphiteAnode,
    Layers,
    Nested,
    NmcCathode,
    Particles,
    Porespy,
    Porous,
    Segmented,
    Sofc,
    Spheres,
)

ROOT = Path(__file__).resolve().parents[2]
SHAPES = [(112, 80), (40, 40, 40), (44, 36, 40)]
FINE = {"pore_size_um": 2.5, "coarsening": 0.2}
RECIPES = {
    "Spheres": Spheres(fraction=0.4, mean_radius_um=[3, 4]),
    "Particles": Particles(fraction=0.5, mean_radius_um=[3, 4], aspect=[1, 2], roughness_um=0.2),
    "NmcCathode": NmcCathode(mean_radius_um=4, fines_radius_um=2, gap_um=0.5, crack_width_um=0.5, texture_um=1),
    "GraphiteAnode": GraphiteAnode(mean_radius_um=[3, 4], third="binder"),
    "Sofc": Sofc(pore_size_um=3, nickel_size_um=3, ysz_size_um=3, coarse_size_um=8),
    "Porous": Porous(pore_size_um=[2, 4]),
    "Fibres": Fibres(radius_um=[1.2, 2], deposit_size_um=5, impurity_radius_um=2, persistence_um=30),
    "Foam": Foam(cell_diameter_um=[24, 28], cell_cv=0.1, wall_um=4, strut_um=5, porosity=[0.5, 0.55], elongation=1.0),
    "Porespy": Porespy(lengths_um={"sigma": [1.5, 3]}),
    "Layers": Layers([
        {"generator": Porous(0.3, **FINE), "classes": [0, 1], "thickness_um": None},
        {"generator": Porous(0.1, **FINE), "classes": [0, 2], "thickness_um": [12, 14]},
    ]),
    "Nested": Nested(Spheres(fraction=0.4, mean_radius_um=6), 1, Porous(0.2, **FINE), [2, 1]),
}  # fmt: skip


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "labels.tif"
    write_tiff(path, np.kron(np.indices((8, 8, 8)).sum(0) % 2, np.ones((4, 4, 4), int)).astype(np.uint8), None)
    return RECIPES | {"Segmented": Segmented(path, [4.0, 5.0])}


def build(recipe, shape, seed=0):
    recipe.check(shape, 1.0)
    rng = np.random.default_rng(seed)
    drawn = recipe.draw(rng)
    return drawn, *recipe.build(shape, 1.0, drawn, rng)


def digest(labels):
    return hashlib.sha256(labels.tobytes()).hexdigest()


def test_every_class_is_here():
    assert {*RECIPES, "Segmented"} == set(microstructure.__all__)


@pytest.mark.parametrize("name", microstructure.__all__)
@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape(name, shape, recipes):
    recipe = recipes[name]
    drawn, labels, facts = build(recipe, shape)
    assert labels.shape == shape and labels.dtype == np.uint8 and labels.flags.c_contiguous
    assert 1 <= len(np.unique(labels)) <= recipe.n_classes and labels.max() < recipe.n_classes
    assert json.loads(json.dumps(facts)) == facts and json.loads(json.dumps(drawn)) == drawn


FIBRES = {"radius_um": 1.5, "deposit_size_um": 5, "impurity_radius_um": 2, "persistence_um": 30}
SIZES = {"pore_size_um": 4, "nickel_size_um": 4, "ysz_size_um": 4, "coarse_share": 0}
EDGES = [  # recipe at an end of its ranges, and the fractions that it must have
    (Fibres(fibre_fraction=0.005, radius_cv=0, flatness=1, deposit_fraction=0, impurity_fraction=0, radius_um=1.5), [0.995, 0.005]),
    (Fibres(0.6, radius_cv=1, deposit_fraction=0.01, impurity_fraction=0.29, deposit_aspect=0.1, deposit_roughness=0.5, **FIBRES), None),
    (Fibres(0.1, flatness=0, deposit_fraction=0.4, impurity_fraction=0, deposit_aspect=1, deposit_roughness=0, **FIBRES), [0.5, 0.1, 0.4]),
    (Porous(0.0), [0.0, 1.0]),
    (Porous(0.95, 16, coarsening=0.6, heterogeneity=2), [0.95, 0.05]),
    (Porous(0.01, 2, anisotropy=5), [0.01, 0.99]),
    (Porous(0.5, 4, anisotropy=0.2, gradient=1.5), [0.5, 0.5]),
    (Sofc(0.05, 0.5, **SIZES | {"pore_size_um": 2}), [0.05, 0.475, 0.475]),
    (Sofc(0.9, 0.5, **SIZES | {"pore_size_um": 20, "nickel_size_um": 2.2, "ysz_size_um": 2.2}), [0.9, 0.05, 0.05]),
    (Sofc(0.3, 0.5, **SIZES, heterogeneity=2, coarsening=0.6, gradient=-1.5), [0.3, 0.35, 0.35]),
    (Layers([
        {"generator": Porous(0.0), "classes": [0, 1], "thickness_um": 2},
        {"generator": Porous(0.5, 3), "classes": [0, 2], "thickness_um": None},
        {"generator": Porous(0.0), "classes": [0, 1], "thickness_um": 1},
    ]), [0.5 * 77 / 80, 3 / 80, 0.5 * 77 / 80]),
    (Nested(Porous(0.5, 4), 1, Porous(0.0), [2, 1]), [0.5, 0.5]),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "fractions"), EDGES)
def test_the_edges_of_the_ranges(recipe, fractions):
    shape = (112, 80)
    try:
        _, labels, _ = build(recipe, shape)
    except ValueError as error:  # what cannot be reached says so
        assert fractions is None and "fraction" in str(error) and "\n" not in str(error)
    else:
        reached = np.bincount(labels.ravel(), minlength=len(fractions)) / labels.size
        np.testing.assert_allclose(reached, fractions, atol=2e-3)


@pytest.mark.parametrize("name", microstructure.__all__)
def test_a_box_of_eight_voxels_is_refused_or_filled(name, recipes):
    """Nothing is started that cannot end: the check says so on one line."""
    for shape in ((8, 8), (8, 8, 8)):
        try:
            recipes[name].check(shape, 1.0)
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) > 20
        else:
            assert build(recipes[name], shape)[1].shape == shape


CODE = """
import sys
sys.path.insert(0, "tests/data_gen")
from test_generators import RECIPES, SHAPES, build, digest
for recipe in RECIPES.values():
    print(*(digest(build(recipe, shape, 5)[1]) for shape in (SHAPES[0], SHAPES[2])))
"""


def test_another_process_makes_the_same_bytes():
    made = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    for (name, recipe), line in zip(RECIPES.items(), made.stdout.splitlines(), strict=True):
        for shape, there in zip((SHAPES[0], SHAPES[2]), line.split(), strict=True):
            assert digest(build(recipe, shape, 5)[1]) == there, f"{name}, {shape}"
