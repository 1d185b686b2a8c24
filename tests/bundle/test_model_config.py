"""The inference config of a run builds the run's network and has nothing that it does not use."""

import json
from pathlib import Path

import pytest
import torch
from finished_run import NAMES, training_config
from monai.bundle import ConfigParser

from bundle.model_config import (
    checkpoint_config,
    closure,
    inference_config,
    references,
    run_class_names,
)
from bundle.model_config import training_config as portable

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = sorted(path.name for path in (ROOT / "configs").glob("network_*.json"))


def test_references_and_closure():
    assert references({"a": ["$@b + @c#d"], "e": "@f", "g": "user@h"}) == {"b", "c", "f"}
    config = {"a": "@b", "b": "$len(@c)", "c": 1, "d": "@e", "e": 2, "f": "@nothing"}
    assert closure(config, ["a", "f"]) == {"a", "b", "c", "f"}


@pytest.mark.parametrize("overlay", [None, *OVERLAYS])
def test_network_of_the_run(tmp_path, overlay):
    run = training_config(tmp_path, *([overlay] if overlay else []))
    config = inference_config(run, ["a", "b", "c"])
    network = ConfigParser(config).get_parsed_content("network_def").eval()
    assert type(network).__name__ == run["network_def"]["_target_"].rpartition(".")[2]
    with torch.inference_mode():
        assert network(torch.zeros(1, 1, 64, 64)).shape == (1, 3, 64, 64)
    assert config["class_names"] == ["a", "b", "c"] and config["roi_size"] == [32, 32]
    assert not references(config) - config.keys()
    entry = {"run", "evaluator", "inferer", "network_def", "intensity", "class_names", "initialize", "finalize"}
    assert entry <= config.keys()
    needed = closure(config, [*entry, "imports", "bundle_root", "device", "spatial_dims"])
    assert config.keys() == needed
    assert str(tmp_path) not in json.dumps(config)


def test_neighbours_reach_network_and_inferer(tmp_path):
    config = inference_config(training_config(tmp_path, neighbours=2), NAMES)
    parser = ConfigParser(config)
    assert parser.get_parsed_content("network_def")(torch.zeros(1, 5, 16, 16)).shape == (1, 2, 16, 16)
    assert parser.get_parsed_content("inferer").neighbours == 2


def test_training_config_is_portable(tmp_path):
    run = training_config(tmp_path, pretrained=str(tmp_path / "model.pt"), pretrained_part="encoder", freeze=True)
    config = portable(run, NAMES, ["CT"], "spheres")
    assert str(tmp_path) not in json.dumps(config)
    assert config["class_names"] == NAMES and config["pretrained"] is None
    parser = ConfigParser(config | {"device": "cpu"})
    assert all(p.requires_grad for p in parser.get_parsed_content("initial_network").parameters())
    run["train"]["folder"] = "/home/someone"
    with pytest.raises(ValueError, match="train#folder = '/home/someone'"):
        portable(run, NAMES, ["CT"], "spheres")


def test_class_names_of_a_run(tmp_path):
    assert run_class_names(tmp_path, {"class_names": ["a", "b"]}) == ["a", "b"]
    with pytest.raises(ValueError, match=r"class names are unknown.*evaluate"):
        run_class_names(tmp_path, {"dataset_dir": str(tmp_path)})
    assert run_class_names(tmp_path, {"dataset_dir": str(tmp_path)}, {"classes": "a, b"}) == ["a", "b"]
    (tmp_path / "dataset.json").write_text('{"labels": {"0": "c", "1": "d"}}')
    assert run_class_names(tmp_path, {"dataset_dir": str(tmp_path)}) == ["c", "d"]
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/metrics.json").write_text('{"class_names": ["e", "f"]}')
    assert run_class_names(tmp_path, {"dataset_dir": str(tmp_path)}) == ["e", "f"]


def test_checkpoint_config(tmp_path):
    assert checkpoint_config(tmp_path / "model.pt") is None
    (tmp_path / "run.json").write_text(json.dumps({"config": None}))
    with pytest.raises(ValueError, match=r"run\.json: holds no config.*--config"):
        checkpoint_config(tmp_path / "model.pt")
    (tmp_path / "run.json").write_text(json.dumps({"config": training_config(tmp_path, class_names=NAMES)}))
    assert checkpoint_config(tmp_path / "model.pt")["channels"] == [4, 8]
    (tmp_path / "run.json").write_text(json.dumps({"config": {"class_names": NAMES}}))
    with pytest.raises(ValueError, match=r"run\.json: .*no network_def"):
        checkpoint_config(tmp_path / "model.pt")
    (tmp_path / "record.json").write_text(json.dumps({"config": {"a": 1}}))
    assert checkpoint_config(tmp_path / "model.pt") == {"a": 1}


def test_missing_reference(tmp_path):
    run = training_config(tmp_path)
    run["network_def"]["channels"] = "@widths"
    with pytest.raises(ValueError, match="refers to widths"):
        inference_config(run, NAMES)
