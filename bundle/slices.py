"""2.5D: a 2D network that sees a slice of a volume together with its neighbours, as channels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple


def stack_neighbours(volume: torch.Tensor, neighbours: int) -> torch.Tensor:
    """Every slice with its neighbours as channels.

    volume: (B, C, x, y, z), or one slice (B, C, x, y).
    neighbours: slices on each side, at least 0; beyond the ends the last slice is repeated.

    Returns (B, C · (2·neighbours + 1), x, y[, z]): the slices of the first channel in the order of z, then those of the
    next.
    """
    if neighbours == 0:
        return volume
    if volume.ndim == 4:
        return volume.repeat_interleave(2 * neighbours + 1, 1)
    depth = volume.shape[-1]
    steps = torch.arange(-neighbours, neighbours + 1, device=volume.device)
    places = torch.arange(depth, device=volume.device)[None] + steps[:, None]
    return volume[..., places.clamp(0, depth - 1)].movedim(-2, 2).flatten(1, 2)


class SlicesToChannelsd(MapTransform):
    """Turns slabs (C, x, y, slices) into images (C · slices, x, y) of a 2D network, and keeps the label's middle slice.

    Args:
        image_keys: all slices become channels, those of the first channel first.
        label_keys: only the middle one is kept, (C, x, y).

    Raises:
        ValueError: other axes, or an even number of slices, which has no middle.
    """

    def __init__(self, image_keys: KeysCollection = "image", label_keys: KeysCollection = "label"):
        super().__init__(image_keys)
        self.label_keys = ensure_tuple(label_keys)

    def __call__(self, data: Mapping[str, torch.Tensor]) -> dict:
        result = dict(data)
        for key in (*self.keys, *self.label_keys):
            slab = data[key]
            if slab.ndim != 4 or slab.shape[-1] % 2 == 0:
                raise ValueError(f"{key} has shape {tuple(slab.shape)}; a slab is (C, x, y, slices), slices being odd")
            middle = slab.shape[-1] // 2
            result[key] = slab.movedim(-1, 1).flatten(0, 1) if key in self.keys else slab[..., middle]
        return result
