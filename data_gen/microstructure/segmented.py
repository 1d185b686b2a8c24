"""A real structure: a segmented volume or image from a file, enlarged smoothly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from bundle.volume_io import read_volume, sha256
from data_gen.parameters import Range, check_number, check_ranges, draw, upper

_SMOOTHING = 0.8  # voxels of the file: takes the stairs off, keeps a particle of 4 voxels


@dataclass(frozen=True)
class Segmented:
    """Pieces of a segmented volume, from a place and along an axis that are drawn.

    A file is coarser than a scan as a rule. The indicator of each phase is smoothed over 0.8 voxels of the file and
    interpolated by cubic splines; the phase with the largest value wins, so interfaces are smooth and lie within half
    a voxel of those in the file.

    Args:
        path: labels 0, 1, … in a volume or an image, any format of ``bundle.volume_io.read_volume``.
        file_voxel_um: [µm] edge of a voxel of the file in the sample, range; what the file says itself is ignored, so
            that a structure can be scanned at another size.
        n_classes: phases in the file.
        sha256: hash of the file; None takes that of the file as it is.

    Raises:
        ValueError: a file that cannot be read, has other labels or another hash; a value outside its range.
    """

    path: str
    file_voxel_um: Range
    n_classes: int = 2
    sha256: str | None = None

    def __post_init__(self):
        check_ranges(self, [("file_voxel_um", 1e-4, 1e4, "µm")])
        check_number("n_classes", self.n_classes, 2, 255)
        if self.path is None or not Path(self.path).is_file():
            raise ValueError(
                f"path={self.path and str(self.path)!r} must be a file with labels; with "
                "configs/generate_from_labels.json give --labels_path FILE --labels_voxel_um NUMBER"
            )
        object.__setattr__(self, "path", str(self.path))  # plain JSON
        found = sha256(self.path)
        if self.sha256 not in (None, found):
            raise ValueError(f"path={self.path!r} has changed: its sha256 is {found}, the recipe has {self.sha256!r}")
        object.__setattr__(self, "sha256", found)
        labels = np.asarray(read_volume(self.path, 1.0).array)
        if labels.dtype.kind not in "ui" or labels.min() < 0 or labels.max() >= self.n_classes:
            raise ValueError(
                f"path={self.path!r} holds values from {labels.min():g} to {labels.max():g}; "
                f"labels must be whole numbers below n_classes={self.n_classes}"
            )
        object.__setattr__(self, "_labels", labels.astype(np.uint8))

    def check(self, shape: tuple[int, ...], voxel_size_um: float) -> None:
        """Raise ValueError where the file has fewer axes than the sample or is too small to fill it."""
        if self._labels.ndim < len(shape):
            raise ValueError(f"path={self.path!r} is an image; it cannot fill a volume of {tuple(shape)} voxels")
        needed = np.array(shape) * voxel_size_um
        held = min(self._labels.shape) * upper(self.file_voxel_um)
        if needed.max() > held:
            raise ValueError(
                f"path={self.path!r} is {held:.4g} µm wide with file_voxel_um={self.file_voxel_um!r}; "
                f"{tuple(shape)} voxels of {voxel_size_um:g} µm need {needed.max():.4g} µm"
            )

    def draw(self, rng: np.random.Generator) -> dict:
        """The parameters of one sample: size of the file's voxels, order of the axes, flips, place in [0, 1]."""
        ndim = self._labels.ndim
        return {
            "file_voxel_um": draw(self.file_voxel_um, rng),
            "axes": rng.permutation(ndim).tolist(),
            "flips": rng.integers(2, size=ndim).tolist(),
            "place": rng.uniform(size=ndim).tolist(),
        }

    def build(
        self, shape: tuple[int, ...], voxel_size_um: float, parameters: dict, rng: np.random.Generator
    ) -> tuple[np.ndarray, dict]:
        """Cut and enlarge one sample.

        Args:
            shape: voxels along each axis; of a volume in the file an image shows a plane.
            voxel_size_um: [µm] edge of a voxel.
            parameters: what ``draw`` gave.
            rng: not used.

        Returns:
            uint8 labels of that shape; a dictionary with the file's voxels along each axis of the sample.
        """
        flips = tuple(slice(None, None, -1 if flip else 1) for flip in parameters["flips"])
        labels = self._labels.transpose(parameters["axes"])[flips]
        self.check(shape, voxel_size_um)
        step = voxel_size_um / parameters["file_voxel_um"]
        at = [(np.arange(n) + 0.5) * step - 0.5 for n in shape]
        spare = [labels.shape[k] - n * step for k, n in enumerate(shape)]
        if min(spare) < -1e-9:
            raise ValueError(
                f"path={self.path!r} of {labels.shape} voxels is too small for {np.multiply(shape, step).max():.4g}"
            )
        at = [line + share * max(room, 0) for line, share, room in zip(at, parameters["place"], spare, strict=False)]
        if labels.ndim > len(shape):
            at.append(np.array([round(parameters["place"][2] * (labels.shape[2] - 1))]))
        grid = np.stack(np.meshgrid(*at, indexing="ij")).reshape(labels.ndim, *shape)
        best, out = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.uint8)
        first = 0
        if self.n_classes == 2:  # the shares of two phases are each other's complement
            best[...], first = 0.5, 1
        for phase in range(first, self.n_classes):
            smooth = gaussian_filter((labels == phase).astype(np.float32), _SMOOTHING)
            value = map_coordinates(smooth, grid, np.float32, order=3, mode="nearest")
            out[value > best] = phase
            np.maximum(best, value, out=best)
        return out, {"file_voxels": [round(n * step, 3) for n in shape]}
