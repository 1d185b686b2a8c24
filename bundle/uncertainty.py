"""Label uncertainty: perturb the interfaces of a segmentation and see what becomes of its properties.

After Su et al., npj Comput. Mater. 8:30 (2022): a drawn or predicted boundary is known to within a few voxels only, so
a property is a distribution over the labels that are as good as the one at hand. Two perturbations:
``perturb_interface`` is that paper's, voxels at random that spread into their neighbourhood; ``shift_interface`` moves
the interface by a smooth random field of a given width. Labels are integer arrays of 2 or 3 axes with any number of
phases; lengths are in voxels, since the uncertainty is the grid's and not the material's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy import ndimage as ndi

FWHM_PER_SD = float(2 * np.sqrt(2 * np.log(2)))
_AT_ONCE = 2**22  # voxels painted in one go
_ROUNDS = 40


def interface(labels: np.ndarray) -> np.ndarray:
    """Voxels, on both sides, that share a face (2D: an edge) with another phase: bool of the labels' shape."""
    at = np.zeros(labels.shape, bool)
    for low, high in _neighbours(labels.ndim):
        differs = labels[low] != labels[high]
        at[low] |= differs
        at[high] |= differs
    return at


def perturb_interface(
    labels: np.ndarray,
    rng: np.random.Generator,
    share: float = 0.1,
    iterations: int = 5,
    radius_voxels: float = 2.5,
    keep_fractions: bool = False,
) -> np.ndarray:
    """Let voxels of the interface, chosen at random, spread over a ball around them (Su et al. 2022).

    Each of ``iterations`` times a share of the voxels at the interface, on all of its sides, paints a ball with its own
    label, so that either phase may grow. Where balls overlap a random one of them wins.

    Args:
        labels: integers of shape (x, y) or (x, y, z).
        rng: chooses the voxels.
        share: of the interface voxels that spread in an iteration, 0 to 1.
        iterations: at least 0.
        radius_voxels: reach of the ball; below 1 nothing moves.
        keep_fractions: give each phase the number of voxels it had, by ``restore_fractions``. Without, convex phases
            drift.

    Returns:
        labels of the same shape and dtype. The width of the displacement follows from the three numbers and the
        structure: see ``interface_displacement`` and ``perturb_to_width``.

    Raises:
        ValueError: a value outside its range.
    """
    labels = _checked(labels)
    if not 0 <= share <= 1:
        raise ValueError(f"share={share!r} must lie in [0, 1]")
    if type(iterations) is not int or iterations < 0:
        raise ValueError(f"iterations={iterations!r} must be an integer of at least 0")
    if not 0 <= radius_voxels <= 50:
        raise ValueError(f"radius_voxels={radius_voxels!r} must lie in [0, 50]")
    out = labels
    for _ in range(iterations):
        out = _spread(out, rng, share, radius_voxels)
    return restore_fractions(out, labels, rng) if keep_fractions else out.copy()


def perturb_to_width(
    labels: np.ndarray,
    rng: np.random.Generator,
    fwhm_voxels: float,
    share: float = 0.1,
    radius_voxels: float = 2.5,
    max_iterations: int = 50,
    keep_fractions: bool = False,
) -> tuple[np.ndarray, list[float]]:
    """``perturb_interface`` with as many iterations as bring the FWHM of the displacement nearest to the one asked.

    Args:
        fwhm_voxels: full width at half maximum of the displacement, as of the Gaussian with the same variance.
        others: as in ``perturb_interface``.

    Returns:
        labels; the FWHM after 0, 1, 2, … iterations, the last one being that of the labels (before fractions are
        restored) or one more.

    Raises:
        ValueError: the width is not reached within ``max_iterations``; names the one that was.
    """
    labels = _checked(labels)
    if not fwhm_voxels >= 0:
        raise ValueError(f"fwhm_voxels={fwhm_voxels!r} must be at least 0")
    depths = signed_distances(labels)
    widths, last, out = [0.0], labels, labels
    while widths[-1] < fwhm_voxels:
        if len(widths) > max_iterations:
            raise ValueError(
                f"fwhm_voxels={fwhm_voxels!r} was not reached in {max_iterations} iterations of share={share!r}, "
                f"radius_voxels={radius_voxels!r}: {max(widths):.3g} was; take a larger share or radius_voxels"
            )
        last, out = out, _spread(out, rng, share, radius_voxels)
        widths.append(FWHM_PER_SD * float(np.std(_displacements(depths, out))))
    if len(widths) > 1 and fwhm_voxels - widths[-2] < widths[-1] - fwhm_voxels:
        out = last
    return restore_fractions(out, labels, rng) if keep_fractions else out.copy(), widths


