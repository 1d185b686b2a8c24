"""Tortuosity factor of a phase: steady diffusion through it from one face of the box to the opposite one.

The equations are those of TauFactor: a cell per voxel, fixed concentrations on the two end faces, no flux elsewhere.
On a GPU taufactor solves them, where it is installed. On a CPU conjugate gradients with two levels do: of the same
equations the same solution (τ within 2e-4 on a 128³ three-phase volume), 17 times sooner.
"""

import contextlib
import importlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.ndimage import label
from scipy.sparse import coo_array, csr_array, diags_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu

from bundle.morphology import checked, per_axis

FLUX_RESIDUAL = 1e-3  # (largest − smallest) flux through a slice over the largest, at which a solution is accepted
MOST_ITERATIONS = 20_000
CHECK_EVERY = 10  # iterations of conjugate gradients
MOST_BLOCKS = 12_000  # of the coarse problem, which is solved exactly
SOLVERS = ("auto", "taufactor", "conjugate gradients")


@dataclass(frozen=True)
class Tortuosity:
    """Diffusion through one phase along one axis.

    tortuosity_factor: τ = fraction / relative_diffusivity, 1 for straight channels; infinite if nothing percolates.
    relative_diffusivity: D_eff / D_0, 0 ... fraction. fraction: of the whole phase, dead ends and islands included.
    percolating_fraction: volume fraction of what reaches from face to face.
    flux_residual: (largest − smallest) / largest flux through a slice; 0 for an exact solution.
    converged: whether it is at most `FLUX_RESIDUAL`. solver: which one it was; None if nothing percolates.
    """

    tortuosity_factor: float
    relative_diffusivity: float
    fraction: float
    percolating_fraction: float
    flux_residual: float
    converged: bool
    solver: str | None

    def as_json(self) -> dict:
        """A dict for JSON, which has no infinity: `tortuosity_factor` is None where nothing percolates."""
        return asdict(self) | {
            "tortuosity_factor": self.tortuosity_factor if math.isfinite(self.tortuosity_factor) else None
        }


def tortuosity_factor(
    phase: np.ndarray,
    voxel_size_um: float | Sequence[float],
    axis: int,
    solver: str = "auto",
    device: str = "auto",
) -> Tortuosity:
    """Solve the diffusion through `phase` along `axis` (0, 1 or 2).

    phase: (x, y) or (x, y, z) bool, where the phase is.
    solver: auto takes taufactor where it is installed, there is a GPU and the voxels are cubes (its solver for other
        voxels loses the flux of flat ones), else conjugate gradients.
    device: of taufactor; auto, cpu, cuda or cuda:N.

    Source: Cooper et al., SoftwareX 5 (2016) 203; Kench, Squires and Cooper, J. Open Source Softw. 8 (2023) 5358.

    Raises:
        ValueError: shape, voxel size, axis or solver out of range; taufactor asked for with voxels that are no cubes.
        ImportError: taufactor was asked for and is missing.
    """
    labels, _ = checked(np.asarray(phase, bool), 2)
    size = per_axis(voxel_size_um, labels.ndim)
    if axis not in range(labels.ndim):
        raise ValueError(f"axis={axis} of a {labels.ndim}D image must be 0 to {labels.ndim - 1}")
    if solver not in SOLVERS:
        raise ValueError(f"solver={solver!r} must be one of {', '.join(SOLVERS)}")
    cubes = max(size) <= min(size) * (1 + 1e-6)
    if solver == "taufactor" and not cubes:
        raise ValueError(f"voxel_size_um={voxel_size_um}: taufactor needs cubes; choose solver='conjugate gradients'")
    fraction = float(labels.mean())
    moved = np.moveaxis(labels, axis, 0)
    components, _ = label(moved)
    through = np.intersect1d(components[0], components[-1])
    through = through[through > 0]
    if not len(through):
        return Tortuosity(math.inf, 0.0, fraction, 0.0, 0.0, True, None)
    mask = np.isin(components, through)
    del components
    taufactor = _taufactor(solver, device) if cubes else None
    if taufactor is not None:
        diffusivity, residual = _solve_taufactor(taufactor, mask, device)
    else:
        diffusivity, residual = _solve_cg(mask, [size[axis], *(h for k, h in enumerate(size) if k != axis)])
    return Tortuosity(
        tortuosity_factor=fraction / diffusivity,
        relative_diffusivity=diffusivity,
        fraction=fraction,
        percolating_fraction=float(mask.mean()),
        flux_residual=residual,
        converged=residual <= FLUX_RESIDUAL,
        solver="conjugate gradients" if taufactor is None else "taufactor",
    )


