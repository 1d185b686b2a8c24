"""Every network and loss overlay: built, verified, overfitted and run in the real graph, in 2D and 3D."""

import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, verify_net_in_out
from monai.losses import DiceCELoss

from bundle.inference import VolumeInferer, load_weights

# overlay: overrides that make it small, and sizes that its windows must be multiples of
NETWORKS = {
    "unet_paper": ({"channels": [8, 8, 8]}, 4),
    "unet_residual": ({"channels": [4, 8], "strides": [2], "num_res_units": 1}, 2),
    "segresnet": ({"network_def#blocks_down": [1, 1], "network_def#blocks_up": [1]}, 2),
    "attention_unet": ({"channels": [4, 8], "strides": [2]}, 2),
    "dynunet": ({"channels": [4, 8, 8, 8]}, 8),
    "lrcsnet": ({"network_def#filters": 4, "network_def#kernel_size": 3}, 1),
}
LOSSES = ["ce", "dice", "dice_ce", "focal", "weighted", "boundary"]
FAST = {"patch_size": [32, 32], "roi_size": [48, 48], "batch_size": 2, "image_interval": 9, "max_epochs": 1}
FAST |= {"val_interval": 1}


def files(root: Path, *names: str) -> list[str]:
    return [str(root / "configs" / f"{name}.json") for name in names]


def network(root: Path, base: str, name: str, spatial_dims: int, small: bool = True, **overrides) -> torch.nn.Module:
    names = [base, "volume_3d", f"network_{name}"] if spatial_dims == 3 else [base, f"network_{name}"]
    parser = ConfigParser(ConfigParser.load_config_files(files(root, *names)))
    options = {"class_names": ["pore", "binder", "active"], "channel_names": ["CT"]}
    options |= (NETWORKS[name][0] if small else {}) | overrides
    for key, value in options.items():
        parser[key] = value
    return parser.get_parsed_content("network_def")


def run(root: Path, names: list[str], **overrides) -> None:
    flow = ConfigWorkflow(
        config_file=files(root, *names),
        meta_file=str(root / "configs/metadata.json"),
        logging_file=str(root / "configs/logging.conf"),
        workflow_type="train",
        bundle_root=str(root),
        **overrides,
    )
    flow.initialize()
    flow.run()
    flow.finalize()


def test_every_overlay_is_tested(root):
    found = {p.stem for p in (root / "configs").glob("*.json") if p.stem.startswith(("network_", "loss_"))}
    assert found == {f"network_{n}" for n in NETWORKS} | {f"loss_{n}" for n in LOSSES}


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_sliding_window_over_an_odd_size(root, name, spatial_dims):
    built = network(root, "train", name, spatial_dims, in_channels=2).eval()
    window = [16] * spatial_dims
    image = torch.rand(1, 2, *(23, 13, 17)[:spatial_dims])
    with torch.inference_mode():
        logits = VolumeInferer(window)(image, built)
    assert logits.shape == (1, 3, *image.shape[2:])
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_smallest_step_of_the_window(root, name):
    step = NETWORKS[name][1]
    size = (16 + step, 24 + 3 * step)
    assert network(root, "train", name, 2).eval()(torch.rand(1, 1, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_windows_of_the_configs_fit_the_network(root, name, spatial_dims):
    names = ["train", "volume_3d", f"network_{name}"] if spatial_dims == 3 else ["train", f"network_{name}"]
    config = ConfigParser.load_config_files(files(root, *names))
    built = network(root, "train", name, spatial_dims, small=False)
    with torch.device("meta"):
        image = torch.zeros(1, 1, *config["patch_size"])
    assert built.to("meta")(image).shape == (1, 3, *config["patch_size"])
    assert all(n % 32 == 0 for n in (*config["patch_size"], *config["roi_size"]))  # five halvings, more than any has


@pytest.mark.parametrize("name", NETWORKS)
def test_training_and_inference_build_the_same_network(root, name):
    trained, applied = (network(root, base, name, 2) for base in ("train", "inference"))
    applied.load_state_dict(trained.state_dict())
    image = torch.rand(1, 1, 32, 32)
    with torch.inference_mode():
        assert torch.equal(trained.eval()(image), applied.eval()(image))


@pytest.mark.parametrize("name", NETWORKS)
def test_verify_net_in_out(root, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    verify_net_in_out(
        net_id="network_def",
        config_file=files(root, "train", f"network_{name}"),
        meta_file=str(root / "configs/metadata.json"),
        n=8,
        class_names=["pore", "particle"],
        channel_names=["CT"],
        **NETWORKS[name][0],
    )


def pattern(spatial_dims: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two noisy images of shells: a particle, its coating and the pore."""
    size = 24 if spatial_dims == 2 else 16
    axes = torch.meshgrid(*[torch.arange(size, dtype=torch.float32)] * spatial_dims, indexing="ij")
    labels = []
    for centre in (0.35, 0.6):
        r = sum((a - centre * size) ** 2 for a in axes).sqrt() / size
        labels.append(torch.where(r < 0.2, 2, torch.where(r < 0.32, 1, 0)))
    labels = torch.stack(labels)[:, None]
    noise = torch.randn(labels.shape, generator=torch.Generator().manual_seed(0))
    return labels / 2 + 0.05 * noise, labels


def worst_dice(found: torch.Tensor, labels: torch.Tensor) -> float:
    pairs = [(found == k, labels == k) for k in range(3)]
    return min(float(2 * (a & b).sum() / (a.sum() + b.sum())) for a, b in pairs)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_overfits_one_batch(root, name, spatial_dims):
    torch.manual_seed(0)
    built, loss = network(root, "train", name, spatial_dims), DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.Adam(built.parameters(), lr=0.01)
    image, labels = pattern(spatial_dims)
    losses = []
    for step in range(200):
        optimizer.zero_grad()
        value = loss(built.train()(image), labels)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
        if step % 20 == 19:
            with torch.inference_mode():
                dice = worst_dice(built.eval()(image).argmax(1, keepdim=True), labels)
            if dice > 0.95:
                break
    assert dice > 0.95
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_an_epoch_of_the_real_graph(root, flat_dataset, tmp_path, name):
    small = NETWORKS[name][0]
    run(
        root,
        ["train", f"network_{name}"],
        dataset_dir=str(flat_dataset),
        output_dir=str(tmp_path / "r"),
        **FAST,
        **small,
    )
    entry = json.loads((tmp_path / "r/history.json").read_text())[0]
    assert 0 <= entry["val_mean_dice"] <= 1
    load_weights(network(root, "inference", name, 2, class_names=["pore", "particle"]), tmp_path / "r/model.pt")


@pytest.mark.parametrize("name", LOSSES)
def test_an_epoch_with_every_loss(root, flat_dataset, tmp_path, name):
    options = {**FAST, **NETWORKS["unet_residual"][0], "dataset_dir": str(flat_dataset)}
    run(root, ["train", "network_unet_residual", f"loss_{name}"], output_dir=str(tmp_path / "r"), **options)
    entry = json.loads((tmp_path / "r/history.json").read_text())[0]
    assert 0 < entry["train_loss"] < 3 and 0 < entry["val_loss"] < 3


def test_an_epoch_in_3d_with_overlays_in_any_order(root, solid_dataset, tmp_path):
    options = {**FAST, "patch_size": [16] * 3, "roi_size": [24] * 3, "dataset_dir": str(solid_dataset)}
    names = ["train", "loss_boundary", "network_lrcsnet", "volume_3d"]
    run(root, names, output_dir=str(tmp_path / "r"), **options, **NETWORKS["lrcsnet"][0])
    assert (tmp_path / "r/model.pt").exists()
