"""The base of random artefacts as MONAI dictionary transforms: what is drawn, kept, recorded and taken back."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, get_track_meta
from monai.transforms import InvertibleTransform, MapTransform, RandomizableTransform
from monai.utils import TraceKeys, convert_to_tensor

Range = float | Sequence[float]

META_KEY = "artifacts"  # of an image's metadata: JSON, a list of what acted on it


class RandArtifactd(RandomizableTransform, MapTransform):
    """A random artefact. Subclasses name the parameters with their limits, and the pure function that takes them.

    All keys get the same parameters. What acted is appended to the image's metadata as JSON, ``META_KEY``.

    Args:
        keys: images, float (channels, x, y) or (channels, x, y, z).
        prob: probability that the artefact acts.
        allow_missing_keys: do not raise if a key is missing.
        ranges: a range or a number for each of ``LIMITS``.

    Attributes:
        drawn: the parameters of the last call, plain numbers and lists; empty where it did not act.

    Raises:
        ValueError: a value outside its limits.
    """

    LIMITS: Mapping[str, tuple[float, float]]
    function: Callable[..., torch.Tensor]  # (image, **drawn) → image, a staticmethod

    def __init__(self, keys: KeysCollection, prob: float, allow_missing_keys: bool, **ranges: Range):
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, check_number("prob", prob, 0, 1))
        self.ranges = {name: check_range(name, value, *self.LIMITS[name]) for name, value in ranges.items()}
        self.drawn: dict = {}

    def draw(self, shape: tuple[int, ...]) -> dict:
        """Parameters for images of this spatial shape, from ``self.R``: each of ``ranges`` uniformly."""
        return {name: self.uniform(*value) for name, value in self.ranges.items()}

    def randomize(self, data: torch.Tensor) -> None:
        """Draw whether to act on an image like this one, and with what."""
        super().randomize(None)
        self.drawn = self.draw(tuple(data.shape[1:])) if self._do_transform else {}

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Raises ValueError for an image with other axes."""
        d = dict(data)
        first = self.first_key(d)
        if first == ():
            return d
        shape = tuple(d[first].shape)
        if len(shape) not in (3, 4):
            raise ValueError(f"{first!r} has shape {shape}; needed is (channels, x, y) or (channels, x, y, z)")
        self.randomize(d[first])
        for key in self.key_iterator(d):
            d[key] = self._act(convert_to_tensor(d[key], track_meta=get_track_meta()))
        return d

    def _act(self, image: torch.Tensor) -> torch.Tensor:
        if not self._do_transform:
            return image
        return with_values(
            image, self.function(plain_values(image), **self.drawn), {"name": type(self).__name__, **self.drawn}
        )

    def uniform(self, low: float, high: float) -> float:
        """Draw from [low, high)."""
        return float(self.R.uniform(low, high))

    def chance(self, probability: float) -> bool:
        """Draw whether."""
        return bool(self.R.rand() < probability)

    def seed(self) -> int:
        """Draw the seed of a pattern."""
        return int(self.R.randint(2**31 - 1))

    def centre(self, shape: tuple[int, ...], share: float) -> list[float]:
        """Draw a rotation axis [pixels from the middle], up to this share of the size away along x and y."""
        return [self.uniform(-share * n, share * n) for n in shape[:2]]


class InvertibleArtifactd(RandArtifactd, InvertibleTransform):
    """A random artefact that ``inverse`` takes back, by the parameters kept in ``applied_operations``."""

    inverse_function: Callable[..., torch.Tensor]  # (image, **drawn) → image, a staticmethod

    def _act(self, image: torch.Tensor) -> torch.Tensor:
        seen = super()._act(image)
        seen = with_values(seen, plain_values(seen))  # a new one, since MONAI's push changes the one that it gets
        return self.push_transform(seen, extra_info={"drawn": self.drawn})

    def inverse(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Take back the last call that acted on these images."""
        d = dict(data)
        for key in self.key_iterator(d):
            step = self.pop_transform(d[key])
            if step[TraceKeys.DO_TRANSFORM]:
                drawn = step[TraceKeys.EXTRA_INFO]["drawn"]
                d[key] = with_values(d[key], self.inverse_function(plain_values(d[key]), **drawn))
        return d


def plain_values(image: torch.Tensor) -> torch.Tensor:
    """The values as a plain float32 tensor: each operation on a MetaTensor costs as much as a small one itself."""
    return (image.as_tensor() if isinstance(image, MetaTensor) else image).float()


def with_values(image: torch.Tensor, values: torch.Tensor, record: dict | None = None) -> torch.Tensor:
    """Other values with the image's metadata, to which a record is added; the image's own stay, it may be cached."""
    if not isinstance(image, MetaTensor):
        return values
    meta = dict(image.meta)
    if record is not None:
        meta[META_KEY] = json.dumps([*json.loads(meta.get(META_KEY, "[]")), record])
    return MetaTensor(values, meta=meta, applied_operations=list(image.applied_operations))


def check_number(name: str, value: float, low: float, high: float) -> float:
    """A number within limits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name}={value!r} must be a number in [{low:g}, {high:g}]")
    return float(value)


def check_count(name: str, value: int, low: int, high: int) -> int:
    """A whole number within limits."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name}={value!r} must be a whole number in [{low:g}, {high:g}]")
    return value


def check_range(name: str, value: Range, low: float, high: float) -> tuple[float, float]:
    """A pair from a number or a rising pair within limits."""
    ends = value if isinstance(value, (list, tuple)) else (value, value)
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in ends)
    if len(ends) != 2 or not numbers or not low <= ends[0] <= ends[1] <= high:
        raise ValueError(f"{name}={value!r} must be a number or a rising pair in [{low:g}, {high:g}]")
    return float(ends[0]), float(ends[1])


def drawn_values(transform: RandomizableTransform) -> dict:
    """What a random transform of MONAI drew: its numbers that are no arguments; of an array the standard deviation."""
    inner = next((part for part in vars(transform).values() if isinstance(part, RandomizableTransform)), transform)
    given = inspect.signature(type(inner)).parameters
    drawn = {}
    for name, value in vars(inner).items():
        if name in given or isinstance(value, bool):
            continue
        if isinstance(value, (np.ndarray, torch.Tensor)):
            drawn[f"{name}_sd"] = float(value.std())
        elif isinstance(value, (int, float, list)):
            drawn[name.strip("_")] = value
    return drawn
