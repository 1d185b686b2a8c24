"""Broken and hostile bundles: each is refused with its line, and nothing that it ships is executed."""

import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from finished_run import finished_bundle

from bundle import archive, trust
from bundle.trust import opened, print_findings, renamed, verify
from bundle.volume_io import sha256, write_json


@pytest.fixture(scope="module")
def promoted(flat_dataset):
    return finished_bundle(flat_dataset)[1]


@pytest.fixture(scope="module")
def packed(flat_dataset):
    """The folder and the zip."""
    return finished_bundle(flat_dataset)[2:]


@pytest.fixture
def folder(packed, tmp_path):
    """A bundle's folder that a test may spoil."""
    return shutil.copytree(packed[0], tmp_path / "spheres")


@pytest.fixture
def marker(tmp_path):
    """A file that hostile content tries to make; that it did not is asserted after every test."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def list_files_again(folder):
    """The manifest of someone who knows that there is one."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    write_json(folder / "manifest.json", {n: sha256(folder / n) for n in names if n != "manifest.json"})


def zipped(folder, name="spheres_v0.1.0.zip"):
    path = folder.parent / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for member in sorted(folder.rglob("*")):
            file.write(member, member.relative_to(folder.parent))
    return path


opened_once = set()  # opening is verifying again: once for each check is enough


def refusal(path, check, *words, trusted=None):
    """The bundle is refused by this check alone (besides the network, which is then not run), saying these words."""
    findings = verify(path, trusted)
    failed = [finding for finding in findings if finding.ok is False]
    assert [finding.check for finding in failed] == [check], "\n".join(map(str, findings))
    assert "\n" not in str(failed[0]) and str(failed[0]).startswith(f"FAIL  {check}: ")
    for word in words:
        assert word in failed[0].text, failed[0].text
    if check == "code" or check in opened_once:
        return
    opened_once.add(check)
    with pytest.raises(ValueError, match=r"refused: .*scripts/share\.py verify"), opened(path, trusted):
        raise AssertionError("the block of a refused bundle ran")


# ------------------------------------------------------------------------------------------ good ones


def test_good_bundle_passes(packed, promoted, capsys):
    for path in (packed[0], packed[1], promoted):
        findings = verify(path)
        assert all(finding.ok for finding in findings), "\n".join(map(str, findings))
    checks = " ".join(finding.check for finding in verify(packed[1]))
    assert checks == "record files manifest weights configs code metadata requirements versions classes network"
    assert print_findings(findings, "x") == 0 and "x: all checks passed" in capsys.readouterr().out


def test_opened_bundle_is_run_by_this_project(packed):
    before = set(sys.modules)
    with opened(packed[1]) as bundle:
        network = bundle.network()
        inferer = bundle.parser().get_parsed_content("inferer")
        assert bundle.folder.is_dir() and bundle.name == "spheres"
    assert not bundle.folder.exists()
    assert type(inferer).__module__ == "bundle.inference" and not network.training
    assert not [name for name in set(sys.modules) - before if name.startswith("spheres")]


def test_what_python_leaves_in_a_folder_is_overlooked_there_only(folder):
    cache = folder / "spheres_0_1_0/__pycache__"
    cache.mkdir()
    (cache / "trust.cpython-311.pyc").write_bytes(b"x")
    (folder / ".gitattributes").write_text("x")
    (folder / "runs/spheres").mkdir(parents=True)
    (folder / "runs/spheres/last.pt").write_text("x")
    findings = verify(folder)
    assert not [finding for finding in findings if finding.ok is False]
    assert "3 files of its use" in next(finding.text for finding in findings if finding.check == "left behind")
    (folder / "data").mkdir()
    (folder / "data/scan.tif").symlink_to(folder / "LICENSE")  # a user's scans may lie anywhere
    assert not [finding for finding in verify(folder) if finding.ok is False]
    (folder / "data/scan.tif").unlink()
    findings = verify(zipped(folder))
    assert {"files", "manifest"} <= {finding.check for finding in findings if finding.ok is False}


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such bundle"):
        verify(tmp_path / "none.zip")


def test_renaming():
    text = "from bundle import a\nfrom bundle.b import c\nimport bundle\nimport bundle.d\n'bundle.e.F'"
    new = "from x import a\nfrom x.b import c\nimport x\nimport x.d\n'x.e.F'"
    assert renamed(text, "bundle", "x") == new and renamed(new, "x", "bundle") == text
    other = "from monai.bundle import x; a.bundle.b; bundle_root; a bundle. The mybundle.x bundle, 'bundle/x.py'"
    assert renamed(other, "bundle", "x") == other


