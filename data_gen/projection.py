"""Line integrals and their adjoint: compiled for blocks of slices, or by ASTRA slice by slice. ASTRA's only home.

Lengths are voxels of the projected array; coordinates are those of ``data_gen.ray_kernels``. ASTRA is the reference for
the compiled kernels, reconstructs iteratively, and is the only one that uses a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import astra
import numba
import numpy as np

from data_gen import ray_kernels
from data_gen.geometry import Views
from data_gen.ray_kernels import LANES

BACKENDS = ("compiled", "astra")


def set_threads(count: int) -> None:
    """Threads of the compiled kernels in this process; their results are the same for any number."""
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


def forward(
    stack: np.ndarray,
    views: Views,
    detectors: tuple[int, int],
    distance: float | None = None,
    backend: str = "compiled",
) -> np.ndarray:
    """Line integrals of a stack of slices.

    Args:
        stack: (x, y, slices), z is the rotation axis; x runs along rows, y along columns.
        views: where the object is at each view; shifts in voxels of the stack.
        detectors: pixels of the detector across and along the rotation axis, as large as a voxel; the second one counts
            for a cone beam only.
        distance: [voxels] source to axis; None for a parallel beam. A single slice is a fan beam.
        backend: one of ``BACKENDS``.

    Returns:
        float32 (angles, detectors across, slices or detectors along), in the array's values times voxels.

    Raises:
        ValueError: an unknown backend, a source inside the object, a cone beam by ASTRA without a GPU.
    """
    _check(backend, stack.shape, distance)
    if backend == "astra":
        return _astra_forward(stack, views, detectors, distance)
    cos, sin = np.cos(views.angles_rad), np.sin(views.angles_rad)
    step = 1 / views.scale
    offset = ((1 - detectors[0]) / 2 - views.shift_px) / views.scale
    rows, columns, slices = stack.shape
    if distance is not None:
        flat = slices == 1
        by_row = np.pad(np.asarray(stack, np.float32), ((0, 0), (1, 1), (1, 1)))
        by_column = np.pad(np.asarray(stack, np.float32).transpose(1, 0, 2), ((0, 0), (1, 1), (1, 1)))
        out = np.zeros((len(cos), detectors[0], 1 if flat else detectors[1]), np.float32)
        ray_kernels.cone_forward(
            by_row, by_column, cos, sin, distance / views.scale, offset, step, views.scale, flat, out
        )
        return out
    out = np.empty((len(cos), detectors[0], slices), np.float32)
    by_row = np.zeros((rows, columns + 2, LANES), np.float32)
    by_column = np.zeros((columns, rows + 2, LANES), np.float32)
    for first in range(0, slices, LANES):
        part = stack[..., first : first + LANES]
        width = part.shape[2]
        by_row[:, 1:-1, :width] = part
        by_column[:, 1:-1, :width] = part.transpose(1, 0, 2)
        block = np.zeros((*out.shape[:2], LANES), np.float32)
        ray_kernels.parallel_forward(by_row, by_column, cos, sin, offset, step, views.scale, block)
        out[..., first : first + LANES] = block[..., :width]
    return out


def backproject(
    sinogram: np.ndarray, angles_rad: np.ndarray, shape: tuple[int, int, int], distance: float | None = None
) -> np.ndarray:
    """Sum over the views of the sinogram's value where each voxel projects, linear between detector pixels.

    Not the exact adjoint of ``forward``: Joseph's method interpolates in the image, this in the detector.

    Args:
        sinogram: float32 (angles, detectors across, slices or detectors along).
        angles_rad: [rad] (angles,).
        shape: (x, y, slices) of the result.
        distance: [voxels] source to axis; None for a parallel beam. A cone beam's views are weighed by the square of
            the magnification (FDK).

    Returns:
        float32 of that shape.
    """
    cos, sin = np.cos(angles_rad), np.sin(angles_rad)
    centre = (sinogram.shape[1] - 1) / 2
    out = np.zeros(shape, np.float32)
    if distance is not None:
        ray_kernels.cone_backproject(sinogram, cos, sin, float(distance), centre, shape[2] == 1, out)
        return out
    for first in range(0, shape[2], LANES):
        part = sinogram[..., first : first + LANES]
        if part.shape[2] == LANES and shape[2] == LANES:
            source, block = np.ascontiguousarray(part), out
        else:
            source = np.zeros((*sinogram.shape[:2], LANES), np.float32)
            source[..., : part.shape[2]] = part
            block = np.zeros((*shape[:2], LANES), np.float32)
        ray_kernels.parallel_backproject(source, cos, sin, centre, block)
        if block is not out:
            out[..., first : first + LANES] = block[..., : part.shape[2]]
    return out


FILTERS = ("ram-lak", "shepp-logan", "cosine", "hamming", "hann", "parzen")  # the ones ASTRA 2.5 scales correctly


def astra_fbp(
    sinogram: np.ndarray,
    angles_rad: np.ndarray,
    shape: tuple[int, int, int],
    filter_name: str = "ram-lak",
    progress: Callable = iter,
) -> np.ndarray:
    """ASTRA's own filtered back-projection of a parallel beam on the CPU, slice by slice: the reference.

    Args:
        sinogram: (angles, detectors, slices).
        angles_rad: [rad] (angles,), equally spaced over 180° or 360°.
        shape: (x, y, slices) of the result.
        filter_name: one of ``FILTERS``.
        progress: wraps the iterable of slices, e.g. tqdm.

    Returns:
        float32 of that shape, in the sinogram's values per voxel.
    """
    return astra_iterate(sinogram, angles_rad, shape, "FBP", 1, options={"FilterType": filter_name}, progress=progress)


def astra_iterate(
    sinogram: np.ndarray,
    angles_rad: np.ndarray,
    shape: tuple[int, int, int],
    algorithm: str,
    iterations: int,
    distance: float | None = None,
    options: dict | None = None,
    progress: Callable = iter,
) -> np.ndarray:
    """Reconstruct every slice with one of ASTRA's 2D algorithms on the CPU.

    Args:
        sinogram: (angles, detectors, slices).
        angles_rad: [rad] (angles,).
        shape: (x, y, slices) of the result.
        algorithm: ASTRA's name, such as SIRT or CGLS.
        iterations: how many.
        distance: [voxels] source to axis of a fan beam; None for a parallel beam.
        options: ASTRA's options, such as ``{"MinConstraint": 0}``.
        progress: wraps the iterable of slices, e.g. tqdm.

    Returns:
        float32 of that shape, in the sinogram's values per voxel.
    """
    still = Views(np.asarray(angles_rad), np.zeros(len(angles_rad)), np.ones(len(angles_rad)))
    out = np.empty(shape, np.float32)
    with _astra_projector(shape[:2], still, sinogram.shape[1], distance) as (projector, volume_geometry, geometry):
        for k in progress(range(shape[2])):
            data = astra.data2d.create("-sino", geometry, np.ascontiguousarray(sinogram[..., k], np.float32))
            image = astra.data2d.create("-vol", volume_geometry)
            config = astra.astra_dict(algorithm)
            config |= {"ProjectorId": projector, "ProjectionDataId": data, "ReconstructionDataId": image}
            if algorithm == "FBP":
                config |= options or {}
            else:
                config["option"] = options or {}
            run = astra.algorithm.create(config)
            try:
                astra.algorithm.run(run, iterations)
                out[..., k] = astra.data2d.get(image)
            finally:
                astra.algorithm.delete(run)
                astra.data2d.delete([data, image])
    return out


def astra_fdk(sinogram: np.ndarray, angles_rad: np.ndarray, shape: tuple[int, int, int], distance: float) -> np.ndarray:
    """ASTRA's FDK with a ram-lak filter, of a cone beam over 360°; on a GPU only.

    Args:
        sinogram: (angles, detectors across, detectors along).
        angles_rad: [rad] (angles,), equally spaced over 360°.
        shape: (x, y, slices) of the result.
        distance: [voxels] source to axis.

    Returns:
        float32 of that shape, in the sinogram's values per voxel.

    Raises:
        ValueError: there is no GPU.
    """
    if not astra.use_cuda():  # the first call to a 3D function would end the process
        raise ValueError("ASTRA's FDK needs a GPU, and finds none; take backend='compiled'")
    volume = astra.create_vol_geom(*shape)
    geometry = astra.create_proj_geom(
        "cone", 1.0, 1.0, sinogram.shape[2], sinogram.shape[1], np.asarray(angles_rad), distance, 0.0
    )
    data = astra.data3d.create("-sino", geometry, np.ascontiguousarray(sinogram.transpose(2, 0, 1), np.float32))
    image = astra.data3d.create("-vol", volume)
    config = astra.astra_dict("FDK_CUDA")
    config |= {"ProjectionDataId": data, "ReconstructionDataId": image}
    run = astra.algorithm.create(config)
    try:
        astra.algorithm.run(run)
        return np.ascontiguousarray(astra.data3d.get(image).transpose(1, 2, 0))
    finally:
        astra.algorithm.delete(run)
        astra.data3d.delete([data, image])


def _astra_forward(stack: np.ndarray, views: Views, detectors: tuple[int, int], distance: float | None) -> np.ndarray:
    if astra.use_cuda():
        return _astra_cuda_forward(stack, views, detectors, distance)
    if distance is not None and stack.shape[2] > 1:
        raise ValueError("ASTRA projects a cone beam on a GPU only, and finds none; take backend='compiled'")
    out = np.empty((len(views.angles_rad), detectors[0], stack.shape[2]), np.float32)
    with _astra_projector(stack.shape[:2], views, detectors[0], distance) as (projector, _, _):
        for k in range(stack.shape[2]):
            data, out[..., k] = astra.create_sino(np.ascontiguousarray(stack[..., k], np.float32), projector)
            astra.data2d.delete(data)
    out *= views.scale[:, None, None].astype(np.float32)
    return out


@contextmanager
def _astra_projector(shape, views: Views, detectors: int, distance: float | None):
    """ASTRA's projector on the CPU, its volume geometry and its projection geometry."""
    volume = astra.create_vol_geom(*shape)
    cos, sin = np.cos(views.angles_rad), np.sin(views.angles_rad)
    moves = np.any(views.shift_px) or np.any(views.scale != 1)
    if distance is None and not moves:  # ASTRA's FBP takes no other geometry
        geometry, name = astra.create_proj_geom("parallel", 1.0, detectors, views.angles_rad), "linear"
    elif distance is None:
        at, step = -views.shift_px / views.scale, 1 / views.scale
        vectors = np.stack([-sin, cos, at * cos, at * sin, step * cos, step * sin], axis=1)
        geometry, name = astra.create_proj_geom("parallel_vec", detectors, vectors), "linear"
    elif moves:
        raise ValueError("ASTRA's fan beam on the CPU takes no moving or shifted object; take backend='compiled'")
    else:
        geometry = astra.create_proj_geom("fanflat", 1.0, detectors, views.angles_rad, distance, 0.0)
        name = "line_fanflat"
    projector = astra.create_projector(name, geometry, volume)
    try:
        yield projector, volume, geometry
    finally:
        astra.projector.delete(projector)


