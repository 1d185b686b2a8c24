"""The main job on small data: generate, train, evaluate, segment, and one picture of it all.

    python scripts/quickstart.py [--scan scan.tif --voxel-size-um 0.05]

Every step is a command that is printed before it runs, so it can be repeated by hand. What is done is kept: started
again, the job goes on where it stopped.
"""

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bundle import volume_io  # noqa: E402  (light; MONAI runs in the steps)

BUNDLE_RUN = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(ROOT)]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scan", type=Path, help="your scan, segmented as well")
    parser.add_argument("--voxel-size-um", type=float, help="[µm] where the scan does not say it")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder for everything")
    parser.add_argument("--pairs", type=int, default=200, help="image and label pairs to generate")
    parser.add_argument("--epochs", type=int, default=50, help="training epochs")
    parser.add_argument("--size", type=int, default=256, help="pixels along each side of an image")
    parser.add_argument("--volume-size", type=int, default=128, help="voxels along each side of the 3D volume")
    return parser.parse_args()


def check_scan(path: Path, voxel_size_um: float | None) -> None:
    """Refuse a scan that cannot be segmented, before minutes are spent."""
    volume = volume_io.read_volume(path, voxel_size_um)
    if volume.affine is None:
        raise ValueError(f"{path} does not say its voxel size; give it in µm: make run SCAN={path} VOXEL_SIZE_UM=0.5")
    volume_io.check_image(volume.array, str(path))


def bundle_run(configs: list[str], **options) -> list[str]:
    """The command of a MONAI bundle run."""
    files = [str(ROOT / "configs" / name) for name in configs]
    words = ["--config_file", files[0] if len(files) == 1 else str(files)]
    words += ["--meta_file", str(ROOT / "configs/metadata.json")]
    words += ["--logging_file", str(ROOT / "configs/logging.conf")]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    return BUNDLE_RUN + words


def segment(scan: Path, out: Path, checkpoint: Path, voxel_size_um: float | None = None) -> list[str]:
    """The command that segments a scan."""
    command = [sys.executable, str(ROOT / "scripts/segment.py"), str(scan), "--out", str(out)]
    command += ["--checkpoint", str(checkpoint)]
    return command + (["--voxel-size-um", f"{voxel_size_um:g}"] if voxel_size_um else [])


def run(title: str, command: list[str], seconds: dict[str, float]) -> None:
    """Print and run one step; raise ValueError where it fails, since it has said why."""
    print(f"\n=== {title}\n$ {shlex.join(command)}", flush=True)
    quiet = os.environ | {"PYTHONWARNINGS": "ignore:parsing config_file"}  # MONAI's note that configs can run code
    start = time.monotonic()
    code = subprocess.run(command, env=quiet, cwd=ROOT).returncode
    if code:
        raise ValueError(f"step {title!r} failed with exit code {code}; its last lines say why")
    seconds[title] = round(time.monotonic() - start, 1)


def median_case(metrics_csv: Path) -> Path:
    """The test image whose Dice is the median of the network's."""
    with metrics_csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    network = rows[0]["method"]
    ranked = sorted((r for r in rows if r["method"] == network), key=lambda r: float(r["mean_dice"]))
    return Path(ranked[len(ranked) // 2]["image"])


def main() -> int:
    args = parse_arguments()
    out = args.out.resolve()
    flat, solid, trained = out / "spheres", out / "spheres_3d", out / "training"
    volume = solid / "images/spheres_00000.nii.gz"
    seconds: dict[str, float] = {}
    start = time.monotonic()
    try:
        if args.scan:
            check_scan(args.scan, args.voxel_size_um)
        shape = [args.size] * 2
        run(
            "generate training pairs",
            bundle_run(["generate_spheres.json"], count=args.pairs, output_dir=flat, shape=shape),
            seconds,
        )
        run(
            "generate a 3D volume",
            bundle_run(["generate_spheres.json"], count=1, seed=1, output_dir=solid, shape=[args.volume_size] * 3),
            seconds,
        )
        run(
            "train",
            bundle_run(["train.json"], dataset_dir=flat, output_dir=trained, max_epochs=args.epochs),
            seconds,
        )
        run(
            "evaluate",
            bundle_run(["train.json", "evaluate.json"], dataset_dir=flat, output_dir=trained),
            seconds,
        )
        image = flat / "images" / median_case(trained / "evaluation/metrics.csv").name
        run("segment a test image", segment(image, out / "segmented_image", trained / "model.pt"), seconds)
        run("segment the 3D volume", segment(volume, out / "segmented_volume", trained / "model.pt"), seconds)
        if args.scan:
            scan = segment(args.scan.resolve(), out / "segmented_scan", trained / "model.pt", args.voxel_size_um)
            run("segment your scan", scan, seconds)
        draw = [sys.executable, str(ROOT / "scripts/overview.py"), str(out), "--image", str(image)]
        run("draw the overview", draw, seconds)
    except (OSError, ValueError) as error:
        print(f"quickstart.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; start again to go on", file=sys.stderr)
        return 130
    volume_io.write_json(out / "seconds.json", seconds | {"total": round(time.monotonic() - start, 1)})
    report(out, trained, seconds, bool(args.scan))
    return 0


def report(out: Path, trained: Path, seconds: dict[str, float], with_scan: bool) -> None:
    """Say what was made, where, and what to do next."""
    made = {
        "the whole job in one picture": out / "overview.png",
        "table against the classical methods": trained / "evaluation/metrics.md",
        "trained weights": trained / "model.pt",
        "segmented 3D volume": out / "segmented_volume",
    }
    if with_scan:
        made["your scan, segmented"] = out / "segmented_scan"
    print(f"\nDone in {sum(seconds.values()) / 60:.1f} minutes. Made:")
    for what, path in made.items():
        print(f"  {what:<38} {path}")
    print(
        "\nNext:\n"
        f"  watch the training curves            {Path(sys.executable).parent / 'tensorboard'} --logdir {trained}\n"
        f"  segment a scan of your own           {sys.executable} scripts/segment.py scan.tif --voxel-size-um 0.5 "
        f"--checkpoint {trained / 'model.pt'} --out results/scan\n"
        "  make the full data set and train     README.md, 'The published protocol'"
    )
    print(json.dumps({"overview": str(out / "overview.png")}))


if __name__ == "__main__":
    sys.exit(main())