# ------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("name", ["models/model.pt", "configs/inference.json", "docs/README.md", "LICENSE"])
def test_changed_file(folder, name):
    with open(folder / name, "ab") as file:
        file.write(b" ")
    refusal(folder, "manifest", f"{name} was changed")


@pytest.mark.parametrize("name", ["LICENSE", "models/example.npz", "docs/README.md"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    findings = verify(folder)
    assert [f.check for f in findings if f.ok is False] == ["files", "manifest"]
    list_files_again(folder)
    refusal(folder, "files", f"{name} is missing")


@pytest.mark.parametrize("name", ["docs/record.json", "configs/metadata.json", "configs/inference.json"])
def test_missing_description(folder, name):
    (folder / name).unlink()
    refusal(folder, "record", f"{name} is missing")


@pytest.mark.parametrize(
    "name", ["sitecustomize.py", "torch.py", "scripts/__init__.py", "models/model.ts", "models/x.nii", "data/x.py"]
)
def test_file_that_does_not_belong(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("raise SystemExit")
    findings = [finding for finding in verify(folder) if finding.ok is False]
    assert {"files", "manifest"} <= {finding.check for finding in findings}
    list_files_again(folder)
    findings = [finding for finding in verify(folder) if finding.ok is False]
    assert findings[0].check == "files" and f"{name} does not belong" in findings[0].text


def test_damaged_json(folder):
    (folder / "configs/inference.json").write_text("{")
    refusal(folder, "record", "configs/inference.json")
    (folder / "configs/inference.json").write_text("[1]")
    refusal(folder, "record", "holds a list")


def test_link_in_a_folder(folder):
    (folder / "docs/more.md").symlink_to("/etc/passwd")
    refusal(folder, "archive", "docs/more.md is a link")


# ------------------------------------------------------------------------------------------ archive


@pytest.mark.parametrize(
    ("member", "word"),
    [
        ("../evil", "leaves its folder"),
        ("spheres/../../evil", "leaves its folder"),
        ("/tmp/evil", "absolute"),
        ("spheres\\evil", "not portable"),
        ("C:/evil", "not portable"),
        ("spheres/./evil", "leaves its folder"),
        ("spheres/LICENSE", "twice"),
        ("spheres/license", "twice"),
    ],
)
def test_paths_in_the_archive(packed, tmp_path, member, word):
    path = shutil.copy(packed[1], tmp_path / "spheres_v0.1.0.zip")
    with zipfile.ZipFile(path, "a") as file:
        info = zipfile.ZipInfo("x")
        info.filename = member
        if member == "spheres/LICENSE":
            with pytest.warns(UserWarning, match="Duplicate"):
                file.writestr(info, "x")
        else:
            file.writestr(info, "x")
    refusal(path, "archive", word)
    assert not (tmp_path / "evil").exists() and not Path("/tmp/evil").exists()


def test_link_in_the_archive(packed, tmp_path):
    path = shutil.copy(packed[1], tmp_path)
    info = zipfile.ZipInfo("spheres/docs/more.md")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(info, "/etc/passwd")
    refusal(path, "archive", "more.md' is a link")


def test_bomb(packed, tmp_path):
    path = shutil.copy(packed[1], tmp_path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("spheres/docs/bomb.md", bytes(2**23))
    refusal(path, "archive", "bomb.md' grows", "times")


def test_size_that_the_archive_hides(packed, tmp_path):
    """The directory says less than the data hold: zipfile stops there, and the CRC does not fit."""
    path = shutil.copy(packed[1], tmp_path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("spheres/docs/more.md", os.urandom(5000).hex())
    data = bytearray(Path(path).read_bytes())
    at = data.rindex(b"spheres/docs/more.md") - 46 + 24
    data[at : at + 4] = (100).to_bytes(4, "little")
    Path(path).write_bytes(data)
    refusal(path, "archive", "zip")


def test_masses(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST_FILES", 5)
    refusal(packed[1], "archive", "more than 5")
    monkeypatch.setattr(archive, "MOST_FILES", 1000)
    monkeypatch.setattr(archive, "MOST_BYTES", 1000)
    refusal(packed[1], "archive", "GiB")
    refusal(packed[0], "archive", "GiB")


def test_not_a_bundle(tmp_path):
    (tmp_path / "a.zip").write_text("junk")
    refusal(tmp_path / "a.zip", "archive", "no readable zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
        file.writestr("one/x", "x")
        file.writestr("two/x", "x")
    refusal(tmp_path / "b.zip", "archive", "2 things at its top")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as file:
        file.writestr("other/x", "x")
    refusal(tmp_path / "c.zip", "record", "docs/record.json is missing")


# ------------------------------------------------------------------------------------------ weights


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def weights_of(folder):
    return torch.load(folder / "models/model.pt", weights_only=True)


def test_pickle_with_code(folder, marker):
    torch.save(weights_of(folder) | {"x": Evil(marker)}, folder / "models/model.pt")
    list_files_again(folder)
    refusal(folder, "weights", "names posix.system")
    refusal(folder, "weights", "names posix.system", trusted="spheres")  # not even for who trusts it


def test_legacy_pickle_with_code(folder, marker):
    (folder / "models/model.pt").write_bytes(pickle.dumps(Evil(marker)))
    list_files_again(folder)
    refusal(folder, "weights", "older pickles")


def test_newer_pickle_with_code(folder, marker):
    with zipfile.ZipFile(folder / "models/model.pt", "w") as file:
        file.writestr("model/data.pkl", pickle.dumps(Evil(marker), protocol=4))
    list_files_again(folder)
    refusal(folder, "weights", "STACK_GLOBAL")


def test_compressed_weights(folder):
    with zipfile.ZipFile(folder / "models/model.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("model/data.pkl", pickle.dumps({}, protocol=2))
    list_files_again(folder)
    refusal(folder, "weights", "compressed inside")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {"network": state, "epoch": 3}, ["nested checkpoint (network, epoch)"]),
        (lambda state: list(state.values()), ["holds a list"]),
        (lambda state: {}, ["holds a dict"]),
        (lambda state: {key: value * float("nan") for key, value in state.items()}, ["not finite"]),
        (lambda state: state | {"x": torch.zeros(1).expand(10**12)}, ["x is no plain dense tensor"]),
    ],
)
def test_weights_that_are_none(folder, change, words):
    torch.save(change(weights_of(folder)), folder / "models/model.pt")
    list_files_again(folder)
    refusal(folder, "weights", *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {key: value + 1 for key, value in state.items()}, ["stored image"]),
        (lambda state: state | {"x": torch.zeros(1)}, ["x is not in the network"]),
        (lambda state: dict(list(state.items())[1:]), ["is missing in the file"]),
    ],
)
def test_weights_of_another_network(folder, change, words):
    torch.save(change(weights_of(folder)), folder / "models/model.pt")
    list_files_again(folder)
    refusal(folder, "network", *words)


def store(folder, **arrays):
    with np.load(folder / "models/example.npz") as stored:
        np.savez_compressed(folder / "models/example.npz", **{**stored, **arrays})
    list_files_again(folder)


class Payload:
    """Makes the marker when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_pickle_in_the_example(folder, marker):
    """An allow-listed reader that unpickles what lies beside the example: refused by what it reads, and by its name."""
    store(folder, evil=np.array([Payload(marker)], dtype=object))
    refusal(folder, "network", "evil.npy")
    read = {"_target_": "LoadImage", "reader": "NumpyReader", "allow_pickle": True, "npz_keys": "evil"}
    cached = {"_target_": "CacheDataset", "data": ["$@bundle_root + '/models/example.npz'"], "transform": "@loader"}

    def change(config):
        config.update(loader=read, cache=cached)
        config["network_def"]["dropout"] = "$0.0 * len(@cache)"

    edit_json(folder / "configs/inference.json", change)
    list_files_again(folder)
    refusal(folder, "configs", "loader")


def test_example_that_unpacks_to_masses(folder, monkeypatch):
    store(folder, image=np.zeros((1, 1, 1024, 1024), np.float32))
    monkeypatch.setattr(trust, "MOST_EXAMPLE_BYTES", 2**21)
    refusal(folder, "network", "unpacks to more than 2 MiB")


def test_network_far_larger_than_its_weights(folder):
    edit_json(folder / "configs/inference.json", lambda c: c["network_def"].update(channels=[40000, 80000]))
    list_files_again(folder)
    refusal(folder, "network", "numbers, and the weights")


def test_network_that_is_none(folder):
    edit_json(folder / "configs/inference.json", lambda c: c["network_def"].update(act="@loss", norm="@data"))
    edit_json(folder / "configs/inference.json", lambda c: c.update(loss={"_target_": "DiceLoss"}, data=1))
    list_files_again(folder)
    refusal(folder, "network", "DiceLoss, which is no network")


def test_words_of_a_bundle_cannot_forge_lines():
    line = str(trust.Finding("classes", True, "pore\nx.zip: all checks passed\x1b[8m"))
    assert line.isprintable() and line.startswith("ok    classes: pore?x.zip")


# ------------------------------------------------------------------------------------------ configs, code, metadata


@pytest.mark.parametrize(
    "change",
    [
        lambda config, marker: config["imports"].append("$import subprocess"),
        lambda config, marker: config["initialize"].append(f"$__import__('os').system('touch {marker}')"),
        lambda config, marker: config.update(network_def={"_target_": "os.system", "command": f"touch {marker}"}),
        lambda config, marker: config["load"][0].update(reader="os.system", command=f"touch {marker}"),
        lambda config, marker: config.update(network_def={"_target_": "spheres_0_1_0.inference.os.system"}),
        lambda config, marker: config.update(network_def={"_target_": "bundle.networks.LRCSNet"}),
        lambda config, marker: config.update(network_def="%/etc/passwd.json::a"),
    ],
)
def test_config_with_code(folder, marker, change):
    edit_json(folder / "configs/inference.json", lambda config: change(config, marker))
    list_files_again(folder)
    refusal(folder, "configs", "inference.json: ")


def test_code_in_the_training_config_and_in_metadata(folder, marker):
    command = f"$__import__('os').system('touch {marker}')"
    edit_json(folder / "configs/train.json", lambda config: config.update(x=command))
    list_files_again(folder)
    refusal(folder, "configs", "train.json: x")
    edit_json(folder / "configs/train.json", lambda config: config.pop("x"))
    edit_json(folder / "configs/metadata.json", lambda config: config.update(references=[command]))
    list_files_again(folder)
    refusal(folder, "configs", "metadata.json")


def test_code_in_the_logging_config(folder, marker):
    path = folder / "configs/logging.conf"
    path.write_text(path.read_text().replace("(sys.stdout,)", f"(__import__('os').system('touch {marker}'),)"))
    list_files_again(folder)
    refusal(folder, "configs", "logging.conf")


@pytest.mark.parametrize("name", ["spheres_0_1_0/inference.py", "spheres_0_1_0/more.py", "scripts/segment.py"])
def test_foreign_code(folder, marker, name):
    with open(folder / name, "a") as file:
        file.write(f"\nopen({str(marker)!r}, 'w')\n")
    list_files_again(folder)
    refusal(folder, "code", name, "read it before")
    with opened(folder) as bundle:  # which does not run it
        assert name in bundle.notes[0]
        assert type(bundle.parser().get_parsed_content("inferer")).__module__ == "bundle.inference"


def test_code_of_an_earlier_revision(folder, monkeypatch, tmp_path):
    """What was committed once is this project's own; here in a repository made for the test."""
    root = tmp_path / "repository"
    for place in ("bundle", "scripts"):
        shutil.copytree(trust.ROOT / place, root / place, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(trust.ROOT / "configs", root / "configs")
    shutil.copy(trust.ROOT / "requirements.txt", root)
    git = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    with open(root / "bundle/inference.py", "a") as file:
        file.write("\n# newer\n")
    monkeypatch.setattr(trust, "ROOT", root)
    finding = next(finding for finding in verify(folder) if finding.check == "code")
    assert finding.ok and "1 of an earlier revision" in finding.text
    with open(folder / "spheres_0_1_0/inference.py", "a") as file:
        file.write("\n# never committed\n")
    list_files_again(folder)
    refusal(folder, "code", "spheres_0_1_0/inference.py")


def test_second_package(folder):
    (folder / "monai").mkdir()
    (folder / "monai/__init__.py").write_text("")
    list_files_again(folder)
    findings = [finding for finding in verify(folder) if finding.ok is False]
    assert findings[0].check == "files" and "monai/__init__.py" in findings[0].text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(version="0.2.0"), ["0.2.0 is not in the changelog"]),
        (lambda m: m.update(version="0.2.0", changelog={"0.2.0": "x"}), ["0.2.0", "the record spheres 0.1.0"]),
        (lambda m: m.pop("task"), ["'task' is a required property"]),
        (lambda m: m.update(network_data_format={"inputs": {}}), ["network_data_format"]),
    ],
)
def test_metadata_that_drifted(folder, change, words):
    edit_json(folder / "configs/metadata.json", change)
    list_files_again(folder)
    findings = [finding for finding in verify(folder) if finding.ok is False]
    assert findings[0].check == "metadata"
    assert all(word in findings[0].text for word in words), findings[0].text


def test_names_that_differ(folder, packed):
    moved = folder.rename(folder.parent / "cubes")
    refusal(moved, "metadata", "cubes 0.1.0", "the record spheres 0.1.0")
    refusal(zipped(moved.rename(folder), "spheres_v0.3.0.zip"), "metadata", "file name", "spheres 0.3.0")


def test_newer_versions_are_needed(folder):
    edit_json(folder / "configs/metadata.json", lambda m: m.update(monai_version="99.1.0"))
    text = (folder / "requirements.txt").read_text()
    (folder / "requirements.txt").write_text(text.replace("monai==1.6.1", "monai==99.1.0"))
    list_files_again(folder)
    refusal(folder, "versions", "the bundle needs 99.1.0", "pip install")


@pytest.mark.parametrize("line", ["evil==1.0.0", "--index-url https://example.org", "torch @ file:///x", "numpy"])
def test_requirements(folder, line):
    with open(folder / "requirements.txt", "a") as file:
        file.write(line + "\n")
    list_files_again(folder)
    refusal(folder, "requirements", line.split("==")[0])


def test_requirements_unlike_metadata(folder):
    edit_json(folder / "configs/metadata.json", lambda m: m.update(numpy_version="2.0.0"))
    list_files_again(folder)
    refusal(folder, "requirements", "differ in numpy")


def test_wrong_class_count(folder):
    edit_json(folder / "configs/inference.json", lambda c: c.update(class_names=["pore", "particle", "binder"]))
    list_files_again(folder)
    refusal(folder, "classes", "3", "the record 2")


def test_wrong_class_count_everywhere(folder):
    names = ["pore", "particle", "binder"]

    def channels(metadata):
        metadata["network_data_format"]["outputs"]["pred"]["channel_def"] = {str(k): n for k, n in enumerate(names)}

    edit_json(folder / "configs/inference.json", lambda c: c.update(class_names=names, num_classes=2))
    edit_json(folder / "docs/record.json", lambda r: r.update(classes=names))
    edit_json(folder / "configs/metadata.json", channels)
    list_files_again(folder)
    refusal(folder, "network", "2 channels for 3 classes")


def test_promoted_weights_are_checked_as_well(promoted, tmp_path):
    folder = shutil.copytree(promoted, tmp_path / "spheres")
    edit_json(folder / "record.json", lambda r: r["config"].update(x="$open('x')"))
    refusal(folder, "configs", "inference.json: x")
    shutil.copy(promoted / "record.json", folder)
    (folder / "more.py").write_text("")
    findings = verify(folder)
    assert [finding.check for finding in findings if finding.ok is False] == ["files", "manifest"]


# ------------------------------------------------------------------------------------------ trust by name


def test_trust_by_name(folder):
    """A failure of the named bundle is a note, and its own code runs; another name changes nothing."""
    with open(folder / "spheres_0_1_0/inference.py", "a") as file:
        file.write("\nEXTRA = 1\n")
    list_files_again(folder)
    refusal(folder, "code", "inference.py", trusted="cubes")
    findings = verify(folder, trust="spheres")
    assert [finding.check for finding in findings if finding.ok is None] == ["code"]
    assert not [finding for finding in findings if finding.ok is False]
    path = list(sys.path)
    try:
        with opened(folder, trust="spheres") as bundle:
            inferer = bundle.parser().get_parsed_content("inferer")
            assert type(inferer).__module__ == "spheres_0_1_0.inference"
            assert sys.modules["spheres_0_1_0.inference"].EXTRA == 1
    finally:
        sys.path[:] = path
        for name in [name for name in sys.modules if name.startswith("spheres_0_1_0")]:
            del sys.modules[name]
