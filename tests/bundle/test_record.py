"""Promoted weights: the record says what the run's files say, and only an evaluation of these weights is taken."""

import inspect
import json
import shutil
from pathlib import Path
from pydoc import locate

import numpy as np
import pytest
import torch
from finished_run import NAMES, finished_bundle
from PIL import Image

from bundle.archive import read_weights
from bundle.card import class_scores, eval_metrics, front_matter, limits, metadata, model_card
from bundle.model_config import walk
from bundle.record import promote
from bundle.volume_io import sha256


@pytest.fixture(scope="module")
def run(flat_dataset):
    return finished_bundle(flat_dataset)[0]


@pytest.fixture(scope="module")
def promoted(flat_dataset):
    return finished_bundle(flat_dataset)[1]


@pytest.fixture(scope="module")
def record(promoted):
    return json.loads((promoted / "record.json").read_text())


@pytest.fixture
def copied(run, tmp_path):
    """A copy of the run that a test may spoil."""
    return shutil.copytree(run.parent, tmp_path / "run") / "model.pt"


def test_files_and_hashes(run, promoted, record):
    assert {path.name for path in promoted.iterdir()} == {*record["files"], "record.json"}
    assert all(sha256(promoted / name) == digest for name, digest in record["files"].items())
    assert sha256(promoted / "model.pt") == sha256(run)
    with Image.open(promoted / "cases.png") as picture:
        assert picture.width == 1000


def test_record_is_of_the_run(run, record, flat_dataset):
    metrics = json.loads((run.parent / "evaluation/metrics.json").read_text())
    assert record["evaluation"]["methods"] == metrics["methods"]
    checked = record["evaluation"]["checked"]
    assert checked["by"] == "segmenting again" and checked["sha256"] == sha256(run) and len(checked["images"]) == 2
    assert record["classes"] == NAMES and record["changelog"] == {"0.1.0": "First"}
    assert record["data"]["recipe_sha256"] == sha256(flat_dataset / "recipe.json")
    assert record["network"]["size_multiple"] == 4 and record["network"]["in_channels"] == 1
    assert record["training"]["seconds"] == 3 and record["versions"]["torch"] == "2.13.0"
    assert str(flat_dataset) not in json.dumps(record)


def test_example_is_what_the_network_gives(promoted, record):
    from monai.bundle import ConfigParser

    network = ConfigParser(record["config"]).get_parsed_content("network_def").eval()
    network.load_state_dict(read_weights(promoted / "model.pt"))
    with np.load(promoted / "example.npz") as stored, torch.inference_mode():
        assert stored["image"].shape == (1, 1, 32, 32) and stored["image"].std() > 0.1
        np.testing.assert_array_equal(network(torch.from_numpy(stored["image"])).numpy(), stored["logits"])


def test_card_tells_when_not_to_use_it(promoted, record):
    card = (promoted / "README.md").read_text()
    for words in (
        "When not to use it",
        "0.5 µm per voxel",
        "rings, motion",
        "Real scans",
        "Mind the *gap*.",
        "cases.png",
    ):
        assert words in card
    dice = class_scores(record["evaluation"])[1]["dice"]
    assert f"| particle | {dice:.4f} |" in card
    assert record["data"]["recipe_sha256"] in card
    first = limits(record)
    record = json.loads(json.dumps(record))
    record["data"]["recipe"]["scanner"]["stripes"] = {"type": "Stripes"}
    assert "rings" in " ".join(first) and "rings" not in " ".join(limits(record))


def test_limits_name_weak_classes_and_augmentation(record, root):
    record = json.loads(json.dumps(record))
    summary = record["evaluation"]["methods"][record["evaluation"]["network"]]["summary"]
    summary["dice_1"]["mean"] = 0.31
    assert any("Where particle matters: its Dice on the test images was 0.31" in text for text in limits(record))
    summary["dice_1"]["mean"] = 0.97
    assert "Where particle" not in " ".join(limits(record)) and "augmentation" not in " ".join(limits(record))
    record["training"]["config"] |= json.loads((root / "configs/augment.json").read_text())
    found = next(text for text in limits(record) if "training altered its images by" in text)
    assert "sparse views" in found and "motion" in found and "invert intensity" not in found  # its probability is 0
    assert any("before augmentation" in text for text in limits(record))


