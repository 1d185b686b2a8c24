"""Comparison of simulated with real scans, on numbers and images that are known."""

import numpy as np
import pytest

from data_gen.image_quality import describe
from data_gen.likeness import compare, otsu_label, quality


@pytest.fixture(scope="module")
def discs() -> tuple[np.ndarray, np.ndarray]:
    at = np.indices((160, 160))
    label = np.zeros((160, 160), np.uint8)
    for x, y in ((40, 40), (40, 120), (120, 40), (120, 120)):
        label |= (at[0] - x) ** 2 + (at[1] - y) ** 2 <= 36**2
    return 3.0 + 2.0 * label + np.random.default_rng(0).normal(0, 0.1, label.shape), label


def test_otsu_finds_the_bright_phase(discs):
    image, label = discs
    assert (otsu_label(image) != label).mean() < 0.005
    image = image.copy()
    image[0, :2] = 1e6  # zingers
    assert (otsu_label(image) != label).mean() < 0.005


def test_quality_is_that_of_the_bright_phase(discs):
    image, label = discs
    assert quality(image, label) == describe(image, label, 1, 0, speck_px=25)
    assert quality(image)["noise_over_contrast"] == pytest.approx(0.05, rel=0.05)


def test_median_within_the_range():
    rows = compare(
        [{"a": 1.0, "b": 5.0, "c": None}, {"a": 2.0, "b": 6.0, "c": None}],
        [{"a": 0.0, "b": 1.0, "c": 1.0}, {"a": 1.5, "b": None, "c": 1.0}, {"a": 1.8, "b": 5.5, "c": 1.0}],
    )
    a, b, c = rows
    assert (a.real, a.simulated, a.median_is_inside) == ((1, 2), (0, 1.5, 1.8), True)
    assert a.share_inside == pytest.approx(2 / 3)
    assert (b.simulated, b.median_is_inside, b.share_inside) == ((1, 3.25, 5.5), False, 0.5)
    assert (c.real, c.median_is_inside, c.share_inside) == (None, False, 0)
