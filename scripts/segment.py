"""Segment a scan with a trained network: labels as TIFF and NIfTI, a picture and a report.

    python scripts/segment.py scan.tif --voxel-size-um 0.05 --out results/scan

The scan is a TIFF, NIfTI, .npy or PNG file, or a folder of TIFF or PNG slices.
"""

import argparse
import json
import platform
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bundle import volume_io  # noqa: E402  (MONAI is imported later: it takes seconds, and --help needs none of it)

CONFIG_KEYS = ("network_def", "intensity", "inferer", "class_names", "spatial_dims")


def parse_arguments() -> argparse.Namespace:
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scan", type=Path, help="the scan: a TIFF, NIfTI, .npy or PNG file, or a folder of slices")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--voxel-size-um",
        type=float,
        nargs="+",
        metavar="UM",
        help="voxel size in µm, one number or one per axis (x y [z]); needed where the file does not say it",
    )
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "inference.json", help="inference config")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "models" / "model.pt", help="trained weights")
    parser.add_argument("--probabilities", action="store_true", help="also write a probability map of each class")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--overlap", type=float, help="share by which windows overlap (default: the config's)")
    parser.add_argument(
        "--no-mirror",
        action="store_true",
        help="one pass a window, not the mean over its mirror images: 4 times faster",
    )
    return parser.parse_args()


def check_arguments(args: argparse.Namespace) -> volume_io.Volume:
    """Read the scan and check everything that can be checked before MONAI is imported."""
    if not args.config.is_file():
        raise FileNotFoundError(f"{args.config}: no such config; give one with --config")
    if not args.checkpoint.is_file():
        raise FileNotFoundError(
            f"{args.checkpoint}: no trained network there; train one: python -m monai.bundle run "
            "--config_file configs/train.json --bundle_root . (see README), or pass --checkpoint"
        )
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"{args.out}: is a file; give a folder with --out")
    if args.overlap is not None and not 0 <= args.overlap < 1:
        raise ValueError(f"--overlap {args.overlap} must be at least 0 and below 1, for example 0.25")
    sizes = args.voxel_size_um
    volume = volume_io.read_volume(args.scan, sizes[0] if sizes and len(sizes) == 1 else sizes)
    if volume.affine is None:
        raise ValueError(f"{args.scan}: the file does not say its voxel size; give it with --voxel-size-um, in µm")
    volume_io.check_image(volume.array, str(args.scan))
    return volume


