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
