"""Reading and writing volumes: the only home of axes, units and file formats.

Axis law: in memory and in NIfTI an array is (x, y) or (x, y, z). In TIFF the pages are z, the rows y and the
columns x; a .npy file holds what tifffile would give, (y, x) or (z, y, x). The transposition happens here
and nowhere else. The last axis z is the slice axis and the axis of the scanner's rotation.

Units: every length is in µm. NIfTI files are written with ``xyzt_units='micron'`` and converted when read.

This module imports neither MONAI nor torch (12 s); ``bundle.monai_io`` holds the readers and writers for
MONAI.
"""

import contextlib
import errno
import gzip
import hashlib
import json
import logging
import math
import os
import re
import shutil
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import tifffile
from PIL import Image

TIFF_SUFFIXES = (".tif", ".tiff")
SLICE_SUFFIXES = (*TIFF_SUFFIXES, ".png")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
SUPPORTED = "TIFF (.tif, .tiff), NIfTI (.nii, .nii.gz), NumPy (.npy), PNG (.png) or a folder of TIFF or PNG slices"

MIN_AXIS_LENGTH = 8
LARGEST_CLASSIC_TIFF = 2**32 - 2**25  # bytes of image data; the rest of the 4 GiB is left for the tags
IMAGEJ_DTYPES = ("uint8", "uint16", "float32")
OME_DTYPES = ("int8", "int16", "int32", "uint32", "float64")
NIFTI_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")

