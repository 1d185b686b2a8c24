"""Measure speed, each ratio within one run, and print a Markdown table.

    python scripts/benchmark.py simulator --json results/simulator.json
    python scripts/benchmark.py simulator --volume --json results/simulator.json
    python scripts/benchmark.py generators --json results/generators.json
    python scripts/benchmark.py quantify --json results/quantify.json

Every figure is the median of repeats after a warm-up, with the smallest and the largest. One core means one thread of
compiled code and of linear algebra, bound to one core where the system allows it.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the reference is ASTRA on the CPU

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bundle.volume_io import write_json  # noqa: E402
from data_gen import dataset, projection, ray_kernels, reconstruction, scan  # noqa: E402
from data_gen.dataset import SyntheticDataset, phase_fractions  # noqa: E402
from data_gen.geometry import ParallelBeam  # noqa: E402
from data_gen.materials import LIBRARY  # noqa: E402
from data_gen.microstructure import (  # noqa: E402
    Fibres,
    Foam,
    GraphiteAnode,
    Layers,
    Nested,
    NmcCathode,
    Particles,
    Porous,
    Segmented,
    Sofc,
    Spheres,
)
from data_gen.scan import Scanner  # noqa: E402
from data_gen.spectrum import Tube  # noqa: E402
from processor import processor_name  # noqa: E402

VOXEL_UM, SUBVOXELS = 0.5, 5
MATERIALS = [LIBRARY[name] for name in ("air", "graphite", "NMC532")]
_ASTRA_SLICES = 4
PACKAGES = ("astra-toolbox", "numba", "numpy", "scipy", "scikit-image", "porespy", "spekpy", "nibabel")


@dataclass(frozen=True)
class Row:
    """A measured figure."""

    item: str
    values: tuple[float, ...]  # one for each repeat
    unit: str
    target: str = ""
    met: bool | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return float(np.median(self.values))


def row(item: str, values, unit: str, at_least: float | None = None, at_most: float | None = None, note="") -> Row:
    """A row with a target for its median, where there is one."""
    values = tuple(float(v) for v in np.atleast_1d(values))
    median = float(np.median(values))
    if at_least is not None:
        return Row(item, values, unit, f"≥ {at_least:g}", median >= at_least, note)
    if at_most is not None:
        return Row(item, values, unit, f"< {at_most:g}", median < at_most, note)
    return Row(item, values, unit, note=note)


def timed(function: Callable, repeats: int, warm_up: bool = True) -> np.ndarray:
    """[s] wall time of each call."""
    if warm_up:
        function()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return np.array(seconds)


@contextmanager
def one_core():
    projection.set_threads(1)
    bind = hasattr(os, "sched_setaffinity")
    before = os.sched_getaffinity(0) if bind else None
    try:
        if bind:
            os.sched_setaffinity(0, {max(before)})
        yield
    finally:
        if bind:
            os.sched_setaffinity(0, before)


def machine() -> dict:
    return {
        "cpu": processor_name(),
        "cores": dataset._cores(),
        "system": platform.platform(),
        "load_at_start": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


# The simulator


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    pixels: int = 256
    angles: int = 360
    repeats: int = 7
    energy_step_kev: float = 0.5
    count: int = 1000
    start_up_count: int = 32
    volume: int = 512
    volume_angles: int = 720


FULL = Sizes()
QUICK = Sizes(repeats=3, count=96)
TINY = Sizes(pixels=32, angles=24, repeats=1, energy_step_kev=2.0, count=0, volume=32, volume_angles=24)


def block_of_labels(sizes: Sizes) -> list[np.ndarray]:
    """16 slices of three phases in sub-voxels: pore, graphite and NMC532, each from two packs of circles."""
    spheres = Spheres(fraction=0.45, mean_radius_um=sizes.pixels * VOXEL_UM / 21, radius_cv=0.3)
    shape, labels = (sizes.pixels * SUBVOXELS,) * 2, []
    for k in range(ray_kernels.LANES):
        rng = np.random.default_rng(k)
        first, second = (spheres.build(shape, VOXEL_UM / SUBVOXELS, spheres.draw(rng), rng)[0] for _ in range(2))
        labels.append(np.where(first > 0, 2, second).astype(np.uint8))
    return labels


def against_naive(sizes: Sizes, fractions: list[np.ndarray]) -> list[Row]:
    """Project the image of µ at every energy, against once per material: the same detector signal."""
    scanner = Scanner(source=Tube(energy_step_kev=sizes.energy_step_kev), geometry=ParallelBeam(sizes.angles))
    shape = (sizes.pixels, sizes.pixels)
    views = scanner.geometry.views({"start_angle_deg": 0.0, "centre_offset_px": 0.0})
    width = scanner.geometry.detectors((*shape, 1), VOXEL_UM)[0]
    energies, pixel_cm = scanner.spectrum.energies_kev, VOXEL_UM * 1e-4
    mu = np.stack([m.attenuation_1_cm(energies) for m in MATERIALS]).astype(np.float32)
    weights = scanner.detector.weights(scanner.spectrum)[0]

    def naive() -> np.ndarray:
        total = np.zeros((sizes.angles, width))
        for k, weight in enumerate(weights):
            image = np.tensordot(mu[:, k], fractions[0], 1)[..., None]
            depth = projection.forward(image, views, (width, 1), backend="astra")[..., 0]
            total += weight * np.exp(-pixel_cm * depth)
        return total

    stack = np.stack(fractions, axis=-1)

    def ours(stack=stack) -> np.ndarray:
        scan._chords_of.cache_clear()  # a scan of its own: the chords of the square are part of it
        return scanner.project(stack, MATERIALS, VOXEL_UM, views, shape).signal

    kept = []
    slow = timed(lambda: kept.append(naive()), 1, warm_up=False)[0]
    fast = timed(ours, sizes.repeats) / stack.shape[-1]
    alone = timed(partial(ours, stack[..., :1]), sizes.repeats)
    truth = -np.log(kept[0])
    by_astra = replace(scanner, backend="astra").project(stack[..., :1], MATERIALS, VOXEL_UM, views, shape).signal

    def apart(signal: np.ndarray) -> float:
        return float(np.linalg.norm(-np.log(signal.astype(float)) - truth) / np.linalg.norm(truth))

    what = f"{len(energies)} energies, 3 materials, {sizes.pixels}², {sizes.angles} angles"
    return [
        row(f"naive: every energy by ASTRA, one slice, {what}", slow, "s", note="the whole scan, once"),
        row("ours, per slice of a block of 16", fast * 1e3, "ms"),
        row("ratio", slow / fast, "×", at_least=400),
        row(
            "ours, one slice alone, its chords included", alone * 1e3, "ms", note=f"ratio {slow / np.median(alone):.0f}"
        ),
        row(
            "−ln S of our physics on ASTRA's projector, less the naive one, rms",
            apart(by_astra[..., 0]),
            "relative",
            at_most=1e-5,
            note="‖difference‖ / ‖naive‖: bins joined, float32",
        ),
        row(
            "−ln S on the compiled projector, less the naive one, rms",
            apart(ours()[..., 0]),
            "relative",
            note="besides, ASTRA's positions in float32",
        ),
    ]


def against_astra(sizes: Sizes, labels: list[np.ndarray]) -> list[Row]:
    """The same physics per material, projected and reconstructed by ASTRA."""
    scanners = {b: Scanner(source=Tube(), geometry=ParallelBeam(sizes.angles), backend=b) for b in projection.BACKENDS}
    shape = (sizes.pixels, sizes.pixels)
    views = scanners["compiled"].geometry.views({"start_angle_deg": 0.0, "centre_offset_px": 0.0})
    several = {"astra": labels[:_ASTRA_SLICES], "compiled": labels}  # ASTRA takes slices one by one anyway

    def mixed(backend: str) -> np.ndarray:
        return np.stack([phase_fractions(one, 3, (SUBVOXELS, SUBVOXELS)) for one in several[backend]], axis=-1)

    fractions = {backend: mixed(backend) for backend in several}

    def image(backend: str, from_labels: bool) -> np.ndarray:
        stack = mixed(backend) if from_labels else fractions[backend]
        volume = (*shape, stack.shape[-1])
        signal = scanners[backend].project(stack, MATERIALS, VOXEL_UM, views, shape).signal
        sinogram = -np.log(signal)
        if backend == "astra":
            return projection.astra_fbp(sinogram, views.angles_rad, volume)
        return reconstruction.FBP().reconstruct(sinogram, views.angles_rad, volume)

    rows, few = [], max(2, sizes.repeats // 2)
    for from_labels, what in ((False, "phase fractions"), (True, f"labels {SUBVOXELS} × finer")):
        slow, fast = (timed(partial(image, b, from_labels), few) / len(several[b]) for b in ("astra", "compiled"))
        rows += [
            row(f"{what} to reconstruction: ASTRA's projector and FBP, per slice", slow * 1e3, "ms"),
            row("ours, per slice of a block of 16", fast * 1e3, "ms"),
            row("ratio", np.median(slow) / fast, "×", at_least=8),
        ]
    reference = image("astra", False)
    difference = image("compiled", False)[..., :_ASTRA_SLICES] - reference
    rows.append(row("difference of the images, rms", difference.std() / reference.std(), "of the image's sd"))
    return rows


def recipe(sizes: Sizes) -> SyntheticDataset:
    """Circles of NMC532 in air as in configs/generate_spheres.json."""
    return SyntheticDataset(
        name="benchmark",
        phases={"pore": "air", "particle": "NMC532"},
        microstructure=Spheres((0.3, 0.6), (sizes.pixels * VOXEL_UM / 32, sizes.pixels * VOXEL_UM / 16), (0.1, 0.4)),
        scanner=Scanner(source=Tube(), geometry=ParallelBeam(sizes.angles), noise_sd=0.01),
        shape=[sizes.pixels, sizes.pixels],
        voxel_size_um=VOXEL_UM,
        supersample=SUBVOXELS,
    )


def stages(sizes: Sizes, folder: Path) -> list[Row]:
    """Where the time of a data set goes: the functions of the pipeline are timed from the outside."""
    places = {
        "structure": (Spheres, "build"),
        "fractions": (dataset, "phase_fractions"),
        "projection": (scan, "forward"),
        "Beer–Lambert": (scan, "transmission"),
        "−ln": (scan, "_minus_log"),
        "filter": (reconstruction, "filter_views"),
        "back-projection": (projection, "backproject"),
        "normalise, noise": (Scanner, "_normalise"),
        "write": (dataset, "write_nifti"),
    }
    spent: dict[str, float] = defaultdict(float)

    def watched(name: str, function: Callable) -> Callable:
        def call(*args, **options):
            started = time.perf_counter()
            result = function(*args, **options)
            spent[name] += time.perf_counter() - started
            return result

        return call

    maker, slices = recipe(sizes), ray_kernels.LANES
    indices = list(range(slices))
    for part in ("images", "labels", "params"):
        (folder / part).mkdir()
    found = defaultdict(list)
    with ExitStack() as stack:
        for name, (owner, attribute) in places.items():
            stack.enter_context(patch.object(owner, attribute, watched(name, getattr(owner, attribute))))
        for repeat in range(sizes.repeats + 1):
            spent.clear()
            started = time.perf_counter()
            maker._write_pairs(folder, repeat, indices, 1)
            total = time.perf_counter() - started
            if repeat:  # the first is the warm-up
                for name in places:
                    found[name].append(spent[name] / slices * 1e3)
                found["rest (hashes, label, report)"].append((total - sum(spent.values())) / slices * 1e3)
                found["sum"].append(total / slices * 1e3)
    whole = np.median(found["sum"])
    return [
        row(f"stage: {name}", values, "ms/slice", note=f"{np.median(values) / whole:.0%}")
        for name, values in found.items()
    ]


def kernels(sizes: Sizes) -> list[Row]:
    """How far the compiled loops are from what plain numpy reaches on this core."""
    rng, n, lanes = np.random.default_rng(0), sizes.pixels, ray_kernels.LANES
    geometry = ParallelBeam(sizes.angles)
    views = geometry.views({"start_angle_deg": 0.0, "centre_offset_px": 0.0})
    width = geometry.detectors((n, n, 1), 1.0)[0]
    stack = rng.random((n, n, lanes), np.float32)
    sinogram = projection.forward(stack, views, (width, 1))
    # a sample is a blend of two vectors of 16: 3 vectors read, 1 written, 64 floating-point operations
    samples = n * n * float(np.maximum(np.abs(np.cos(views.angles_rad)), np.abs(np.sin(views.angles_rad))).sum())
    updates = float(n * n * sizes.angles)
    vector = lanes * 4
    rows = []

    def copied(size: int, repeats: int) -> np.ndarray:
        source, target = np.ones(size, np.float32), np.empty(size, np.float32)
        loops = max(1, 2**25 // size)

        def run():
            for _ in range(loops):
                np.copyto(target, source)

        return 2 * 4 * size * loops / timed(run, repeats) / 1e9

    cached, main = copied(2**15, sizes.repeats), copied(2**25 if n > 100 else 2**20, sizes.repeats)
    rows.append(row("numpy copy of 128 kB, in the cache", cached, "GB/s"))
    rows.append(row("numpy copy of 128 MB, in the memory", main, "GB/s"))
    for name, count, run in (
        ("forward projection", samples, lambda: projection.forward(stack, views, (width, 1))),
        ("back-projection", updates, lambda: projection.backproject(sinogram, views.angles_rad, stack.shape)),
    ):
        seconds = timed(run, sizes.repeats)
        traffic = 4 * vector * count / seconds / 1e9
        rows.append(
            row(
                f"{name}, loads and stores of the loop",
                traffic,
                "GB/s",
                note=f"{np.median(traffic) / np.median(cached):.2f} of the copy in the cache, "
                f"{np.median(traffic) / np.median(main):.2f} of that in the memory",
            )
        )
        rows.append(row(f"{name}, arithmetic", 4 * lanes * count / seconds / 1e9, "Gflop/s"))
    rays = 2**15
    x = -rng.random(rays, np.float32)
    loops = 100 if n > 100 else 5
    out = np.empty_like(x)
    plain = rays * loops / timed(lambda: [np.exp(x, out=out) for _ in range(loops)], sizes.repeats) / 1e9
    paths, bins = rng.random((3, rays), np.float32), 100
    mu, weights = rng.random((3, bins)), np.full(bins, 1 / bins)
    law = rays * bins / timed(lambda: scan.transmission(paths, mu, weights), sizes.repeats) / 1e9
    rows.append(row("numpy exp of float32, in the cache", plain, "10⁹/s"))
    rows.append(
        row(
            "Beer–Lambert of 3 materials, exponentials",
            law,
            "10⁹/s",
            note=f"{np.median(law) / np.median(plain):.2f} of np.exp alone, with 3 products and the sum besides",
        )
    )
    return rows


def generate(sizes: Sizes, count: int, workers: int) -> dict:
    """Structure to NIfTI in a fresh process: its wall time with start-up, and that of ``generate`` alone."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        inside = _fresh("generate", sizes, folder=folder, count=count, workers=workers)["seconds"]
        return {"whole": time.perf_counter() - started, "generate": inside}


