"""How uncertain the properties of a segmentation are: perturb its interfaces many times and measure every time.

    python scripts/uncertainty.py labels.tif --voxel-size-um 0.05 --fwhm-px 4 --out results/uncertainty
    python scripts/uncertainty.py labels.tif --voxel-size-um 0.05 --method spread --tortuosity --out results/uncertainty

The labels are a TIFF, NIfTI, .npy or PNG file of class numbers 0, 1, 2 ..., or a folder of TIFF or PNG slices. The
interface moves by a random distance whose full width at half maximum (FWHM) is asked in voxels and reported as reached:
by a smooth random field (shift), or by voxels that spread into their neighbourhood (spread; Su et al. 2022).
"""

import argparse
import csv
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bundle import volume_io  # noqa: E402
from bundle.pictures import LARGEST_PICTURE, class_legend, label_colours, palette, scale_bar, show  # noqa: E402
from bundle.property_pictures import number  # noqa: E402
from bundle.quantify import SECTIONS, SLOW, properties, rows, tortuosity_factor  # noqa: E402
from bundle.uncertainty import (  # noqa: E402
    FWHM_PER_SD,
    interface_displacement,
    perturb_to_width,
    property_distribution,
    shift_interface,
    signed_distances,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("spread", "shift")
OFFERED = [s for s in SECTIONS if s not in (*SLOW, "representative")]  # no property comes from the latter
PERCENTILES = (2.5, 50, 97.5)
COLUMNS = ["quantity", "of", "unit", "value", "mean", "sd", "n", *(f"p{p:g}" for p in PERCENTILES)]
SHOWN = {
    "volume_fraction": "fraction",
    "specific_surface_area": "surface",
    "specific_perimeter": "perimeter",
    "contact_share": "contact share",
    "triple_phase_boundary.total": "triple-phase boundary",
    "triple_points.total": "triple points",
    "connectivity.largest_share": "largest component",
    "chord_length.mean": "mean chord",
    "local_thickness.mean": "mean thickness",
    "objects.diameter.mean": "mean object",
    "objects.count": "objects",
    "correlation_length": "correlation length",
    **{f"tortuosity.{axis}.tortuosity_factor": f"tortuosity {axis}" for axis in "xyz"},
}


def parse_arguments() -> argparse.Namespace:
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("labels", type=Path, help="the label volume")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--voxel-size-um",
        type=float,
        nargs="+",
        metavar="UM",
        help="voxel size in µm, one number or one per axis (x y [z]); needed where the file does not say it",
    )
    parser.add_argument("--names", nargs="+", metavar="NAME", help="name of each class, 0 first (default: 0 1 2 ...)")
    parser.add_argument("--method", choices=METHODS, default="shift", help="how interfaces move (default: shift)")
    parser.add_argument(
        "--fwhm-px", type=float, default=4.0, metavar="F", help="width of the displacement in voxels (default: 4)"
    )
    parser.add_argument(
        "--correlation-px",
        type=float,
        metavar="L",
        help="shift: distance over which displacements are alike (default: 8, or the width where that is larger)",
    )
    parser.add_argument("--share", type=float, default=0.1, help="spread: of the interface's voxels (default: 0.1)")
    parser.add_argument("--radius-px", type=float, default=2.5, metavar="R", help="spread: reach (default: 2.5)")
    parser.add_argument("--keep-fractions", action="store_true", help="give each phase the volume that it had")
    parser.add_argument("--n", type=int, default=20, help="number of perturbed labels, 2 or more (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    parser.add_argument(
        "--tortuosity", nargs="*", metavar="NAME", help="also the tortuosity factors, of these classes (default: all)"
    )
    parser.add_argument("--only", nargs="+", choices=OFFERED, metavar="SECTION", help=f"of {', '.join(OFFERED)}")
    parser.add_argument("--device", default="auto", help="of taufactor: auto, cpu, cuda or cuda:N (default: auto)")
    return parser.parse_args()


