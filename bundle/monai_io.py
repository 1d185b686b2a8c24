"""MONAI's readers and writers for every format of ``bundle.volume_io``; axes, units and formats are decided
there.

Used by name: ``LoadImaged(reader="bundle.monai_io.VolumeReader")``,
``SaveImaged(writer="bundle.monai_io.NiftiWriter", output_ext=".nii.gz")`` and
``SaveImaged(writer="bundle.monai_io.TiffWriter", output_ext=".tif")``.
"""

from collections.abc import Sequence

import numpy as np
from monai.config import DtypeLike, NdarrayOrTensor, PathLike
from monai.data import ImageReader, ImageWriter
from monai.data.utils import is_no_channel, to_affine_nd
from monai.utils import MetaKeys, SpaceKeys, convert_to_numpy, ensure_tuple

from bundle import volume_io


class VolumeReader(ImageReader):
    """Reads what ``read_volume`` reads, for LoadImage: array (x, y[, z]), affine in µm, no flip, no
    resampling.

    voxel_size_um: [µm] one number, or one per axis, for files that do not say it (or say it wrongly).

    The metadata say ``voxel_size_known``; where it is False the affine is the identity. Several files in one
    item become channels; they must share shape and affine.
    """

    def __init__(self, voxel_size_um: float | Sequence[float] | None = None) -> None:
        self.voxel_size_um = voxel_size_um

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """True: this reader is chosen by name, and ``read_volume`` says what it cannot read."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs) -> list[volume_io.Volume | Exception]:
        """Read one or several files; a failure is raised by ``get_data``.

        When ``read`` raises, LoadImage tries MONAI's own readers, which ignore units and take the first page
        of a stack; an error kept until ``get_data`` reaches the user as one line.
        """
        volumes: list[volume_io.Volume | Exception] = []
        for path in ensure_tuple(data):
            try:
                volumes.append(volume_io.read_volume(path, self.voxel_size_um))
            except (OSError, ValueError, MemoryError) as error:
                volumes.append(error)
        return volumes

    def get_data(self, img: list[volume_io.Volume | Exception]) -> tuple[np.ndarray, dict]:
        """The array, (x, y[, z]) or (files, x, y[, z]) in the dtype of the file, and MONAI's metadata.

        Raises FileNotFoundError or ValueError of ``read_volume``; ValueError if several files differ in
        geometry.
        """
        for volume in img:
            if isinstance(volume, Exception):
                raise volume
        first = img[0]
        volume_io.check_same_geometry(img)
        affine = np.eye(4) if first.affine is None else first.affine
        metadata = {
            MetaKeys.AFFINE: affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(first.array.shape),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan") if len(img) == 1 else 0,  # nan: no channel
            "voxel_size_known": first.affine is not None,
        }
        array = first.array if len(img) == 1 else np.stack([volume.array for volume in img])
        return array, metadata


class _VolumeWriter(ImageWriter):
    """What the two writers share: one channel (x, y[, z]), geometry from the metadata."""

    def __init__(self, output_dtype: DtypeLike = np.float32, scale: int | None = None, **kwargs) -> None:
        """output_dtype: numpy dtype of the file, None keeps the array's. scale: MONAI's, must be None."""
        if scale is not None:
            raise ValueError(f"scale {scale} is not supported: grey values and labels are written as they are")
        super().__init__(output_dtype=output_dtype, affine=None, **kwargs)

    def set_data_array(
        self,
        data_array: NdarrayOrTensor,
        channel_dim: int | None = 0,
        squeeze_end_dims: bool = True,
        **kwargs,
    ) -> None:
        """Take an image of one channel, (1, x, y[, z]) or without a channel axis (``channel_dim`` None)."""
        array = convert_to_numpy(data_array)
        if not is_no_channel(channel_dim):
            if array.shape[channel_dim] != 1:
                raise ValueError(
                    f"shape {array.shape} has {array.shape[channel_dim]} channels; a file holds one, "
                    "so take the argmax (AsDiscreted) or split the channels (SplitDimd) first"
                )
            array = array.take(0, axis=channel_dim)
        self.data_obj = array if self.output_dtype is None else array.astype(self.output_dtype, copy=False)

    def set_metadata(self, meta_dict: dict | None = None, resample: bool = False, **options) -> None:
        """Take the affine [µm] of the array as it now is; resampling is Invertd's work."""
        if resample:
            raise ValueError("resample=True is not supported: bring the array back with Invertd, then save it")
        _, affine, _ = self.get_meta_info(meta_dict)
        if affine is None or not (meta_dict or {}).get("voxel_size_known", True):
            self.affine = None
        else:
            self.affine = to_affine_nd(3, convert_to_numpy(affine).astype(np.float64))


class NiftiWriter(_VolumeWriter):
    """SaveImage's writer of .nii and .nii.gz in µm."""

    def write(self, filename: PathLike, verbose: bool = False, **kwargs) -> None:
        """Write the file atomically; see ``write_nifti`` for what it raises."""
        super().write(filename, verbose=verbose)
        volume_io.write_nifti(filename, self.data_obj, self.affine)


class TiffWriter(_VolumeWriter):
    """SaveImage's writer of .tif with Fiji's scale; a TIFF keeps voxel sizes, not directions."""

    def write(self, filename: PathLike, verbose: bool = False, **kwargs) -> None:
        """Write the file atomically; see ``write_tiff`` for what it raises."""
        super().write(filename, verbose=verbose)
        sizes = None
        if self.affine is not None:
            sizes = np.linalg.norm(self.affine[:3, :3], axis=0)[: self.data_obj.ndim]
        volume_io.write_tiff(filename, self.data_obj, sizes)
