"""Segment a scan with a trained network: labels as TIFF and NIfTI, a picture and a report.

    python scripts/segment.py scan.tif --voxel-size-um 0.05 --bundle spheres_v0.1.0.zip --out results/scan

The scan is a TIFF, NIfTI, .npy or PNG file, or a folder of TIFF or PNG slices; for a network of several images, such
as two energies, one of them for each, in the order of its training. The network is a packed bundle or
promoted weights (--bundle), checked before use, or a checkpoint of your own, whose run folder says how it was trained.
"""

import argparse
import contextlib
import json
import platform
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bundle import volume_io  # noqa: E402  (MONAI is imported later: it takes seconds, and --help needs none of it)

CONFIG_KEYS = ("network_def", "intensity", "inferer", "class_names", "channel_names", "spatial_dims")
MOST_MEASURED = 2**26  # voxels of which noise and mean are measured; of a larger scan the middle slices


def parse_arguments() -> argparse.Namespace:
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "scan", type=Path, nargs="+", help="the scan: a TIFF, NIfTI, .npy or PNG file, or a folder of slices"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--voxel-size-um",
        type=float,
        nargs="+",
        metavar="UM",
        help="voxel size in µm, one number or one per axis (x y [z]); needed where the file does not say it",
    )
    parser.add_argument("--bundle", type=Path, help="a packed bundle (zip or folder), or a folder of models/")
    parser.add_argument("--trust", metavar="NAME", help="use the bundle of this name though checks of it fail")
    parser.add_argument("--checkpoint", type=Path, help="trained weights (default: models/model.pt)")
    parser.add_argument("--config", type=Path, help="inference config (default: the one of the checkpoint's run)")
    parser.add_argument("--probabilities", action="store_true", help="also write a probability map of each class")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--overlap", type=float, help="share by which windows overlap (default: the config's)")
    parser.add_argument(
        "--no-mirror",
        action="store_true",
        help="one pass a window, not the mean over its mirror images: 4 times faster",
    )
    return parser.parse_args()


def check_arguments(args: argparse.Namespace) -> list[volume_io.Volume]:
    """Read the images of the scan and check everything that can be checked before MONAI is imported."""
    choose_network(args)
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"{args.out}: is a file; give a folder with --out")
    if args.overlap is not None and not 0 <= args.overlap < 1:
        raise ValueError(f"--overlap {args.overlap} must be at least 0 and below 1, for example 0.25")
    sizes = args.voxel_size_um
    volumes = [volume_io.read_volume(scan, sizes[0] if sizes and len(sizes) == 1 else sizes) for scan in args.scan]
    for volume in volumes:
        if volume.affine is None:
            raise ValueError(
                f"{volume.source}: the file does not say its voxel size; give it with --voxel-size-um, in µm"
            )
        volume_io.check_image(volume.array, str(volume.source))
    volume_io.check_same_geometry(volumes)
    return volumes


def default_bundle() -> Path | None:
    """The promoted weights that ``models/model.pt`` is a copy of, which know what they were trained on."""
    default = ROOT / "models" / "model.pt"
    folders = [
        path.parent for path in sorted(ROOT.glob("models/*/model.pt")) if (path.parent / "record.json").is_file()
    ]
    wanted = volume_io.sha256(default) if default.is_file() and folders else None
    return next((folder for folder in folders if volume_io.sha256(folder / "model.pt") == wanted), None)


def choose_network(args: argparse.Namespace) -> None:
    """Settle whether the network is a bundle or a checkpoint; one of both is set afterwards, and exists."""
    if args.bundle and (args.checkpoint or args.config):
        raise ValueError("--bundle has its own weights and config; give either --bundle or --checkpoint and --config")
    if not (args.bundle or args.checkpoint or args.config) and (ROOT / "manifest.json").is_file():
        args.bundle = ROOT  # this script is part of a packed bundle
    if args.bundle:
        if not args.bundle.exists():
            raise FileNotFoundError(f"{args.bundle}: no such bundle; give a zip or a folder with --bundle")
        return
    if not (args.checkpoint or args.config):
        args.bundle = default_bundle()
        if args.bundle:
            return
    args.checkpoint = args.checkpoint or ROOT / "models" / "model.pt"
    if not args.checkpoint.is_file():
        raise FileNotFoundError(
            f"{args.checkpoint}: no trained network there; train one: python -m monai.bundle run "
            "--config_file configs/train.json --bundle_root . (see README), or pass --bundle or --checkpoint"
        )
    if args.config and not args.config.is_file():
        raise FileNotFoundError(f"{args.config}: no such config; give one with --config")
    if not args.config and (args.checkpoint.parent / "record.json").is_file():
        args.bundle = args.checkpoint.parent  # promoted weights


