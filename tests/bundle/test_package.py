"""A packed bundle: what is in it, what MONAI makes of it, and the same labels everywhere, bit for bit."""

import ast
import http.server
import json
import os
import runpy
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from finished_run import NAMES, finished_bundle, make_run
from monai.bundle import ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out

from bundle.package import imports_of, module_closure, modules_named, pack, publish, required_packages
from bundle.record import promote
from bundle.volume_io import read_volume, sha256, write_tiff

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def promoted(flat_dataset):
    return finished_bundle(flat_dataset)[1]


@pytest.fixture(scope="module")
def packed(flat_dataset):
    """The folder and the zip."""
    return finished_bundle(flat_dataset)[2:]


@pytest.fixture(scope="module")
def folder(packed):
    return packed[0]


def sources(folder):
    return sorted(folder.rglob("*.py"))


# ------------------------------------------------------------------------------------------ content


def test_files(packed):
    folder, archive = packed
    assert archive.name == "spheres_v0.1.0.zip"
    parts = {path.name for path in folder.iterdir() if path.is_dir()}
    assert parts == {"configs", "docs", "models", "scripts", "spheres_0_1_0"}
    assert {path.name for path in (folder / "configs").iterdir()} == {
        "inference.json", "train.json", "metadata.json", "logging.conf"
    }  # fmt: skip
    manifest = json.loads((folder / "manifest.json").read_text())
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert manifest.keys() == names - {"manifest.json"}
    assert all(sha256(folder / name) == digest for name, digest in manifest.items())
    with zipfile.ZipFile(archive) as file:
        assert {name.removeprefix("spheres/") for name in file.namelist()} == names


def test_code_stands_alone(folder):
    """No import leads to this project, to ASTRA or to what requirements.txt lacks; nothing says 'bundle.x'."""
    required = {line.split("==")[0] for line in (folder / "requirements.txt").read_text().splitlines()}
    modules = {path.stem for path in (folder / "spheres_0_1_0").glob("*.py")}
    known = {"ignite": "pytorch-ignite", "skimage": "scikit-image"}
    for path in sources(folder):
        tree = ast.parse(path.read_text())
        # a variable of that name would have been renamed as well
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "spheres_0_1_0"], path
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                top, _, rest = name.partition(".")
                if top == "spheres_0_1_0":
                    assert rest.split(".")[0] in modules, (path, name)
                elif top not in sys.stdlib_module_names and top not in ("PIL", "jsonschema"):
                    assert known.get(top, top) in required, (path, name)
    assert not modules & {"package", "record", "card", "export", "baselines"}
    configs = "".join(path.read_text() for path in (folder / "configs").glob("*.json"))
    assert (
        '"bundle.' not in configs and "'bundle." not in configs and "spheres_0_1_0.inference.VolumeInferer" in configs
    )


def test_no_path_of_this_machine(folder, flat_dataset):
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".md", ".txt", ".py"):
            assert str(flat_dataset) not in path.read_text() and str(ROOT) not in path.read_text(), path


def test_same_bytes_again(packed, promoted, tmp_path):
    assert sha256(pack(promoted, tmp_path)[1]) == sha256(packed[1])
    assert sha256(pack(promoted, tmp_path)[1]) == sha256(packed[1])  # over what is there


def test_other_folder_is_not_overwritten(promoted, tmp_path):
    (tmp_path / "spheres").mkdir()
    (tmp_path / "spheres/mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds mine\.txt"):
        pack(promoted, tmp_path)
    assert (tmp_path / "spheres/mine.txt").exists() and not list(tmp_path.glob("*.zip"))


def test_what_the_user_keeps_in_a_bundle_is_not_deleted(promoted, tmp_path):
    folder = pack(promoted, tmp_path)[0]
    (folder / "results").mkdir()
    (folder / "results/labels.tif").write_text("mine")
    with pytest.raises(ValueError, match=r"holds results/labels\.tif"):
        pack(promoted, tmp_path)
    assert (folder / "results/labels.tif").exists()


