"""The gallery: the view of a volume against closed forms, and one material from its config to the picture."""

import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "microstructure_gallery.py"


@pytest.fixture
def script(monkeypatch):
    """The names of the script, which nothing may import."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    return runpy.run_path(str(SCRIPT), run_name="gallery")


def drawn(picture):
    return (picture < 255).any(axis=-1)


def half_width(n):
    """Half the width of the view, in voxels: a cube of n from the direction (0.60, 0.48, 0.64), 2 % of margin.

    Its corners stick out farthest upwards: |up| = (0.5, 0.4, 0.768) · n/2 summed, as (0.60, 0.48) turned by the height.
    """
    across = math.hypot(0.60, 0.48)
    up = (0.64 * 0.60 / across + 0.64 * 0.48 / across + across) * n / 2
    right = (0.48 + 0.60) / across * n / 2
    return 1.02 * max(up, right)


def test_a_ball_is_seen_as_a_disc(script):
    n, radius, pixels = 64, 24, 128
    at = np.indices((n, n, n)) - (n - 1) / 2
    picture = script["volume_view"](((at**2).sum(0) <= radius**2).astype(np.uint8), 2, pixels)
    assert picture.shape == (pixels, pixels, 3) and picture.dtype == np.uint8
    seen = drawn(picture)
    edge = 2 * half_width(n) / pixels  # of a pixel, in voxels
    # the ball's outline is known to half a voxel, of 24
    assert seen.sum() * edge**2 == pytest.approx(math.pi * radius**2, rel=2 * 0.5 / radius)
    rows, columns = np.nonzero(seen)
    assert rows.mean() == pytest.approx((pixels - 1) / 2, abs=1) and columns.mean() == pytest.approx(63.5, abs=1)


def test_a_box_shows_three_faces_and_an_empty_one_nothing(script):
    n, pixels = 40, 100
    box = np.ones((n, n, n), np.uint8)
    seen = drawn(script["volume_view"](box, 2, pixels))
    # a face of a cube covers its area times the cosine to the ray
    area = (0.60 + 0.48 + 0.64) * n**2 / math.hypot(0.60, 0.48, 0.64)
    assert seen.sum() * (2 * half_width(n) / pixels) ** 2 == pytest.approx(area, rel=0.05)
    assert not drawn(script["volume_view"](np.zeros_like(box), 2, pixels)).any()


def test_the_nearest_phase_hides_what_is_behind_it(script):
    labels = np.zeros((32, 32, 32), np.uint8)
    labels[:, :, 16:] = 1  # seen from above
    labels[:, :, :16] = 2
    picture = script["volume_view"](labels, 3, 96).astype(float)
    colours = script["palette"](3).astype(float)
    # the view shades colours: it scales all three channels alike
    hue, colours = picture / picture.max(-1, keepdims=True), colours / colours.max(-1, keepdims=True)
    nearest = np.linalg.norm(hue[..., None, :] - colours, axis=-1).argmin(-1)
    upper, lower = (np.nonzero(drawn(picture) & (nearest == k))[0] for k in (1, 2))
    assert upper.mean() < lower.mean()
    assert len(upper) > len(lower) > 100  # the upper one has the top face, too


def test_every_config_that_needs_no_file_has_a_place(script):
    names = {path.stem.removeprefix("generate_") for path in (ROOT / "configs").glob("generate_*.json")}
    assert set(script["VOLUMES"]) == set(script["TITLES"]) == names - {"from_labels"}


def test_one_material_from_its_config_to_the_picture(script, tmp_path, monkeypatch, capsys):
    path = tmp_path / "new" / "gallery.png"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(path), "--materials", "spheres", "--index", "0"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert caught.value.code == 0
    assert "gallery.png" in capsys.readouterr().out
    assert [p.name for p in path.parent.iterdir()] == ["gallery.png"]
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert picture.shape == (16 + 256 + 16 + 12, 6 * 256 + 7 * 6 + 10, 3)
    labels, scan, view = (picture[30:270, 6 + k * 262 : 256 + k * 262].reshape(-1, 3) for k in range(3))
    assert len(np.unique(labels, axis=0)) < len(np.unique(scan, axis=0))
    assert scan.std() > 20 and 0.1 < (view < 250).any(-1).mean() < 0.9
    assert (picture[:, 3 * 262 + 20 :] == 255).all()  # the other half of the page is empty