@contextlib.contextmanager
def open_network(args: argparse.Namespace):
    """The config's parser, what to call it in messages, the weights, the record (or None) and the bundle's name."""
    from monai.bundle import ConfigParser

    if args.bundle:
        from bundle.trust import opened

        with opened(args.bundle, args.trust) as shared:
            name = f"{shared.name} {shared.record['version']}"
            for note in shared.notes:
                print(f"note: {note}", file=sys.stderr)
            yield shared.parser(), f"inference.json of {name}", shared.weights, shared.record, name
        return
    parser = ConfigParser()
    config = None if args.config else run_config(args.checkpoint)
    source = args.config or ROOT / "configs" / "inference.json"
    if config:
        parser.update(config)
        source = args.checkpoint.parent / "run.json"
    else:
        try:
            parser.read_config(str(source))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{source}: is no readable config: {volume_io.one_line(error)}") from error
    parser["bundle_root"] = str(ROOT)
    yield parser, str(source), args.checkpoint, None, None


def run_config(checkpoint: Path) -> dict | None:
    """The config of the run that a checkpoint lies in, checked as a bundle's is; None if there is no record of it."""
    from bundle.model_config import checkpoint_config

    config = checkpoint_config(checkpoint)
    if config:
        from bundle.safe_config import problems

        folder = Path(volume_io.__file__).parent
        found = problems(config, folder.name, folder)
        if found:
            raise ValueError(f"{checkpoint.parent}/run.json: {found[0]}; if you wrote it, name it with --config")
    return config


def read_config(args: argparse.Namespace, parser, source: str) -> dict:
    """The parsed entries of the inference config that segmenting needs."""
    if "channel_names" not in parser:  # a config of one image
        parser["channel_names"] = ["CT"]
    missing = [key for key in CONFIG_KEYS if key not in parser]
    if missing:
        raise ValueError(f"{source}: lacks {', '.join(missing)}; an inference config has {', '.join(CONFIG_KEYS)}")
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
            raise ValueError(f"{source}: {key}: {volume_io.one_line(cause)}") from error
    names = config["class_names"]
    if not (isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{source}: class_names {names!r} must be a list of two or more names")
    return config


def warnings_before(volume: volume_io.Volume, record: dict | None, intensity, steps: list) -> list[str]:
    """How the scan differs from what the network was trained on, as far as a record says what that was."""
    if record is None:
        return []
    from bundle.training_range import as_network_sees, scan_mismatches

    array = volume.array
    if array.size > MOST_MEASURED:
        slices = max(1, MOST_MEASURED // (array.shape[0] * array.shape[1]))
        start = (array.shape[2] - slices) // 2 if array.ndim == 3 else 0
        array = array[..., start : start + slices] if array.ndim == 3 else array
    scaled = as_network_sees(array, intensity)
    return scan_mismatches(record["data"], array, scaled, volume.voxel_size_um, steps)


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


def segment_scan(args: argparse.Namespace, volumes: list[volume_io.Volume], staging: Path) -> dict:
    """Segment and write every result into ``staging``; returns the report."""
    import monai
    import numpy as np
    import torch
    from monai.transforms import Compose

    from bundle.inference import load_weights, segment
    from bundle.pictures import segmentation_figure
    from bundle.training_range import fraction_mismatches

    device, volume = choose_device(args.device), volumes[0]
    with open_network(args) as (parser, source, weights, record, bundle_name):
        config = read_config(args, parser, source)
        inferer, names, network = config["inferer"], config["class_names"], config["network_def"]
        if volume.array.ndim < config["spatial_dims"]:
            raise ValueError(
                f"{volume.source}: is a 2D image of shape {volume.array.shape}, and {source} has a 3D network; "
                "give a volume, or a config and checkpoint of a 2D network"
            )
        if len(volumes) != len(config["channel_names"]):
            raise ValueError(
                f"{len(volumes)} images given; the network of {source} takes {len(config['channel_names'])} of each "
                f"sample: {', '.join(config['channel_names'])}"
            )
        load_weights(network, weights)
        model = {"file": weights.name, "sha256": volume_io.sha256(weights)}
        steps = parser["intensity"]
    if bundle_name:
        model["bundle"] = bundle_name
        print(f"{args.bundle}: {bundle_name}, checked")
    intensity = Compose(config["intensity"])
    found = warnings_before(volume, record, intensity, steps)
    for warning in found:
        print(f"warning: {warning}", file=sys.stderr)
    result = segment(
        [each.array for each in volumes],
        network=network,
        preprocessing=intensity,
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
    figure = segmentation_figure(volume.array, labels, names, sizes, title=volume.source.name)
    figure.savefig(staging / "overlay.png", dpi=150)
    counts = np.bincount(labels.ravel(), minlength=len(names))
    if record:
        after = fraction_mismatches(record["data"], counts / labels.size)
        for warning in after:
            print(f"warning: {warning}", file=sys.stderr)
        found += after
    report = {
        "input": ", ".join(each.source.name for each in volumes),
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
        "model": model,
        "warnings": found,
        "inference": {
            "config": Path(source).name,
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
        volumes = check_arguments(args)
        with volume_io.staged_folder(args.out, last="report.json") as staging:
            report = segment_scan(args, volumes, staging)
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
