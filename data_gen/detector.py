"""The detector: mean signal to measured transmission, with the noise, blur and defects of a real one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import correlate1d
from scipy.optimize import brentq

from data_gen.materials import Material, material
from data_gen.parameters import Range, check_number, check_ranges, draw, draw_ranges, upper
from data_gen.spectrum import Spectrum
from data_gen.units import CM_PER_UM, SIGMA_PER_FWHM

RESPONSES = ("energy_integrating", "photon_counting")
FLOOR_NOISELESS = 1e-6  # smallest transmission that a detector without a photon budget reports
_FULL_SCALE = 2.0  # of the open beam, where no full well is given
_EXACT_BELOW = 100  # quanta
_VALUES_PER_CHUNK = 2**17  # 0.5 MB in float32: a chunk and its temporaries stay in the cache

# name: smallest, largest, unit, of what a recipe may give as a range
_RANGES = {
    "psf_fwhm_px": (0, 100, "pixels"),
    "focal_spot_um": (0, 1e4, "µm"),
    "electronic_noise_e": (0, 1e6, "electrons"),
    "dark_e": (0, 1e9, "electrons"),
    "flat_variation": (0, 0.5, ""),
    "flat_drift": (0, 0.5, ""),
    "dead_pixels": (0, 0.5, ""),
    "hot_pixels": (0, 0.5, ""),
    "zingers": (0, 0.1, ""),
}
_STREAMS = ("pattern", "flat", "quanta", "electrons", "electronics", "zingers")


@dataclass(frozen=True)
class Detector:
    """A flat-panel, scintillator-camera or photon-counting detector. All defaults: an ideal one, the signal as it is.

    The chain: incident photons → absorbed quanta (noise) → point spread → electrons (noise) → gain of the pixel →
    electronic noise → zingers, dead and hot pixels → full well → digitisation → dark and flat correction. A number
    marked *range* may be ``[low, high]``, drawn per scan. Electrons are per pixel and view.

    Not modelled: X-rays that a scintillator scatters or re-emits (K fluorescence: its efficiency is the total
    attenuation, an upper bound), light that varies with depth, pile-up of counts, lag.

    Args:
        photons: [photons] mean number that reaches a pixel of the open beam in one view, range; None: no noise.
        response: ``"energy_integrating"`` (a photon counts by its energy) or ``"photon_counting"`` (as one).
        scintillator: material that absorbs the photons, or the sensor of a counting detector, as in
            ``data_gen.materials.material``; None absorbs every photon.
        scintillator_um: [µm] its thickness.
        electrons_per_photon: electrons for each absorbed photon of the mean energy, that is, the mean over the signal
            of the open beam, Σ wηE² / Σ wηE; a photon of another energy gives them in proportion. None: so many that
            they add no noise.
        psf_fwhm_px: [pixels] full width at half maximum of the point spread, range. Light spreads after the photon was
            absorbed and so correlates the noise of neighbours. Charge shares before it is counted: counts stay
            independent. Gaussian; the aperture of the pixel is the projector's.
        focal_spot_um: [µm] width of the source's spot, range; ``penumbra_px`` makes it a blur on the detector.
        electronic_noise_e: [electrons] standard deviation of the read-out noise, range.
        dark_e: [electrons] mean dark charge (current and pedestal), with its shot noise; subtracted later, range.
        flat_variation: relative standard deviation of the gain from pixel to pixel, range. The flat corrects it.
        flat_drift: relative standard deviation by which the gain of each pixel changed between the flat and the scan,
            range. The flat does not correct it: rings.
        n_flats: number of flat and of dark images that are averaged for the correction; 0: a perfect flat.
        bits: digits of the converter, 1 to 24; None: not digitised.
        saturation: full well and full scale of the converter, relative to the open beam at mean gain. None: no full
            well, and a full scale of 2, the open beam in the middle of it.
        dead_pixels: share of pixels that read 0 in every view, range.
        hot_pixels: share of pixels that read full scale in every view, range. Flats have neither dead nor hot pixels.
        zingers: probability that a pixel is hit in a view by a stray particle, range; it adds 0.2 to 1 of full scale.

    Raises:
        ValueError: a value outside its range, or parts that do not go together.
    """

    photons: Range | None = None
    response: str = "energy_integrating"
    scintillator: str | Mapping | Material | None = None
    scintillator_um: float | None = None
    electrons_per_photon: float | None = None
    psf_fwhm_px: Range = 0.0
    focal_spot_um: Range = 0.0
    electronic_noise_e: Range = 0.0
    dark_e: Range = 0.0
    flat_variation: Range = 0.0
    flat_drift: Range = 0.0
    n_flats: int = 0
    bits: int | None = None
    saturation: float | None = None
    dead_pixels: Range = 0.0
    hot_pixels: Range = 0.0
    zingers: Range = 0.0

    def __post_init__(self):
        check_ranges(self, ((name, *limits) for name, limits in _RANGES.items()))
        if self.photons is not None:
            check_ranges(self, [("photons", 1, 1e12, "photons")])
        if self.response not in RESPONSES:
            raise ValueError(f"response={self.response!r} is unknown; known: {', '.join(RESPONSES)}")
        if (self.scintillator is None) != (self.scintillator_um is None):
            raise ValueError(
                f"scintillator={self.scintillator!r} and scintillator_um={self.scintillator_um!r} "
                "must be given together: a material and its thickness"
            )
        if self.scintillator is not None:
            material(self.scintillator)
            check_number("scintillator_um", self.scintillator_um, 0.1, 1e5, "µm")
        if self.electrons_per_photon is not None:
            check_number("electrons_per_photon", self.electrons_per_photon, 0.01, 1e6, "electrons")
        for name, value, low, high in (("n_flats", self.n_flats, 0, 10**5), ("bits", self.bits, 1, 24)):
            if not (value is None and name == "bits") and (type(value) is not int or not low <= value <= high):
                raise ValueError(f"{name}={value!r} must be an integer in [{low}, {high}]")
        if self.saturation is not None:
            check_number("saturation", self.saturation, 0.1, 1000, "times the open beam")
        self._check_electrons()

    def _check_electrons(self):
        """Electrons need a photon budget to be relative to, and a detector that makes them."""
        for name in ("electrons_per_photon", "electronic_noise_e", "dark_e"):
            value = getattr(self, name)
            if value is None or upper(value) == 0:
                continue
            if self.response == "photon_counting":
                raise ValueError(f"{name}={value!r}: a photon-counting detector has no electrons; leave it out")
            for needed in ("photons", "electrons_per_photon"):
                if getattr(self, needed) is None:
                    raise ValueError(f"{name}={value!r} needs {needed}, for example {needed}=1000")

    @property
    def ideal(self) -> bool:
        """True where ``detect`` gives the signal back as it is, but for the blur that it is handed."""
        noiseless = self.photons is None and self.bits is None and self.saturation is None
        return noiseless and not any(upper(getattr(self, name)) for name in _ACTING)

    def efficiency(self, energies_kev: np.ndarray) -> np.ndarray:
        """Share of the photons that is absorbed, η = 1 − exp(−µt).

        Args:
            energies_kev: [keV] any shape.

        Returns:
            float64 of the same shape, in (0, 1].
        """
        energies = np.asarray(energies_kev, dtype=float)
        if self.scintillator is None:
            return np.ones(energies.shape)
        depth = material(self.scintillator).attenuation_1_cm(energies) * self.scintillator_um * CM_PER_UM
        return -np.expm1(-depth)

    def weights(self, spectrum: Spectrum) -> tuple[np.ndarray, np.ndarray]:
        """What each energy adds to the signal and to its variance.

        A ray of transmissions t(E) has the signal S = Σ first·t, relative to the open beam, and the variance
        V / photons with V = Σ second·t. A counting detector has first = wη / Σwη and second = wη / (Σwη)². An
        integrating one sums a Poisson number of photons of each energy, a compound Poisson sum: first = wηE / ΣwηE
        and second = wηE² / (ΣwηE)² (Swank, J. Appl. Phys. 44, 1973; Whiting et al., Med. Phys. 33, 2006).

        Args:
            spectrum: what reaches the detector without a sample.

        Returns:
            two float64 arrays of the shape of the energies; the first sums to 1. Of the second, the sum is the
            ``open_second`` of ``detect``.
        """
        absorbed = spectrum.weights * self.efficiency(spectrum.energies_kev)
        charge = spectrum.energies_kev if self.response == "energy_integrating" else np.ones(len(absorbed))
        total = (absorbed * charge).sum()
        return absorbed * charge / total, absorbed * charge**2 / total**2

    def draw(self, rng: np.random.Generator) -> dict[str, float | int | None]:
        """The parameters of one scan, plain numbers: all that may be a range, and the seed of every random pattern."""
        photons = None if self.photons is None else draw(self.photons, rng)
        drawn = draw_ranges(self, _RANGES, rng)
        return {"photons": photons, **drawn, "seed": int(rng.integers(2**32))}

    def detect(
        self,
        signal: np.ndarray,
        second: np.ndarray | None,
        parameters: Mapping,
        open_second: float = 1.0,
        blur_px: float = 0.0,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """The transmission that is measured.

        Args:
            signal: (views, detectors[, slices]) mean signal S relative to the open beam, float32, above 0.
            second: V of ``weights``, same shape; None where V = open_second · S: one energy, or photon counting.
            parameters: what ``draw`` gave.
            open_second: V of the open beam, the sum of the second weights.
            blur_px: [pixels] full width at half maximum of a blur before detection, as of the focal spot. Acts along
                detectors, and along slices where there is more than one.
            out: float32, C order, of the shape of the signal; may be the signal itself, to save memory.

        Returns:
            float32, of the shape of the signal. Below it ends at ``floor``. An ideal detector without blur returns the
            signal itself.

        Raises:
            ValueError: arrays that do not fit, a signal that is not above 0.
        """
        _check_arrays(signal, second, out, open_second, blur_px)
        if self.ideal and blur_px == 0:
            return signal if out is None else _copied(signal, out)
        result = np.empty(signal.shape, np.float32) if out is None else out
        shape = signal.shape if signal.ndim == 3 else (*signal.shape, 1)
        scan = _Scan(self, parameters, open_second, blur_px, shape[1:])
        views_per_chunk = max(1, _VALUES_PER_CHUNK // (shape[1] * shape[2]))
        for start in range(0, shape[0], views_per_chunk):
            views = slice(start, start + views_per_chunk)
            chunk = np.array(signal[views], np.float32).reshape(-1, *shape[1:])
            variance = None if second is None else np.array(second[views], np.float32).reshape(chunk.shape)
            result[views] = scan.measure(chunk, variance).reshape(result[views].shape)
        return result


_ACTING = tuple(name for name in _RANGES if name != "focal_spot_um")  # the focal spot acts through blur_px


def penumbra_px(focal_spot_um: float, magnification: float, voxel_size_um: float) -> float:
    """Width of the penumbra of a focal spot in detector pixels, f(M − 1) / (M · voxel).

    Args:
        focal_spot_um: [µm] full width at half maximum f of the spot.
        magnification: M, source to detector over source to object, at least 1; 1 is a parallel beam.
        voxel_size_um: [µm] pitch of the detector over M.
    """
    check_number("magnification", magnification, 1, 1e5)
    return focal_spot_um * (magnification - 1) / (magnification * voxel_size_um)


def floor(photons: float | None, open_second: float = 1.0) -> float:
    """Smallest transmission that is reported: half a quantum in a pixel of the open beam's counts; 1e-6 without noise.

    Correction programs do the like, since −ln of nothing is infinite.
    """
    return FLOOR_NOISELESS if photons is None else 0.5 * open_second / photons


class _Scan:
    """One scan: the patterns that stay from view to view, and the streams of random numbers."""

    def __init__(self, detector: Detector, parameters: Mapping, open_second: float, blur_px: float, pixels: tuple):
        self.detector, self.parameters = detector, parameters
        self.photons, self.open_second = parameters["photons"], open_second
        self.floor = np.float32(floor(self.photons, open_second))
        # one stream a part: switching one on leaves the numbers of the others alone
        self.streams = {name: np.random.default_rng([parameters["seed"], k]) for k, name in enumerate(_STREAMS)}
        self.full_scale = np.float32(_FULL_SCALE if detector.saturation is None else detector.saturation)
        ends = detector.saturation is not None or detector.bits is not None
        self.full_well = self.full_scale if ends else np.float32(np.inf)
        counting = detector.response == "photon_counting"
        psf = parameters["psf_fwhm_px"]
        self.before = _kernel(np.hypot(blur_px, psf) if counting else blur_px)
        self.after = _kernel(0.0 if counting else psf)
        self.open_electrons = None
        if self.photons is not None and detector.electrons_per_photon is not None:
            self.open_electrons = detector.electrons_per_photon * self.photons / open_second
        self._make_patterns(pixels)
        self._take_flat(pixels)

    def _make_patterns(self, pixels: tuple) -> None:
        rng, p = self.streams["pattern"], self.parameters
        self.flat_gain = _positive(p["flat_variation"], pixels, rng)
        self.gain = self.flat_gain * _positive(p["flat_drift"], pixels, rng)
        fate = rng.random(pixels)
        self.dead, self.hot = fate < p["dead_pixels"], fate >= 1 - p["hot_pixels"]
        self.broken = bool((self.dead | self.hot).any())

    def _take_flat(self, pixels: tuple) -> None:
        """Dark level and the factor of the correction, of which the noise is that of ``n_flats`` images."""
        rng, n = self.streams["flat"], self.detector.n_flats
        dark_level = 0.0 if self.open_electrons is None else self.parameters["dark_e"] / self.open_electrons
        if n == 0 or self.photons is None:  # without noise one flat is as good as any
            self.dark = self.flat_gain * np.float32(dark_level)
            self.scale = 1 / self.flat_gain
            return
        flat = self._charge(np.ones((1, *pixels), np.float32), None, n, rng, rng)
        dark = np.full((1, *pixels), dark_level, np.float32)
        if self.open_electrons is not None:
            dark *= np.float32(n * self.open_electrons)
            dark = _poisson(dark, rng) / np.float32(n * self.open_electrons)
        flat, dark = (self._read(image[0], self.flat_gain, n, rng) for image in (flat, dark))
        np.minimum(flat, self.full_well, out=flat)
        self.dark = dark
        self.scale = 1 / np.maximum(flat - dark, self.floor)

    def measure(self, signal: np.ndarray, second: np.ndarray | None) -> np.ndarray:
        """Corrected transmission of some views, (views, detectors, slices); works in place."""
        _blur(signal, self.before)
        if second is not None:
            _blur(second, self.before)
        if self.detector.ideal:
            return signal
        charge = self._charge(signal, second, 1, self.streams["quanta"], self.streams["electrons"])
        reading = self._read(charge, self.gain, 1, self.streams["electronics"])
        self._digitise(reading)
        reading -= self.dark
        reading *= self.scale
        return np.maximum(reading, self.floor, out=reading)

    def _charge(self, signal, second, n_images, rng_quanta, rng_electrons):
        """Mean charge of ``n_images`` exposures, dark charge included, relative to the open beam's signal.

        The sum of Poisson numbers is a Poisson number, so n images are one with n times the quanta. The compound
        Poisson sum of an integrating detector is taken as N = S²/V effective quanta of S/N each: its mean and variance
        are exact; its skewness is that of equal quanta.
        """
        if self.photons is not None:
            per_photon = np.float32(1 / (self.photons * n_images))
            if second is None:
                quantum = np.float32(self.open_second) * per_photon
            else:
                quantum = np.divide(second, signal, out=second)
                quantum *= per_photon
            signal /= quantum
            signal = _poisson(signal, rng_quanta)
            signal *= quantum
        _blur(signal, self.after)
        if self.open_electrons is not None:
            signal *= np.float32(self.open_electrons * n_images)
            signal += np.float32(self.parameters["dark_e"] * n_images)
            signal = _poisson(signal, rng_electrons)
            signal *= np.float32(1 / (self.open_electrons * n_images))
        return signal

    def _read(self, charge: np.ndarray, gain: np.ndarray, n_images: int, rng: np.random.Generator) -> np.ndarray:
        """Gain and electronic noise."""
        charge *= gain
        if self.parameters["electronic_noise_e"]:
            noise = rng.standard_normal(charge.shape, dtype=np.float32)
            noise *= np.float32(self.parameters["electronic_noise_e"] / (self.open_electrons * np.sqrt(n_images)))
            charge += noise
        return charge

    def _digitise(self, reading: np.ndarray) -> None:
        """Zingers, broken pixels, full well and converter, in place."""
        if self.parameters["zingers"]:
            rng = self.streams["zingers"]
            n_hits = rng.binomial(reading.size, self.parameters["zingers"])
            hits = rng.choice(reading.size, n_hits, replace=False, shuffle=False)
            reading.reshape(-1)[hits] += self.full_scale * rng.uniform(0.2, 1, n_hits).astype(np.float32)
        if self.broken:
            reading[:, self.dead] = 0
            reading[:, self.hot] = self.full_scale
        np.minimum(reading, self.full_well, out=reading)
        if self.detector.bits is not None:
            step = self.full_scale / np.float32(2**self.detector.bits - 1)
            np.maximum(reading, 0, out=reading)
            reading /= step
            np.rint(reading, out=reading)
            reading *= step


def _poisson(mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Poisson numbers of the means, float32. Exact below 100; above, three moments of the distribution are exact.

    Above, N + √(N − 1/18) z + (z² − 1)/6 with a normal z (the expansion of Cornish & Fisher, Rev. Inst. Int. Stat. 5,
    1938) takes a quarter of the time. Its distribution function errs by 7e-5 at N = 100 and by less above, where that
    of a plain normal number errs by 7e-3; numbers are not rounded.
    """
    z = rng.standard_normal(mean.shape, dtype=np.float32)
    few = mean < _EXACT_BELOW
    exact = rng.poisson(mean[few]) if few.any() else None
    spread = np.maximum(mean, 1)
    spread -= np.float32(1 / 18)
    np.sqrt(spread, out=spread)
    spread *= z
    np.square(z, out=z)
    z -= 1
    z *= np.float32(1 / 6)
    z += spread
    z += mean
    if exact is not None:
        z[few] = exact
    return z


