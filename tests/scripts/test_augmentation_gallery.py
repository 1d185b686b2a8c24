"""The page of augmentations, drawn for four of its rows."""

import subprocess
import sys
from pathlib import Path

from PIL import Image


def gallery(root: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(root / "scripts/augmentation_gallery.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_the_page_and_the_table(root, tmp_path):
    done = gallery(root, tmp_path, "--out", ".", "--only", "wrong centre", "counting noise", "low", "gamma")
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    names = ["RandMotiond", "RandReconstructionNoised", "RandGammad", "RandSimulateLowResolutiond"]
    assert [line[1] for line in lines] == ["transform", *names]
    cells = {line[1]: [line[column].split(" / ")[2] for column in (3, 4)] for line in lines[1:]}
    assert cells["RandGammad"] == ["–", "–"]
    # the last: what fades in the spectrum's cells, see test_motion; 128² values of noise of which a third is free, four
    # standard errors; a scan in voxels of 2.7 is blurred by its own interpolation, and the image is not
    for name, least, within in (
        ("RandMotiond", 0.99, 0.03),
        ("RandReconstructionNoised", 0.9, 0.04),
        ("RandSimulateLowResolutiond", 0.9, 0.3),
    ):
        correlation, amplitude = map(float, cells[name])
        assert correlation > least and abs(amplitude - 1) < within
    assert all(0 < float(line[5].strip(" |")) < 500 for line in lines[1:])
    with Image.open(tmp_path / "augmentation.png") as page:
        width, height = page.size
        assert page.mode == "L" and len(page.getcolors()) > 100  # fewer would draw contours that are not there
    assert width == 840 and height > 3 * 128  # a line of two rows with their scans, and one without


def test_the_table_of_parts(root, tmp_path):
    done = gallery(root, tmp_path, "--parts", "--only", "two jumps")
    assert done.returncode == 0, done.stderr[-2000:]
    *_, row = (line.strip("| ").split(" | ") for line in done.stdout.splitlines())
    assert row[0] == "two jumps of 4 px"
    patches, field, cut = ([float(value) for value in cell.split(" / ")] for cell in row[1::2])
    assert len(patches) == 3 and patches == sorted(patches) and min(patches + field) > 0.85 and min(cut) > 0.97


def test_one_of_page_and_table(root, tmp_path):
    done = gallery(root, tmp_path)
    assert done.returncode == 2 and "one of --out and --parts" in done.stderr
