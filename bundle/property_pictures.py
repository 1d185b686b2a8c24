"""One page that shows what `bundle.quantify.properties` found: slices, table and curves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bundle.pictures import LARGEST_PICTURE, class_legend, label_colours, palette, scale_bar, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES = {
    "local_thickness_um": "local thickness [µm]",
    "chord_length_um": "chord length [µm]",
    "object_diameter_um": "object diameter [µm]",
}


def properties_figure(labels: np.ndarray, found: Mapping, title: str = "") -> Figure:
    """Slices of the labels, a table of the main numbers, distributions, correlation and representative volume.

    labels: (x, y) or (x, y, z) as measured; found: what `properties` returned. Parts that were not measured stay out.

    Returns a matplotlib Figure that no window knows; save it with ``figure.savefig``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, size = found["class_names"], found["voxel_size_um"]
    figure = Figure(figsize=(14, 10.5), layout="constrained")
    FigureCanvasAgg(figure)
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(1.15, 0.9, 1))
    planes = [(0, 1)] if labels.ndim == 2 else [(0, 1), (0, 2), (1, 2)]
    for axes, plane in zip(np.atleast_1d(top.subplots(1, len(planes))), planes, strict=True):
        index = tuple(slice(None) if i in plane else n // 2 for i, n in enumerate(labels.shape))
        step = math.ceil(max(labels.shape[i] for i in plane) / LARGEST_PICTURE)
        extent = [labels.shape[i] * size[i] for i in plane]
        show(axes, label_colours(labels[index][::step, ::step], len(names)), extent, "xyz"[plane[0]] + "xyz"[plane[1]])
        scale_bar(axes, *extent)
    shares = [f"{name} {found['volume_fraction'][name]:.1%}" for name in names]
    top.legend(handles=class_legend(shares), loc="outside right upper", frameon=False, fontsize=11)
    _table(middle.subplots(), found)

    panels = [key for key in CURVES if key in found.get("distributions", {})]
    panels += [key for key in ("two_point_correlation", "representative_volume") if found.get(key)]
    if panels:
        for axes, key in zip(np.atleast_1d(bottom.subplots(1, len(panels))), panels, strict=True):
            _PANELS.get(key, _distribution)(axes, found, key)
            axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=13)
    return figure


def _distribution(axes: Axes, found: Mapping, key: str) -> None:
    for colour, histogram in zip(
        palette(len(found["class_names"])) / 255, found["distributions"][key].values(), strict=True
    ):
        if histogram is not None:
            axes.stairs(np.array(histogram["share"]) * 100, histogram["edges"], color=colour, linewidth=1.6)
    unit = "volume [%]" if key == "local_thickness_um" else "number [%]"
    axes.set(xlabel=CURVES[key], ylabel=unit, ylim=(0, None), xlim=(0, None))


def _correlation(axes: Axes, found: Mapping, key: str) -> None:
    for colour, name in zip(palette(len(found["class_names"])) / 255, found["class_names"], strict=True):
        fraction = found["volume_fraction"][name]
        axes.plot(found[key]["distance_um"], found[key][name], color=colour, linewidth=1.6)
        axes.axhline(fraction**2, color=colour, linewidth=0.8, linestyle=":")
    axes.set(xlabel="distance [µm]", ylabel="two-point correlation", ylim=(0, None), xlim=(0, None))


def _windows(axes: Axes, found: Mapping, key: str) -> None:
    edges = [np.prod(row["window_um"]) ** (1 / len(row["window_um"])) for row in found[key]]
    for colour, name in zip(palette(len(found["class_names"])) / 255, found["class_names"], strict=True):
        axes.plot(edges, [100 * row["fraction_sd"][name] for row in found[key]], "o-", color=colour, markersize=4)
    axes.set(xlabel="window edge [µm]", ylabel="sd of the fraction [% of volume]", ylim=(0, None), xlim=(0, None))


_PANELS = {"two_point_correlation": _correlation, "representative_volume": _windows}


def _table(axes: Axes, found: Mapping) -> None:
    """The main numbers of each phase; the 95 % interval where there is one."""
    rows: dict[str, list[str]] = {"volume fraction": _cells(found, "volume_fraction")}
    for key, heading in (
        ("specific_surface_area_1_per_um", "specific surface [1/µm]"),
        ("specific_perimeter_1_per_um", "specific perimeter [1/µm]"),
        ("chord_length_um", "mean chord [µm]"),
        ("local_thickness_um", "mean local thickness [µm]"),
    ):
        if key in found:
            rows[heading] = _cells(found, key)
    nested = {
        "objects, mean diameter [µm]": ("objects", "diameter_um", "mean"),
        "objects": ("objects", "count"),
        "sphericity": ("objects", "sphericity_mean"),
        "largest component": ("connectivity", "largest_share"),
    }
    nested |= {
        f"percolates along {n}": ("connectivity", f"percolating_share_{n}") for n in "xyz"[: len(found["shape"])]
    }
    nested |= {f"tortuosity factor {n}": ("tortuosity", n, "tortuosity_factor") for n in "xyz"[: len(found["shape"])]}
    for heading, (key, *path) in nested.items():
        if key in found:
            rows[heading] = [number(_at(found[key][name], path)) for name in found["class_names"]]
    axes.axis("off")
    table = axes.table(
        cellText=list(rows.values()),
        rowLabels=list(rows),
        colLabels=found["class_names"],
        cellLoc="center",
        bbox=[0.2, 0, 0.48, 1],
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8.5)
    side = []
    for key, heading in (("contact_area_1_per_um", "contact [1/µm]"), ("contact_length_1_per_um", "contact [1/µm]")):
        side += [f"{heading}  {pair}: {number(value)}" for pair, value in found.get(key, {}).items()]
    for key, heading in (
        ("triple_phase_boundary_1_per_um2", "triple-phase boundary [1/µm²]"),
        ("triple_points_1_per_um2", "triple points [1/µm²]"),
    ):
        side += [f"{heading}  {kind}: {number(value)}" for kind, value in found.get(key, {}).items()]
    axes.text(0.71, 1, "\n".join(side[:16]), va="top", fontsize=9, transform=axes.transAxes, linespacing=1.5)


def _cells(found: Mapping, key: str) -> list[str]:
    cells = []
    for name in found["class_names"]:
        value = found[key][name]
        value = value["mean"] if isinstance(value, Mapping) else value
        interval = found.get("confidence_95", {}).get(f"{key}/{name}", {})
        text = number(value)
        if interval.get("low") is not None:
            text += f"  ({number(interval['low'])} … {number(interval['high'])})"
        cells.append(text)
    return cells


def _at(value: object, path: list[str]) -> object:
    for key in path:
        value = value[key] if isinstance(value, Mapping) else None
    return value


def number(value: object) -> str:
    """A number with four digits, – for None."""
    if value is None:
        return "–"
    return str(value) if isinstance(value, int | str) else f"{value:.4g}"