def _kernel(fwhm_px: float) -> np.ndarray | None:
    """Gaussian at the pixels, cut at 4 σ + 1 pixels and of variance σ² exactly; None for no blur.

    Samples of a Gaussian of that very width are too narrow where σ is below 0.6 pixels, and the cut takes 0.1 % of the
    variance: so the width that is sampled is found from the variance that is wanted.
    """
    sigma = fwhm_px * SIGMA_PER_FWHM
    if sigma < 1e-3:  # 3 taps of which the outer ones are 5e-7
        return None
    place = np.arange(-int(np.ceil(4 * sigma)) - 1, int(np.ceil(4 * sigma)) + 2)

    def samples(width):
        values = np.exp(-((place / width) ** 2) / 2)
        return values / values.sum()

    return samples(brentq(lambda width: samples(width) @ place**2 - sigma**2, 0.05, 1.1 * sigma + 0.5, xtol=1e-10))


def _blur(image: np.ndarray, kernel: np.ndarray | None) -> None:
    """Along detectors, and slices where there are several, in place; beyond the edge the last pixel goes on."""
    if kernel is None:
        return
    for axis in (1, 2) if image.shape[2] > 1 else (1,):
        correlate1d(image, kernel, axis, output=image, mode="nearest")


def _positive(sd: float, shape: tuple, rng: np.random.Generator) -> np.ndarray:
    """float32 factors of mean 1 and standard deviation ``sd``, log-normal and so above 0."""
    z = rng.standard_normal(shape, dtype=np.float32)
    variance = np.log1p(sd**2)
    return np.exp(np.float32(np.sqrt(variance)) * z - np.float32(variance / 2))


def _check_arrays(signal, second, out, open_second, blur_px) -> None:
    if not isinstance(signal, np.ndarray) or signal.ndim not in (2, 3) or not signal.size:
        raise ValueError(f"signal must be an array (views, detectors[, slices]), got shape {np.shape(signal)}")
    for name, array in (("signal", signal), ("second", second)):
        if array is None:
            continue
        if np.shape(array) != signal.shape:
            raise ValueError(f"{name} must have the shape of the signal, {signal.shape}, got {np.shape(array)}")
        if not (array.min() > 0 and np.isfinite(array.max())):
            raise ValueError(f"{name} must be finite and above 0, got {array.min():g} to {array.max():g}")
    if out is not None and (out.shape != signal.shape or out.dtype != np.float32 or not out.flags.c_contiguous):
        raise ValueError(f"out must be float32, C order, of the shape {signal.shape}, got {out.dtype} {out.shape}")
    check_number("open_second", open_second, 1e-12, 1e12)
    check_number("blur_px", blur_px, 0, 1000, "pixels")


def _copied(signal: np.ndarray, out: np.ndarray) -> np.ndarray:
    if out is not signal:
        np.copyto(out, signal)
    return out
