"""Structures from a file: what is enlarged keeps its size, its place and its phases."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from bundle.volume_io import write_tiff
from data_gen.microstructure import Segmented

STILL = {"file_voxel_um": 2.0, "axes": [0, 1, 2], "flips": [0, 0, 0], "place": [0.0, 0.0, 0.5]}


def ball(n: int = 25, radius: float = 8.0) -> np.ndarray:
    at = np.indices((n, n, n)) - (n - 1) / 2
    return ((at**2).sum(0) <= radius**2).astype(np.uint8)


@pytest.fixture
def path(tmp_path):
    write_tiff(tmp_path / "ball.tif", ball(), None)
    return tmp_path / "ball.tif"


def test_a_disc_is_enlarged_and_round(path):
    labels, facts = Segmented(path, 2.0).build((200, 200), 0.25, STILL, None)
    # the interface moves by less than half a voxel of the file, here 4 pixels of 64
    assert np.sqrt(labels.sum() / np.pi) == pytest.approx(64, abs=4)
    at = np.argwhere(labels) - 99.5
    assert np.abs(at.mean(0)).max() < 1
    x, y = np.hypot(*np.argwhere(labels & ~np.roll(labels, 1, 0)).T - 99.5), 64
    assert np.abs(x - x.mean()).max() < 4, y  # no stairs: those of the file are 8 pixels high
    assert facts == {"file_voxels": [25.0, 25.0]}


def test_a_volume_keeps_its_volume(path):
    labels, _ = Segmented(path, 2.0).build((50, 50, 50), 1.0, STILL, None)
    assert labels.mean() == pytest.approx(ball().mean(), rel=0.05)
    assert labels.dtype == np.uint8


def test_three_phases_stay_apart(tmp_path):
    layers = np.repeat(np.array([0, 1, 2], np.uint8), 8)[:, None] * np.ones((1, 24), np.uint8)
    write_tiff(tmp_path / "layers.tif", layers, None)
    made = Segmented(tmp_path / "layers.tif", 1.0, n_classes=3)
    parameters = {**STILL, "file_voxel_um": 1.0, "axes": [0, 1], "flips": [0, 0], "place": [0.0, 0.0]}
    labels, _ = made.build((96, 96), 0.25, parameters, None)
    assert np.array_equal(labels[:, 0], np.repeat([0, 1, 2], 32))


def test_what_is_drawn_is_plain_and_decides_the_sample(path):
    made = Segmented(path, [1.0, 2.0])
    parameters = [made.draw(np.random.default_rng(k)) for k in (1, 1, 2)]
    assert json.loads(json.dumps(parameters[0])) == parameters[1]
    one, same, other = (made.build((20, 20), 0.5, p, None)[0] for p in parameters)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert json.loads(json.dumps(asdict(made)))["sha256"] == made.sha256


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"path": "absent.tif"}, "absent.tif"),
        ({"file_voxel_um": 0.0}, "file_voxel_um"),
        ({"sha256": "0"}, "has changed"),
    ],
)
def test_bad_arguments(path, options, said):
    with pytest.raises(ValueError, match=said):
        Segmented(**{"path": path, "file_voxel_um": 1.0, **options})


def test_more_labels_than_classes(tmp_path):
    write_tiff(tmp_path / "three.tif", np.arange(64, dtype=np.uint8).reshape(8, 8) % 3, None)
    with pytest.raises(ValueError, match="n_classes=2"):
        Segmented(tmp_path / "three.tif", 1.0)


def test_a_sample_larger_than_the_file(path):
    with pytest.raises(ValueError, match=r"25 µm wide"):
        Segmented(path, 1.0).check((256, 256), 0.5)
