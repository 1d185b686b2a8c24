"""Oracles: images whose classes are known because they were painted, and what scikit-image gives on them."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.filters import threshold_multiotsu, threshold_otsu

from bundle.baselines import (
    BASELINES,
    describe,
    grey_order,
    kmeans,
    match_order,
    multi_otsu_extra,
    otsu,
    segment_in_truth_order,
)

ALL = pytest.mark.parametrize("name", BASELINES)
SHAPES = pytest.mark.parametrize("shape", [(96, 80), (32, 28, 30)])


def _structure(shape: tuple[int, ...], n_classes: int, seed: int = 0) -> np.ndarray:
    """Smooth random phases of equal volume."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 4, mode="wrap")
    return np.digitize(field, np.quantile(field, np.arange(1, n_classes) / n_classes)).astype(np.uint8)


def _scan(truth: np.ndarray, levels: list[float], noise: float, seed: int = 1) -> np.ndarray:
    image = np.asarray(levels)[truth]
    return (image + noise * np.random.default_rng(seed).standard_normal(truth.shape)).astype(np.float32)


@SHAPES
@pytest.mark.parametrize("levels", [[0.0, 1.0], [-3.0, 7.0], [0.0, 0.3, 1.0], [0.1, 0.31, 0.32, 5.0]])
def test_otsu_is_perfect_on_clean_levels(shape, levels):
    # 0.3 lies in the upper half of its histogram bin: a threshold at the bin's centre would misplace it all.
    truth = _structure(shape, len(levels))
    image = _scan(truth, levels, 0)
    for baseline in (otsu, multi_otsu_extra):
        labels = baseline(image, len(levels))
        assert labels.dtype == np.uint8 and np.array_equal(labels, truth)


@ALL
@SHAPES
@pytest.mark.parametrize("n_classes", [2, 3])
def test_labels_are_complete_and_rise_with_the_grey_value(name, shape, n_classes):
    image = _scan(_structure(shape, n_classes), list(np.linspace(0, 1, n_classes)), 0.05)
    labels = BASELINES[name](image, n_classes)
    assert labels.dtype == np.uint8 and labels.shape == image.shape
    assert np.array_equal(np.unique(labels), np.arange(n_classes))
    assert np.all(np.diff(ndimage.mean(image, labels, np.arange(n_classes))) > 0)


@ALL
def test_pure_and_blind_to_offset_and_gain(name):
    image = _scan(_structure((64, 60), 2), [0.2, 0.8], 0.1)
    before = image.copy()
    labels = BASELINES[name](image, 2)
    assert np.array_equal(image, before)
    assert np.array_equal(BASELINES[name](image, 2), labels)
    assert np.mean(BASELINES[name](1000 * image + 30_000, 2) != labels) < 0.01  # float32 rounding moves a few


@ALL
@SHAPES
def test_two_phases_in_little_noise_are_found(name, shape):
    truth = _structure(shape, 2)
    labels = BASELINES[name](_scan(truth, [0.0, 1.0], 0.1), 2)
    # Allow for the interfaces, which k-means and the median displace.
    assert np.mean(labels == truth) > 0.95


@pytest.mark.parametrize("n_classes", [2, 3])
def test_otsu_agrees_with_scikit_image(n_classes):
    image = _scan(_structure((100, 90), n_classes), list(np.linspace(0, 1, n_classes)), 0.2)
    thresholds = [threshold_otsu(image)] if n_classes == 2 else threshold_multiotsu(image, n_classes)
    # Ours cuts at bin edges, scikit-image at centres: half a bin of 1/256 of the range, so few voxels differ.
    assert np.mean(otsu(image, n_classes) != np.digitize(image, thresholds)) < 0.01


@pytest.mark.parametrize("name", ["otsu_median", "otsu_tv", "kmeans"])
@SHAPES
def test_denoising_helps_in_noise(name, shape):
    truth = _structure(shape, 2)
    image = _scan(truth, [0.0, 1.0], 0.5)
    assert np.mean(BASELINES[name](image, 2) == truth) > np.mean(otsu(image, 2) == truth) + 0.05


def test_extra_class_joins_the_nearer_neighbour():
    truth = np.repeat(np.arange(3, dtype=np.uint8), 30)[:, None] * np.ones((1, 20), dtype=np.uint8)
    image = _scan(truth, [0.0, 0.3, 1.0], 0.01)
    assert np.array_equal(multi_otsu_extra(image, 2), truth == 2)
    image = _scan(truth, [0.0, 0.7, 1.0], 0.01)
    assert np.array_equal(multi_otsu_extra(image, 2), truth >= 1)


def test_kmeans_fits_large_volumes_on_a_subset_and_labels_them_whole():
    truth = _structure((52, 50, 48), 2)
    image = _scan(truth, [0.0, 1.0], 0.2)
    assert image.size > 100_000
    labels = kmeans(image, 2)
    assert np.mean(labels == truth) > 0.9
    assert np.array_equal(kmeans(image, 2), labels)


@pytest.mark.parametrize("n_classes", [5, 6])
def test_many_classes_stay_affordable(n_classes):
    truth = _structure((60, 60), n_classes)
    assert np.mean(otsu(_scan(truth, list(range(n_classes)), 0.05), n_classes) == truth) > 0.98


@ALL
@pytest.mark.parametrize(
    ("image", "n_classes", "message"),
    [
        (np.full((20, 20), 3.0), 2, "constant"),
        (np.full((20, 20), np.nan), 2, "400 values that are not finite"),
        (np.eye(20), 1, "n_classes = 1"),
        (np.arange(20.0), 2, "shape"),
        (np.zeros((0, 4)), 2, "empty"),
    ],
)
def test_bad_input_is_one_clear_error(name, image, n_classes, message):
    with pytest.raises(ValueError, match=message) as caught:
        BASELINES[name](image, n_classes)
    assert "\n" not in str(caught.value)


def test_too_few_grey_levels():
    with pytest.raises(ValueError, match="only 2 grey levels"):
        otsu(np.eye(20), 3)


def test_grey_order_and_match_order():
    truth = np.array([[0, 0, 1], [1, 3, 3]])
    image = np.array([[5.0, 6.0, 1.0], [2.0, 9.0, 9.0]])
    assert grey_order(image, truth) == [1, 0, 3]
    labels = np.array([[1, 1, 0], [0, 2, 2]])
    assert np.array_equal(match_order(labels, image, truth), truth)
    with pytest.raises(ValueError, match="only the classes"):
        match_order(labels + 1, image, truth)
    with pytest.raises(ValueError, match="same shape"):
        match_order(labels[:1], image, truth)
    with pytest.raises(ValueError, match="same shape"):
        grey_order(image[:1], truth)


def test_truth_order_tells_numbers_and_count():
    truth = _structure((60, 60), 2)
    image = _scan(truth, [1.0, 0.0], 0.02)  # the background is the bright class
    numbered = np.where(truth == 1, 2, 0)
    assert np.array_equal(segment_in_truth_order("otsu", image, numbered, 3), numbered)


def test_truth_of_one_class_gives_no_help():
    image = _scan(_structure((60, 60), 2), [0.0, 1.0], 0.02)
    assert np.array_equal(segment_in_truth_order("otsu", image, np.ones((60, 60)), 2), otsu(image, 2))


def test_descriptions():
    assert all("\n" not in describe(name) and describe(name).endswith(".") for name in BASELINES)
    with pytest.raises(ValueError, match="unknown baseline 'watershed'; there are: otsu"):
        describe("watershed")
