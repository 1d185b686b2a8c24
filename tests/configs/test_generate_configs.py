"""Every config that generates data makes a small image and a small volume of its material."""

import json
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigParser

from bundle.volume_io import write_nifti
from data_gen.dataset import SyntheticDataset

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path.stem.removeprefix("generate_") for path in (ROOT / "configs").glob("generate_*.json"))
KEYS = {
    *("count", "seed", "shape", "voxel_size_um", "supersample", "sample_diameter", "workers", "output_dir"),
    *("phases", "microstructure", "source", "scanner", "dataset", "initialize", "run", "finalize"),
}
# Voxels and sub-voxels of the small pairs: the coarsest and fewest that hold the features of each recipe.
IMAGE = {
    "metal_supported_cell": [64, 224],
    "graphite_anode": [96, 96],
    "foam": [160, 160],
    "fibre_electrode": [160, 160],
    "from_labels": [96, 96],
}
VOLUME = {
    "spheres": ([72, 72, 72], 0.5),
    "nmc_cathode": ([64, 64, 72], 0.2),
    "graphite_anode": ([48, 48, 56], 0.6),
    "sofc": ([72, 72, 80], 0.065),
    "metal_supported_cell": ([24, 24, 216], 0.3),
    "fibre_electrode": ([56, 56, 64], 0.05),
    "foam": ([120, 120, 120], 2.3),
    "foam_open": ([96, 96, 96], 4.0),
    "porespy_blobs": ([48, 48, 56], 1.0),
    "from_labels": ([24, 24, 32], 0.1),
}
OVERLAYS = [
    ("nmc_cathode", "synchrotron_nanoct_zernike", [256, 256]),
    ("nmc_cathode", "lab_nanoct", [256, 256]),
    ("nmc_cathode", "ptychography", [416, 416]),
    ("sofc", "synchrotron_nanoct_zernike", [256, 256]),
    ("graphite_anode", "synchrotron_microct", [256, 256]),
]


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("labels") / "labels.nii.gz"
    write_nifti(path, np.kron(np.indices((8, 8, 8)).sum(0) % 2, np.ones((5, 5, 5), int)).astype(np.uint8), None)
    return str(path)


def read(name: str, *overlays: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / file) for file in (f"generate_{name}.json", *overlays)])
    return parser


def small(name: str, labels: str, **values) -> SyntheticDataset:
    """The data set of a config with few views, and a sample that does not stick out of the image."""
    parser = read(name)
    parser["scanner#geometry#n_angles"] = 45
    parser["sample_diameter"] = None
    if name == "from_labels":
        parser["labels_path"] = labels
    for key, value in values.items():
        parser[key] = value
    return parser.get_parsed_content("dataset")


def check_pair(dataset: SyntheticDataset) -> dict:
    image, label, facts = dataset.pair(0, 0)
    assert image.dtype == np.float32 and np.isfinite(image).all()
    assert image.shape == label.shape == dataset.shape
    assert label.dtype == np.uint8 and label.max() < len(dataset.phases)
    assert json.loads(json.dumps(facts)) == facts
    json.dumps(dataset.recipe())
    reached = facts["reached"]["fraction"]
    assert list(reached) == list(dataset.phases)
    assert sum(reached.values()) == pytest.approx(1)
    for k, fraction in enumerate(asked(facts)):
        # The finer structure has the fraction asked within 0.005; voting in blocks of sub-voxels moves an interface by
        # a part of a voxel where it is curved, and takes what is thinner than a voxel away.
        if fraction is not None:
            assert reached[list(reached)[k]] == pytest.approx(fraction, abs=0.03)
    return facts


def asked(facts: dict) -> list[float | None]:
    """What was drawn for each label, as far as the recipe gives it."""
    p = facts["drawn"]["microstructure"]
    if "cbd_fraction" in p:
        return [p["pore_fraction"], p["active_fraction"], p["cbd_fraction"]]
    if "graphite_fraction" in p:
        return [None, p["graphite_fraction"], p["third_fraction"]]
    if "nickel_share" in p:
        return [p["porosity"], (1 - p["porosity"]) * p["nickel_share"]]
    if "fibre_fraction" in p:
        return [None, p["fibre_fraction"], p["deposit_fraction"], p["impurity_fraction"]]
    return [p["porosity"]] if "porosity" in p else [None, p["fraction"]] if "fraction" in p else []


def test_there_is_a_config_for_every_small_volume():
    assert set(VOLUME) == set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_keys(name):
    parser = read(name)
    assert set(parser.get()) >= KEYS
    assert parser["dataset#name"] == name
    assert parser["output_dir"] == f"$@bundle_root + '/data/{name}'"
    assert parser["shape"] == [256, 256]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_recipe_as_it_is_can_be_built(name, labels):
    """At full size the constructors check that features, voxels and box go together."""
    parser = read(name)
    if name == "from_labels":
        parser["labels_path"], parser["labels_voxel_um"] = labels, 1.0
    dataset = parser.get_parsed_content("dataset")
    assert len(dataset.phases) == dataset.microstructure.n_classes


@pytest.mark.parametrize("name", CONFIGS)
def test_image(name, labels):
    facts = check_pair(small(name, labels, shape=IMAGE.get(name, [128, 128]), supersample=3, **sized(name)))
    grey = facts["reached"]["grey_mean"]
    assert all(v > grey[next(iter(grey))] for v in list(grey.values())[1:] if v is not None), "pores are darkest"


@pytest.mark.parametrize("name", CONFIGS)
def test_volume(name, labels):
    shape, voxel_um = VOLUME[name]
    check_pair(small(name, labels, shape=shape, supersample=1, **sized(name, voxel_um), **coarse_object(name)))


def sized(name: str, voxel_um: float | None = None) -> dict:
    """Voxels large enough for a small box to hold the recipe's particles."""
    image = {"nmc_cathode": 0.1, "graphite_anode": 0.65}
    voxel = voxel_um or image.get(name)
    return {"voxel_size_um": voxel} if voxel else {}


def coarse_object(name: str) -> dict:
    """Features that fit a box of few voxels."""
    return {
        "spheres": {"particle_radius_um": [4, 6]},
        "metal_supported_cell": {"microstructure#layers#0#generator#pore_size_um": [1.2, 1.7]},
        "sofc": {"microstructure#coarse_share": 0},
        "graphite_anode": {"microstructure#mean_radius_um": [3, 5]},
    }.get(name, {})


@pytest.mark.parametrize("name, overlay, shape", OVERLAYS)
def test_another_scanner(name, overlay, shape):
    """A scanner overlay replaces scanner and voxel size; the recipe has to be of its scale."""
    parser = read(name, f"scanner_{overlay}.json")
    parser["shape"] = shape
    dataset = parser.get_parsed_content("dataset")
    assert dataset.voxel_size_um == parser["voxel_size_um"]
    assert dataset.scanner == parser.get_parsed_content("scanner")


def test_labels_that_are_not_there():
    with pytest.raises(RuntimeError) as caught:  # of MONAI, around ours
        read("from_labels").get_parsed_content("microstructure")
    assert "--labels_path FILE" in str(caught.value.__cause__)
