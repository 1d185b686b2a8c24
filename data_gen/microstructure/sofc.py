"""Solid-oxide cells: the Ni–YSZ–pore electrode, and porous or nearly dense bodies of one solid for the other layers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import product
from math import prod

import numpy as np

from data_gen.microstructure.phase_fields import (
    coarsen,
    correlation_lengths,
    gaussian_field,
    grade,
    grid,
    mean_chords,
    node_labels,
    percolating_share,
    voxelise,
)
from data_gen.microstructure.spheres import ball_volume
from data_gen.parameters import Range, check_ranges, draw_ranges, lower, upper

_MAX_NODES = 2**25  # three float32 fields, their filtered copies and indicators stay below 4 GB
_NODES_PER_CHORD = 5.6  # the field is about 0.43 mean chords long and has 2.4 nodes per length
_GRAIN_LEAD = 3.5  # standard deviations: the other fields hardly ever make a hole in a coarse grain
_MAX_POROSITY = 0.95
_GRAIN_CV = 0.45
_GRAIN_STRETCH = 0.2  # sd of the logarithm of each axis of a grain


@dataclass(frozen=True)
class Sofc:
    """Fuel electrode of a solid-oxide cell: pore, nickel and YSZ, three connected phases in contact with each other.

    Sizes are mean chord lengths before coarsening. The defaults lie around the labelled section of a solid-oxide
    electrode published with Dahari et al. (arXiv:2110.11281): fractions 0.36/0.33/0.31, chords 11.0/10.1/10.3 pixels.
    Its pixel size and the names of its phases are not stated; 65 nm, and 0 for the pore, are assumed.
    Below a fraction of about 0.16 a phase does not percolate in 3D; in 2D no two phases can.

    Args:
        porosity: volume fraction of the pore.
        nickel_share: share of nickel in the solid volume.
        pore_size_um, nickel_size_um, ysz_size_um: [µm] mean chords before coarsening. Where no random fields have three
            such chords, the nearest are taken at the same total surface.
        anisotropy: mean chord along ``axis`` over that across it; sizes are those across.
        gradient: (porosity at the far end of ``axis`` − at the near end) / mean; the box is then not periodic along it.
        axis: of the anisotropy and the gradient.
        heterogeneity: 0 for solids of one scale, up to 2 for fine and coarse regions side by side.
        coarsening: share of the internal surface that curvature flow removes after that, at constant fractions: sizes
            grow by about 1 / (1 − coarsening) and corners round off, as in sintering. Met within about 0.03;
            ``surface_removed`` tells what went.
        coarse_share: share of the solid that is put into coarse grains.
        coarse_size_um: [µm] mean diameter of these grains; their coefficient of variation is 0.45.

    All but ``axis`` may be ranges, drawn per sample. Labels: 0 pore, 1 nickel, 2 YSZ. The box is periodic.

    Raises:
        ValueError: a value outside its range, or sizes that no three phases of these fractions can have.
    """

    porosity: Range = (0.3, 0.4)
    nickel_share: Range = (0.42, 0.55)
    pore_size_um: Range = (0.4, 0.6)
    nickel_size_um: Range = (0.4, 0.55)
    ysz_size_um: Range = (0.4, 0.55)
    anisotropy: Range = 1.0
    gradient: Range = 0.0
    axis: int = -1
    heterogeneity: Range = (0.2, 0.6)
    coarsening: Range = (0.2, 0.4)
    coarse_share: Range = (0.0, 0.12)
    coarse_size_um: Range = (1.2, 2.2)

    n_classes = 3

    def __post_init__(self):
        limits = dict(_LIMITS, porosity=(0.05, 0.9, ""), nickel_share=(0.05, 0.95, ""))
        _check_arguments(self, limits)
        for draws in product(*(_ends(getattr(self, n)) for n in ("porosity", "nickel_share", *_SIZES))):
            correlation_lengths(_fractions(*draws[:2]), np.array(draws[2:]))

    def check(self, shape: tuple[int, ...], voxel_size_um: float) -> None:
        """Raise ValueError where this recipe cannot fill a box of that shape."""
        for name in _SIZES:
            _check_size(self, name, shape, voxel_size_um)
        if upper(self.coarse_share) > 0:
            limit = min(shape) * voxel_size_um / 2
            if upper(self.coarse_size_um) > limit:
                raise ValueError(
                    f"coarse_size_um={self.coarse_size_um!r} is more than half the shortest edge of {tuple(shape)} "
                    f"voxels of {voxel_size_um:g} µm; take at most {limit:g}, or coarse_share 0"
                )

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """The parameters of one sample."""
        return draw_ranges(self, (f.name for f in fields(self) if f.name != "axis"), rng)

    def build(
        self, shape: tuple[int, ...], voxel_size_um: float, parameters: dict[str, float], rng: np.random.Generator
    ) -> tuple[np.ndarray, dict]:
        """One sample.

        Args:
            shape: voxels along each axis, 2 or 3 of them.
            voxel_size_um: [µm] edge of a voxel.
            parameters: what ``draw`` gave.
            rng: source of the fields and grains.

        Returns:
            uint8 labels of that shape; facts, each in the order of the labels: ``fraction``, ``mean_chord_um`` along
            each axis, ``percolating_share`` of each phase along each axis, and ``surface_removed`` by coarsening.
        """
        p = parameters
        fractions = _fractions(p["porosity"], p["nickel_share"])
        lengths = correlation_lengths(fractions, np.array([p[name] for name in _SIZES]))
        box = _squeezed(shape, voxel_size_um, p["anisotropy"], self.axis)
        nodes, spacing = grid(box, lengths.min())
        spread = (0.0, p["heterogeneity"], p["heterogeneity"])  # pores are what the powders leave: of one scale
        phases = [gaussian_field(nodes, spacing, length, h, rng) for length, h in zip(lengths, spread, strict=True)]
        n_grains = _add_grains(phases, box, fractions, p["coarse_share"], p["coarse_size_um"], lengths.min(), rng)
        grade(phases, fractions, _softened(p), self.axis)
        labels, facts = _shape(phases, shape, voxel_size_um, fractions, p["coarsening"])
        return labels, {**facts, "n_coarse_grains": n_grains}


@dataclass(frozen=True)
class Porous:
    """One solid with pores, connected or closed: a metal support, a cathode, an electrolyte with a few closed pores.

    At a porosity of 0.15 to 0.85 both phases percolate in 3D; below about 0.15 the pores are closed.

    Args:
        porosity: volume fraction of the pore; 0 is a dense body.
        pore_size_um: [µm] mean chord of the pores before coarsening; that of the solid is
            pore_size_um·(1 − porosity) / porosity.
        anisotropy, gradient, axis, heterogeneity, coarsening: as for ``Sofc``.

    All but ``axis`` may be ranges. Labels: 0 pore, 1 solid. The box is periodic.

    Raises:
        ValueError: a value outside its range.
    """

    porosity: Range = (0.3, 0.45)
    pore_size_um: Range = (0.5, 1.0)
    anisotropy: Range = 1.0
    gradient: Range = 0.0
    axis: int = -1
    heterogeneity: Range = 0.3
    coarsening: Range = 0.3

    n_classes = 2

    def __post_init__(self):
        _check_arguments(self, dict(_LIMITS, porosity=(0, 0.95, "")))

    def check(self, shape: tuple[int, ...], voxel_size_um: float) -> None:
        """Raise ValueError where this recipe cannot fill a box of that shape."""
        if upper(self.porosity) > 0:
            _check_size(self, "pore_size_um", shape, voxel_size_um)

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """The parameters of one sample."""
        return draw_ranges(self, (f.name for f in fields(self) if f.name != "axis"), rng)

    def build(
        self, shape: tuple[int, ...], voxel_size_um: float, parameters: dict[str, float], rng: np.random.Generator
    ) -> tuple[np.ndarray, dict]:
        """One sample; arguments and facts as for ``Sofc``."""
        p = parameters
        if p["porosity"] < 1e-4:  # a level this high has no meaning in a box of voxels
            return np.ones(shape, np.uint8), {"fraction": [0.0, 1.0]}
        fractions = np.array([p["porosity"], 1 - p["porosity"]])
        chords = p["pore_size_um"] * np.array([1, fractions[1] / fractions[0]])
        length = correlation_lengths(fractions, chords)[0]
        nodes, spacing = grid(_squeezed(shape, voxel_size_um, p["anisotropy"], self.axis), length)
        field = gaussian_field(nodes, spacing, length, p["heterogeneity"], rng)
        phases = [field, np.zeros_like(field)]
        grade(phases, fractions, _softened(p), self.axis)
        return _shape(phases, shape, voxel_size_um, fractions, p["coarsening"])


_SIZES = ("pore_size_um", "nickel_size_um", "ysz_size_um")
_LIMITS = {
    **{name: (1e-4, 1e5, "µm") for name in (*_SIZES, "coarse_size_um")},
    "anisotropy": (0.2, 5, ""),
    "gradient": (-1.5, 1.5, ""),
    "heterogeneity": (0, 2, ""),
    "coarsening": (0, 0.6, ""),
    "coarse_share": (0, 0.5, ""),
}


def _check_arguments(recipe, limits: dict) -> None:
    check_ranges(recipe, ((f.name, *limits[f.name]) for f in fields(recipe) if f.name != "axis"))
    if type(recipe.axis) is not int or not -3 <= recipe.axis <= 2:
        raise ValueError(f"axis={recipe.axis!r} must be an axis of the volume: 0, 1, 2 or -1")
    steepest = max(abs(g) for g in _ends(recipe.gradient))
    if steepest and upper(recipe.porosity) * (1 + steepest / 2) > _MAX_POROSITY:
        raise ValueError(
            f"gradient={recipe.gradient!r} takes porosity={recipe.porosity!r} above {_MAX_POROSITY:g} at one end; take "
            f"at most {2 * (_MAX_POROSITY / upper(recipe.porosity) - 1):.3g}"
        )


def _check_size(recipe, name: str, shape: tuple[int, ...], voxel_size_um: float) -> None:
    value, edge = getattr(recipe, name), min(shape) * voxel_size_um
    if lower(value) < 2 * voxel_size_um:
        raise ValueError(
            f"{name}={value!r} is below two voxels of {voxel_size_um:g} µm; take at least {2 * voxel_size_um:g}"
        )
    if upper(value) > edge / 4:
        raise ValueError(
            f"{name}={value!r} does not fit a box of {tuple(shape)} voxels of {voxel_size_um:g} µm; take at most a "
            f"quarter of its shortest edge, {edge / 4:g}"
        )
    if not -len(shape) <= recipe.axis < len(shape):
        raise ValueError(f"axis={recipe.axis!r} is not an axis of a {len(shape)}D volume; take -1")
    nodes = prod(n * voxel_size_um * _NODES_PER_CHORD for n in shape) / lower(recipe.anisotropy)
    if nodes > _MAX_NODES * lower(value) ** len(shape):
        smallest = (nodes / _MAX_NODES) ** (1 / len(shape))
        raise ValueError(f"{name}={value!r} is too fine for {tuple(shape)} voxels; take at least {smallest:.3g}")


def _ends(value: Range) -> tuple[float, ...]:
    return (lower(value), upper(value)) if isinstance(value, tuple) else (value,)


def _fractions(porosity: float, nickel_share: float) -> np.ndarray:
    return np.array([porosity, (1 - porosity) * nickel_share, (1 - porosity) * (1 - nickel_share)])


def _softened(p: dict) -> float:
    """The gradient before coarsening: curvature flow closes pores where they are few, which steepens it.

    Fitted to 2D and 3D samples with coarsenings of 0.1 to 0.6; the gradient asked is met within a tenth.
    """
    return p["gradient"] / (1 + 0.55 * p["coarsening"] + 0.7 * p["coarsening"] ** 2)


def _squeezed(shape: tuple[int, ...], voxel_size_um: float, anisotropy: float, axis: int) -> tuple[float, ...]:
    """[µm] Edges of the box in coordinates in which the material is isotropic."""
    stretch = np.ones(len(shape))
    stretch[axis] = anisotropy
    return tuple(n * voxel_size_um / s for n, s in zip(shape, stretch, strict=True))


def _shape(
    phases: list[np.ndarray], shape: tuple[int, ...], voxel_size_um: float, fractions: np.ndarray, coarsening: float
) -> tuple[np.ndarray, dict]:
    """Coarsen, cut at the voxels, and measure."""
    removed = 0.0
    if coarsening > 0:
        phases, removed = coarsen(phases, fractions, coarsening)
    at_nodes = node_labels(phases, fractions)
    labels = voxelise(phases, shape, fractions)
    classes = range(len(fractions))
    facts = {
        "fraction": [round(float((labels == k).mean()), 6) for k in classes],
        "mean_chord_um": [mean_chords(labels, k, voxel_size_um) for k in classes],
        # at the nodes, so that it depends on the structure and not on the voxels
        "percolating_share": [percolating_share(at_nodes, k) for k in classes],
        "surface_removed": round(removed, 4),
    }
    return labels, facts


def _add_grains(
    phases: list[np.ndarray],
    box: tuple[float, ...],
    fractions: np.ndarray,
    share: float,
    size_um: float,
    wall_um: float,
    rng: np.random.Generator,
) -> int:
    """Raise the solids' fields inside coarse grains, in place; a share of each solid. Gives the number of grains."""
    ndim, nodes = len(box), phases[0].shape
    n_all = 0
    sigma = np.sqrt(np.log1p(_GRAIN_CV**2))
    moment = np.exp(sigma**2 / 2 * ndim * (ndim - 1))  # of the lognormal diameter: its volume is larger than its mean's
    for k in (1, 2):
        expected = share * fractions[k] * prod(box) / (ball_volume(size_um / 2, ndim) * moment)
        n_grains = int(expected + rng.random())
        n_all += n_grains
        for _ in range(n_grains):
            centre = rng.uniform(0, box)
            radius = size_um / 2 * rng.lognormal(-(sigma**2) / 2, sigma)
            index, squared = [], []
            for c, n, edge in zip(centre, nodes, box, strict=True):
                d = edge / n
                reach = 1.3 * radius + 2.5 * wall_um
                at = np.arange(int(np.ceil((c - reach) / d)), int(np.floor((c + reach) / d)) + 1)[:n]
                index.append(at % n)
                away = at * d - c
                squared.append(((away - edge * np.round(away / edge)) * rng.lognormal(0, _GRAIN_STRETCH)) ** 2)
            inside = radius - np.sqrt(sum(np.ix_(*squared)))
            phases[k][np.ix_(*index)] += (_GRAIN_LEAD * (1 + np.tanh(inside / wall_um)) / 2).astype(np.float32)
    return n_all
