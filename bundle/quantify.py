"""The numbers that describe a label volume, with units: `properties` measures them all, each has a function of its own.

    numbers = properties(labels, voxel_size_um=0.05, class_names=["pore", "Ni", "YSZ"])

`labels` is an integer array (x, y) or (x, y, z) of class numbers. The voxel size is one number in µm, or one per
axis. What each number means and where it comes from stands at its function, all of which this module gives.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product

import numpy as np
from scipy.stats import t as student

from bundle.morphology import (
    checked,
    chord_counts,
    chord_lengths,
    connectivity,
    contact_area,
    per_axis,
    triple_phase_boundary,
    two_point_correlation,
    volume_fractions,
)
from bundle.objects import interface_distance, local_thickness, object_table, split_objects
from bundle.transport import Tortuosity, tortuosity_factor

__all__ = [
    "SECTIONS",
    "Tortuosity",
    "chord_counts",
    "chord_lengths",
    "confidence_intervals",
    "connectivity",
    "contact_area",
    "flat_numbers",
    "interface_distance",
    "local_thickness",
    "object_summary",
    "object_table",
    "properties",
    "representative_volume",
    "rows",
    "split_objects",
    "tortuosity_factor",
    "triple_phase_boundary",
    "two_point_correlation",
    "volume_fractions",
]

SECTIONS = (
    "interfaces",
    "triple_lines",
    "connectivity",
    "chords",
    "thickness",
    "objects",
    "correlation",
    "representative",
    "tortuosity",
)
SLOW = ("tortuosity",)  # seconds a phase and axis at 128³, minutes at 256³: only where it is asked for
PERCENTILES = (10, 50, 90)
HISTOGRAM_BINS = 40


def properties(
    labels: np.ndarray,
    voxel_size_um: float | Sequence[float],
    class_names: Sequence[str] | None = None,
    sections: Sequence[str] | None = None,
    device: str = "auto",
    progress: Callable[[str], None] | None = None,
) -> dict:
    """Every property of a label volume as one dict for JSON: nested, units in the keys, None where there is no number.

    Args:
        labels: (x, y) or (x, y, z) integers; 3 voxels or more along each axis.
        voxel_size_um: [µm] one or one per axis.
        class_names: name of each class, 0 first; default "0", "1", ... up to the largest that occurs.
        sections: which of `SECTIONS` to measure besides the volume fractions; default all but the slow tortuosity.
        device: of taufactor; auto, cpu, cuda or cuda:N.
        progress: called with the name of each section before it starts.

    Returns a dict of `shape`, `voxel_size_um`, `class_names`, `volume_fraction` and, by section:
        interfaces: `specific_surface_area_1_per_um` of each phase and `contact_area_1_per_um` of each pair
            (2D: `specific_perimeter_1_per_um`, `contact_length_1_per_um`);
        triple_lines: `triple_phase_boundary_1_per_um2` (2D: `triple_points_1_per_um2`), total and percolating;
        connectivity, chords (`chord_length_um`), thickness (`local_thickness_um`), objects, correlation
        (`two_point_correlation`, `correlation_length_um`), tortuosity: of each phase;
        representative: `representative_volume`, and `confidence_95` from sub-volumes;
        `distributions` for curves, `seconds` for each section.

    Raises:
        ValueError: labels, voxel size, names or sections out of range.
        ImportError: a section needs a library that is missing.
    """
    labels, n_classes = checked(labels, None if class_names is None else len(class_names))
    names = [str(k) for k in range(n_classes)] if class_names is None else [str(name) for name in class_names]
    if len(set(names)) != len(names):
        raise ValueError(f"class_names={names} must differ from one another")
    chosen = [s for s in SECTIONS if s not in SLOW] if sections is None else list(sections)
    if unknown := sorted(set(chosen) - set(SECTIONS)):
        raise ValueError(f"sections={unknown} must be among {', '.join(SECTIONS)}")
    size = per_axis(voxel_size_um, labels.ndim)
    result: dict = {
        "shape": list(labels.shape),
        "voxel_size_um": size,
        "class_names": names,
        "volume_fraction": _by_name(names, volume_fractions(labels, n_classes)),
    }
    distance = None
    seconds = {}
    for section in [s for s in SECTIONS if s in chosen]:
        if progress:
            progress(section)
        start = time.perf_counter()
        if section in ("thickness", "objects") and distance is None:
            distance = interface_distance(labels, size)
        if section == "tortuosity":
            found = {"tortuosity": _tortuosity(labels, size, names, device)}
        elif section in ("thickness", "objects"):
            found = _MEASURES[section](labels, size, names, distance)
        else:
            found = _MEASURES[section](labels, size, names)
        result.setdefault("distributions", {}).update(found.pop("distributions", {}))
        result |= found
        seconds[section] = round(time.perf_counter() - start, 3)
    if result.get("distributions"):
        result["distributions"] = result.pop("distributions")  # last, since they are long
    else:
        result.pop("distributions", None)
    return _plain(result | {"seconds": seconds})


# ------------------------------------------------------------------------------------------ the sections


def _interfaces(labels: np.ndarray, size: list[float], names: list[str]) -> dict:
    area = contact_area(labels, size, len(names))
    pairs = {f"{names[i]}|{names[j]}": area[i, j] for i, j in combinations(range(len(names)), 2)}
    own, shared = ("surface_area", "area") if labels.ndim == 3 else ("perimeter", "length")
    return {f"specific_{own}_1_per_um": _by_name(names, area.sum(axis=1)), f"contact_{shared}_1_per_um": pairs}


def _triple_lines(labels: np.ndarray, size: list[float], names: list[str]) -> dict:
    kind = "triple_phase_boundary" if labels.ndim == 3 else "triple_points"
    return {f"{kind}_1_per_um2": triple_phase_boundary(labels, size)}


def _connectivity(labels: np.ndarray, size: list[float], names: list[str]) -> dict:
    return {"connectivity": _by_name(names, connectivity(labels, len(names)))}


def _chords(labels: np.ndarray, size: list[float], names: list[str]) -> dict:
    counts = chord_counts(labels, len(names))
    curves = {}
    for k, name in enumerate(names):
        lengths = [np.arange(c.shape[1]) * h for c, h in zip(counts, size, strict=True)]
        curves[name] = _histogram(np.concatenate(lengths), min(size), np.concatenate([c[k] for c in counts]))
    return {
        "chord_length_um": _by_name(names, chord_lengths(labels, size, len(names))),
        "distributions": {"chord_length_um": curves},
    }


def _thickness(labels: np.ndarray, size: list[float], names: list[str], distance: np.ndarray) -> dict:
    diameter = local_thickness(labels, size, distance)
    values = [diameter[labels == k] for k in range(len(names))]
    return {
        "local_thickness_um": _by_name(names, [_statistics(v) for v in values]),
        "distributions": {"local_thickness_um": _by_name(names, [_histogram(v, min(size)) for v in values])},
    }


def _objects(labels: np.ndarray, size: list[float], names: list[str], distance: np.ndarray) -> dict:
    table = object_table(labels, size, split_objects(labels, size, distance))
    box = math.prod(n * h for n, h in zip(labels.shape, size, strict=True))
    curves = {}
    for k, name in enumerate(names):
        mine = table["phase"] == k
        curves[name] = _histogram(table["diameter_um"][mine], min(size), table["weight"][mine])
    summary = [object_summary(table, k, box) for k in range(len(names))]
    return {"objects": _by_name(names, summary), "distributions": {"object_diameter_um": curves}}


def object_summary(table: Mapping[str, np.ndarray], phase: int, box: float) -> dict:
    """What `object_table` says of one phase: counts, and means over the objects inside with their border weights.

    box: [µm³, in 2D µm²] volume of the image.

    Returns `count`; `count_inside`, which touch no face and carry the means; `number_density_1_per_um3` (2D `um2`);
    `diameter_um`: mean, sd and percentiles over the objects, and `volume_mean`: weighted by volume;
    `sphericity_mean`, `aspect_ratio_mean`: long over short axis; `long_axis`, `short_axis`: mean direction (unit
    vector) and `order`, 0 for directions at random and 1 for parallel ones (the largest eigenvalue λ of the mean of
    u ⊗ u as (d λ − 1) / (d − 1)).
    """
    mine = table["phase"] == phase
    inside = mine & table["inside"]
    ndim = table["centre_um"].shape[1]
    volume, unit = ("volume_um3", "um3") if ndim == 3 else ("area_um2", "um2")
    weight = table["weight"][inside]
    sphericity, shape_weight = table["sphericity"][inside], weight
    known = np.isfinite(sphericity)
    result = {
        "count": int(mine.sum()),
        "count_inside": int(inside.sum()),
        f"number_density_1_per_{unit}": weight.sum() / box,
        "diameter_um": _statistics(table["diameter_um"][inside], weight)
        | {"volume_mean": _mean(table["diameter_um"][inside], weight * table[volume][inside])},
        "sphericity_mean": _mean(sphericity[known], shape_weight[known]),
        "aspect_ratio_mean": _mean((table["long_um"] / table["short_um"])[inside][known], shape_weight[known]),
    }
    for axis in ("long_axis", "short_axis"):
        directions, weights = table[axis][inside][known], shape_weight[known]
        if not len(directions):
            result[axis] = {"order": None, "direction": None}
            continue
        tensor = np.einsum("n,ni,nj->ij", weights / weights.sum(), directions, directions)
        values, vectors = np.linalg.eigh(tensor)
        mean = vectors[:, -1] * np.copysign(1, vectors[np.abs(vectors[:, -1]).argmax(), -1])
        result[axis] = {"order": (ndim * values[-1] - 1) / (ndim - 1), "direction": mean}
    return result


def _correlation(labels: np.ndarray, size: list[float], names: list[str]) -> dict:
    distance, curves = two_point_correlation(labels, size, len(names))
    lengths = []
    for curve in curves:
        spread = curve[0] - curve[0] ** 2
        below = np.flatnonzero(curve - curve[0] ** 2 < spread / math.e) if spread > 0 else []
        lengths.append(distance[below[0]] if len(below) else None)
    return {
        "correlation_length_um": _by_name(names, lengths),
        "two_point_correlation": {"distance_um": distance, **_by_name(names, curves)},
    }


def _representative(labels: np.ndarray, size: list[float], names: list[str]) -> dict:
    parts = 2 if labels.ndim == 3 else 3
    result = {"representative_volume": representative_volume(labels, size, names)}
    if min(labels.shape) // parts >= 3:
        result["confidence_95"] = confidence_intervals(labels, lambda part: flat_numbers(part, size, names), parts)
    return result


def _tortuosity(labels: np.ndarray, size: list[float], names: list[str], device: str) -> dict:
    return {
        name: {
            "xyz"[axis]: tortuosity_factor(labels == k, size, axis, device=device).as_json()
            for axis in range(labels.ndim)
        }
        for k, name in enumerate(names)
    }


_MEASURES: dict[str, Callable[..., dict]] = {
    "interfaces": _interfaces,
    "triple_lines": _triple_lines,
    "connectivity": _connectivity,
    "chords": _chords,
    "thickness": _thickness,
    "objects": _objects,
    "correlation": _correlation,
    "representative": _representative,
}


# ------------------------------------------------------------------------------------------ representative volume


def representative_volume(
    labels: np.ndarray, voxel_size_um: float | Sequence[float], class_names: Sequence[str]
) -> list[dict]:
    """How far the volume fractions scatter between windows of one size, for ever smaller windows.

    Each axis is cut into 2, 3, 4, 6, 8 ... parts of at least 4 voxels; what is left over at the end of an axis is
    not used. Returns a list of dicts: `windows`: their number; `window_um`: [µm] edges; `fraction_sd`: {class: sample
    standard deviation}. Where sd falls as 1 / √volume, windows are independent and larger than the structure.
    """
    labels, n_classes = checked(labels, len(class_names))
    size = per_axis(voxel_size_um, labels.ndim)
    result = []
    for parts in (2, 3, 4, 6, 8, 12, 16):
        edges = [n // parts for n in labels.shape]
        if min(edges) < 4:
            break
        used = labels[tuple(slice(edge * parts) for edge in edges)]
        blocks = used.reshape([m for edge in edges for m in (parts, edge)])
        inner = tuple(range(1, 2 * labels.ndim, 2))
        shares = [(blocks == k).mean(axis=inner).std(ddof=1) for k in range(n_classes)]
        window_um = [edge * h for edge, h in zip(edges, size, strict=True)]
        result.append(
            {"windows": parts**labels.ndim, "window_um": window_um, "fraction_sd": _by_name(class_names, shares)}
        )
    return result


def confidence_intervals(
    labels: np.ndarray, measure: Callable[[np.ndarray], Mapping[str, float | None]], parts: int = 2
) -> dict[str, dict[str, float | int | None]]:
    """95 % confidence intervals of the mean, from sub-volumes taken as independent samples of the material.

    measure: gives {name: number} for a part of `labels`; parts: cuts along each axis, parts^d sub-volumes in all.

    Returns {name: {"mean", "low", "high", "n"}}: Student's t over the n sub-volumes that have the number, None for
    less than two. Too narrow where a sub-volume is not larger than the structure (see `representative_volume`).

    Raises:
        ValueError: parts below 2 or more than the shortest axis holds in thirds.
    """
    if parts < 2 or min(labels.shape) // parts < 3:
        raise ValueError(f"parts={parts} must be 2 to {min(labels.shape) // 3} for shape {labels.shape}")
    cuts = [np.linspace(0, n, parts + 1).astype(int) for n in labels.shape]
    found = [
        measure(labels[tuple(slice(cut[i], cut[i + 1]) for cut, i in zip(cuts, index, strict=True))])
        for index in product(range(parts), repeat=labels.ndim)
    ]
    result: dict[str, dict[str, float | int | None]] = {}
    for name in found[0]:
        values = np.array([f[name] for f in found if f[name] is not None], float)
        n = len(values)
        mean = float(values.mean()) if n else None
        half = float(student.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)) if n > 1 else None
        ends = (None, None) if half is None else (mean - half, mean + half)
        result[name] = {"mean": mean, "low": ends[0], "high": ends[1], "n": n}
    return result


def flat_numbers(
    labels: np.ndarray, voxel_size_um: float | Sequence[float], class_names: Sequence[str]
) -> dict[str, float | None]:
    """The quick numbers of a volume, {"quantity/class": number}: fraction, specific surface (2D: perimeter), contact
    of each pair, mean chord. What `confidence_intervals` measures by default."""
    names = list(class_names)
    found = {"volume_fraction": _by_name(names, volume_fractions(labels, len(names)).tolist())}
    found |= _interfaces(*_checked_pair(labels, voxel_size_um), names)
    found["chord_length_um"] = _by_name(names, [c["mean"] for c in chord_lengths(labels, voxel_size_um, len(names))])
    return {f"{quantity}/{name}": value for quantity, values in found.items() for name, value in values.items()}


def _checked_pair(labels: np.ndarray, voxel_size_um: float | Sequence[float]) -> tuple[np.ndarray, list[float]]:
    labels, _ = checked(labels, None)
    return labels, per_axis(voxel_size_um, labels.ndim)


# ------------------------------------------------------------------------------------------ as a table


def rows(found: Mapping) -> list[dict]:
    """The scalar numbers of `properties` as rows for a table or CSV: `quantity`, `of` (class or pair), `value`, `unit`,
    `low`, `high` (the 95 % interval where there is one)."""
    skipped = ("shape", "voxel_size_um", "class_names", "distributions", "two_point_correlation", "seconds")
    intervals = found.get("confidence_95", {})
    result = []
    for quantity, content in found.items():
        if quantity in (*skipped, "representative_volume", "confidence_95"):
            continue
        # triple lines are a property of the whole: their keys are no classes
        whole = quantity.startswith("triple")
        for of, value in content.items() if not whole else [("all", content)]:
            for path, number in _leaves(value):
                name, unit = _split_unit(".".join([quantity, *path]))
                key = f"{quantity}/{of}" if path in ((), ("mean",)) else ""
                interval = intervals.get(key, {})
                result.append(
                    {
                        "quantity": name,
                        "of": of,
                        "value": number,
                        "unit": unit,
                        "low": interval.get("low"),
                        "high": interval.get("high"),
                    }
                )
    return result


_UNITS = {"_1_per_um3": "1/µm³", "_1_per_um2": "1/µm²", "_1_per_um": "1/µm", "_um": "µm"}


def _split_unit(path: str) -> tuple[str, str]:
    for ending, unit in _UNITS.items():
        head, found, tail = path.partition(ending)
        if found and (not tail or tail[0] == "."):
            return head + tail, unit
    return path, ""


def _leaves(value: object, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], object]]:
    if isinstance(value, Mapping):
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, (*path, str(key)))]
    return [(path, value)] if not isinstance(value, list) else []


# ------------------------------------------------------------------------------------------ small things


def _by_name(names: Sequence[str], values: Sequence) -> dict:
    return dict(zip(names, values, strict=True))


def _mean(values: np.ndarray, weights: np.ndarray) -> float | None:
    return float(np.average(values, weights=weights)) if len(values) and weights.sum() > 0 else None


def _statistics(values: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float | None]:
    """mean, sd and percentiles, each value with its weight; None without a value or of values that are NaN."""
    values = np.asarray(values, np.float64)
    if not len(values) or not np.isfinite(values).all():
        return dict.fromkeys(["mean", "sd", *(f"p{p}" for p in PERCENTILES)])
    if weights is None:
        found = np.percentile(values, PERCENTILES)
        mean, sd = float(values.mean()), float(values.std())
    else:
        order = np.argsort(values)
        reached = (np.cumsum(weights[order]) - weights[order] / 2) / weights.sum()
        found = np.interp(np.array(PERCENTILES) / 100, reached, values[order])
        mean = float(np.average(values, weights=weights))
        sd = math.sqrt(float(np.average((values - mean) ** 2, weights=weights)))
    return {"mean": mean, "sd": sd} | {f"p{p}": float(v) for p, v in zip(PERCENTILES, found, strict=True)}


def _histogram(values: np.ndarray, width: float, weights: np.ndarray | None = None) -> dict[str, np.ndarray] | None:
    """`edges` [µm] and `share` of each bin, sum 1; None where there is nothing. Bins are `width` or wider."""
    kept = np.isfinite(values) if weights is None else np.isfinite(values) & (weights > 0)
    if not kept.any():
        return None
    bins = int(values[kept].max() / width + 0.5) + 1
    step = width * math.ceil(bins / HISTOGRAM_BINS)
    edges = (np.arange(math.ceil(bins * width / step) + 1) - 0.5 * width / step) * step  # whole lengths inside the bins
    share, edges = np.histogram(values[kept], edges, weights=None if weights is None else weights[kept])
    return {"edges": edges, "share": share / share.sum()}


def _plain(value: object) -> object:
    """Python numbers, lists and dicts for JSON; None for what is not finite."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(inner) for inner in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