def test_weights_that_were_replaced_are_not_packed(promoted, tmp_path):
    copied = shutil.copytree(promoted, tmp_path / "spheres")
    (copied / "README.md").write_text("better")
    with pytest.raises(ValueError, match=r"README\.md was changed"):
        pack(copied, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_training_config_off_the_list_is_left_out(promoted, tmp_path):
    source = shutil.copytree(promoted, tmp_path / "spheres")
    record = json.loads((source / "record.json").read_text())
    record["training"]["config"]["x"] = "$open('x')"
    (source / "record.json").write_text(json.dumps(record))
    folder, _, left_out = pack(source, tmp_path / "dist")
    assert len(left_out) == 1 and "configs/train.json, whose x" in left_out[0]
    assert not (folder / "configs/train.json").exists()


def test_what_a_module_needs(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        "import bundle.x.y\nfrom bundle import b, c\nfrom bundle.d import e\nimport numpy.f\nimport bundle\n"
    )
    assert imports_of(path) == ({"x", "b", "c", "d", "__init__"}, {"numpy"})
    assert "volume_io" in module_closure(["monai_io"], []) and "inference" not in module_closure(["monai_io"], [])
    assert modules_named([{"a": ["bundle.x.Y", {"b": "$'bundle.z.W'"}], "c": "monai.bundle.run"}]) == {"x", "z"}
    path.write_text("import os\nimport skimage\nimport PIL\n")
    assert required_packages([path]).keys() >= {"monai", "fire", "scikit-image"}
    path.write_text("import astra")
    with pytest.raises(ValueError, match=r"does not pin astra \(a\.py\)"):
        required_packages([path])


# ------------------------------------------------------------------------------------------ as the model zoo checks it


@pytest.fixture
def on_path(folder, monkeypatch):
    """The zoo's CI puts a bundle's folder on Python's path."""
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [name for name in sys.modules if name.startswith("spheres_0_1_0")]:
        del sys.modules[name]


def test_metadata_of_the_zoo(folder):
    verify_metadata(meta_file=str(folder / "configs/metadata.json"), filepath=str(ROOT / "bundle/metadata_schema.json"))
    metadata = json.loads((folder / "configs/metadata.json").read_text())
    assert (
        metadata["version"] in metadata["changelog"] and metadata["name"] and metadata["eval_metrics"]["mean_dice"] > 0
    )


@pytest.mark.parametrize("name", ["inference.json", "train.json"])
def test_network_of_the_zoo(on_path, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    files = {"config_file": str(on_path / "configs" / name), "meta_file": str(on_path / "configs/metadata.json")}
    verify_net_in_out(net_id="network_def", bundle_root=str(on_path), **files)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_torchscript_of_the_zoo(on_path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(on_path / "models/model.pt"),
        meta_file=str(on_path / "configs/metadata.json"),
        config_file=str(on_path / "configs/inference.json"),
        bundle_root=str(on_path),
    )
    with np.load(on_path / "models/example.npz") as stored:
        logits = torch.jit.load(tmp_path / "model.ts")(torch.from_numpy(stored["image"])).detach().numpy()
        np.testing.assert_allclose(logits, stored["logits"], atol=1e-4)


@pytest.mark.parametrize(("name", "kind"), [("inference.json", "inference"), ("train.json", "train")])
def test_properties_of_the_zoo(on_path, name, kind, flat_dataset, tmp_path):
    flow = ConfigWorkflow(
        config_file=str(on_path / "configs" / name),
        workflow_type=kind,
        bundle_root=str(on_path),
        dataset_dir=str(flat_dataset),
        output_dir=str(tmp_path),
    )
    flow.initialize()
    assert not flow.check_properties()


# ------------------------------------------------------------------------------------------ elsewhere

USE = """
import json, runpy, sys, warnings
warnings.simplefilter("ignore")
import numpy as np, torch
from monai.bundle import ConfigParser, create_workflow, download, load, run
download(url=sys.argv[1], bundle_dir="got", name="spheres", progress=False)
download(url=sys.argv[2], bundle_dir="got", name="cubes", progress=False)
names = ("spheres", "cubes")
networks = {name: load(name, bundle_dir="got", workflow_type="inference").eval() for name in names}
assert isinstance(load("spheres", bundle_dir="got"), torch.nn.Module)  # MONAI's default is the training config
for name, network in networks.items():
    stored = np.load(f"got/{name}/models/example.npz")
    with torch.inference_mode():
        np.testing.assert_array_equal(network(torch.from_numpy(stored["image"])).numpy(), stored["logits"])
    parser = ConfigParser()
    parser.read_config(f"got/{name}/configs/inference.json")
    assert type(parser.get_parsed_content("network_def")) is type(network)
for name in names:
    flow = create_workflow(
        config_file=f"got/{name}/configs/inference.json", workflow_type="inference", bundle_root=f"got/{name}",
        dataset_dir="scans", output_dir=f"labels/{name}", output_ext=".tif",
    )
    assert type(flow.inferer).__module__ == f"{name}_0_1_0.inference", type(flow.inferer)
    flow.run()
    flow.finalize()
run(
    config_file="got/spheres/configs/inference.json", bundle_root="got/spheres", dataset_dir="scans", output_dir="cli",
    output_ext=".tif",
)


def start(path, *arguments):
    sys.argv = [path, *arguments]
    try:
        (runpy.run_path if path.endswith(".py") else runpy.run_module)(path, run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code


start("spheres_0_1_0.trust", "got/cubes.zip")
start("got/spheres/scripts/segment.py", "scans/scan.tif", "--out", "segmented", "--device", "cpu")
assert "bundle" not in sys.modules and not [m for m in sys.modules if m.startswith(("astra", "data_gen"))]
"""


def run_elsewhere(cwd, *command):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", *map(str, command)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def elsewhere(packed, promoted, flat_dataset, tmp_path_factory):
    """A neutral folder with a scan; both bundles were downloaded there and ran in one process."""
    here = tmp_path_factory.mktemp("elsewhere")
    other = make_run(tmp_path_factory.mktemp("run") / "r", flat_dataset, seed=1, channels=[4, 4])
    models = promote(other, "cubes", "0.1.0", tmp_path_factory.mktemp("models"))
    cubes = pack(models, tmp_path_factory.mktemp("dist"))[1]
    image = read_volume(next((flat_dataset / "images").iterdir())).array
    (here / "scans").mkdir()
    write_tiff(here / "scans/scan.tif", np.stack([image, image[::-1]] * 4, axis=-1), 0.5)
    (here / "use.py").write_text(USE)
    printed = run_elsewhere(here, "use.py", packed[1].as_uri(), cubes.as_uri())
    return here, printed


def labels_of(path):
    return read_volume(path).array


def test_two_bundles_in_one_process(elsewhere):
    here, _ = elsewhere
    labels = [labels_of(here / f"labels/{name}/scan_labels.tif") for name in ("spheres", "cubes")]
    assert labels[0].shape == (48, 64, 8) and not np.array_equal(*labels)


def test_same_labels_everywhere(elsewhere, packed, monkeypatch):
    """By create_workflow, by monai.bundle's run, by the script that the bundle ships and by the repository's."""
    here, printed = elsewhere
    script, scan = str(ROOT / "scripts/segment.py"), str(here / "scans/scan.tif")
    options = ["--bundle", str(packed[1]), "--out", str(here / "by_repository"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [script, scan, *options])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(script, run_name="__main__")
    expected = labels_of(here / "by_repository/labels.tif")
    for name in ("labels/spheres/scan_labels.tif", "cli/scan_labels.tif", "segmented/labels.tif"):
        np.testing.assert_array_equal(labels_of(here / name), expected)
    report = json.loads((here / "segmented/report.json").read_text())
    assert report["model"]["bundle"] == "spheres 0.1.0" and [row["name"] for row in report["classes"]] == NAMES
    assert "spheres 0.1.0, checked" in printed


def test_a_bundle_checks_another_one(elsewhere):
    assert "cubes.zip: all checks passed" in elsewhere[1]


# ------------------------------------------------------------------------------------------ the hub


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of Hugging Face's interface as an upload uses; keeps what arrives."""

    files, tags, repos = {}, [], []  # files: those of an earlier version are there

    def _answer(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path.endswith("/refs"):
            tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": "1" * 40} for tag in self.tags]
            self._answer({"branches": [], "converts": [], "tags": tags})
        elif "/tree/" in self.path:
            self._answer([{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in self.files])
        else:
            siblings = [{"rfilename": name} for name in self.files]
            self._answer({"sha": "0" * 40, "siblings": siblings, "id": "me/spheres", "name": "me", "type": "user"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.endswith("/api/repos/create"):
            self.repos.append(json.loads(body))
            self._answer({"url": f"http://127.0.0.1:{self.server.server_port}/me/spheres"})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            import base64

            for line in map(json.loads, body.splitlines()):
                if line["key"] == "deletedFile":
                    del self.files[line["value"]["path"]]
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer(
                {"commitUrl": f"http://127.0.0.1:{self.server.server_port}/me/spheres/commit/1", "commitOid": "1" * 40}
            )
        elif "/tag/" in self.path:
            self.tags.append(json.loads(body)["tag"])
            self._answer({})
        else:
            self._answer({})

    def log_message(self, *args):
        pass


@pytest.mark.filterwarnings("ignore")
def test_publishing_uploads_every_file(packed, folder, monkeypatch, tmp_path):
    pytest.importorskip("huggingface_hub", reason="only publishing needs it")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.files["spheres_0_0_9/inference.py"] = b"of an earlier version"
    endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        address = publish(packed[1], "me/spheres", endpoint=endpoint)
        with pytest.raises(ValueError, match="has a version 0"):
            publish(packed[1], "me/spheres", endpoint=endpoint)
    finally:
        server.shutdown()
        server.server_close()
    assert address.endswith("/me/spheres") and Hub.tags == ["0.1.0"] and Hub.repos[0]["name"] == "spheres"
    expected = {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.suffix not in ("", ".pyc")
    }
    assert {name: data for name, data in Hub.files.items() if name != "LICENSE"} == expected
    assert Hub.files["README.md"].startswith(b'---\nlicense: "apache-2.0"\n')


def test_what_verify_refuses_is_not_published(folder, promoted, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "spheres")
    (copied / "scripts/segment.py").write_text("print()")
    with pytest.raises(ValueError, match="refused: "):
        publish(copied, "me/spheres")
    with pytest.raises(ValueError, match="pack them first"):
        publish(promoted, "me/spheres")


def test_publishing_without_the_library(packed, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="hf upload me/spheres"):
        publish(packed[1], "me/spheres")
