"""Structures made of structures: layers with rough interfaces, and one structure inside a phase of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd

import numpy as np

from data_gen.microstructure.phase_fields import gaussian_field, grid, sample_field
from data_gen.parameters import Range, check_range, check_ranges, draw, lower, upper

_QUANTA = 16  # a slab starts and ends at these parts of the box, at any (odd) supersampling: the same slab in µm
_KEYS = {"generator", "classes", "thickness_um", "roughness_um", "correlation_um"}


@dataclass(frozen=True)
class Layers:
    """Layers of different structures along one axis with rough interfaces, such as a metal-supported cell.

    Each interface is a plane plus a Gaussian random height field. Where two interfaces would cross, the upper one lies
    on the lower one. A generator fills a slab that holds its layer, so its features are cut at the interface.

    Args:
        layers: from the low end of the axis to the high end, at least one. Each is a mapping with

            - ``generator``: a microstructure;
            - ``classes``: for each of its labels the label in the result, e.g. [0, 3] for pore and metal;
            - ``thickness_um``: [µm] mean thickness, a number or a range; None, in exactly one layer, for what the
              others leave;
            - ``roughness_um``, ``correlation_um``: optional, of its interface with the next layer.
        axis: along which the layers follow each other.
        roughness_um: [µm] standard deviation of the height of an interface.
        correlation_um: [µm] lateral distance at which the correlation of the heights has fallen to exp(−1/2).

    Labels: those that ``classes`` name; every number from 0 to the largest must occur.

    Raises:
        ValueError: names the layer, the key and the rule.
    """

    layers: Sequence[Mapping]
    axis: int = -1
    roughness_um: Range = 0.5
    correlation_um: Range = 5.0
    types: tuple[str, ...] = field(init=False, default=())  # class names, so that a recorded recipe is complete

    def __post_init__(self):
        if type(self.axis) is not int or not -3 <= self.axis <= 2:
            raise ValueError(f"axis={self.axis!r} must be an axis of the volume: 0, 1, 2 or -1")
        check_ranges(self, [("roughness_um", 0, 1e5, "µm"), ("correlation_um", 1e-4, 1e5, "µm")])
        if not isinstance(self.layers, (list, tuple)) or not self.layers:
            raise ValueError(f"layers={self.layers!r} must be a list of at least one layer")
        checked = tuple(self._check_layer(k, layer) for k, layer in enumerate(self.layers))
        n_open = sum(layer["thickness_um"] is None for layer in checked)
        if n_open != 1:
            raise ValueError(
                f"layers: {n_open} have thickness_um None; exactly one must, and fills what the others leave"
            )
        _check_labels("layers: classes", [c for layer in checked for c in layer["classes"]])
        object.__setattr__(self, "layers", checked)
        object.__setattr__(self, "types", tuple(type(layer["generator"]).__name__ for layer in checked))

    def _check_layer(self, k: int, layer: Mapping) -> dict:
        name = f"layers[{k}]"
        if not isinstance(layer, Mapping) or not {"generator", "classes", "thickness_um"} <= set(layer) <= _KEYS:
            given = sorted(layer) if isinstance(layer, Mapping) else layer
            raise ValueError(
                f"{name}={given!r} must have generator, classes, thickness_um, and may have {sorted(_KEYS)}"
            )
        generator, thickness = layer["generator"], layer["thickness_um"]
        if thickness is not None:
            thickness = check_range(f"{name} thickness_um", thickness, 1e-4, 1e6, "µm")
        return {
            "generator": generator,
            "classes": _check_classes(name, generator, layer["classes"]),
            "thickness_um": thickness,
            "roughness_um": check_range(
                f"{name} roughness_um", layer.get("roughness_um", self.roughness_um), 0, 1e5, "µm"
            ),
            "correlation_um": check_range(
                f"{name} correlation_um", layer.get("correlation_um", self.correlation_um), 1e-4, 1e5, "µm"
            ),
        }

    @property
    def n_classes(self) -> int:
        return 1 + max(c for layer in self.layers for c in layer["classes"])

    def check(self, shape: tuple[int, ...], voxel_size_um: float) -> None:
        """Raise ValueError where the layers, or one of their generators, do not fit a box of that shape."""
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(f"axis={self.axis!r} is not an axis of a {len(shape)}D volume; take -1")
        edge = shape[self.axis] * voxel_size_um
        left = edge - sum(upper(layer["thickness_um"]) for layer in self.layers if layer["thickness_um"] is not None)
        if left < 2 * voxel_size_um:
            raise ValueError(
                f"layers: the thicknesses sum to up to {edge - left:g} µm and leave nothing of the box of {edge:g} µm; "
                "take thinner layers or a longer box"
            )
        for k, layer in enumerate(self.layers):
            thickness = left if layer["thickness_um"] is None else lower(layer["thickness_um"])
            slab = list(shape)
            slab[self.axis] = min(max(int(thickness / voxel_size_um + 1e-6), 1), shape[self.axis])
            try:
                layer["generator"].check(tuple(slab), voxel_size_um)
            except ValueError as error:
                raise ValueError(f"layers[{k}], {thickness:g} µm thick: {error}") from error

    def draw(self, rng: np.random.Generator) -> dict:
        """The parameters of one sample: a list with one entry per layer, its generator's under ``parameters``."""
        keys = ("thickness_um", "roughness_um", "correlation_um")
        return {
            "layers": [
                {**{k: draw(layer[k], rng) for k in keys}, "parameters": layer["generator"].draw(rng)}
                for layer in self.layers
            ]
        }

    def build(
        self, shape: tuple[int, ...], voxel_size_um: float, parameters: dict, rng: np.random.Generator
    ) -> tuple[np.ndarray, dict]:
        """One sample.

        Args:
            shape: voxels along each axis, 2 or 3 of them.
            voxel_size_um: [µm] edge of a voxel.
            parameters: what ``draw`` gave.
            rng: source of the interfaces and of a generator's seed for each layer.

        Returns:
            uint8 labels of that shape; facts: the ``fraction`` of each label and, per layer, its mean thickness, the
            standard deviation of its upper interface, where its slab begins (lengths in its own facts count from
            there) and its generator's facts.
        """
        axis = self.axis % len(shape)
        across = shape[:axis] + shape[axis + 1 :]
        drawn = parameters["layers"]
        seeds = rng.integers(2**63, size=(2, len(drawn)))
        interfaces = self._interfaces(shape[axis], across, voxel_size_um, drawn, seeds[0])
        quantum = shape[axis] // gcd(shape[axis], _QUANTA)
        heights = (np.arange(shape[axis]) + 0.5) * voxel_size_um
        labels = np.zeros(shape, np.uint8)
        view = np.moveaxis(labels, axis, -1)
        facts = []
        for k, layer in enumerate(self.layers):
            low, high = interfaces[k], interfaces[k + 1]
            first = int(np.floor(low.min() / voxel_size_um / quantum + 1e-6)) * quantum
            last = int(np.ceil(high.max() / voxel_size_um / quantum - 1e-6)) * quantum
            first, last = max(first, 0), min(max(last, first + quantum), shape[axis])
            slab = (*shape[:axis], last - first, *shape[axis + 1 :])
            inner, inner_facts = layer["generator"].build(
                slab, voxel_size_um, drawn[k]["parameters"], np.random.default_rng(seeds[1, k])
            )
            z = heights[first:last]
            mine = (z >= low[..., None]) & (z < high[..., None])
            np.copyto(
                view[..., first:last], np.moveaxis(np.array(layer["classes"], np.uint8)[inner], axis, -1), where=mine
            )
            facts.append(
                {
                    "thickness_um": round(float((high - low).mean()), 4),
                    "roughness_um": round(float(high.std()), 4),
                    "slab_start_um": round(first * voxel_size_um, 4),
                    **inner_facts,
                }
            )
        counts = np.bincount(labels.ravel(), minlength=self.n_classes) / labels.size
        return labels, {"fraction": counts.round(6).tolist(), "layers": facts}

    def _interfaces(
        self, n: int, across: tuple[int, ...], voxel_size_um: float, drawn: list[dict], seeds: np.ndarray
    ) -> list[np.ndarray]:
        """[µm] Heights of the layers + 1 interfaces over the plane, rising; the outer two are the faces of the box."""
        edge = n * voxel_size_um
        rest = edge - sum(d["thickness_um"] or 0 for d in drawn)
        heights = [np.zeros(across)]
        level = 0.0
        for d, seed in zip(drawn[:-1], seeds[:-1], strict=True):
            level += rest if d["thickness_um"] is None else d["thickness_um"]
            rough = np.zeros(across)
            if d["roughness_um"] > 0:
                box = tuple(m * voxel_size_um for m in across)
                nodes, spacing = grid(box, d["correlation_um"])
                noise = gaussian_field(nodes, spacing, d["correlation_um"], 0.0, np.random.default_rng(seed))
                rough = d["roughness_um"] * sample_field(noise, across)
            heights.append(np.clip(np.maximum(level + rough, heights[-1]), 0, edge))
        return [*heights, np.full(across, edge)]


