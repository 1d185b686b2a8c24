"""Inference against direct application of networks whose answer is known."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import UNet
from monai.transforms import (
    Compose,
    ScaleIntensityRange,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
)

from bundle import inference
from bundle.inference import AutocastInferer, VolumeInferer, load_weights, segment
from bundle.pictures import segmentation_figure


def pointwise(dimension, classes=3, seed=0):
    """A 1×1 convolution: what it says of a voxel depends on nothing else."""
    torch.manual_seed(seed)
    layer = torch.nn.Conv2d if dimension == 2 else torch.nn.Conv3d
    return layer(1, classes, kernel_size=1)


def blurring(dimension):
    """A receptive field of 3 voxels."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d if dimension == 2 else torch.nn.Conv3d
    return layer(1, 3, kernel_size=3, padding=1, padding_mode="replicate")


def random_image(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def options(inferer, network, **more):
    return {
        "network": network,
        "preprocessing": None,
        "inferer": inferer,
        "device": "cpu",
        "progress": False,
    } | more


# ------------------------------------------------------------------------------------------------- inferers


@pytest.mark.parametrize("mode", ["gaussian", "constant"])
@pytest.mark.parametrize(
    ("roi", "shape"),
    [
        ((8, 8), (17, 23)),
        ((8, 12), (5, 31)),
        ((32, 32), (9, 11)),
        ((8, 8, 8), (9, 17, 13)),
        ((16, 16, 16), (9, 8, 31)),
        ((8, 8), (9, 17, 5)),
        ((32, 32), (9, 11, 1)),
    ],
)
def test_any_size_equals_direct_application(roi, shape, mode):
    inputs = torch.from_numpy(random_image(2, 1, *shape))
    network = pointwise(len(shape))
    windowed = pointwise(len(roi))
    windowed.load_state_dict({k: v.reshape(windowed.state_dict()[k].shape) for k, v in network.state_dict().items()})
    with torch.no_grad():
        result = VolumeInferer(roi, mode=mode)(inputs, windowed)
        expected = network(inputs)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_2d_network_on_a_volume_is_each_slice():
    network = UNet(2, 1, 3, channels=(4, 8), strides=(2,)).eval()
    inputs = torch.from_numpy(random_image(1, 1, 20, 26, 5))
    inferer = VolumeInferer((16, 16), overlap=0.5)
    with torch.no_grad():
        volume = inferer(inputs, network)
        for z in range(5):
            torch.testing.assert_close(volume[..., z], inferer(inputs[..., z], network), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("roi", [(8, 8), (6, 8, 4)])
def test_mirroring_makes_the_result_turn_with_the_image(roi):
    torch.manual_seed(0)
    network = UNet(len(roi), 1, 3, channels=(4, 8), strides=(2,)).eval()
    inputs = torch.from_numpy(random_image(1, 1, *roi))
    with torch.no_grad():
        result = VolumeInferer(roi, mirror=True)(inputs, network)
        assert not torch.allclose(
            VolumeInferer(roi)(inputs.flip(2), network), VolumeInferer(roi)(inputs, network).flip(2)
        )
        for axis in range(2, inputs.ndim):
            torch.testing.assert_close(VolumeInferer(roi, mirror=True)(inputs.flip(axis), network), result.flip(axis))


@pytest.mark.parametrize("inferer", [VolumeInferer((8, 8), amp=True), AutocastInferer(amp=True)])
def test_amp_runs_in_bfloat16_and_returns_float32(inferer):
    seen = []
    network = pointwise(2)
    network.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    inputs = torch.from_numpy(random_image(1, 1, 16, 16))
    with torch.no_grad():
        result = inferer(inputs, network)
        assert set(seen) == {torch.bfloat16}
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, network(inputs), atol=0.02, rtol=0.02)


def test_autocast_inferer_passes_gradients_and_structures():
    network = pointwise(2)
    inputs = torch.from_numpy(random_image(1, 1, 8, 8))
    AutocastInferer(amp=True)(inputs, network).mean().backward()
    assert network.weight.grad is not None
    output = AutocastInferer(amp=True)(inputs, lambda x: [network(x), {"a": network(x)}])
    assert output[0].dtype == output[1]["a"].dtype == torch.float32
    torch.testing.assert_close(AutocastInferer()(inputs, network), network(inputs))
    seen = []
    AutocastInferer()(MetaTensor(inputs), lambda x: seen.append(type(x)) or x)
    assert seen == [torch.Tensor]  # no metadata in the network


@pytest.mark.parametrize(
    ("roi", "shape"), [((8, 8), (1, 1, 9)), ((8, 8, 8), (1, 1, 9, 9)), ((8, 8), (1, 1, 9, 9, 9, 9))]
)
def test_wrong_dimension(roi, shape):
    with pytest.raises(ValueError, match="spatial axes"):
        VolumeInferer(roi)(torch.zeros(shape), pointwise(2))


@pytest.mark.parametrize(
    "arguments",
    [
        {"roi_size": (8,)},
        {"roi_size": (0, 8)},
        {"roi_size": (8, 8), "overlap": 1},
        {"roi_size": (8, 8), "overlap": -0.1},
        {"roi_size": (8, 8), "mode": "linear"},
        {"roi_size": (8, 8), "sw_batch_size": 0},
        {"roi_size": (8, 8), "neighbours": -1},
        {"roi_size": (8, 8, 8), "neighbours": 1},
    ],
)
def test_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match=list(arguments)[-1]):
        VolumeInferer(**arguments)


