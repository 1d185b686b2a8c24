"""Compiled line integrals on the CPU: Joseph's method, many slices at once, and its back-projection.

The slices of a block lie next to each other in memory: the weights of a ray are computed once for all of them, and the
processor's vector unit does the rest. A slice's result does not depend on which others share its block.

Coordinates are voxels from the rotation axis, as ASTRA has them: x = column − (columns − 1)/2, y = (rows − 1)/2 − row.
At angle θ the detector runs along (cos θ, sin θ) and the beam along (−sin θ, cos θ); the cone beam's detector is the
virtual one through the axis, so that its pixels are voxels too.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

LANES = 16  # slices of a block: 64 bytes of float32, a cache line
_COMPILE = {"parallel": True, "cache": True, "fastmath": {"contract", "nsz"}, "error_model": "numpy"}


@intrinsic
def _add_blend(typingctx, out, at, source, cell, left, right):
    """out[at, :] += left · source[cell, :] + right · source[cell + 1, :] on flat float32 arrays of LANES columns.

    Written as vectors, since the compiler unrolls a loop over the lanes into scalars, which takes four times as long.
    """
    signature = types.void(out, types.intp, source, types.intp, types.float32, types.float32)

    def codegen(context, builder, signature, arguments):
        out, at, source, cell, left, right = arguments
        lanes = ir.Constant(ir.IntType(64), LANES)
        vector = ir.VectorType(ir.FloatType(), LANES)
        undefined, zeros = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)

        def address(array_type, array, row):
            data = context.make_array(array_type)(context, builder, array).data
            return builder.bitcast(builder.gep(data, [builder.mul(row, lanes)]), vector.as_pointer())

        def broadcast(value):
            first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(first, undefined, zeros)

        def plus_product(total, factor, row):
            values = builder.load(address(signature.args[2], source, row), align=4)
            return builder.fadd(builder.fmul(broadcast(factor), values, ("contract",)), total, ("contract",))

        target = address(signature.args[0], out, at)
        total = plus_product(builder.load(target, align=4), right, builder.add(cell, ir.Constant(ir.IntType(64), 1)))
        builder.store(plus_product(total, left, cell), target, align=4)
        return context.get_dummy_value()

    return signature, codegen


@njit(**_COMPILE)
def parallel_forward(by_row, by_column, cos, sin, offset, step, length, out):
    """Parallel line integrals of a block of slices (Joseph, IEEE Trans. Med. Imaging 1, 1982).

    Args:
        by_row: float32 (rows, columns + 2, LANES), the slices with a zero column on either side.
        by_column: float32 (columns, rows + 2, LANES), the same with rows and columns exchanged.
        cos, sin: float64 (angles,), of the angle of each view.
        offset, step: float64 (angles,); detector j of view i lies at u = offset[i] + j · step[i].
        length: float64 (angles,), factor on the path length.
        out: float32 (angles, detectors, LANES), zero at the start.
    """
    rows, columns = by_row.shape[0], by_column.shape[0]
    for i in prange(out.shape[0]):
        view = out[i].reshape(-1)
        if abs(cos[i]) >= abs(sin[i]):  # the ray crosses every row: where?
            lines, cells, block = rows, columns, by_row
            per_u, per_line = 1 / cos[i], sin[i] / cos[i]
        else:
            lines, cells, block = columns, rows, by_column
            per_u, per_line = -1 / sin[i], cos[i] / sin[i]
        slope = per_u * step[i]
        for k in range(lines):
            line = block[k].reshape(-1)
            start = (cells + 1) / 2 + per_u * offset[i] + (k - (lines - 1) / 2) * per_line
            low, high = _inside(start, slope, cells + 1, out.shape[1])
            for j in range(low, high):
                position = start + j * slope
                cell = min(int(position), cells)
                right = np.float32(position - cell)
                _add_blend(view, j, line, cell, np.float32(1) - right, right)
        view *= np.float32(length[i] * abs(per_u))


@njit(**_COMPILE)
def parallel_backproject(sinogram, cos, sin, centre, out):
    """Sum over the views of the value where each pixel projects, linear between detectors.

    Args:
        sinogram: float32 (angles, detectors, LANES).
        cos, sin: float64 (angles,), of the angle of each view.
        centre: detector index of the rotation axis.
        out: float32 (rows, columns, LANES), zero at the start.
    """
    rows, columns = out.shape[:2]
    for r in prange(rows):
        row = out[r].reshape(-1)
        for i in range(sinogram.shape[0]):
            view = sinogram[i].reshape(-1)
            start = centre + ((rows - 1) / 2 - r) * sin[i] - (columns - 1) / 2 * cos[i]
            low, high = _inside(start, cos[i], sinogram.shape[1] - 1, columns)
            for c in range(low, high):
                position = start + c * cos[i]
                cell = min(int(position), sinogram.shape[1] - 2)
                right = np.float32(position - cell)
                _add_blend(row, c, view, cell, np.float32(1) - right, right)


@njit(**_COMPILE)
def cone_forward(by_row, by_column, cos, sin, distance, offset, step, length, flat, out):
    """Cone-beam line integrals of a volume; the fan beam of each slice by itself where ``flat``.

    Joseph's method: a ray is sampled where it crosses each row (or column) of voxels, bilinearly between the four
    nearest. All detector rows of one column share their way through a slice.

    Args:
        by_row: float32 (rows, columns + 2, slices + 2), the volume with a zero border.
        by_column: float32 (columns, rows + 2, slices + 2), the same with rows and columns exchanged.
        cos, sin: float64 (angles,), of the angle of each view.
        distance: float64 (angles,), from source to axis.
        offset, step: float64 (angles,); detector column j of view i lies at u = offset[i] + j · step[i], and its rows
            are step[i] apart.
        length: float64 (angles,), factor on the path length.
        flat: every slice is treated as the middle one; as many detector rows as slices.
        out: float32 (angles, detector columns, detector rows), zero at the start.
    """
    rows, columns, slices = by_row.shape[0], by_column.shape[0], by_row.shape[2] - 2
    height = out.shape[2]
    for i in prange(out.shape[0]):
        mixed = np.empty(slices + 2, np.float32)
        source_x, source_y = distance[i] * sin[i], -distance[i] * cos[i]
        for j in range(out.shape[1]):
            u = offset[i] + j * step[i]
            ray_x, ray_y = u * cos[i] - source_x, u * sin[i] - source_y
            along_y = abs(ray_y) >= abs(ray_x)
            lines, cells = (rows, columns) if along_y else (columns, rows)
            for k in range(lines):
                if along_y:
                    t = ((rows - 1) / 2 - k - source_y) / ray_y
                    position = (columns + 1) / 2 + source_x + t * ray_x
                    plane = by_row[k]
                else:
                    t = (k - (columns - 1) / 2 - source_x) / ray_x
                    position = (rows + 1) / 2 - source_y - t * ray_y
                    plane = by_column[k]
                if not 0 <= position <= cells + 1:
                    continue
                cell = min(int(position), cells)
                right = np.float32(position - cell)
                for z in range(slices + 2):
                    mixed[z] = (np.float32(1) - right) * plane[cell, z] + right * plane[cell + 1, z]
                if flat:
                    for m in range(height):
                        out[i, j, m] += mixed[m + 1]
                else:
                    start = (slices + 1) / 2 - t * step[i] * (height - 1) / 2
                    low, high = _inside(start, t * step[i], slices + 1, height)
                    for m in range(low, high):
                        z_position = start + m * t * step[i]
                        z = min(int(z_position), slices)
                        up = np.float32(z_position - z)
                        out[i, j, m] += (np.float32(1) - up) * mixed[z] + up * mixed[z + 1]
            main = max(abs(ray_x), abs(ray_y))
            in_plane = ray_x**2 + ray_y**2
            for m in range(height):
                v = 0.0 if flat else (m - (height - 1) / 2) * step[i]
                out[i, j, m] *= np.float32(length[i] * math.sqrt(in_plane + v**2) / main)


@njit(**_COMPILE)
def cone_backproject(sinogram, cos, sin, distance, centre, flat, out):
    """Back-projection with the distance weight of Feldkamp, Davis & Kress (J. Opt. Soc. Am. A 1, 1984, eq. 28).

    Args:
        sinogram: float32 (angles, detector columns, detector rows), filtered.
        cos, sin: float64 (angles,), of the angle of each view.
        distance: from source to axis.
        centre: detector column of the rotation axis.
        flat: every slice is treated as the middle one; as many detector rows as slices.
        out: float32 (rows, columns, slices), zero at the start.
    """
    rows, columns, slices = out.shape
    height = sinogram.shape[2]
    for r in prange(rows):
        y = (rows - 1) / 2 - r
        mixed = np.empty(height, np.float32)
        for i in range(sinogram.shape[0]):
            for c in range(columns):
                x = c - (columns - 1) / 2
                magnified = distance / (distance - x * sin[i] + y * cos[i])
                position = centre + magnified * (x * cos[i] + y * sin[i])
                if not 0 <= position <= sinogram.shape[1] - 1:
                    continue
                cell = min(int(position), sinogram.shape[1] - 2)
                right = np.float32((position - cell) * magnified**2)
                left = np.float32(magnified**2) - right
                if flat:
                    for z in range(slices):
                        out[r, c, z] += left * sinogram[i, cell, z] + right * sinogram[i, cell + 1, z]
                    continue
                for m in range(height):
                    mixed[m] = left * sinogram[i, cell, m] + right * sinogram[i, cell + 1, m]
                start = (height - 1) / 2 - magnified * (slices - 1) / 2
                low, high = _inside(start, magnified, height - 1, slices)
                for z in range(low, high):
                    z_position = start + z * magnified
                    m = min(int(z_position), height - 2)
                    up = np.float32(z_position - m)
                    out[r, c, z] += (np.float32(1) - up) * mixed[m] + up * mixed[m + 1]


@njit(cache=True, error_model="numpy")
def _inside(start, slope, end, count):
    """The range of k in 0 … count − 1 for which 0 ≤ start + k · slope ≤ end."""
    if abs(slope) < 1e-12:
        return (0, count) if 0 <= start <= end else (0, 0)
    a, b = -start / slope, (end - start) / slope
    low = min(max(math.ceil(min(a, b)), 0), count)
    high = min(max(math.floor(max(a, b)) + 1, low), count)
    while low < high and not 0 <= start + low * slope <= end:  # rounding may put an end just outside
        low += 1
    while low < high and not 0 <= start + (high - 1) * slope <= end:
        high -= 1
    return low, high


# 2^x on [−½, ½]: the Chebyshev interpolant of degree 5, within 1.1e-7
_POWER_OF_TWO = np.polynomial.Chebyshev.interpolate(np.exp2, 5, [-0.5, 0.5]).convert(kind=np.polynomial.Polynomial).coef
_ROUND = 1.5 * 2**23  # added to a float32, leaves its nearest integer in the lowest bits
_RAYS = 512  # of a block, whose sums stay in the first cache


@intrinsic
def _power_of_two(typingctx, x):
    """2^x of a float32 in [−126, 127], within 2.4e-7; unlike exp, it leaves a loop to be vectorised."""

    def codegen(context, builder, signature, arguments):
        x = arguments[0]
        real, integer = ir.FloatType(), ir.IntType(32)
        rounded = builder.fadd(x, ir.Constant(real, _ROUND))
        rest = builder.fsub(x, builder.fsub(rounded, ir.Constant(real, _ROUND)))
        power = ir.Constant(real, float(np.float32(_POWER_OF_TWO[-1])))
        for coefficient in _POWER_OF_TWO[-2::-1]:
            product = builder.fmul(power, rest, ("contract",))
            power = builder.fadd(product, ir.Constant(real, float(np.float32(coefficient))), ("contract",))
        exponent = builder.shl(builder.bitcast(rounded, integer), ir.Constant(integer, 23))
        return builder.bitcast(builder.add(builder.bitcast(power, integer), exponent), real)

    return types.float32(types.float32), codegen


@njit(**_COMPILE)
def beer_lambert(paths, attenuation, weights, out):
    """Sums over the energies of weights · 2^(Σ_m attenuation · path).

    Args:
        paths: float32 (materials, rays).
        attenuation: float32 (materials, energies), −µ / ln 2.
        weights: float32 (sums, energies).
        out: float32 (sums, rays), zero at the start.
    """
    rays = paths.shape[1]
    for b in prange((rays + _RAYS - 1) // _RAYS):
        first, last = b * _RAYS, min((b + 1) * _RAYS, rays)
        power = np.empty(last - first, np.float32)
        for e in range(attenuation.shape[1]):
            path, factor = paths[0][first:last], attenuation[0, e]
            for r in range(len(power)):
                power[r] = factor * path[r]
            for m in range(1, len(paths)):
                path, factor = paths[m][first:last], attenuation[m, e]
                for r in range(len(power)):
                    power[r] += factor * path[r]
            total, weight = out[0][first:last], weights[0, e]
            for r in range(len(power)):
                power[r] = _power_of_two(max(power[r], np.float32(-126)))
                total[r] += weight * power[r]
            for s in range(1, len(weights)):
                total, weight = out[s][first:last], weights[s, e]
                for r in range(len(power)):
                    total[r] += weight * power[r]
