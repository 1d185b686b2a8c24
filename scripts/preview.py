"""Draw what a recipe makes, on one page: structure, sinogram, reconstruction, histogram, profile and noise.

    python scripts/preview.py configs/generate_spheres.json configs/scanner_lab_microct.json --out preview.png

No data set is written. Later files replace top-level keys of earlier ones. With --real, scans of a real sample are
drawn beside it, and a table compares their measures with those of the simulated scans; --structure puts a real,
segmented structure into the recipe:

    python scripts/preview.py configs/generate_spheres.json configs/scanner_synchrotron_nanoct_zernike.json \\
        --shape 512 512 --structure nmc_label.tif --structure-voxel-px 8 --real a.tif b.tif --count 4
"""

import argparse
import contextlib
import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bundle.pictures import class_histogram, class_legend, label_colours, palette, scale_bar, show, to_grey  # noqa: E402
from bundle.volume_io import atomic_path, check_image, one_line, read_volume, root_cause, write_json  # noqa: E402
from data_gen import likeness  # noqa: E402
from data_gen.dataset import SyntheticDataset  # noqa: E402
from data_gen.image_quality import (  # noqa: E402
    Edges,
    NoisePower,
    NotMeasurableError,
    fit_edges,
    level_and_noise,
    noise_power_spectrum,
)

REAL, SIMULATED = "#0072b2", "#d55e00"
PATCHES_PX = (32, 16)  # the largest that fits


def parse_arguments() -> argparse.Namespace:
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path, nargs="+", help="a config that generates data, and overlays")
    parser.add_argument("--out", type=Path, default=Path("preview.png"), help="the picture (default: preview.png)")
    parser.add_argument("--index", type=int, default=0, help="which sample of the data set (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data set (default: 0)")
    parser.add_argument("--shape", type=int, nargs="+", metavar="N", help="voxels of the image (default: the recipe's)")
    parser.add_argument("--structure", type=Path, help="a segmented file that replaces the recipe's microstructure")
    parser.add_argument(
        "--structure-voxel-px", type=float, default=8.0, help="voxels of the image for one of that file (default: 8)"
    )
    parser.add_argument("--real", type=Path, nargs="+", default=[], help="real scans to compare with, 2D images")
    parser.add_argument("--real-label", type=Path, nargs="+", default=[], help="their labels, instead of Otsu's")
    parser.add_argument("--bright", type=int, nargs="+", default=[1], help="the bright phase in those (default: 1)")
    parser.add_argument("--count", type=int, default=1, help="simulated scans in the table (default: 1)")
    parser.add_argument("--json", type=Path, help="also write the table here")
    return parser.parse_args()


def read_dataset(args: argparse.Namespace) -> SyntheticDataset:
    """The data set that the configs describe."""
    for path in args.recipe:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such recipe")
    from monai.bundle import ConfigParser  # takes seconds

    parser = ConfigParser()
    try:
        parser.read_config([str(path) for path in args.recipe])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{args.recipe[0]}: is no readable config: {one_line(error)}") from error
    if "dataset" not in parser:
        raise ValueError(f"{args.recipe[0]}: has no dataset; give a config that generates data, and overlays after it")
    if args.shape:
        parser["shape"] = args.shape
    if args.structure:
        parser["microstructure"] = {
            "_target_": "data_gen.microstructure.Segmented",
            "path": str(args.structure),
            "file_voxel_um": args.structure_voxel_px * parser.get_parsed_content("voxel_size_um"),
        }
    try:
        dataset = parser.get_parsed_content("dataset")
    except Exception as error:  # a config may call anything
        raise ValueError(f"{args.recipe[-1]}: {one_line(root_cause(error))}") from error
    if not isinstance(dataset, SyntheticDataset):
        raise ValueError(f"{args.recipe[0]}: dataset is a {type(dataset).__name__}, no SyntheticDataset")
    return dataset


