"""Networks that MONAI lacks."""

from __future__ import annotations

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers import Act, Norm, Pool
from torch import nn


class LRCSNet(nn.Module):
    """LRCS-Net: an encoder and decoder without skip connections, joined by the places of the maxima.

    Su et al., npj Comput. Mater. 8:30 (2022), doi 10.1038/s41524-022-00709-7, a SegNet with a thinned encoder. Every
    pooling keeps where its maxima were, and un-pooling puts the values back there, so that edges come back sharp
    though no feature map of the encoder reaches the decoder.

    With ``f = filters`` and three poolings (the numbers are channels)::

        encoder  conv 2f, pool | conv 2f, pool | conv 4f, pool | conv 4f, sigmoid
        decoder  conv 4f, conv 4f | un-pool, conv 4f, conv 2f | un-pool, conv 2f, conv 2f | un-pool, conv f, conv f
        output   conv to the phases

    From the paper: the asymmetry (one convolution a level down, two up), the carried places, kernel 5, 32 filters. From
    its program SegmentPy (the manual's table and the model ``LRCS11``): the order and widths above, the sigmoid at the
    bottom, batch norm before the activation in the decoder only, leaky ReLU of slope 0.2, an output layer with the same
    kernel, zero padding, Glorot's uniform initialisation. The manual gives the first level f channels instead of 2f,
    which its un-pooling, 2f wide, could not use; its code has 2f, and so has this.
    Ours: 3D, any number of input channels, ``depth`` (each level beyond the third doubles the width), another ``norm``,
    biases that start at zero, logits as output (the softmax is in the loss).

    Any image size works: windows at the far edge may be cut, and un-pooling restores the size of the level.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: phases.
        filters: width f of the last level.
        kernel_size: of every convolution [voxels], odd.
        depth: number of poolings, at least 1.
        norm: of the decoder, as MONAI names it ('batch', 'instance', ('group', {'num_groups': 8}), …), or None.
        act: activation, as MONAI names it.

    Raises:
        ValueError: an argument is out of range or unknown.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        filters: int = 32,
        kernel_size: int = 5,
        depth: int = 3,
        norm: str | tuple | None = "batch",
        act: str | tuple = ("leakyrelu", {"negative_slope": 0.2}),
    ):
        super().__init__()
        _check(spatial_dims, kernel_size, norm, act)
        for name, value in {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "filters": filters,
            "depth": depth,
        }.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} {value!r} must be a whole number, at least 1")

        def conv(inputs: int, outputs: int, norm=None, act=act) -> Convolution:
            return Convolution(
                spatial_dims,
                inputs,
                outputs,
                kernel_size=kernel_size,
                adn_ordering="NA",
                norm=norm,
                act=act,
                bias=norm is None,
                conv_only=act is None,
            )

        def pair(inputs: int, between: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(conv(inputs, between, norm), conv(between, outputs, norm))

        widths = [filters * 2 ** max(1, level) for level in range(depth)]  # 2f, 2f, 4f, 8f, …
        self.encoder = nn.ModuleList(conv(a, b) for a, b in zip([in_channels, *widths], widths, strict=False))
        self.pool = Pool["max", spatial_dims](2, ceil_mode=True, return_indices=True)
        self.bottom = nn.Sequential(
            conv(widths[-1], widths[-1], act="sigmoid"), pair(widths[-1], widths[-1], widths[-1])
        )
        decoder = [pair(widths[i], widths[i], widths[i - 1]) for i in range(depth - 1, 0, -1)]
        self.decoder = nn.ModuleList([*decoder, pair(widths[0], filters, filters)])
        self.output = conv(filters, out_channels, act=None)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, in_channels, x, y[, z]) float, of any size. Returns logits (B, out_channels, x, y[, z])."""
        places: list[torch.Tensor] = []
        sizes: list[list[int]] = []
        for level in self.encoder:
            x = level(x)
            sizes.append(list(x.shape[2:]))
            x, place = self.pool(x)
            places.append(place)
        x = self.bottom(x)
        for level in self.decoder:
            x = level(unpool(x, places.pop(), sizes.pop()))
        return self.output(x)


def unpool(x: torch.Tensor, places: torch.Tensor, size: list[int]) -> torch.Tensor:
    """Put values back where the maxima of a pooling were, zeros elsewhere.

    x: (B, C, …). places: int64, the same shape, the second result of a max pooling without overlap: positions in the
    flattened level above. size: of that level's spatial axes. Returns (B, C, *size).

    The same as torch's ``max_unpool2d`` and ``max_unpool3d``, which refuse to run under
    ``torch.use_deterministic_algorithms(True)`` although no place is written twice here, and are slower on the CPU.
    """
    whole = torch.zeros(list(x.shape[:2]) + size, dtype=x.dtype, device=x.device)
    return whole.flatten(2).scatter(2, places.flatten(2), x.flatten(2)).reshape(whole.shape)


def size_multiple(network: nn.Module, in_channels: int, spatial_dims: int, smallest: int = 1) -> int:
    """The smallest power of two whose multiples, from ``smallest`` times on, the network takes as windows [voxels].

    Some norms take no single voxel at the bottom, so that twice the multiple is the smallest window. Raises ValueError
    where it is above 128.
    """
    device, training = next(network.parameters()).device, network.training
    network.eval()  # running statistics stay as they are
    for k in (1, 2, 4, 8, 16, 32, 64, 128):
        shapes = [(1, in_channels, *[n] * spatial_dims) for n in (smallest * k, 3 * k)]
        try:
            with torch.inference_mode():
                if all(network(torch.zeros(shape, device=device)).shape[2:] == shape[2:] for shape in shapes):
                    network.train(training)
                    return k
        except (RuntimeError, ValueError):  # a size that its poolings cannot halve, or a norm of a single voxel
            continue
    raise ValueError(f"{type(network).__name__} takes no window of {spatial_dims} equal sides up to 128 voxels")


def _check(spatial_dims: int, kernel_size: int, norm: str | tuple | None, act: str | tuple) -> None:
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims {spatial_dims!r} must be 2 or 3")
    if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size {kernel_size!r} must be an odd number of voxels, for example 5")
    for name, value, known in (("norm", norm, Norm), ("act", act, Act)):
        if value is None and name == "norm":
            continue
        label = value[0] if isinstance(value, (tuple, list)) and value else value
        if not isinstance(label, str) or label.upper() not in known:
            raise ValueError(f"{name} {value!r} is unknown; MONAI has {', '.join(known.names).lower()}")