def read_labels(args: argparse.Namespace) -> tuple[np.ndarray, tuple[float, ...]]:
    """uint8 class numbers and the voxel size [µm] of each axis; fills in the class names."""
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"{args.out}: is a file; give a folder with --out")
    if args.n < 2 or args.seed < 0 or not 0 < args.fwhm_px < math.inf:
        raise ValueError(
            f"--n {args.n}, --seed {args.seed}, --fwhm-px {args.fwhm_px:g}: must be at least 2, at least 0 and above 0"
        )
    sizes = args.voxel_size_um
    labels, sizes = volume_io.read_labels(args.labels, sizes[0] if sizes and len(sizes) == 1 else sizes, args.names)
    if labels.min() == labels.max():
        raise ValueError(f"{args.labels}: holds one class only; there is no interface to move")
    args.names = args.names or [str(k) for k in range(labels.max() + 1)]
    if unknown := sorted(set(args.tortuosity or ()) - set(args.names)):
        raise ValueError(f"--tortuosity {' '.join(unknown)}: must be among {', '.join(args.names)}")
    return labels, sizes


def make_measure(args: argparse.Namespace, sizes: tuple[float, ...]) -> tuple[Callable, dict[str, tuple]]:
    """A function of labels that gives {key: number}, and what each key means: (quantity, of, unit)."""
    sections = [s for s in OFFERED if args.only is None or s in args.only]
    transported = [] if args.tortuosity is None else args.tortuosity or args.names
    meaning: dict[str, tuple] = {}

    def measure(labels: np.ndarray) -> dict[str, float]:
        found = properties(labels, sizes, args.names, sections)
        for name in transported:
            phase = labels == args.names.index(name)
            found.setdefault("tortuosity", {})[name] = {
                "xyz"[axis]: {
                    "tortuosity_factor": tortuosity_factor(phase, sizes, axis, device=args.device).as_json()[
                        "tortuosity_factor"
                    ]
                }
                for axis in range(labels.ndim)
            }
        contacts = next((v for key, v in found.items() if key.startswith("contact_")), {})
        if total := sum(contacts.values()):
            found["contact_share"] = {pair: area / total for pair, area in contacts.items()}
        numbers = {}
        for row in rows(found):
            if isinstance(row["value"], bool | str):
                continue
            key = f"{row['quantity']} {row['of']}"
            meaning.setdefault(key, (row["quantity"], row["of"], row["unit"]))
            numbers[key] = math.nan if row["value"] is None else row["value"]
        return numbers

    return measure, meaning


def make_perturb(args: argparse.Namespace, labels: np.ndarray) -> Callable:
    """A function of labels and a random generator that gives perturbed labels."""
    if args.method == "spread":
        options = {"share": args.share, "radius_voxels": args.radius_px, "keep_fractions": args.keep_fractions}
        return lambda labels, rng: perturb_to_width(labels, rng, args.fwhm_px, **options)[0]
    args.correlation_px = args.correlation_px or max(8.0, args.fwhm_px)
    distances = signed_distances(labels)
    return lambda labels, rng: shift_interface(
        labels, rng, args.fwhm_px, args.correlation_px, args.keep_fractions, distances
    )