def shift_interface(
    labels: np.ndarray,
    rng: np.random.Generator,
    fwhm_voxels: float = 4.0,
    correlation_voxels: float = 8.0,
    keep_fractions: bool = False,
    distances: Mapping[int, np.ndarray] | None = None,
) -> np.ndarray:
    """Move the interfaces by a smooth Gaussian random field: no specks, and the width is the one asked.

    Every phase k has a signed distance d_k, negative inside, and a field g_k; a voxel becomes the phase with the
    smallest d_k + g_k. At an interface of k and l, d_k = −d_l, so that it moves by (g_l − g_k)/2: fields of sd √2 σ
    give it the sd σ = FWHM / 2.355. Interfaces nearer to each other than they move may merge, as drawn ones would.

    Args:
        labels: integers of shape (x, y) or (x, y, z).
        rng: source of the fields.
        fwhm_voxels: full width at half maximum of the displacement.
        correlation_voxels: distance over which the field's correlation falls to exp(−1/2); at least the FWHM keeps the
            interface a graph over the old one.
        keep_fractions: give each phase the number of voxels it had, by a constant that is added to its field.
        distances: ``signed_distances(labels)``, which take most of the time, where many copies are made.

    Returns:
        labels of the same shape and dtype.

    Raises:
        ValueError: a value outside its range.
    """
    labels = _checked(labels)
    if not fwhm_voxels >= 0:
        raise ValueError(f"fwhm_voxels={fwhm_voxels!r} must be at least 0")
    if not correlation_voxels > 0:
        raise ValueError(f"correlation_voxels={correlation_voxels!r} must be above 0")
    if fwhm_voxels == 0:
        return labels.copy()
    heights = []
    for depth in (distances or signed_distances(labels)).values():
        field = correlated_field(labels.shape, correlation_voxels, rng)
        field *= np.float32(np.sqrt(2) * fwhm_voxels / FWHM_PER_SD)
        heights.append(np.add(field, depth, out=field))
    return _lowest(heights, labels, labels if keep_fractions else None)


