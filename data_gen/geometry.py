"""Scan geometry: from where the object is seen, and where it is at each view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_gen.parameters import Range, check_number, check_ranges, draw_ranges


@dataclass(frozen=True)
class Views:
    """What the object really did at each view: rotated, then dilated about the rotation axis, then shifted.

    Attributes:
        angles_rad: [rad] rotation of the object, float64, shape (n_angles,).
        shift_px: [detector pixels] shift of the object along the detector, float64, shape (n_angles,).
        scale: dilation of the object about the rotation axis, 1 is none, float64, shape (n_angles,).
    """

    angles_rad: np.ndarray
    shift_px: np.ndarray
    scale: np.ndarray


def direction(angle_rad: np.ndarray) -> np.ndarray:
    """Unit vectors (x, y) along the detector at these angles, (2, n_angles)."""
    return np.array([np.cos(angle_rad), np.sin(angle_rad)])


def without_pose(angles_rad: np.ndarray, shift_px: np.ndarray) -> np.ndarray:
    """What is left of shifts along the detector when the pose that they show is that of the object at rest.

    A position (x, y) shifts the projection at angle θ by x cos θ + y sin θ. The pose that fits the shifts of all views
    best, by least squares, is where the reconstruction shows the object; a label made for the object at rest, or drawn
    on the image, belongs there.

    Args:
        angles_rad: [rad] (n_angles,).
        shift_px: [detector pixels] (n_angles,).
    """
    directions = direction(angles_rad)
    shown = np.linalg.lstsq(directions.T, shift_px, rcond=None)[0]
    return shift_px - shown @ directions


@dataclass(frozen=True)
class ParallelBeam:
    """Parallel beam: a synchrotron, or a source so far away that it makes no difference.

    Args:
        n_angles: number of views, equally spaced; few of them are a sparse-view scan.
        angular_range_deg: [°] angle that they cover, end excluded; below 180° is a limited angle, with a missing wedge.
        start_angle_deg: [°] angle of the first view, range: where the missing wedge lies.
        centre_offset_px: [detector pixels] by how much the rotation axis misses the middle of the detector, which is
            where the reconstruction takes it to be, range. The object is placed so that the scan shows it where its
            label is (``without_pose``): an offset c would else show it 4c/π beside after 180°, and in place after 360°.

    Raises:
        ValueError: a value outside its range.
    """

    n_angles: int = 360
    angular_range_deg: float = 180.0
    start_angle_deg: Range = 0.0
    centre_offset_px: Range = 0.0

    magnification = 1.0

    def __post_init__(self):
        if type(self.n_angles) is not int or not 1 <= self.n_angles <= 20000:
            raise ValueError(f"n_angles={self.n_angles!r} must be an integer in [1, 20000]")
        check_number("angular_range_deg", self.angular_range_deg, 1, 360, "°")
        check_ranges(self, [("start_angle_deg", -360, 360, "°"), ("centre_offset_px", -1000, 1000, "px")])

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """The parameters of one scan."""
        return draw_ranges(self, ("start_angle_deg", "centre_offset_px"), rng)

    def angles_rad(self, parameters: dict[str, float]) -> np.ndarray:
        """[rad] angles that the reconstruction takes the views to have, float64 (n_angles,)."""
        steps = np.arange(self.n_angles) / self.n_angles
        return np.deg2rad(parameters["start_angle_deg"] + self.angular_range_deg * steps)

    def views(self, parameters: dict[str, float]) -> Views:
        """Where an object at rest on the stage is at each view."""
        angles, shift = self.angles_rad(parameters), np.full(self.n_angles, float(parameters["centre_offset_px"]))
        if shift[0] and self.angular_range_deg < 360:  # a whole turn shows no pose
            shift = without_pose(angles, shift)
        return Views(angles, shift, np.ones(self.n_angles))

    def distance_px(self, voxel_size_um: float) -> float | None:
        """[voxels] source to axis; None for a parallel beam."""
        return None

    def detectors(self, shape: tuple[int, int, int], voxel_size_um: float) -> tuple[int, int]:
        """Detector pixels across and along the axis, such that every ray through the volume (x, y, z) is measured."""
        return int(np.ceil(np.hypot(*shape[:2]))), shape[2]


@dataclass(frozen=True)
class ConeBeam(ParallelBeam):
    """Cone beam with a flat detector, as in a laboratory scanner; the fan beam of its middle plane for a 2D image.

    The detector pixel is the voxel times the magnification. Arguments of ``ParallelBeam``, and

    Args:
        source_object_mm: [mm] source to rotation axis.
        source_detector_mm: [mm] source to detector.

    Raises:
        ValueError: a value outside its range.
    """

    angular_range_deg: float = 360.0
    source_object_mm: float = 20.0
    source_detector_mm: float = 200.0

    def __post_init__(self):
        super().__post_init__()
        check_number("source_object_mm", self.source_object_mm, 1e-3, 1e5, "mm")
        check_number("source_detector_mm", self.source_detector_mm, self.source_object_mm, 1e6, "mm")

    @property
    def magnification(self) -> float:
        """Of the object on the detector."""
        return self.source_detector_mm / self.source_object_mm

    def distance_px(self, voxel_size_um: float) -> float:
        """[voxels] source to axis."""
        return self.source_object_mm * 1e3 / voxel_size_um

    def detectors(self, shape: tuple[int, int, int], voxel_size_um: float) -> tuple[int, int]:
        """As for the parallel beam; the outermost rays fan out, and near voxels are magnified more."""
        distance, radius = self.distance_px(voxel_size_um), np.hypot(*shape[:2]) / 2
        if distance <= radius:
            raise ValueError(
                f"source_object_mm={self.source_object_mm:g} puts the source inside the object, whose corners are "
                f"{radius * voxel_size_um / 1e3:.3g} mm from the axis; take more than that"
            )
        across = int(np.ceil(2 * radius * distance / np.sqrt(distance**2 - radius**2)))
        along = 1 if shape[2] == 1 else int(np.ceil(shape[2] * distance / (distance - radius)))
        return across + across % 2, along + (along - shape[2]) % 2