_UM_PER_UNIT = {
    "nm": 1e-3, "nanometer": 1e-3,
    "µm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0,
    "mm": 1e3, "millimeter": 1e3, "millimetre": 1e3,
    "cm": 1e4, "centimeter": 1e4, "centimetre": 1e4,
    "m": 1e6, "meter": 1e6, "metre": 1e6,
}  # fmt: skip
_UM_PER_NIFTI_UNIT = {"micron": 1.0, "mm": 1e3, "meter": 1e6, "unknown": None}
_TIFF_DAMAGE = re.compile(r"invalid page offset|circular reference|corrupt|invalid offset to first page", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Volume:
    """An image or label map with its geometry.

    array: numpy array (x, y) or (x, y, z), any real dtype in native byte order.
    affine: [µm] 4×4 float64, voxel index → world; None where the voxel size is unknown.
    source: the file or folder it came from.
    """

    array: np.ndarray
    affine: np.ndarray | None
    source: Path

    @property
    def voxel_size_um(self) -> tuple[float, ...] | None:
        """[µm] one size per axis of ``array``, or None where unknown."""
        if self.affine is None:
            return None
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(float(size) for size in sizes[: self.array.ndim])


# ------------------------------------------------------------------------------------------ reading


def read_volume(path: str | os.PathLike, voxel_size_um: float | Sequence[float] | None = None) -> Volume:
    """Read an image or label map: TIFF, NIfTI, .npy, .png, or a folder of 2D slices.

    path: a .tif/.tiff (single, multi-page, ImageJ or OME), .nii/.nii.gz, .npy or .png file, or a folder of
        .tif/.tiff/.png slices, which are sorted by the numbers in their names.
    voxel_size_um: [µm] one number, or one per axis; replaces or supplies what the file says. For NIfTI the
        directions and the origin (counted in voxels) stay and the lengths change.

    Returns a Volume with array (x, y) or (x, y, z) in the dtype of the file (bool becomes uint8). Its affine
    is None when neither the file nor the caller gave a voxel size: the resolution tags of a plain TIFF are
    ignored, since writers put a screen's dpi there, and a NIfTI file without a unit is ambiguous by a factor
    of 1000.

    Raises FileNotFoundError if there is nothing at ``path``; ValueError, one line that begins with the path,
    if the content is damaged, empty, in colour, complex, or not one 2D image or one 3D volume.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    suffix = _suffix(path)
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise ValueError("the file is empty")
        if suffix in NIFTI_SUFFIXES and path.is_file():
            array, affine = _read_nifti(path, voxel_size_um)
        else:
            array, sizes = _read_pixels(path, suffix)
            if voxel_size_um is not None:
                sizes = _sizes(voxel_size_um, array.ndim)
            affine = None if sizes is None else affine_from_voxel_size(sizes[: array.ndim])
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # libraries raise anything from zlib.error to struct.error on a damaged file
        reason = one_line(error)
        raise ValueError(f"{path}: {reason}") from error
    return Volume(array, affine, path)


def check_same_geometry(volumes: Sequence[Volume]) -> None:
    """Raises ValueError, one line that begins with the path, where one differs from the first in shape or affine."""
    first = volumes[0]
    for volume in volumes[1:]:
        same_affine = (volume.affine is None) == (first.affine is None) and (
            first.affine is None or np.allclose(volume.affine, first.affine, rtol=1e-5, atol=0)
        )
        if volume.array.shape != first.array.shape or not same_affine:
            raise ValueError(f"{volume.source}: shape or voxel size differs from {first.source}")


def _read_pixels(path: Path, suffix: str) -> tuple[np.ndarray, tuple[float, ...] | None]:
    """The array (x, y[, z]) and its voxel sizes [µm], None if unknown, of everything but NIfTI."""
    if path.is_dir():
        array, sizes = _read_folder(path)
    elif suffix in TIFF_SUFFIXES:
        array, sizes = _read_tiff(path)
    elif suffix == ".npy":
        array, sizes = np.load(path, allow_pickle=False).T, None
        while array.ndim > 2 and array.shape[-1] == 1:
            array = array[..., 0]
    elif suffix == ".png":
        array, sizes = _read_png(path).T, None
    else:
        raise ValueError(f"the format {suffix or 'without a suffix'!r} is not known; give {SUPPORTED}")
    return _plain_array(array), sizes


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def _plain_array(array: np.ndarray) -> np.ndarray:
    """Check dtype and shape; bool → uint8, big-endian → native."""
    if array.dtype.kind not in "buif":
        raise ValueError(f"dtype {array.dtype} is not a grey value; give integers or real floating-point numbers")
    if array.size == 0:
        raise ValueError(f"the array of shape {array.shape} holds no voxels")
    if array.ndim not in (2, 3):
        raise ValueError(f"the array has {array.ndim} dimensions, shape {array.shape}; give 2 or 3")
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _sizes(voxel_size_um, ndim: int) -> tuple[float, ...]:
    """Normalise a voxel size [µm] to one float per axis."""
    values = np.atleast_1d(np.asarray(voxel_size_um, dtype=float))
    if values.ndim != 1 or len(values) not in (1, ndim):
        raise ValueError(f"voxel_size_um {voxel_size_um} does not fit {ndim} axes; give one number or {ndim}")
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"voxel_size_um {voxel_size_um} must be positive and finite, in µm")
    return tuple(float(value) for value in np.broadcast_to(values, ndim))


def affine_from_voxel_size(voxel_size_um: Sequence[float]) -> np.ndarray:
    """The axis-aligned affine [µm], 4×4 float64, of an array with 2 or 3 axes of these voxel sizes and
    origin 0.

    An image (x, y) has no third size: its slice is taken to be as thick as the first size.
    Raises ValueError unless there are 2 or 3 positive, finite sizes.
    """
    sizes = tuple(voxel_size_um)
    if len(sizes) not in (2, 3):
        raise ValueError(f"voxel_size_um {sizes} must have 2 or 3 entries, one per axis")
    sizes = _sizes(sizes, len(sizes))
    x, y, z = sizes if len(sizes) == 3 else (*sizes, sizes[0])
    return np.diag([x, y, z, 1.0])


def _read_tiff(path: Path) -> tuple[np.ndarray, tuple[float, ...] | None]:
    """All pages as (x, y[, z]), and voxel sizes [µm] where ImageJ or OME metadata give them."""
    with _tiff_messages() as messages, tifffile.TiffFile(path) as tif:
        series = tif.series
        if not series:
            raise ValueError("the TIFF file holds no image")
        _check_tiff_is_whole(tif, messages)
        if len(series) == 1:
            array = _zyx(series[0].asarray(), series[0].axes)
        else:
            array = _stack([(f"image {i}", _zyx(part.asarray(), part.axes)) for i, part in enumerate(series)])
        sizes = _ome_voxel_size(tif.ome_metadata) if tif.is_ome else _imagej_voxel_size(tif)
        _check_tiff_is_whole(tif, messages)
    if sizes is not None and len(sizes) < array.ndim:
        sizes = None
    return array.T, sizes


@contextlib.contextmanager
def _tiff_messages() -> Iterator[list[str]]:
    """Collect what tifffile logs: a truncated file is only logged there, and read as a shorter stack."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    log = logging.getLogger("tifffile")
    propagate, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        yield messages
    finally:
        log.removeHandler(handler)
        log.propagate = propagate


def _check_tiff_is_whole(tif: tifffile.TiffFile, messages: list[str]) -> None:
    damage = [message for message in messages if _TIFF_DAMAGE.search(message)]
    if damage:
        raise ValueError(f"the TIFF file is truncated or corrupt ({damage[0]})")
    for number, page in enumerate(tif.pages):
        ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)]
        if max(ends, default=0) > tif.filehandle.size:
            raise ValueError(
                f"the TIFF file is truncated: page {number} ends at byte {max(ends)}, the file at {tif.filehandle.size}"
            )


