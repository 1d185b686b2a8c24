"""The page of augmentations, drawn for three of its rows."""

import subprocess
import sys
from pathlib import Path

from PIL import Image


def gallery(root: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(root / "scripts/augmentation_gallery.py"), "--out", str(folder), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_the_page_and_the_table(root, tmp_path):
    done = gallery(root, tmp_path, "--only", "wrong centre", "counting noise", "gamma")
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [line[1] for line in lines] == ["transform", "RandMotiond", "RandReconstructionNoised", "RandGammad"]
    strong = [float(line[3].split(" / ")[2]) for line in lines[1:3]]
    assert strong[0] > 0.99 and strong[1] > 0.9
    assert "–" in lines[3][3] and all(0 < float(line[4].strip(" |")) < 500 for line in lines[1:])
    with Image.open(tmp_path / "augmentation.png") as page:
        width, height = page.size
    assert width == 840 and height > 3 * 128  # a line of two rows with their scans, and one without
