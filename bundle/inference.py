"""Applying a trained network to an image or volume of any size with bounded memory."""

import contextlib
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.inferers import Inferer, SliceInferer, SlidingWindowInferer
from monai.transforms import Compose, MapTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from tqdm import tqdm

from bundle.slices import stack_neighbours

BLOCK_VOXELS = 2**24  # logits of a block: 64 MiB a class in float32


class AutocastInferer(Inferer):
    """A plain forward pass, the trainers' inferer; the output is float32.

    The network gets tensors without MONAI's metadata, which each of its operations would carry along: a tenth of the
    time of a small network.

    amp: run under bfloat16 autocast, on any device (MONAI's trainers autocast on CUDA only).
    """

    def __init__(self, amp: bool = False) -> None:
        super().__init__()
        self.amp = amp

    def __call__(self, inputs: torch.Tensor, network: Callable, *args, **kwargs):
        """inputs: (B, C, spatial). Returns what the network returns, its tensors as float32."""
        with _autocast(inputs.device, self.amp):
            output = network(convert_to_tensor(inputs, track_meta=False), *args, **kwargs)
        return _as_float32(output)


class VolumeInferer(Inferer):
    """Sliding windows over images and volumes of any size, the inferer for validation and inference.

    roi_size: [voxels] the window. Two numbers for a 2D network, which segments a 3D volume slice by slice
        along the last axis; three for a 3D network.
    sw_batch_size: windows per forward pass.
    overlap: share of a window that the next one covers again, 0 ≤ overlap < 1.
    mode: 'gaussian' weighs a window's centre more where windows overlap, 'constant' does not.
    mirror: average the logits of every flip of a window along the window's axes, as nnU-Net does: 4 times the work in
        2D, 8 times in 3D.
    amp: run the network under bfloat16 autocast; windows are blended in float32.
    progress: show MONAI's progress bar.
    neighbours: slices on each side that a 2D network sees as channels beside its own (2.5D), 0 for none. At the ends of
        a volume, and for a single image, the last slice stands in for those that are missing.

    An image smaller than the window is padded by repeating its border.
    Raises ValueError for arguments out of range.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        sw_batch_size: int = 4,
        overlap: float = 0.25,
        mode: str = "gaussian",
        mirror: bool = False,
        amp: bool = False,
        progress: bool = False,
        neighbours: int = 0,
    ) -> None:
        super().__init__()
        self.roi_size = tuple(int(size) for size in roi_size)
        if len(self.roi_size) not in (2, 3) or min(self.roi_size) < 1:
            raise ValueError(f"roi_size {list(roi_size)} must be 2 or 3 positive numbers of voxels")
        if sw_batch_size < 1:
            raise ValueError(f"sw_batch_size {sw_batch_size} must be at least 1")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap {overlap} must be at least 0 and below 1, for example 0.25")
        if mode not in ("gaussian", "constant"):
            raise ValueError(f"mode {mode!r} must be 'gaussian' or 'constant'")
        if neighbours < 0 or (neighbours and len(self.roi_size) == 3):
            raise ValueError(f"neighbours {neighbours} must be at least 0, and 0 for a 3D roi_size {self.roi_size}")
        self.sw_batch_size, self.overlap, self.mode = sw_batch_size, overlap, mode
        self.mirror, self.amp, self.progress, self.neighbours = mirror, amp, progress, neighbours
        axes = range(2, 2 + len(self.roi_size)) if mirror else ()
        self._flips = [flip for n in range(len(axes) + 1) for flip in itertools.combinations(axes, n)]

    def __call__(self, inputs: torch.Tensor, network: Callable, *args, **kwargs) -> torch.Tensor:
        """inputs: (B, C, x, y[, z]) float. The network gets windows (B, C · (2·neighbours + 1), window), see
        ``bundle.slices.stack_neighbours``. Returns logits (B, classes, x, y[, z]) float32.

        Raises ValueError if the input's spatial axes do not fit ``roi_size``.
        """
        spatial = inputs.ndim - 2
        allowed = "2 or 3" if len(self.roi_size) == 2 else "3"
        options = {
            "roi_size": self.roi_size,
            "sw_batch_size": self.sw_batch_size,
            "overlap": self.overlap,
            "mode": self.mode,
            "padding_mode": "replicate",
            "progress": self.progress,
        }
        if spatial == len(self.roi_size):
            inferer = SlidingWindowInferer(**options)
        elif spatial == 3 and len(self.roi_size) == 2:
            inferer = SliceInferer(spatial_dim=2, **options)
        else:
            raise ValueError(
                f"the input has shape {tuple(inputs.shape)}, {spatial} spatial axes; roi_size "
                f"{self.roi_size} needs (batch, channel) and {allowed} spatial axes"
            )

        if self.neighbours:
            stacked = stack_neighbours(convert_to_tensor(inputs, track_meta=False), self.neighbours)
            inputs = convert_to_dst_type(stacked, inputs)[0]

        def predict(windows: torch.Tensor) -> torch.Tensor:
            with _autocast(windows.device, self.amp):
                logits = [network(windows.flip(f), *args, **kwargs).flip(f).float() for f in self._flips]
            return torch.stack(logits).mean(0) if self.mirror else logits[0]

        return inferer(inputs, predict)

    def window_count(self, shape: Sequence[int]) -> int:
        """How many windows the network sees of an image of this spatial shape, mirrored ones counted."""
        count = math.prod(shape[len(self.roi_size) :]) * len(self._flips)
        for length, roi in zip(shape, self.roi_size, strict=False):
            step = max(1, int(roi * (1 - self.overlap)))
            count *= math.ceil(max(0, length - roi) / step) + 1
        return count


def _autocast(device: torch.device, enabled: bool):
    if not enabled:
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def _as_float32(output):
    if isinstance(output, torch.Tensor):
        return output.float()
    if isinstance(output, dict):
        return {key: _as_float32(value) for key, value in output.items()}
    return type(output)(_as_float32(value) for value in output)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What ``segment`` gives.

    labels: uint8 (x, y[, z]), the most probable class.
    probabilities: float16 (classes, x, y[, z]), or None.
    seconds: wall time of normalisation and network.
    peak_memory_bytes: on CUDA the most that torch held there during the run, else the process's peak
        resident size so far; None where the system does not say it.
    """

    labels: np.ndarray
    probabilities: np.ndarray | None
    seconds: float
    peak_memory_bytes: int | None


