"""Networks side by side: at equal epochs, then at equal time, on spheres, a three-phase cathode and a fuel cell.

Equal time: each network gets as many epochs as fit into the time that the default UNet took for its own, so that its
learning-rate schedule ends with it. Times are those of the fastest epochs (``common.training_seconds``): on a shared
machine they are within what the others leave, so give it an idle one for figures. All are trained on the same patches.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tqdm import tqdm

from studies.common import (
    Segmenter,
    check_names,
    folder_name,
    generate,
    history,
    markdown,
    mean_sd,
    scores,
    train,
    training_seconds,
    write_results,
)

NETWORKS = {
    "UNet": [],
    "UNet of the paper": ["network_unet_paper.json"],
    "SegResNet": ["network_segresnet.json"],
    "Attention UNet": ["network_attention_unet.json"],
    "DynUNet": ["network_dynunet.json"],
    "LRCS-Net": ["network_lrcsnet.json"],
}
MATERIALS = {
    "spheres": "generate_spheres.json",
    "NMC cathode": "generate_nmc_cathode.json",
    "solid-oxide cell": "generate_sofc.json",
}
SIZES = {
    "small": {
        "pairs": {2: 100, 3: 12},
        "shape": {2: [256, 256], 3: [96, 96, 96]},
        "epochs": {2: 30, 3: 12},
        "dims": (2,),
    },
    "full": {
        "pairs": {2: 1000, 3: 60},
        "shape": {2: [256, 256], 3: [128, 128, 128]},
        "epochs": {2: 100, 3: 60},
        "dims": (2, 3),
    },
}


def run(
    out: Path,
    size: str,
    networks: tuple[str, ...] = tuple(NETWORKS),
    materials: tuple[str, ...] = tuple(MATERIALS),
    dims: tuple[int, ...] | None = None,
) -> None:
    """Do the study; every step whose result lies in ``out`` is taken from there."""
    check_names("networks", networks, list(NETWORKS))
    check_names("materials", materials, list(MATERIALS))
    p = SIZES[size]
    rows: list[dict] = []
    cases = [(m, d) for m in materials for d in dims or p["dims"]]
    with tqdm(total=2 * len(cases) * len(networks), desc="trainings", unit="run") as bar:
        for material, d in cases:
            shape, epochs = p["shape"][d], p["epochs"][d]
            dataset = generate(out, p["pairs"][d], 0, MATERIALS[material], label=f"{d}d", shape=shape)
            case = out / "runs" / folder_name(material, f"{d}d")
            budget = training_seconds(_train(case, dataset, next(iter(NETWORKS)), d, epochs, "epochs"))
            for network in networks:
                equal = _train(case, dataset, network, d, epochs, "epochs")
                bar.update()
                rows.append(_row(equal, dataset, material, d, network, "epochs"))
                more = max(1, round(epochs * budget / training_seconds(equal)))
                timed = equal if more == epochs else _train(case, dataset, network, d, more, "time")
                bar.update()
                rows.append(_row(timed, dataset, material, d, network, "time"))
                write_results(out, "networks", size, {"rows": rows}, _table(rows), _figure(rows))


def _train(case: Path, dataset: Path, network: str, dims: int, epochs: int, equal: str) -> Path:
    run = case.with_name(folder_name(case.name, network, equal))
    overlays = ["volume_3d.json"] * (dims == 3) + NETWORKS[network]
    return train(run, dataset / "dataset.json", overlays, max_epochs=epochs, val_interval=max(1, epochs // 5))


def _row(run: Path, dataset: Path, material: str, dims: int, network: str, equal: str) -> dict:
    values = scores(run, dataset, ("test",))
    names = Segmenter(run).class_names

    def mean(key: str) -> float:
        return mean_sd([v[key] for v in values])[0]

    return {
        "material": material,
        "dims": dims,
        "network": network,
        "equal": equal,
        "epochs": len(history(run)),
        "training_seconds": training_seconds(run),
        "parameters": Segmenter(run).parameters,
        "n": len(values),
        "dice": mean_sd([v["mean_dice"] for v in values]),
        "iou": {name: mean(f"iou_{k}") for k, name in enumerate(names)},
        "fraction_error": mean("mean_abs_fraction_error"),
        "surface_error": mean("mean_abs_surface_error"),
        "size_error": mean("mean_abs_size_error"),
        "mvoxel_per_s": sum(v["voxels"] for v in values) / sum(v["seconds"] for v in values) / 1e6,
    }


def _table(rows: list[dict]) -> str:
    header = ["material", "equal", "network", "parameters", "epochs", "training [min]", "Dice", "IoU of each phase"]
    header += ["error of fraction", "of surface", "of size", "Mvoxel/s", "n"]
    lines = []
    for r in rows:
        iou = ", ".join(f"{name} {v:.3f}" for name, v in r["iou"].items())
        line = [f"{r['material']}, {r['dims']}D", r["equal"], r["network"], f"{r['parameters']:,}", r["epochs"]]
        line += [f"{r['training_seconds'] / 60:.1f}", f"{r['dice'][0]:.4f} ± {r['dice'][1]:.4f}", iou]
        line += [f"{r['fraction_error']:.4f}", f"{r['surface_error']:.3f}", f"{r['size_error']:.3f}"]
        lines.append([*line, f"{r['mvoxel_per_s']:.2f}", r["n"]])
    return f"{markdown(header, lines)}\n\nmean ± sd of n test images or volumes, mirrored inference."


def _figure(rows: list[dict]) -> Figure:
    cases = list(dict.fromkeys((r["material"], r["dims"]) for r in rows))
    colours = {name: f"C{k}" for k, name in enumerate(NETWORKS)}
    figure = Figure(figsize=(4 * len(cases) + 1.5, 3.6), layout="constrained")
    for axes, (material, dims) in zip(figure.subplots(1, len(cases), squeeze=False)[0], cases, strict=True):
        for r in rows:
            if (r["material"], r["dims"]) == (material, dims):
                marker, fill = ("o", "full") if r["equal"] == "epochs" else ("s", "none")
                x, y = r["training_seconds"] / 60, r["dice"][0]
                axes.plot(x, y, marker, fillstyle=fill, color=colours[r["network"]])
        axes.set(title=f"{material}, {dims}D", xlabel="training [min]", ylabel="Dice")
    shown = [name for name in NETWORKS if any(r["network"] == name for r in rows)]
    handles = [Line2D([], [], marker="o", linestyle="", color=colours[name], label=name) for name in shown]
    figure.legend(handles=handles, loc="outside right center", fontsize=8, title="full: equal epochs\nopen: equal time")
    return figure
