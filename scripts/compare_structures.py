"""Hold generated structures against real, segmented ones: a table, and curves of correlation, thickness and chords.

    python scripts/compare_structures.py --nmc a_1_label.tif a_100_label.tif --nmc-labels 1 2 0 --sofc sofc_label.tif \\
        --nmc-volume nmc_label.tif --curves docs/structure_curves.png --json results/structures.json

Structures are those of configs/generate_nmc_cathode.json, generate_sofc.json and generate_foam*.json; parameters are
drawn from the recipe's ranges, but cathodes and solid-oxide electrode take their fractions and number of voxels from
the real labels. A volume of a cathode has the active material and the rest, so pores and binder are taken together;
it is also measured for percolation and tortuosity. Foams have nothing real beside them. Files are only read.
"""

import argparse
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bundle.quantify import properties  # noqa: E402
from bundle.volume_io import atomic_path, read_volume, write_json  # noqa: E402

SECTIONS = ("interfaces", "chords", "thickness", "correlation")
PANELS = (
    ("two_point", "two-point covariance"),
    ("local_thickness_um", "local thickness"),
    ("chord_length_um", "chord"),
)
SECTIONS_3D = (*SECTIONS, "connectivity", "tortuosity")
BINDER_FRACTION = 0.1  # of a generated volume, where it counts as pore
FOAM_PIXELS = 384  # of a section, several cells wide
COLOURS = ("#555555", "#d55e00", "#0072b2", "#009e73")


@dataclass(frozen=True)
class Material:
    """Structures of one material: measured real ones, which may be none, and measured generated ones."""

    title: str
    names: list[str]
    real: list[dict]
    made: list[dict]
    target: list[float | None]


def recipe(name: str):
    from monai.bundle import ConfigParser  # takes seconds

    parser = ConfigParser()
    parser.read_config(str(ROOT / f"configs/generate_{name}.json"))
    return list(parser["phases"]), parser.get_parsed_content("microstructure"), parser["voxel_size_um"]


def measure(labels: np.ndarray, voxel_um: float, names: list[str]) -> dict:
    return properties(labels, voxel_um, names, SECTIONS if labels.ndim == 2 else SECTIONS_3D)


def make(
    generator,
    shape: tuple[int, ...],
    voxel_um: float,
    names: list[str],
    args: argparse.Namespace,
    only: int | None = None,
) -> list[dict]:
    """Measured structures; ``only``: the class that is told from the rest, as 1 and 0."""
    generator.check(shape, voxel_um)
    found = []
    for index in range(args.count):
        rng = np.random.default_rng(np.random.SeedSequence([args.seed, index]))
        labels, _ = generator.build(shape, voxel_um, generator.draw(rng), rng)
        found.append(measure(labels if only is None else (labels == only).astype(np.uint8), voxel_um, names))
    return found


def read_real(paths: list[Path], order: list[int]) -> list[np.ndarray]:
    """Label images whose classes are renumbered: class k of the file becomes ``order[k]``."""
    volumes = []
    for path in paths:
        labels = np.asarray(read_volume(path, 1.0).array)
        if labels.dtype.kind not in "ui" or labels.min() < 0 or labels.max() >= len(order):
            raise ValueError(
                f"{path}: holds {labels.min()} to {labels.max()}; labels must be whole numbers 0 to {len(order) - 1}"
            )
        volumes.append(np.array(order, np.uint8)[labels])
    return volumes


def share(found: list[dict]) -> list[float]:
    """Mean fraction of each class."""
    return np.mean([list(f["volume_fraction"].values()) for f in found], axis=0).tolist()


def nmc(args: argparse.Namespace) -> Material:
    names, generator, voxel_um = recipe("nmc_cathode")
    images = read_real(args.nmc, args.nmc_labels)
    real = [measure(image, voxel_um, names) for image in images]
    target = share(real)
    generator = replace(generator, pore_fraction=target[0], active_fraction=target[1], cbd_fraction=target[2])
    made = make(generator, images[0].shape, voxel_um, names, args)
    return Material("NMC cathode", names, real, made, target)


def nmc_volume(args: argparse.Namespace) -> list[Material]:
    """The recipe beside a real volume and, where arguments are set, the recipe with these beside it."""
    _, generator, _ = recipe("nmc_cathode")
    (labels,) = read_real([args.nmc_volume], args.nmc_volume_labels)
    if labels.ndim != 3:
        raise ValueError(f"{args.nmc_volume}: is an image of {labels.shape}; give a volume, or use --nmc")
    names = ["rest", "active"]
    real = [measure(labels, args.nmc_volume_um, names)]
    target = share(real)
    generator = replace(
        generator, active_fraction=target[1], cbd_fraction=BINDER_FRACTION, pore_fraction=target[0] - BINDER_FRACTION
    )
    variants = {"NMC cathode, volume": generator}
    if args.nmc_volume_set:
        variants["NMC cathode, volume, arguments set"] = replace(
            generator, **arguments_of(generator, args.nmc_volume_set)
        )
    return [
        Material(title, names, real, make(variant, labels.shape, args.nmc_volume_um, names, args, only=1), target)
        for title, variant in variants.items()
    ]