def segment(
    image: np.ndarray | Sequence[np.ndarray],
    *,
    network: torch.nn.Module,
    preprocessing: Callable | None,
    inferer: VolumeInferer,
    device: torch.device | str,
    probabilities: bool = False,
    progress: bool = True,
    classes: int | None = None,
) -> Segmentation:
    """Segment one image or volume.

    image: (x, y) or (x, y, z), any real dtype; a sequence of them, of one shape, are its channels.
    network: (B, C · (2·neighbours + 1), window) → logits (B, classes, window); it is moved to ``device`` and left in
    evaluation mode.
    preprocessing: MONAI transform of the whole image (C, x, y[, z]) float32, an array transform or a
        dictionary one with the key 'image'; it may change values, not the shape. None for none.
    inferer: a VolumeInferer.
    probabilities: also return the softmax.
    progress: show a progress bar of windows.
    classes: the number of classes that the network must give, checked at the first window.

    A large image is processed in blocks (about 16 million voxels, overlapping by a window, between the slices of a 2D
    network only by the neighbours that it sees), so that beside the image only labels, and probabilities if
    asked for, are whole. Raises ValueError for an image that does not fit the inferer, a network with one
    or an unexpected number of classes, or a preprocessing that changes the shape.
    """
    device = torch.device(device)
    channels = [image] if isinstance(image, np.ndarray) else list(image)
    image = channels[0]
    if any(channel.shape != image.shape for channel in channels):
        raise ValueError(f"the channels of the image have the shapes {', '.join(str(c.shape) for c in channels)}")
    if not (image.ndim == len(inferer.roi_size) or (image.ndim == 3 and len(inferer.roi_size) == 2)):
        raise ValueError(
            f"the image is {image.ndim}D, shape {image.shape}; a network with roi_size {inferer.roi_size} "
            f"needs {'2D or 3D' if len(inferer.roi_size) == 2 else '3D'}"
        )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    normalised = _preprocess(channels, preprocessing)
    network = network.to(device, memory_format=_memory_format(network, inferer)).eval()
    blocks = list(_blocks(image.shape, inferer.roi_size, BLOCK_VOXELS, inferer.neighbours))
    labels = np.empty(image.shape, dtype=np.uint8)
    soft: np.ndarray | None = None
    windows = sum(inferer.window_count([s.stop - s.start for s in outer]) for outer, _, _ in blocks)
    with torch.inference_mode(), tqdm(total=windows, unit="window", disable=not progress) as bar:

        def predict(x: torch.Tensor) -> torch.Tensor:
            logits = network(x)
            _check_classes(logits, classes)
            bar.update(len(x))
            return logits

        for outer, inner, core in blocks:
            block = torch.as_tensor(normalised[(slice(None), *outer)], device=device)[None]
            logits = inferer(block, predict)[(0, slice(None), *inner)]
            labels[core] = logits.argmax(0).to(torch.uint8).cpu().numpy()
            if probabilities:
                if soft is None:
                    soft = np.empty((len(logits), *image.shape), dtype=np.float16)
                soft[(slice(None), *core)] = logits.softmax(0).half().cpu().numpy()
            del block, logits
    return Segmentation(labels, soft, time.perf_counter() - start, _peak_memory_bytes(device))


