"""Data sets: image and label pairs on disk, with splits, resume and workers."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context, parent_process
from numbers import Real
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from bundle.volume_io import affine_from_voxel_size, sha256, write_json, write_nifti
from data_gen.materials import material
from data_gen.parameters import check_number
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
        microstructure.check(tuple(shape), voxel_size_um)
        self.name, self.microstructure, self.scanner = name, microstructure, scanner
        self.phases = {phase: material(spec) for phase, spec in phases.items()}
        self.shape, self.voxel_size_um, self.supersample = tuple(shape), float(voxel_size_um), supersample
        self.split = tuple(split)

    def recipe(self) -> dict:
        """Everything that decides the bytes of a pair, but for seed and index, as plain JSON values."""
        return {
            "name": self.name,
            "phases": {phase: asdict(m) for phase, m in self.phases.items()},
            "microstructure": {"type": type(self.microstructure).__name__, **asdict(self.microstructure)},
            "source_type": type(self.scanner.source).__name__,
            "scanner": asdict(self.scanner),
            "shape": list(self.shape),
            "voxel_size_um": self.voxel_size_um,
            "supersample": self.supersample,
            "split": list(self.split),
        }

    def pair(self, seed: int, index: int) -> tuple[np.ndarray, np.ndarray, dict]:
        """One sample.

        Returns:
            float32 image and uint8 label of ``shape``, and what was drawn and what came out.
        """
        rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
        drawn = {"microstructure": self.microstructure.draw(rng), "scanner": self.scanner.draw(rng)}
        fine, structure_facts = self.microstructure.build(
            tuple(n * self.supersample for n in self.shape),
            self.voxel_size_um / self.supersample,
            drawn["microstructure"],
            rng,
        )
        fractions = phase_fractions(fine, len(self.phases), self.supersample)
        label = fractions.argmax(0).astype(np.uint8)
        image, scan_facts = self.scanner.scan(
            fractions, list(self.phases.values()), self.voxel_size_um, drawn["scanner"], rng
        )
        facts = {
            "drawn": drawn,
            "reached": {
                "fraction": {p: float((label == k).mean()) for k, p in enumerate(self.phases)},
                "grey_mean": {p: _mean(image[label == k]) for k, p in enumerate(self.phases)},
                **scan_facts,
                **structure_facts,
            },
        }
        return image, label, facts

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
        with jobs:
            if workers == 1:
                for index in missing:
                    self._write_pair(root, seed, index)
                    jobs.update()
            elif missing:
                self._run_pool(root, seed, missing, min(workers, len(missing)), jobs)
        return self._finish(root, count, seed)

    def _run_pool(self, root: Path, seed: int, missing: list[int], workers: int, jobs: tqdm) -> None:
        # spawn: forking a process that holds torch's threads is not safe
        with ProcessPoolExecutor(workers, get_context("spawn"), _end_with_parent) as pool:
            futures = [pool.submit(self._write_pair, root, seed, index) for index in missing]
            try:
                for future in as_completed(futures):
                    future.result()
                    jobs.update()
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

    def _write_pair(self, root: Path, seed: int, index: int) -> None:
        with threadpool_limits(1):  # the same sums in the same order on every machine load, and no fight over cores
            image, label, facts = self.pair(seed, index)
        files = self._files(root, index)
        affine = affine_from_voxel_size([self.voxel_size_um] * len(self.shape))
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


def phase_fractions(labels: np.ndarray, n_classes: int, block: int) -> np.ndarray:
    """Volume fraction of each class in blocks of voxels.

    Args:
        labels: integer labels whose axes are multiples of ``block``.
        n_classes: number of classes.
        block: edge of a block in voxels.

    Returns:
        float32 (classes, axes / block); they sum to 1 in every block.
    """
    split = [n for size in labels.shape for n in (size // block, block)]
    within = tuple(range(1, len(split), 2))
    blocks = labels.reshape(split)
    return np.stack([(blocks == k).mean(axis=within, dtype=np.float32) for k in range(n_classes)])


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
