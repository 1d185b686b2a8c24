"""Every config does a step of its work, as MONAI runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata, verify_net_in_out
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bundle.volume_io import read_volume, root_cause, write_nifti
from data_gen.dataset import SyntheticDataset

SMALL = {
    "patch_size": [32, 32],
    "roi_size": [48, 48],
    "batch_size": 2,
    "channels": [4, 8],
    "strides": [2],
    "num_res_units": 1,
    "image_interval": 1,
    "val_interval": 1,
}
SMALL_3D = {**SMALL, "patch_size": [16, 16, 16], "roi_size": [24, 24, 24]}


def workflow(root: Path, names: list[str], kind: str = "train", **overrides) -> ConfigWorkflow:
    return ConfigWorkflow(
        config_file=[str(root / "configs" / name) for name in names],
        meta_file=str(root / "configs/metadata.json"),
        logging_file=str(root / "configs/logging.conf"),
        workflow_type=kind,
        bundle_root=str(root),
        **overrides,
    )


def run(flow: ConfigWorkflow) -> None:
    flow.initialize()
    flow.run()
    flow.finalize()


def history(output_dir: Path) -> list[dict]:
    return json.loads((output_dir / "history.json").read_text())


@pytest.fixture(scope="module")
def trained(root, flat_dataset, tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("trained") / "run"
    run(
        workflow(root, ["train.json"], dataset_dir=str(flat_dataset), output_dir=str(output_dir), max_epochs=2, **SMALL)
    )
    return output_dir


def test_train_writes_weights_curves_and_record(trained):
    weights = torch.load(trained / "model.pt", weights_only=True)
    assert all(isinstance(v, torch.Tensor) for v in weights.values())
    assert [h["epoch"] for h in history(trained)] == [1, 2]
    record = json.loads((trained / "run.json").read_text())
    assert record["hyper_parameters"]["channels"] == [4, 8]
    assert record["versions"]["monai"] != "not installed"


def test_tensorboard_shows_the_run(trained):
    board = EventAccumulator(str(trained / "tensorboard"))
    board.Reload()
    tags = board.Tags()
    wanted = {
        "learning_rate",
        "dice/pore",
        "dice/particle",
        "iou/pore",
        "iou/particle",
        "val_mean_dice",
        "val_mean_iou",
        "val_loss",
        "train_loss",
    }
    assert wanted <= set(tags["scalars"])
    assert [e.step for e in board.Scalars("dice/particle")] == [1, 2]
    assert tags["images"] == ["validation: image, label, prediction, error"]
    assert {"hyper-parameters/text_summary", "run/text_summary"} <= set(tags["tensors"])


def test_per_class_scores_agree_with_the_mean(trained):
    board = EventAccumulator(str(trained / "tensorboard"))
    board.Reload()
    for epoch, entry in enumerate(history(trained)):
        assert board.Scalars("dice/particle")[epoch].value == pytest.approx(entry["val_mean_dice"], abs=1e-6)


def test_killed_and_resumed_run_equals_an_uninterrupted_one(root, flat_dataset, tmp_path, monkeypatch):
    options = {"dataset_dir": str(flat_dataset), "max_epochs": 4, **SMALL}
    run(workflow(root, ["train.json"], output_dir=str(tmp_path / "whole"), **options))

    from bundle.training import TrainingState

    class Killed(BaseException):
        pass

    start_epoch = TrainingState._start_epoch

    def die_in_epoch_3(self, engine):
        start_epoch(self, engine)
        if engine.state.epoch == 3:
            raise Killed

    monkeypatch.setattr(TrainingState, "_start_epoch", die_in_epoch_3)
    # MONAI's ConfigParser turns what an expression raises into a RuntimeError
    with pytest.raises((Killed, RuntimeError)):
        run(workflow(root, ["train.json"], output_dir=str(tmp_path / "parts"), **options))
    assert [h["epoch"] for h in history(tmp_path / "parts")] == [1, 2]
    monkeypatch.setattr(TrainingState, "_start_epoch", start_epoch)
    run(workflow(root, ["train.json"], output_dir=str(tmp_path / "parts"), **options))

    whole, parts = history(tmp_path / "whole"), history(tmp_path / "parts")
    assert [h["epoch"] for h in parts] == [1, 2, 3, 4]
    for a, b in zip(whole, parts, strict=True):
        assert a["iteration"] == b["iteration"]
        for key in ("learning_rate", "train_loss", "val_loss", "val_mean_dice"):
            assert a[key] == pytest.approx(b[key], rel=1e-5), (a["epoch"], key)
    one, two = (torch.load(tmp_path / d / "last.pt", weights_only=True) for d in ("whole", "parts"))
    assert one["best_score"] == pytest.approx(two["best_score"], rel=1e-5)


def test_finished_run_started_again_trains_no_further(root, flat_dataset, trained):
    before = (trained / "last.pt").read_bytes()
    run(workflow(root, ["train.json"], dataset_dir=str(flat_dataset), output_dir=str(trained), max_epochs=2, **SMALL))
    assert (trained / "last.pt").read_bytes() == before


def test_run_too_short_to_be_validated_still_leaves_weights(root, flat_dataset, tmp_path):
    options = {**SMALL, "val_interval": 5, "dataset_dir": str(flat_dataset), "output_dir": str(tmp_path / "r")}
    run(workflow(root, ["train.json"], max_epochs=1, **options))
    last = torch.load(tmp_path / "r/last.pt", weights_only=True)["network"]
    shipped = torch.load(tmp_path / "r/model.pt", weights_only=True)
    assert all(torch.equal(last[k], shipped[k]) for k in last)


def test_run_made_longer_follows_the_longer_schedule(root, flat_dataset, tmp_path):
    options = {"dataset_dir": str(flat_dataset), "warmup_epochs": 0, **SMALL}
    for name, steps in (("whole", [4]), ("longer", [2, 4])):
        for max_epochs in steps:
            flow = workflow(root, ["train.json"], output_dir=str(tmp_path / name), max_epochs=max_epochs, **options)
            run(flow)
    rates = {name: [h["learning_rate"] for h in history(tmp_path / name)] for name in ("whole", "longer")}
    assert rates["longer"][1] == pytest.approx(0, abs=1e-9)  # the end of the short schedule
    assert rates["longer"][2:] == pytest.approx(rates["whole"][2:])


@pytest.mark.parametrize("scheduler", ["cosine", "polynomial"])
def test_resumed_run_takes_the_learning_rate_that_it_is_given(root, flat_dataset, tmp_path, scheduler):
    """As after a loss that was not finite: the schedule of the new rate, from there on."""
    options = {"dataset_dir": str(flat_dataset), "warmup_epochs": 0, "output_dir": str(tmp_path / "r"), **SMALL}
    options |= {"optimizer#betas": [0.8, 0.9]}
    if scheduler == "polynomial":
        target = "torch.optim.lr_scheduler.PolynomialLR"
        options["lr_scheduler"] = {"_target_": target, "optimizer": "@optimizer", "total_iters": 16, "power": 1.0}
    run(workflow(root, ["train.json"], max_epochs=4, learning_rate=0.004, **options))
    before = history(tmp_path / "r")
    options |= {"output_dir": str(tmp_path / "s")}
    run(workflow(root, ["train.json"], max_epochs=2, learning_rate=0.004, **options))
    run(workflow(root, ["train.json"], max_epochs=4, learning_rate=0.001, **options | {"optimizer#betas": [0.5, 0.6]}))
    after = history(tmp_path / "s")
    assert before[2]["learning_rate"] > 0 and after[2]["learning_rate"] > 0
    assert [h["learning_rate"] for h in after[2:]] == pytest.approx([h["learning_rate"] / 4 for h in before[2:]])
    state = torch.load(tmp_path / "s/last.pt", weights_only=True)["optimizer"]
    assert state["param_groups"][0]["betas"] == (0.5, 0.6)


def test_length_of_a_training_is_a_number_of_steps(root, flat_dataset):
    pairs = len(json.loads((flat_dataset / "dataset.json").read_text())["training"])
    options = {"bundle_root": str(root), "dataset_dir": str(flat_dataset), "batch_size": pairs // 2, "num_workers": 0}
    parser = ConfigParser(ConfigParser.load_config_file(str(root / "configs/train.json")) | options)
    epochs, validated = (parser.get_parsed_content(key) for key in ("max_epochs", "val_interval"))
    assert parser.get_parsed_content("iterations_per_epoch") == 2
    assert (epochs, validated) == (10500 / 2, 525)


def test_early_stop(root, flat_dataset, tmp_path):
    options = {**SMALL, "learning_rate": 0.0, "early_stop_patience": 2, "warmup_epochs": 0}
    # without learning and with fixed batch statistics the score of epoch 1 is never beaten
    options |= {"network_def#norm": "instance"}
    run(
        workflow(
            root, ["train.json"], dataset_dir=str(flat_dataset), output_dir=str(tmp_path / "r"), max_epochs=9, **options
        )
    )
    assert len(history(tmp_path / "r")) == 3
    before = (tmp_path / "r/last.pt").read_bytes()
    options |= {"dataset_dir": str(flat_dataset), "output_dir": str(tmp_path / "r"), "max_epochs": 9}
    run(workflow(root, ["train.json"], **options))  # started again, it stays stopped
    assert (tmp_path / "r/last.pt").read_bytes() == before
    run(workflow(root, ["train.json"], **options | {"early_stop_patience": 4}))
    assert len(history(tmp_path / "r")) == 5


def test_volume_overlay_trains_and_evaluates_3d(root, solid_dataset, tmp_path):
    options = {"dataset_dir": str(solid_dataset), "output_dir": str(tmp_path / "r"), "max_epochs": 1, **SMALL_3D}
    run(workflow(root, ["train.json", "volume_3d.json"], **options))
    assert history(tmp_path / "r")[0]["val_mean_dice"] >= 0
    run(workflow(root, ["train.json", "volume_3d.json", "evaluate.json"], **options))
    assert (tmp_path / "r/evaluation/cases.png").exists()


def bundle_run(root: Path, cwd: Path, names: list[str], **overrides) -> subprocess.CompletedProcess:
    """The command line that a user types, in a directory that is not the repository."""
    files = [str(root / "configs" / name) for name in names]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files) if len(files) > 1 else files[0]]
    command += ["--bundle_root", str(root)]
    for key, value in overrides.items():
        command += [f"--{key}", str(value)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_train_evaluate_infer_from_another_directory(root, flat_dataset, tmp_path):
    options = {"dataset_dir": flat_dataset, "output_dir": "run", "max_epochs": 1, **SMALL}
    done = bundle_run(root, tmp_path, ["train.json"], **options)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["config"]["max_epochs"] == 1
    assert record["config"]["channels"] == [4, 8]
    assert record["config"]["network_def"]["_target_"] == "UNet"

    done = bundle_run(root, tmp_path, ["train.json", "evaluate.json"], **options)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {p.name for p in (tmp_path / "run/evaluation").iterdir()} == {
        "metrics.csv",
        "metrics.json",
        "metrics.md",
        "cases.png",
    }
    assert json.loads((tmp_path / "run/evaluation/metrics.json").read_text())["n_images"] == 2

    network = {k: SMALL[k] for k in ("channels", "strides", "num_res_units", "roi_size")}
    done = bundle_run(
        root,
        tmp_path,
        ["inference.json"],
        dataset_dir=flat_dataset / "images",
        output_dir="labels",
        checkpoint="run/model.pt",
        **network,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    written = sorted((tmp_path / "labels").iterdir())
    assert len(written) == 8
    labels = read_volume(written[0])
    assert labels.array.shape == (48, 64)
    assert labels.array.dtype == np.uint8
    assert labels.voxel_size_um == pytest.approx((0.5, 0.5))


def test_inference_writes_tiff_on_demand(root, flat_dataset, trained, tmp_path):
    options = {k: SMALL[k] for k in ("channels", "strides", "num_res_units", "roi_size")}
    run(
        workflow(
            root,
            ["inference.json"],
            "infer",
            dataset_dir=str(flat_dataset / "images"),
            output_dir=str(tmp_path / "labels"),
            checkpoint=str(trained / "model.pt"),
            output_ext=".tif",
            **options,
        )
    )
    assert read_volume(sorted((tmp_path / "labels").glob("*.tif"))[0]).voxel_size_um == pytest.approx((0.5, 0.5))


def test_recipe_is_the_published_one(root):
    parser = ConfigParser(ConfigParser.load_config_file(str(root / "configs/generate_spheres.json")))
    dataset = parser.get_parsed_content("dataset")
    assert isinstance(dataset, SyntheticDataset)
    assert dataset.shape == (256, 256)
    assert dataset.split == (0.7, 0.2, 0.1)
    assert dataset.scanner.noise_sd == 0.01
    # 38.51 keV with 0.5 keV bins; 0.1 keV bins, which the unfiltered tube needs, start lower
    assert dataset.scanner.spectrum.mean_energy_kev == pytest.approx(38.51, abs=0.05)


@pytest.mark.parametrize(("kind", "name"), [("train", "train.json"), ("infer", "inference.json")])
def test_check_properties_reports_nothing(root, flat_dataset, tmp_path, kind, name):
    flow = workflow(root, [name], kind, dataset_dir=str(flat_dataset), output_dir=str(tmp_path))
    flow.initialize()
    assert not flow.check_properties()


@pytest.mark.parametrize("name", ["train.json", "inference.json"])
def test_verify_net_in_out(root, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    verify_net_in_out(
        net_id="network_def",
        config_file=str(root / "configs" / name),
        meta_file=str(root / "configs/metadata.json"),
        n=8,
        class_names=["pore", "particle"],  # there is no data set to ask
        channel_names=["CT"],
    )


def test_verify_metadata_without_network(root, monkeypatch):
    verify_metadata(meta_file=str(root / "configs/metadata.json"), filepath=str(root / "bundle/metadata_schema.json"))


def test_metadata_names_the_versions_that_are_pinned(root):
    metadata = json.loads((root / "configs/metadata.json").read_text())
    pins = dict(line.split("==") for line in (root / "requirements.txt").read_text().split() if "==" in line)
    stated = {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    stated |= metadata["required_packages_version"]
    assert stated == {name: pins[name] for name in stated}


def test_train_and_inference_configs_describe_the_same_network(root):
    train, infer = (json.loads((root / "configs" / n).read_text()) for n in ("train.json", "inference.json"))
    for key in (
        "network_def",
        "intensity",
        "in_channels",
        "neighbours",
        "channels",
        "strides",
        "num_res_units",
        "spatial_dims",
        "roi_size",
    ):
        assert train[key] == infer[key], key


def fails(flow: ConfigWorkflow) -> str:
    """Run to the error, and return the message at its root."""
    with pytest.raises(Exception) as caught:
        run(flow)
    error = root_cause(caught.value)
    assert "\n" not in str(error)
    return str(error)


def test_missing_data_set_says_how_to_make_one(root, tmp_path):
    message = fails(workflow(root, ["train.json"], dataset_dir=str(tmp_path / "none"), output_dir=str(tmp_path / "r")))
    assert "generate_spheres.json" in message


def test_other_classes_are_refused(root, flat_dataset, tmp_path):
    options = {"dataset_dir": str(flat_dataset), "output_dir": str(tmp_path / "r"), "class_names": ["pore", "a", "b"]}
    assert "class_names" in fails(workflow(root, ["train.json"], **options))


def test_2d_network_refuses_volumes(root, solid_dataset, tmp_path):
    options = {"dataset_dir": str(solid_dataset), "output_dir": str(tmp_path / "r")}
    assert "volume_3d.json" in fails(workflow(root, ["train.json"], **options))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda image, label: (image, label + 1), "labels run from 1 to 2"),
        (lambda image, label: (np.where(label > 0, np.nan, image), label), "NaN"),
        (lambda image, label: (image, label[:40]), "shape"),
    ],
)
def test_bad_pair_is_named(root, flat_dataset, tmp_path, spoil, said):
    datalist = json.loads((flat_dataset / "dataset.json").read_text())
    pair = datalist["training"][0]
    image, label = (read_volume(flat_dataset / pair[k]) for k in ("image", "label"))
    bad_image, bad_label = spoil(image.array, label.array)
    write_nifti(tmp_path / "bad_image.nii.gz", bad_image.astype(np.float32), image.affine)
    write_nifti(tmp_path / "bad_label.nii.gz", bad_label, label.affine)
    datalist |= {"training": [{"image": "bad_image.nii.gz", "label": "bad_label.nii.gz"}]}
    for k in ("validation", "test"):
        datalist[k] = [{n: str(flat_dataset / f) for n, f in p.items()} for p in datalist[k]]
    (tmp_path / "dataset.json").write_text(json.dumps(datalist))
    message = fails(workflow(root, ["train.json"], dataset_dir=str(tmp_path), output_dir=str(tmp_path / "r"), **SMALL))
    assert said in message
    assert "bad_" in message


def test_resume_refuses_another_network(root, flat_dataset, trained):
    options = {**SMALL, "channels": [8, 16], "dataset_dir": str(flat_dataset), "output_dir": str(trained)}
    assert "another network" in fails(workflow(root, ["train.json"], max_epochs=3, **options))


def test_resume_off_refuses_an_existing_run(root, flat_dataset, trained):
    options = {**SMALL, "resume": False, "dataset_dir": str(flat_dataset), "output_dir": str(trained)}
    record = (trained / "run.json").read_bytes()
    assert "holds a run" in fails(workflow(root, ["train.json"], max_epochs=3, **options))
    assert (trained / "run.json").read_bytes() == record


def test_evaluate_without_checkpoint(root, flat_dataset, tmp_path):
    options = {**SMALL, "dataset_dir": str(flat_dataset), "output_dir": str(tmp_path / "nothing")}
    assert "model.pt" in fails(workflow(root, ["train.json", "evaluate.json"], **options))


def test_mistyped_key_of_a_recipe_is_named(root):
    parser = ConfigParser(ConfigParser.load_config_file(str(root / "configs/generate_spheres.json")))
    parser["microstructure::fractoin"] = 0.4
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("dataset")
    error = root_cause(caught.value)
    assert "fractoin" in str(error)