def _memory_format(network: torch.nn.Module, inferer: VolumeInferer) -> torch.memory_format:
    """The faster layout of a network's weights, which its feature maps then follow.

    Measured on a CPU, 4 windows of 256²: channels-last takes 0.7 to 1.0 of the time with batch or group norm, and 1.1
    to 1.3 times as long with instance norm, which torch computes channels-first.
    """
    instance_norms = (torch.nn.InstanceNorm2d, torch.nn.InstanceNorm3d)
    if len(inferer.roi_size) == 3 or any(isinstance(module, instance_norms) for module in network.modules()):
        return torch.contiguous_format
    return torch.channels_last


def _preprocess(channels: Sequence[np.ndarray], transform: Callable | None) -> torch.Tensor:
    """The normalised image (C, x, y[, z]) float32."""
    tensor = torch.from_numpy(np.stack(channels, dtype=np.float32))
    if transform is None:
        return tensor
    result = transform({"image": tensor})["image"] if _is_dictionary(transform) else transform(tensor)
    result = convert_to_tensor(result, dtype=torch.float32, track_meta=False)
    if result.shape != tensor.shape:
        raise ValueError(
            f"preprocessing changed the shape from {tuple(tensor.shape)} to {tuple(result.shape)}; it may "
            "change grey values only, otherwise the labels no longer fit the scan"
        )
    return result


def _is_dictionary(transform: Callable) -> bool:
    if isinstance(transform, Compose):
        return bool(transform.transforms) and _is_dictionary(transform.transforms[0])
    return isinstance(transform, MapTransform)


def _check_classes(logits: torch.Tensor, classes: int | None) -> None:
    found = logits.shape[1]
    if found < 2 or found > 256 or (classes is not None and found != classes):
        raise ValueError(
            f"the network gives {found} channels; needed are {classes or '2 to 256'}, one for each class name"
        )


Block = tuple[slice, ...]


def _blocks(
    shape: Sequence[int], roi: Sequence[int], limit: int, neighbours: int = 0
) -> Iterator[tuple[Block, Block, Block]]:
    """Cut an image into blocks: what to read, the part of it to keep, and where that part belongs.

    Between blocks half a window more is read on each side, since a window's border is where it errs. Along the slices
    of a 2D network that is the ``neighbours`` that it sees; each neighbour also counts as voxels of the block.
    """
    margins = [window // 2 for window in roi] + [neighbours] * (len(shape) - len(roi))
    roi = (*roi, *[1] * (len(shape) - len(roi)))
    limit = limit // (2 * neighbours + 1)
    size = list(shape)
    size[-1] = size[-1] if roi[-1] > 1 else max(1, min(size[-1], limit // math.prod(size[:-1])))
    while math.prod(size) > limit:
        axis = max(range(len(size)), key=lambda i: size[i] / roi[i])
        if size[axis] <= 2 * roi[axis]:
            break
        size[axis] = math.ceil(size[axis] / 2)
    for starts in itertools.product(*(range(0, n, step) for n, step in zip(shape, size, strict=True))):
        outer, inner, core = [], [], []
        for start, step, n, margin in zip(starts, size, shape, margins, strict=True):
            stop = min(start + step, n)
            low, high = max(0, start - margin), min(n, stop + margin)
            outer.append(slice(low, high))
            inner.append(slice(start - low, stop - low))
            core.append(slice(start, stop))
        yield tuple(outer), tuple(inner), tuple(core)


def _peak_memory_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_weights(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The tensors of a flat state dict, or of the 'network' entry of a training checkpoint, by name, on the CPU.

    Raises FileNotFoundError if there is no file; ValueError, one line, if it holds no weights.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except Exception as error:  # the unpickler raises anything from EOFError to struct.error
        raise ValueError(f"{path}: is no file of weights that torch.load(weights_only=True) can read") from error
    if isinstance(state, dict) and isinstance(state.get("network"), dict):
        state = state["network"]
    if not (isinstance(state, dict) and state and all(torch.is_tensor(value) for value in state.values())):
        raise ValueError(f"{path}: holds neither a flat state dict nor a checkpoint with the key 'network'")
    return state


def load_weights(network: torch.nn.Module, path: str | os.PathLike) -> None:
    """Load a flat state dict, or the 'network' entry of a training checkpoint, strictly.

    Raises FileNotFoundError if there is no file; ValueError, one line, if it holds no weights or they do
    not fit.
    """
    state = read_weights(path)
    expected = network.state_dict()
    problems = [f"{key} is missing in the file" for key in expected if key not in state]
    problems += [f"{key} is not in the network" for key in state if key not in expected]
    problems += [
        f"{key} has shape {tuple(state[key].shape)} in the file and {tuple(value.shape)} in the network"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more differences)" if len(problems) > 1 else ""
        raise ValueError(f"{path}: does not fit the network: {problems[0]}{more}")
    network.load_state_dict(state)