def _zyx(data: np.ndarray, axes: str) -> np.ndarray:
    """From tifffile's axis letters to (y, x) or (z, y, x); the stack axis may be Z, I, Q, T …"""
    for channel in "SC":
        if channel in axes:
            index = axes.index(channel)
            data = _grey(np.moveaxis(data, index, -1))
            axes = axes.replace(channel, "")
    kept = [i for i, axis in enumerate(axes) if axis in "YX" or data.shape[i] > 1]
    data, axes = data.reshape([data.shape[i] for i in kept]), "".join(axes[i] for i in kept)
    stack = [i for i, axis in enumerate(axes) if axis not in "YX"]
    if len(stack) > 1 or len(axes) != len(stack) + 2:
        raise ValueError(
            f"the image has the axes {axes} of lengths {data.shape}; give one 2D image or one 3D stack, "
            "saved without further time, channel or position axes"
        )
    return data.transpose([*stack, axes.index("Y"), axes.index("X")])


def _grey(data: np.ndarray) -> np.ndarray:
    """Drop a last channel axis if all channels are the same; a constant alpha channel is ignored."""
    channels = data.shape[-1]
    if channels in (2, 4) and (data[..., -1] == data[..., -1].flat[0]).all():
        data = data[..., :-1]
    if all(np.array_equal(data[..., 0], data[..., i]) for i in range(1, data.shape[-1])):
        return data[..., 0]
    raise ValueError(
        f"the image has {channels} different channels (colour); convert it to one grey channel first, "
        "or, if the channels are slices, save them as slices (Fiji: Image > Hyperstacks > Re-order)"
    )