def _astra_cuda_forward(stack, views: Views, detectors, distance: float | None) -> np.ndarray:
    rows, columns, slices = stack.shape
    volume = astra.create_vol_geom(rows, columns, slices)
    cos, sin, zero = np.cos(views.angles_rad), np.sin(views.angles_rad), np.zeros(len(views.angles_rad))
    at, step = -views.shift_px / views.scale, 1 / views.scale
    across = [at * cos, at * sin, zero, step * cos, step * sin, zero]
    if distance is None:
        vectors = np.stack([-sin, cos, zero, *across, zero, zero, np.ones_like(zero)], axis=1)
        geometry = astra.create_proj_geom("parallel3d_vec", slices, detectors[0], vectors)
    else:
        source = distance / views.scale
        vectors = np.stack([source * sin, -source * cos, zero, *across, zero, zero, step], axis=1)
        height = 1 if slices == 1 else detectors[1]
        geometry = astra.create_proj_geom("cone_vec", height, detectors[0], vectors)
    data, sinogram = astra.create_sino3d_gpu(
        np.ascontiguousarray(stack.transpose(2, 0, 1), np.float32), geometry, volume
    )
    astra.data3d.delete(data)
    return sinogram.transpose(1, 2, 0) * views.scale[:, None, None].astype(np.float32)


def _check(backend: str, shape, distance: float | None) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown; known: {', '.join(BACKENDS)}")
    if distance is not None and distance <= np.hypot(*shape[:2]) / 2:
        raise ValueError(
            f"the source is {distance:.4g} voxels from the axis, inside an object of {shape[0]} × {shape[1]} voxels; "
            f"take more than {np.hypot(*shape[:2]) / 2:.4g}"
        )
