"""Pairs on disk: what they hold, that their bytes are reproducible, and what happens when work is cut short."""

import hashlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
from threadpoolctl import threadpool_limits

from data_gen.artifacts import Motion, Propagation, Stripes
from data_gen.dataset import SyntheticDataset, phase_fractions, split_indices
from data_gen.detector import Detector
from data_gen.geometry import ConeBeam, ParallelBeam
from data_gen.microstructure import Spheres
from data_gen.ray_kernels import LANES
from data_gen.reconstruction import FBP, SIRT
from data_gen.scan import Scanner
from data_gen.spectrum import MeasuredSpectrum, Monochromatic, Tube

ROOT = Path(__file__).resolve().parents[2]


def scanner(**changes):
    return Scanner(**{"source": Monochromatic(30.0), "geometry": ParallelBeam(30), "noise_sd": [0.01, 0.05]} | changes)


def make(**changes):
    arguments = {
        "name": "tiny",
        "phases": {"pore": "air", "particle": "NMC532"},
        "microstructure": Spheres(fraction=[0.3, 0.5], mean_radius_um=[1.5, 2.5], radius_cv=0.2),
        "scanner": scanner(),
        "shape": [24, 32],
        "voxel_size_um": 0.5,
        "supersample": 3,
        "split": [0.7, 0.2, 0.1],
    }
    return SyntheticDataset(**arguments | changes)


