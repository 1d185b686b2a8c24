"""The verbs of scripts/share.py from end to end, and a user's mistakes: one line, exit code 2."""

import json
from functools import partial
from pathlib import Path

import pytest
from finished_run import finished_bundle

from bundle.volume_io import sha256

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "share.py"


@pytest.fixture
def share(run_script):
    return partial(run_script, SCRIPT)


@pytest.fixture(scope="module")
def checkpoint(flat_dataset):
    return finished_bundle(flat_dataset)[0]


def test_promote_pack_verify(share, checkpoint, tmp_path):
    models, dist = tmp_path / "models", tmp_path / "dist"
    named = ["--name", "spheres", "--version", "0.1.0", "--changes", "First"]
    code, printed, _ = share("promote", "--checkpoint", checkpoint, *named, "--out", models)
    assert code == 0 and str(models / "spheres") in printed
    assert sha256(models / "spheres/model.pt") == sha256(checkpoint)
    named[3] = "0.1.1"
    code, _, error = share("promote", "--checkpoint", checkpoint, *named, "--out", tmp_path / "other", "--default")
    assert code == 2 and "is not the default: configs/inference.json is of another network" in error
    assert not (tmp_path / "other/model.pt").exists()
    named[3] = "0.1.0"
    code, printed, _ = share("pack", "--checkpoint", models / "spheres/model.pt", "--out", dist)
    archive = dist / "spheres_v0.1.0.zip"
    assert code == 0 and sha256(archive) in printed and (dist / "spheres/configs/inference.json").is_file()
    code, printed, _ = share("verify", archive)
    assert code == 0 and printed.endswith("spheres_v0.1.0.zip: all checks passed\n")

    # a run is packed in one go, with the same content
    code, printed, _ = share("pack", "--checkpoint", checkpoint, *named, "--out", tmp_path / "again")
    assert code == 0 and sha256(tmp_path / "again/spheres_v0.1.0.zip") == sha256(archive)

    (dist / "spheres/LICENSE").write_text("mine")
    code, printed, _ = share("verify", dist / "spheres")
    assert code == 1 and "FAIL  manifest: LICENSE was changed" in printed and "REFUSED, 1 checks failed" in printed
    code, printed, _ = share("verify", dist / "spheres", "--trust", "spheres")
    assert code == 0 and "note  manifest: LICENSE was changed" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["promote", "--checkpoint", "CHECKPOINT"], ["--name and --version"]),
        (["promote", "--checkpoint", "none/model.pt", "--name", "a", "--version", "0.1.0"], ["none/run.json", "a run"]),
        (["pack", "--checkpoint", "CHECKPOINT", "--name", "A", "--version", "0.1.0"], ["lower-case"]),
        (["verify", "none.zip"], ["none.zip: no such bundle"]),
        (["export", "none.zip", "--out", "x"], ["none.zip: no such bundle"]),
        (["publish", "none.zip", "--repo", "me/x"], ["none.zip: no such bundle"]),
    ],
)
def test_mistakes(share, checkpoint, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, _, err = share(*[checkpoint if part == "CHECKPOINT" else part for part in arguments])
    assert code == 2 and err.startswith("share.py: ") and err.count("\n") == 1
    assert all(word in err for word in words), err
    assert not list(tmp_path.iterdir())


def test_a_promoted_name_is_not_changed_by_packing(share, flat_dataset, tmp_path):
    promoted = finished_bundle(flat_dataset)[1]
    code, _, err = share("pack", "--checkpoint", promoted, "--name", "cubes", "--out", tmp_path / "dist")
    assert code == 2 and "promote again" in err


SHIPPED = sorted(path.parent for path in (ROOT / "models").glob("*/record.json"))


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_weights_pass(folder, capsys):
    from bundle.trust import verify

    findings = verify(folder)
    assert not [finding for finding in findings if finding.ok is False], "\n".join(map(str, findings))
    record = json.loads((folder / "record.json").read_text())
    assert (folder / "model.pt").stat().st_size < 8e6
    assert "When not to use it" in (folder / "README.md").read_text() and record["name"] == folder.name


def test_default_weights_are_one_of_the_shipped():
    default = ROOT / "models" / "model.pt"
    if default.is_file():
        assert sha256(default) in {sha256(folder / "model.pt") for folder in SHIPPED}