@dataclass(frozen=True)
class Nested:
    """One structure inside a phase of another, such as nanopores in a binder phase or closed pores in a solid.

    Args:
        host: a microstructure.
        host_class: the label of the host that is replaced.
        guest: the microstructure that replaces it, cut at its borders.
        classes: for each label of the guest the label in the result.

    Labels: those of the host but ``host_class``, unless ``classes`` names it, and those of ``classes``.

    Raises:
        ValueError: names the argument and the rule.
    """

    host: object
    host_class: int
    guest: object
    classes: Sequence[int]
    types: tuple[str, ...] = field(init=False, default=())  # class names, so that a recorded recipe is complete

    def __post_init__(self):
        for name in ("host", "guest"):
            if not hasattr(getattr(self, name), "n_classes"):
                raise ValueError(f"{name}={getattr(self, name)!r} must be a microstructure")
        if type(self.host_class) is not int or not 0 <= self.host_class < self.host.n_classes:
            raise ValueError(
                f"host_class={self.host_class!r} must be a label of the host, 0 to {self.host.n_classes - 1}"
            )
        object.__setattr__(self, "classes", _check_classes("Nested", self.guest, self.classes))
        _check_labels("classes", [*(c for c in range(self.host.n_classes) if c != self.host_class), *self.classes])
        object.__setattr__(self, "types", (type(self.host).__name__, type(self.guest).__name__))

    @property
    def n_classes(self) -> int:
        return max(self.host.n_classes, 1 + max(self.classes))

    def check(self, shape: tuple[int, ...], voxel_size_um: float) -> None:
        """Raise ValueError where host or guest cannot fill a box of that shape."""
        self.host.check(shape, voxel_size_um)
        self.guest.check(shape, voxel_size_um)

    def draw(self, rng: np.random.Generator) -> dict:
        """The parameters of one sample, of host and guest."""
        return {"host": self.host.draw(rng), "guest": self.guest.draw(rng)}

    def build(
        self, shape: tuple[int, ...], voxel_size_um: float, parameters: dict, rng: np.random.Generator
    ) -> tuple[np.ndarray, dict]:
        """One sample; arguments as for ``Layers``. Facts: the ``fraction`` of each label, and those of both parts."""
        seeds = rng.integers(2**63, size=2)
        labels, host_facts = self.host.build(shape, voxel_size_um, parameters["host"], np.random.default_rng(seeds[0]))
        inner, guest_facts = self.guest.build(
            shape, voxel_size_um, parameters["guest"], np.random.default_rng(seeds[1])
        )
        np.copyto(labels, np.array(self.classes, np.uint8)[inner], where=labels == self.host_class)
        counts = np.bincount(labels.ravel(), minlength=self.n_classes) / labels.size
        return labels, {"fraction": counts.round(6).tolist(), "host": host_facts, "guest": guest_facts}


def _check_classes(name: str, generator, classes: Sequence[int]) -> tuple[int, ...]:
    if not hasattr(generator, "n_classes"):
        raise ValueError(f"{name} generator={generator!r} must be a microstructure")
    good = isinstance(classes, (list, tuple)) and all(type(c) is int and 0 <= c < 256 for c in classes)
    if not good or len(classes) != generator.n_classes:
        raise ValueError(
            f"{name} classes={classes!r} must be {generator.n_classes} labels, one for each phase of "
            f"{type(generator).__name__}"
        )
    return tuple(classes)


def _check_labels(name: str, labels: list[int]) -> None:
    missing = sorted(set(range(max(labels) + 1)) - set(labels))
    if missing:
        raise ValueError(f"{name} use the labels {sorted(set(labels))} and leave out {missing}; number them from 0")
