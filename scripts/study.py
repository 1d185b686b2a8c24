"""A study of training, from data to table and picture, by one command.

    python scripts/study.py robustness --size small --networks none all --out results/robustness
    python scripts/study.py search --size full --out results/search

Studies: robustness, volume, search, networks, time, transfer; scripts/studies/ has one file for each. The same command
does the small size on two cores, in minutes to hours (robustness: half an hour for each of 17 networks), and the full
size on a GPU; robustness has a medium size besides, two hours a network. Started again, it goes on where it was.
"""

import argparse
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

STUDIES = {  # file and options
    "robustness": ("robustness", {"networks"}),
    "volume": ("data_volume", set()),
    "search": ("search", {"trials", "storage"}),
    "networks": ("networks", {"networks", "materials", "dims"}),
    "time": ("time_to_accuracy", {"recipes"}),
    "transfer": ("transfer", {"real"}),
}


def parse_arguments() -> argparse.Namespace:
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES, help="which study")
    sizes = ("small", "medium", "full")
    parser.add_argument("--size", choices=sizes, default="small", help="how much of it (default: small)")
    parser.add_argument("--out", type=Path, required=True, help="folder for data, runs and results")
    parser.add_argument("--networks", nargs="+", help="robustness, networks: only these")
    parser.add_argument("--recipes", nargs="+", help="time: only these")
    parser.add_argument("--materials", nargs="+", help="networks: only these")
    parser.add_argument("--dims", nargs="+", type=int, choices=(2, 3), help="networks: 2 for images, 3 for volumes")
    parser.add_argument("--trials", type=int, help="search: trials of each of the two stages")
    parser.add_argument("--storage", help="search: a journal file or database URL that several workers share")
    parser.add_argument("--real", type=Path, help="transfer: folder with the annotated slices")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    options = {k: v for k, v in vars(args).items() if k not in ("study", "size", "out") and v is not None}
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    module, known = STUDIES[args.study]
    try:
        if unknown := sorted(set(options) - known):
            raise ValueError(f"--{unknown[0]} is no option of the study {args.study!r}")
        study = importlib.import_module(f"studies.{module}")
        if args.size not in study.SIZES:
            raise ValueError(f"the study {args.study!r} has no size {args.size!r}, but {', '.join(study.SIZES)}")
        study.run(args.out.resolve(), args.size, **options)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"study.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
