"""Networks side by side: at equal epochs, then at equal time, on spheres, a three-phase cathode and a fuel cell.

Equal time: each network gets as many epochs as fit into the time that the default UNet needs for its own, so that its
learning-rate schedule ends with it. What a step of each takes is measured beforehand, in turns: the fastest of each,
since other work on the machine makes a step longer and never shorter. All are trained on the same patches.
"""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from monai.bundle import ConfigParser
from tqdm import tqdm

from bundle.volume_io import write_json
from studies.common import (
    MACHINE,
    ROOT,
    Segmenter,
    check_names,
    earlier_rows,
    folder_name,
    generate,
    history,
    markdown,
    mean_sd,
    minutes,
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
OF_VOLUMES = {  # a volume has fewer voxels along its edge than an image: particles of at most a quarter of 96
    "NMC cathode": {"microstructure::mean_radius_um": [0.6, 1.2]},
}
KEY = ("material", "dims", "network", "equal")  # of a row
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
    rows = earlier_rows(out, size, KEY)
    cases = [(m, d) for m in materials for d in dims or p["dims"]]
    with tqdm(total=2 * len(cases) * len(networks), desc="trainings", unit="run") as bar:
        for material, d in cases:
            shape, epochs = p["shape"][d], p["epochs"][d]
            overlay = OF_VOLUMES.get(material) if d == 3 else None
            dataset = generate(out, p["pairs"][d], 0, MATERIALS[material], overlay, label=f"{d}d", shape=shape)
            case = out / "runs" / folder_name(material, f"{d}d")
            seconds = step_seconds(case.with_suffix(".json"), dataset / "dataset.json", d)
            for network in networks:
                share = seconds[network] / seconds[next(iter(NETWORKS))]
                equal_time = max(1, round(epochs / share))
                for equal, count in (("epochs", epochs), ("time", equal_time)):
                    trained = _train(case, dataset, network, d, count, "epochs" if count == epochs else equal)
                    row = {"material": material, "dims": d, "network": network, "equal": equal}
                    row |= {"step_seconds": seconds[network], "times_of_unet": share * count / epochs}
                    row |= _row(trained, dataset)
                    rows[tuple(row[k] for k in KEY)] = row
                    bar.update()
                found = sorted(rows.values(), key=_order)
                write_results(out, "networks", size, {"rows": found}, _table(found), _figure(found))


def step_seconds(file: Path, datalist: Path, dims: int, rounds: int = 15) -> dict[str, float]:
    """[s] of a training step of each network on a batch of noise, the fastest of ``rounds``; kept in ``file``."""
    if file.exists():
        return json.loads(file.read_text())
    steps = {name: _step(datalist, dims, overlays) for name, overlays in NETWORKS.items()}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:  # the first is to warm up
                taken[name].append(time.perf_counter() - start)
    write_json(file, {name: min(seconds) for name, seconds in taken.items()})
    return json.loads(file.read_text())


def _step(datalist: Path, dims: int, overlays: list[str]):
    """One step of a network, as a function."""
    files = [str(ROOT / "configs" / name) for name in ("train.json", *_overlays(dims, overlays))]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser.update({"bundle_root": str(ROOT), "datalist": str(datalist), **MACHINE})
    network, loss, optimizer, inferer, device = (
        parser.get_parsed_content(k) for k in ("network", "loss", "optimizer", "train#inferer", "device")
    )
    count = parser.get_parsed_content("batch_size") * parser.get_parsed_content("patches_per_image")
    image = torch.rand(count, 1, *parser.get_parsed_content("patch_size"), device=device)
    label = (image > 0.5).long()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(inferer(image, network), label).backward()
        optimizer.step()
        if image.is_cuda:
            torch.cuda.synchronize()

    return step


def _overlays(dims: int, of_network: list[str]) -> list[str]:
    return ["volume_3d.json"] * (dims == 3) + of_network


def _order(row: dict) -> tuple:
    return list(MATERIALS).index(row["material"]), row["dims"], list(NETWORKS).index(row["network"]), row["equal"]


def _train(case: Path, dataset: Path, network: str, dims: int, epochs: int, equal: str) -> Path:
    run = case.with_name(folder_name(case.name, network, equal))
    options = {"max_epochs": epochs, "val_interval": max(1, epochs // 5)}
    return train(run, dataset / "dataset.json", _overlays(dims, NETWORKS[network]), **options)


def _row(run: Path, dataset: Path) -> dict:
    values = scores(run, dataset, ("test",))
    segmenter = Segmenter(run)

    def mean(key: str) -> float:
        return mean_sd([v[key] for v in values])[0]

    return {
        "epochs": len(history(run)),
        "training_seconds": training_seconds(run),
        "parameters": segmenter.parameters,
        "n": len(values),
        "dice": mean_sd([v["mean_dice"] for v in values]),
        "iou": {name: mean(f"iou_{k}") for k, name in enumerate(segmenter.class_names)},
        "fraction_error": mean("mean_abs_fraction_error"),
        "surface_error": mean("mean_abs_surface_error"),
        "size_error": mean("mean_abs_size_error"),
        "mvoxel_per_s": sum(v["voxels"] for v in values) / sum(v["seconds"] for v in values) / 1e6,
    }


def _table(rows: list[dict]) -> str:
    header = ["material", "equal", "network", "parameters", "step [ms]", "epochs", "training [min]", "Dice"]
    header += ["IoU of each phase"]
    header += ["error of fraction", "of surface", "of size", "Mvoxel/s", "n"]
    lines = []
    for r in rows:
        iou = ", ".join(f"{name} {v:.3f}" for name, v in r["iou"].items())
        line = [f"{r['material']}, {r['dims']}D", r["equal"], r["network"], f"{r['parameters']:,}"]
        spread = "" if r["dice"][1] is None or np.isnan(r["dice"][1]) else f" ± {r['dice'][1]:.4f}"
        line += [f"{1000 * r['step_seconds']:.0f}", r["epochs"], minutes(r["training_seconds"])]
        line += [f"{r['dice'][0]:.4f}{spread}", iou]
        line += [f"{r['fraction_error']:.4f}", f"{r['surface_error']:.3f}", f"{r['size_error']:.3f}"]
        lines.append([*line, f"{r['mvoxel_per_s']:.2f}", r["n"]])
    note = "Mean ± sd of n test images or volumes, mirrored inference. Minutes as they were, and on an idle machine."
    return f"{markdown(header, lines)}\n\n{note}"


def _figure(rows: list[dict]) -> Figure:
    materials, all_dims = (list(dict.fromkeys(r[key] for r in rows)) for key in ("material", "dims"))
    of_case = {(r["material"], r["dims"]): r["n"] for r in rows}
    colours = {name: f"C{k}" for k, name in enumerate(NETWORKS)}
    figure = Figure(figsize=(4 * len(materials) + 1.5, 3.6 * len(all_dims)), layout="constrained")
    grid = figure.subplots(len(all_dims), len(materials), squeeze=False)
    for axes, (dims, material) in zip(grid.flat, itertools.product(sorted(all_dims), materials), strict=True):
        if (material, dims) not in of_case:
            axes.set_axis_off()
            continue
        for r in rows:
            if (r["material"], r["dims"]) == (material, dims):
                marker, fill = ("o", "full") if r["equal"] == "epochs" else ("s", "none")
                axes.plot(r["times_of_unet"], r["dice"][0], marker, fillstyle=fill, color=colours[r["network"]])
        axes.set(title=f"{material}, {dims}D, n = {of_case[material, dims]}, one seed", xscale="log")
        axes.set(xlabel="training time, in times of the UNet's", ylabel="Dice without pore")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if round(x, 9) in (0.5, 2, 5) else "")
    shown = [name for name in NETWORKS if any(r["network"] == name for r in rows)]
    handles = [Line2D([], [], marker="o", linestyle="", color=colours[name], label=name) for name in shown]
    figure.legend(handles=handles, loc="outside right center", fontsize=8, title="full: equal epochs\nopen: equal time")
    return figure
