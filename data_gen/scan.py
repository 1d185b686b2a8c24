"""The scan: phase fractions to a grey volume. Composes materials, source, projection and reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from data_gen.materials import Material
from data_gen.parameters import Range, check_number, check_range, draw
from data_gen.projection import FILTERS, parallel_beam
from data_gen.spectrum import Monochromatic, Spectrum, Tube

_CM_PER_UM = 1e-4
_RAYS_PER_BLOCK = 512  # times some 200 energies in float32: 0.4 MB, which stays in the cache


def transmission(paths_cm: np.ndarray, attenuation_1_cm: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Polychromatic Beer–Lambert law, T = Σ_E w(E) exp(−Σ_m µ_m(E) L_m).

    Args:
        paths_cm: [cm] path length in each material, (materials, ...).
        attenuation_1_cm: [1/cm] µ of each material at each energy, (materials, energies).
        weights: share of the intensity at each energy, (energies,), sums to 1.

    Returns:
        float32 array of the shape of ``paths_cm[0]``, in (0, 1].
    """
    paths = paths_cm.reshape(len(paths_cm), -1).T.astype(np.float32)
    mu = -attenuation_1_cm.astype(np.float32)
    weights = weights.astype(np.float32)
    out = np.empty(len(paths), np.float32)
    for start in range(0, len(paths), _RAYS_PER_BLOCK):
        block = paths[start : start + _RAYS_PER_BLOCK] @ mu
        np.exp(block, out=block)
        np.matmul(block, weights, out=out[start : start + _RAYS_PER_BLOCK])
    return out.reshape(paths_cm.shape[1:])


def merge_energies(
    weights: np.ndarray, attenuation_1_cm: np.ndarray, spread: float = 0.05
) -> tuple[np.ndarray, np.ndarray]:
    """Join neighbouring energy bins in which every material attenuates alike.

    A group keeps its total weight and its weighted mean µ, so the first moment is exact and a group of optical depth x
    errs by x²·spread²/8 of its own share at most. Absorption edges stay, since µ jumps there. A 140 kV spectrum of
    1390 bins becomes some 200 groups with the same −ln T within 1e-4.

    Args:
        weights: (energies,).
        attenuation_1_cm: (materials, energies).
        spread: largest ratio of µ within a group, less 1.

    Returns:
        weights (groups,) and attenuation (materials, groups).
    """
    starts = [0]
    low = high = attenuation_1_cm[:, 0]
    for k, mu in enumerate(attenuation_1_cm.T):
        low, high = np.minimum(low, mu), np.maximum(high, mu)
        if (high > low * (1 + spread)).any():
            starts.append(k)
            low = high = mu
    merged = np.add.reduceat(weights, starts)
    return merged, np.add.reduceat(attenuation_1_cm * weights, starts, axis=1) / merged