@pytest.mark.parametrize(("roi", "shape"), [((8, 8), (17, 23)), ((8, 8), (8, 31, 3)), ((8, 16, 8), (5, 33, 20))])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("mirror", [False, True])
def test_window_count_is_what_the_network_sees(roi, shape, overlap, mirror):
    seen = []
    network = pointwise(len(roi))
    inferer = VolumeInferer(roi, overlap=overlap, mirror=mirror)
    with torch.no_grad():
        inferer(torch.zeros(1, 1, *shape), lambda x: seen.append(len(x)) or network(x))
    assert sum(seen) == inferer.window_count(shape)


def between_slices(neighbours, weights):
    """A network of 2·neighbours + 1 channels whose logits are a weighted sum of them, and minus that."""
    layer = torch.nn.Conv2d(2 * neighbours + 1, 2, kernel_size=1, bias=False)
    with torch.no_grad():
        layer.weight[0, :, 0, 0] = torch.as_tensor(weights)
        layer.weight[1] = -layer.weight[0]
    return layer


def weighted_slices(volume, weights):
    """What ``between_slices`` says of class 0: a correlation along z with the ends repeated."""
    n = len(weights) // 2
    padded = np.pad(volume, ((0, 0), (0, 0), (n, n)), mode="edge")
    return sum(w * padded[..., k : k + volume.shape[-1]] for k, w in enumerate(weights))


@pytest.mark.parametrize("mirror", [False, True])
def test_neighbouring_slices_are_channels(mirror):
    volume = random_image(17, 9, 7)
    weights = [0.5, -2.0, 1.0, 3.0, -1.0]
    with torch.no_grad():
        logits = VolumeInferer((8, 8), neighbours=2, mirror=mirror)(
            torch.from_numpy(volume)[None, None], between_slices(2, weights)
        )
    np.testing.assert_allclose(logits[0, 0].numpy(), weighted_slices(volume, weights), atol=1e-5)


@pytest.mark.parametrize("limit", [200, 3000, 2**24])
def test_segment_in_blocks_sees_the_neighbours_across_blocks(monkeypatch, limit):
    monkeypatch.setattr(inference, "BLOCK_VOXELS", limit)
    volume = random_image(17, 9, 23) - 0.5
    weights = [1.0, -2.0, 1.5]
    result = segment(volume, **options(VolumeInferer((8, 8), neighbours=1), between_slices(1, weights)))
    expected = weighted_slices(volume, weights)
    clear = np.abs(expected) > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(result.labels[clear], (expected < 0)[clear])


def test_neighbours_of_a_single_image_are_itself():
    image = random_image(12, 9) - 0.5
    result = segment(image, **options(VolumeInferer((8, 8), neighbours=1), between_slices(1, [1.0, 2.0, 3.0])))
    np.testing.assert_array_equal(result.labels, image < 0)


