"""MONAI's LoadImaged and SaveImaged with the project's reader and writers agree with bundle.volume_io."""

import logging

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, LoadImage, LoadImaged, SaveImage, SaveImaged, Spacingd

from bundle.volume_io import affine_from_voxel_size, read_volume, write_nifti, write_tiff

SHAPE = (9, 11, 13)
SIZES = (0.0005, 0.0007, 0.0011)  # far below MONAI's tolerance of 1e-3, were it mm
READER = "bundle.monai_io.VolumeReader"
WRITERS = {".nii.gz": "bundle.monai_io.NiftiWriter", ".nii": "bundle.monai_io.NiftiWriter",
           ".tif": "bundle.monai_io.TiffWriter"}  # fmt: skip


def volume_array(shape=SHAPE):
    array = np.random.default_rng(0).integers(1, 100, shape).astype(np.uint8)
    array[(1, 2, 3)[: len(shape)]] = 120
    return array


def write(path, array, sizes):
    if path.name.endswith(".tif"):
        write_tiff(path, array, sizes)
    elif path.name.endswith(".npy"):
        np.save(path, array.T)
    else:
        write_nifti(path, array, None if sizes is None else affine_from_voxel_size(sizes))


@pytest.mark.parametrize("shape", [SHAPE, SHAPE[:2]])
@pytest.mark.parametrize("suffix", [".tif", ".nii.gz", ".nii"])
@pytest.mark.parametrize("out", WRITERS)
def test_load_and_save_agree_with_read_volume(tmp_path, shape, suffix, out):
    source = tmp_path / f"scan{suffix}"
    sizes = SIZES[: len(shape)]
    write(source, volume_array(shape), sizes)
    steps = Compose(
        [
            LoadImaged("image", reader=READER, ensure_channel_first=True, image_only=True),
            SaveImaged(
                "image",
                output_dir=tmp_path / "out",
                output_postfix="",
                separate_folder=False,
                output_ext=out,
                writer=WRITERS[out],
                output_dtype=np.uint8,
                print_log=False,
            ),
        ]
    )
    image = steps({"image": source})["image"]
    assert image.shape == (1, *shape) and image[(0, 1, 2, 3)[: len(shape) + 1]] == 120
    assert image.meta["voxel_size_known"]
    expected, saved = read_volume(source), read_volume(tmp_path / "out" / f"scan{out}")
    np.testing.assert_allclose(image.affine, expected.affine, rtol=1e-12)
    np.testing.assert_array_equal(image[0].numpy(), expected.array)
    np.testing.assert_array_equal(saved.array, expected.array)
    assert saved.array.dtype == np.uint8
    assert saved.voxel_size_um == pytest.approx(sizes, rel=1e-6)


def test_load_does_not_flip_and_save_keeps_directions(tmp_path):
    affine = np.array([[-0.05, 0, 0, 3], [0, 0, 0.11, -4], [0, 0.07, 0, 5], [0, 0, 0, 1]])
    write_nifti(tmp_path / "a.nii.gz", volume_array(), affine)
    image = LoadImage(reader=READER, ensure_channel_first=True)(tmp_path / "a.nii.gz")
    assert image[0, 1, 2, 3] == 120
    SaveImage(
        tmp_path,
        output_postfix="out",
        output_ext=".nii",
        writer=WRITERS[".nii"],
        separate_folder=False,
        print_log=False,
    )(image)
    saved = nib.load(tmp_path / "a_out.nii")
    np.testing.assert_allclose(saved.affine, affine, rtol=1e-6)
    assert saved.header.get_xyzt_units()[0] == "micron"