def data_sets(sizes: Sizes) -> list[Row]:
    """A data set on one worker and on two; the slope between two counts is the speed without start-up."""
    repeats = 1 if sizes.count > 500 else 2
    few, many = sizes.start_up_count, sizes.count
    generate(sizes, few, 2)  # compiles
    rows, slopes = [], {}
    for workers in (1, 2):
        small = [generate(sizes, few, workers) for _ in range(max(2, repeats))]
        large = [generate(sizes, many, workers) for _ in range(repeats)]
        base = np.median([s["generate"] for s in small])
        slopes[workers] = np.array([(one["generate"] - base) / (many - few) for one in large])
        target = {"at_most": 90} if (workers, many) == (2, 1000) else {}
        rows += [
            row(
                f"{many} slices, structure to NIfTI, {workers} worker(s), start-up included",
                [s["whole"] for s in large],
                "s",
                **target,
            ),
            row(f"{few} slices, the same: mostly start-up", [s["whole"] for s in small], "s"),
            row(
                f"per slice without start-up, {workers} worker(s)",
                slopes[workers] * 1e3,
                "ms",
                note=f"from the difference of {many} and {few} slices",
            ),
        ]
    whole = [
        np.median([r.median for r in rows if r.item.startswith(f"{many} slices") and f"{w} worker" in r.item])
        for w in (1, 2)
    ]
    rows.append(row("1 → 2 workers, without start-up", np.median(slopes[1]) / slopes[2], "×", at_least=1.8))
    rows.append(row("1 → 2 workers, start-up included", whole[0] / whole[1], "×"))
    return rows


