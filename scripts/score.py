"""Score a segmentation of one scan against a label volume, beside the classical methods on the same scan.

    python scripts/score.py scan.tif truth.tif results/scan/labels.tif --map 0:1 1:0 2:0 --json score.json

``--map`` translates the truth's values into the network's; here truth 0 (active material) is 1 (particle), the rest 0.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bundle.baselines import BASELINES, segment_in_truth_order  # noqa: E402
from bundle.metrics import score  # noqa: E402
from bundle.volume_io import read_volume, write_json  # noqa: E402

COLUMNS = ("mean_dice", "mean_iou", "mean_iou_all", "accuracy", "mean_abs_fraction_error")


def parse_arguments() -> argparse.Namespace:
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scan", type=Path, help="the grey scan, which the classical methods segment")
    parser.add_argument("truth", type=Path, help="its labels")
    parser.add_argument("labels", type=Path, help="what the network made of it")
    parser.add_argument("--map", nargs="+", default=[], metavar="FROM:TO", help="truth value to class number")
    parser.add_argument("--json", type=Path, help="also write the scores here")
    return parser.parse_args()


def translate(truth: np.ndarray, pairs: list[str]) -> np.ndarray:
    """The truth in the network's class numbers.

    Raises:
        ValueError: a pair that is not FROM:TO, or a value in the truth that no pair names.
    """
    if not pairs:
        return truth
    try:
        table = dict(tuple(int(n) for n in pair.split(":")) for pair in pairs)
    except (ValueError, TypeError):
        raise ValueError(f"--map {' '.join(pairs)}: each must be FROM:TO, two whole numbers such as 0:1") from None
    unknown = sorted(set(np.unique(truth).tolist()) - set(table))
    if unknown:
        raise ValueError(f"--map {' '.join(pairs)} does not say what the truth's values {unknown} are")
    return np.vectorize(table.get, otypes=[np.uint8])(truth)


def main() -> int:
    args = parse_arguments()
    try:
        scan = read_volume(args.scan, 1.0).array.astype(np.float32)
        truth = translate(read_volume(args.truth, 1.0).array, args.map)
        labels = read_volume(args.labels, 1.0).array
        if not scan.shape == truth.shape == labels.shape:
            raise ValueError(f"scan {scan.shape}, truth {truth.shape} and labels {labels.shape} must match")
        n_classes = max(int(truth.max()), int(labels.max()), 1) + 1
        predictions = {"network": labels}
        predictions |= {name: segment_in_truth_order(name, scan, truth, n_classes) for name in BASELINES}
        scores = {name: score(pred, truth, n_classes, 1.0) for name, pred in predictions.items()}
    except (OSError, ValueError) as error:
        print(f"score.py: {error}", file=sys.stderr)
        return 2
    print(f"{'method':<26}" + "".join(f"{c.removeprefix('mean_'):>20}" for c in COLUMNS))
    for name, values in scores.items():
        print(f"{name:<26}" + "".join(f"{values[c]:>20.4f}" for c in COLUMNS))
    if args.json:
        kept = {name: {c: values[c] for c in COLUMNS} for name, values in scores.items()}
        write_json(args.json, {"scan": args.scan.name, "truth": args.truth.name, "scores": kept})
    return 0


if __name__ == "__main__":
    sys.exit(main())