def tree(folder):
    """Name to bytes of every file."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "set"
    path = make().generate(str(folder), count=10, seed=5)
    assert path == folder / "dataset.json"
    return folder


@pytest.fixture
def copied(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "copy"))


def test_images_and_labels_are_nifti_in_micrometres(made):
    for kind, dtype in (("images", np.float32), ("labels", np.uint8)):
        files = sorted((made / kind).iterdir())
        assert [p.name for p in files] == [f"tiny_{i:05d}.nii.gz" for i in range(10)]
        for path in files:
            image = nib.load(path)
            assert image.get_data_dtype() == dtype and image.shape == (24, 32)
            assert image.header.get_xyzt_units()[0] == "micron"
            assert image.header.get_zooms() == (0.5, 0.5)
            np.testing.assert_allclose(image.affine[:2, :2], np.diag([0.5, 0.5]))
    label = np.asarray(nib.load(made / "labels" / "tiny_00003.nii.gz").dataobj)
    assert set(np.unique(label)) == {0, 1}


def test_the_data_list_splits_70_20_10(made):
    listed = json.loads((made / "dataset.json").read_text())
    parts = [listed[k] for k in ("training", "validation", "test")]
    assert [len(p) for p in parts] == [7, 2, 1]
    assert [listed[k] for k in ("numTraining", "numValidation", "numTest")] == [7, 2, 1]
    images = [pair["image"] for part in parts for pair in part]
    assert sorted(images) == [f"images/tiny_{i:05d}.nii.gz" for i in range(10)]  # disjoint and complete
    assert all(pair["label"] == pair["image"].replace("images", "labels") for part in parts for pair in part)
    assert listed["labels"] == {"0": "pore", "1": "particle"}
    assert listed["voxel_size_um"] == 0.5 and listed["tensorImageSize"] == "2D" and listed["seed"] == 5


def test_the_manifest_lists_every_file_with_its_hash(made):
    files = tree(made)
    manifest = json.loads(files.pop("manifest.json"))
    assert manifest == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert len(manifest) == 3 * 10 + 2


def test_the_parameters_lie_beside_the_pair(made):
    for index in range(10):
        record = json.loads((made / "params" / f"tiny_{index:05d}.json").read_text())
        assert record["index"] == index and record["seed"] == 5
        drawn, reached = record["drawn"], record["reached"]
        assert 0.3 <= drawn["microstructure"]["fraction"] <= 0.5 and 0.01 <= drawn["scanner"]["noise_sd"] <= 0.05
        label = np.asarray(nib.load(made / "labels" / f"tiny_{index:05d}.nii.gz").dataobj)
        image = nib.load(made / "images" / f"tiny_{index:05d}.nii.gz").get_fdata()
        assert reached["fraction"] == pytest.approx({"pore": (label == 0).mean(), "particle": (label == 1).mean()})
        assert reached["grey_mean"]["particle"] == pytest.approx(image[label == 1].mean(), rel=1e-5)
        assert reached["grey_mean"]["particle"] > reached["grey_mean"]["pore"]
    recipe = json.loads((made / "recipe.json").read_text())
    assert recipe["seed"] == 5 and recipe["phases"]["particle"]["formula"] == "LiNi0.5Mn0.3Co0.2O2"


def test_two_workers_write_the_same_bytes(made, tmp_path):
    make().generate(str(tmp_path / "two"), count=10, seed=5, workers=2)
    assert tree(tmp_path / "two") == tree(made)


def test_a_pair_depends_on_seed_and_index_alone(made):
    dataset = make()
    with threadpool_limits(1):
        backwards = {i: dataset.pair(5, i)[:2] for i in (7, 3, 0)}
    for index, (image, label) in backwards.items():
        stored = nib.load(made / "images" / f"tiny_{index:05d}.nii.gz")
        np.testing.assert_array_equal(np.asarray(stored.dataobj), image)
        np.testing.assert_array_equal(np.asarray(nib.load(made / "labels" / f"tiny_{index:05d}.nii.gz").dataobj), label)
    assert not np.array_equal(backwards[0][1], backwards[3][1])
    assert not np.array_equal(dataset.pair(6, 0)[1], backwards[0][1])


DRAWN = {
    "geometry": scanner(
        geometry=ParallelBeam(30, start_angle_deg=[0, 90], centre_offset_px=[-1, 1]),
        detector=Detector(photons=[500, 5000]),
    ),
    "motion": scanner(motion=Motion(drift_px=[0, 2]), stripes=Stripes(gain_sd=[0, 0.02]), oversampling=3),
    "fan": scanner(geometry=ConeBeam(30, start_angle_deg=[0, 360], source_object_mm=0.1)),
}


def same_pairs(one, other):
    for (image, label, facts), (image2, label2, facts2) in zip(one, other, strict=True):
        np.testing.assert_array_equal(image, image2)
        np.testing.assert_array_equal(label, label2)
        assert facts == facts2


@pytest.mark.parametrize("sample_diameter", [None, [0.5, 1.5]], ids=["box", "cylinder"])
@pytest.mark.parametrize("name", ["same views", *DRAWN])
def test_a_pair_does_not_depend_on_the_pairs_beside_it(name, sample_diameter):
    dataset = make(scanner=DRAWN.get(name, scanner()), sample_diameter=sample_diameter)
    indices = list(range(LANES + 2))  # more than a block
    with threadpool_limits(1):
        together = dataset.pairs(5, indices)
        same_pairs(
            [dataset.pair(5, i) for i in (0, 9, LANES, LANES + 1)], [together[i] for i in (0, 9, LANES, LANES + 1)]
        )
        same_pairs(dataset.pairs(5, [12, 3, 7]), [together[i] for i in (12, 3, 7)])


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_number_of_workers_and_what_was_there_change_no_byte(ndim, tmp_path):
    """17 images are two blocks; two of them are done again in another block after a run that was cut short."""
    changes, count = {"scanner": DRAWN["motion"], "sample_diameter": [0.6, 1.4]}, LANES + 1
    if ndim == 3:
        cone = scanner(geometry=ConeBeam(20, source_object_mm=0.1), detector=Detector(photons=1000.0, psf_fwhm_px=1.0))
        changes = {"shape": [8, 12, 16], "microstructure": Spheres(fraction=0.3, mean_radius_um=0.9), "scanner": cone}
        count = 3
    one, two = tmp_path / "one", tmp_path / "two"
    make(**changes).generate(str(one), count=count, seed=5)
    make(**changes).generate(str(two), count=count, seed=5, workers=2)
    expected = tree(one)
    assert tree(two) == expected
    for index in (1, count - 1):
        (one / "params" / f"tiny_{index:05d}.json").unlink()
    make(**changes).generate(str(one), count=count, seed=5)
    assert tree(one) == expected


# The sample's outline and the sub-voxels


def radius_of(shape):
    rows, columns = (np.arange(n) - (n - 1) / 2 for n in shape[:2])
    return np.hypot(rows[:, None], columns)


@pytest.mark.parametrize("shape", [[40, 40], [24, 33], [25, 16, 9]])
def test_a_small_sample_has_the_first_phase_around_it(shape):
    dataset = make(
        shape=shape, sample_diameter=0.6, microstructure=Spheres(fraction=0.4, mean_radius_um=1.0, radius_cv=0.1)
    )
    image, label, facts = dataset.pair(0, 0)
    assert image.shape == label.shape == tuple(shape)
    assert facts["drawn"]["sample_diameter"] == 0.6
    outside = radius_of(shape) > 0.3 * max(shape) + np.sqrt(0.5)  # half the diagonal of a voxel beyond the edge
    assert not label[outside].any() and label[~outside].any()
    # some 50 spheres of 1 to 3 voxels: their share of the disc is the box's, 0.4, within half of it
    inside = radius_of(shape) < 0.3 * max(shape) - np.sqrt(0.5)
    assert 0.2 < label[inside].mean() < 0.6
    dark = image[radius_of(shape) > 0.3 * max(shape) + 3]
    if dark.size:
        assert dark.mean() < image[label == 1].mean() / 2


@pytest.mark.parametrize("shape", [[24, 32], [33, 24], [16, 17, 9]])
@pytest.mark.parametrize("diameter", [1.0, 1.37, 2.0])
def test_a_large_sample_sticks_out_and_keeps_the_shape_asked(shape, diameter):
    dataset = make(
        shape=shape, sample_diameter=diameter, microstructure=Spheres(fraction=0.4, mean_radius_um=1.0, radius_cv=0.1)
    )
    fractions, label, _, _ = dataset._sample(0, 0)
    image, again, _ = dataset.pair(0, 0)
    assert image.shape == label.shape == again.shape == tuple(shape)
    np.testing.assert_array_equal(label, again)
    wide = fractions.shape[1:]
    for axis in (0, 1):
        assert wide[axis] >= diameter * max(shape[:2]) and (wide[axis] - shape[axis]) % 2 == 0  # centred on a voxel
    assert wide[2:] == tuple(shape[2:])
    np.testing.assert_allclose(fractions.sum(0), 1, atol=1e-6)
    far = radius_of(wide)
    assert np.all(fractions[0][far > diameter * max(shape[:2]) / 2 + np.sqrt(0.5)] == 1)
    beyond = (far < diameter * max(shape[:2]) / 2 - np.sqrt(0.5)) & (far > max(shape[:2]) / 2)
    if diameter > 1:
        assert fractions[1][beyond].mean() > 0.2  # there is material beside the field of view
    if diameter >= np.sqrt(2):
        assert label[radius_of(shape) > max(shape[:2]) / 2].any()  # and in its corners


def test_the_label_lies_on_the_image_of_a_sample_that_sticks_out():
    """Odd and even sizes: the crop is centred on the axis; a shift of a voxel would cost correlation."""
    for shape in ([33, 24], [24, 24]):
        dataset = make(
            shape=shape,
            sample_diameter=1.37,
            scanner=scanner(geometry=ParallelBeam(90), reconstruction=FBP(padding="edge"), noise_sd=0.0),
        )
        image, label, _ = dataset.pair(1, 0)
        inner = (slice(4, -4), slice(4, -4))
        fit = {
            shift: np.corrcoef(np.roll(label, shift, (0, 1))[inner].ravel(), image[inner].ravel())[0, 1]
            for shift in [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]
        }
        assert max(fit, key=fit.get) == (0, 0)


def test_oversampling_leaves_structure_and_label_alone():
    plain, fine = make(scanner=scanner(noise_sd=0.0)), make(scanner=scanner(noise_sd=0.0, oversampling=3))
    (image, label, facts), (image3, label3, facts3) = plain.pair(2, 0), fine.pair(2, 0)
    np.testing.assert_array_equal(label, label3)
    assert facts["reached"]["radii_um"] == facts3["reached"]["radii_um"]
    assert not np.array_equal(image, image3) and np.corrcoef(image.ravel(), image3.ravel())[0, 1] > 0.9
    fractions = [dataset._sample(2, 0)[0] for dataset in (plain, fine)]
    assert fractions[0].shape == (2, 24, 32) and fractions[1].shape == (2, 72, 96)
    np.testing.assert_allclose(fractions[1].reshape(2, 24, 3, 32, 3).mean((2, 4)), fractions[0], atol=1e-6)


def test_an_oversampled_volume_is_finer_across_the_axis_only_unless_the_beam_is_a_cone():
    changes = {"shape": [8, 12, 16], "microstructure": Spheres(fraction=0.3, mean_radius_um=0.9)}
    for geometry, expected in (
        (ParallelBeam(10), (2, 24, 36, 16)),
        (ConeBeam(10, source_object_mm=0.1), (2, 24, 36, 48)),
    ):
        dataset = make(**changes, scanner=scanner(geometry=geometry, oversampling=3))
        assert dataset._sample(0, 0)[0].shape == expected
        image, label, _ = dataset.pair(0, 0)
        assert image.shape == label.shape == (8, 12, 16)


# Recipe


def full_recipe(**changes):
    """A scanner of many parts, one of them nested values of a range."""
    parts = {
        "source": Tube(kvp=60, filters_mm={"Al": 0.5}, energy_step_kev=1.0),
        "geometry": ParallelBeam(30, start_angle_deg=[0, 10]),
        "detector": Detector(photons=[1000, 2000], scintillator="CsI", scintillator_um=150.0),
        "motion": Motion(drift_px=[0, 1]),
        "stripes": Stripes(gain_sd=0.01),
    }
    return make(scanner=Scanner(**parts | changes))


def test_the_same_recipe_is_the_same_json():
    text = json.dumps(full_recipe().recipe(), sort_keys=True)
    assert json.dumps(full_recipe().recipe(), sort_keys=True) == text
    assert json.loads(text) == full_recipe().recipe()  # plain values: lists, no tuples
    described = full_recipe().recipe()["scanner"]
    assert described["type"] == "Scanner" and described["detector"]["photons"] == [1000, 2000]
    assert described["source"]["filters_mm"] == {"Al": 0.5} and described["scatter"] is None
    # a list and a tuple, an integer and a float are the same recipe
    assert full_recipe(motion=Motion(drift_px=(0.0, 1.0))).recipe() == full_recipe().recipe()


@pytest.mark.parametrize(
    "changes",
    [
        {"source": Tube(kvp=60, filters_mm={"Al": 0.6}, energy_step_kev=1.0)},
        {"source": Monochromatic(30.0)},
        {"geometry": ParallelBeam(30, start_angle_deg=[0, 11])},
        {"geometry": ConeBeam(30, start_angle_deg=[0, 10], angular_range_deg=180.0)},
        {"detector": Detector(photons=[1000, 2001], scintillator="CsI", scintillator_um=150.0)},
        {"detector": Detector(photons=[1000, 2000], scintillator="YAG", scintillator_um=150.0)},
        {"motion": Motion(drift_px=[0, 1.5])},
        {"motion": None},
        {"stripes": Stripes(gain_sd=0.02)},
        {"propagation": Propagation(distance_mm=0.0)},
        {"reconstruction": FBP("hann")},
        {"reconstruction": SIRT()},
        {"ring_filter": "sorting"},
        {"oversampling": 3},
        {"normalisation": "percentiles"},
        {"backend": "astra"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_change_anywhere_in_the_scanner_is_another_data_set(changes, tmp_path):
    full_recipe()._claim(tmp_path, 1, 0)
    full_recipe()._claim(tmp_path, 1, 0)  # the same one may go on
    before = tree(tmp_path)
    with pytest.raises(
        ValueError, match=r"holds another data set: its scanner is .*; choose a new output_dir"
    ) as caught:
        full_recipe(**changes)._claim(tmp_path, 1, 0)
    assert "\n" not in str(caught.value) and tree(tmp_path) == before


def test_a_measured_spectrum_is_known_by_its_content(tmp_path):
    path = tmp_path / "spectrum.txt"
    path.write_text("20 1\n30 2\n40 1\n")
    make(scanner=scanner(source=MeasuredSpectrum(str(path))))._claim(tmp_path / "set", 1, 0)
    path.write_text("20 1\n30 2\n40 2\n")
    with pytest.raises(ValueError, match="holds another data set: its scanner"):
        make(scanner=scanner(source=MeasuredSpectrum(str(path))))._claim(tmp_path / "set", 1, 0)


@pytest.mark.parametrize("supersample", [1, 3, 5])
def test_labels_favour_no_phase(supersample):
    """A voxel that two phases share equally must not always go to the same one."""
    spheres = Spheres(fraction=0.45, mean_radius_um=6.0, radius_cv=0.2)
    quick = scanner(geometry=ParallelBeam(2))
    dataset = make(microstructure=spheres, scanner=quick, shape=[64, 64], supersample=supersample)
    errors, variance = [], 0.0
    for index in range(16):
        _, label, facts = dataset.pair(0, index)
        errors.append(label.mean() - 0.45)
        variance += 0.458 * sum(facts["reached"]["radii_um"]) / 0.5 / label.size**2  # Kendall: test_spheres.py
    assert abs(np.mean(errors)) < 4 * np.sqrt(variance) / 16  # four standard errors of lattice noise


def test_a_volume_and_a_box_that_is_no_cube(tmp_path):
    dataset = make(shape=[8, 12, 16], microstructure=Spheres(fraction=0.3, mean_radius_um=0.9, radius_cv=0.1))
    dataset.generate(str(tmp_path / "solid"), count=3)
    listed = json.loads((tmp_path / "solid" / "dataset.json").read_text())
    assert listed["tensorImageSize"] == "3D"
    image = nib.load(tmp_path / "solid" / listed["training"][0]["image"])
    assert image.shape == (8, 12, 16) and image.header.get_zooms() == (0.5, 0.5, 0.5)


def test_a_finished_set_is_left_as_it_is(copied):
    before = {p: p.stat().st_mtime_ns for p in copied.glob("*/*")}
    contents = tree(copied)
    make().generate(str(copied), count=10, seed=5)
    assert tree(copied) == contents
    assert {p: p.stat().st_mtime_ns for p in copied.glob("*/*")} == before


@pytest.mark.parametrize("harm", ["corrupt", "truncate", "delete", "params"])
def test_a_damaged_pair_is_made_again(made, copied, harm):
    image = copied / "images" / "tiny_00004.nii.gz"
    params = copied / "params" / "tiny_00004.json"
    if harm == "corrupt":
        content = bytearray(image.read_bytes())
        content[len(content) // 2] ^= 255
        image.write_bytes(content)
    elif harm == "truncate":
        image.write_bytes(image.read_bytes()[:100])
    elif harm == "delete":
        image.unlink()
    else:
        params.write_text(params.read_text()[:50])
    others = {p: p.stat().st_mtime_ns for p in copied.glob("*/*") if "00004" not in p.name}
    make().generate(str(copied), count=10, seed=5)
    assert tree(copied) == tree(made)
    assert {p: p.stat().st_mtime_ns for p in others} == others


def test_more_pairs_keep_the_old_ones(copied):
    before = {p: p.stat().st_mtime_ns for p in copied.glob("*/*")}
    make().generate(str(copied), count=12, seed=5)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    listed = json.loads((copied / "dataset.json").read_text())
    assert sum(len(listed[k]) for k in ("training", "validation", "test")) == 12


@pytest.mark.parametrize(
    ("changes", "arguments", "names"),
    [
        ({}, {"seed": 6}, "seed is 5, asked was 6"),
        ({"voxel_size_um": 0.6}, {}, "voxel_size_um"),
        ({"phases": {"pore": "air", "particle": "Ni"}}, {}, "phases"),
        ({"scanner": scanner(source=Monochromatic(31.0))}, {}, "scanner"),
        ({"scanner": scanner(geometry=ParallelBeam(31))}, {}, "scanner"),
        ({"sample_diameter": 0.8}, {}, "sample_diameter is None, asked was 0.8"),
        ({}, {"count": 9}, "10 pairs, more than count=9"),
    ],
)
def test_another_recipe_or_a_smaller_set_is_refused(copied, changes, arguments, names):
    before = tree(copied)
    with pytest.raises(ValueError, match=names) as caught:
        make(**changes).generate(str(copied), **{"count": 10, "seed": 5} | arguments)
    assert "\n" not in str(caught.value)
    assert tree(copied) == before


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("keep me")
    with pytest.raises(ValueError, match=r"not empty and holds no recipe.json"):
        make().generate(str(tmp_path), count=3)
    assert tree(tmp_path) == {"thesis.txt": b"keep me"}


def test_an_empty_folder_is_used(tmp_path):
    assert make().generate(str(tmp_path), count=3).exists()


def test_a_run_killed_while_it_wrote_the_recipe_can_be_repeated(tmp_path):
    (tmp_path / ".tmp-0a1b2c3d-recipe.json").write_text('{"seed"')  # what bundle.volume_io.atomic_path leaves
    assert make().generate(str(tmp_path), count=3).exists()
    assert not list(tmp_path.rglob(".tmp-*"))


def test_a_full_disk_is_noticed_before_the_work(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(OSError, match="free on this disk") as caught:
        make().generate(str(tmp_path / "set"), count=10)
    assert "\n" not in str(caught.value)
    assert set(tree(tmp_path / "set")) <= {"recipe.json"}


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"shape": [24]}, "shape="),
        ({"shape": [24, 24, 24, 24]}, "shape="),
        ({"shape": "24"}, "shape='24'"),
        ({"shape": ["24", "24"]}, "shape="),
        ({"shape": [24, 4]}, "shape="),
        ({"shape": 24}, "shape=24"),
        ({"voxel_size_um": 0}, "voxel_size_um=0"),
        ({"voxel_size_um": float("nan")}, "voxel_size_um=nan"),
        ({"voxel_size_um": "0.5"}, "voxel_size_um='0.5'"),
        ({"supersample": 0}, "supersample=0"),
        ({"supersample": 4}, "odd"),
        ({"supersample": 2.0}, "supersample=2.0"),
        ({"split": [0.7, 0.2, 0.2]}, "split="),
        ({"split": [0.7, 0.3]}, "split="),
        ({"split": [1.2, -0.1, -0.1]}, "split="),
        ({"split": 0.7}, "split=0.7"),
        ({"split": ["0.7", "0.2", "0.1"]}, "split="),
        ({"phases": {"pore": "air"}}, "makes 2 phases"),
        ({"phases": {"pore": "air", "a": "Ni", "b": "Al"}}, "makes 2 phases"),
        ({"phases": {"pore": "air", "a": "unobtainium"}}, "unobtainium"),
        ({"phases": ["air", "Ni"]}, "phases="),
        ({"name": ""}, "name=''"),
        ({"name": "../up"}, "name='../up'"),
        ({"name": 5}, "name=5"),
        ({"microstructure": Spheres(fraction=0.3, mean_radius_um=50)}, "mean_radius_um=50"),
        ({"sample_diameter": 0}, "sample_diameter=0"),
        ({"sample_diameter": [1.5, 0.5]}, "sample_diameter="),
        ({"sample_diameter": "1"}, "sample_diameter='1'"),
        ({"scanner": scanner(oversampling=2)}, r"supersample=3 must be a multiple of .* oversampling=2"),
        ({"scanner": scanner(oversampling=3), "supersample": 5}, "supersample=5 .* oversampling=3"),
    ],
)
def test_bad_recipes_get_one_line(arguments, names):
    with pytest.raises(ValueError, match=names) as caught:
        make(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"count": 0},
        {"count": "10"},
        {"count": 3.0},
        {"count": True},
        {"seed": -1},
        {"seed": None},
        {"workers": 0},
        {"workers": "2"},
        {"workers": 1.5},
    ],
)
def test_bad_requests_leave_no_trace(tmp_path, arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}=.*must be an integer of at least"):
        make().generate(str(tmp_path / "set"), **{"count": 5} | arguments)
    assert not (tmp_path / "set").exists()


def test_phase_fractions_count_the_sub_voxels():
    labels = np.zeros((4, 6), np.uint8)
    labels[0, 0] = labels[2:, 4:] = 1
    labels[0, 1] = 2
    fractions = phase_fractions(labels, 3, [2, 2])
    assert fractions.shape == (3, 2, 3) and fractions.dtype == np.float32
    np.testing.assert_array_equal(fractions[1], [[0.25, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(fractions[2], [[0.25, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(fractions.sum(0), 1)
    np.testing.assert_array_equal(phase_fractions(labels, 3, [1, 3])[2], [[1 / np.float32(3), 0], *[[0, 0]] * 3])


@pytest.mark.parametrize("shares", [(0.7, 0.2, 0.1), (0.98, 0.01, 0.01), (0.5, 0.5, 0.0), (1 / 3, 1 / 3, 1 / 3)])
@pytest.mark.parametrize("count", [3, 4, 7, 10, 101, 1000])
def test_splits_are_disjoint_complete_and_near_the_shares(count, shares):
    parts = split_indices(count, shares, 0)
    assert sorted(i for part in parts for i in part) == list(range(count))
    for part, share in zip(parts, shares, strict=True):
        assert (len(part) > 0) == (share > 0)
        if min(s for s in shares if s) * count >= 1:
            assert abs(len(part) - share * count) < 1
    assert parts == split_indices(count, shares, 0)
    if count >= 101:
        assert parts != split_indices(count, shares, 1)


@pytest.mark.parametrize("count", [1, 2])
def test_the_first_pairs_are_for_training(count):
    training, validation, test = split_indices(count, (0.7, 0.2, 0.1), 0)
    assert len(training) == 1 and len(validation) == count - 1 and not test


SCRIPT = """
import sys