def read_real(args: argparse.Namespace) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Real scans and, where they are given, labels with 1 in the bright phase."""
    if args.real_label and len(args.real_label) != len(args.real):
        raise ValueError(f"{len(args.real)} --real scans need as many --real-label files, got {len(args.real_label)}")
    scans = []
    for k, path in enumerate(args.real):
        image = read_volume(path, 1.0).array
        check_image(image, str(path))
        if image.ndim != 2:
            raise ValueError(f"{path}: has shape {image.shape}; give a 2D image")
        label = None
        if args.real_label:
            classes = read_volume(args.real_label[k], 1.0).array
            if classes.shape != image.shape:
                raise ValueError(f"{args.real_label[k]}: has shape {classes.shape}, its scan {image.shape}")
            label = np.isin(classes, args.bright).astype(np.uint8)
        scans.append((image.astype(float), label))
    return scans


def middle(array: np.ndarray, ndim: int) -> np.ndarray:
    """The middle slice of a volume, an image as it is."""
    return array[..., array.shape[-1] // 2] if array.ndim > ndim else array


def bright_phase(image: np.ndarray, label: np.ndarray) -> int:
    """The brightest phase that has an interior; its edges and its noise are measured."""
    levels = {}
    for phase in np.unique(label):
        with contextlib.suppress(NotMeasurableError):
            levels[int(phase)] = level_and_noise(image, label, int(phase), depth_px=1)[0]
    return max(levels, key=levels.get) if levels else int(label.max())


def noise_of(image: np.ndarray, label: np.ndarray, phases: list[int]) -> tuple[NoisePower, int, int] | None:
    """Noise power spectrum with the largest patch that fits, of the first phase that has room for it."""
    for patch in PATCHES_PX:
        for phase in phases:
            with contextlib.suppress(NotMeasurableError):
                return noise_power_spectrum(image, label, phase, patch_px=patch), patch, phase
    return None


def contrast_of(image: np.ndarray, label: np.ndarray, phase: int) -> float:
    return float(np.median(image[label == phase]) - np.median(image[label != phase]))


def edges_of(image: np.ndarray, label: np.ndarray) -> Edges | None:
    with contextlib.suppress(NotMeasurableError):
        return fit_edges(image, label, 1, 0)
    return None


def draw_sinogram(axes: Axes, sinogram: np.ndarray) -> None:
    picture = middle(sinogram, 2)
    low, high = np.percentile(picture, (0.1, 99.9))
    axes.imshow(picture, cmap="gray", vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    axes.set(xlabel="detector pixel", ylabel="view")
    axes.set_title(f"sinogram, −ln T from {low:.2f} to {high:.2f}", fontsize=10)


def draw_profile(axes: Axes, image: np.ndarray, label: np.ndarray, voxel_um: float, names: list[str]) -> None:
    """Grey value along the middle line, and the truth: the median grey value of the phase at each place."""
    row = image.shape[1] // 2
    at = (np.arange(image.shape[0]) + 0.5) * voxel_um
    level = np.array([np.median(image[label == k]) if (label == k).any() else np.nan for k in range(len(names))])
    axes.plot(at, level[label[:, row]], color="#888888", linewidth=1.2, drawstyle="steps-mid", label="truth")
    axes.plot(at, image[:, row], color=SIMULATED, linewidth=0.8, label="scan")
    axes.set(xlabel="x [µm]", ylabel="grey value")
    axes.set_title("profile along the line", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    axes.spines[["top", "right"]].set_visible(False)


def draw_noise(axes: Axes, curves: list[tuple[str, NoisePower, float]], title: str) -> None:
    """Noise power over contrast², for (colour, spectrum, contrast)."""
    for colour, power, contrast in curves:
        use = (power.frequency <= 0.5) & (np.arange(power.frequency.size) > 0)
        axes.semilogy(power.frequency[use], power.power[use] / contrast**2, color=colour, linewidth=1.3)
    if not curves:
        axes.text(0.5, 0.5, "too little room inside the phases", ha="center", transform=axes.transAxes, fontsize=9)
    axes.set(xlabel="frequency [cycles/px]", ylabel="noise power / contrast² [px²]", xlim=(0, 0.5))
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def draw_edges(axes: Axes, curves: list[tuple[str, str, np.ndarray, np.ndarray]]) -> None:
    """Mean aligned edge profiles, from 0 in the dark phase to 1, for (name, colour, image, label)."""
    seen: set[str] = set()
    for name, colour, image, label in curves:
        edges = edges_of(image, label)
        if edges is None:
            continue
        ends = np.nanmean(edges.profile[:5]), np.nanmean(edges.profile[-5:])
        share = (edges.profile - ends[1]) / (ends[0] - ends[1])
        axes.plot(edges.distance_px, share, color=colour, linewidth=1.3, label=None if name in seen else name)
        seen.add(name)
    axes.set(xlabel="distance from the edge [px]", ylabel="grey value, dark to bright")
    axes.set_title("mean edge profile", fontsize=10)
    if seen:
        axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def drawn_text(facts: dict) -> str:
    """What was drawn for this sample, a part a line."""
    lines = []
    parts = {"structure": facts["drawn"]["microstructure"], **facts["drawn"]["scanner"]}
    if "sample_diameter" in facts["drawn"]:
        parts["sample diameter"] = facts["drawn"]["sample_diameter"]
    for part, values in parts.items():
        values = values if isinstance(values, dict) else {"": values}
        shown = [f"{name} {_number(v)}".strip() for name, v in values.items() if v and name != "seed"]
        if shown:
            lines += _wrapped(f"{part.replace('_', ' ')}: {', '.join(shown)}", 74)
    reached = facts["reached"]
    lines += [
        f"mean energy: {reached['mean_energy_kev']:.2f} keV",
        f"µ = image × {reached['scale_1_cm']:.4g} + {reached['offset_1_cm']:.4g} 1/cm",
        "fractions: " + ", ".join(f"{name} {share:.3f}" for name, share in reached["fraction"].items()),
    ]
    return "\n".join(lines)


def draw_recipe(figure, title: str, sinogram, image, label, facts: dict, dataset: SyntheticDataset) -> None:
    """Two rows of panels: one sample of the recipe."""
    names, voxel_um = list(dataset.phases), dataset.voxel_size_um
    size_um = [n * voxel_um for n in image.shape]
    axes = figure.subplots(2, 4, width_ratios=[1, 1, 1, 1.25])
    show(axes[0, 0], label_colours(label, len(names)), size_um, "structure (label)")
    axes[0, 0].legend(handles=class_legend(names), fontsize=8, loc="upper right")
    scale_bar(axes[0, 0], *size_um)
    draw_sinogram(axes[0, 1], sinogram)
    show(axes[0, 2], to_grey(image), size_um, f"reconstruction, {image.shape[0]} × {image.shape[1]}")
    axes[0, 2].axhline((image.shape[1] // 2 + 0.5) * voxel_um, color=SIMULATED, linewidth=0.6)
    scale_bar(axes[0, 2], *size_um)
    axes[0, 3].axis("off")
    axes[0, 3].text(0, 1, drawn_text(facts), va="top", fontsize=7.5, linespacing=1.35, transform=axes[0, 3].transAxes)
    axes[0, 3].set_title("drawn for this sample (0 and none left out)", fontsize=10, loc="left")
    class_histogram(axes[1, 0], image, label, len(names))
    axes[1, 0].set_title("grey values of each phase", fontsize=10)
    draw_profile(axes[1, 1], image, label, voxel_um, names)
    phase = bright_phase(image, label)
    noise = noise_of(image, label, [phase, *(k for k in range(len(names)) if k != phase)])
    caption = "noise power spectrum"
    if noise is not None:
        caption += f": {names[noise[2]]}, patches of {noise[1]} px"
    contrast = contrast_of(image, label, phase)
    curves = [] if noise is None else [(palette(len(names))[noise[2]] / 255, noise[0], contrast)]
    draw_noise(axes[1, 2], curves, caption)
    axes[1, 3].axis("off")
    found = likeness.describe(image, label, phase, tuple(k for k in range(len(names)) if k != phase))
    lines = [f"{name.replace('_', ' '):<24} {'–' if v is None else f'{v:9.3f}'}" for name, v in found.items()]
    axes[1, 3].text(0, 1, "\n".join(lines), va="top", fontsize=8, family="monospace", transform=axes[1, 3].transAxes)
    axes[1, 3].set_title(f"measured: {names[phase]} against the rest", fontsize=10, loc="left")
    figure.suptitle(title, fontsize=12)


def draw_comparison(figure, real: list, simulated: list, rows: list[likeness.Likeness], labelled: bool) -> None:
    """Real scans above, simulated below, with their edges, noise and the table."""
    axes = figure.subplots(2, 4, width_ratios=[1, 1, 1, 1.7])
    for line, (name, scans) in enumerate((("real", real), ("simulated", simulated))):
        for column in range(2):
            if column >= len(scans):
                axes[line, column].axis("off")
                continue
            picture = to_grey(scans[column][0])
            size = picture.shape[:2]
            show(axes[line, column], picture, size, f"{name} {column + 1}, {size[0]} × {size[1]} px")
    both = [("real", REAL, *scan) for scan in real] + [("simulated", SIMULATED, *scan) for scan in simulated]
    draw_edges(axes[0, 2], both)
    noise = [(colour, noise_of(grey, label, [1]), contrast_of(grey, label, 1)) for _, colour, grey, label in both]
    curves = [(colour, found[0], contrast) for colour, found, contrast in noise if found is not None]
    draw_noise(axes[1, 2], curves, "noise power spectrum of the bright phase")
    for at in axes[:, 3]:
        at.axis("off")
    axes[0, 3].text(0, 1, table_text(rows), va="top", fontsize=8, family="monospace", transform=axes[0, 3].transAxes)
    how = "hand-made labels of the real, the truth of the simulated" if labelled else "Otsu labels of both"
    figure.suptitle(f"{len(real)} real and {len(simulated)} simulated scans, {how}", fontsize=12)


def table_text(rows: list[likeness.Likeness]) -> str:
    lines = [f"{'':<20} {'real range':>15} {'simulated':>9} {'min … max':>15}  median"]
    for row in rows:
        span = "–" if row.real is None else f"{row.real[0]:.3g} … {row.real[1]:.3g}"
        value, ends = "–", "–"
        if row.simulated is not None:
            value, ends = f"{row.simulated[1]:.3g}", f"{row.simulated[0]:.3g} … {row.simulated[2]:.3g}"
        said = "inside" if row.median_is_inside else "OUTSIDE"
        mark = "*" if row.name in likeness.MATCHED else " "
        lines.append(f"{row.name.replace('_', ' '):<19}{mark} {span:>15} {value:>9} {ends:>15}  {said}")
    return "\n".join([*lines, "", "* what the scanner decides; the rest also depends on the structure"])


def make_page(args: argparse.Namespace) -> list[likeness.Likeness]:
    """Draw and save the page; returns the rows of the comparison."""
    for name, value, least in (("--index", args.index, 0), ("--seed", args.seed, 0), ("--count", args.count, 1)):
        if value < least:
            raise ValueError(f"{name} {value} must be at least {least}")
    if args.out.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--out {args.out} must end in .png, .pdf or .svg")
    real = read_real(args)
    dataset = read_dataset(args)
    sinogram = dataset.sinogram(args.seed, args.index)
    indices = range(args.index, args.index + (args.count if real else 1))
    pairs = [dataset.pair(args.seed, index) for index in indices]
    image, label, facts = pairs[0]
    image, label = middle(image, 2), middle(label, 2)
    figure = Figure(figsize=(18, 18 if real else 9), layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(2 if real else 1, 1, squeeze=False)[:, 0]
    title = " + ".join(path.stem for path in args.recipe) + f", seed {args.seed}, index {args.index}"
    draw_recipe(parts[0], title, sinogram, image, label, facts, dataset)
    rows: list[likeness.Likeness] = []
    if real:
        labelled = bool(args.real_label)
        simulated = []
        for grey, truth, _ in pairs:
            grey, truth = middle(grey, 2).astype(float), middle(truth, 2)
            bright = (truth == bright_phase(grey, truth)).astype(np.uint8)
            simulated.append((grey, bright if labelled else likeness.otsu_label(grey)))
        real = [(grey, likeness.otsu_label(grey) if truth is None else truth) for grey, truth in real]
        measured = [[likeness.quality(*scan) for scan in scans] for scans in (real, simulated)]
        rows = likeness.compare(*measured)
        draw_comparison(parts[1], real, simulated, rows, labelled)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(args.out) as temporary:
        figure.savefig(temporary, dpi=100, format=args.out.suffix[1:])
    if args.json:
        write_json(args.json, [row._asdict() | {"median_is_inside": row.median_is_inside} for row in rows])
    return rows


def _number(value) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_number(v) for v in value)}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("'", "")


def _wrapped(line: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(line, width, subsequent_indent="    ")


def main() -> int:
    args = parse_arguments()
    try:
        rows = make_page(args)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    except (OSError, ValueError, MemoryError) as error:
        print(f"preview.py: {one_line(error)}", file=sys.stderr)
        return 2
    if rows:
        print(table_text(rows))
    print(f"picture: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
