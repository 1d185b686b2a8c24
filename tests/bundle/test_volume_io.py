"""Axes, units and formats. Files are written by other libraries, so that errors cannot cancel out."""

import gzip
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from bundle import volume_io
from bundle.volume_io import (
    affine_from_voxel_size,
    atomic_path,
    check_image,
    read_volume,
    sha256,
    write_json,
    write_nifti,
    write_tiff,
)

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (9, 11, 13)  # x, y, z all differ: a swapped axis shows
SIZES = (0.05, 0.07, 0.11)


def volume_array(shape=SHAPE, dtype=np.uint16):
    """Random values and a marker at [1, 2, 3]."""
    array = np.random.default_rng(0).integers(1, 100, shape).astype(dtype)
    array[(1, 2, 3)[: len(shape)]] = 120
    return array


def assert_volume(volume, array, sizes):
    np.testing.assert_array_equal(volume.array, array)
    assert volume.array.dtype == array.dtype
    assert volume.array[(1, 2, 3)[: array.ndim]] == 120
    if sizes is None:
        assert volume.voxel_size_um is None
    else:
        assert volume.voxel_size_um == pytest.approx(sizes[: array.ndim], rel=1e-6)


def assert_one_line_error(path, *words):
    with pytest.raises(ValueError) as caught:
        read_volume(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    for word in words:
        assert word in message


# -------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("shape", [SHAPE, SHAPE[:2]])
@pytest.mark.parametrize("dtype", [*volume_io.IMAGEJ_DTYPES, *volume_io.OME_DTYPES])
def test_tiff_round_trip(tmp_path, shape, dtype):
    array = volume_array(shape, dtype)
    write_tiff(tmp_path / "a.tif", array, SIZES[: len(shape)])
    assert_volume(read_volume(tmp_path / "a.tif"), array, SIZES)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), array.T)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("shape", [SHAPE, SHAPE[:2]])
@pytest.mark.parametrize("dtype", volume_io.NIFTI_DTYPES)
def test_nifti_round_trip(tmp_path, shape, dtype, suffix):
    array = volume_array(shape, dtype)
    path = tmp_path / f"a{suffix}"
    write_nifti(path, array, affine_from_voxel_size(SIZES[: len(shape)]))
    assert_volume(read_volume(path), array, SIZES)
    image = nib.load(path)
    assert image.header.get_xyzt_units()[0] == "micron"
    assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)
    np.testing.assert_array_equal(np.asarray(image.dataobj), array)


def test_nifti_keeps_an_oblique_affine(tmp_path):
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, -1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * np.array(SIZES)
    affine[:3, 3] = (5, -6, 7)
    write_nifti(tmp_path / "a.nii.gz", volume_array(), affine)
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii.gz").affine, affine, rtol=1e-6)
    doubled = read_volume(tmp_path / "a.nii.gz", [2 * s for s in SIZES]).affine
    np.testing.assert_allclose(doubled[:3], 2 * affine[:3], rtol=1e-6)


@pytest.mark.parametrize("size", [0.001, 0.0123457, 0.333333333, 1.0, np.pi, 77.7777, 999.9, 1000.0])
@pytest.mark.parametrize("dtype", ["uint8", "float64"])  # ImageJ and OME
def test_tiff_voxel_size_is_exact_to_1e_6(tmp_path, size, dtype):
    sizes = (size, size * 1.0001, size * 1.37)
    write_tiff(tmp_path / "a.tif", volume_array(dtype=dtype), sizes)
    assert read_volume(tmp_path / "a.tif").voxel_size_um == pytest.approx(sizes, rel=1e-6)


