"""Draw every material that a config generates: a slice of its labels, its simulated scan and a volume, on one page.

    python scripts/microstructure_gallery.py docs/microstructures.png

Label and scan are one sample of the data set with seed 0 that `configs/generate_*.json` describes. The volume is built
by the same recipe on its own, with voxels large enough for the box to hold its features; pores are transparent.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.ndimage import gaussian_filter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bundle.pictures import class_legend, label_colours, palette, scale_bar, show, to_grey  # noqa: E402
from bundle.volume_io import atomic_path  # noqa: E402

INDEX, PIXELS, COLOURS, STEP = 2, 256, 160, 0.5
VOLUMES = {  # voxels along an edge and their size [µm]
    "spheres": ((120, 120, 120), 0.5),
    "nmc_cathode": ((160, 160, 160), 0.1),
    "graphite_anode": ((160, 160, 160), 0.4),
    "sofc": ((128, 128, 128), 0.065),
    "metal_supported_cell": ((112, 112, 208), 0.3),
    "fibre_electrode": ((160, 160, 160), 0.05),
    "foam": ((224, 224, 224), 2.3),
    "foam_open": ((200, 200, 200), 4.0),
    "porespy_blobs": ((160, 160, 160), 1.0),
}
TITLES = {
    "spheres": "spheres (baseline)",
    "nmc_cathode": "NMC cathode",
    "graphite_anode": "graphite–silicon anode",
    "sofc": "Ni–YSZ electrode",
    "metal_supported_cell": "metal-supported cell",
    "fibre_electrode": "Li–O₂ fibre electrode",
    "foam": "closed foam",
    "foam_open": "open foam",
    "porespy_blobs": "porous titanium (PoreSpy)",
}


def read_dataset(name: str):
    from monai.bundle import ConfigParser  # takes seconds

    parser = ConfigParser()
    parser.read_config(str(ROOT / f"configs/generate_{name}.json"))
    return parser.get_parsed_content("dataset")


def volume_view(labels: np.ndarray, n_classes: int, pixels: int = PIXELS) -> np.ndarray:
    """uint8 RGB (pixels, pixels, 3) of a volume from above one edge, z up; class 0 is transparent.

    Parallel rays in steps of half a voxel; the first voxel that is not pore is shaded by the angle of its surface.
    """
    solid = np.pad(labels > 0, 2).astype(np.float32)
    normals = np.stack(np.gradient(gaussian_filter(solid, 1.2)), -1)[2:-2, 2:-2, 2:-2]
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-6
    centre = np.array(labels.shape) / 2
    ray = np.array([-0.60, -0.48, -0.64])
    right = np.array([-0.48, 0.60, 0.0]) / np.hypot(0.48, 0.60)
    up = np.cross(right, ray)
    up *= np.sign(up[2]) / np.linalg.norm(up)
    corners = np.array([[sx, sy, sz] for sx in (-1, 1) for sy in (-1, 1) for sz in (-1, 1)]) * centre
    half = max(np.abs(corners @ right).max(), np.abs(corners @ up).max()) * 1.02
    u = (np.arange(pixels) + 0.5) / pixels * 2 - 1
    start = centre + half * (u[:, None] * right - u[:, None, None] * up)
    reach = np.linalg.norm(centre)
    hit = np.zeros((pixels, pixels), np.int32)
    place = np.zeros((pixels, pixels, 3), np.int32)
    light = np.array([0.50, 0.25, 0.83])
    for distance in np.arange(-reach, reach, STEP):
        at = np.floor(start + distance * ray).astype(np.int32)
        inside = ((at >= 0) & (at < labels.shape)).all(-1) & (hit == 0)
        where = np.nonzero(inside)
        seen = labels[tuple(at[where].T)]
        found = seen > 0
        where = tuple(w[found] for w in where)
        hit[where] = seen[found]
        place[where] = at[where]
    slope = -(normals[tuple(np.moveaxis(place, -1, 0))] @ light)
    depth = ((place - centre) @ ray + reach) / (2 * reach)
    brightness = (0.45 + 0.6 * np.clip(slope, 0, 1)) * (1.1 - 0.5 * depth)
    picture = palette(n_classes)[hit] * np.clip(brightness, 0, 1.1)[..., None]
    picture[hit == 0] = 255
    return np.clip(picture, 0, 255).astype(np.uint8)


def draw(names: list[str], index: int) -> Figure:
    columns, gap, title, legend = 6, 6, 16, 16
    lines = -(-len(names) // 2)
    width = columns * PIXELS + (columns + 1) * gap + 10
    height = lines * (PIXELS + title + legend + gap) + gap
    figure = Figure((width / 100, height / 100), dpi=100)
    for i, name in enumerate(names):
        dataset = read_dataset(name)
        image, label, _ = dataset.pair(0, index)
        shape, voxel_um = VOLUMES[name]
        rng = np.random.default_rng(np.random.SeedSequence([0, index]))
        generator = dataset.microstructure
        volume, _ = generator.build(shape, voxel_um, generator.draw(rng), rng)
        size = [n * dataset.voxel_size_um for n in label.shape]
        n_classes = len(dataset.phases)
        edges = " × ".join(f"{n * voxel_um:.3g}" for n in shape)
        pictures = (
            (label_colours(label, n_classes), TITLES[name]),
            (to_grey(image), "simulated scan"),
            (volume_view(volume, n_classes), f"{edges} µm"),
        )
        line, column = divmod(i, 2)
        top = gap + line * (PIXELS + title + legend + gap)
        for k, (picture, text) in enumerate(pictures):
            left = gap + (3 * column + k) * (PIXELS + gap) + 10 * column
            axes = figure.add_axes((left / width, 1 - (top + title + PIXELS) / height, PIXELS / width, PIXELS / height))
            if k < 2:
                show(axes, picture, size)
            else:
                axes.imshow(picture, interpolation="nearest")
                axes.set_axis_off()
            if k == 0:
                scale_bar(axes, *size)
                figure.legend(
                    handles=class_legend(list(dataset.phases)), loc="upper left", ncols=5, fontsize=7, frameon=False,
                    bbox_to_anchor=(left / width, 1 - (top + title + PIXELS + 1) / height), borderpad=0.1,
                    handlelength=1, columnspacing=1, borderaxespad=0,
                )  # fmt: skip
            bold = "bold" if k == 0 else "normal"
            figure.text(left / width, 1 - (top + title - 4) / height, text, fontsize=8, fontweight=bold)
        print(f"{name}: fractions {np.bincount(volume.ravel(), minlength=n_classes) / volume.size}", flush=True)
    return figure


def main() -> int:
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path, help="PNG file")
    parser.add_argument("--materials", nargs="+", choices=VOLUMES, default=list(VOLUMES), help="default: all")
    parser.add_argument("--index", type=int, default=INDEX, help=f"sample of the data set (default: {INDEX})")
    args = parser.parse_args()
    figure = draw(args.materials, args.index)
    with atomic_path(args.picture) as path:
        figure.savefig(path, format="png")
        with Image.open(path) as full:
            few = full.convert("RGB").quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(path, format="png", optimize=True)
    print(f"{args.picture}: {args.picture.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
