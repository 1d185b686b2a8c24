"""Layers and Nested: thicknesses, interfaces and labels are those asked, and a recipe is recorded whole."""

import json
from dataclasses import asdict, dataclass

import numpy as np
import pytest
from monai.bundle import ConfigParser

from data_gen.microstructure.layers import Layers, Nested
from data_gen.microstructure.sofc import Porous, Sofc
from data_gen.microstructure.spheres import Spheres


@dataclass(frozen=True)
class Solid:
    """One phase everywhere: what is left to see are the interfaces."""

    smallest: int = 1
    n_classes = 1

    def check(self, shape, voxel_size_um):
        if min(shape) < self.smallest:
            raise ValueError(f"{shape} is too small")

    def draw(self, rng):
        return {}

    def build(self, shape, voxel_size_um, parameters, rng):
        return np.zeros(shape, np.uint8), {}


def solid(label, thickness_um, **keys):
    return {"generator": Solid(), "classes": [label], "thickness_um": thickness_um, **keys}


def build(recipe, shape, voxel_size_um, seed=0):
    rng = np.random.default_rng(seed)
    recipe.check(shape, voxel_size_um)
    return recipe.build(shape, voxel_size_um, recipe.draw(rng), rng)


@pytest.mark.parametrize(("shape", "axis"), [((40, 64), -1), ((64, 40), 0), ((20, 64, 30), 1), ((16, 18, 50), 2)])
def test_flat_layers_are_slabs(shape, axis):
    recipe = Layers([solid(2, 6), solid(1, None), solid(0, 4)], axis=axis, roughness_um=0)
    labels, facts = build(recipe, shape, 0.5)
    profile = np.moveaxis(labels, axis, 0)
    n = profile.shape[0]
    assert (profile[:12] == 2).all() and (profile[12 : n - 8] == 1).all() and (profile[n - 8 :] == 0).all()
    assert [layer["thickness_um"] for layer in facts["layers"]] == [6, n / 2 - 10, 4]
    assert recipe.n_classes == 3


@pytest.mark.parametrize("shape", [(4000, 40), (300, 200, 40)])
def test_an_interface_has_the_roughness_and_the_correlation_length_asked(shape):
    recipe = Layers([solid(1, 20), solid(0, None)], roughness_um=2.0, correlation_um=5.0)
    labels, facts = build(recipe, shape, 1.0)
    height = labels.sum(-1, dtype=float)
    assert labels[..., 0].all() and (np.diff(labels.astype(int), axis=-1) <= 0).all()  # one wall a column
    assert height.mean() == pytest.approx(20, abs=0.05)  # the field has mean 0; rounding to voxels averages out
    # voxels add 1/12 of a voxel squared to the variance
    assert height.std() == pytest.approx(np.sqrt(4 + 1 / 12), rel=0.02)
    assert facts["layers"][0]["roughness_um"] == pytest.approx(2.0, rel=0.02)
    shifted = np.roll(height, 5, axis=0)  # the height field is periodic
    covariance = float(((height - 20) * (shifted - 20)).mean()) / 4
    # about 800 (2D) and 2000 independent patches
    assert covariance == pytest.approx(np.exp(-0.5), abs=0.12)


def test_interfaces_do_not_cross():
    recipe = Layers([solid(0, 10), solid(1, 1), solid(2, None)], roughness_um=3.0, correlation_um=4.0)
    labels, _ = build(recipe, (200, 40), 0.5)
    assert (np.diff(labels.astype(int), axis=-1) >= 0).all()
    assert (labels == 1).any()


def cell():
    return Layers(
        [
            {"generator": Porous(0.35, [2, 3]), "classes": [0, 3], "thickness_um": None, "roughness_um": 0.6},
            {"generator": Sofc(), "classes": [0, 1, 2], "thickness_um": [5, 7]},
            {"generator": Porous(0.01, 0.3), "classes": [0, 2], "thickness_um": 3},
            {"generator": Spheres(0.4, 0.4, 0.1), "classes": [0, 4], "thickness_um": 4},
        ],
        roughness_um=[0.1, 0.2],
        correlation_um=2,
    )


@pytest.mark.parametrize("shape", [(128, 256), (100, 250)])
def test_a_cell_of_four_structures(shape):
    recipe = cell()
    labels, facts = build(recipe, shape, 0.12)
    assert labels.shape == shape and labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4} and recipe.n_classes == 5
    reached = np.bincount(labels.ravel(), minlength=5) / labels.size
    np.testing.assert_allclose(facts["fraction"], reached, atol=1e-6)
    json.dumps(facts)
    top = labels[:, -int(3 / 0.12) :]
    assert set(np.unique(top)) == {0, 4}
    again, _ = build(recipe, shape, 0.12)
    other, _ = build(recipe, shape, 0.12, seed=1)
    assert labels.tobytes() == again.tobytes() != other.tobytes()


def test_a_cell_in_3d():
    recipe = Layers(
        [
            {"generator": Sofc(coarse_share=0), "classes": [0, 1, 2], "thickness_um": None},
            {"generator": Porous(0.01, 0.4), "classes": [0, 2], "thickness_um": 3},
        ],
        axis=0,
    )
    labels, _ = build(recipe, (60, 36, 32), 0.15)
    assert labels.shape == (60, 36, 32) and (labels[-8:] == 2).mean() > 0.9


