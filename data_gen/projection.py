"""Line integrals and their inverse. The only file that knows ASTRA."""

from __future__ import annotations

import weakref
from functools import cached_property, lru_cache

import astra
import numpy as np

# The filters that ASTRA 2.5 scales correctly on the CPU (tukey, lanczos, gaussian, kaiser and blackman are not).
FILTERS = ("ram-lak", "shepp-logan", "cosine", "hamming", "hann", "parzen")


class ParallelBeam:
    """Parallel-beam geometry of one slice, with unit pixels: lengths are in pixels until the caller scales them.

    Uses ASTRA's ``linear`` projector (Joseph's method) on the CPU. The detector spans the slice's diagonal, so the
    whole slice is in the field of view at every angle.

    Args:
        shape: (rows, columns) of the slice.
        n_angles: number of projections, equally spaced over ``angular_range_deg``, end excluded.
        angular_range_deg: [°] 180 or 360 as a rule.
    """

    def __init__(self, shape: tuple[int, int], n_angles: int, angular_range_deg: float = 180.0):
        self.shape = tuple(int(n) for n in shape)
        self.n_detectors = int(np.ceil(np.hypot(*self.shape)))
        self.angles_rad = np.deg2rad(angular_range_deg) * np.arange(n_angles) / n_angles
        self._volume = astra.create_vol_geom(*self.shape)
        self._sinogram = astra.create_proj_geom("parallel", 1.0, self.n_detectors, self.angles_rad)
        self._projector = astra.create_projector("linear", self._sinogram, self._volume)
        weakref.finalize(self, astra.projector.delete, self._projector)

    def forward(self, image: np.ndarray) -> np.ndarray:
        """Line integrals of an image.

        Args:
            image: (rows, columns).

        Returns:
            float32 (angles, detectors), in units of the image's value times pixels.
        """
        sinogram_id, sinogram = astra.create_sino(np.ascontiguousarray(image, dtype=np.float32), self._projector)
        astra.data2d.delete(sinogram_id)
        return sinogram

    @cached_property
    def chords(self) -> np.ndarray:
        """Length of each ray inside the slice [pixels], float32 (angles, detectors)."""
        return self.forward(np.ones(self.shape, np.float32))

    def fbp(self, sinogram: np.ndarray, filter_name: str = "ram-lak") -> np.ndarray:
        """Filtered back-projection.

        Args:
            sinogram: (angles, detectors) line integrals.
            filter_name: one of ``FILTERS``.

        Returns:
            float32 (rows, columns), in units of the sinogram's value per pixel.
        """
        sinogram_id = astra.data2d.create("-sino", self._sinogram, np.ascontiguousarray(sinogram, dtype=np.float32))
        image_id = astra.data2d.create("-vol", self._volume)
        config = astra.astra_dict("FBP")
        config |= {
            "ProjectorId": self._projector,
            "ProjectionDataId": sinogram_id,
            "ReconstructionDataId": image_id,
            "FilterType": filter_name,
        }
        algorithm_id = astra.algorithm.create(config)
        astra.algorithm.run(algorithm_id)
        image = astra.data2d.get(image_id)
        astra.algorithm.delete(algorithm_id)
        astra.data2d.delete([sinogram_id, image_id])
        return image


@lru_cache(maxsize=2)
def parallel_beam(shape: tuple[int, int], n_angles: int, angular_range_deg: float = 180.0) -> ParallelBeam:
    """A ``ParallelBeam`` that is kept for the next slice of the same geometry."""
    return ParallelBeam(shape, n_angles, angular_range_deg)
