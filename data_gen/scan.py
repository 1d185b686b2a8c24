"""The scan: phase fractions to a grey volume. Composes everything between the source and the reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import get_args

import numpy as np
from tqdm import tqdm

from data_gen.artifacts import (
    ExposureDrift,
    Motion,
    Propagation,
    Scatter,
    Stripes,
    Zernike,
    add_halo,
    add_scatter,
    add_stripes,
    drift_exposure,
    move,
    propagate,
)
from data_gen.detector import Detector, penumbra_px
from data_gen.geometry import ConeBeam, ParallelBeam, Views
from data_gen.materials import Material
from data_gen.parameters import Range, check_ranges, draw
from data_gen.projection import BACKENDS, astra_fbp, astra_fdk, forward
from data_gen.ray_kernels import LANES, beer_lambert
from data_gen.reconstruction import CGLS, FBP, RING_FILTERS, SIRT, Paganin, remove_rings
from data_gen.spectrum import Source, Spectrum, Tube
from data_gen.units import CM_PER_UM

_OPAQUE = 2.0**-125  # beer_lambert ends at 2⁻¹²⁶
_PARTS = {
    "source": get_args(Source),
    "geometry": (ParallelBeam, ConeBeam),
    "detector": (Detector,),
    "reconstruction": (FBP, SIRT, CGLS),
    "motion": (Motion, None),
    "propagation": (Propagation, None),
    "zernike": (Zernike, None),
    "scatter": (Scatter, None),
    "exposure_drift": (ExposureDrift, None),
    "stripes": (Stripes, None),
    "paganin": (Paganin, None),
}
_DRAWN = ("geometry", "motion", "propagation", "zernike", "scatter", "exposure_drift", "detector", "stripes")
NORMALISATIONS = {"range": (0, 100), "percentiles": (0.5, 99.5), "none": None}


def transmission(paths_cm: np.ndarray, attenuation_1_cm: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Polychromatic Beer–Lambert law, T = Σ_E w(E) exp(−Σ_m µ_m(E) L_m).

    Args:
        paths_cm: [cm] path length in each material, (materials, ...).
        attenuation_1_cm: [1/cm] µ of each material at each energy, (materials, energies).
        weights: share of each energy, (energies,), or several such sums at once, (sums, energies).

    Returns:
        float32 array of the shape of ``paths_cm[0]``, with the sums first where there are several.
    """
    paths = np.ascontiguousarray(paths_cm, np.float32).reshape(len(paths_cm), -1)
    sums = np.atleast_2d(weights).astype(np.float32)
    out = np.zeros((len(sums), paths.shape[1]), np.float32)
    beer_lambert(paths, (attenuation_1_cm / -np.log(2)).astype(np.float32), sums, out)
    return out.reshape(weights.shape[:-1] + paths_cm.shape[1:])


def merge_energies(
    weights: np.ndarray, attenuation_1_cm: np.ndarray, spread: float = 0.05
) -> tuple[np.ndarray, np.ndarray]:
    """Join neighbouring energy bins in which every material attenuates alike.

    A group keeps its total weight and its weighted mean µ, so the first moment is exact and a group of optical depth x
    errs by x²·spread²/8 of its own share at most. Absorption edges stay, since µ jumps there. A 140 kV spectrum of
    1390 bins becomes some 200 groups, with the same −ln T within 5e-4 of it.

    Args:
        weights: (energies,), or several sums at once, (sums, energies), of which the first decides the mean µ.
        attenuation_1_cm: (materials, energies).
        spread: largest ratio of µ within a group, less 1.

    Returns:
        weights ([sums,] groups) and attenuation (materials, groups).
    """
    starts = [0]
    low = high = attenuation_1_cm[:, 0]
    for k, mu in enumerate(attenuation_1_cm.T):
        low, high = np.minimum(low, mu), np.maximum(high, mu)
        if (high > low * (1 + spread)).any():
            starts.append(k)
            low = high = mu
    merged = np.add.reduceat(weights, starts, axis=-1)
    first, total = (np.atleast_2d(w)[0] for w in (weights, merged))
    return merged, np.add.reduceat(attenuation_1_cm * first, starts, axis=1) / total