def measure_all(args: argparse.Namespace, labels: np.ndarray, sizes: tuple[float, ...]) -> tuple[dict, np.ndarray]:
    """What goes into uncertainty.json, and the share of perturbed labels that differ in the middle slice."""
    start = time.perf_counter()
    perturb, (measure, meaning) = make_perturb(args, labels), make_measure(args, sizes)
    moved, differs = [], np.zeros(middle(labels).shape)

    def perturbed(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        out = perturb(labels, rng)
        moved.append(interface_displacement(labels, out))
        differs[:] += middle(out) != middle(labels)
        spent = time.perf_counter() - start
        left = spent / len(moved) * (args.n + 1 - len(moved))  # the labels as they are were measured too
        print(f"{spent:6.1f} s  {len(moved)} of {args.n}, about {left:.0f} s left", file=sys.stderr, flush=True)
        return out

    found = property_distribution(labels, measure, perturbed, args.n, np.random.default_rng(args.seed), PERCENTILES)
    table = []
    for key, numbers in found["properties"].items():
        named = dict(zip(COLUMNS, meaning[key], strict=False))
        table.append(named | {k: plain(v) for k, v in numbers.items()})
    method = {"name": args.method, "fwhm_px": args.fwhm_px, "keep_fractions": args.keep_fractions}
    more = ("correlation_px",) if args.method == "shift" else ("share", "radius_px")
    histogram: dict[float, float] = defaultdict(float)
    for one in moved:
        for centre, density in zip(one["bin_centres"], one["density"], strict=True):
            histogram[centre] += density / args.n
    reached = [one["fwhm"] for one in moved]
    report = {
        "input": args.labels.name,
        "shape": list(labels.shape),
        "voxel_size_um": list(sizes),
        "class_names": args.names,
        "method": method | {name: getattr(args, name) for name in more},
        "n": args.n,
        "seed": args.seed,
        "displacement": {
            "asked_fwhm_px": args.fwhm_px,
            "reached_fwhm_px": float(np.mean(reached)),
            "reached_fwhm_px_sd": float(np.std(reached, ddof=1)),
            "reached_fwhm_px_of_the_histogram": float(np.mean([one["fwhm_histogram"] for one in moved])),
            "bin_centres_px": sorted(histogram),
            "density_1_per_px": [histogram[centre] for centre in sorted(histogram)],
        },
        "volume_fraction_drift": {args.names[k]: drift for k, drift in found["volume_drift"].items()},
        "properties": table,
        "seconds": round(time.perf_counter() - start, 1),
    }
    return report, differs / args.n


def middle(labels: np.ndarray) -> np.ndarray:
    return labels if labels.ndim == 2 else labels[..., labels.shape[2] // 2]


def plain(value: object) -> object:
    """JSON has no NaN: None instead."""
    if isinstance(value, list):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def picture(labels: np.ndarray, differs: np.ndarray, report: dict) -> "Figure":
    """Slice, share of labels that differ, displacement, and the properties as relative error bars."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = report["class_names"]
    shown = [(SHOWN[p["quantity"]], p) for p in report["properties"] if p["quantity"] in SHOWN and p["value"]]
    shown = [(name, p) for name, p in shown if p["n"] > 1]
    order = list(SHOWN.values())
    shown.sort(key=lambda one: order.index(one[0]))
    figure = Figure(figsize=(14, max(7.5, 2 + 0.2 * len(shown))), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subfigures(1, 2, width_ratios=(0.8, 1))
    axes = left.subplot_mosaic([["labels", "differ"], ["moved", "moved"]])
    first, second, third = axes.values()
    step = math.ceil(max(differs.shape) / LARGEST_PICTURE)
    extent = [n * h for n, h in zip(labels.shape, report["voxel_size_um"], strict=True)][:2]
    show(first, label_colours(middle(labels)[::step, ::step], len(names)), extent, "labels")
    scale_bar(first, *extent)
    first.legend(handles=class_legend(names), loc="upper left", bbox_to_anchor=(0, -0.02), frameon=False, ncols=3)
    doubt = np.repeat(255 - (255 * differs[::step, ::step, None]).astype(np.uint8), 3, axis=-1)
    show(second, doubt, extent, f"share of {report['n']} labels that differ\n(white none, black all)")

    moved = report["displacement"]
    third.bar(moved["bin_centres_px"], moved["density_1_per_px"], width=1, color="#9dc3e6", label="reached")
    limit = 1.6 * max(moved["asked_fwhm_px"], moved["reached_fwhm_px"]) + 1
    x, sd = np.linspace(-limit, limit, 300), moved["asked_fwhm_px"] / FWHM_PER_SD
    third.plot(x, np.exp(-((x / sd) ** 2) / 2) / (sd * math.sqrt(2 * math.pi)), color="#d55e00", label="asked")
    third.set(xlabel="displacement of the interface [voxels]", ylabel="density [1/voxel]", xlim=(-limit, limit))
    third.set_title(
        f"FWHM asked {moved['asked_fwhm_px']:g}, reached {moved['reached_fwhm_px']:.2f} ± "
        f"{moved['reached_fwhm_px_sd']:.2f}\n(at half the peak {moved['reached_fwhm_px_of_the_histogram']:.2f}) voxels",
        fontsize=10,
    )
    third.legend(frameon=False, fontsize=9)
    third.spines[["top", "right"]].set_visible(False)

    axes = right.subplots()
    for k, (_, p) in enumerate(shown):
        centre, low, high = (100 * (p[key] / p["value"] - 1) for key in ("mean", "p2.5", "p97.5"))
        colour = palette(len(names))[names.index(p["of"])] / 255 if p["of"] in names else "#444444"
        axes.plot([low, high], [k, k], color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot(centre, k, "o", color=colour, markersize=4)
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [f"{name} {p['of']}" for name, p in shown], fontsize=8)
    axes.set_xscale("symlog", linthresh=10)
    ticks = [t for t in (-100, -50, -20, -10, -5, 0, 5, 10, 20, 50, 100, 200, 500, 1000) if in_view(t, axes.get_xlim())]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xticks([], minor=True)
    axes.set(ylim=(len(shown) - 0.5, -0.5), xlabel="change against the labels as they are [%]")
    axes.set_title("mean and 2.5 to 97.5 % of the perturbed labels", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{report['input']}: {report['method']['name']}, n = {report['n']}", fontsize=12)
    return figure


def in_view(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]


def print_table(report: dict) -> None:
    print(f"\n{'':<40}{'unit':>8}{'value':>12}{'mean':>12}{'sd':>12}{'2.5 %':>12}{'97.5 %':>12}{'n':>5}")
    for row in report["properties"]:
        if row["quantity"] in SHOWN:
            cells = "".join(f"{number(row[key]):>12}" for key in ("value", "mean", "sd", "p2.5", "p97.5"))
            print(f"{row['quantity'] + ' ' + row['of']:<40}{row['unit']:>8}{cells}{row['n']:>5}")
    moved = report["displacement"]
    drifts = ", ".join(f"{name} {drift:+.4f}" for name, drift in report["volume_fraction_drift"].items())
    print(
        f"\ndisplacement, FWHM in voxels: asked {moved['asked_fwhm_px']:g}, reached {moved['reached_fwhm_px']:.2f}"
        f" ± {moved['reached_fwhm_px_sd']:.2f}\ndrift of the volume fractions: {drifts}\n{report['seconds']} s"
    )


def write_results(report: dict, labels: np.ndarray, differs: np.ndarray, folder: Path) -> None:
    volume_io.write_json(folder / "uncertainty.json", report)
    with open(folder / "uncertainty.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(report["properties"])
    picture(labels, differs, report).savefig(folder / "uncertainty.png", dpi=130)


def main() -> int:
    args = parse_arguments()
    try:
        labels, sizes = read_labels(args)
        with volume_io.staged_folder(args.out, last="uncertainty.json") as staging:
            report, differs = measure_all(args, labels, sizes)
            write_results(report, labels, differs, staging)
            print_table(report)
            files = sorted(path.name for path in staging.iterdir())
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    except (OSError, ValueError, ImportError, MemoryError) as error:
        print(f"uncertainty.py: {volume_io.one_line(error)}", file=sys.stderr)
        return 2
    print(f"results: {args.out}/ ({', '.join(files)})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
