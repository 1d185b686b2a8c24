"""Compiled loops over voxels and over pairs of particles. 2D arrays come as 3D ones with a last axis of one voxel."""

from __future__ import annotations

from math import ceil, exp, floor, log1p, sqrt

import numpy as np
from numba import njit

CLIP_SD = 3.0  # surface noise is cut at three standard deviations, so that a particle has a known extent


@njit(cache=True, nogil=True)
def tile_value(tile, x, y, z):
    """Trilinear value of a periodic tile whose edge is a power of two, at a position in nodes."""
    n = tile.shape[0] - 1
    fx, fy, fz = floor(x), floor(y), floor(z)
    u, v, w = x - fx, y - fy, z - fz
    i, j, k = int(fx) & n, int(fy) & n, int(fz) & n
    i1, j1, k1 = (i + 1) & n, (j + 1) & n, (k + 1) & n
    low = (tile[i, j, k] * (1 - u) + tile[i1, j, k] * u) * (1 - v) + (
        tile[i, j1, k] * (1 - u) + tile[i1, j1, k] * u
    ) * v
    high = (tile[i, j, k1] * (1 - u) + tile[i1, j, k1] * u) * (1 - v) + (
        tile[i, j1, k1] * (1 - u) + tile[i1, j1, k1] * u
    ) * v
    return low * (1 - w) + high * w


@njit(cache=True, nogil=True)
def interpolate(lattice, shape, step):
    """Trilinear values of a lattice at voxel centres, ``step`` nodes apart; node 0 is the edge of the box."""
    out = np.empty(shape, np.float32)
    one_z = lattice.shape[2] == 1
    for i in range(shape[0]):
        x = (i + 0.5) * step[0]
        a = int(x)
        u = np.float32(x - a)
        for j in range(shape[1]):
            y = (j + 0.5) * step[1]
            b = int(y)
            v = np.float32(y - b)
            for k in range(shape[2]):
                z = 0.0 if one_z else (k + 0.5) * step[2]
                c = int(z)
                d = c if one_z else c + 1
                w = np.float32(z - c)
                low = (lattice[a, b, c] * (1 - u) + lattice[a + 1, b, c] * u) * (1 - v) + (
                    lattice[a, b + 1, c] * (1 - u) + lattice[a + 1, b + 1, c] * u
                ) * v
                high = (lattice[a, b, d] * (1 - u) + lattice[a + 1, b, d] * u) * (1 - v) + (
                    lattice[a, b + 1, d] * (1 - u) + lattice[a + 1, b + 1, d] * u
                ) * v
                out[i, j, k] = low * (1 - w) + high * w
    return out