@dataclass(frozen=True)
class Scanner:
    """A parallel-beam CT scan reconstructed by FBP, beam hardening left in.

    Every slice along the last axis (the rotation axis) is projected once per material; the detector then integrates
    the whole spectrum, weighted by its intensity, along each ray, and FBP turns −ln T into 1/cm. The volume is then
    mapped so that its smallest value becomes 0 and its largest 1, and Gaussian noise is added.

    Args:
        source: a ``Tube`` or a ``Monochromatic`` source.
        n_angles: number of projections.
        angular_range_deg: [°] angle that they cover.
        filter_name: FBP filter.
        noise_sd: standard deviation of the noise on the normalised reconstruction; a number or a range.

    Raises:
        ValueError: a value outside its range, an unknown filter.
    """

    source: Tube | Monochromatic = field(default_factory=Tube)
    n_angles: int = 360
    angular_range_deg: float = 180.0
    filter_name: str = "ram-lak"
    noise_sd: Range = 0.01

    def __post_init__(self):
        if not isinstance(self.source, (Tube, Monochromatic)):
            raise ValueError(f"source={self.source!r} must be a data_gen.spectrum.Tube or Monochromatic")
        if isinstance(self.n_angles, bool) or not isinstance(self.n_angles, int) or not 1 <= self.n_angles <= 20000:
            raise ValueError(f"n_angles={self.n_angles!r} must be an integer in [1, 20000]")
        check_number("angular_range_deg", self.angular_range_deg, 1, 360, "°")
        if self.filter_name not in FILTERS:
            raise ValueError(f"filter_name={self.filter_name!r} is unknown; known: {', '.join(FILTERS)}")
        object.__setattr__(self, "noise_sd", check_range("noise_sd", self.noise_sd, 0, 10))

    @cached_property
    def spectrum(self) -> Spectrum:
        """The source's spectrum, computed once."""
        return self.source.spectrum()

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """The parameters of one scan."""
        return {"noise_sd": draw(self.noise_sd, rng)}

    def reconstruct(
        self,
        fractions: np.ndarray,
        materials: Sequence[Material],
        voxel_size_um: float,
        progress: Callable = iter,
    ) -> np.ndarray:
        """Project and reconstruct without noise.

        Args:
            fractions: volume fraction of each material in each voxel, (materials, x, y) or (materials, x, y, z);
                they sum to 1 in every voxel.
            materials: one Material for each entry of the first axis.
            voxel_size_um: [µm] edge of a cubic voxel, also the pitch of the detector.
            progress: wraps the iterable of slices, e.g. tqdm.

        Returns:
            float32 (x, y[, z]), effective linear attenuation [1/cm].

        Raises:
            ValueError: as many materials as fractions are needed.
        """
        if len(materials) != len(fractions):
            raise ValueError(f"{len(fractions)} phases need as many materials, got {len(materials)}")
        flat = fractions.ndim == 3
        stack = fractions[..., None] if flat else fractions
        beam = parallel_beam(stack.shape[1:3], self.n_angles, self.angular_range_deg)
        energies = self.spectrum.energies_kev
        weights, attenuation = merge_energies(
            self.spectrum.weights, np.stack([m.attenuation_1_cm(energies) for m in materials])
        )
        if np.array_equal(attenuation.min(0), attenuation.max(0)):
            raise ValueError(
                "all phases have the same attenuation: a scan cannot tell them apart; choose other materials"
            )
        pixel_cm = voxel_size_um * _CM_PER_UM
        image = np.empty(stack.shape[1:], np.float32)
        for k in progress(range(stack.shape[-1])):
            others = [beam.forward(phase[..., k]) for phase in stack[1:]]
            paths_cm = np.stack([beam.chords - sum(others), *others]) * pixel_cm  # fractions sum to 1 in every voxel
            transmitted = transmission(paths_cm, attenuation, weights)
            if not transmitted.min() > 0:
                raise ValueError(
                    f"no photon of the beam (mean {self.spectrum.mean_energy_kev:.1f} keV) passes the sample, "
                    f"{paths_cm.sum(0).max():.3g} cm thick; take a harder beam "
                    f"or a smaller voxel_size_um than {voxel_size_um:g}"
                )
            sinogram = -np.log(transmitted)
            image[..., k] = beam.fbp(sinogram, self.filter_name) / pixel_cm
        return image[..., 0] if flat else image

    def scan(
        self,
        fractions: np.ndarray,
        materials: Sequence[Material],
        voxel_size_um: float,
        parameters: dict[str, float],
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, dict]:
        """One noisy, normalised scan, and how to undo the normalisation.

        Args:
            fractions, materials, voxel_size_um: as in ``reconstruct``.
            parameters: what ``draw`` gave.
            rng: source of the noise.

        Returns:
            float32 image (x, y[, z]); a dictionary with ``offset_1_cm`` and ``scale_1_cm``, such that the attenuation
            is image × scale + offset, and the spectrum's mean energy.
        """
        attenuation = self.reconstruct(fractions, materials, voxel_size_um)
        low, high = float(attenuation.min()), float(attenuation.max())
        image = (attenuation - low) / np.float32(high - low)
        image += np.float32(parameters["noise_sd"]) * rng.standard_normal(image.shape, dtype=np.float32)
        facts = {
            "offset_1_cm": low,
            "scale_1_cm": high - low,
            "mean_energy_kev": self.spectrum.mean_energy_kev,
        }
        return image, facts
