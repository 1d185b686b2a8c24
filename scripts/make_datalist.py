"""Make a data set for training from your own images and labels: crops or whole files, and ``dataset.json``.

    python scripts/make_datalist.py --images a.tif --labels a_label.tif --classes pore active CBD \\
        --map 0:1 1:2 2:0 --voxel-size-um 0.05 --out data/mine

Images and labels are TIFF, NIfTI, .npy or PNG files or folders of slices, given in the same order. ``--classes`` names
the classes in the order of the labels, 0 (pore or background) first. Where the files count otherwise, ``--map``
translates: here 0 in the files is class 1, active. To start from trained weights, keep the order of their classes.
Where a sample has several images, such as two energies, ``--channels`` names them and ``--images`` lists those of the
first sample, then those of the next.

``--split region`` cuts every image along its longest axis into a part to train, one to validate and one to test: so a
single annotated image is enough. ``--split file`` gives whole files to the splits, in the order of the command.
Then: python -m monai.bundle run --bundle_root . --dataset_dir data/mine
--config_file "['configs/train.json','configs/transfer.json']"
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bundle import volume_io  # noqa: E402

SPLITS = ("training", "validation", "test")


def parse_arguments() -> argparse.Namespace:
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="grey images or volumes")
    parser.add_argument("--labels", type=Path, nargs="+", required=True, help="their labels, in the same order")
    parser.add_argument("--channels", nargs="+", default=["CT"], help="names of the images of a sample (default: one)")
    parser.add_argument("--classes", nargs="+", required=True, help="names of the classes 0, 1, …")
    parser.add_argument("--map", nargs="+", default=[], metavar="FROM:TO", help="value in the files to class number")
    parser.add_argument(
        "--voxel-size-um", type=float, nargs="+", metavar="UM", help="where the files do not say it, in µm (x y [z])"
    )
    parser.add_argument("--split", choices=("region", "file"), default="region", help="default: region")
    parser.add_argument(
        "--shares", type=float, nargs=3, default=[0.75, 0.25, 0.0], metavar="SHARE",
        help="of training, validation and test (default: 0.75 0.25 0)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="new folder for the data set")
    return parser.parse_args()


def check_arguments(args: argparse.Namespace) -> None:
    if len(set(args.channels)) < len(args.channels):
        raise ValueError(f"--channels {' '.join(args.channels)}: give different names")
    if len(args.images) != len(args.labels) * len(args.channels):
        wanted = "each image" if len(args.channels) == 1 else f"every {len(args.channels)} images"
        raise ValueError(f"{len(args.images)} images and {len(args.labels)} labels; give one label file for {wanted}")
    if len(args.classes) < 2 or len(set(args.classes)) < len(args.classes):
        raise ValueError(f"--classes {' '.join(args.classes)}: give two or more different names")
    train, validate, test = args.shares
    if not (train > 0 and validate > 0 and test >= 0 and abs(sum(args.shares) - 1) < 1e-6):
        raise ValueError(f"--shares {train:g} {validate:g} {test:g}: the first two must be above 0, the sum 1")
    if args.split == "file" and len(args.labels) < sum(share > 0 for share in args.shares):
        raise ValueError(f"{len(args.labels)} pairs are too few to give each split a file; take --split region")
    if (args.out / "dataset.json").exists():
        raise ValueError(f"{args.out} holds a data set; give a new folder with --out")


def parse_map(pairs: list[str], n_classes: int) -> dict[int, int]:
    """Value in the files to class number; without pairs the classes themselves."""
    try:
        table = dict(tuple(int(n) for n in pair.split(":")) for pair in pairs)
    except (ValueError, TypeError):
        raise ValueError(f"--map {' '.join(pairs)}: each must be FROM:TO, two whole numbers such as 0:1") from None
    if len(table) < len(pairs):
        raise ValueError(f"--map {' '.join(pairs)}: gives one value of the files two classes")
    wrong = sorted(k for k in table.values() if not 0 <= k < n_classes)
    if wrong:
        raise ValueError(
            f"--map {' '.join(pairs)}: class {wrong[0]} does not exist, --classes names 0 to {n_classes - 1}"
        )
    return table or {k: k for k in range(n_classes)}


def read_sample(
    image_paths: list[Path], label_path: Path, voxel_size_um: list[float] | None, table: dict[int, int]
) -> tuple[list[volume_io.Volume], np.ndarray]:
    """The images of a sample and its class numbers, uint8 of the same shape, checked."""
    sizes = voxel_size_um[0] if voxel_size_um and len(voxel_size_um) == 1 else voxel_size_um
    images = [volume_io.read_volume(path, sizes) for path in image_paths]
    for image in images:
        volume_io.check_image(image.array, str(image.source))
    volume_io.check_same_geometry(images)
    values, shape = volume_io.read_volume(label_path).array, images[0].array.shape
    if values.shape != shape:
        raise ValueError(f"{label_path}: has shape {values.shape}, its image {image_paths[0].name} {shape}")
    present = np.unique(values)
    unknown = [v for v in present.tolist() if v not in table]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(
            f"{label_path}: holds {', '.join(f'{v:g}' for v in unknown[:5])}{more}, which is no class; name every "
            "class with --classes, or translate the values with --map FROM:TO"
        )
    labels = np.zeros(values.shape, np.uint8)
    for value, number in table.items():
        labels[values == value] = number
    return images, labels


def parts(shape: tuple[int, ...], split: str, shares: list[float], index: int, count: int) -> Iterator[tuple]:
    """(split, where) of the parts of the image ``index`` of ``count``; ``where`` indexes the array."""
    ends = np.cumsum(shares)
    if split == "file":
        last = [max(1, int(share * count)) if share > 0 else 0 for share in shares[1:]]
        first = count - sum(last)
        if first < 1:
            raise ValueError(f"--shares {shares} of {count} files leave none to train on; give training more")
        yield SPLITS[int(np.searchsorted(np.cumsum([first, *last]), index, side="right"))], ...
        return
    axis = int(np.argmax(shape))
    edges = [0, *(round(end * shape[axis]) for end in ends)]
    for name, share, low, high in zip(SPLITS, shares, edges[:-1], edges[1:], strict=True):
        if share > 0:
            yield name, (*[slice(None)] * axis, slice(low, high))


def write_part(
    out: Path, stem: str, images: list[volume_io.Volume], labels: np.ndarray, where, split: str
) -> tuple[dict, np.ndarray]:
    """Write one sample; returns its entry in the data list and how many voxels each class has."""
    classes, name, names = labels[where], f"{stem}_{split}", []
    start = np.zeros(3)
    if where is not ...:
        start[: len(where)] = [axis.start or 0 for axis in where]
    for k, image in enumerate(images):
        grey = image.array[where]
        volume_io.check_image(grey, f"{image.source}, {split} part")
        if grey.dtype.name not in volume_io.NIFTI_DTYPES:
            grey = grey.astype(np.float32)
        names.append(f"images/{name}{f'_{k:04d}' if len(images) > 1 else ''}.nii.gz")
        volume_io.write_nifti(out / names[-1], grey, shifted(image.affine, start))
    volume_io.write_nifti(out / f"labels/{name}.nii.gz", classes, shifted(images[0].affine, start))
    entry = {"image": names[0] if len(names) == 1 else names, "label": f"labels/{name}.nii.gz"}
    return entry, np.bincount(classes.ravel(), minlength=256)


def shifted(affine: np.ndarray | None, start: np.ndarray) -> np.ndarray | None:
    """The affine of a part of an image that begins at the voxel ``start``; None where the file has none."""
    if affine is None:
        return None
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ start
    return moved


def make(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Write the data set; returns the voxels of each class in each split."""
    table = parse_map(args.map, len(args.classes))
    lists: dict[str, list] = {split: [] for split in SPLITS}
    voxels = {split: np.zeros(256, np.int64) for split in SPLITS}
    sizes, dims = set(), set()
    n = len(args.channels)
    for k, label_path in enumerate(args.labels):
        paths = args.images[k * n : (k + 1) * n]
        images, labels = read_sample(paths, label_path, args.voxel_size_um, table)
        sizes.add(images[0].voxel_size_um)
        dims.add(labels.ndim)
        if len(dims) > 1:
            raise ValueError(f"{paths[0]}: is {labels.ndim}D, the files before it are not; make a data set of each")
        for split, where in parts(labels.shape, args.split, args.shares, k, len(args.labels)):
            stem = f"{k:03d}_{paths[0].name.split('.')[0]}"
            entry, counts = write_part(args.out, stem, images, labels, where, split)
            lists[split].append(entry)
            voxels[split] += counts
    content = {
        "name": args.out.name,
        "description": f"{len(args.labels)} annotated images, split by {args.split}",
        "tensorImageSize": f"{dims.pop()}D",
        "channel_names": {str(k): name for k, name in enumerate(args.channels)},
        "labels": {str(k): name for k, name in enumerate(args.classes)},
    }
    common = next(iter(sizes)) if len(sizes) == 1 else None
    if common and len(set(common)) == 1:
        content["voxel_size_um"] = common[0]
    volume_io.write_json(args.out / "dataset.json", content | lists)
    return voxels


def report(args: argparse.Namespace, voxels: dict[str, np.ndarray]) -> None:
    print(f"{'split':<12}{'voxels':>12}" + "".join(f"{name:>12}" for name in args.classes))
    for split, counts in voxels.items():
        if counts.sum():
            shares = counts[: len(args.classes)] / counts.sum()
            print(f"{split:<12}{counts.sum():>12,}" + "".join(f"{share:>12.2%}" for share in shares))
    for k, name in enumerate(args.classes):
        if not voxels["training"][k]:
            print(f"note: nothing in the training part is {name}; the network cannot learn it", file=sys.stderr)
    if not voxels["validation"][1:].any():
        print(f"note: the validation part is all {args.classes[0]}; no score can tell networks apart", file=sys.stderr)
    print(f"data set: {args.out / 'dataset.json'}")


def main() -> int:
    args = parse_arguments()
    try:
        check_arguments(args)
        voxels = make(args)
    except (OSError, ValueError, MemoryError) as error:
        print(f"make_datalist.py: {volume_io.one_line(error)}", file=sys.stderr)
        return 2
    report(args, voxels)
    return 0


if __name__ == "__main__":
    sys.exit(main())
