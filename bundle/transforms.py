"""Dictionary transforms that MONAI lacks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from monai.transforms import MapTransform


class CheckPaird(MapTransform):
    """Stop at an image and label pair that cannot be trained on, before it reaches the network.

    Args:
        num_classes: labels must be whole numbers from 0 to ``num_classes - 1``.
        image_key, label_key: where the (1, ...) tensors are.

    Raises:
        ValueError: names the file, the value found and the rule: NaN or infinity in the image, shapes that differ,
            labels out of range.
    """

    def __init__(self, num_classes: int, image_key: str = "image", label_key: str = "label"):
        super().__init__((image_key, label_key))
        self.num_classes, self.image_key, self.label_key = num_classes, image_key, label_key

    def __call__(self, data: Mapping[str, torch.Tensor]) -> dict:
        image, label = data[self.image_key], data[self.label_key]
        name = _file_name(label)
        if image.shape != label.shape:
            raise ValueError(f"{name}: the label has shape {tuple(label.shape)}, its image {tuple(image.shape)}")
        if not torch.isfinite(image).all():
            raise ValueError(f"{_file_name(image)}: {int((~torch.isfinite(image)).sum())} voxels are NaN or infinite")
        low, high = float(label.min()), float(label.max())
        if low < 0 or high >= self.num_classes or not torch.equal(label, label.round()):
            raise ValueError(
                f"{name}: labels run from {low:g} to {high:g}; they must be whole numbers from 0 to "
                f"{self.num_classes - 1} (num_classes={self.num_classes})"
            )
        return dict(data)


def _file_name(tensor: torch.Tensor) -> str:
    return str(getattr(tensor, "meta", {}).get("filename_or_obj", "array"))