def arguments_of(generator, assignments: list[str]) -> dict[str, float]:
    """``name=number`` strings as keyword arguments of a generator."""
    found = {}
    for text in assignments:
        name, _, number = text.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            raise ValueError(f"--nmc-volume-set {text}: write NAME=NUMBER, such as gap_um=0") from None
        if name not in generator.__dataclass_fields__:
            raise ValueError(f"--nmc-volume-set {text}: {type(generator).__name__} has no argument {name}")
    return found


def sofc(args: argparse.Namespace) -> Material:
    names, generator, voxel_um = recipe("sofc")
    images = read_real([args.sofc], args.sofc_labels)
    real = [measure(image, voxel_um, names) for image in images]
    target = share(real)
    generator = replace(generator, porosity=target[0], nickel_share=target[1] / (1 - target[0]))
    made = make(generator, images[0].shape, voxel_um, names, args)
    return Material("Ni–YSZ electrode", names, real, made, target)


def foam(args: argparse.Namespace, name: str, title: str) -> Material:
    names, generator, voxel_um = recipe(name)
    porosity = (generator.porosity[0] + generator.porosity[1]) / 2
    generator = replace(generator, porosity=porosity)
    made = make(generator, (FOAM_PIXELS,) * 2, voxel_um, names, args)
    return Material(title, names, [], made, [porosity, 1 - porosity])


def numbers(found: dict) -> dict[str, float | None]:
    """The rows of the table, for one structure."""
    rows = {f"fraction, {k}": v for k, v in found["volume_fraction"].items()}
    rows |= {f"mean chord, {k} [µm]": v["mean"] for k, v in found["chord_length_um"].items()}
    rows |= {f"local thickness, {k} [µm]": v["mean"] for k, v in found["local_thickness_um"].items()}
    three = len(found["shape"]) == 3
    surface = found["specific_surface_area_1_per_um" if three else "specific_perimeter_1_per_um"]
    rows |= {f"specific {'surface' if three else 'perimeter'}, {k} [1/µm]": v for k, v in surface.items()}
    contact = found["contact_area_1_per_um" if three else "contact_length_1_per_um"]
    if len(contact) > 1:
        total = sum(contact.values())
        rows |= {f"contact share, {k.replace('|', '–')}": v / total for k, v in contact.items()}
    for k, shares in found.get("connectivity", {}).items():
        rows[f"share that percolates, {k}"] = mean_of([shares[f"percolating_share_{axis}"] for axis in "xyz"])
    for k, axes in found.get("tortuosity", {}).items():
        rows[f"tortuosity factor, {k}"] = mean_of([axes[axis]["tortuosity_factor"] for axis in "xyz"])
    return rows


def mean_of(values: list[float | None]) -> float | None:
    return None if None in values else float(np.mean(values))


def table(material: Material) -> list[dict]:
    made, real = [[numbers(f) for f in group] for group in (material.made, material.real)]
    rows = []
    for k, name in enumerate(made[0]):
        reached, truth = [[row[name] for row in group if row[name] is not None] for group in (made, real)]
        rows.append(
            {
                "quantity": name,
                "target": material.target[k] if k < len(material.target) else None,
                "reached": float(np.mean(reached)) if reached else None,
                "reached_sd": float(np.std(reached, ddof=1)) if len(reached) > 1 else None,
                "real": float(np.mean(truth)) if truth else None,
                "real_range": [min(truth), max(truth)] if truth else None,
            }
        )
    return rows


def markdown(title: str, rows: list[dict], n_made: int, n_real: int) -> str:
    lines = [f"**{title}**: {n_made} generated, {n_real} real", "", "| | target | reached (sd) | real (range) |"]
    lines.append("|---|---|---|---|")
    for row in rows:
        target = "" if row["target"] is None else f"{row['target']:.3f}"
        sd = "" if row["reached_sd"] is None else f" ({row['reached_sd']:.3f})"
        real = "" if row["real"] is None else f"{row['real']:.3f}"
        if n_real > 1 and row["real_range"]:
            real += " ({:.3f}–{:.3f})".format(*row["real_range"])
        reached = "" if row["reached"] is None else f"{row['reached']:.3f}{sd}"
        lines.append(f"| {row['quantity']} | {target} | {reached} | {real} |")
    return "\n".join(lines)


def curve(found: list[dict], kind: str, name: str, lengths: np.ndarray) -> np.ndarray:
    """(structures, lengths): the normalised covariance, or the share of what is no longer than a length."""
    curves = []
    for f in found:
        if kind == "two_point":
            two = f["two_point_correlation"]
            probability = np.array(two[name])
            fraction = probability[0]
            covariance = (probability - fraction**2) / max(fraction - fraction**2, 1e-12)
            curves.append(np.interp(lengths, two["distance_um"], covariance))
        elif (histogram := f["distributions"][kind][name]) is not None:
            edges, shares = histogram["edges"], histogram["share"]
            curves.append(np.interp(lengths, edges, np.concatenate([[0], np.cumsum(shares)])))
    return np.array(curves)