def test_nifti_in_mm_is_loaded_in_um(tmp_path):
    image = nib.Nifti1Image(volume_array(), affine_from_voxel_size((0.0005, 0.0005, 0.0005)))
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "a.nii")
    loaded = LoadImage(reader=READER)(tmp_path / "a.nii")
    np.testing.assert_allclose(loaded.pixdim, [0.5, 0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize("shape", [SHAPE, SHAPE[:2]])
def test_spacing_works_on_loaded_images(tmp_path, shape):
    write_tiff(tmp_path / "a.tif", volume_array(shape), 0.5)
    steps = Compose([LoadImaged("image", reader=READER, ensure_channel_first=True), Spacingd("image", pixdim=1.0)])
    image = steps({"image": tmp_path / "a.tif"})["image"]
    assert image.shape[1:] == tuple((n + 1) // 2 for n in shape)
    SaveImage(tmp_path, "out", ".nii", writer=WRITERS[".nii"], separate_folder=False, print_log=False)(image)
    assert read_volume(tmp_path / "a_out.nii").voxel_size_um == pytest.approx([1.0] * len(shape))


@pytest.mark.parametrize("out", WRITERS)
def test_unknown_voxel_size(tmp_path, out):
    np.save(tmp_path / "a.npy", volume_array().T)
    image = LoadImage(reader=READER, ensure_channel_first=True)(tmp_path / "a.npy")
    assert image.meta["voxel_size_known"] is False
    np.testing.assert_array_equal(image.affine, np.eye(4))
    save = SaveImage(
        tmp_path,
        "out",
        out,
        output_dtype=np.uint8,
        writer=WRITERS[out],
        separate_folder=False,
        print_log=False,
    )
    save(image)
    assert read_volume(tmp_path / f"a_out{out}").voxel_size_um is None
    image = LoadImage(reader=READER, ensure_channel_first=True, voxel_size_um=0.2)(tmp_path / "a.npy")
    assert image.meta["voxel_size_known"] is True
    np.testing.assert_allclose(image.pixdim, [0.2] * 3)


def test_stack_folder_and_channels(tmp_path):
    array = volume_array()
    for z in range(SHAPE[2]):
        tifffile.imwrite(tmp_path / f"s_{z}.tif", array[:, :, z].T)
    image = LoadImage(reader=READER, ensure_channel_first=True)(tmp_path)
    np.testing.assert_array_equal(image[0].numpy(), array)
    image = LoadImage(reader=READER, ensure_channel_first=True)([tmp_path / "s_3.tif", tmp_path / "s_4.tif"])
    np.testing.assert_array_equal(image.numpy(), np.moveaxis(array[..., 3:5], -1, 0))
    tifffile.imwrite(tmp_path / "s_5.tif", array[:5, :, 0].T)
    with pytest.raises(ValueError, match=r"s_5\.tif: shape"):
        LoadImage(reader=READER)([tmp_path / "s_4.tif", tmp_path / "s_5.tif"])


def test_reading_errors_are_one_line_and_no_other_reader_is_tried(tmp_path):
    """A 4D NIfTI would be loaded by MONAI's own reader, with the wrong unit."""
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9, 2), np.uint8), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(ValueError, match="4 dimensions") as caught:
        LoadImage(reader=READER)(tmp_path / "a.nii")
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such file"):
        LoadImage(reader=READER)(tmp_path / "b.nii")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "2 channels"),
        ({"resample": True}, "Invertd"),
        ({"scale": 255}, "scale 255"),
        ({"output_dtype": np.int64}, "int64"),
    ],
)
@pytest.mark.parametrize("out", WRITERS)
def test_writing_errors(tmp_path, change, words, out):
    save = SaveImage(tmp_path, output_ext=out, writer=WRITERS[out], print_log=False, separate_folder=False, **change)
    with pytest.raises(RuntimeError, match=words):
        save(torch.zeros((2 if not change else 1, *SHAPE)), {"filename_or_obj": "a.tif"})
    assert not list(tmp_path.iterdir())


def test_metadata_collate_and_worker(tmp_path):
    for i in range(2):
        write_tiff(tmp_path / f"{i}.tif", volume_array(), SIZES)
    data = [{"image": tmp_path / f"{i}.tif"} for i in range(2)]
    load = LoadImaged("image", reader=READER, ensure_channel_first=True)
    batch = next(iter(DataLoader(Dataset(data, load), batch_size=2, num_workers=0)))["image"]
    assert batch.shape == (2, 1, *SHAPE) and batch.affine.shape == (2, 4, 4)


def test_log_says_what_is_written(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        SaveImage(tmp_path, output_ext=".tif", writer=WRITERS[".tif"])(torch.zeros((1, *SHAPE)))
    assert "writing" in caplog.text
