"""Colours and scale bars, against what is counted by hand."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from bundle import pictures


def test_overlay_leaves_class_0_as_it_was_and_tints_the_phases():
    grey = pictures.to_grey(np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3))
    labels = np.array([[0, 1, 2]] * 4)
    tinted = pictures.overlay(grey, labels, 3)
    assert tinted.dtype == np.uint8 and np.array_equal(tinted[:, 0], grey[:, 0])
    expected = (1 - pictures.TINT) * grey[:, 1] + pictures.TINT * pictures.CLASS_COLOURS[1]
    np.testing.assert_allclose(tinted[:, 1], expected, atol=1)


def test_palette_keeps_its_dark_for_class_0():
    colours = pictures.palette(10)
    assert np.array_equal(colours[:8], pictures.CLASS_COLOURS) and np.array_equal(colours[8:], colours[1:3])


def test_errors_and_their_legend():
    truth, pred = np.array([[0, 0, 1, 1, 2]]), np.array([[0, 1, 0, 1, 1]])
    picture = pictures.error_map(pred, truth)[0].tolist()
    kinds = [pictures.FALSE_POSITIVE, pictures.FALSE_NEGATIVE, pictures.OTHER_ERROR]
    assert picture == [[255] * 3, *map(list, kinds[:2]), [225] * 3, list(kinds[2])]
    for names, n in ((["pore", "solid"], 2), (["pore", "solid", "binder"], 3)):
        legend = pictures.error_legend(names)
        assert [tuple(np.rint(np.array(p.get_facecolor()[:3]) * 255)) for p in legend] == kinds[:n]


@pytest.mark.parametrize(
    ("width_um", "text", "length_um"),
    [(128, "20 µm", 20), (40, "10 µm", 10), (4, "1 µm", 1), (0.3, "50 nm", 0.05), (9e4, "20000 µm", 2e4)],
)
def test_scale_bar_has_the_length_that_it_says(width_um, text, length_um):
    axes = Figure().subplots()
    pictures.show(axes, np.zeros((8, 4, 3), np.uint8), (width_um, width_um / 2))
    pictures.scale_bar(axes, width_um, width_um / 2)
    assert [t.get_text() for t in axes.texts] == [text]
    assert np.ptp(axes.lines[0].get_xdata()) == pytest.approx(length_um)
    assert axes.get_xlim() == (0, width_um) and axes.get_ylim() == (width_um / 2, 0)


def test_constant_image_is_drawn():
    image = np.full((6, 5), 7, np.uint8)
    assert not pictures.to_grey(image).any()
    pictures.segmentation_figure(image, np.zeros((6, 5), np.uint8), ["pore", "solid"], (1, 1))