def correlated_field(shape: tuple[int, ...], correlation_voxels: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian field with correlation exp(−r² / 2 L²), mean 0 and variance 1 over its ensemble; float32.

    White noise, smoothed by a Gaussian of sd L/√2 beyond every face, so that it is not periodic.
    """
    if 1 in shape:
        return correlated_field(tuple(n for n in shape if n > 1), correlation_voxels, rng).reshape(shape)
    sd = correlation_voxels / np.sqrt(2)
    coarse = max(int(sd / 2), 1)  # a smooth field is drawn on a coarser grid, sd ≥ 2 of its voxels, and interpolated
    sd /= coarse
    margin = int(np.ceil(4 * sd)) + 2
    small = tuple(-(-n // coarse) + 3 + 2 * margin for n in shape)
    field = ndi.gaussian_filter(rng.standard_normal(small, np.float32), sd, mode="constant", truncate=4.0)
    kernel = ndi.gaussian_filter1d(np.eye(1, 2 * margin + 1, margin)[0], sd, truncate=4.0)
    field /= np.float32((kernel**2).sum() ** (len(shape) / 2))
    field = field[(slice(margin, -margin),) * len(shape)]
    offset = rng.uniform(0, 1, len(shape))
    for axis, n in enumerate(shape):
        at = (np.arange(n) / coarse + offset[axis]) if coarse > 1 else np.arange(n)
        field = _resample(field, at, axis)
    return field


def signed_distance(inside: np.ndarray) -> np.ndarray:
    """Distance of each voxel's centre to the interface, half way between centres, negative inside; float32.

    Exact for a plane along the axes; a slanted interface is up to half a voxel farther than it says.

    Infinite where a phase fills everything or is absent.
    """
    if inside.all() or not inside.any():
        return np.full(inside.shape, -np.inf if inside.all() else np.inf, np.float32)
    depth = ndi.distance_transform_edt(~inside).astype(np.float32)
    depth -= ndi.distance_transform_edt(inside)
    depth -= np.sign(depth) * np.float32(0.5)
    return depth


def signed_distances(labels: np.ndarray) -> dict[int, np.ndarray]:
    """``signed_distance`` of every phase."""
    phases = _phases(labels)
    depths = {phase: signed_distance(labels == phase) for phase in phases[: 1 if len(phases) == 2 else None]}
    if len(phases) == 2:
        depths[phases[1]] = -depths[phases[0]]
    return depths


def restore_fractions(labels: np.ndarray, reference: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give each phase the number of voxels that it has in the reference: each phase's interface moves by one distance.

    A voxel becomes the phase with the smallest d_k − c_k, signed distances less a constant for each phase. Less than a
    layer of voxels has to move as a rule; which ones of it, patches of a random field say. Two phases are met to the
    voxel, more to 1e-4 of the volume. A phase that has vanished does not come back.
    """
    heights = []
    for depth in signed_distances(labels).values():
        patches = np.tanh(correlated_field(labels.shape, 6.0, rng))  # below half a layer: no voxel moves without need
        heights.append(depth + np.float32(0.3) * patches)
    return _lowest(heights, labels, reference)


def _lowest(heights: list[np.ndarray], labels: np.ndarray, reference: np.ndarray | None) -> np.ndarray:
    """The phase whose height is lowest, after shifts that give each its count in the reference, where there is one.

    Phases take turns: the shift of one is set by a rank to meet its count against the others as they stand (coordinate
    ascent of semi-discrete transport; Aurenhammer, Hoffmann and Aronov 1998). It settles in a few rounds.
    """
    phases = np.array(_phases(labels), labels.dtype)
    low = np.stack(heights).reshape(len(phases), -1)
    if reference is not None and len(phases) > 1:
        target = np.array([np.count_nonzero(reference == k) for k in phases])
        target = np.floor(target * (labels.size / max(target.sum(), 1))).astype(int)
        for _ in range(_ROUNDS):
            counts = np.bincount(low.argmin(0), minlength=len(phases))
            if np.abs(counts - target).max() <= 1e-4 * labels.size and len(phases) > 2:
                break
            for k in range(len(phases) if len(phases) > 2 else 1):
                if 0 < target[k] < labels.size:
                    gap = low[k] - np.delete(low, k, 0).min(0)
                    edge = np.partition(gap, [target[k] - 1, target[k]])[target[k] - 1 : target[k] + 1]
                    low[k] -= edge.mean()
            if len(phases) == 2:
                break
    return phases[low.argmin(0)].reshape(labels.shape)


def interface_displacement(before: np.ndarray, after: np.ndarray, phase: int | None = None, bin_voxels: float = 1.0):
    """How far the interface has moved: the signed distance to the old interface, at every face of the new one.

    Args:
        before, after: labels of the same shape.
        phase: whose interface, outwards positive; None for all phases together, which makes the histogram symmetric.
        bin_voxels: width of the histogram's bins.

    Returns:
        dict: ``mean``, ``sd``, ``fwhm`` (2.355 sd, that of the Gaussian with the same variance), ``fwhm_histogram``
        (between the points where the histogram crosses half its maximum), ``n_faces``, ``bin_centres``, ``density``
        (per voxel; its integral is 1), and ``volume_drift``: for each phase, the change of its volume fraction.

    Raises:
        ValueError: shapes that differ, or no interface.
    """
    before, after = _checked(before), _checked(after)
    if before.shape != after.shape:
        raise ValueError(f"before has the shape {before.shape} and after {after.shape}: they must be the same")
    depths = signed_distances(before) if phase is None else {phase: signed_distance(before == phase)}
    moved = _displacements(depths, after)
    if not moved.size:
        raise ValueError(f"phase={phase!r} has no interface in one of the two")
    half = max(np.ceil(np.abs(moved).max() / bin_voxels), 1) + 0.5
    edges = np.arange(-half, half + 1) * bin_voxels
    density, _ = np.histogram(moved, edges, density=True)
    centres = (edges[1:] + edges[:-1]) / 2
    sd = float(moved.std())
    return {
        "mean": float(moved.mean()),
        "sd": sd,
        "fwhm": FWHM_PER_SD * sd,
        "fwhm_histogram": _width_at_half(centres, density),
        "n_faces": int(moved.size),
        "bin_centres": centres.tolist(),
        "density": density.tolist(),
        "volume_drift": volume_drift(before, after),
    }


def volume_drift(before: np.ndarray, after: np.ndarray) -> dict[int, float]:
    """Change of each phase's volume fraction."""
    return {int(k): float((after == k).mean() - (before == k).mean()) for k in _phases(before)}


def property_distribution(
    labels: np.ndarray,
    measure: Callable[[np.ndarray], Mapping],
    perturb: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    n: int,
    rng: np.random.Generator,
    percentiles: tuple[float, ...] = (2.5, 50, 97.5),
) -> dict:
    """Distribution of every property over ``n`` perturbed labels.

    Args:
        labels: the segmentation.
        measure: labels to a dictionary of numbers, nested as deep as it likes; what is no number is left out.
        perturb: labels and a generator to labels, such as ``partial(perturb_interface, share=0.1)``.
        n: number of perturbed labels, at least 2.
        rng: each of them gets a generator spawned from it, so the first ones do not depend on ``n``.
        percentiles: which to report.

    Returns:
        dict: ``properties``, a dictionary by name (nested names joined by /) of ``value`` (of the labels as they
        are), ``mean``, ``sd``, ``n`` (finite values, of which the rest is made), ``p2.5``, … and ``values``;
        ``displacement``, of the first label, as from ``interface_displacement``; ``volume_drift``, for each phase the
        mean over the labels.

    Raises:
        ValueError: ``n`` below 2.
    """
    if type(n) is not int or n < 2:
        raise ValueError(f"n={n!r} must be an integer of at least 2")
    labels = _checked(labels)
    truth = _flat(measure(labels))
    rows, drifts, displacement = [], [], None
    for child in rng.spawn(n):
        out = perturb(labels, child)
        rows.append(_flat(measure(out)))
        drifts.append(volume_drift(labels, out))
        if displacement is None:
            displacement = interface_displacement(labels, out)
    properties = {}
    for name in dict.fromkeys([*truth, *(k for row in rows for k in row)]):
        values = [row.get(name, np.nan) for row in rows]
        finite = [v for v in values if np.isfinite(v)]
        properties[name] = {
            "value": truth.get(name, np.nan),
            "mean": float(np.mean(finite)) if finite else np.nan,
            "sd": float(np.std(finite, ddof=1)) if len(finite) > 1 else np.nan,
            "n": len(finite),
            **{f"p{p:g}": float(np.percentile(finite, p)) if finite else np.nan for p in percentiles},
            "values": values,
        }
    drift = {k: float(np.mean([d[k] for d in drifts])) for k in drifts[0]}
    return {"properties": properties, "displacement": displacement, "volume_drift": drift}


def _spread(labels: np.ndarray, rng: np.random.Generator, share: float, radius_voxels: float) -> np.ndarray:
    at = np.flatnonzero(interface(labels))
    count = int(rng.binomial(len(at), share))
    reach = int(radius_voxels)
    if not count or not reach:
        return labels
    at = rng.choice(at, count, replace=False)  # in random order: of two balls that overlap the later one wins
    padded = np.pad(np.ascontiguousarray(labels), reach)  # a volume read from a TIFF is in Fortran's order
    steps = np.array(padded.strides) // padded.itemsize
    where = np.stack(np.unravel_index(at, labels.shape)) + reach
    start = (where * steps[:, None]).sum(0)
    ball = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * labels.ndim, indexing="ij"), -1)
    ball = ball.reshape(-1, labels.ndim)
    offsets = (ball[(ball**2).sum(1) <= radius_voxels**2] * steps).sum(1)
    flat, own = padded.ravel(), labels.ravel()[at]
    each = max(_AT_ONCE // len(offsets), 1)
    for k in range(0, count, each):
        voxels = start[k : k + each, None] + offsets
        flat[voxels.ravel()] = np.repeat(own[k : k + each], len(offsets))
    return flat.reshape(padded.shape)[(slice(reach, -reach),) * labels.ndim].copy()


def _displacements(depths: Mapping[int, np.ndarray], after: np.ndarray) -> np.ndarray:
    """Signed distances at the faces of the new interfaces: the mean of the two voxels that share the face."""
    values = []
    for phase, depth in depths.items():
        if not np.isfinite(depth.flat[0]):
            continue
        inside = after == phase
        for low, high in _neighbours(after.ndim):
            face = inside[low] != inside[high]
            values.append((depth[low][face] + depth[high][face]) / 2)
    return np.concatenate(values) if values else np.empty(0, np.float32)


def _neighbours(ndim: int) -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """For each axis, the slices of the voxels that have a next one, and of the next ones."""
    whole = (slice(None),) * ndim
    return [
        ((*whole[:a], slice(None, -1), *whole[a + 1 :]), (*whole[:a], slice(1, None), *whole[a + 1 :]))
        for a in range(ndim)
    ]


def _resample(field: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    """Cubic (Catmull-Rom) interpolation of one axis at positions that lie a voxel inside its ends."""
    first = np.floor(at).astype(int)
    u = (at - first).astype(np.float32)
    if not u.any():
        return np.ascontiguousarray(field.take(first, axis))
    weights = (
        (-u + 2 * u**2 - u**3) / 2,
        (2 - 5 * u**2 + 3 * u**3) / 2,
        (u + 4 * u**2 - 3 * u**3) / 2,
        (u**3 - u**2) / 2,
    )
    along = [-1 if a == axis else 1 for a in range(field.ndim)]
    out = np.zeros((), np.float32)
    for k, weight in enumerate(weights):
        out = out + field.take(np.maximum(first + k - 1, 0), axis) * weight.reshape(along)
    return out


def _width_at_half(centres: np.ndarray, density: np.ndarray) -> float:
    """Distance between the outermost crossings of half the maximum, each interpolated between two bins."""
    half = density.max() / 2
    above = np.flatnonzero(density >= half)
    low, high = above[0], above[-1]
    step = centres[1] - centres[0]
    left = (density[low] - half) / (density[low] - density[low - 1]) if low > 0 else 0.5
    right = (density[high] - half) / (density[high] - density[high + 1]) if high + 1 < len(density) else 0.5
    return float((high - low + left + right) * step)


def _phases(labels: np.ndarray) -> list[int]:
    return np.unique(labels).tolist()


def _checked(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim not in (2, 3) or labels.dtype.kind not in "iub" or not labels.size:
        raise ValueError(f"labels of shape {labels.shape} and type {labels.dtype} must be integers with 2 or 3 axes")
    return labels


def _flat(measured: Mapping, prefix: str = "") -> dict[str, float]:
    """A nested dictionary's numbers by their path."""
    out = {}
    for key, value in measured.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
            out[f"{prefix}{key}"] = float(value)
    return out