def read_config(args: argparse.Namespace) -> dict:
    """The parsed entries of the inference config that segmenting needs."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    try:
        parser.read_config(str(args.config))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{args.config}: is no readable config: {volume_io.one_line(error)}") from error
    parser["bundle_root"] = str(ROOT)
    missing = [key for key in CONFIG_KEYS if key not in parser]
    if missing:
        raise ValueError(f"{args.config}: lacks {', '.join(missing)}; an inference config has {', '.join(CONFIG_KEYS)}")
    if args.overlap is not None:
        parser["inferer::overlap"] = args.overlap
    if args.no_mirror:
        parser["inferer::mirror"] = False
    config = {}
    for key in CONFIG_KEYS:
        try:
            config[key] = parser.get_parsed_content(key)
        except Exception as error:  # a config may call anything
            cause = error.__cause__ or error
            raise ValueError(f"{args.config}: {key}: {volume_io.one_line(cause)}") from error
    names = config["class_names"]
    if not (isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{args.config}: class_names {names!r} must be a list of two or more names")
    return config


def choose_device(name: str):
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name}: {volume_io.one_line(error)}; give auto, cpu or cuda") from error
    return device


def segment_scan(args: argparse.Namespace, volume: volume_io.Volume, staging: Path) -> dict:
    """Segment and write every result into ``staging``; returns the report."""
    import monai
    import numpy as np
    import torch
    from monai.transforms import Compose

    from bundle.inference import load_weights, segment
    from bundle.pictures import segmentation_figure

    device = choose_device(args.device)
    config = read_config(args)
    inferer, names, network = config["inferer"], config["class_names"], config["network_def"]
    if volume.array.ndim < config["spatial_dims"]:
        raise ValueError(
            f"{args.scan}: is a 2D image of shape {volume.array.shape}, and {args.config} has a 3D network; "
            "give a volume, or a config and checkpoint of a 2D network"
        )
    load_weights(network, args.checkpoint)
    result = segment(
        volume.array,
        network=network,
        preprocessing=Compose(config["intensity"]),
        inferer=inferer,
        device=device,
        probabilities=args.probabilities,
        classes=len(names),
    )
    labels, sizes = result.labels, volume.voxel_size_um
    volume_io.write_tiff(staging / "labels.tif", labels, sizes)
    volume_io.write_nifti(staging / "labels.nii.gz", labels, volume.affine)
    if result.probabilities is not None:
        for name, probability in zip(names, result.probabilities, strict=True):
            file_name = f"probability_{re.sub(r'[^A-Za-z0-9_-]+', '_', name)}.nii.gz"
            volume_io.write_nifti(staging / file_name, probability.astype(np.float32), volume.affine)
    figure = segmentation_figure(volume.array, labels, names, sizes, title=f"{args.scan.name}")
    figure.savefig(staging / "overlay.png", dpi=150)
    counts = np.bincount(labels.ravel(), minlength=len(names))
    report = {
        "input": args.scan.name,
        "shape": labels.shape,
        "voxel_size_um": sizes,
        "classes": [
            {"label": i, "name": name, "voxels": counts[i], "fraction": counts[i] / labels.size}
            for i, name in enumerate(names)
        ],
        "seconds": round(result.seconds, 3),
        "mvoxels_per_second": labels.size / 1e6 / result.seconds,
        "peak_memory_mb": None if result.peak_memory_bytes is None else result.peak_memory_bytes / 1e6,
        "device": str(device),
        "model": {"file": args.checkpoint.name, "sha256": volume_io.sha256(args.checkpoint)},
        "inference": {
            "config": args.config.name,
            "roi_size": inferer.roi_size,
            "overlap": inferer.overlap,
            "mode": inferer.mode,
            "mirror": inferer.mirror,
            "amp": inferer.amp,
        },
        "versions": {
            "python": platform.python_version(),
            "monai": monai.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "files": sorted([*(path.name for path in staging.iterdir()), "report.json"]),
    }
    volume_io.write_json(staging / "report.json", report)
    return json.loads((staging / "report.json").read_text(encoding="utf-8"))


def remove_stale(staging: Path, out: Path) -> None:
    """Remove what only an earlier run wrote and what would not fit the new results."""
    for name in _files_of_report(out / "report.json") - {path.name for path in staging.iterdir()}:
        (out / name).unlink(missing_ok=True)


def _files_of_report(path: Path) -> set[str]:
    """The probability maps that an earlier report lists."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {str(name) for name in files if re.fullmatch(r"probability_[\w-]+\.nii\.gz", str(name))}


def print_report(report: dict, out: Path) -> None:
    print(f"\n{'label':>5}  {'class':<16} {'fraction':>9} {'voxels':>14}")
    for row in report["classes"]:
        print(f"{row['label']:>5}  {row['name']:<16} {row['fraction']:>9.2%} {row['voxels']:>14,}")
    speed = f"{report['seconds']:.1f} s, {report['mvoxels_per_second']:.2f} Mvoxel/s on {report['device']}"
    print(f"\n{speed}\nresults: {out}/ ({', '.join(report['files'])})")


def main() -> int:
    args = parse_arguments()
    try:
        volume = check_arguments(args)
        with volume_io.staged_folder(args.out, last="report.json") as staging:
            report = segment_scan(args, volume, staging)
            remove_stale(staging, args.out)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    except (OSError, ValueError, MemoryError) as error:
        print(f"segment.py: {volume_io.one_line(error)}", file=sys.stderr)
        return 2
    print_report(report, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