@pytest.mark.parametrize("suffix", [".tif", ".nii", ".nii.gz"])
def test_unknown_voxel_size_stays_unknown(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".tif":
        write_tiff(path, volume_array(), None)
    else:
        write_nifti(path, volume_array(), None)
    assert_volume(read_volume(path), volume_array(), None)
    assert read_volume(path, 0.5).voxel_size_um == pytest.approx((0.5, 0.5, 0.5))


def test_bool_is_written_as_uint8(tmp_path):
    mask = volume_array() > 50
    write_tiff(tmp_path / "a.tif", mask, 1.0)
    write_nifti(tmp_path / "a.nii", mask, np.eye(4))
    for name in ("a.tif", "a.nii"):
        assert_array = read_volume(tmp_path / name).array
        assert assert_array.dtype == np.uint8
        np.testing.assert_array_equal(assert_array, mask)


def test_tiff_in_fiji_has_slices_a_unit_and_a_display_range(tmp_path):
    write_tiff(tmp_path / "a.tif", volume_array(dtype=np.uint8), SIZES)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        metadata = tif.imagej_metadata
    assert metadata["slices"] == SHAPE[2] and "frames" not in metadata and "channels" not in metadata
    assert (metadata["unit"], metadata["spacing"]) == ("micron", SIZES[2])
    assert (metadata["min"], metadata["max"]) == (1.0, 120.0)


def test_large_tiff_becomes_bigtiff(tmp_path, monkeypatch):
    monkeypatch.setattr(volume_io, "LARGEST_CLASSIC_TIFF", 100)
    write_tiff(tmp_path / "a.tif", volume_array(), SIZES)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert tif.is_bigtiff and tif.is_ome
    assert_volume(read_volume(tmp_path / "a.tif"), volume_array(), SIZES)


# -------------------------------------------------------------------------------- TIFF from elsewhere


@pytest.mark.parametrize("axes", ["ZYX", "TYX"])
@pytest.mark.parametrize(
    ("unit", "um"),
    [
        ("micron", 1),
        ("um", 1),
        ("µm", 1),
        ("\\u00B5m", 1),
        ("nm", 1e-3),
        ("mm", 1e3),
        ("cm", 1e4),
        ("m", 1e6),
    ],
)
def test_fiji_tiff(tmp_path, axes, unit, um):
    array = volume_array()
    metadata = {"axes": axes, "spacing": 0.5, "unit": unit.replace("µ", "\\u00B5")}
    tifffile.imwrite(tmp_path / "a.tif", array.T, imagej=True, resolution=(4, 5), metadata=metadata)
    assert_volume(read_volume(tmp_path / "a.tif"), array, (0.25 * um, 0.2 * um, 0.5 * um))


def test_fiji_leaves_a_spacing_of_one_out(tmp_path):
    metadata = {"axes": "ZYX", "unit": "um"}
    tifffile.imwrite(tmp_path / "a.tif", volume_array().T, imagej=True, resolution=(4, 5), metadata=metadata)
    assert read_volume(tmp_path / "a.tif").voxel_size_um == pytest.approx((0.25, 0.2, 1.0))


@pytest.mark.parametrize("unit", ["pixel", "", None])
def test_fiji_without_a_length_unit_is_unknown(tmp_path, unit):
    metadata = {"axes": "ZYX"} if unit is None else {"axes": "ZYX", "unit": unit}
    tifffile.imwrite(tmp_path / "a.tif", volume_array().T, imagej=True, resolution=(4, 5), metadata=metadata)
    assert_volume(read_volume(tmp_path / "a.tif"), volume_array(), None)


def test_fiji_2d(tmp_path):
    array = volume_array(SHAPE[:2])
    tifffile.imwrite(tmp_path / "a.tif", array.T, imagej=True, resolution=(4, 5), metadata={"unit": "um"})
    assert_volume(read_volume(tmp_path / "a.tif"), array, (0.25, 0.2))


@pytest.mark.parametrize(("unit", "um"), [("µm", 1), ("nm", 1e-3), ("mm", 1e3)])
def test_ome_tiff(tmp_path, unit, um):
    metadata = {"axes": "ZYX"}
    for axis, size in zip("XYZ", SIZES, strict=True):
        metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": unit}
    tifffile.imwrite(tmp_path / "a.ome.tif", volume_array().T, ome=True, metadata=metadata)
    assert_volume(read_volume(tmp_path / "a.ome.tif"), volume_array(), [s * um for s in SIZES])


def test_ome_without_a_size_is_unknown(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", volume_array().T, ome=True, metadata={"axes": "ZYX"})
    assert_volume(read_volume(tmp_path / "a.ome.tif"), volume_array(), None)
    metadata = {"axes": "ZYX", "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.1}
    tifffile.imwrite(tmp_path / "b.ome.tif", volume_array().T, ome=True, metadata=metadata)
    assert_volume(read_volume(tmp_path / "b.ome.tif"), volume_array(), None)


@pytest.mark.parametrize("metadata", [None, {}])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd"])
def test_plain_multipage_tiff_ignores_dpi(tmp_path, metadata, compression):
    tifffile.imwrite(
        tmp_path / "a.tif",
        volume_array().T,
        photometric="minisblack",
        metadata=metadata,
        compression=compression,
        resolution=(96, 96),
        resolutionunit="inch",
    )
    assert_volume(read_volume(tmp_path / "a.tif"), volume_array(), None)
    assert read_volume(tmp_path / "a.tif", SIZES).voxel_size_um == pytest.approx(SIZES)


def test_separate_series_are_stacked(tmp_path):
    array = volume_array()
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for page in array.T:
            writer.write(page, photometric="minisblack")
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert len(tif.series) == SHAPE[2]
    assert_volume(read_volume(tmp_path / "a.tif"), array, None)


def test_different_series_are_an_error(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(volume_array().T[0], photometric="minisblack")
        writer.write(volume_array().T[1, :5], photometric="minisblack")
    assert_one_line_error(tmp_path / "a.tif", "(11, 9)", "(5, 9)")


@pytest.mark.parametrize("dtype", [">u2", ">f4"])
def test_big_endian_becomes_native(tmp_path, dtype):
    array = volume_array(dtype=np.dtype(dtype).newbyteorder("="))
    tifffile.imwrite(tmp_path / "a.tif", array.T.astype(dtype), byteorder=">", photometric="minisblack")
    np.save(tmp_path / "a.npy", array.T.astype(dtype))
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(dtype)
    nib.save(nib.Nifti1Image(array.astype(dtype), np.eye(4), header), tmp_path / "a.nii")
    for name in ("a.tif", "a.npy", "a.nii"):
        volume = read_volume(tmp_path / name, 1)
        assert volume.array.dtype.isnative
        assert_volume(volume, array, (1, 1, 1))


@pytest.mark.parametrize("alpha", [False, True])
def test_colour(tmp_path, alpha):
    grey = volume_array(SHAPE[:2], np.uint8).T
    channels = [grey, grey, grey] + [np.full_like(grey, 255)] * alpha
    Image.fromarray(np.stack(channels, -1)).save(tmp_path / "grey.tif")
    Image.fromarray(np.stack(channels, -1)).save(tmp_path / "grey.png")
    for name in ("grey.tif", "grey.png"):
        assert_volume(read_volume(tmp_path / name), grey.T, None)
    channels[1] = grey[::-1]
    Image.fromarray(np.stack(channels, -1)).save(tmp_path / "colour.tif")
    Image.fromarray(np.stack(channels, -1)).save(tmp_path / "colour.png")
    for name in ("colour.tif", "colour.png"):
        assert_one_line_error(tmp_path / name, "colour", "grey channel")


def test_channels_of_a_fiji_stack_are_an_error(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", volume_array().T, imagej=True, metadata={"axes": "CYX"})
    assert_one_line_error(tmp_path / "a.tif", "13 different channels", "Re-order")


def test_four_dimensional_tiff_is_an_error(tmp_path):
    stack = np.stack([volume_array().T] * 2)
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, metadata={"axes": "TZYX"})
    assert_one_line_error(tmp_path / "a.tif", "TZYX", "(2, 13, 11, 9)")
    tifffile.imwrite(tmp_path / "b.tif", stack[:1], imagej=True, metadata={"axes": "TZYX"})
    assert_volume(read_volume(tmp_path / "b.tif"), volume_array(), None)


def test_one_bit_tiff_becomes_uint8(tmp_path):
    mask = volume_array(SHAPE[:2]).T > 50
    Image.fromarray(mask).save(tmp_path / "a.tif")
    volume = read_volume(tmp_path / "a.tif")
    assert volume.array.dtype == np.uint8
    np.testing.assert_array_equal(volume.array.T, mask)


# -------------------------------------------------------------------------------- folders, .npy, NIfTI


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_folder_is_sorted_by_number(tmp_path, suffix):
    array = volume_array()
    for z in range(SHAPE[2]):
        Image.fromarray(array[:, :, z].T).save(tmp_path / f"slice_{z + 1}{suffix}")
    (tmp_path / "notes.txt").write_text("not a slice")
    (tmp_path / "._slice_1.tif").write_bytes(b"from a Mac")
    assert_volume(read_volume(tmp_path), array, None)
    assert read_volume(tmp_path, SIZES).voxel_size_um == pytest.approx(SIZES)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (np.zeros((5, 9), np.uint16), ["slice_2.tif", "(5, 9)"]),
        (np.zeros((11, 9), np.uint8), ["slice_2.tif", "uint8"]),
        (np.zeros((2, 11, 9), np.uint16), ["slice_2.tif", "stack"]),
        (None, ["slice_2.tif", "not a TIFF"]),
    ],
)
def test_folder_names_the_slice_that_does_not_fit(tmp_path, odd, words):
    page = volume_array().T[0]
    for z in (1, 3):
        tifffile.imwrite(tmp_path / f"slice_{z}.tif", page)
    if odd is None:
        (tmp_path / "slice_2.tif").write_text("junk")
    else:
        tifffile.imwrite(tmp_path / "slice_2.tif", odd, photometric="minisblack")
    assert_one_line_error(tmp_path, *words)


def test_folder_without_or_with_mixed_slices(tmp_path):
    assert_one_line_error(tmp_path, "no slices")
    page = volume_array().T[0]
    tifffile.imwrite(tmp_path / "slice_1.tif", page)
    np.testing.assert_array_equal(read_volume(tmp_path).array, page.T)  # a lone slice is an image
    Image.fromarray(page).save(tmp_path / "slice_2.png")
    assert_one_line_error(tmp_path, "slice_2.png", "format")


@pytest.mark.parametrize("shape", [SHAPE, SHAPE[:2]])
def test_npy_holds_what_tifffile_gives(tmp_path, shape):
    array = volume_array(shape)
    np.save(tmp_path / "a.npy", array.T)
    assert_volume(read_volume(tmp_path / "a.npy"), array, None)
    assert_volume(read_volume(tmp_path / "a.npy", SIZES[: len(shape)]), array, SIZES)


@pytest.mark.parametrize(("unit", "um"), [("micron", 1), ("mm", 1e3), ("meter", 1e6), ("unknown", None)])
def test_nifti_units(tmp_path, unit, um):
    affine = affine_from_voxel_size((0.5, 0.25, 2))
    affine[:3, 3] = (1, 2, 3)
    image = nib.Nifti1Image(volume_array(), affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert_volume(volume, volume_array(), None if um is None else (0.5 * um, 0.25 * um, 2 * um))
    if um is not None:
        np.testing.assert_allclose(volume.affine[:3], affine[:3] * um)
    assert read_volume(tmp_path / "a.nii", SIZES).voxel_size_um == pytest.approx(SIZES)


def test_nifti_dimensions(tmp_path):
    array = volume_array()
    for name, shape in {"one.nii": (*SHAPE, 1), "many.nii": (*SHAPE, 2), "flat.nii": (9, 11, 1, 1)}.items():
        data = np.zeros(shape, np.uint16)
        data[: array.shape[0]] = array[..., :1, None] if name == "flat.nii" else array[..., None]
        image = nib.Nifti1Image(data, np.eye(4))
        image.header.set_xyzt_units("micron")
        nib.save(image, tmp_path / name)
    assert_volume(read_volume(tmp_path / "one.nii"), array, (1, 1, 1))
    assert read_volume(tmp_path / "flat.nii").array.shape == (9, 11)
    assert_one_line_error(tmp_path / "many.nii", "(9, 11, 13, 2)")


def test_nifti_with_a_singular_affine_is_an_error(tmp_path):
    image = nib.Nifti1Image(volume_array(), np.eye(4))
    image.header.set_xyzt_units("micron")
    image.header["srow_z"] = 0
    image.header["sform_code"] = 1
    image.to_filename(tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[312:328] = bytes(16)  # srow_z
    (tmp_path / "a.nii").write_bytes(raw)
    assert_one_line_error(tmp_path / "a.nii", "affine")


# -------------------------------------------------------------------------------- bad input


def test_missing_file():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tif: no such file or folder"):
        read_volume("nowhere.tif")


def damaged_files():
    array = volume_array((30, 40, 17), np.uint8)
    plain = {"photometric": "minisblack", "metadata": None}
    return {
        "plain.tif": lambda p: tifffile.imwrite(p, array.T, **plain),
        "shaped.tif": lambda p: tifffile.imwrite(p, array.T, photometric="minisblack"),
        "zlib.tif": lambda p: tifffile.imwrite(p, array.T, compression="zlib", **plain),
        "imagej.tif": lambda p: write_tiff(p, array, 1.0),
        "ome.tif": lambda p: write_tiff(p, array.astype(np.float64), 1.0),
        "a.nii": lambda p: write_nifti(p, array, np.eye(4)),
        "a.nii.gz": lambda p: write_nifti(p, array, np.eye(4)),
        "a.npy": lambda p: np.save(p, array.T),
        "a.png": lambda p: Image.fromarray(array[..., 0].T).save(p),
    }


@pytest.mark.parametrize("name", damaged_files())
def test_truncated_file_is_one_line(tmp_path, name):
    path = tmp_path / name
    damaged_files()[name](path)
    whole = path.read_bytes()
    expected = read_volume(path).array
    for share in (0.0, 0.02, 0.1, 0.3, 0.6, 0.9, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        if share == 0.99:  # the last tags may be expendable, never a voxel
            try:
                np.testing.assert_array_equal(read_volume(path).array, expected)
            except ValueError:
                assert_one_line_error(path)
        else:
            assert_one_line_error(path)


def test_corrupt_gzip_is_one_line(tmp_path):
    path = tmp_path / "a.nii.gz"
    write_nifti(path, volume_array(), np.eye(4))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    assert_one_line_error(path)


def test_unfit_content(tmp_path):
    for name, array in {
        "complex": np.zeros((9, 9), complex),
        "text": np.array([["a", "b"]]),
        "line": np.arange(5),
        "empty": np.zeros((0, 9, 9)),
        "four": np.zeros((2, 9, 9, 9)),
    }.items():
        np.save(tmp_path / f"{name}.npy", array)
        assert_one_line_error(tmp_path / f"{name}.npy")
    np.save(tmp_path / "object.npy", np.array([[{}]]), allow_pickle=True)
    assert_one_line_error(tmp_path / "object.npy", "allow_pickle")
    (tmp_path / "a.xyz").write_text("?")
    assert_one_line_error(tmp_path / "a.xyz", "'.xyz'", "NIfTI")


@pytest.mark.parametrize("bad", [0, -1, np.nan, np.inf, (1, 2), (1, 2, 3, 4), ((1, 2, 3),)])
def test_bad_voxel_size(tmp_path, bad):
    np.save(tmp_path / "a.npy", volume_array().T)
    with pytest.raises(ValueError, match="voxel_size_um"):
        read_volume(tmp_path / "a.npy", bad)
    with pytest.raises(ValueError, match="voxel_size_um"):
        write_tiff(tmp_path / "a.tif", volume_array(), bad)
    assert not (tmp_path / "a.tif").exists()


def test_affine_from_voxel_size():
    np.testing.assert_array_equal(affine_from_voxel_size((1, 2, 3)), np.diag([1.0, 2, 3, 1]))
    np.testing.assert_array_equal(affine_from_voxel_size((2, 3)), np.diag([2.0, 3, 2, 1]))
    with pytest.raises(ValueError, match="2 or 3 entries"):
        affine_from_voxel_size((1,))


def test_check_image():
    good = volume_array(dtype=np.float32)
    check_image(good, "good")
    check_image(good[..., 0], "good")
    with pytest.raises(ValueError, match=r"scan: .* shorter than 8"):
        check_image(good[:7], "scan")
    with pytest.raises(ValueError, match="4 dimensions"):
        check_image(good[None], "scan")
    for value in (np.nan, np.inf, -np.inf):
        bad = good.copy()
        bad[2, 3, 4] = bad[5, 6, 7] = value
        with pytest.raises(ValueError, match=r"2 of 1287 values .* the first at \(2, 3, 4\)"):
            check_image(bad, "scan")
    with pytest.raises(ValueError, match="every voxel is 3"):
        check_image(np.full(SHAPE, 3), "scan")


# -------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("write", [lambda p, a: write_tiff(p, a, 1.0), lambda p, a: write_nifti(p, a, np.eye(4))])
@pytest.mark.parametrize(
    "array",
    [np.zeros((9, 9), np.complex64), np.zeros((9, 9), np.int64), np.zeros((3, 9, 9, 9)), np.zeros((0, 3))],
)
def test_unwritable_arrays(tmp_path, write, array):
    with pytest.raises(ValueError, match=r"a\.nii"):
        write(tmp_path / "a.nii", array)
    assert not list(tmp_path.iterdir())


def test_nifti_limits(tmp_path):
    with pytest.raises(ValueError, match="32767"):
        write_nifti(tmp_path / "a.nii", np.zeros((40000, 8), np.uint8), np.eye(4))
    with pytest.raises(ValueError, match=r"named \.nii"):
        write_nifti(tmp_path / "a.tif", volume_array(), np.eye(4))


@pytest.mark.parametrize("name", ["a.tif", "f64.tif", "a.nii", "a.nii.gz", "a.json"])
def test_same_input_gives_same_bytes(tmp_path, name, monkeypatch):
    hashes = set()
    for run in range(2):
        monkeypatch.setattr("time.time", lambda run=run: 1e9 + 1e6 * run)
        path = tmp_path / str(run) / name
        array = volume_array(dtype=np.float64 if name == "f64.tif" else np.uint8)
        if path.suffix == ".tif":
            write_tiff(path, array, SIZES)
        elif path.suffix == ".json":
            write_json(path, {"b": np.float32(0.5), "a": [np.int64(1)]})
        else:
            write_nifti(path, array, np.eye(4))
        hashes.add(sha256(path))
    assert len(hashes) == 1


def test_gzip_holds_no_time_and_no_name(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", volume_array(), np.eye(4))
    head = (tmp_path / "a.nii.gz").read_bytes()[:10]
    assert head[3] == 0 and head[4:8] == bytes(4)
    assert gzip.decompress((tmp_path / "a.nii.gz").read_bytes())[344:348] == b"n+1\0"


def test_write_json(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"b": np.float32(0.5), "a": np.arange(2), "p": Path("x"), "µ": np.bool_(True)})
    assert path.read_text(encoding="utf-8").splitlines()[1] == '  "b": 0.5,'
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": 0.5, "a": [0, 1], "p": "x", "µ": True}
    for bad, error in [({"a": np.nan}, ValueError), ({"a": object()}, TypeError)]:
        with pytest.raises(error):
            write_json(path, bad)
    assert json.loads(path.read_text(encoding="utf-8"))["a"] == [0, 1]
    assert len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_atomic_path_leaves_nothing_on_failure(tmp_path, error):
    target = tmp_path / "deep" / "a.nii.gz"
    with pytest.raises(error), atomic_path(target) as temporary:
        assert temporary.parent == target.parent and temporary.name.startswith(".tmp-")
        assert temporary.suffixes[-2:] == [".nii", ".gz"]
        temporary.write_bytes(b"half")
        raise error
    assert not list(target.parent.iterdir())
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"whole")
    assert [p.name for p in target.parent.iterdir()] == ["a.nii.gz"]


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE is a Unix limit")
@pytest.mark.parametrize("name", ["a.tif", "f64.tif", "a.nii", "a.nii.gz", "a.json"])
def test_a_full_disk_leaves_the_old_file(tmp_path, name):
    """A file size limit of 64 KiB stands for the full disk."""
    (tmp_path / name).write_text("old")
    program = f"""
        import resource, signal, sys
        import numpy as np
        from bundle.volume_io import write_tiff, write_nifti, write_json
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        name, path = {name!r}, {str(tmp_path / name)!r}
        dtype = "float64" if name == "f64.tif" else "float32"
        array = np.random.default_rng(0).random((80, 80, 80)).astype(dtype)
        try:
            if name.endswith(".tif"):
                write_tiff(path, array, 1.0)
            elif name.endswith(".json"):
                write_json(path, array)
            else:
                write_nifti(path, array, np.eye(4))
        except OSError as error:
            print(error)
        """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert name in result.stdout and "bytes free" in result.stdout and result.stdout.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "old"


def test_other_os_errors_pass(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a") as temporary:
        temporary.read_bytes()
    if os.getuid():
        tmp_path.chmod(0o500)
        with pytest.raises(PermissionError):
            write_json(tmp_path / "a.json", {})


def test_import_is_light():
    program = "import sys, bundle.volume_io; print({'torch', 'monai', 'data_gen'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_compressed_tiff_cut_anywhere_is_never_a_shorter_stack(tmp_path):
    path = tmp_path / "a.tif"
    array = volume_array((30, 40, 17), np.uint8)
    tifffile.imwrite(path, array.T, photometric="minisblack", metadata=None, compression="zlib")
    whole = path.read_bytes()
    for length in range(0, len(whole), 151):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.tif"):
            read_volume(path)
