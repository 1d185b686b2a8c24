"""PoreSpy's generators as microstructures: sizes in µm, porosities that are met, and its global generator contained."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np

from data_gen.microstructure.random_field import rank_threshold
from data_gen.microstructure.spheres import ball_volume
from data_gen.parameters import Range, check_range, draw, lower, upper

_TOLERANCE, _ATTEMPTS = 0.005, 8  # of the porosity
# Where PoreSpy asks for no length, or ends its search too far from the porosity.
_DERIVED = {
    ("blobs", "sigma"): ("blobiness", lambda shape, sigma: float(np.mean(shape) / (40 * sigma))),
    ("voronoi_edges", "cell"): ("ncells", lambda shape, cell: round(prod(shape) / ball_volume(cell / 2, len(shape)))),
}
_BETTER = {"overlapping_spheres": {"tol": 0.001, "maxiter": 30}, "cylinders": {"maxiter": 6}}
_ONLY_3D = ("cylinders",)


@dataclass(frozen=True)
class Porespy:
    """A structure of two phases by any generator of PoreSpy that takes a shape. Labels: 0 pore, 1 solid.

    For what no class of this package makes: a thresholded Gaussian field without surface evolution (``blobs``), the
    Boolean model (``overlapping_spheres``), mats of straight fibres (``cylinders``, 3D only), struts of a Voronoi
    tessellation (``voronoi_edges``), lattices (``lattice_spheres``), packings (``random_spheres``).

    A generator that gives a field is cut at the rank of the porosity, which is exact. Others search for it themselves;
    one that misses it by more than 0.005 tries again with another seed, and after 8 attempts it is an error. At another
    voxel size the same seed gives the same material, not the same sample. ``cylinders`` and ``voronoi_edges`` in 3D
    take tens of seconds at 96³.

    Args:
        generator: name in ``porespy.generators``.
        lengths_um: [µm] its arguments that are lengths, by PoreSpy's names (``r``, ``spacing``, ``length`` …), to whole
            voxels; and instead of ``blobiness``, which depends on the box, ``sigma`` of the blur of ``blobs``, instead
            of ``ncells`` the diameter ``cell`` of the mean cell of ``voronoi_edges``.
        porosity: volume fraction of the pore; None where it is not asked for and comes out.
        options: its other arguments, as they are.
        inverted: for generators that give the solid, such as packings; the porosity is the pore's either way.

    Lengths and porosity may be ranges, drawn per sample.

    Raises:
        ValueError: a value outside its range, a generator or an argument that PoreSpy does not have.

    Source: Gostick et al., J. Open Source Softw. 4 (2019) 1296.
    """

    generator: str = "blobs"
    lengths_um: Mapping[str, Range] = field(default_factory=lambda: {"sigma": (2.0, 4.0)})
    porosity: Range | None = (0.4, 0.6)
    options: Mapping[str, object] = field(default_factory=dict)
    inverted: bool = False

    n_classes = 2

    def __post_init__(self):
        known = _arguments(self.generator)
        if self.porosity is not None:
            if "porosity" not in known:
                raise ValueError(f"porosity={self.porosity!r}: {self.generator} does not take one; give None")
            object.__setattr__(self, "porosity", check_range("porosity", self.porosity, 0.01, 0.99))
        elif "porosity" in known:
            raise ValueError(f"porosity=None: {self.generator} needs one, such as 0.5")
        lengths = {k: check_range(f"lengths_um {k}", v, 1e-4, 1e5, "µm") for k, v in dict(self.lengths_um).items()}
        object.__setattr__(self, "lengths_um", lengths)
        object.__setattr__(self, "options", dict(self.options))
        asked = {"lengths_um": lengths, "options": self.options}
        mine = [name for of, name in _DERIVED if of == self.generator]
        for argument, names in asked.items():
            allowed = sorted(known - {"shape", "seed", "im", "porosity"}) + (mine if argument == "lengths_um" else [])
            if wrong := sorted(set(names) - set(allowed)):
                raise ValueError(f"{argument}={wrong} of {self.generator} must be among {', '.join(allowed)}")

    def check(self, shape: tuple[int, ...], voxel_size_um: float) -> None:
        """Raise ValueError where this recipe cannot fill a box of that shape."""
        if self.generator in _ONLY_3D and len(shape) != 3:
            raise ValueError(f"generator={self.generator!r} makes volumes only; shape={tuple(shape)} has two axes")
        limit = min(shape) * voxel_size_um / 4
        for name, value in self.lengths_um.items():
            if lower(value) < voxel_size_um:
                raise ValueError(
                    f"lengths_um {name}={value!r} is below one voxel of {voxel_size_um:g} µm; take at least "
                    f"{voxel_size_um:g}"
                )
            if upper(value) > limit and name != "length":  # a fibre may leave the box
                raise ValueError(
                    f"lengths_um {name}={value!r} does not fit a box of {tuple(shape)} voxels of {voxel_size_um:g} µm; "
                    f"take at most a quarter of its shortest edge, {limit:g}"
                )

    def draw(self, rng: np.random.Generator) -> dict:
        """The parameters of one sample."""
        lengths = {name: draw(value, rng) for name, value in self.lengths_um.items()}
        return {"lengths_um": lengths, "porosity": None if self.porosity is None else draw(self.porosity, rng)}

    def build(
        self, shape: tuple[int, ...], voxel_size_um: float, parameters: dict, rng: np.random.Generator
    ) -> tuple[np.ndarray, dict]:
        """One sample.

        Args:
            shape: voxels along each axis, 2 or 3 of them.
            voxel_size_um: [µm] edge of a voxel.
            parameters: what ``draw`` gave.
            rng: source of PoreSpy's seed.

        Returns:
            uint8 labels of that shape; facts: the ``porosity`` that came out, PoreSpy's ``arguments`` with its seed.

        Raises:
            ValueError: PoreSpy refuses the arguments, gives another shape, or keeps missing the porosity.
        """
        asked = parameters["porosity"]
        arguments = _BETTER.get(self.generator, {}) | self.options
        for name, length_um in parameters["lengths_um"].items():
            voxels = length_um / voxel_size_um
            key, convert = _DERIVED.get((self.generator, name), (name, lambda _, length: round(length)))
            arguments[key] = convert(shape, voxels)
        if asked is not None:
            share = 1 - asked if self.inverted else asked
            arguments["porosity"] = None if self.generator == "blobs" else share
        for _ in range(_ATTEMPTS):
            seed = int(rng.integers(2**32))
            image = call_porespy(self.generator, shape, seed, arguments)
            if image.shape != tuple(shape):
                raise ValueError(f"{self.generator} gave the shape {image.shape} instead of {tuple(shape)}")
            if image.dtype.kind == "f":
                image = image <= rank_threshold(image.ravel().copy(), round(share * image.size))
            labels = ((image != 0) == self.inverted).astype(np.uint8)
            reached = float((labels == 0).mean())
            if asked is None or abs(reached - asked) <= _TOLERANCE:
                break
        else:
            raise ValueError(
                f"porosity={asked:.3f}: {self.generator} missed it {_ATTEMPTS} times, {reached:.3f} came out last; "
                "take smaller lengths_um or a larger box"
            )
        return labels, {"porosity": reached, "arguments": arguments | {"seed": seed}}


def call_porespy(name: str, shape: tuple[int, ...], seed: int, arguments: Mapping[str, object]) -> np.ndarray:
    """A generator's image, bool or float of that shape; numpy's global generator is as it was before.

    PoreSpy seeds numpy's global generator and numba's, and draws from them. So calls in threads of one process would
    disturb each other: take processes. Numba's generator stays seeded; nothing else here draws from it.

    Raises:
        ValueError: whatever PoreSpy raises, on one line.
    """
    generator = _generator(name)
    seeded = {"seed": seed} if "seed" in inspect.signature(generator).parameters else {}
    before = np.random.get_state()  # noqa: NPY002 - it is PoreSpy that uses it
    try:
        np.random.seed(seed)  # noqa: NPY002 - for generators without a seed
        return np.asarray(generator(shape=list(shape), **seeded, **arguments))
    except Exception as error:  # PoreSpy raises bare Exception
        raise ValueError(f"porespy.generators.{name}: {' '.join(str(error).split())}") from error
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _generator(name: str) -> Callable:
    generators = importlib.import_module("porespy").generators  # takes seconds
    functions = {k: f for k, f in vars(generators).items() if inspect.isfunction(f) and not k.startswith("_")}
    usable = sorted(k for k, f in functions.items() if "shape" in inspect.signature(f).parameters)
    if name not in usable:
        raise ValueError(f"generator={name!r} must be a generator of PoreSpy that takes a shape: {', '.join(usable)}")
    return functions[name]


def _arguments(name: str) -> set[str]:
    return set(inspect.signature(_generator(name)).parameters)
