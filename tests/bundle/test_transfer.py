"""Transfer learning: what is taken up, what is new, what is kept."""

import copy
import json
import logging
import shutil

import pytest
import torch
from monai.networks.nets import AttentionUnet, BasicUNet, DynUNet, SegResNet, UNet

from bundle.networks import LRCSNet
from bundle.slices import stack_neighbours
from bundle.transfer import ENCODERS, origin, start_network, take_weights
from bundle.volume_io import sha256


def network(name, in_channels=1, phases=2, seed=0) -> torch.nn.Module:
    """A small network of each kind whose encoder is known."""
    torch.manual_seed(seed)
    io = {"spatial_dims": 2, "in_channels": in_channels, "out_channels": phases}
    made = {
        "UNet": lambda: UNet(**io, channels=(4, 6, 8), strides=(2, 2), num_res_units=2, norm="batch"),
        "UNet without residual units": lambda: UNet(**io, channels=(4, 8), strides=(2,), norm="batch"),
        "AttentionUnet": lambda: AttentionUnet(**io, channels=(4, 6, 8), strides=(2, 2)),
        "BasicUNet": lambda: BasicUNet(**io, features=(4, 4, 6, 6, 8, 4), norm=("batch", {"affine": True})),
        "DynUNet": lambda: DynUNet(
            **io, filters=(4, 6, 8), strides=(1, 2, 2), kernel_size=(3, 3, 3), upsample_kernel_size=(2, 2)
        ),
        "SegResNet": lambda: SegResNet(**io, init_filters=8, blocks_down=(1, 1, 1), blocks_up=(1, 1)),
        "LRCSNet": lambda: LRCSNet(**io, filters=4, kernel_size=3, depth=2),
    }
    return made[name]()


NAMES = ["UNet", "UNet without residual units", "AttentionUnet", "BasicUNet", "DynUNet", "SegResNet", "LRCSNet"]


def saved(net, path) -> str:
    torch.save(net.state_dict(), path)
    return str(path)


def equal(a, b, names) -> bool:
    return all(torch.equal(a.state_dict()[k], b.state_dict()[k]) for k in names)


def coarsest(net, image) -> torch.Tensor:
    """The last feature map of the fewest pixels."""
    if isinstance(net, SegResNet):  # its way up begins with a 1 × 1 convolution at that level
        return net.encode(image)[0]
    maps = []
    hooks = [m.register_forward_hook(lambda module, inputs, output: maps.append(output)) for m in net.modules()]
    net(image)
    for hook in hooks:
        hook.remove()
    return min((m for m in reversed(maps) if torch.is_tensor(m)), key=lambda m: m.shape[2:].numel())


def test_every_encoder_in_the_table_is_tested():
    assert {name.split()[0] for name in NAMES} == set(ENCODERS)


@pytest.mark.parametrize("name", NAMES)
def test_encoder_is_what_the_coarsest_level_depends_on(name, tmp_path):
    """The oracle is autograd's graph."""
    source, net = network(name, seed=0), network(name, seed=1)
    image = torch.rand(2, 1, 32, 32)
    named = dict(net.named_parameters())
    gradients = torch.autograd.grad(coarsest(net, image).sum(), list(named.values()), allow_unused=True)
    encoder = {k for k, g in zip(named, gradients, strict=True) if g is not None}
    before = copy.deepcopy(net)
    take_weights(net, saved(source, tmp_path / "a.pt"), part="encoder", freeze=True)
    assert {k for k, p in named.items() if not p.requires_grad} == encoder
    assert 0 < len(encoder) < len(named)
    assert equal(net, source, encoder)
    assert equal(net, before, set(named) - encoder)


@pytest.mark.parametrize("name", NAMES)
def test_other_number_of_phases_makes_the_output_new(name, tmp_path, caplog):
    caplog.set_level(logging.INFO, "transfer")
    source, net = network(name, phases=2), network(name, phases=3, seed=1)
    shapes = {k: v.shape for k, v in source.state_dict().items()}
    layers = {k.rpartition(".")[0] for k, v in net.state_dict().items() if v.shape != shapes[k]}
    changed = {k for k in shapes if k.rpartition(".")[0] in layers}
    new = take_weights(net, saved(source, tmp_path / "a.pt"))
    assert set(new) == changed and changed
    assert equal(net, source, set(shapes) - changed)
    assert all(k in caplog.text for k in changed)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("old", "new"), [(1, 5), (3, 1)])