def volume(sizes: Sizes) -> list[Row]:
    """A whole volume in a fresh process, whose progress bars go to the terminal."""
    n = sizes.volume
    facts = _fresh("volume", sizes, quiet=False)
    what = f"{n}³, {sizes.volume_angles} angles, 2 phases"
    return [
        row(
            f"peak memory of a scan, {what}",
            facts["peak_gb"],
            "GB",
            at_most=6,
            note="largest resident set, the volume included",
        ),
        row(f"time of the scan, {facts['threads']} thread(s)", facts["seconds"], "s"),
    ]


def _scan_volume(sizes: Sizes) -> dict:
    n, tile = sizes.volume, 32 if sizes.volume % 32 == 0 else 16
    at = np.arange(tile) - (tile - 1) / 2
    ball = (at[:, None, None] ** 2 + at[:, None] ** 2 + at**2 <= (0.4 * tile) ** 2).astype(np.float32)
    fractions = np.empty((2, n, n, n), np.float32)
    fractions[1] = np.tile(ball, (n // tile,) * 3)
    np.subtract(1, fractions[1], out=fractions[0])
    threads = dataset._cores()
    projection.set_threads(threads)
    scanner = Scanner(source=Tube(), geometry=ParallelBeam(sizes.volume_angles))
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    image, _ = scanner.scan(
        fractions, [LIBRARY["air"], LIBRARY["NMC532"]], VOXEL_UM, scanner.draw(rng), rng, progress=True
    )
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_gb": peak_gb(), "threads": threads, "finite": bool(np.isfinite(image).all())}


def peak_gb() -> float:
    """[GB] largest resident set of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage starts from what the parent held when it made this process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    import resource

    per_unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * per_unit / 1e9


def _fresh(task: str, sizes: Sizes, quiet: bool = True, **options) -> dict:
    """Run a task of this file in a new process; its answer is its last line."""
    order = json.dumps({"task": task, "sizes": asdict(sizes), **options})
    result = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "task", order],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if quiet else None,
        text=True,
    )
    if result.returncode:
        raise RuntimeError(f"{task} failed: {(result.stderr or '').strip().splitlines()[-1:]}")
    return json.loads(result.stdout.splitlines()[-1])


def run_task(order: str) -> int:
    """What ``_fresh`` asked for."""
    order = json.loads(order)
    sizes = Sizes(**order["sizes"])
    if order["task"] == "volume":
        answer = _scan_volume(sizes)
    elif order["task"] in TASKS:
        answer = TASKS[order.pop("task")](sizes, **{k: v for k, v in order.items() if k != "sizes"})
    else:
        started = time.perf_counter()
        recipe(sizes).generate(order["folder"], order["count"], workers=order["workers"])
        answer = {"seconds": time.perf_counter() - started}
    print(json.dumps(answer))
    return 0


def simulator(args: argparse.Namespace) -> dict[str, list[Row]]:
    sizes = TINY if args.tiny else QUICK if args.quick else FULL
    labels = block_of_labels(sizes)
    fractions = [phase_fractions(one, 3, (SUBVOXELS, SUBVOXELS)) for one in labels]
    tables: dict[str, list[Row]] = {}

    def measure(title: str, function: Callable, *more, core=one_core) -> None:
        print(f"{title} ...", file=sys.stderr, flush=True)
        with core():
            tables[title] = function(sizes, *more)

    measure("Against naive projection of every energy, one core", against_naive, fractions)
    measure("Against ASTRA per material, one core", against_astra, labels)
    with tempfile.TemporaryDirectory() as folder:
        measure("Where the time goes, one core", stages, Path(folder))
    measure("How far from the machine's limit, one core", kernels)
    if sizes.count:
        measure("Data sets", data_sets, core=nullcontext)
    if args.volume:
        measure("A volume", volume, core=nullcontext)
    return tables


# The generators: build() of every microstructure

VOXELS_UM = {  # such that a feature has some ten voxels and check() passes in every box
    "Spheres": 0.5,
    "Particles": 0.5,
    "NmcCathode": 0.1,
    "GraphiteAnode": 0.25,
    "Sofc": 0.05,
    "Porous": 0.05,
    "Layers": 0.12,
    "Nested": 0.25,
    "Fibres": 0.05,
    "Foam": 2.0,
    "Segmented": 0.05,
}
SMALL_CUBE_UM = {"Layers": 0.15, "Foam": 2.05}  # where 128³ of those voxels is too small
BOXES = {
    "256²": ((256, 256), 1),
    "1280², the 256² with voxels 5 × finer": ((1280, 1280), SUBVOXELS),
    "128³": ((128, 128, 128), 1),
    "256³": ((256, 256, 256), 1),
}
QUANTITIES = {"wall": "s", "CPU": "s", "peak": "GB"}
_REPEAT_BELOW_S = 8.0


def microstructure(name: str, file: str, shape):
    """Each generator with its defaults; file: labels for Segmented."""
    if name == "Foam" and max(shape) <= 128:  # cells of 210 to 240 µm do not fit with walls of two voxels
        return Foam(cell_diameter_um=(220.0, 230.0))
    if name == "Layers":  # a metal-supported cell
        layers = [
            {"generator": Porous(0.35, [1.5, 2.0]), "classes": [0, 3], "thickness_um": None, "roughness_um": 0.6},
            {"generator": Sofc(), "classes": [0, 1, 2], "thickness_um": [5, 7]},
            {"generator": Porous(0.01, 0.3), "classes": [0, 2], "thickness_um": 3},
        ]
        return Layers(layers, roughness_um=[0.1, 0.2], correlation_um=2)
    if name == "Nested":
        return Nested(Spheres(0.5, 8, 0.2), 1, Porous(0.3, 2.0), classes=[2, 1])
    if name == "Segmented":
        return Segmented(file, file_voxel_um=0.2, n_classes=2)
    defaults = (Spheres, Particles, NmcCathode, GraphiteAnode, Sofc, Porous, Fibres, Foam)
    return {kind.__name__: kind for kind in defaults}[name]()


def _build(sizes: Sizes, name: str, file: str, shape: list[int], voxel_um: float) -> dict:
    """Build one microstructure with the seeds 0, 1, ...: the first is the warm-up, a slow one is repeated once."""
    maker, before = microstructure(name, file, shape), peak_gb()
    maker.check(tuple(shape), voxel_um)
    wall, cpu = [], []
    for seed in range(sizes.repeats + 1):
        rng = np.random.default_rng(seed)
        parameters = maker.draw(rng)
        started, worked = time.perf_counter(), time.process_time()
        maker.build(tuple(shape), voxel_um, parameters, rng)
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - worked)
        if len(wall) > 1 and wall[-1] > _REPEAT_BELOW_S:
            break
    return {"wall": wall[1:], "CPU": cpu[1:], "peak": [peak_gb()], "before_gb": before}


def generators(args: argparse.Namespace) -> dict[str, list[Row]]:
    sizes = replace(FULL, repeats=1 if args.tiny or args.quick else 3)
    names = ["NmcCathode"] if args.tiny else list(VOXELS_UM)
    boxes = dict(list(BOXES.items())[: 1 if args.tiny else 3 if args.quick else 4])
    targets = {"1280²": {"wall": 1.0}, "256³": {"wall": 20.0, "peak": 4.0}}
    tables: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "labels.npy")
        source = Spheres(0.5, 4.0, 0.3)
        rng = np.random.default_rng(0)
        np.save(file, source.build((32,) * 3 if args.tiny else (96,) * 3, 0.5, source.draw(rng), rng)[0])
        for title, (shape, finer) in boxes.items():
            tables[title] = []
            goals = targets.get(title.partition(",")[0], {})
            for name in names:
                print(f"{title.partition(',')[0]}: {name} ...", file=sys.stderr, flush=True)
                voxel = (SMALL_CUBE_UM.get(name, VOXELS_UM[name]) if title == "128³" else VOXELS_UM[name]) / finer
                facts = _fresh("build", sizes, name=name, file=file, shape=shape, voxel_um=voxel)
                note = f"voxels of {voxel:g} µm; {facts['before_gb']:.2f} GB before"
                tables[title] += [
                    row(f"{name}: {quantity}", facts[quantity], unit, at_most=goals.get(quantity), note=note)
                    for quantity, unit in QUANTITIES.items()
                ]
    return tables


def side_by_side(tables: dict[str, list[Row]]) -> str:
    """Tables whose items are "name: quantity", one line for each name."""
    lines = []
    for title, rows in tables.items():
        found = {r.item: r for r in rows}
        heads = " | ".join(f"{quantity} [{unit}]" for quantity, unit in QUANTITIES.items())
        lines += [f"\n**{title}**\n", f"| | n | {heads} | |", "|---|---|" + "---|" * (len(QUANTITIES) + 1)]
        for name in dict.fromkeys(r.item.partition(":")[0] for r in rows):
            mine = [found[f"{name}: {quantity}"] for quantity in QUANTITIES]
            cells = [number(r.median) + (f" (target {r.target}, **missed**)" if r.met is False else "") for r in mine]
            lines.append(f"| {name} | {len(mine[0].values)} | {' | '.join(cells)} | {mine[0].note} |")
    return "\n".join(lines)


# Quantification


def _three_phases(n: int) -> tuple[np.ndarray, float]:
    """A Ni–YSZ–pore electrode of n³ voxels and its voxel size [µm]."""
    rng, voxel_um = np.random.default_rng(0), 0.05
    maker, edge = (Sofc(), n) if n >= 128 else (Sofc(coarse_share=0.0), max(n, 64))
    labels, _ = maker.build((edge,) * 3, voxel_um, maker.draw(rng), rng)
    return np.ascontiguousarray(labels[:n, :n, :n]), voxel_um


def _wall_and_cpu(function: Callable) -> tuple[object, float, float]:
    """What the function gives, and its wall and CPU time [s]."""
    started, worked = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - started, time.process_time() - worked


def _properties(sizes: Sizes, file: str, voxel_um: float) -> dict:
    """Everything but the tortuosity; then, alone, what other libraries have as well."""
    from bundle import quantify

    labels = np.load(file)
    before = peak_gb()
    quantify.properties(np.ascontiguousarray(labels[:24, :24, :24]), voxel_um)  # compiles
    found, wall, cpu = _wall_and_cpu(lambda: quantify.properties(labels, voxel_um))
    peak = peak_gb()
    alone = {
        "surface": lambda: quantify.contact_area(labels, voxel_um, 3),
        "local thickness": lambda: quantify.local_thickness(labels, voxel_um),
        "objects": lambda: quantify.object_table(labels, voxel_um, quantify.split_objects(labels, voxel_um)),
    }
    return {
        "sections": found["seconds"],
        "wall": wall,
        "cpu": cpu,
        "peak_gb": peak,
        "before_gb": before,
        "alone": {name: _wall_and_cpu(run)[1:] for name, run in alone.items()},
        "surface": list(found["specific_surface_area_1_per_um"].values()),
        "local thickness": [one["mean"] for one in found["local_thickness_um"].values()],
        "objects": [one["count"] for one in found["objects"].values()],
    }


def _other_libraries(sizes: Sizes, file: str, voxel_um: float) -> dict:
    """The same quantities, phase by phase, as PoreSpy and scikit-image measure them."""
    import logging

    import porespy
    from skimage import measure

    logging.disable(logging.WARNING)
    porespy.settings.tqdm["disable"] = True
    labels = np.load(file)

    def surface(phase):
        mesh = measure.marching_cubes(phase.astype(np.float32), 0.5, spacing=(voxel_um,) * 3)
        return measure.mesh_surface_area(*mesh[:2]) / (phase.size * voxel_um**3)

    def thickness(phase):
        return float(porespy.filters.local_thickness(phase)[phase].mean()) * 2 * voxel_um

    def objects(phase):
        regions = porespy.filters.snow_partitioning(phase).regions
        names = ("area", "centroid", "inertia_tensor_eigvals")
        return len(measure.regionprops_table(regions, properties=names)["area"])

    answer = {}
    for name, run in (("surface", surface), ("local thickness", thickness), ("objects", objects)):
        run(np.ascontiguousarray(labels[:32, :32, :32] == 0))  # compiles
        values, *seconds = _wall_and_cpu(lambda run=run: [run(labels == k) for k in range(3)])
        answer[name] = {"seconds": seconds, "values": values, "peak_gb": peak_gb()}
    return answer


LIBRARIES = {
    "surface": ("scikit-image marching cubes", "1/µm"),
    "local thickness": ("PoreSpy local_thickness", "µm, mean"),
    "objects": ("PoreSpy snow_partitioning and scikit-image regionprops_table", "found"),
}


def quantification(args: argparse.Namespace) -> dict[str, list[Row]]:
    n = 40 if args.tiny else 128 if args.quick else 256
    ask = _here if args.tiny else _fresh
    with tempfile.TemporaryDirectory() as folder:
        print(f"three phases in {n}³ ...", file=sys.stderr, flush=True)
        labels, voxel_um = _three_phases(n)
        file = str(Path(folder) / "labels.npy")
        np.save(file, labels)
        del labels
        print("bundle.quantify ...", file=sys.stderr, flush=True)
        ours = ask("properties", FULL, file=file, voxel_um=voxel_um)
        print("PoreSpy and scikit-image ...", file=sys.stderr, flush=True)
        theirs = ask("other libraries", FULL, file=file, voxel_um=voxel_um)
    goal = {"at_most": 60} if n == 256 else {}
    sections = [row(name, seconds, "s") for name, seconds in ours["sections"].items()]
    sections += [
        row("all", ours["wall"], "s", **goal, note="wall time"),
        row("all, CPU time", ours["cpu"], "s"),
        row("peak memory", ours["peak_gb"], "GB", at_most=4, note=f"{ours['before_gb']:.2f} GB before"),
    ]
    against = []
    for name, (library, unit) in LIBRARIES.items():
        (mine, mine_cpu), (other, other_cpu) = ours["alone"][name], theirs[name]["seconds"]

        def shown(values, unit=unit):
            return " / ".join(number(v) for v in values) + f" {unit}"

        against += [
            row(f"{name}, all phases at once: ours", mine, "s", note=shown(ours[name])),
            row(f"{name}: {library}", other, "s", note=shown(theirs[name]["values"])),
            row(f"{name}: ratio", other / mine, "×", note=f"of the CPU times {other_cpu / mine_cpu:.2g}"),
        ]
    return {f"Properties of {n}³ voxels in three phases": sections, "The same by other libraries": against}


def _here(task: str, sizes: Sizes, **options) -> dict:
    """As ``_fresh``, in this process: sooner, but its memory is that of everything before."""
    return TASKS[task](sizes, **options)


TASKS = {"build": _build, "properties": _properties, "other libraries": _other_libraries}


def number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def markdown(tables: dict[str, list[Row]]) -> str:
    lines = []
    for title, rows in tables.items():
        lines += [f"\n**{title}**\n", "| | median | min–max | n | target | |", "|---|---|---|---|---|---|"]
        for r in rows:
            spread = f"{number(min(r.values))}–{number(max(r.values))}" if len(r.values) > 1 else ""
            target = r.target + {True: " met", False: " **missed**", None: ""}[r.met]
            lines.append(
                f"| {r.item} | {number(r.median)} {r.unit} | {spread} | {len(r.values)} | {target} | {r.note} |"
            )
    return "\n".join(lines)


def main() -> int:
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True, metavar="part")
    part = parts.add_parser("simulator", help="the scanner: against ASTRA, stages, data sets, a volume")
    part.set_defaults(measure=simulator, show=markdown)
    part.add_argument("--volume", action="store_true", help="also a volume of 512³: minutes, and up to 6 GB")
    more = parts.add_parser("generators", help="time and memory of every microstructure, each in a fresh process")
    more.set_defaults(measure=generators, show=side_by_side)
    third = parts.add_parser("quantify", help="time and memory of the properties of 256³ voxels, by section")
    third.set_defaults(measure=quantification, show=markdown)
    for one, quick in (
        (part, "96 slices instead of 1000, fewer repeats"),
        (more, "one repeat, no 256³"),
        (third, "128³"),
    ):
        one.add_argument("--json", type=Path, help="file for the figures")
        one.add_argument("--quick", action="store_true", help=quick)
        one.add_argument("--tiny", action="store_true", help="see that it runs; the figures say nothing")
    task = parts.add_parser("task", help="for the script's own use: a measurement in a fresh process")
    task.add_argument("order")
    args = parser.parse_args()
    if args.part == "task":
        return run_task(args.order)
    about = machine()
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    tables = args.measure(args)
    print(args.show(tables))
    if args.json:
        found = {t: [asdict(r) | {"median": r.median} for r in rows] for t, rows in tables.items()}
        write_json(args.json, {"part": args.part, "machine": about, "tables": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
