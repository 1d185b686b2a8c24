"""Share trained networks: put weights into models/, pack them as a MONAI bundle, check one, export it, publish it.

python scripts/share.py promote --checkpoint runs/spheres_unet/model.pt --name spheres --version 0.1.0
python scripts/share.py pack --checkpoint models/spheres/model.pt --out dist
python scripts/share.py verify dist/spheres_v0.1.0.zip
python scripts/share.py export dist/spheres_v0.1.0.zip --out dist/spheres_onnx
python scripts/share.py publish dist/spheres_v0.1.0.zip --repo me/spheres
"""

import argparse
import json
import logging
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bundle import volume_io  # noqa: E402  (MONAI is imported later: it takes seconds, and --help needs none of it)


def parse_arguments() -> argparse.Namespace:
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    promote = verbs.add_parser("promote", help="put a run's weights into models/, with record and model card")
    pack = verbs.add_parser("pack", help="write a MONAI bundle, a folder and a zip")
    for verb in (promote, pack):
        verb.add_argument(
            "--checkpoint", type=Path, required=True, help="model.pt of an evaluated run, or of models/NAME (pack)"
        )
        verb.add_argument("--name", help="lower-case letters, digits and underscores, for example nmc_cathode")
        verb.add_argument("--version", help="three numbers, for example 0.1.0")
        verb.add_argument("--changes", default="", help="what is new in this version, one sentence")
        verb.add_argument("--dataset", type=Path, help="folder of the training data (default: the run's)")
        verb.add_argument("--notes", type=Path, help="Markdown file that the model card quotes")
    promote.add_argument("--out", type=Path, default=ROOT / "models", help="default: models/ of the repository")
    promote.add_argument(
        "--default", action="store_true", help="also write models/model.pt, what configs/inference.json loads"
    )
    pack.add_argument("--out", type=Path, default=Path("dist"), help="folder for the bundle (default: dist)")
    verify = verbs.add_parser("verify", help="check a bundle without running what it ships")
    export = verbs.add_parser("export", help="write ONNX and torch.export files, and a runner without MONAI")
    export.add_argument("--out", type=Path, required=True, help="folder for the files")
    export.add_argument("--torchscript", action="store_true", help="also write TorchScript")
    publish = verbs.add_parser("publish", help="upload a bundle to the Hugging Face hub")
    publish.add_argument("--repo", required=True, help="OWNER/NAME on the hub")
    publish.add_argument("--endpoint", help="address of another hub")
    for verb in (verify, export, publish):
        verb.add_argument("bundle", type=Path, help="a zip, its folder, or models/NAME")
    for verb in (verify, export):
        verb.add_argument("--trust", metavar="NAME", help="go on though checks fail, for the bundle of this name")
    return parser.parse_args()


def run_promote(args: argparse.Namespace) -> None:
    from bundle.record import promote

    if not (args.name and args.version):
        raise ValueError("give --name and --version")
    notes = args.notes.read_text(encoding="utf-8") if args.notes else ""
    options = {"dataset": args.dataset, "changes": args.changes, "notes": notes}
    folder = promote(args.checkpoint, args.name, args.version, args.out, **options)
    print(f"{folder}/: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if args.default:
        check_default(folder)
        with volume_io.atomic_path(args.out / "model.pt") as path:
            shutil.copyfile(folder / "model.pt", path)
        print(f"{args.out / 'model.pt'}")


def check_default(folder: Path) -> None:
    """That ``configs/inference.json`` is of the network in ``folder``. Raises ValueError if it is not."""
    from monai.bundle import ConfigParser

    from bundle.inference import load_weights

    parser = ConfigParser(ConfigParser.load_config_file(str(ROOT / "configs/inference.json")))
    classes = json.loads((folder / "record.json").read_text(encoding="utf-8"))["classes"]
    try:
        if classes != parser.get_parsed_content("class_names"):
            raise ValueError(f"its classes are {', '.join(classes)}")
        load_weights(parser.get_parsed_content("network_def"), folder / "model.pt")
    except ValueError as error:
        raise ValueError(
            f"{folder} is promoted, but is not the default: configs/inference.json is of another network ({error})"
        ) from error


def run_pack(args: argparse.Namespace) -> None:
    from bundle.package import pack

    with tempfile.TemporaryDirectory(prefix="share-") as scratch:
        folder = args.checkpoint if args.checkpoint.is_dir() else args.checkpoint.parent
        if (folder / "record.json").is_file():
            if args.name or args.version or args.notes or args.changes:
                raise ValueError(f"{folder}: has its name, version and card already; promote again to change them")
        else:
            args.out, args.default, out = Path(scratch), False, args.out
            run_promote(args)
            folder, args.out = Path(scratch) / args.name, out
        target, archive, left_out = pack(folder, args.out)
    for reason in left_out:
        print(f"left out: {reason}")
    print(f"{target}/\n{archive}  {archive.stat().st_size / 1e6:.2f} MB  SHA-256 {volume_io.sha256(archive)}")


def run_verify(args: argparse.Namespace) -> int:
    from bundle.trust import print_findings, verify

    return print_findings(verify(args.bundle, args.trust), args.bundle.name)


def run_export(args: argparse.Namespace) -> None:
    from bundle.export import export
    from bundle.trust import opened

    with opened(args.bundle, args.trust) as bundle:
        for line in export(bundle, args.out, torchscript=args.torchscript):
            print(line)
    print(f"{args.out}/")


def run_publish(args: argparse.Namespace) -> None:
    from bundle.package import publish

    print(publish(args.bundle, args.repo, args.endpoint))


def main() -> int:
    args = parse_arguments()
    logging.disable(logging.WARNING)  # MONAI and torch announce what they always do
    warnings.simplefilter("ignore")
    verbs = {
        "promote": run_promote,
        "pack": run_pack,
        "verify": run_verify,
        "export": run_export,
        "publish": run_publish,
    }
    try:
        return verbs[args.verb](args) or 0
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    except (OSError, ValueError, MemoryError) as error:
        print(f"share.py: {volume_io.one_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