# -------------------------------------------------------------------------------------------------- segment


@pytest.mark.parametrize(("roi", "shape"), [((8, 8), (33, 27)), ((8, 8), (19, 22, 5)), ((8, 8, 8), (15, 30, 17))])
@pytest.mark.parametrize("limit", [500, 4000, 2**24])
def test_segment_in_blocks_equals_the_whole(monkeypatch, roi, shape, limit):
    monkeypatch.setattr(inference, "BLOCK_VOXELS", limit)
    image = random_image(*shape)
    result = segment(image, **options(VolumeInferer(roi, overlap=0.5), pointwise(len(roi)), probabilities=True))
    with torch.no_grad():
        expected = VolumeInferer(roi)(torch.from_numpy(image)[None, None], pointwise(len(roi)))[0]
    assert result.labels.dtype == np.uint8 and result.labels.shape == shape
    np.testing.assert_array_equal(result.labels, expected.argmax(0).numpy())
    assert result.probabilities.dtype == np.float16
    np.testing.assert_allclose(result.probabilities, expected.softmax(0).numpy(), atol=1e-3)
    assert result.seconds > 0 and result.peak_memory_bytes > 0


def test_blocks_have_no_seams(monkeypatch):
    """With a receptive field below the overlap of the blocks the result is that of the whole."""
    image = random_image(30, 28, 36)
    network = blurring(3)
    with torch.no_grad():
        expected = network(torch.from_numpy(image)[None, None])[0].softmax(0).numpy()
    monkeypatch.setattr(inference, "BLOCK_VOXELS", 6_000)
    blocks = list(inference._blocks(image.shape, (10, 10, 10), 6_000))
    assert len(blocks) > 4
    inferer = VolumeInferer((10, 10, 10), overlap=0.5)
    result = segment(image, **options(inferer, network, probabilities=True))
    with torch.no_grad():
        windowed = inferer(torch.from_numpy(image)[None, None], network)[0].softmax(0).numpy()
    # a window pads its own border, so the bound is the error of windows over the whole volume
    error, unavoidable = (np.abs(p - expected).mean() for p in (result.probabilities, windowed))
    assert error < 1.2 * unavoidable + 5e-4  # float16


@pytest.mark.parametrize("limit", [1, 100, 3000, 10**9])
@pytest.mark.parametrize(("roi", "shape"), [((8, 8), (33, 27)), ((8, 8), (19, 22, 11)), ((8, 8, 8), (19, 40, 25))])
def test_blocks_cover_each_voxel_once(roi, shape, limit):
    count = np.zeros(shape, int)
    for outer, inner, core in inference._blocks(shape, roi, limit):
        count[core] += 1
        index = np.arange(count.size).reshape(shape)
        np.testing.assert_array_equal(index[outer][inner], index[core])
    assert (count == 1).all()


def test_preprocessing_array_and_dictionary_transforms():
    image = (random_image(20, 20) * 200).astype(np.uint16)
    network = pointwise(2)
    scale = {"a_min": 0, "a_max": 200, "b_min": -3, "b_max": 3}
    scaled = torch.from_numpy(image.astype(np.float32))[None, None] / 200 * 6 - 3
    with torch.no_grad():
        expected = network(scaled)[0].argmax(0).numpy()
    for transform in (
        ScaleIntensityRange(**scale),
        Compose([ScaleIntensityRange(**scale)]),
        ScaleIntensityRanged("image", **scale),
        Compose([Compose([ScaleIntensityRanged("image", **scale)])]),
    ):
        result = segment(image, **options(VolumeInferer((16, 16)), network, preprocessing=transform))
        np.testing.assert_array_equal(result.labels, expected)


def test_normalisation_sees_the_whole_volume(monkeypatch):
    """Percentiles of a block would differ from those of the volume."""
    monkeypatch.setattr(inference, "BLOCK_VOXELS", 1)
    image = random_image(16, 16, 6) * np.arange(1, 7, dtype=np.float32)
    normalise = ScaleIntensityRangePercentilesd("image", lower=1, upper=99, b_min=-2, b_max=2)
    network = pointwise(2)
    result = segment(image, **options(VolumeInferer((16, 16)), network, preprocessing=normalise))
    whole = normalise({"image": torch.from_numpy(image)[None]})["image"][0]
    with torch.no_grad():
        for z in range(6):
            expected = network(torch.as_tensor(whole[..., z])[None, None])[0].argmax(0)
            np.testing.assert_array_equal(result.labels[..., z], expected.numpy())