@dataclass(frozen=True)
class Projections:
    """What reaches the detector, relative to the open beam; all float32 (angles, detectors, slices).

    Attributes:
        signal: mean signal.
        second: its variance times the photons of the open beam (``Detector.weights``), None where nobody asks.
        decrement_cm: [cm] ∫δ dz, None where nobody asks.
        open_second: ``second`` of the open beam.
    """

    signal: np.ndarray
    second: np.ndarray | None
    decrement_cm: np.ndarray | None
    open_second: float

    def slice(self, k: int) -> Projections:
        """The projections of one slice, still with three axes."""
        one = (None if a is None else a[..., k : k + 1] for a in (self.signal, self.second, self.decrement_cm))
        return Projections(*one, self.open_second)


@dataclass(frozen=True)
class Scanner:
    """An X-ray CT scan, from phase fractions to a grey image.

    Every slice is projected once per material, sampled ``oversampling`` times finer than it is reconstructed. Along
    each ray the whole spectrum is attenuated, weighted by its intensity and the detector's response (beam hardening is
    left in). Then, in the order of the beam: phase contrast, scatter, exposure, the detector's noise and faults; −ln;
    reconstruction in 1/cm; normalisation. Parts that are None do not act.

    Args:
        source: ``Tube``, ``Monochromatic``, ``NarrowBand`` or ``MeasuredSpectrum``.
        geometry: ``ParallelBeam`` or ``ConeBeam``.
        detector: ``Detector``.
        reconstruction: ``FBP`` (of a cone beam: FDK), ``SIRT`` or ``CGLS``.
        motion, propagation, zernike, scatter, exposure_drift, stripes: the artefacts of ``data_gen.artifacts``.
        paganin: phase retrieval before the reconstruction.
        ring_filter: ring removal before the reconstruction, a method of ``remove_rings``.
        oversampling: sub-voxels of the object and sub-pixels of the detector along each edge, averaged in intensity.
        normalisation: "range" maps the smallest value to 0 and the largest to 1, "percentiles" does so with the 0.5 and
            99.5 percentiles, "none" leaves 1/cm.
        noise_sd: standard deviation of Gaussian noise on the normalised image; a number or a range.
        backend: "compiled" kernels on the CPU, or "astra": its projections, its FBP (zero padding) and on a GPU, which
            alone has them there, its cone-beam projections and FDK (ram-lak).

    Raises:
        ValueError: a part of the wrong kind, a value outside its range.
    """

    source: Source = field(default_factory=Tube)
    geometry: ParallelBeam = field(default_factory=ParallelBeam)
    detector: Detector = field(default_factory=Detector)
    reconstruction: FBP | SIRT | CGLS = field(default_factory=FBP)
    motion: Motion | None = None
    propagation: Propagation | None = None
    zernike: Zernike | None = None
    scatter: Scatter | None = None
    exposure_drift: ExposureDrift | None = None
    stripes: Stripes | None = None
    paganin: Paganin | None = None
    ring_filter: str | None = None
    oversampling: int = 1
    normalisation: str = "range"
    noise_sd: Range = 0.0
    backend: str = "compiled"

    def __post_init__(self):
        for name, kinds in _PARTS.items():
            value = getattr(self, name)
            if value is None and None in kinds:
                continue
            if not isinstance(value, tuple(kind for kind in kinds if kind)):
                names = " or ".join("None" if kind is None else f"{kind.__module__}.{kind.__name__}" for kind in kinds)
                raise ValueError(f"{name}={value!r} must be a {names}")
        if type(self.oversampling) is not int or not 1 <= self.oversampling <= 9:
            raise ValueError(f"oversampling={self.oversampling!r} must be an integer in [1, 9]")
        for name, known in (
            ("normalisation", tuple(NORMALISATIONS)),
            ("backend", BACKENDS),
            ("ring_filter", (None, *RING_FILTERS)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; known: {', '.join(map(str, known))}")
        check_ranges(self, [("noise_sd", 0, 10)])
        if self.paganin is not None and self.propagation is None:
            raise ValueError("paganin needs propagation: without it there is no phase to retrieve")
        if isinstance(self.geometry, ConeBeam) and not isinstance(self.reconstruction, FBP):
            raise ValueError("reconstruction: a cone beam is reconstructed by FBP (FDK) only")
        if self.backend == "astra" and isinstance(self.reconstruction, FBP):
            half_turns = self.geometry.angular_range_deg / 180
            plain = self.reconstruction == FBP(padding="zero") if isinstance(self.geometry, ConeBeam) else True
            if self.reconstruction.padding != "zero" or half_turns not in (1, 2) or not plain:
                raise ValueError(
                    "backend='astra': its FBP pads with zeros and takes 180° or 360°, its FDK the ram-lak filter; "
                    "take backend='compiled' for others"
                )

    @cached_property
    def spectrum(self) -> Spectrum:
        """The source's spectrum, computed once."""
        return self.source.spectrum()

    def draw(self, rng: np.random.Generator) -> dict:
        """The parameters of one scan: a dictionary for each part that acts, and the noise."""
        parts = {name: getattr(self, name) for name in _DRAWN}
        return {name: part.draw(rng) for name, part in parts.items() if part is not None} | {
            "noise_sd": draw(self.noise_sd, rng)
        }

    def subvoxels(self, ndim: int) -> tuple[int, ...]:
        """Along each axis, how many times finer than the image the object must be given.

        Along the rotation axis that is once, but for a cone beam.
        """
        cone = ndim == 3 and isinstance(self.geometry, ConeBeam)
        return (self.oversampling, self.oversampling, self.oversampling if cone else 1)[:ndim]

    def scan(
        self,
        fractions: np.ndarray,
        materials: Sequence[Material],
        voxel_size_um: float,
        parameters: dict,
        rng: np.random.Generator,
        shape: Sequence[int] | None = None,
        progress: bool = False,
    ) -> tuple[np.ndarray, dict]:
        """One scan: ``scan_all`` of one sample. fractions: (materials, x, y) or (materials, x, y, z)."""
        return self.scan_all([fractions], materials, voxel_size_um, [parameters], [rng], shape, progress)[0]

    def scan_all(
        self,
        samples: Sequence[np.ndarray],
        materials: Sequence[Material],
        voxel_size_um: float,
        parameters: Sequence[dict],
        rngs: Sequence[np.random.Generator],
        shape: Sequence[int] | None = None,
        progress: bool = False,
    ) -> list[tuple[np.ndarray, dict]]:
        """Scan several samples, 2D ones side by side where they have one size and are seen from the same views.

        A sample's result does not depend on which others it is scanned with.

        Args:
            samples: for each, the volume fraction of each material in each sub-voxel, float32 (materials, x, y) or
                (materials, x, y, z); they sum to 1. Along each axis ``subvoxels`` times finer than the image.
            materials: one for each entry of the first axis.
            voxel_size_um: [µm] edge of a cubic voxel of the image, also the pitch of the detector at the object.
            parameters: for each sample what ``draw`` gave.
            rngs: for each sample the source of the noise on the image.
            shape: voxels of the image, around the rotation axis; None: all of the sample. A larger sample sticks out of
                the field of view (local tomography).
            progress: show progress bars.

        Returns:
            for each sample the float32 image and a dictionary with ``offset_1_cm`` and ``scale_1_cm``, such that the
            attenuation is image × scale + offset, and the spectrum's mean energy.

        Raises:
            ValueError: fractions that do not fit, materials that attenuate alike, a beam that does not get through.
        """
        factors = self.subvoxels(samples[0].ndim - 1)
        if shape is None:
            shape = tuple(n // f for n, f in zip(samples[0].shape[1:], factors, strict=True))
        for sample in samples:
            if len(sample) != len(materials):
                raise ValueError(f"{len(sample)} phases need as many materials, got {len(materials)}")
            sizes = sample.shape[1:]
            if len(sizes) != len(shape) or any(
                n % f or n // f < size or (axis == 2 and n // f > size)
                for axis, (n, f, size) in enumerate(zip(sizes, factors, shape, strict=True))
            ):
                raise ValueError(
                    f"fractions of {sizes} must be at least {tuple(shape)} times {factors}, whole voxels, and along z "
                    "just as many"
                )
        flat = len(shape) == 2
        views = [self._views(p) for p in parameters]
        together = flat and isinstance(self.geometry, ParallelBeam) and all(_same(v, views[0]) for v in views)
        together = together and all(sample.shape == samples[0].shape for sample in samples)
        groups = [range(len(samples))] if together else [[k] for k in range(len(samples))]
        results = []
        for group in groups:
            stack = np.stack([samples[k] for k in group], axis=-1) if flat else samples[group[0]]
            beam = self.project(stack, materials, voxel_size_um, views[group[0]], shape, progress)
            sinograms = [
                self.measure(beam.slice(i) if flat else beam, parameters[k], voxel_size_um, progress)
                for i, k in enumerate(group)
            ]
            sinogram = np.concatenate(sinograms, axis=-1) if len(sinograms) > 1 else sinograms[0]
            del beam, sinograms
            angles = self.geometry.angles_rad(parameters[group[0]]["geometry"])
            volume = self.reconstruct(sinogram, angles, shape, voxel_size_um, progress)
            for i, k in enumerate(group):
                image = volume[..., i] if flat else volume
                results.append(self._normalise(image, parameters[k]["noise_sd"], rngs[k]))
        return results

    def sinogram(
        self,
        sample: np.ndarray,
        materials: Sequence[Material],
        voxel_size_um: float,
        parameters: dict,
        shape: Sequence[int],
    ) -> np.ndarray:
        """What one sample is reconstructed from, float32 (angles, detectors, slices); arguments as in ``scan_all``."""
        stack = sample[..., None] if len(shape) == 2 else sample
        beam = self.project(stack, materials, voxel_size_um, self._views(parameters), shape)
        return self.measure(beam, parameters, voxel_size_um)

    def _views(self, parameters: dict) -> Views:
        views = self.geometry.views(parameters["geometry"])
        return move(views, parameters["motion"]) if "motion" in parameters else views

    def project(
        self,
        stack: np.ndarray,
        materials: Sequence[Material],
        voxel_size_um: float,
        views: Views,
        shape: Sequence[int],
        progress: bool = False,
    ) -> Projections:
        """What reaches the detector behind a stack of slices.

        Args:
            stack: float32 (materials, x, y, slices), sub-voxels.
            materials, voxel_size_um, shape, progress: as in ``scan_all``.
            views: where the object is, shifts in voxels of the image.
        """
        cone, q = isinstance(self.geometry, ConeBeam), self.oversampling
        slices = stack.shape[3] // (q if cone and len(shape) == 3 else 1)
        detectors = self.geometry.detectors((*shape[:2], slices), voxel_size_um)
        distance = self.geometry.distance_px(voxel_size_um)
        fine = Views(views.angles_rad, views.shift_px * q, views.scale)
        project = partial(
            forward,
            views=fine,
            detectors=(detectors[0] * q, detectors[1] * q),
            distance=None if distance is None else distance * q,
            backend=self.backend,
        )
        weights, attenuation, decrements, open_second = self._energies(materials)
        pixel_cm = voxel_size_um / q * CM_PER_UM
        out: list[np.ndarray] = []
        blocks = range(0, 1 if cone else stack.shape[3], LANES)
        for start in tqdm(blocks, desc="projecting", leave=False, disable=not progress):
            part = stack if cone else stack[..., start : start + LANES]
            if not cone and part.shape[3] * (len(part) - 1) < LANES:  # few slices: all phases fit into one block
                ones = np.ones((*part.shape[1:3], 1), np.float32)
                *others, chords = np.split(
                    project(np.concatenate([*part[1:], ones], axis=-1)),
                    part.shape[3] * np.arange(1, len(part)),
                    axis=-1,
                )
            else:
                others = [project(phase) for phase in part[1:]]
                chords = project(np.ones(part.shape[1:], np.float32)) if cone else _chords(part.shape[1:3], project)
            paths_cm = np.stack([np.broadcast_to(chords, others[0].shape), *others])
            for other in others:  # the fractions sum to 1 in every voxel
                paths_cm[0] -= other
            paths_cm *= np.float32(pixel_cm)
            sums = transmission(paths_cm, attenuation, weights).reshape(-1, *paths_cm.shape[1:])
            if not sums[0].min() > _OPAQUE:
                raise ValueError(
                    f"no photon of the beam (mean {self.spectrum.mean_energy_kev:.1f} keV) passes the sample, "
                    f"{paths_cm.sum(0).max():.3g} cm thick; take a harder beam or a smaller voxel_size_um than "
                    f"{voxel_size_um:g}"
                )
            parts = [*sums, *([] if decrements is None else [np.tensordot(decrements, paths_cm, 1)])]
            bins = (q, q if cone and len(shape) == 3 else 1)
            parts = [_binned(array, bins) for array in parts]
            if not out:
                out = [np.empty((*p.shape[:2], p.shape[2] if cone else slices), np.float32) for p in parts]
            for whole, array in zip(out, parts, strict=True):
                whole[..., start : start + array.shape[2]] = array
        return Projections(
            signal=out[0],
            second=out[1] if weights.ndim == 2 else None,
            decrement_cm=None if decrements is None else out[-1],
            open_second=open_second,
        )

    def _energies(self, materials: Sequence[Material]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, float]:
        """Joined weights and attenuation, decrements where they count, ``open_second``; the same for every sample."""
        known = self.__dict__.setdefault("_known_energies", {})
        key = repr(materials)
        if key not in known:
            energies = self.spectrum.energies_kev
            first, second = self.detector.weights(self.spectrum)
            attenuation = np.stack([m.attenuation_1_cm(energies) for m in materials])
            if np.array_equal(attenuation.min(0), attenuation.max(0)):
                raise ValueError(
                    "all phases have the same attenuation: a scan cannot tell them apart; choose other materials"
                )
            noisy = self.detector.photons is not None and self.detector.response == "energy_integrating"
            sums = np.stack([first, second]) if noisy and len(first) > 1 else first
            decrements = None
            if self.propagation is not None:
                decrements = np.stack([m.decrement(energies) @ first for m in materials])
            known[key] = (*merge_energies(sums, attenuation), decrements, float(second.sum()))
        return known[key]

    def measure(self, beam: Projections, parameters: dict, voxel_size_um: float, progress: bool = False) -> np.ndarray:
        """The line integrals that the scan gives, −ln of the corrected signal, with every artefact on the way.

        Args:
            beam: what reaches the detector; it may be overwritten.
            parameters: what ``draw`` gave.
            voxel_size_um, progress: as in ``scan_all``.

        Returns:
            float32 (angles, detectors, slices).
        """
        signal, magnification = np.ascontiguousarray(beam.signal), self.geometry.magnification
        second = None if beam.second is None else np.divide(beam.second, signal, out=np.ascontiguousarray(beam.second))
        if self.propagation is not None:
            signal = propagate(
                signal, beam.decrement_cm, parameters["propagation"], voxel_size_um, magnification, out=signal
            )
        if self.zernike is not None:
            sinogram = _minus_log(signal)
            add_halo(sinogram, parameters["zernike"], out=sinogram)
            signal = np.exp(np.negative(sinogram, out=sinogram), out=sinogram)
        if self.scatter is not None:
            signal = add_scatter(signal, parameters["scatter"], out=signal)
        if self.exposure_drift is not None:
            signal = drift_exposure(signal, parameters["exposure_drift"], out=signal)
        if second is not None:  # what came to the signal has the energies of the ray
            second *= signal
        signal = self.detector.detect(
            signal,
            second,
            parameters["detector"],
            beam.open_second,
            penumbra_px(parameters["detector"]["focal_spot_um"], magnification, voxel_size_um),
            out=signal,
        )
        if self.stripes is not None:
            signal = add_stripes(signal, parameters["stripes"], out=signal)
        if self.paganin is not None:
            distance_mm = parameters["propagation"]["distance_mm"]
            sinogram = self.paganin.retrieve(
                signal, distance_mm, self.spectrum.mean_energy_kev, voxel_size_um, magnification
            )
        else:
            sinogram = _minus_log(signal)
        if self.ring_filter is not None:
            bar = partial(tqdm, desc="removing rings", leave=False, disable=not progress)
            sinogram = remove_rings(sinogram, self.ring_filter, progress=bar)
        return sinogram

    def reconstruct(
        self,
        sinogram: np.ndarray,
        angles_rad: np.ndarray,
        shape: Sequence[int],
        voxel_size_um: float,
        progress: bool = False,
    ) -> np.ndarray:
        """Reconstruct a stack of slices.

        Args:
            sinogram: float32 (angles, detectors, slices).
            angles_rad: [rad] (angles,).
            shape: voxels of the image; of a 2D one every slice of the sinogram is reconstructed.
            voxel_size_um, progress: as in ``scan_all``.

        Returns:
            float32 (x, y, slices), effective linear attenuation [1/cm].
        """
        whole = (*shape[:2], shape[2] if len(shape) == 3 else sinogram.shape[2])
        bar = partial(tqdm, desc="reconstructing", leave=False, disable=not progress)
        distance = self.geometry.distance_px(voxel_size_um)
        by_astra = self.backend == "astra" and isinstance(self.reconstruction, FBP)
        if by_astra and distance is None:
            volume = astra_fbp(sinogram, angles_rad, whole, self.reconstruction.filter_name, bar)
        elif by_astra and whole[2] > 1:
            volume = astra_fdk(sinogram, angles_rad, whole, distance)
        else:
            volume = self.reconstruction.reconstruct(sinogram, angles_rad, whole, distance, bar)
        volume *= np.float32(1 / (voxel_size_um * CM_PER_UM))
        return volume

    def _normalise(self, image: np.ndarray, noise_sd: float, rng: np.random.Generator) -> tuple[np.ndarray, dict]:
        low, high = 0.0, 1.0
        if self.normalisation != "none":
            whole = self.normalisation == "range"  # percentiles would copy and partition the volume to find its ends
            ends = (image.min(), image.max()) if whole else np.percentile(image, NORMALISATIONS[self.normalisation])
            low, high = (float(v) for v in ends)
        image = (image - np.float32(low)) / np.float32(high - low)
        if noise_sd:
            image += np.float32(noise_sd) * rng.standard_normal(image.shape, dtype=np.float32)
        return image, {
            "offset_1_cm": low,
            "scale_1_cm": high - low,
            "mean_energy_kev": self.spectrum.mean_energy_kev,
        }


def _minus_log(signal: np.ndarray) -> np.ndarray:
    out = np.log(signal, out=signal)
    return np.negative(out, out=out)


def _binned(array: np.ndarray, bins: tuple[int, int]) -> np.ndarray:
    """Mean of groups of detector pixels across and along the axis."""
    if bins == (1, 1):
        return array
    angles, across, along = array.shape
    groups = array.reshape(angles, across // bins[0], bins[0], along // bins[1], bins[1])
    return groups.mean(axis=(2, 4), dtype=np.float32)


def _same(a: Views, b: Views) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("angles_rad", "shift_px", "scale"))


def _chords(shape: tuple[int, int], project: partial) -> np.ndarray:
    """Length of each ray in the object, (angles, detectors, 1) [voxels]; kept while the object does not move."""
    options = project.keywords
    views: Views = options["views"]
    arrays = tuple(getattr(views, name).tobytes() for name in ("angles_rad", "shift_px", "scale"))
    return _chords_of(shape, arrays, options["detectors"][0], options["backend"])


@lru_cache(maxsize=2)
def _chords_of(shape: tuple[int, int], views: tuple[bytes, ...], detectors: int, backend: str) -> np.ndarray:
    still = Views(*(np.frombuffer(array) for array in views))
    return forward(np.ones((*shape, 1), np.float32), still, (detectors, 1), backend=backend)