def draw(materials: list[Material]) -> Figure:
    figure = Figure((10.5, 2.35 * len(materials)), dpi=100, layout="constrained")
    grid = figure.subplots(len(materials), 3, squeeze=False)
    for axes, material in zip(grid, materials, strict=True):
        for ax, (kind, title) in zip(axes, PANELS, strict=True):
            longest = reach(material, kind)
            lengths = np.linspace(0, longest, 200)
            if kind != "two_point":  # phases differ by a factor of ten
                lengths = np.geomspace(longest / 200, longest, 200)
                ax.set_xscale("log")
            for name, colour in zip(material.names, COLOURS, strict=False):
                made = curve(material.made, kind, name, lengths)
                ax.plot(lengths, made.mean(0), color=colour, linewidth=1.3, label=name)
                ax.fill_between(lengths, made.min(0), made.max(0), color=colour, alpha=0.18, linewidth=0)
                for line in curve(material.real, kind, name, lengths):
                    ax.plot(lengths, line, color=colour, linewidth=1.1, linestyle="--")
            ax.set_xlim(lengths[0], longest)
            ax.set_ylim(-0.1 if kind == "two_point" else 0, 1.02)
            ax.tick_params(labelsize=7)
            ax.set_xlabel("µm", fontsize=7, labelpad=1)
            ax.set_title(
                f"{material.title}: {title}" + (", (S − φ²) / (φ − φ²)" if kind == "two_point" else ", share below"),
                fontsize=8,
            )
        axes[0].legend(fontsize=7, frameon=False)
    figure.suptitle("lines: mean of the generated structures, bands: their range; dashes: each real one", fontsize=8)
    return figure


def reach(material: Material, kind: str) -> float:
    """[µm] a length beyond which there is little to see."""
    group = material.made + material.real
    if kind == "two_point":
        return 6 * max(v for f in group for v in f["correlation_length_um"].values() if v is not None)
    measured = "chord_length_um" if kind == "chord_length_um" else "local_thickness_um"
    return 4 * max(v["mean"] for f in group for v in f[measured].values() if v["mean"] is not None)


def main() -> int:
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nmc", type=Path, nargs="+", help="label images of cathodes, pixels of 0.05 µm")
    parser.add_argument(
        "--nmc-labels", type=int, nargs=3, default=[0, 1, 2], metavar="N",
        help="what labels 0 1 2 of these files are: 0 pore, 1 active, 2 CBD (default: 0 1 2)",
    )  # fmt: skip
    parser.add_argument("--nmc-volume", type=Path, help="label volume of a cathode with one solid phase")
    parser.add_argument(
        "--nmc-volume-labels", type=int, nargs=2, default=[0, 1], metavar="N",
        help="what its labels 0 1 are: 0 the rest, 1 active (default: 0 1)",
    )  # fmt: skip
    parser.add_argument(
        "--nmc-volume-um", type=float, default=0.25, metavar="UM", help="its voxel size in µm (default: 0.25)"
    )
    parser.add_argument(
        "--nmc-volume-set", nargs="+", metavar="NAME=NUMBER",
        help="arguments of NmcCathode to set instead of the recipe's ranges; shown beside the recipe itself",
    )  # fmt: skip
    parser.add_argument("--sofc", type=Path, help="label image of a solid-oxide electrode, pixels of 0.065 µm")
    parser.add_argument(
        "--sofc-labels", type=int, nargs=3, default=[0, 1, 2], metavar="N",
        help="what its labels 0 1 2 are: 0 pore, 1 nickel, 2 YSZ (default: 0 1 2)",
    )  # fmt: skip
    parser.add_argument("--count", type=int, default=8, help="generated structures of each material (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--curves", type=Path, help="PNG file of the curves")
    parser.add_argument("--json", type=Path, help="also write the tables here")
    args = parser.parse_args()
    if args.count < 1:
        parser.error(f"--count {args.count} must be at least 1")
    try:
        materials = [nmc(args)] if args.nmc else []
        materials += nmc_volume(args) if args.nmc_volume else []
        materials += [sofc(args)] if args.sofc else []
        materials += [foam(args, "foam", "closed foam"), foam(args, "foam_open", "open foam")]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    tables = {m.title: table(m) for m in materials}
    for m in materials:
        print(markdown(m.title, tables[m.title], len(m.made), len(m.real)), end="\n\n")
    if args.json:
        write_json(args.json, {"count": args.count, "seed": args.seed, "tables": tables})
    if args.curves:
        figure = draw(materials)
        with atomic_path(args.curves) as path:
            figure.savefig(path, format="png")
            with Image.open(path) as full:
                few = full.convert("RGB").quantize(64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            few.save(path, format="png", optimize=True)
        print(f"{args.curves}: {args.curves.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
