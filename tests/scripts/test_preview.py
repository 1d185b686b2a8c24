"""The page of a recipe, the scanner recipes, and how like real scans the nano-CT recipe is."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigParser

from bundle.volume_io import read_volume, write_tiff
from data_gen.dataset import SyntheticDataset
from data_gen.likeness import MATCHED, compare, quality

RECIPES = ("lab_microct", "lab_nanoct", "synchrotron_microct", "synchrotron_nanoct_zernike", "ptychography")
NANOCT = "scanner_synchrotron_nanoct_zernike.json"


def dataset(root: Path, overlay: str, **values) -> SyntheticDataset:
    parser = ConfigParser()
    parser.read_config([str(root / "configs" / name) for name in ("generate_spheres.json", overlay)])
    for key, value in values.items():
        parser[key] = value
    return parser.get_parsed_content("dataset")


def preview(root: Path, folder: Path, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(root / "scripts/preview.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", RECIPES)
def test_overlay_makes_a_pair(root, name):
    made = dataset(root, f"scanner_{name}.json", shape=[128, 128])
    image, label, facts = made.pair(0, 0)
    assert image.shape == label.shape == (128, 128)
    assert np.isfinite(image).all()
    assert set(np.unique(label)) == {0, 1}
    assert image[label == 1].mean() > image[label == 0].mean()
    assert json.loads(json.dumps(facts["drawn"])) == facts["drawn"]
    json.dumps(made.recipe())


def test_the_sinogram_is_that_of_the_image(root):
    """Without normalisation the image is the reconstruction of the sinogram, to the last bit."""
    made = dataset(root, "scanner_ptychography.json", shape=[128, 128], **{"scanner::normalisation": "none"})
    image, _, facts = made.pair(0, 1)
    angles = made.scanner.geometry.angles_rad(facts["drawn"]["scanner"]["geometry"])
    again = made.scanner.reconstruct(made.sinogram(0, 1), angles, (128, 128), made.voxel_size_um)
    assert np.array_equal(again[..., 0], image)


def test_the_page_is_drawn(root, tmp_path):
    rng = np.random.default_rng(0)
    label = np.kron(rng.integers(2, size=(4, 4)), np.ones((40, 40), int)).astype(np.uint8)
    write_tiff(tmp_path / "real.tif", (label + rng.normal(0, 0.1, label.shape)).astype(np.float32), None)
    write_tiff(tmp_path / "label.tif", 1 - label, None)
    configs = [root / "configs/generate_spheres.json", root / "configs/scanner_synchrotron_microct.json"]
    more = ("--shape", 96, 96, "--real", "real.tif", "--real-label", "label.tif", "--bright", 0, "--json", "table.json")
    result = preview(root, tmp_path, *configs, *more)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "preview.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((tmp_path / "table.json").read_text())
    assert {"contrast_to_noise", "cupping"} <= {row["name"] for row in rows}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["label.tif", "preview.png", "real.tif", "table.json"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent.json"], "absent.json: no such recipe"),
        (["configs/train.json"], "has no dataset"),
        (["configs/generate_spheres.json", "--shape", "16", "16"], "mean_radius_um"),
        (["configs/generate_spheres.json", "--structure", "absent.tif"], "absent.tif"),
        (["configs/generate_spheres.json", "--real", "absent.tif"], "absent.tif"),
    ],
)
def test_a_mistake_is_one_line(root, tmp_path, arguments, said):
    result = preview(root, root, *arguments, "--out", tmp_path / "page.png")
    assert result.returncode == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_nanoct_scan_of_a_real_structure_is_like_real_scans(root):
    """Contrast-to-noise, edge width, noise spectrum and cupping: the median of the scans lies in the real range."""
    real = root.parent / "shared/real"
    structure = real / "structures/nmc_128_label.tif"
    paths = [real / f"nmc_nanoct/{name}.tif" for name in ("a_1", "a_100", "a_200", "d_1501")]
    if not all(path.is_file() for path in (structure, *paths)):
        pytest.skip("needs the real scans and the real structure in ../shared/real")
    made = dataset(
        root,
        NANOCT,
        shape=[512, 512],
        # one voxel of the file becomes 8: mean chords of 37 pixels, where the real slices have 19 to 88
        microstructure={
            "_target_": "data_gen.microstructure.Segmented",
            "path": str(structure),
            "file_voxel_um": "$8 * @voxel_size_um",
        },
    )
    simulated = [quality(image) for image, _, _ in made.pairs(1, [0, 1, 2])]
    rows = compare([quality(read_volume(path, 1.0).array) for path in paths], simulated)
    outside = [row for row in rows if row.name in MATCHED and not row.median_is_inside]
    assert not outside
