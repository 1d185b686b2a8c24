"""Segment a TIFF with an exported network: numpy, onnxruntime and tifffile are all it needs.

    python run_onnx.py scan.tif --out labels.tif

``scripts/share.py export`` puts this file as run_onnx.py beside model.onnx and model.json. It scales the grey values,
slides the window and blends as the bundle does, so that the labels are the same but for a few voxels at ties.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import tifffile

SIGMA_SCALE = 0.125  # MONAI's, of the window's side
LEAST_WEIGHT = 1e-3


def scale_grey(image: np.ndarray, steps: list) -> np.ndarray:
    """Grey values as the network sees them, float32; the steps are those of the bundle's 'intensity'."""
    image = image.astype(np.float32)
    for step in steps:
        if step["_target_"] == "ScaleIntensityRangePercentilesd":
            low, high = np.percentile(image, [step["lower"], step["upper"]]).astype(np.float32)
        else:
            low, high = np.float32(step["a_min"]), np.float32(step["a_max"])
        image = (image - low) / (high - low) if high > low else image - low  # as MONAI does
        b_min, b_max = step.get("b_min"), step.get("b_max")
        if b_min is not None and b_max is not None:
            image = image * np.float32(b_max - b_min) + np.float32(b_min)
        if step.get("clip") and not (b_min is None and b_max is None):
            image = np.clip(image, b_min, b_max)
    return image


def window_weights(roi: list, mode: str) -> np.ndarray:
    """How much each voxel of a window counts where windows overlap, float32."""
    weights = np.ones(roi, dtype=np.float32)
    if mode == "gaussian":
        for axis, size in enumerate(roi):
            x = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
            line = np.exp(x**2 / np.float32(-2 * (SIGMA_SCALE * size) ** 2))
            weights = weights * line.reshape([-1 if k == axis else 1 for k in range(len(roi))])
    return np.maximum(weights, max(float(weights.min()), LEAST_WEIGHT))


def window_starts(length: int, roi: int, overlap: float) -> list:
    """Where windows start along an axis at least as long as the window; the last one ends with the axis."""
    step = roi if roi == length else max(1, int(roi * (1 - overlap)))
    starts = range(0, max(1, length - roi + step), step)
    return sorted({min(start, length - roi) for start in starts})


class Segmenter:
    """An exported network with its window. folder: holds model.onnx and model.json."""

    def __init__(self, folder: Path) -> None:
        self.model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        self.roi = self.model["roi_size"]
        self.weights = window_weights(self.roi, self.model["mode"])
        axes = range(2, 2 + len(self.roi)) if self.model["mirror"] else ()
        self.flips = [flip for n in range(len(axes) + 1) for flip in itertools.combinations(axes, n)]

    def network(self, windows: np.ndarray) -> np.ndarray:
        """(B, C, window) → logits (B, classes, window), the mean over the mirror images."""
        total = 0
        for flip in self.flips:
            logits = self.session.run(None, {"image": np.ascontiguousarray(np.flip(windows, flip))})[0]
            total = total + np.flip(logits, flip)
        return total / np.float32(len(self.flips))

    def blend(self, image: np.ndarray, batch: int = 4) -> np.ndarray:
        """(C, as many axes as the window) → logits (classes, the same axes)."""
        missing = [max(0, roi - length) for roi, length in zip(self.roi, image.shape[1:], strict=True)]
        padding = [(m // 2, m - m // 2) for m in missing]
        padded = np.pad(image, [(0, 0), *padding], mode="edge")
        shape = padded.shape[1:]
        starts = [
            window_starts(length, roi, self.model["overlap"]) for length, roi in zip(shape, self.roi, strict=True)
        ]
        places = [
            tuple(slice(s, s + roi) for s, roi in zip(start, self.roi, strict=True))
            for start in itertools.product(*starts)
        ]
        total = np.zeros((len(self.model["classes"]), *shape), dtype=np.float32)
        count = np.zeros(shape, dtype=np.float32)
        for first in range(0, len(places), batch):
            group = places[first : first + batch]
            logits = self.network(np.stack([padded[(slice(None), *place)] for place in group]))
            for place, one in zip(group, logits, strict=True):
                total[(slice(None), *place)] += one * self.weights
                count[place] += self.weights
        inner = tuple(slice(low, low + length) for (low, _), length in zip(padding, image.shape[1:], strict=True))
        return (total / count)[(slice(None), *inner)]

    def segment(self, image: np.ndarray) -> np.ndarray:
        """(x, y) or (x, y, z) of any real dtype → labels, uint8; a 2D network takes a volume slice by slice."""
        if image.ndim not in (len(self.roi), 3):
            raise ValueError(f"the image is {image.ndim}D, shape {image.shape}; the network is {len(self.roi)}D")
        image, neighbours = scale_grey(image, self.model["intensity"]), self.model["neighbours"]
        flat = image.ndim == len(self.roi)
        if flat and not (neighbours and image.ndim == 2):
            return self.blend(image[None]).argmax(0).astype(np.uint8)
        volume = image[..., None] if flat else image
        labels = np.empty(volume.shape, dtype=np.uint8)
        for z in range(volume.shape[2]):
            chosen = np.clip(np.arange(z - neighbours, z + neighbours + 1), 0, volume.shape[2] - 1)
            labels[..., z] = self.blend(np.moveaxis(volume[..., chosen], -1, 0)).argmax(0)
        return labels[..., 0] if flat else labels


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scan", type=Path, help="a TIFF, one image or a stack")
    parser.add_argument("--out", type=Path, required=True, help="TIFF for the labels")
    parser.add_argument(
        "--model", type=Path, default=Path(__file__).parent, help="folder of model.onnx (default: here)"
    )
    args = parser.parse_args()
    try:
        image = tifffile.imread(args.scan)
        if image.ndim not in (2, 3) or image.dtype.kind not in "uif":
            raise ValueError(
                f"{args.scan}: has shape {image.shape} and dtype {image.dtype}; give one grey image or stack"
            )
        segmenter = Segmenter(args.model)
        labels = segmenter.segment(image.T)  # pages are z, rows y, columns x
        tifffile.imwrite(args.out, np.ascontiguousarray(labels.T), photometric="minisblack")
    except (OSError, ValueError) as error:
        print(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    counts = np.bincount(labels.ravel(), minlength=len(segmenter.model["classes"]))
    for name, count in zip(segmenter.model["classes"], counts, strict=True):
        print(f"{name:<16} {count / labels.size:8.2%}")
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
