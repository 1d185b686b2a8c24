"""Samples of several images, as two X-ray energies are: from the data set to a segmented scan."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from finished_run import SMALL
from monai.bundle import ConfigParser

from bundle.export import export
from bundle.inference import VolumeInferer, segment
from bundle.model_config import checkpoint_config
from bundle.package import pack
from bundle.record import promote
from bundle.slices import SlicesToChannelsd, stack_neighbours
from bundle.training import load_datalist, read_channel_names
from bundle.transforms import CheckPaird, ScalePercentilesd
from bundle.trust import opened
from bundle.volume_io import read_volume, write_nifti

ROOT = Path(__file__).resolve().parents[2]
CHANNELS = {"0": "30 keV", "1": "60 keV"}
NAMES = ["pore", "particle"]


def two_energies(dataset: Path, folder: Path) -> Path:
    """The data set with a second image of each sample: the first with its contrast the other way round."""
    shutil.copytree(dataset, folder)
    content = json.loads((folder / "dataset.json").read_text()) | {"channel_names": CHANNELS}
    for split in ("training", "validation", "test"):
        for pair in content[split]:
            volume = read_volume(folder / pair["image"])
            second = pair["image"].replace(".nii.gz", "_60.nii.gz")
            write_nifti(folder / second, (7 - 2 * volume.array).astype(np.float32), volume.affine)
            pair["image"] = [pair["image"], second]
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def trained(flat_dataset, tmp_path_factory, bundle_run) -> Path:
    """The run folder of an epoch on two images a sample, evaluated."""
    folder = tmp_path_factory.mktemp("channels")
    data = two_energies(flat_dataset, folder / "data")
    options = SMALL | {"dataset_dir": str(data), "output_dir": str(folder / "run"), "max_epochs": 1, "val_interval": 1}
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(ROOT)]  # run.json keeps its config
    command += ["--config_file", str([str(ROOT / "configs" / name) for name in ("train.json", "augment.json")])]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    bundle_run(["train.json", "evaluate.json"], **options)
    return folder / "run"


def files_of(run: Path) -> list[Path]:
    content = json.loads((run.parent / "data/dataset.json").read_text())
    return [run.parent / "data" / image for image in content["test"][0]["image"]]


def test_the_network_takes_what_the_data_set_has(trained):
    config = ConfigParser(checkpoint_config(trained / "model.pt"))
    assert config.get_parsed_content("channel_names") == list(CHANNELS.values())
    assert config.get_parsed_content("network_def").model[0].conv.unit0.conv.in_channels == 2
    assert json.loads((trained / "evaluation/metrics.json").read_text())["n_images"] == 2
    assert json.loads((trained / "run.json").read_text())["hyper_parameters"]["images"] == "30 keV, 60 keV"


def test_a_scan_of_two_images_is_segmented(trained, tmp_path, run_script):
    files = files_of(trained)
    script, common = ROOT / "scripts/segment.py", ("--checkpoint", trained / "model.pt", "--no-mirror")
    code, _, error = run_script(script, *files, "--out", tmp_path / "out", *common)
    assert code == 0, error
    config = ConfigParser(checkpoint_config(trained / "model.pt"))
    config["inferer::mirror"] = False
    network = config.get_parsed_content("network_def")
    network.load_state_dict(torch.load(trained / "model.pt", weights_only=True))
    images = torch.stack([torch.from_numpy(read_volume(file).array) for file in files]).float()
    low, high = (images.flatten(1).quantile(q, 1).reshape(2, 1, 1) for q in (0.005, 0.995))
    scaled = (images - low) / (high - low)
    expected = config.get_parsed_content("inferer")(scaled[None], network.eval()).argmax(1)[0].numpy()
    found = read_volume(tmp_path / "out/labels.tif").array
    assert np.mean(found == expected) > 0.999  # quantiles of two libraries
    assert json.loads((tmp_path / "out/report.json").read_text())["input"] == ", ".join(file.name for file in files)

    code, _, error = run_script(script, files[0], "--out", tmp_path / "one", *common)
    assert code == 2 and "1 images given; the network of" in error and "2 of each sample: 30 keV, 60 keV" in error


def test_images_of_a_scan_must_match(trained, tmp_path, run_script):
    first, second = files_of(trained)
    volume = read_volume(second)
    write_nifti(tmp_path / "cut.nii.gz", volume.array[:-1], volume.affine)
    options = ("--out", tmp_path / "out", "--checkpoint", trained / "model.pt")
    code, _, error = run_script(ROOT / "scripts/segment.py", first, tmp_path / "cut.nii.gz", *options)
    assert code == 2 and "cut.nii.gz: shape or voxel size differs from" in error


def test_a_bundle_of_it_is_packed_and_used(trained, tmp_path):
    promoted = promote(trained / "model.pt", "energies", "0.1.0", tmp_path / "models", changes="First", notes="None.")
    folder, archive, _ = pack(promoted, tmp_path / "dist")
    metadata = json.loads((folder / "configs/metadata.json").read_text())["network_data_format"]["inputs"]["image"]
    assert metadata["num_channels"] == 2 and metadata["channel_def"] == CHANNELS
    assert "2 channels, 30 keV and 60 keV," in (folder / "docs/README.md").read_text()
    with opened(archive) as shared:
        with pytest.raises(ValueError, match="the runner takes one image; this network takes 30 keV, 60 keV"):
            export(shared, tmp_path / "exported")
        config = shared.parser()
        config["dataset_dir"], config["file_pattern"] = str(tmp_path / "scans"), "*.nii.gz"
        (tmp_path / "scans").mkdir()
        for k, file in enumerate(files_of(trained)):
            shutil.copy(file, tmp_path / f"scans/a_{k:04d}.nii.gz")
        item = next(iter(config.get_parsed_content("dataset")))
    assert item["image"].shape[0] == 2


def test_bad_data_sets(flat_dataset, tmp_path):
    data = two_energies(flat_dataset, tmp_path / "data")
    path = data / "dataset.json"
    content = json.loads(path.read_text())
    assert read_channel_names(path) == list(CHANNELS.values())
    found = load_datalist(path, "test", NAMES, 2, channel_names=["30 keV", "60 keV"])
    assert found[0]["image"] == [str(data / image) for image in content["test"][0]["image"]]

    with pytest.raises(ValueError, match=r"has the channels \['30 keV', '60 keV'\], the network is built for \['CT'\]"):
        load_datalist(path, "test", NAMES, 2)
    path.write_text(json.dumps(content | {"channel_names": {"1": "CT"}}))
    with pytest.raises(ValueError, match="must number the images of a sample"):
        read_channel_names(path)
    path.write_text(json.dumps(content | {"channel_names": {"0": "CT"}}))
    with pytest.raises(ValueError, match="in a sample of 2 images; each sample lists one for each channel"):
        load_datalist(path, "training", NAMES, 2)


def test_label_must_fit_all_channels():
    pair = {"image": torch.zeros(2, 5, 6), "label": torch.zeros(1, 5, 6)}
    assert CheckPaird(2)(pair).keys() == pair.keys()
    for shape in ((2, 5, 6), (1, 5, 5)):
        with pytest.raises(ValueError, match="the label has shape"):
            CheckPaird(2)(pair | {"label": torch.zeros(shape)})


def test_each_image_is_scaled_by_itself():
    slabs = torch.rand(6, 20, 20) * torch.tensor([1.0, 1, 1, 9, 9, 9]).reshape(6, 1, 1)  # two images of three slices
    scaled = ScalePercentilesd("image", 0, 100, images=2)({"image": slabs})["image"]
    for part, before in zip(scaled.chunk(2), slabs.chunk(2), strict=True):
        torch.testing.assert_close(part, (before - before.min()) / (before.max() - before.min()))


def test_slices_of_each_channel_follow_one_another():
    volume = torch.arange(2 * 3 * 4 * 5.0).reshape(1, 2, 3, 4, 5)
    stacked = stack_neighbours(volume, 1)
    slab = SlicesToChannelsd()({"image": volume[0, ..., 1:4], "label": volume[0, :1, ..., 1:4]})
    assert torch.equal(stacked[0, ..., 2], slab["image"])
    assert torch.equal(slab["label"], volume[0, :1, ..., 2])
    expected = [volume[0, c, ..., k] for c in range(2) for k in (1, 2, 3)]
    assert torch.equal(slab["image"], torch.stack(expected))


def test_segment_gives_the_network_every_channel_with_its_slices():
    rng = np.random.default_rng(0)
    images = [rng.random((16, 16, 4)).astype(np.float32) for _ in range(2)]

    class Network(torch.nn.Module):
        def forward(self, x):
            return x[:, 1::3]  # of three slices the middle one

    options = {"preprocessing": None, "device": "cpu", "progress": False}
    found = segment(images, network=Network(), inferer=VolumeInferer((16, 16), neighbours=1), **options)
    assert np.array_equal(found.labels, (images[1] > images[0]).astype(np.uint8))
    with pytest.raises(ValueError, match="the channels of the image have the shapes"):
        segment([images[0], images[1][1:]], network=Network(), inferer=VolumeInferer((16, 16)), **options)