def test_metadata_and_front_matter(record):
    pins = {"monai": "1", "torch": "2", "numpy": "3", "nibabel": "4"}
    found = metadata(record, pins)
    assert found["eval_metrics"] == eval_metrics(record["evaluation"]) and found["version"] == "0.1.0"
    assert found["required_packages_version"] == {"nibabel": "4"} and found["pytorch_version"] == "2"
    assert found["network_data_format"]["inputs"]["image"]["spatial_shape"] == ["4*n", "4*n"]
    assert found["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "pore", "1": "particle"}
    lines = front_matter(record).splitlines()
    assert lines[0] == lines[-1] == "---"
    values = {line.split(": ", 1)[0]: json.loads(line.split(": ", 1)[1]) for line in lines[1:-1]}
    assert values["library_name"] == "monai" and values["pipeline_tag"] == "image-segmentation"
    assert "medical" not in values["tags"] and "particle" in values["tags"]
    reported = values["model-index"][0]["results"][0]["metrics"]
    assert {entry["type"]: entry["value"] for entry in reported} == eval_metrics(record["evaluation"])


def test_evaluation_of_other_weights_is_refused(copied, tmp_path):
    state = torch.load(copied, weights_only=True)
    torch.save({key: -value for key, value in state.items()}, copied)
    with pytest.raises(ValueError, match=r"evaluation is of other weights.*evaluate again"):
        promote(copied, "spheres", "0.1.0", tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("same", [True, False])
def test_hash_in_the_evaluation_decides(copied, tmp_path, same):
    path = copied.parent / "evaluation/metrics.json"
    content = json.loads(path.read_text()) | {"weights_sha256": sha256(copied) if same else "0" * 64}
    path.write_text(json.dumps(content))
    if same:
        folder = promote(copied, "spheres", "0.1.0", tmp_path / "models")
        assert json.loads((folder / "record.json").read_text())["evaluation"]["checked"]["by"] == "hash"
    else:
        with pytest.raises(ValueError, match="of other weights"):
            promote(copied, "spheres", "0.1.0", tmp_path / "models")


def test_training_checkpoint_becomes_flat(copied, tmp_path):
    state = torch.load(copied, weights_only=True)
    torch.save({"network": state, "epoch": 3}, copied)
    folder = promote(copied, "spheres", "0.1.0", tmp_path / "models")
    assert read_weights(folder / "model.pt").keys() == state.keys()


def test_versions_grow(copied, tmp_path):
    promote(copied, "spheres", "0.1.9", tmp_path)
    with pytest.raises(ValueError, match=r"0\.1\.9"):
        promote(copied, "spheres", "0.1.9", tmp_path)
    folder = promote(copied, "spheres", "0.1.10", tmp_path, changes="Better")
    changelog = json.loads((folder / "record.json").read_text())["changelog"]
    assert changelog == {"0.1.9": "no description", "0.1.10": "Better"}


@pytest.mark.parametrize(
    ("name", "version", "word"),
    [
        ("Spheres", "0.1.0", "lower-case"),
        ("a__b", "0.1.0", "lower-case"),
        ("a_v1", "0.1.0", "_v1"),
        ("a", "1.0", "0.1.0"),
    ],
)
def test_names_and_versions(copied, tmp_path, name, version, word):
    with pytest.raises(ValueError, match=word):
        promote(copied, name, version, tmp_path)


@pytest.mark.parametrize(
    ("file", "hint"), [("run.json", "model.pt of a run"), ("evaluation/metrics.json", "evaluate the run first")]
)
def test_run_that_is_not_whole(copied, tmp_path, file, hint):
    (copied.parent / file).unlink()
    with pytest.raises(FileNotFoundError, match=hint):
        promote(copied, "spheres", "0.1.0", tmp_path)


def test_other_data_set(copied, tmp_path, flat_dataset):
    other = shutil.copytree(flat_dataset, tmp_path / "data")
    text = (other / "dataset.json").read_text().replace('"particle"', '"grain"')
    (other / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match="other classes"):
        promote(copied, "spheres", "0.1.0", tmp_path, dataset=other)
    with pytest.raises(FileNotFoundError, match="--dataset"):
        promote(copied, "spheres", "0.1.0", tmp_path, dataset=tmp_path / "none")


def test_weights_of_others_are_named_and_their_folder_is_not(record, copied, tmp_path):
    assert "simulated scans only, without manual labels." in model_card(record, None)
    training = record["training"] | {"hyper_parameters": {"pretrained": "nmc_cathode 0.1.0 (sha256 0123…)"}}
    card = model_card(record | {"training": training}, None)
    assert "from the weights of nmc_cathode 0.1.0 (sha256 0123…) on" in card and "without manual labels" not in card
    run = json.loads((copied.parent / "run.json").read_text())
    run["hyper_parameters"]["pretrained"] = "/home/someone/model.pt"
    (copied.parent / "run.json").write_text(json.dumps(run))
    with pytest.raises(ValueError, match="the run's record names a path of this machine, pretrained = '/home/someone"):
        promote(copied, "spheres", "0.1.0", tmp_path)


SHIPPED = sorted((Path(__file__).resolve().parents[2] / "models").glob("*/record.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_configs_of_shipped_weights_fit_the_code(path):
    """Packed with them goes the code of today, so that each of its parts must exist and take what it is given."""
    record = json.loads(path.read_text())
    for config in (record["config"], record["training"]["config"]):
        ours = [v for _, v in walk(config) if isinstance(v, dict) and str(v.get("_target_")).startswith("bundle.")]
        assert ours
        for component in ours:
            given = {key for key in component if not key.startswith("_")}
            inspect.signature(locate(component["_target_"])).bind(**dict.fromkeys(given))