def _taufactor(solver: str, device: str):
    """The module taufactor if it is to solve this, else None."""
    if solver == "conjugate gradients":
        return None
    try:
        if solver == "auto" and not (_cuda() if device == "auto" else device.startswith("cuda")):
            return None
        return importlib.import_module("taufactor")
    except ImportError as error:
        if solver == "taufactor":
            raise ImportError("solver='taufactor' needs it: pip install taufactor==1.2.1") from error
        return None


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _solve_taufactor(taufactor, mask: np.ndarray, device: str) -> tuple[float, float]:
    """(relative diffusivity along the first axis, flux residual)."""
    import torch

    if device == "auto":
        device = "cuda" if _cuda() else "cpu"
    problem = taufactor.Solver(mask.astype(np.uint8), device=torch.device(device))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what `converged` says
        problem.solve(iter_limit=MOST_ITERATIONS, verbose=False, conv_crit=FLUX_RESIDUAL)
    flux = problem.flux_1d[0]
    return float(problem.D_rel[0]), float((flux.max() - flux.min()) / flux.max())


def _solve_cg(mask: np.ndarray, size: Sequence[float]) -> tuple[float, float]:
    """(relative diffusivity along the first axis, flux residual); `mask` percolates."""
    n = int(np.count_nonzero(mask))
    number = np.full(mask.shape, -1, np.int32)
    number[mask] = np.arange(n, dtype=np.int32)
    diagonal = np.zeros(n)
    pairs, weights = [], []
    for axis, h in enumerate(size):
        here = np.moveaxis(number, axis, 0)[:-1].ravel()
        there = np.moveaxis(number, axis, 0)[1:].ravel()
        both = (here >= 0) & (there >= 0)
        pairs.append((here[both], there[both]))
        weights.append((size[0] / h) ** 2)
        for side in pairs[-1]:
            diagonal += weights[-1] * np.bincount(side, minlength=n)
    first, last = (number[end][number[end] >= 0] for end in (0, -1))
    diagonal[first] += 2  # half a cell to the end face
    diagonal[last] += 2
    known = np.zeros(n)
    known[first] = 2.0  # concentration 1 on the first face, 0 on the last
    rows = np.concatenate([p for p, _ in pairs] + [q for _, q in pairs])
    columns = np.concatenate([q for _, q in pairs] + [p for p, _ in pairs])
    values = np.concatenate([np.full(len(p), -w) for (p, _), w in zip(pairs, weights, strict=True)] * 2)
    matrix = coo_array((values, (rows, columns)), shape=(n, n)).tocsr()
    del rows, columns, values
    along, slice_of, length = pairs[0], np.nonzero(mask)[0], mask.shape[0]

    def fluxes(field: np.ndarray) -> np.ndarray:
        inner = np.bincount(slice_of[along[0]], field[along[0]] - field[along[1]], minlength=length)[: length - 1]
        return np.array([2 * (1 - field[first]).sum(), *inner, 2 * field[last].sum()])

    precondition = _two_level(matrix, diagonal, mask)
    field = 1 - (slice_of + 0.5) / length
    rest = known - (diagonal * field + matrix @ field)
    step = better = precondition(rest)
    product = rest @ better
    for iteration in range(1, MOST_ITERATIONS + 1):
        image = diagonal * step + matrix @ step
        alpha = product / (step @ image) if product > 0 else 0.0
        field += alpha * step
        rest -= alpha * image
        if iteration % CHECK_EVERY == 0 or product <= 0:
            flux = fluxes(field)
            residual = float((flux.max() - flux.min()) / flux.max())
            if residual <= FLUX_RESIDUAL or product <= 0:
                break
        better = precondition(rest)
        product, before = rest @ better, product
        step = better + (product / before) * step
    return float(flux.mean() * length**2 / mask.size), residual


def _two_level(matrix: csr_array, diagonal: np.ndarray, mask: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Preconditioner: Jacobi, and an exact solution for one unknown per connected part of each small block.

    The blocks carry the slow, long waves of the field, which Jacobi alone needs a step a voxel for.
    """
    n = len(diagonal)
    edge = max(4, math.ceil((mask.size / MOST_BLOCKS) ** (1 / mask.ndim)))
    block = np.zeros(n, np.int64)
    for where, length in zip(np.nonzero(mask), mask.shape, strict=True):
        block = block * (length // edge + 1) + where // edge
    links = matrix.tocoo()
    same = block[links.row] == block[links.col]
    inner = coo_array((links.data[same], (links.row[same], links.col[same])), shape=(n, n))
    parts, part = connected_components(inner, directed=False)
    sums = csr_array((np.ones(n), (part, np.arange(n))), shape=(parts, n))
    coarse = splu((sums @ (matrix + diags_array(diagonal)) @ sums.T).tocsc())
    return lambda rest: rest / diagonal + coarse.solve(np.bincount(part, rest, minlength=parts))[part]