def dataset(config_file):
    from monai.bundle import ConfigParser  # the workers import this file too, and need no MONAI

    parser = ConfigParser(ConfigParser.load_config_file(config_file))
    parser["source"]["energy_step_kev"] = 1.0  # ten times quicker
    parser["shape"] = [64, 64]
    return parser.get_parsed_content("dataset")

if __name__ == "__main__":
    dataset(sys.argv[1]).generate(sys.argv[2], count=int(sys.argv[3]), seed=0, workers=2)
"""


def test_a_killed_run_is_resumed_by_the_bundle_command(tmp_path):
    """kill -9 in the middle; then `monai.bundle run` from another directory; against a run that nobody disturbed."""
    count, config, script = 64, ROOT / "configs" / "generate_spheres.json", tmp_path / "generate.py"
    out, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    elsewhere.mkdir()
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(config), str(out), str(count)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 600  # a busy machine is no failure
        while len(list(out.glob("params/spheres_*.json"))) < 3:
            assert process.poll() is None and time.monotonic() < deadline, "no pair was written"
            time.sleep(0.005)
        family = psutil.Process(process.pid).children(recursive=True)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert len(family) >= 2
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, "workers outlived their parent"
    done = [p.stem for p in out.glob("params/spheres_*.json")]
    assert 3 <= len(done) < count and not (out / "manifest.json").exists()
    kept = {p: p.stat().st_mtime_ns for stem in done for p in out.glob(f"*/{stem}.*")}
    assert len(kept) == 3 * len(done)

    command = f"--config_file {config} --bundle_root {ROOT} --output_dir {out} --count {count} --shape [64,64]"
    command += " --workers 1 --source#energy_step_kev 1.0"
    ended = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", *command.split()],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert f"done: {out / 'dataset.json'}" in ended.stdout
    assert not list(elsewhere.iterdir())
    assert {p: p.stat().st_mtime_ns for p in kept} == kept  # what was done was not made again
    assert not list(out.rglob(".tmp-*"))

    undisturbed = tmp_path / "undisturbed"
    runpy.run_path(str(script))["dataset"](str(config)).generate(str(undisturbed), count=count, seed=0)
    assert tree(out) == tree(undisturbed)
