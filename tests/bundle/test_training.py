"""What a run records about itself."""

import json

import pytest

from bundle.training import load_datalist, resolved_config


@pytest.fixture
def config_files(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"max_epochs": 300, "net": {"_target_": "UNet", "channels": [4, 8]}}))
    (tmp_path / "b.json").write_text(json.dumps({"net#channels": [2, 4]}))
    return tmp_path


@pytest.mark.parametrize("style", [["--max_epochs", "7"], ["--max_epochs=7"]])
def test_resolved_config_has_overrides(config_files, style):
    argv = ["monai", "run", "--config_file", str(config_files / "a.json"), *style, "--meta_file", "m.json"]
    config = resolved_config(argv)
    assert config == {"max_epochs": 7, "net": {"_target_": "UNet", "channels": [4, 8]}}


def test_resolved_config_merges_files_and_nested_keys(config_files):
    files = str([str(config_files / "a.json"), str(config_files / "b.json")])
    config = resolved_config(["monai", "run", "--config_file", files, "--net#_target_", "AttentionUnet"])
    assert config["net"] == {"_target_": "AttentionUnet", "channels": [2, 4]}


def test_no_bundle_run_no_config():
    assert resolved_config(["pytest", "-q"]) is None


def test_split_and_limit(flat_dataset):
    names = ["pore", "particle"]
    path = str(flat_dataset / "dataset.json")
    splits = {s: load_datalist(path, s, names, 2) for s in ("training", "validation", "test")}
    assert [len(v) for v in splits.values()] == [4, 2, 2]
    assert len({p["image"] for pairs in splits.values() for p in pairs}) == 8
    assert len(load_datalist(path, "training", names, 2, limit=3)) == 3


def test_file_that_is_gone_is_named(flat_dataset, tmp_path):
    datalist = json.loads((flat_dataset / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(datalist))
    with pytest.raises(FileNotFoundError, match="tiny_"):
        load_datalist(str(tmp_path / "dataset.json"), "training", ["pore", "particle"], 2)