def test_other_number_of_channels_sees_equal_channels_as_before(name, old, new, tmp_path):
    source, net = network(name, in_channels=old).eval(), network(name, in_channels=new, seed=1).eval()
    assert take_weights(net, saved(source, tmp_path / "a.pt")) == []
    image = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        one, other = (n(image.expand(-1, c, -1, -1)) for n, c in ((source, old), (net, new)))
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_neighbours_of_a_slice_share_the_kernel_of_its_image(tmp_path):
    """Two images with two neighbours each, in the order of the channels of 2.5D, and back."""
    source, stacked, back = (network("UNet", in_channels=n, seed=n).eval() for n in (2, 6, 2))
    take_weights(stacked, saved(source, tmp_path / "a.pt"))
    take_weights(back, saved(stacked, tmp_path / "b.pt"))
    image = torch.rand(1, 2, 32, 32)
    with torch.no_grad():
        expected = source(image)
        torch.testing.assert_close(stacked(stack_neighbours(image, 1)), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(back(image), expected, rtol=1e-4, atol=1e-5)


def test_classes_in_another_order_are_refused(tmp_path):
    record = {"name": "x", "version": "0.1.0", "classes": ["pore", "active", "CBD"]}
    (tmp_path / "record.json").write_text(json.dumps(record))
    path = saved(network("UNet", phases=3), tmp_path / "model.pt")
    for names in (["pore", "active", "CBD"], ["air", "nickel", "YSZ"]):
        assert take_weights(network("UNet", phases=3, seed=1), path, class_names=names) == []
    other = ["pore", "CBD", "active"]
    with pytest.raises(ValueError, match=r"counts the classes as \['pore', 'active', 'CBD'\], the data set as"):
        take_weights(network("UNet", phases=3), path, class_names=other)
    take_weights(network("UNet", phases=3), path, part="encoder", class_names=other)
    take_weights(network("UNet", phases=2), path, class_names=["active", "pore"])  # a new output layer


def test_origin_names_what_was_taken_and_no_folder(tmp_path):
    path = saved(network("UNet"), tmp_path / "model.pt")
    digest = sha256(path)[:16]
    assert origin(path) == f"model.pt (sha256 {digest}…)" and origin(None) is None
    record = {"name": "spheres", "version": "0.1.0", "classes": ["pore", "particle"]}
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert origin(path) == origin(tmp_path) == f"spheres 0.1.0 (sha256 {digest}…)"


def test_input_layer_can_be_new_instead(tmp_path):
    source, net = network("SegResNet"), network("SegResNet", in_channels=3, seed=1)
    before = copy.deepcopy(net)
    assert take_weights(net, saved(source, tmp_path / "a.pt"), average_inputs=False) == ["convInit.conv.weight"]
    assert equal(net, before, ["convInit.conv.weight"])


@pytest.mark.parametrize("name", NAMES)
def test_frozen_weights_and_statistics_stay(name, tmp_path):
    source, net = network(name, phases=2), network(name, phases=3, seed=1)
    with torch.no_grad():
        for _ in range(2):
            source.train()(torch.rand(2, 1, 32, 32))  # running statistics of its own
    new = set(take_weights(net, saved(source, tmp_path / "a.pt"), freeze=True))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1, weight_decay=0.1)
    before = copy.deepcopy(net)
    for _ in range(2):
        net.train()  # as MONAI's trainer does before each step
        optimizer.zero_grad()
        net(torch.rand(2, 1, 32, 32)).square().mean().backward()
        optimizer.step()
    assert equal(net, source, set(net.state_dict()) - new)
    trained = new & {k for k, p in net.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-6}
    assert trained and not any(equal(net, before, [k]) for k in trained)


def test_frozen_statistics_stay_in_a_copy(tmp_path):
    """The averaged network is a copy."""
    net = network("AttentionUnet", phases=3)
    take_weights(net, saved(network("AttentionUnet"), tmp_path / "a.pt"), freeze=True)
    twin = copy.deepcopy(net).train()
    twin(torch.rand(2, 1, 32, 32))
    assert equal(twin, net, [k for k in net.state_dict() if "running" in k and not k.startswith("model.2")])


def test_forms_of_a_file_of_weights(tmp_path):
    source = network("UNet")
    (tmp_path / "bundle/models").mkdir(parents=True)
    (tmp_path / "promoted").mkdir()
    saved(source, tmp_path / "bundle/models/model.pt")
    saved(source, tmp_path / "promoted/model.pt")
    torch.save({"network": source.state_dict(), "epoch": 3}, tmp_path / "last.pt")
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "bundle")
    for path in (tmp_path / name for name in ("bundle", "promoted", "last.pt", "packed.zip")):
        net = network("UNet", seed=1)
        assert take_weights(net, path) == []
        assert equal(net, source, source.state_dict())
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ValueError, match=r"text\.zip: is no readable zip"):
        take_weights(net, tmp_path / "text.zip")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"part": "decoder"}, "pretrained_part 'decoder' must be 'all' or 'encoder'"),
        ({"freeze": True}, "nothing to train"),
        ({"path": "other.pt"}, r"none of its weights fit .* model\.0\.conv\.unit0\.conv\.weight .* convInit"),
        ({"path": "other.pt", "part": "encoder"}, "none of its weights fit this UNet's encoder"),
        ({"path": "junk.pt"}, "no file of weights"),
    ],
)
def test_errors(tmp_path, options, said):
    saved(network("UNet"), tmp_path / "same.pt")
    saved(network("SegResNet"), tmp_path / "other.pt")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    options = {"path": "same.pt"} | options
    with pytest.raises(ValueError, match=said) as caught:
        take_weights(network("UNet", seed=1), **{**options, "path": tmp_path / options["path"]})
    assert "\n" not in str(caught.value)


def test_encoder_of_an_unknown_network(tmp_path):
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3))
    with pytest.raises(ValueError, match=r"encoder of a Sequential is not known, only of UNet"):
        take_weights(net, saved(net, tmp_path / "a.pt"), part="encoder")


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        start_network(network("UNet"), "cpu", path=tmp_path / "a.pt")


@pytest.mark.parametrize("options", [{"freeze": True}, {"part": "encoder"}, {"part": "enc"}])
def test_options_that_need_weights(options):
    with pytest.raises(ValueError, match=r"(freeze|pretrained_part '\w+') needs weights.*give pretrained"):
        start_network(network("UNet"), "cpu", **options)


@pytest.mark.parametrize("dimension", [2, 3])
def test_channels_last_changes_the_format_only(dimension):
    torch.manual_seed(0)
    net = UNet(dimension, 1, 2, channels=(4, 8), strides=(2,), norm="instance").eval()
    image = torch.rand(1, 1, *[16] * dimension)
    with torch.no_grad():
        expected = net(image)
        result = start_network(net, "cpu", channels_last=True)(image)
    form = torch.channels_last if dimension == 2 else torch.channels_last_3d
    kernels = [p for p in net.parameters() if p.ndim == dimension + 2]
    assert kernels and all(p.is_contiguous(memory_format=form) for p in kernels)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