def test_the_same_seed_at_another_voxel_size_is_the_same_cell():
    coarse, _ = build(cell(), (128, 256), 0.12, seed=2)
    fine, _ = build(cell(), (384, 768), 0.04, seed=2)
    assert (coarse == fine[1::3, 1::3]).mean() > 0.98


def test_nested_fills_one_phase_only():
    host, guest = Spheres(0.5, 5, 0.1), Porous(0.3, 1.0)
    recipe = Nested(host, 1, guest, classes=[2, 1])  # pores of their own class inside the particles
    labels, facts = build(recipe, (120, 120), 0.25)
    particles = np.isin(labels, [1, 2])
    assert recipe.n_classes == 3 and facts["fraction"][0] == pytest.approx(0.5, abs=0.02)
    # the guest's pores are 0.3 of any region that does not look at them; about (30 µm)² · 0.5 / 1.7² pores
    assert (labels[particles] == 2).mean() == pytest.approx(0.3, abs=5 * np.sqrt(0.21 / 150))
    host_only, _ = host.build(
        (120, 120), 0.25, host.draw(r := np.random.default_rng(0)), np.random.default_rng(_seeds(r, guest)[0])
    )
    np.testing.assert_array_equal(host_only == 1, particles)


def _seeds(rng, guest):
    guest.draw(rng)
    return rng.integers(2**63, size=2)


def test_layers_inside_a_layer_are_recorded_whole():
    nested = Nested(Spheres(), 1, Porous(), [0, 1])
    recipe = Layers([{"generator": nested, "classes": [0, 1], "thickness_um": None}])
    record = json.loads(json.dumps(asdict(recipe)))
    assert record["types"] == ["Nested"] and record["layers"][0]["generator"]["types"] == ["Spheres", "Porous"]


def test_a_config_nests_targets():
    module = "data_gen.microstructure"
    config = {
        "microstructure": {
            "_target_": f"{module}.layers.Layers",
            "layers": [
                {"generator": {"_target_": f"{module}.sofc.Sofc"}, "classes": [0, 1, 2], "thickness_um": [4, 5]},
                {"generator": "@electrolyte", "classes": [0, 2], "thickness_um": None},
            ],
        },
        "electrolyte": {"_target_": f"{module}.sofc.Porous", "porosity": 0.02, "pore_size_um": 0.5},
    }
    recipe = ConfigParser(config).get_parsed_content("microstructure")
    assert isinstance(recipe.layers[0]["generator"], Sofc) and recipe.layers[1]["generator"].porosity == 0.02
    assert recipe.n_classes == 3 and recipe.types == ("Sofc", "Porous")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"layers": []}, "layers=.*at least one"),
        ({"layers": [solid(0, 5)]}, "0 have thickness_um None"),
        ({"layers": [solid(0, None), solid(1, None)]}, "2 have thickness_um None"),
        ({"layers": [solid(1, None)]}, r"leave out \[0\]"),
        ({"layers": [solid(0, None), solid(2, 5)]}, r"leave out \[1\]"),
        ({"layers": [{"generator": Sofc(), "classes": [0, 1], "thickness_um": None}]}, "3 labels"),
        ({"layers": [{"generator": Sofc(), "classes": [0, 1, 2]}]}, r"layers\[0\].*must have"),
        ({"layers": [solid(0, None, rough=1)]}, r"layers\[0\].*must have"),
        ({"layers": [{"generator": {"a": 1}, "classes": [0], "thickness_um": None}]}, "must be a microstructure"),
        ({"layers": [solid(0, 0), solid(0, None)]}, r"layers\[0\] thickness_um=0"),
        ({"layers": [solid(0, None)], "axis": 5}, "axis=5"),
        ({"layers": [solid(0, None)], "roughness_um": -1}, "roughness_um=-1"),
        ({"layers": [solid(0, None)], "correlation_um": 0}, "correlation_um=0"),
    ],
)
def test_bad_layers(arguments, names):
    with pytest.raises(ValueError, match=names) as caught:
        Layers(**arguments)
    assert "\n" not in str(caught.value)


def test_bad_nesting():
    with pytest.raises(ValueError, match="host_class=2"):
        Nested(Spheres(), 2, Porous(), [0, 1])
    with pytest.raises(ValueError, match="2 labels"):
        Nested(Spheres(), 1, Porous(), [0])
    with pytest.raises(ValueError, match=r"leave out \[1\]"):
        Nested(Spheres(), 1, Porous(), [0, 2])
    with pytest.raises(ValueError, match="guest=3"):
        Nested(Spheres(), 1, 3, [0])


def test_what_does_not_fit_is_refused_before_the_work():
    with pytest.raises(ValueError, match="leave nothing of the box"):
        Layers([solid(0, 5), solid(1, None)]).check((32, 10), 0.5)
    thick = {"generator": Solid(smallest=20), "classes": [0], "thickness_um": 5}
    with pytest.raises(ValueError, match=r"layers\[0\], 5 µm thick: .*too small"):
        Layers([thick, solid(1, None)]).check((64, 64), 0.5)
    with pytest.raises(ValueError, match="axis=2"):
        Layers([solid(0, None)], axis=2).check((64, 64), 0.5)
