"""Exported files give the network's logits at sizes they were not exported with, and the runner MONAI's labels."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from finished_run import finished_bundle, make_run
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.transforms import Compose

from bundle.export import export
from bundle.inference import segment
from bundle.record import promote
from bundle.trust import opened
from bundle.volume_io import read_volume, sha256, write_tiff

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"exporting needs {package}")

RUNNER = Path(__file__).resolve().parents[2] / "scripts" / "segment_onnx.py"


@pytest.fixture(scope="module")
def promoted(flat_dataset):
    """A network of two levels, random weights."""
    return finished_bundle(flat_dataset)[1]


@pytest.fixture(scope="module")
def exported(promoted, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "spheres"
    with opened(promoted) as shared:
        return out, export(shared, out, torchscript=True)


def test_files(exported, promoted):
    out, lines = exported
    assert {path.name for path in out.iterdir()} == {"model.onnx", "model.pt2", "model.ts", "run_onnx.py", "model.json"}
    model = json.loads((out / "model.json").read_text())
    assert (
        [line.split(":")[0] for line in lines] == ["model.onnx", "model.pt2", "model.ts"] == list(model["differences"])
    )
    # float32 sums of some hundred terms in another order, relative to the largest logit
    assert all(value < 1e-4 for found in model["differences"].values() for value in found.values())
    assert model["files"] == {p.name: sha256(p) for p in out.iterdir() if p.name != "model.json"}
    assert model["weights_sha256"] == sha256(promoted / "model.pt") and model["classes"] == ["pore", "particle"]


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (2, 1, 32, 64), (5, 1, 68, 36)])
def test_any_batch_and_window(exported, promoted, shape):
    import onnxruntime

    out, _ = exported
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    with opened(promoted) as shared, torch.inference_mode():
        expected = shared.network()(x).numpy()
        session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"image": x.numpy()})[0], expected, atol=1e-4)
        if shape[0] > 1:
            np.testing.assert_allclose(torch.export.load(out / "model.pt2").module()(x).numpy(), expected, atol=1e-4)


def run_without_monai(folder, *arguments):
    """The shipped runner in a process where torch, MONAI and this project cannot be imported."""
    code = "import sys, runpy\nfor name in ('torch', 'monai', 'bundle', 'nibabel'): sys.modules[name] = None\n"
    code += "path = sys.argv[1]; sys.argv = sys.argv[1:]; runpy.run_path(path, run_name='__main__')"
    command = [sys.executable, "-P", "-c", code, str(folder / "run_onnx.py"), *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=folder.parent)


def test_runner_gives_the_same_labels(exported, promoted, flat_dataset, tmp_path):
    """On a stack larger than the window and no multiple of it."""
    out, _ = exported
    images = [read_volume(path).array for path in sorted((flat_dataset / "images").iterdir())]
    volume = np.stack(images, axis=-1)[:, :59]
    write_tiff(tmp_path / "scan.tif", volume, 0.5)
    done = run_without_monai(out, tmp_path / "scan.tif", "--out", tmp_path / "labels.tif")
    assert done.returncode == 0, done.stderr
    with opened(promoted) as shared:
        parser = shared.parser()
        expected = segment(
            volume,
            network=shared.network(),
            preprocessing=Compose(parser.get_parsed_content("intensity")),
            inferer=parser.get_parsed_content("inferer"),
            device="cpu",
            progress=False,
        ).labels
    labels = read_volume(tmp_path / "labels.tif", 0.5).array
    assert labels.dtype == np.uint8 and labels.shape == expected.shape
    assert np.mean(labels == expected) >= 0.9999
    assert f"particle         {np.mean(labels == 1):8.2%}" in done.stdout


def test_runners_mistakes_are_one_line(exported, tmp_path):
    (tmp_path / "junk.tif").write_text("junk")
    done = run_without_monai(exported[0], tmp_path / "junk.tif", "--out", tmp_path / "labels.tif")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not (tmp_path / "labels.tif").exists()


@pytest.fixture(scope="module")
def runner():
    return runpy.run_path(str(RUNNER))


@pytest.mark.parametrize("roi", [[16, 24], [9, 8, 5]])
def test_weights_are_monais(runner, roi):
    for mode in ("gaussian", "constant"):
        expected = compute_importance_map(tuple(roi), mode=mode).numpy()
        np.testing.assert_allclose(runner["window_weights"](roi, mode), expected, rtol=1e-5)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("length", [16, 17, 28, 29, 31, 32, 33, 100])
def test_windows_are_monais(runner, length, overlap):
    step = 16 if length == 16 else max(1, int(16 * (1 - overlap)))
    expected = [place[0].start for place in dense_patch_slices((length,), (16,), (step,))]
    assert runner["window_starts"](length, 16, overlap) == sorted(set(expected))


def test_grey_scaling_is_monais(runner):
    from monai.transforms import ScaleIntensityRanged, ScaleIntensityRangePercentilesd

    image = np.random.default_rng(0).normal(3, 2, (40, 30)).astype(np.float32)
    for transform, step in (
        (ScaleIntensityRangePercentilesd, {"lower": 0.5, "upper": 99.5, "b_min": 0, "b_max": 1}),
        (ScaleIntensityRanged, {"a_min": 1, "a_max": 5, "b_min": -1, "b_max": 1, "clip": True}),
    ):
        expected = transform("image", **step)({"image": torch.from_numpy(image)[None]})["image"].numpy()[0]
        found = runner["scale_grey"](image, [step | {"_target_": transform.__name__}])
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_neighbours_without_the_newer_exporter(flat_dataset, tmp_path, monkeypatch):
    """A 2.5D network in the runner as in the bundle; what torch.export cannot do is left out, ONNX is traced."""

    def fail(*args, **kwargs):
        raise RuntimeError("no such operation")

    monkeypatch.setattr(torch.export, "Dim", fail)
    checkpoint = make_run(tmp_path / "r", flat_dataset, neighbours=1)
    folder = promote(checkpoint, "thick", "0.1.0", tmp_path / "models")
    image = next(iter(sorted((flat_dataset / "images").iterdir())))
    volume = np.stack([np.roll(read_volume(image).array, 3 * k, 0) for k in range(9)], axis=-1)
    with opened(folder) as shared:
        lines = export(shared, tmp_path / "out")
        assert lines[1] == "model.pt2: not written, RuntimeError: no such operation"
        parser = shared.parser()
        options = {"inferer": parser.get_parsed_content("inferer"), "device": "cpu", "progress": False}
        steps = Compose(parser.get_parsed_content("intensity"))
        expected = segment(volume, network=shared.network(), preprocessing=steps, **options).labels
    segmenter = runpy.run_path(str(RUNNER))["Segmenter"](tmp_path / "out")
    assert np.mean(segmenter.segment(volume) == expected) >= 0.9999


def test_scaling_that_the_runner_lacks(promoted, tmp_path):
    with opened(promoted) as shared:
        shared.config["intensity"][0]["_target_"] = "NormalizeIntensityd"
        with pytest.raises(ValueError, match="cannot scale grey values by NormalizeIntensityd"):
            export(shared, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_package(promoted, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with opened(promoted) as shared, pytest.raises(ValueError, match="onnxruntime is not installed: pip install"):
        export(shared, tmp_path / "out")