def test_segment_errors():
    image = random_image(16, 16)
    inferer = VolumeInferer((8, 8))
    with pytest.raises(ValueError, match=r"image is 2D, shape \(16, 16\)"):
        segment(image, **options(VolumeInferer((8, 8, 8)), pointwise(3)))
    with pytest.raises(ValueError, match="gives 3 channels; needed are 4"):
        segment(image, **options(inferer, pointwise(2), classes=4))
    with pytest.raises(ValueError, match="gives 1 channels"):
        segment(image, **options(inferer, pointwise(2, classes=1)))
    with pytest.raises(ValueError, match="changed the shape"):
        segment(image, **options(inferer, pointwise(2), preprocessing=lambda x: x[:, :5]))


def test_progress_bar_counts_every_window(capsys):
    segment(random_image(16, 16, 3), **options(VolumeInferer((8, 8), overlap=0), pointwise(2), progress=True))
    assert "12/12" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- weights


def test_load_weights(tmp_path):
    source = pointwise(2, seed=1)
    torch.save(source.state_dict(), tmp_path / "flat.pt")
    torch.save({"network": source.state_dict(), "epoch": 3}, tmp_path / "checkpoint.pt")
    for name in ("flat.pt", "checkpoint.pt"):
        target = pointwise(2, seed=2)
        load_weights(target, tmp_path / name)
        torch.testing.assert_close(target.state_dict(), source.state_dict())


def test_load_weights_errors(tmp_path):
    path = tmp_path / "a.pt"
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_weights(pointwise(2), path)
    four_classes = pointwise(2, classes=4).state_dict()
    contents = {
        r"weight has shape \(4, 1, 1, 1\) in the file and \(3, 1, 1, 1\) .* \(and 1 more": four_classes,
        "bias is missing": {"weight": torch.zeros(3, 1, 1, 1)},
        "extra is not in the network": {**pointwise(2).state_dict(), "extra": torch.zeros(1)},
        "neither a flat state dict": {"model": {"weight": torch.zeros(1)}},
        "neither": [1, 2],
    }
    for words, content in contents.items():
        torch.save(content, path)
        with pytest.raises(ValueError, match=words) as caught:
            load_weights(pointwise(2), path)
        assert "\n" not in str(caught.value)
    for raw in (b"", b"junk", path.read_bytes()[:100]):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match="no file of weights"):
            load_weights(pointwise(2), path)


# -------------------------------------------------------------------------------------------------- picture


@pytest.mark.parametrize("shape", [(40, 20), (20, 40, 12)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_figure(tmp_path, shape, dtype):
    image = (random_image(*shape) * 200).astype(dtype)
    labels = (image > 100).astype(np.uint8)
    figure = segmentation_figure(image, labels, ["pore", "solid", "absent"], (0.05, 0.05, 0.1)[: len(shape)], "a scan")
    figure.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert len(texts) == 2 * (1 if len(shape) == 2 else 3)  # one scale bar a panel
    # at most a quarter of the width, 40 × 0.05 µm (2D) and 20 × 0.05 µm (xy of 3D)
    assert texts[0] == ("0.5 µm" if len(shape) == 2 else "0.2 µm")
    legend = [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]
    assert legend[2] == "absent: 0.0%"


@pytest.mark.parametrize(("norm", "form"), [("instance", torch.contiguous_format), ("batch", torch.channels_last)])
def test_layout_of_the_weights_follows_the_norm(norm, form):
    network = UNet(2, 1, 2, channels=(4, 8), strides=(2,), norm=norm)
    segment(random_image(16, 16), **options(VolumeInferer((16, 16)), network))
    kernels = [p for p in network.parameters() if p.ndim == 4 and min(p.shape) > 1]
    assert kernels and all(p.is_contiguous(memory_format=form) for p in kernels)
