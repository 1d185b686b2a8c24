"""Data sets: image and label pairs on disk, with splits, resume and workers."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import fields, is_dataclass
from multiprocessing import get_context, parent_process
from numbers import Real
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from bundle.volume_io import affine_from_voxel_size, sha256, write_json, write_nifti
from data_gen.materials import material
from data_gen.parameters import Range, check_number, check_range, draw
from data_gen.projection import set_threads
from data_gen.ray_kernels import LANES
from data_gen.scan import Scanner

RECIPE, DATALIST, MANIFEST = "recipe.json", "dataset.json", "manifest.json"
_SPLITS = ("training", "validation", "test")
_TEMPORARY = ".tmp-*"


class SyntheticDataset:
    """A recipe: which structure, of which materials, scanned how. Makes image and label pairs from it.

    A pair depends on (recipe, seed, index) alone: its generator is ``SeedSequence([seed, index])``. The structure is
    built ``supersample`` times finer than the scan, so that a voxel at an interface holds a mixture of phases; its
    label is the phase that fills most of it.

    Args:
        name: name of the data set, and the first part of its file names.
        phases: class names to materials, in the order of the labels; a material is a name in
            ``data_gen.materials.LIBRARY`` or ``{"formula": ..., "density_g_cm3": ...}``.
        microstructure: a generator of ``data_gen.microstructure``.
        scanner: a ``data_gen.scan.Scanner``.
        shape: voxels of a sample, 2 or 3 numbers.
        voxel_size_um: [µm] edge of a voxel.
        supersample: sub-voxels along each edge of a voxel, odd: with an even number a voxel can be half one phase and
            half another, and whatever breaks such ties biases the fractions or adds noise to the labels.
        split: shares of training, validation and test; they sum to 1.
        sample_diameter: diameter of a cylindrical sample over the width of the field of view, range; beside it is the
            first phase. Above 1 the sample sticks out of the field of view (local tomography). None: the sample is
            the image, edge to edge.

    Raises:
        ValueError: names the argument, its value and the rule.
    """

    def __init__(
        self,
        name: str,
        phases: Mapping[str, object],
        microstructure,
        scanner: Scanner,
        shape: Sequence[int] = (256, 256),
        voxel_size_um: float = 0.5,
        supersample: int = 5,
        split: Sequence[float] = (0.7, 0.2, 0.1),
        sample_diameter: Range | None = None,
    ):
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ValueError(f"name={name!r} must be letters, digits, - and _: it becomes part of file names")
        is_list = isinstance(shape, (list, tuple)) and all(type(n) is int for n in shape)
        if not is_list or len(shape) not in (2, 3) or min(shape) < 8:
            raise ValueError(f"shape={shape!r} must be 2 or 3 integers of at least 8, such as [256, 256]")
        check_number("voxel_size_um", voxel_size_um, 1e-4, 1e4, "µm")
        if type(supersample) is not int or supersample not in (1, 3, 5, 7, 9):
            raise ValueError(f"supersample={supersample!r} must be 1, 3, 5, 7 or 9: odd, so that two phases cannot tie")
        is_shares = isinstance(split, (list, tuple)) and all(isinstance(s, Real) for s in split)
        if not is_shares or len(split) != 3 or min(split) < 0 or abs(sum(split) - 1) > 1e-6:
            raise ValueError(f"split={split!r} must be three shares (training, validation, test) that sum to 1")
        if not isinstance(phases, Mapping):
            raise ValueError(f"phases={phases!r} must map class names to materials, as {{'pore': 'air'}}")
        if len(phases) != microstructure.n_classes:
            raise ValueError(
                f"phases={list(phases)!r}: {type(microstructure).__name__} makes {microstructure.n_classes} phases"
            )
        if sample_diameter is not None:
            sample_diameter = check_range("sample_diameter", sample_diameter, 0.1, 10)
        if supersample % scanner.oversampling:
            raise ValueError(
                f"supersample={supersample} must be a multiple of the scanner's oversampling={scanner.oversampling}"
            )
        microstructure.check(tuple(shape), voxel_size_um)
        self.name, self.microstructure, self.scanner = name, microstructure, scanner
        self.phases = {phase: material(spec) for phase, spec in phases.items()}
        self.shape, self.voxel_size_um, self.supersample = tuple(shape), float(voxel_size_um), supersample
        self.split, self.sample_diameter = tuple(split), sample_diameter

    def recipe(self) -> dict:
        """Everything that decides the bytes of a pair, but for seed and index, as plain JSON values."""
        return {
            "name": self.name,
            "phases": {phase: _described(m) for phase, m in self.phases.items()},
            "microstructure": _described(self.microstructure),
            "scanner": _described(self.scanner),
            "shape": list(self.shape),
            "voxel_size_um": self.voxel_size_um,
            "supersample": self.supersample,
            "split": list(self.split),
            "sample_diameter": self.sample_diameter,
        }

    def pair(self, seed: int, index: int) -> tuple[np.ndarray, np.ndarray, dict]:
        """One sample: the only one of ``pairs``."""
        return self.pairs(seed, [index])[0]

    def pairs(
        self, seed: int, indices: Sequence[int], progress: bool = False
    ) -> list[tuple[np.ndarray, np.ndarray, dict]]:
        """Some samples, scanned together where that is faster; each depends on its own index alone.

        Args:
            seed: of the data set.
            indices: of the samples.
            progress: show progress bars within a sample.

        Returns:
            for each, float32 image and uint8 label of ``shape``, and what was drawn and what came out.
        """
        samples = [self._sample(seed, index) for index in indices]
        fractions, labels, rngs, facts = zip(*samples, strict=True)
        scans = self.scanner.scan_all(
            fractions,
            list(self.phases.values()),
            self.voxel_size_um,
            [f["drawn"]["scanner"] for f in facts],
            rngs,
            self.shape,
            progress,
        )
        for (image, scanned), label, fact in zip(scans, labels, facts, strict=True):
            fact["reached"] |= {"grey_mean": {p: _mean(image[label == k]) for k, p in enumerate(self.phases)}} | scanned
        return [(image, label, fact) for (image, _), label, fact in zip(scans, labels, facts, strict=True)]

    def sinogram(self, seed: int, index: int) -> np.ndarray:
        """The sinogram behind the image of ``pair``, float32 (angles, detectors, slices)."""
        fractions, _, _, facts = self._sample(seed, index)
        drawn = facts["drawn"]["scanner"]
        return self.scanner.sinogram(fractions, list(self.phases.values()), self.voxel_size_um, drawn, self.shape)

    def _sample(self, seed: int, index: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator, dict]:
        """The object that is scanned, as fractions in the scanner's sub-voxels, and its label in the field of view."""
        rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
        drawn = {"microstructure": self.microstructure.draw(rng), "scanner": self.scanner.draw(rng)}
        box = self.shape
        if self.sample_diameter is not None:
            drawn["sample_diameter"] = draw(self.sample_diameter, rng)
            grown = int(np.ceil(max(1.0, drawn["sample_diameter"]) * max(self.shape[:2])))
            box = tuple(max(n, grown + (grown - n) % 2) for n in self.shape[:2]) + self.shape[2:]
        fine, structure_facts = self.microstructure.build(
            tuple(n * self.supersample for n in box),
            self.voxel_size_um / self.supersample,
            drawn["microstructure"],
            rng,
        )
        if self.sample_diameter is not None:
            width = max(self.shape[:2]) * self.supersample
            fine[~_disc(fine.shape[:2], drawn["sample_diameter"] * width)] = 0
        factors = self.scanner.subvoxels(len(box))
        fractions = phase_fractions(fine, len(self.phases), [self.supersample // f for f in factors])
        inside = tuple(slice((n - size) // 2, (n + size) // 2) for n, size in zip(box, self.shape, strict=True))
        whole = fractions
        if max(factors) > 1:
            whole = phase_fractions(fine, len(self.phases), [self.supersample] * len(box))
        label = whole[(slice(None), *inside)].argmax(0).astype(np.uint8)
        reached = {**structure_facts, "fraction": {p: float((label == k).mean()) for k, p in enumerate(self.phases)}}
        return fractions, label, rng, {"drawn": drawn, "reached": reached}

    def generate(self, output_dir: str, count: int, seed: int = 0, workers: int = 1) -> Path:
        """Write ``count`` pairs, or what is missing of them, as NIfTI in µm with a decathlon-style ``dataset.json``.

        Files: ``images/``, ``labels/`` and ``params/`` (what was drawn and what came out, with the hashes of the pair;
        written last, so a pair is done when it is there), ``recipe.json``, ``dataset.json``, ``manifest.json`` (the
        hash of every other file). The same arguments give the same bytes for any number of workers.

        Args:
            output_dir: created where absent; a directory of the same recipe and seed is resumed.
            count: number of pairs, at least 1.
            seed: non-negative integer.
            workers: processes, at least 1.

        Returns:
            path of ``dataset.json``.

        Raises:
            ValueError: a bad argument, or a directory that holds something else.
            OSError: too little space on the disk, checked before the work starts.
        """
        for name, value, low in (("count", count, 1), ("seed", seed, 0), ("workers", workers, 1)):
            if type(value) is not int or value < low:
                raise ValueError(f"{name}={value!r} must be an integer of at least {low}")
        root = Path(output_dir)
        self._claim(root, count, seed)
        missing = [i for i in range(count) if not self._is_done(root, i)]
        _check_space(root, len(missing), int(np.prod(self.shape)))
        jobs = tqdm(total=count, initial=count - len(missing), desc=f"{self.name} -> {root}", unit="pair")
        # slices are projected in blocks; a volume is a block, and fills the cores that no other worker needs
        size = LANES if len(self.shape) == 2 else 1
        blocks = [missing[k : k + size] for k in range(0, len(missing), size)]
        threads = 1 if len(self.shape) == 2 else max(1, _cores() // workers)
        with jobs:
            if workers == 1:
                for block in blocks:
                    self._write_pairs(root, seed, block, threads, progress=len(self.shape) == 3)
                    jobs.update(len(block))
            elif missing:
                self._run_pool(root, seed, blocks, min(workers, len(blocks)), threads, jobs)
        return self._finish(root, count, seed)

    def _run_pool(self, root: Path, seed: int, blocks: list[list[int]], workers: int, threads: int, jobs: tqdm) -> None:
        # spawn: forking a process that holds torch's threads is not safe
        with ProcessPoolExecutor(workers, get_context("spawn"), _end_with_parent) as pool:
            futures = {pool.submit(self._write_pairs, root, seed, block, threads): len(block) for block in blocks}
            try:
                for future in as_completed(futures):
                    future.result()
                    jobs.update(futures[future])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _files(self, root: Path, index: int) -> dict[str, Path]:
        stem = f"{self.name}_{index:05d}"
        return {
            "image": root / "images" / f"{stem}.nii.gz",
            "label": root / "labels" / f"{stem}.nii.gz",
            "params": root / "params" / f"{stem}.json",
        }

    def _write_pairs(self, root: Path, seed: int, indices: list[int], threads: int, progress: bool = False) -> None:
        set_threads(threads)
        with threadpool_limits(1):  # the same sums in the same order on every machine load, and no fight over cores
            pairs = self.pairs(seed, indices, progress)
        affine = affine_from_voxel_size([self.voxel_size_um] * len(self.shape))
        for index, (image, label, facts) in zip(indices, pairs, strict=True):
            files = self._files(root, index)
            write_nifti(files["image"], image, affine)
            write_nifti(files["label"], label, affine)
            hashes = {k: sha256(files[k]) for k in ("image", "label")}
            write_json(files["params"], {"index": index, "seed": seed, "sha256": hashes, **facts})

    def _is_done(self, root: Path, index: int) -> bool:
        files = self._files(root, index)
        try:
            hashes = json.loads(files["params"].read_text())["sha256"]
            return all(sha256(files[k]) == hashes[k] for k in ("image", "label"))
        except (FileNotFoundError, ValueError, KeyError):
            return False

    def _claim(self, root: Path, count: int, seed: int) -> None:
        """Write the recipe into a new directory, or check that the directory holds the same one."""
        mine = json.loads(json.dumps({"seed": seed, **self.recipe()}))
        path = root / RECIPE
        if path.exists():
            theirs = json.loads(path.read_text())
            for key in mine:
                if theirs.get(key) != mine[key]:
                    raise ValueError(
                        f"{root} holds another data set: its {key} is {theirs.get(key)!r}, asked was {mine[key]!r}; "
                        "choose a new output_dir"
                    )
        elif root.exists() and any(not p.match(_TEMPORARY) for p in root.iterdir()):
            raise ValueError(f"{root} is not empty and holds no {RECIPE}; choose a new output_dir")
        else:
            write_json(path, mine)
        for leftover in root.rglob(_TEMPORARY):
            leftover.unlink()
        present = len(list((root / "params").glob("*.json")))
        if present > count:
            raise ValueError(f"{root} holds {present} pairs, more than count={count}; ask for at least {present}")

    def _finish(self, root: Path, count: int, seed: int) -> Path:
        """Write the data list and the manifest."""
        lists: dict[str, list] = {}
        for split, indices in zip(_SPLITS, split_indices(count, self.split, seed), strict=True):
            lists[split] = [
                {k: self._files(root, i)[k].relative_to(root).as_posix() for k in ("image", "label")} for i in indices
            ]
        datalist = {
            "name": self.name,
            "description": f"synthetic X-ray CT of {', '.join(self.phases)}; the recipe is in {RECIPE}",
            "tensorImageSize": f"{len(self.shape)}D",
            "channel_names": {"0": "CT"},
            "labels": {str(k): phase for k, phase in enumerate(self.phases)},
            "voxel_size_um": self.voxel_size_um,
            "seed": seed,
            **{f"num{split.capitalize()}": len(lists[split]) for split in _SPLITS},
            **lists,
        }
        write_json(root / DATALIST, datalist)
        files = sorted(p for p in root.rglob("*") if p.is_file() and p != root / MANIFEST)
        write_json(root / MANIFEST, {p.relative_to(root).as_posix(): sha256(p) for p in files})
        return root / DATALIST


def phase_fractions(labels: np.ndarray, n_classes: int, blocks: Sequence[int]) -> np.ndarray:
    """Volume fraction of each class in blocks of voxels.

    Args:
        labels: integer labels whose axes are multiples of ``blocks``.
        n_classes: number of classes.
        blocks: edges of a block in voxels, one for each axis.

    Returns:
        float32 (classes, axes / blocks); they sum to 1 in every block.
    """
    total = int(np.prod(blocks))
    out = np.empty((n_classes, *(n // block for n, block in zip(labels.shape, blocks, strict=True))), np.float32)
    rest = np.full(out.shape[1:], total, np.int32)
    for k in range(1, n_classes):
        count = (labels == k).view(np.uint8)
        for axis in reversed(range(labels.ndim)):  # sums of strided views are ten times as fast as one mean
            every = [(slice(None),) * axis + (slice(i, None, blocks[axis]),) for i in range(blocks[axis])]
            count = sum((count[i] for i in every[1:]), count[every[0]].astype(np.uint8 if total < 256 else np.uint16))
        out[k] = count
        rest -= count
    out[0] = rest
    out /= np.float32(total)
    return out


def _disc(shape: tuple[int, int], diameter: float) -> np.ndarray:
    """True where the centre of a pixel lies in a disc in the middle."""
    rows, columns = (np.arange(n) - (n - 1) / 2 for n in shape)
    return rows[:, None] ** 2 + columns**2 <= (diameter / 2) ** 2


def _described(value):
    """A recipe's object as plain JSON values: its arguments, under the name of its class."""
    if is_dataclass(value):
        return {"type": type(value).__name__} | {f.name: _described(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {k: _described(v) for k, v in value.items()}
    return [_described(v) for v in value] if isinstance(value, (list, tuple)) else value


def split_indices(count: int, shares: Sequence[float], seed: int) -> list[list[int]]:
    """Disjoint sorted index lists whose lengths are as near to the shares as integers can be.

    The permutation depends on seed and count alone. Every split with a share above 0 gets at least one index, the first
    ones where there are too few for all.
    """
    order = np.random.default_rng(np.random.SeedSequence([seed, count, 2**31])).permutation(count)
    exact = np.array(shares) * count
    sizes = np.floor(exact + 1e-9).astype(int)
    for k in np.argsort(sizes - exact, kind="stable")[: count - sizes.sum()]:
        sizes[k] += 1
    for k in np.flatnonzero(np.array(shares) > 0)[:count]:
        if sizes[k] == 0:
            sizes[k] += 1
            sizes[sizes.argmax()] -= 1
    return [sorted(part.tolist()) for part in np.split(order, np.cumsum(sizes)[:-1])]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None


def _check_space(root: Path, n_pairs: int, voxels: int) -> None:
    needed = n_pairs * voxels * 5  # float32 image that hardly compresses, uint8 label that does, margin
    free = shutil.disk_usage(root).free
    if needed > free:
        raise OSError(f"{root}: about {needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free on this disk")


def _end_with_parent() -> None:
    """End this worker when its parent is gone, also after kill -9, so that no orphan writes on."""
    parent = parent_process()

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
