"""LRCS-Net against its published layers, and its un-pooling against hand calculation and torch."""

import warnings

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn
from torch.nn import functional

from bundle.networks import LRCSNet, size_multiple, unpool


def small(spatial_dims: int = 2, **options) -> LRCSNet:
    return LRCSNet(spatial_dims, **{"in_channels": 1, "out_channels": 3, "filters": 2, "kernel_size": 3, **options})


def test_unpooling_puts_values_back_where_they_were():
    image = torch.tensor([[1, 9, 2, 3], [4, 5, 8, 6], [7, 1, 0, 0], [2, 3, 5, 1]], dtype=torch.float32)[None, None]
    pooled, places = functional.max_pool2d(image, 2, return_indices=True)
    assert pooled.tolist() == [[[[9, 8], [7, 5]]]]
    back = unpool(pooled * 10, places, [4, 4])
    assert back.tolist() == [[[[0, 90, 0, 0], [0, 0, 80, 0], [70, 0, 0, 0], [0, 0, 50, 0]]]]


@pytest.mark.parametrize("size", [(5, 7), (8, 6), (5, 4, 7)])
def test_unpooling_is_that_of_torch(size):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=generator)
    pool, torch_unpool = (
        (functional.max_pool2d, functional.max_unpool2d)
        if len(size) == 2
        else (functional.max_pool3d, functional.max_unpool3d)
    )
    pooled, places = pool(x, 2, ceil_mode=True, return_indices=True)
    other = torch.randn(pooled.shape, generator=generator)
    assert torch.equal(unpool(other, places, list(size)), torch_unpool(other, places, 2, output_size=size))


def test_unpooling_runs_where_only_deterministic_operations_may():
    x = torch.randn(1, 2, 6, 6)
    pooled, places = functional.max_pool2d(x, 2, return_indices=True)
    torch.use_deterministic_algorithms(True)
    try:
        unpool(pooled.requires_grad_(), places, [6, 6]).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(pooled.grad, torch.ones_like(pooled))


def published_parameters(f: int, kernel: int, classes: int) -> int:
    """Counted from SegmentPy's layers: biases where there is no batch norm, scale and shift where there is."""
    biased = [(1, 2 * f), (2 * f, 2 * f), (2 * f, 4 * f), (4 * f, 4 * f), (f, classes)]
    normed = [(4 * f, 4 * f)] * 3 + [(4 * f, 2 * f), (2 * f, 2 * f), (2 * f, 2 * f), (2 * f, f), (f, f)]
    return sum(a * b * kernel**2 + b for a, b in biased) + sum(a * b * kernel**2 + 2 * b for a, b in normed)


@pytest.mark.parametrize(("f", "kernel", "classes", "total"), [(32, 5, 3, 2_437_667), (4, 3, 2, None)])
def test_parameters_are_those_of_the_published_layers(f, kernel, classes, total):
    count = sum(p.numel() for p in LRCSNet(2, 1, classes, filters=f, kernel_size=kernel).parameters())
    assert count == published_parameters(f, kernel, classes)
    assert total in (None, count)


def test_layers_are_in_the_published_order():
    kinds = (nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d, nn.LeakyReLU, nn.Sigmoid)
    seen = []
    network = small()
    for module in network.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda m, *_: seen.append(type(m).__name__))
    network(torch.zeros(1, 1, 16, 16))
    down, up = ["Conv2d", "LeakyReLU", "MaxPool2d"], ["Conv2d", "BatchNorm2d", "LeakyReLU"]
    assert seen == down * 3 + ["Conv2d", "Sigmoid"] + up * 8 + ["Conv2d"]


@pytest.mark.parametrize("size", [(32, 24), (33, 21), (9, 1), (17, 12, 9)])
@pytest.mark.parametrize("depth", [1, 3, 4])
def test_any_size_in_the_same_size_out(size, depth):
    network = small(len(size), in_channels=2, depth=depth, norm=("group", {"num_groups": 2}))
    assert network(torch.rand(2, 2, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_gradient_reaches_every_weight(spatial_dims):
    network = small(spatial_dims)
    network(torch.rand(2, 1, *[17] * spatial_dims)).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() and (p.grad != 0).any() for p in network.parameters())


def test_without_norm_every_convolution_has_a_bias():
    convolutions = [m for m in small(norm=None).modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 13
    assert all(m.bias is not None for m in convolutions)


def test_scripted_network_gives_the_same():
    network = small().eval()
    with warnings.catch_warnings():  # MONAI's ckpt_export uses torch.jit, which torch wants to retire
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(network)
    x = torch.rand(1, 1, 19, 16)
    with torch.inference_mode():
        assert torch.equal(scripted(x), network(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims 1 must be 2 or 3"),
        ({"kernel_size": 4}, "kernel_size 4 must be an odd number"),
        ({"kernel_size": [5, 5]}, "kernel_size"),
        ({"depth": 0}, "depth 0 must be a whole number, at least 1"),
        ({"filters": 2.5}, "filters 2.5"),
        ({"in_channels": 0}, "in_channels 0"),
        ({"out_channels": -1}, "out_channels -1"),
        ({"norm": "batchnorm"}, "norm 'batchnorm' is unknown; MONAI has .*instance"),
        ({"act": None}, "act None is unknown; MONAI has .*leakyrelu"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        small(**options)
    assert "\n" not in str(caught.value)


def test_size_multiple():
    assert size_multiple(nn.Conv2d(1, 2, 3, padding=1), 1, 2) == 1
    halved_twice = UNet(2, 1, 2, (4, 4, 4), (2, 2), norm="instance")
    assert size_multiple(halved_twice, 1, 2) == 8  # its norm needs more than one voxel at the bottom
    assert size_multiple(halved_twice, 1, 2, smallest=2) == 4 and halved_twice.training
    assert size_multiple(UNet(3, 1, 2, (4, 4), (2,), norm="batch"), 1, 3) == 2
    with pytest.raises(ValueError, match="takes no window"):
        size_multiple(nn.Conv2d(1, 2, 3), 1, 2)
