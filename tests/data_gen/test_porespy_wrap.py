"""PoreSpy's generators: sizes are lengths, porosities are met, and nothing outside is disturbed."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bundle.quantify import chord_lengths
from data_gen.microstructure import Porespy

ROOT = Path(__file__).resolve().parents[2]
BOOLEAN = {"generator": "overlapping_spheres", "lengths_um": {"r": 5.0}, "porosity": 0.5}


def build(recipe, shape, voxel=1.0, seed=0):
    recipe.check(shape, voxel)
    rng = np.random.default_rng(seed)
    return recipe.build(shape, voxel, recipe.draw(rng), rng)


@pytest.mark.parametrize("shape", [(96, 96), (100, 64), (28, 24, 36)])
@pytest.mark.parametrize("porosity", [0.01, 0.37, 0.99])
@pytest.mark.parametrize("inverted", [False, True])
def test_the_porosity_of_a_field_is_exact(shape, porosity, inverted):
    labels, facts = build(Porespy(lengths_um={"sigma": 2.0}, porosity=porosity, inverted=inverted), shape)
    assert labels.shape == shape and labels.dtype == np.uint8
    assert facts["porosity"] == (labels == 0).mean() == pytest.approx(porosity, abs=0.5 / labels.size + 1e-9)
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize(("shape", "voxel"), [((512, 512), 1.0), ((900, 400), 1.0), ((640, 640), 0.5)])
def test_the_size_of_blobs_depends_neither_on_box_nor_on_voxels(shape, voxel):
    # White noise after a Gaussian of sd s has the covariance exp(-d²/4s²), of curvature 1/2s² at 0. Rice's formula
    # gives 1/(π √2 s) crossings of its median per length, and a pore has two ends: a mean chord of π √2 s.
    labels, _ = build(Porespy(lengths_um={"sigma": 5.0}, porosity=0.5), shape, voxel)
    chord = chord_lengths(labels, voxel, 2)[0]["mean"]
    assert chord == pytest.approx(math.pi * math.sqrt(2) * 5.0, rel=0.08)  # 1000 independent chords or more, 3 sd


def test_spheres_have_the_radius_asked():
    # void of a Boolean model: exponential chords of mean 1/(density π r²), and porosity exp(-density 4/3 π r³)
    labels, facts = build(Porespy("overlapping_spheres", {"r": 2.0}, 0.5), (80, 72, 64), 0.5)
    assert facts["arguments"]["r"] == 4
    assert facts["porosity"] == pytest.approx(0.5, abs=0.005)
    # PoreSpy's spheres hold the voxels nearer than r, which makes them about 0.2 voxels small; a box of nine chords
    # misses the longest; some 900 spheres
    assert chord_lengths(labels, 0.5, 2)[0]["mean"] == pytest.approx(4 * 2 / (3 * math.log(2)), rel=0.12)


def test_a_lattice_and_a_packing_have_no_porosity_to_ask_for():
    lattice = Porespy("lattice_spheres", {"r": 4.0, "spacing": 12.0}, None, {"lattice": "sc"})
    _, facts = build(lattice, (48, 48, 48))
    # PoreSpy puts them from the first corner on, r inside; a digitised ball of 4 voxels is within 10 % of its volume
    assert 1 - facts["porosity"] == pytest.approx(64 * 4 / 3 * math.pi * 4**3 / 48**3, rel=0.1)
    packing = Porespy("random_spheres", {"r": 4.0}, None, {"phi": 0.2}, inverted=True)
    assert 0.1 < build(packing, (64, 64))[0].mean() <= 0.3


CODE = """
import hashlib, sys
import numpy as np
from data_gen.microstructure import Porespy
np.random.seed(int(sys.argv[1]))
for recipe, shape in ((Porespy(), (64, 80)), (Porespy(**{0}), (30, 32, 34))):
    rng = np.random.default_rng(3)
    print(hashlib.sha256(recipe.build(shape, 1.0, recipe.draw(rng), rng)[0].tobytes()).hexdigest())
"""


def test_the_same_seed_gives_the_same_bytes_in_any_process_and_another_does_not():
    code = CODE.replace("{0}", repr(BOOLEAN))
    runs = [
        subprocess.Popen([sys.executable, "-c", code, k], cwd=ROOT, stdout=subprocess.PIPE, text=True) for k in "12"
    ]
    one, two = (run.communicate(timeout=200)[0].split() for run in runs)
    assert one == two and len(one) == 2
    recipes = ((Porespy(), (64, 80)), (Porespy(**BOOLEAN), (30, 32, 34)))
    for (recipe, shape), known in zip(recipes, one, strict=True):
        here, again, other = (build(recipe, shape, seed=seed)[0].tobytes() for seed in (3, 3, 4))
        assert hashlib.sha256(here).hexdigest() == known
        assert here == again != other


@pytest.mark.parametrize("fails", [False, True])
def test_the_global_generator_is_left_as_it_was(fails):
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    recipe = Porespy("lattice_spheres", {"r": 4.0, "spacing": 12.0}, None, {"offset": "?"}) if fails else Porespy()
    if fails:
        with pytest.raises(ValueError, match=r"porespy\.generators\.lattice_spheres: ") as caught:
            build(recipe, (48, 48))
        assert "\n" not in str(caught.value)
    else:
        build(recipe, (48, 48))
    assert np.array_equal(np.random.random(3), expected)  # noqa: NPY002


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"generator": "bubbles"}, "generator='bubbles'.*blobs"),
        ({"generator": "line_segment"}, "generator='line_segment'"),
        ({"porosity": 1.0}, "porosity=1.0"),
        ({"porosity": None}, "porosity=None"),
        ({"lengths_um": {"sigma": 0}}, "lengths_um sigma=0"),
        ({"lengths_um": {"r": 2.0}}, r"lengths_um=\['r'\] of blobs .*sigma"),
        ({"options": {"seed": 1}}, r"options=\['seed'\]"),
        ({**BOOLEAN, "lengths_um": {"sigma": 2.0}}, r"lengths_um=\['sigma'\]"),
        ({"generator": "lattice_spheres", "lengths_um": {"r": 4.0}}, "porosity=.*give None"),
    ],
)
def test_bad_recipes(arguments, named):
    with pytest.raises(ValueError, match=named) as caught:
        Porespy(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "shape", "named"),
    [
        ({"lengths_um": {"sigma": 0.5}}, (64, 64), "below one voxel"),
        ({"lengths_um": {"sigma": 20.0}}, (100, 64), "quarter of its shortest edge, 16"),
        ({"generator": "cylinders", "lengths_um": {"r": 4.0}}, (64, 64), "volumes only"),
    ],
)
def test_what_cannot_be_built_is_refused_before_the_work(arguments, shape, named):
    with pytest.raises(ValueError, match=named):
        Porespy(**arguments).check(shape, 1.0)


def test_a_porosity_that_is_missed_says_what_came_out():
    discs = Porespy("overlapping_spheres", {"r": 8.0}, 0.93)  # one disc of 20 %
    with pytest.raises(ValueError, match=r"porosity=0\.930: overlapping_spheres missed it 8 times, [01]\.\d"):
        build(discs, (32, 32))
