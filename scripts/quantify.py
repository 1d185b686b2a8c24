"""Measure a label volume: fractions, surfaces, contacts, triple lines, percolation, sizes, chords, correlation.

    python scripts/quantify.py labels.tif --voxel-size-um 0.05 --out results/properties
    python scripts/quantify.py labels.tif --voxel-size-um 0.05 --names pore Ni YSZ --tortuosity --out results/properties

The labels are a TIFF, NIfTI, .npy or PNG file of class numbers 0, 1, 2 ..., or a folder of TIFF or PNG slices.
"""

import argparse
import csv
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bundle import volume_io  # noqa: E402
from bundle.property_pictures import number, properties_figure  # noqa: E402
from bundle.quantify import SECTIONS, SLOW, properties, rows  # noqa: E402


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
    parser.add_argument("--tortuosity", action="store_true", help="also the tortuosity factors (minutes at 256³)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--device", default="auto", help="of taufactor: auto, cpu, cuda or cuda:N (default: auto)")
    return parser.parse_args()


def read_labels(args: argparse.Namespace) -> tuple[np.ndarray, tuple[float, ...]]:
    """uint8 class numbers and the voxel size [µm] of each axis."""
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"{args.out}: is a file; give a folder with --out")
    sizes = args.voxel_size_um
    return volume_io.read_labels(args.labels, sizes[0] if sizes and len(sizes) == 1 else sizes, args.names)


def measure(args: argparse.Namespace, labels: np.ndarray, sizes: tuple[float, ...], staging: Path) -> dict:
    """Measure and write every result into ``staging``; returns the properties."""
    sections = args.only or [s for s in SECTIONS if s not in SLOW]
    sections = [s for s in SECTIONS if s in sections or (args.tortuosity and s == "tortuosity")]
    start = time.perf_counter()

    def progress(section: str) -> None:
        done = f"{sections.index(section) + 1} of {len(sections)}"
        print(f"{time.perf_counter() - start:6.1f} s  {done}  {section}", file=sys.stderr, flush=True)

    found = properties(labels, sizes, args.names, sections, args.device, progress)
    found = {"input": args.labels.name} | found
    volume_io.write_json(staging / "properties.json", found)
    table = rows({key: value for key, value in found.items() if key != "input"})
    with open(staging / "properties.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["quantity", "of", "value", "unit", "low", "high"])
        writer.writeheader()
        writer.writerows(table)
    figure = properties_figure(labels, found, title=args.labels.name)
    figure.savefig(staging / "properties.png", dpi=130)
    print_table(found, table)
    print(f"\n{time.perf_counter() - start:.1f} s for {labels.size / 1e6:.1f} Mvoxel")
    return found


def print_table(found: dict, table: list[dict]) -> None:
    shape = " × ".join(str(n) for n in found["shape"])
    size = " × ".join(f"{h:g}" for h in found["voxel_size_um"])
    print(f"\n{found['input']}: {shape} voxels of {size} µm\n")
    names = found["class_names"]
    width = max(12, *(len(name) + 2 for name in names))
    print(f"{'':<40}{'unit':>8}" + "".join(f"{name:>{width}}" for name in names))
    quantities: dict[tuple[str, str], dict[str, object]] = {}
    for row in table:
        if isinstance(row["value"], bool | str) or row["quantity"].endswith(("solver", ".fraction")):
            continue  # these are in the files
        quantities.setdefault((row["quantity"], row["unit"]), {})[row["of"]] = row["value"]
    others = []
    for (quantity, unit), values in quantities.items():
        if set(values) <= set(names):
            cells = "".join(f"{number(values.get(name)):>{width}}" for name in names)
            print(f"{quantity:<40}{unit:>8}{cells}")
        else:
            others += [(quantity, unit, of, value) for of, value in values.items()]
    print()
    for quantity, unit, of, value in others:
        what = quantity if of == "all" else f"{quantity} {of}"
        print(f"{what:<40}{unit:>8}{number(value):>{width}}")


def main() -> int:
    args = parse_arguments()
    try:
        labels, sizes = read_labels(args)
        with volume_io.staged_folder(args.out, last="properties.json") as staging:
            measure(args, labels, sizes, staging)
            files = sorted(path.name for path in staging.iterdir())
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    except (OSError, ValueError, ImportError, MemoryError) as error:
        print(f"quantify.py: {volume_io.one_line(error)}", file=sys.stderr)
        return 2
    print(f"results: {args.out}/ ({', '.join(files)})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