@njit(cache=True, nogil=True)
def nearest_surfaces(
    shape, voxel, centres, axes, rotations, rough, lumpy, offsets, extents, periodic, reach, tile, per
):
    """Signed distance to the two nearest particle surfaces, and whose they are; see ``ParticleList.nearest``."""
    first = np.full(shape, reach, np.float32)
    second = np.full(shape, reach, np.float32)
    owner = np.full(shape, -1, np.int32)
    runner = np.full(shape, -1, np.int32)
    n = shape
    start = np.zeros(3, np.int64)
    stop = np.zeros(3, np.int64)
    flat = n[2] == 1
    for p in range(len(centres)):
        for axis in range(3):
            c, e = centres[p, axis] / voxel, extents[p, axis] / voxel
            low, high = floor(c - e), ceil(c + e) + 1
            if periodic:
                high = min(high, low + n[axis])  # a particle meets a voxel with its nearest image only
            else:
                low, high = max(low, 0), min(high, n[axis])
            start[axis], stop[axis] = low, high
        if flat:
            start[2], stop[2] = 0, 1
        rot, a = rotations[p], axes[p]
        thin = min(a[0], a[1], a[2])
        deviation = rough[p, 0] + lumpy[p, 0]
        limit = reach + CLIP_SD * deviation
        furthest = (1 + limit / thin) ** 2  # |∇t| is at most 1 / thin
        ball = furthest * max(a[0], a[1], a[2]) ** 2
        whole = periodic and stop[2] - start[2] == n[2]  # the range wraps: no part of it can be left out
        for i in range(start[0], stop[0]):
            x = (i + 0.5) * voxel - centres[p, 0]
            if periodic:
                x -= n[0] * voxel * round(x / (n[0] * voxel))
            ii = i % n[0]
            for j in range(start[1], stop[1]):
                y = (j + 0.5) * voxel - centres[p, 1]
                if periodic:
                    y -= n[1] * voxel * round(y / (n[1] * voxel))
                jj = j % n[1]
                if x * x + y * y > ball:
                    continue
                first_k, last_k = start[2], stop[2]
                if not flat and not whole:
                    half = sqrt(max(ball - x * x - y * y, 0.0))
                    first_k = max(first_k, floor((centres[p, 2] - half) / voxel))
                    last_k = min(last_k, ceil((centres[p, 2] + half) / voxel) + 1)
                for k in range(first_k, last_k):
                    z = 0.0
                    if not flat:
                        z = (k + 0.5) * voxel - centres[p, 2]
                        if periodic:
                            z -= n[2] * voxel * round(z / (n[2] * voxel))
                    bx = rot[0, 0] * x + rot[0, 1] * y + rot[0, 2] * z
                    by = rot[1, 0] * x + rot[1, 1] * y + rot[1, 2] * z
                    bz = rot[2, 0] * x + rot[2, 1] * y + rot[2, 2] * z
                    qx, qy, qz = bx / a[0], by / a[1], bz / a[2]
                    t = qx * qx + qy * qy + qz * qz
                    if t > furthest:
                        continue
                    t = sqrt(t)
                    if t < 1e-9:
                        distance = -thin
                    else:
                        slope = sqrt((qx / a[0]) ** 2 + (qy / a[1]) ** 2 + (qz / a[2]) ** 2) / t
                        distance = (t - 1) / slope
                        if distance > limit:
                            continue
                        if deviation > 0:
                            sx, sy, sz = bx / t, by / t, bz / t  # where the ray leaves the smooth particle
                            height = 0.0
                            if rough[p, 0] > 0:
                                s = per / rough[p, 1]
                                height += rough[p, 0] * tile_value(
                                    tile, sx * s + offsets[p, 0], sy * s + offsets[p, 1], sz * s + offsets[p, 2]
                                )
                            if lumpy[p, 0] > 0:
                                s = per / lumpy[p, 1]
                                height += lumpy[p, 0] * tile_value(
                                    tile, sx * s + offsets[p, 1], sy * s + offsets[p, 2], sz * s + offsets[p, 0]
                                )
                            cap = CLIP_SD * deviation
                            distance -= min(max(height, -cap), cap)
                    kk = k % n[2]
                    if distance < first[ii, jj, kk]:
                        second[ii, jj, kk] = first[ii, jj, kk]
                        runner[ii, jj, kk] = owner[ii, jj, kk]
                        first[ii, jj, kk] = distance
                        owner[ii, jj, kk] = p
                    elif distance < second[ii, jj, kk]:
                        second[ii, jj, kk] = distance
                        runner[ii, jj, kk] = p
    return first, second, owner, runner