def _stack(named_slices: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Stack 2D slices (y, x) of one shape and dtype to (z, y, x)."""
    first_name, first = named_slices[0]
    for name, image in named_slices:
        if image.ndim != 2:
            raise ValueError(f"{name} is a stack of shape {image.shape}; a stack needs 2D slices")
        if image.shape != first.shape or image.dtype != first.dtype:
            raise ValueError(
                f"{name} has (y, x) = {image.shape} {image.dtype}, {first_name} has {first.shape} "
                f"{first.dtype}; all slices must have one shape and dtype"
            )
    return np.stack([image for _, image in named_slices])


def _unit_um(unit: object) -> float | None:
    """[µm] the length of a unit, or None for one that is no length ('pixel')."""
    text = str(unit).strip().replace("\\u00B5", "µ").replace("\\u00b5", "µ").replace("μ", "µ")
    return _UM_PER_UNIT.get(text) or _UM_PER_UNIT.get(text.lower())


def _imagej_voxel_size(tif: tifffile.TiffFile) -> tuple[float, ...] | None:
    """[µm] (x, y, z) from ImageJ's metadata and resolution tags, or None."""
    metadata = tif.imagej_metadata
    if not tif.is_imagej or not metadata:
        return None
    unit = metadata.get("unit")
    x_um, y_um, z_um = (_unit_um(metadata.get(key, unit)) for key in ("unit", "yunit", "zunit"))
    tags = tif.pages[0].tags
    pixels = [tags[name].value if name in tags else (0, 1) for name in ("XResolution", "YResolution")]
    if None in (x_um, y_um, z_um) or any(not numerator or not denominator for numerator, denominator in pixels):
        return None
    x, y = (denominator / numerator for numerator, denominator in pixels)
    z = abs(float(metadata.get("spacing") or 1.0))  # ImageJ leaves a spacing of 1 out
    return x * x_um, y * y_um, z * z_um


def _ome_voxel_size(xml: str) -> tuple[float, ...] | None:
    """[µm] (x, y, z) or (x, y) from OME's PhysicalSize attributes, or None."""
    pixels = next((e for e in ElementTree.fromstring(xml).iter() if e.tag.endswith("}Pixels")), None)
    if pixels is None:
        return None
    sizes = []
    for axis in "XYZ":
        size = float(pixels.get(f"PhysicalSize{axis}", 0))
        unit = _unit_um(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        if not size > 0 or not unit:
            break
        sizes.append(size * unit)
    return tuple(sizes) if len(sizes) >= 2 else None


def _read_png(path: Path) -> np.ndarray:
    """A grey PNG as (y, x)."""
    with Image.open(path) as image:
        data = np.asarray(image)
    return _grey(data) if data.ndim == 3 else data


def _read_folder(folder: Path) -> tuple[np.ndarray, tuple[float, ...] | None]:
    """Slices in the order of the numbers in their names, as (x, y, z); a lone slice as (x, y)."""
    files = [p for p in folder.iterdir() if p.suffix.lower() in SLICE_SUFFIXES and not p.name.startswith(".")]
    if not files:
        raise ValueError("the folder holds no slices; put .tif, .tiff or .png files into it")
    files.sort(key=_natural_order)
    kinds = {"png" if p.suffix.lower() == ".png" else "tif" for p in files}
    if len(kinds) > 1:
        odd = next(p for p in files if (p.suffix.lower() == ".png") != (files[0].suffix.lower() == ".png"))
        raise ValueError(f"{odd.name} and {files[0].name} differ in format; keep the slices of one stack in a folder")
    slices = []
    for file in files:
        try:
            slices.append((file.name, _read_png(file) if kinds == {"png"} else _read_tiff(file)[0].T))
        except Exception as error:
            raise ValueError(f"{file.name}: {error}") from error
    stack = _stack(slices)
    return (stack[0] if len(files) == 1 else stack).T, None


def _natural_order(path: Path) -> list:
    """slice_2 before slice_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name.lower())]


def _read_nifti(path: Path, voxel_size_um) -> tuple[np.ndarray, np.ndarray | None]:
    """The array (x, y[, z]) and the affine [µm], None if neither the file nor the caller names a length."""
    image = nib.load(path, mmap=False)
    shape = list(image.shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape.pop()
    if len(shape) > 3:
        raise ValueError(f"the volume has {len(shape)} dimensions, shape {tuple(shape)}; give one 2D or 3D volume")
    array = _plain_array(np.asarray(image.dataobj).reshape(shape, order="F"))
    affine = np.array(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise ValueError(f"the affine {affine[:3].tolist()} cannot be inverted; voxel sizes must be positive")
    if voxel_size_um is not None:
        return array, _rescaled(affine, _sizes(voxel_size_um, array.ndim))
    unit_um = _UM_PER_NIFTI_UNIT[image.header.get_xyzt_units()[0]]
    if unit_um is None:
        return array, None
    affine[:3] *= unit_um
    return array, affine


def _rescaled(affine: np.ndarray, sizes: tuple[float, ...]) -> np.ndarray:
    """The affine with new voxel sizes [µm]; directions stay, and so does the origin, counted in voxels."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    origin_voxels = np.linalg.solve(affine[:3, :3], affine[:3, 3])
    result = np.eye(4)
    result[:3, :3] = directions @ affine_from_voxel_size(sizes)[:3, :3]
    result[:3, 3] = result[:3, :3] @ origin_voxels
    return result


# ------------------------------------------------------------------------------------------ checking


def one_line(error: BaseException) -> str:
    """An error's message without line breaks, or its name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def root_cause(error: BaseException) -> BaseException:
    """The first of a chain of errors: what MONAI wrapped in its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def read_labels(
    path: str | os.PathLike, voxel_size_um: float | Sequence[float] | None = None, names: Sequence[str] | None = None
) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read a label volume in any format of ``read_volume``.

    path, voxel_size_um: as in ``read_volume``; here the voxel size is needed.
    names: of the classes, 0 first, or None.

    Returns uint8 class numbers (x, y[, z]) and the voxel size [µm] of each axis. Raises ValueError for values that are
    no class numbers 0 to 255, more than 32 of them, a class without a name, an unknown voxel size.
    """
    volume = read_volume(path, voxel_size_um)
    if volume.affine is None:
        raise ValueError(f"{path}: the file does not say its voxel size; give it with --voxel-size-um, in µm")
    array = volume.array
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):  # also catches NaN
        raise ValueError(f"{path}: holds {low} to {high}; labels are class numbers 0 to 255")
    labels = array.astype(np.uint8)
    if array.dtype.kind == "f" and not np.array_equal(labels, array):
        raise ValueError(f"{path}: holds fractions of numbers; labels are whole class numbers")
    present = np.unique(labels)
    if len(present) > 32:
        raise ValueError(f"{path}: holds {len(present)} different values; is it a grey scan? Segment it first")
    if names and present[-1] >= len(names):
        raise ValueError(f"{path}: holds class {present[-1]}; --names gives only {len(names)}")
    return labels, volume.voxel_size_um


def check_image(array: np.ndarray, name: str) -> None:
    """Check that an array can be segmented or measured.

    array: (x, y) or (x, y, z). name: what to call it in the message, usually its path.
    Raises ValueError if it is not 2D or 3D, an axis is shorter than 8, a value is NaN or infinite, or all
    are equal.
    """
    if array.ndim not in (2, 3):
        raise ValueError(f"{name}: has {array.ndim} dimensions, shape {array.shape}; an image has 2 or 3")
    if min(array.shape) < MIN_AXIS_LENGTH:
        raise ValueError(f"{name}: shape {array.shape} has an axis shorter than {MIN_AXIS_LENGTH} voxels")
    if array.dtype.kind == "f":
        lowest, highest = array.min(), array.max()  # NaN and inf show in these, without a copy of the volume
        if not (np.isfinite(lowest) and np.isfinite(highest)):
            bad = ~np.isfinite(array)
            first = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape))
            raise ValueError(
                f"{name}: {int(bad.sum())} of {array.size} values are NaN or infinite, the first at {first}; "
                "replace or crop them first"
            )
    if array.min() == array.max():
        raise ValueError(f"{name}: every voxel is {array.flat[0]}; an image needs at least two grey values")


# ------------------------------------------------------------------------------------------ writing


def write_tiff(path: str | os.PathLike, array: np.ndarray, voxel_size_um: float | Sequence[float] | None) -> None:
    """Write a TIFF that Fiji opens with its scale; atomic, and the same input gives the same bytes.

    array: (x, y) or (x, y, z). uint8, uint16, float32 (and bool as uint8) become an ImageJ TIFF; int8,
        int16, int32, uint32, float64, or more than 4 GiB become an OME-TIFF (BigTIFF where needed), which
        Fiji opens through Bio-Formats.
    voxel_size_um: [µm] one number, or one per axis; None writes no scale.
    Raises ValueError for another dtype or shape; OSError if the disk is full.
    """
    array = _writable(path, array, (*IMAGEJ_DTYPES, *OME_DTYPES), "TIFF")
    data = np.ascontiguousarray(array.T)
    sizes = None if voxel_size_um is None else _sizes(voxel_size_um, data.ndim)
    large = data.nbytes > LARGEST_CLASSIC_TIFF
    imagej = data.dtype.name in IMAGEJ_DTYPES and not large
    metadata: dict = {"axes": "ZYX"[-data.ndim :]}
    options: dict = {}
    if imagej:
        low, high = data.min(), data.max()
        if np.isfinite(low) and np.isfinite(high) and low < high:
            metadata |= {
                "min": float(low),
                "max": float(high),
            }  # the display range: labels 0–3 are not all black
        if sizes is not None:
            options["resolution"] = (1 / sizes[0], 1 / sizes[1])
            metadata |= {"unit": "micron"} | ({"spacing": sizes[2]} if data.ndim == 3 else {})
    else:
        digest = hashlib.sha256(data).digest()
        metadata["UUID"] = str(uuid.UUID(bytes=digest[:16]))  # tifffile's own is random
        for axis, size in zip("XYZ", sizes or (), strict=False):
            metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary,
            data,
            imagej=imagej,
            ome=not imagej,
            bigtiff=large,
            photometric="minisblack",
            metadata=metadata,
            **options,
        )


def write_nifti(path: str | os.PathLike, array: np.ndarray, affine: np.ndarray | None) -> None:
    """Write NIfTI-1 (.nii or .nii.gz) in µm; atomic, and the same input gives the same bytes.

    array: (x, y) or (x, y, z); integers up to 32 bits, float32, float64 (bool becomes uint8).
    affine: [µm] 4×4, kept as sform and qform, both with code 1 (scanner). None, for an unknown voxel size,
        writes a file without a unit, which ``read_volume`` reads as unknown again.
    Raises ValueError for another suffix, dtype or shape; OSError if the disk is full.
    """
    path = Path(path)
    if _suffix(path) not in NIFTI_SUFFIXES:
        raise ValueError(f"{path}: a NIfTI file is named .nii or .nii.gz")
    array = _writable(path, array, NIFTI_DTYPES, "NIfTI")
    if max(array.shape) > 32767:
        raise ValueError(f"{path}: shape {array.shape} has an axis longer than NIfTI's 32767; write TIFF")
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64))
    if affine is None:
        image.set_sform(None, code=0)
        image.set_qform(None, code=0)
    else:
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
    image.header.set_xyzt_units("unknown" if affine is None else "micron")
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        if _suffix(path) == ".nii":
            image.to_stream(file)
        else:
            with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as packed:
                image.to_stream(packed)


def _writable(path, array: np.ndarray, dtypes: Sequence[str], format_name: str) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f"{path}: cannot write shape {array.shape}; give (x, y) or (x, y, z) with at least one voxel")
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.name not in dtypes:
        raise ValueError(f"{path}: {format_name} cannot hold {array.dtype}; convert to one of {', '.join(dtypes)}")
    return array


def without_nan(value: object) -> object:
    """The same with None for every NaN in dicts, lists and tuples, as JSON has no NaN; tuples become lists."""
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def write_json(path: str | os.PathLike, obj: object) -> None:
    """Write JSON atomically: indent 2, keys in insertion order; numpy scalars, arrays and paths are
    converted.

    Raises ValueError for NaN or infinity, TypeError for what JSON cannot hold.
    """
    try:
        text = json.dumps(obj, indent=2, allow_nan=False, ensure_ascii=False, default=_json_default)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _json_default(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} {value!r} cannot be written as JSON")


@contextlib.contextmanager
def staged_folder(out: str | os.PathLike, last: str) -> Iterator[Path]:
    """Give a temporary folder inside ``out``; when the block ends well its files move to ``out``, ``last`` after all
    others, so that it marks a whole result.

    On any failure, Ctrl-C included, the temporary folder goes, and so do folders that were made for it.
    """
    out = Path(out)
    made = [path for path in (out, *out.parents) if not path.exists()]
    staging = out / f".tmp-{uuid.uuid4().hex[:8]}"
    try:
        staging.mkdir(parents=True)
        yield staging
        for path in sorted(staging.iterdir(), key=lambda path: (path.name == last, path.name)):
            os.replace(path, out / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for path in made:  # what this run made and left empty
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path in the folder of ``path`` with the same suffixes; on success it takes the name
    ``path``.

    The folder is made. On any failure, Ctrl-C included, the temporary file goes and what was at ``path``
    stays.
    Raises OSError, one line with the bytes left, when the disk or a quota is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        # numpy reports a short write without an errno
        if error.errno in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason = error.strerror or str(error)
            free = shutil.disk_usage(path.parent).free
            raise OSError(
                error.errno or errno.ENOSPC, f"cannot write {path}: {reason} ({free} bytes free on that disk)"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
