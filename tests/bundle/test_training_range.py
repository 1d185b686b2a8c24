"""What a data set is like in numbers, against images of known noise, widths and shares; and what a scan is told."""

import json

import numpy as np
import pytest
from monai.transforms import ScaleIntensityRangePercentilesd

from bundle.training_range import (
    as_network_sees,
    describe_dataset,
    fraction_mismatches,
    grey_statistics,
    noise_sd,
    scan_mismatches,
)
from bundle.volume_io import affine_from_voxel_size, sha256, write_nifti

PERCENTILES = [{"_target_": "ScaleIntensityRangePercentilesd"}]


def stripes(shape, width, low=1.0, high=3.0):
    """Stripes along x of one width: class 1 where bright."""
    labels = (np.arange(shape[0]) // width % 2).astype(np.uint8)
    labels = np.broadcast_to(labels.reshape(-1, *[1] * (len(shape) - 1)), shape)
    return np.where(labels > 0, high, low).astype(np.float32), np.ascontiguousarray(labels)


@pytest.mark.parametrize("shape", [(256, 256), (128, 128, 12)])
def test_noise_on_edges(shape):
    image, _ = stripes(shape, 16)
    noisy = image + np.random.default_rng(0).normal(0, 0.05, shape)
    # the median of n second differences is good to about 1.25/sqrt(n), less for their correlation; edges touch 1 in 8
    assert noise_sd(noisy) == pytest.approx(0.05, rel=0.02)
    assert noise_sd(image) == 0


@pytest.fixture
def dataset(tmp_path):
    """Four training images of 32 x 24 pixels, stripes 4 wide; grey values grow from image to image."""
    pairs = []
    for k in range(4):
        image, labels = stripes((32, 24), 4)
        affine = affine_from_voxel_size((0.5, 0.5))
        write_nifti(tmp_path / f"i{k}.nii", image + k, affine)
        write_nifti(tmp_path / f"l{k}.nii", labels, affine)
        pairs.append({"image": f"i{k}.nii", "label": f"l{k}.nii"})
    content = {"name": "stripes", "labels": {"0": "dark", "1": "bright"}, "training": pairs, "test": pairs[:1]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return tmp_path


def test_description(dataset):
    (dataset / "recipe.json").write_text('{"seed": 3}')
    found = describe_dataset(dataset, lambda image: image / 2)
    assert found["pairs"] == {"training": 4, "validation": 0, "test": 1} and found["pairs_measured"] == 4
    assert found["recipe"] == {"seed": 3} and found["recipe_sha256"] == sha256(dataset / "recipe.json")
    assert found["manifest_sha256"] is None
    assert found["voxel_size_um"] == [0.5, 0.5] and found["shape"] == [32, 24]
    assert found["grey"]["lowest"] == [1, 4] and found["grey"]["highest"] == [3, 6]
    assert found["scaled"]["mean"] == [1, 2.5]
    dark, bright = found["classes"]
    assert dark == {"name": "dark", "fraction": [0.5, 0.5], "mean_grey": pytest.approx(1.25), "width_voxels": [4, 4]}
    assert bright["mean_grey"] == pytest.approx(2.25)


def test_data_set_that_is_none(dataset):
    with pytest.raises(FileNotFoundError, match="--dataset"):
        describe_dataset(dataset / "none", lambda image: image)
    (dataset / "dataset.json").write_text('{"labels": {"0": "a", "1": "b"}}')
    with pytest.raises(ValueError, match="no training pairs"):
        describe_dataset(dataset, lambda image: image)


def test_image_without_a_voxel_size(dataset):
    np.save(dataset / "i0.npy", stripes((32, 24), 4)[0])
    content = json.loads((dataset / "dataset.json").read_text())
    content["training"][0]["image"] = "i0.npy"
    (dataset / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"i0\.npy: does not say how large a voxel is"):
        describe_dataset(dataset, lambda image: image)


def test_as_network_sees():
    transform = ScaleIntensityRangePercentilesd("image", 0, 100, 0, 1)
    scaled = as_network_sees(np.arange(12, dtype=np.uint16).reshape(3, 4), transform)
    np.testing.assert_allclose(scaled, np.arange(12).reshape(3, 4) / 11, rtol=1e-6)
    assert scaled.dtype == np.float32


@pytest.fixture
def trained():
    """Data of stripes with noise 0.02 … 0.03, mean 0.45 … 0.55, at 0.5 µm."""
    return {
        "voxel_size_um": [0.5, 0.5],
        "grey": {"percentile_0.5": [0.0, 0.1], "percentile_99.5": [0.9, 1.0]},
        "scaled": {"mean": [0.45, 0.55], "noise": [0.02, 0.03]},
        "classes": [{"name": "dark", "fraction": [0.4, 0.6]}, {"name": "bright", "fraction": [0.4, 0.6]}],
    }


def scan(noise=0.025, offset=0.0):
    image = stripes((64, 64), 8, 0.0, 1.0)[0]
    return image + offset + np.random.default_rng(1).normal(0, noise, image.shape).astype(np.float32)


def test_scan_like_the_training_data_is_no_warning(trained):
    assert scan_mismatches(trained, scan(), scan(), (0.5, 0.55), PERCENTILES) == []
    assert scan_mismatches(trained, 1000 * scan(), scan(), (0.5, 0.5), PERCENTILES) == []  # rescaled anyway


@pytest.mark.parametrize(
    ("image", "raw", "size", "steps", "words"),
    [
        (scan(), scan(), 0.05, PERCENTILES, ["0.05 µm, trained at 0.5 µm", "10 times larger", "resample"]),
        (scan(), scan(), 2.0, PERCENTILES, ["4 times smaller", "--voxel_size_um 2"]),
        (scan(0.1), scan(0.1), 0.5, PERCENTILES, ["noise 0.1", "denoise"]),
        (scan(offset=0.4), scan(), 0.5, PERCENTILES, ["mean grey value 0.9", "crop"]),
        (scan(), 1000 * scan(), 0.5, [{"_target_": "ScaleIntensityRanged"}], ["does not rescale", "bring the scan"]),
    ],
)
def test_scan_unlike_the_training_data(trained, image, raw, size, steps, words):
    found = scan_mismatches(trained, raw, image, (size, size), steps)
    assert len(found) == 1
    assert all(word in found[0] for word in words), found


def test_result_unlike_the_training_data(trained):
    assert fraction_mismatches(trained, [0.65, 0.35]) == []
    assert fraction_mismatches(trained, [0.05, 0.95]) == [
        f"{name} of the result, 40% to 60% of the training images: look at overlay.png before using the numbers"
        for name in ("dark fills 5%", "bright fills 95%")
    ]


def test_statistics():
    image = stripes((32, 32), 8, 0.0, 1.0)[0]
    assert grey_statistics(image) == {"mean": 0.5, "sd": 0.5, "noise": 0.0}