@njit(cache=True, nogil=True)
def join(first, second, owner, runner, voxel, gap, variation, neck_share, neck, seed, tile, per):
    """Signed distance to the solid of a pack whose touching particles keep a slit or have grown together by a neck.

    Whether a pair has a neck is a hash of the two numbers and the seed: it does not depend on the grid. A neck is the
    smooth minimum −k ln(exp(−d₁/k) + exp(−d₂/k)), which fills the wedge at a contact by k ln 2; a slit is infinity.
    """
    n = first.shape
    out = first.copy()
    scale = per / (4 * gap) if gap > 0 else 0.0
    for i in range(n[0]):
        for j in range(n[1]):
            for k in range(n[2]):
                if runner[i, j, k] < 0:
                    continue
                between = second[i, j, k] - first[i, j, k]
                if between > max(gap * (1 + CLIP_SD * variation), 6 * neck):
                    continue
                a, b = min(owner[i, j, k], runner[i, j, k]), max(owner[i, j, k], runner[i, j, k])
                h = np.uint64(a) * np.uint64(0x9E3779B97F4A7C15)
                h ^= np.uint64(b + seed) * np.uint64(0xC2B2AE3D27D4EB4F)
                h = (h ^ (h >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
                if float((h >> np.uint64(40)) & np.uint64(0xFFFFFF)) < neck_share * 16777216.0:
                    if neck > 0:
                        out[i, j, k] -= neck * log1p(exp(-between / neck))
                    continue
                width = gap
                if variation > 0 and gap > 0:
                    x, y, z = (i + 0.5) * voxel * scale, (j + 0.5) * voxel * scale, (k + 0.5) * voxel * scale
                    width *= 1 + variation * tile_value(tile, x, y, 0.0 if n[2] == 1 else z)
                if between < width:
                    out[i, j, k] = np.inf
    return out


@njit(cache=True, nogil=True)
def carve(
    free,
    first,
    owner,
    voxel,
    centres,
    radii,
    rotations,
    offsets,
    periodic,
    voids,
    planes,
    sides,
    widths,
    tapers,
    tile,
    per,
):
    """Take central voids and cracks out of ``free``; see ``electrode.Defects``."""
    n = free.shape
    for i in range(n[0]):
        for j in range(n[1]):
            for k in range(n[2]):
                p = owner[i, j, k]
                if p < 0 or first[i, j, k] > 0.5 * radii[p] or not (voids[p] > 0 or widths[p, 0] > 0):
                    continue
                x = (i + 0.5) * voxel - centres[p, 0]
                y = (j + 0.5) * voxel - centres[p, 1]
                z = 0.0 if n[2] == 1 else (k + 0.5) * voxel - centres[p, 2]
                if periodic:
                    x -= n[0] * voxel * round(x / (n[0] * voxel))
                    y -= n[1] * voxel * round(y / (n[1] * voxel))
                    if n[2] > 1:
                        z -= n[2] * voxel * round(z / (n[2] * voxel))
                rot, radius = rotations[p], radii[p]
                bx = (rot[0, 0] * x + rot[0, 1] * y + rot[0, 2] * z) / radius
                by = (rot[1, 0] * x + rot[1, 1] * y + rot[1, 2] * z) / radius
                bz = (rot[2, 0] * x + rot[2, 1] * y + rot[2, 2] * z) / radius
                t = sqrt(bx * bx + by * by + bz * bz)
                ox, oy, oz = offsets[p, 0] + 11.3, offsets[p, 1] + 29.7, offsets[p, 2] + 47.1
                if voids[p] > 0 and t < 4 * voids[p]:
                    s = per / 0.16  # ragged on a sixth of the radius
                    if t < voids[p] * exp(1.1 * tile_value(tile, bx * s + ox, by * s + oy, bz * s + oz)):
                        free[i, j, k] = False
                        continue
                for c in range(planes.shape[1]):
                    width = widths[p, c]
                    if width <= 0:
                        continue
                    along = sides[p, c, 0] * bx + sides[p, c, 1] * by + sides[p, c, 2] * bz
                    if tapers[p, c] > 0:  # a crack from the centre to one side, closed at its end
                        width *= 1 - t / tapers[p, c]
                        if along < 0 or width <= 0:
                            continue
                    s = per / 0.4
                    shift = c * 17.0
                    bend = 0.1 * min(1.0, 3 * t) * tile_value(tile, bx * s + oy + shift, by * s + oz, bz * s + ox)
                    fine = tile_value(tile, 4 * bx * s + oz, 4 * by * s + ox + shift, 4 * bz * s + oy)
                    bend += 0.02 * fine
                    width *= max(0.0, 1 + 0.5 * fine)
                    off = planes[p, c, 0] * bx + planes[p, c, 1] * by + planes[p, c, 2] * bz - planes[p, c, 3] + bend
                    if abs(off) * radius < width / 2:
                        free[i, j, k] = False
                        break
    return free


@njit(cache=True, nogil=True)
def near_pairs(centres, radii, box, skin, order):
    """Pairs of balls in a periodic box whose surfaces are within ``skin``, by a sweep along x; (m, 2) int64.

    ``order`` sorts the centres by x. Each ball looks for those that are no larger: with its own reach, not with that
    of the largest, around which small ones are many.
    """
    n = len(order)
    pairs = np.empty((16 * n + 16, 2), np.int64)
    m = 0
    for s in range(n):
        i = order[s]
        reach = min(2 * radii[i] + skin, box[0] / 2)
        for way in (-1, 1):
            for ahead in range(1, n):
                at = s + way * ahead
                wraps = at < 0 or at >= n
                j = order[at % n]
                dx = abs(centres[j, 0] - centres[i, 0] + (way * box[0] if wraps else 0.0))
                if dx >= reach:
                    break
                if radii[j] > radii[i] or (radii[j] == radii[i] and j < i):
                    continue
                near = radii[i] + radii[j] + skin
                dy = centres[j, 1] - centres[i, 1]
                dy -= box[1] * round(dy / box[1])
                dz = centres[j, 2] - centres[i, 2]
                dz -= box[2] * round(dz / box[2])
                if dx * dx + dy * dy + dz * dz < near * near:
                    if m == len(pairs):
                        pairs = np.concatenate((pairs, np.empty_like(pairs)))
                    pairs[m, 0], pairs[m, 1] = i, j
                    m += 1
    return pairs[:m]


@njit(cache=True, nogil=True)
def push_apart(pairs, centres, box, matrices, outer, inverse_mass, tolerance, moves):
    """Add to ``moves`` what separates every overlapping pair of ellipsoids; returns the deepest overlap as a share.

    Perram & Wertheim, J. Comput. Phys. 58, 409 (1985): F = max over λ of λ(1−λ) rᵀ[(1−λ)A + λB]⁻¹r with A = RᵀD²R, and
    both ellipsoids scaled by √F touch. Any λ gives a lower bound of F: few steps of a search never hide an overlap.
    """
    worst = 0.0
    r = np.empty(3)
    c = np.empty(6)
    n = np.empty(3)
    for q in range(len(pairs)):
        i, j = pairs[q]
        for axis in range(3):
            d = centres[j, axis] - centres[i, axis]
            r[axis] = d - box[axis] * round(d / box[axis])
        distance = sqrt(r[0] ** 2 + r[1] ** 2 + r[2] ** 2)
        if distance >= outer[i] + outer[j]:
            continue
        a, b = matrices[i], matrices[j]
        best, low, high = 0.0, 0.02, 0.98
        bx = by = bz = 0.0
        for _ in range(12):
            third = (high - low) / 3
            f0 = 0.0
            for side in range(2):
                lam = low + third if side == 0 else high - third
                for m in range(6):
                    c[m] = (1 - lam) * a[m] + lam * b[m]
                # inverse of the symmetric matrix (xx, yy, zz, xy, xz, yz) applied to r
                xx, yy, zz = c[1] * c[2] - c[5] * c[5], c[0] * c[2] - c[4] * c[4], c[0] * c[1] - c[3] * c[3]
                xy, xz, yz = c[4] * c[5] - c[3] * c[2], c[3] * c[5] - c[4] * c[1], c[3] * c[4] - c[0] * c[5]
                det = c[0] * xx + c[3] * xy + c[4] * xz
                n[0] = (xx * r[0] + xy * r[1] + xz * r[2]) / det
                n[1] = (xy * r[0] + yy * r[1] + yz * r[2]) / det
                n[2] = (xz * r[0] + yz * r[1] + zz * r[2]) / det
                f = lam * (1 - lam) * (r[0] * n[0] + r[1] * n[1] + r[2] * n[2])
                if f > best:
                    best, bx, by, bz = f, n[0], n[1], n[2]
                if side == 0:
                    f0 = f
                elif f0 < f:
                    low = low + third
                else:
                    high = high - third
            if best >= 1:
                break
        if best >= 1:
            continue
        length = sqrt(bx * bx + by * by + bz * bz)
        if length < 1e-12:
            bx, by, bz, length = 1.0, 0.0, 0.0, 1.0
        scale = sqrt(max(best, 1e-6))
        # along the contact normal: the distance at which the pair touches, less the distance there is
        needed = (1 / scale - 1) * abs(r[0] * bx + r[1] * by + r[2] * bz) / length
        worst = max(worst, 1 - scale)
        if 1 - scale < tolerance:
            continue
        share = inverse_mass[i] / (inverse_mass[i] + inverse_mass[j])
        for axis in range(3):
            u = (bx if axis == 0 else by if axis == 1 else bz) / length
            moves[i, axis] -= share * needed * u
            moves[j, axis] += (1 - share) * needed * u
    return worst
