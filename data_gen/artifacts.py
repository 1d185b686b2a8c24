"""What goes wrong in a scan: motion, stripes, scatter, exposure drift, phase contrast.

Each artefact is a recipe (a frozen dataclass whose ``draw`` gives plain JSON values) and a pure function that applies
what was drawn. A random pattern is drawn as a ``seed``, from which the function makes it again; each kind of error
has its own generator, so a kind that is switched off does not change the pattern of another.

Arrays are float32 (angles, detectors) or (angles, detectors, slices). A ``signal`` is the mean detector signal
relative to the open beam, a ``sinogram`` its −ln. The functions take ``out`` as numpy's do: a new array is made where
it is None, and ``out=signal`` works in place, one view at a time. Whatever is 0 changes no byte: the input itself
comes back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import xlogy

from data_gen.geometry import Views, direction, without_pose
from data_gen.parameters import Range, check_number, check_range, check_ranges, draw_ranges
from data_gen.units import SIGMA_PER_FWHM

SIGNAL_FLOOR = 1e-6  # least signal that an error that subtracts leaves, so that −ln exists
_KEV_CM = 12.398419843e-8  # h c [keV cm]: the wavelength of a photon is this by its energy
_GROWTH_WIDTH = 0.05  # share of the scan over which the logistic function rises from 0.5 to 0.73
_STUCK_LEVELS = (0.1, 1.0)
_KINDS = ("white", "full", "partial", "drifting", "fluctuating", "offset", "unresponsive")  # of stripes
_JITTER, _JUMPS, _ROTATION = range(3)
_MOTIONS = ("drift_px", "jitter_px", "jump_px", "rotation_drift_deg", "rotation_jitter_deg", "growth")


@dataclass(frozen=True)
class Motion:
    """Motion of the object during the scan, about the pose that the scan shows (``move``).

    Args:
        drift_px: [detector pixels] length of a straight path at constant speed, fixed to the turning stage, from the
            first to the last view; its direction in the slice is drawn.
        jitter_px: [detector pixels] sd of a white shift along the detector, one value a view: vibration, bearing
            run-out.
        jump_px: [detector pixels] length of each jump of the object on the stage; its direction is drawn.
        n_jumps: number of jumps, at views that are drawn; an integer or a pair.
        rotation_drift_deg: [°] error of the rotation angle that grows linearly, last view less first.
        rotation_jitter_deg: [°] sd of a white error of the rotation angle.
        growth: size at the last view by size at the first, less 1; negative for shrinking.
        growth_profile: ``"sigmoid"`` (a swelling within a fifth of the scan) or ``"linear"`` in the log of the size.
        growth_centre: share of the scan at which a sigmoid is half way.

    Raises:
        ValueError: a value outside its range or an unknown profile.
    """

    drift_px: Range = 0.0
    jitter_px: Range = 0.0
    jump_px: Range = 0.0
    n_jumps: int | tuple[int, int] = 0
    rotation_drift_deg: Range = 0.0
    rotation_jitter_deg: Range = 0.0
    growth: Range = 0.0
    growth_profile: str = "sigmoid"
    growth_centre: Range = 0.5

    def __post_init__(self):
        check_ranges(
            self,
            [
                ("drift_px", 0, 1000, "px"),
                ("jitter_px", 0, 100, "px"),
                ("jump_px", 0, 1000, "px"),
                ("rotation_drift_deg", -30, 30, "°"),
                ("rotation_jitter_deg", 0, 30, "°"),
                ("growth", -0.5, 1),
                ("growth_centre", 0, 1),
            ],
        )
        object.__setattr__(self, "n_jumps", _check_count("n_jumps", self.n_jumps, 1000))
        if self.growth_profile not in ("sigmoid", "linear"):
            raise ValueError(f"growth_profile={self.growth_profile!r} is unknown; known: sigmoid, linear")

    def draw(self, rng: np.random.Generator) -> dict:
        """The parameters of one scan: those of the constructor, ``drift_direction_deg`` and ``seed``."""
        return draw_ranges(self, ["drift_px", "jitter_px", "jump_px"], rng) | {
            "n_jumps": _draw_count(self.n_jumps, rng),
            **draw_ranges(self, ["rotation_drift_deg", "rotation_jitter_deg", "growth", "growth_centre"], rng),
            "growth_profile": self.growth_profile,
            "drift_direction_deg": float(rng.uniform(0, 360)),
            "seed": _draw_seed(rng),
        }


@dataclass(frozen=True)
class Trajectory:
    """The object's pose at each view relative to its mean over time: the mean of each row is 0.

    Attributes:
        position_px: [detector pixels] position in the slice on the turning stage, float64, (2, n).
        shift_px: [detector pixels] further shift along the detector, float64, (n,).
        rotation_rad: [rad] error of the angle, float64, (n,).
        log_scale: ln of the dilation, float64, (n,).
    """

    position_px: np.ndarray
    shift_px: np.ndarray
    rotation_rad: np.ndarray
    log_scale: np.ndarray


def trajectory(n_views: int, parameters: dict) -> Trajectory:
    """The motion that was drawn, over equal steps of time.

    Args:
        n_views: number of views.
        parameters: what ``Motion.draw`` gave.

    Raises:
        ValueError: as many jumps as views, or more.
    """
    p = parameters
    time = np.linspace(-0.5, 0.5, n_views) if n_views > 1 else np.zeros(n_views)
    path = p["drift_px"] * np.outer(direction(np.deg2rad(p["drift_direction_deg"])), time)
    if p["jump_px"] and p["n_jumps"]:
        if p["n_jumps"] >= n_views:
            raise ValueError(f"n_jumps={p['n_jumps']} must be less than the {n_views} views of the scan")
        rng = np.random.default_rng([p["seed"], _JUMPS])
        steps = np.zeros((2, n_views))
        at = 1 + rng.choice(n_views - 1, p["n_jumps"], replace=False)
        steps[:, at] = p["jump_px"] * direction(rng.uniform(0, 2 * np.pi, p["n_jumps"]))
        path += np.cumsum(steps, axis=1)
    rng = np.random.default_rng([p["seed"], _JITTER])
    jitter = p["jitter_px"] * rng.standard_normal(n_views)
    rng = np.random.default_rng([p["seed"], _ROTATION])
    rotation = p["rotation_drift_deg"] * time + p["rotation_jitter_deg"] * rng.standard_normal(n_views)
    profile = time
    if p["growth_profile"] == "sigmoid" and n_views > 1:
        logistic = 1 / (1 + np.exp(-(time + 0.5 - p["growth_centre"]) / _GROWTH_WIDTH))
        profile = (logistic - logistic[0]) / (logistic[-1] - logistic[0])
    return Trajectory(
        _centred(path), _centred(jitter), np.deg2rad(_centred(rotation)), math.log1p(p["growth"]) * _centred(profile)
    )


def move(views: Views, parameters: dict) -> Views:
    """The views of an object that moves.

    A scan that moves has no pose of its own, so one is chosen: that of the object at rest which fits the shifts best
    (``data_gen.geometry.without_pose``) is that of ``views``, and a label made for the object at rest belongs to it. It
    is the mean pose in which each view counts by the direction that it sees. The mean over time lies d/2π beside it
    after a drift d over 180°, d/4π after 360°. Rotation has zero mean, dilation a geometric mean of 1.

    Args:
        views: of the object at rest on the stage.
        parameters: what ``Motion.draw`` gave.

    Returns:
        new ``Views``, or the same where nothing moves.

    Raises:
        ValueError: as many jumps as views, or more.
    """
    if not any(parameters[name] for name in _MOTIONS):
        return views
    moved = trajectory(len(views.angles_rad), parameters)
    angles = views.angles_rad + moved.rotation_rad
    shift = (direction(angles) * moved.position_px).sum(0) + moved.shift_px
    return Views(angles, views.shift_px + without_pose(angles, shift), views.scale * np.exp(moved.log_scale))


@dataclass(frozen=True)
class Stripes:
    """Errors of detector pixels that the flat correction leaves, which FBP turns into rings.

    Full, partial, fluctuating and unresponsive stripes as Vo, Atwood & Drakopoulos, Opt. Express 26, 28396 (2018), sort
    them; drifting and offset stripes besides. Gains are log-normal: an error e adds −e to the sinogram. Each kind picks
    its own pixels: exactly the rounded share of them.

    Args:
        gain_sd: sd of a white error of ln gain in every pixel, constant over the scan.
        error_sd: sd of the error of ln gain in the pixels of the next four kinds.
        full_share: share of pixels with a wrong gain in all views.
        partial_share: share of pixels with a wrong gain in one run of views.
        drifting_share: share of pixels whose gain changes linearly; ``error_sd`` is that of the change from first to
            last view, and the mean error over the scan is 0.
        fluctuating_share: share of pixels whose gain is white noise over the views.
        partial_length: length of the run of a partial stripe, share of the views; where it begins is drawn by pixel.
        offset_share: share of pixels with an error added to the signal in all views: a light leak, a wrong dark field.
        offset_sd: sd of that error, relative to the open beam.
        unresponsive_share: share of pixels that give one value, 0.1 to 1 of the open beam, whatever the object does.

    Raises:
        ValueError: a value outside its range.
    """

    gain_sd: Range = 0.0
    error_sd: Range = 0.05
    full_share: Range = 0.0
    partial_share: Range = 0.0
    drifting_share: Range = 0.0
    fluctuating_share: Range = 0.0
    partial_length: Range = (0.1, 0.5)
    offset_share: Range = 0.0
    offset_sd: Range = 0.02
    unresponsive_share: Range = 0.0

    def __post_init__(self):
        check_ranges(self, ((name, 0, 1) for name in self.__dataclass_fields__))

    def draw(self, rng: np.random.Generator) -> dict:
        """The parameters of one scan: those of the constructor, and ``seed``."""
        return draw_ranges(self, self.__dataclass_fields__, rng) | {"seed": _draw_seed(rng)}


def add_stripes(signal: np.ndarray, parameters: dict, out: np.ndarray | None = None) -> np.ndarray:
    """Give every detector pixel (detector, slice) its own error.

    Gains multiply, then offsets add (never below ``SIGNAL_FLOOR``), then unresponsive pixels overwrite.

    Args:
        signal: float32 (angles, detectors[, slices]).
        parameters: what ``Stripes.draw`` gave.
        out: array for the result, may be ``signal``.

    Returns:
        float32 of the same shape.

    Raises:
        ValueError: a signal or an ``out`` of another shape or type.
    """
    _check_stack(signal, out)
    p = parameters
    n_views, shape = len(signal), signal.shape[1:]

    def pixels(kind: str) -> tuple[np.random.Generator, tuple[np.ndarray, ...], int]:
        """The kind's generator, the indices of its pixels, and how many they are."""
        rng = np.random.default_rng([p["seed"], _KINDS.index(kind)])
        size = math.prod(shape)
        sd = {"offset": p["offset_sd"], "unresponsive": 1.0}.get(kind, p["error_sd"])
        count = round(p[f"{kind}_share"] * size) if sd else 0
        chosen = rng.permutation(size)[:count] if count else np.zeros(0, int)
        return rng, np.unravel_index(chosen, shape), count

    full_rng, full, n_full = pixels("full")
    partial_rng, partial, n_partial = pixels("partial")
    drifting_rng, drifting, n_drifting = pixels("drifting")
    fluctuating_rng, fluctuating, n_fluctuating = pixels("fluctuating")
    offset_rng, offset, n_offset = pixels("offset")
    stuck_rng, stuck, n_stuck = pixels("unresponsive")
    if not (p["gain_sd"] or n_full or n_partial or n_drifting or n_fluctuating or n_offset or n_stuck):
        return _unchanged(signal, out)
    out = _destination(signal, out)

    gain = np.zeros(shape)
    if p["gain_sd"]:
        gain += p["gain_sd"] * np.random.default_rng([p["seed"], _KINDS.index("white")]).standard_normal(shape)
    gain[full] += p["error_sd"] * full_rng.standard_normal(n_full)
    gain = np.exp(gain).astype(np.float32)
    partial_gain = np.exp(p["error_sd"] * partial_rng.standard_normal(n_partial))
    length = round(p["partial_length"] * n_views)
    first = partial_rng.integers(0, n_views - length + 1, n_partial)
    slope = p["error_sd"] * drifting_rng.standard_normal(n_drifting)
    error = p["offset_sd"] * offset_rng.standard_normal(n_offset)
    level = stuck_rng.uniform(*_STUCK_LEVELS, n_stuck)
    time = np.linspace(-0.5, 0.5, n_views)

    for i, frame in enumerate(out):
        np.multiply(signal[i], gain, out=frame)
        now = (first <= i) & (i < first + length)
        frame[tuple(axis[now] for axis in partial)] *= partial_gain[now]
        frame[drifting] *= np.exp(slope * time[i])
        frame[fluctuating] *= np.exp(p["error_sd"] * fluctuating_rng.standard_normal(n_fluctuating))
        if n_offset:
            frame[offset] = np.maximum(frame[offset] + error, SIGNAL_FLOOR)
        frame[stuck] = level
    return out


@dataclass(frozen=True)
class Scatter:
    """Scattered radiation, as a wide Gaussian convolution.

    ``source="object"``: photons scattered once, forward, in the object: S = fraction · G ∗ (−T ln T) after Ohnesorge,
    Flohr & Klingenbeck-Regn, Eur. Radiol. 9, 563 (1999). A ray of transmission T scatters in proportion to T and to
    its depth −ln T, so there is none without an object. The flat field was taken without one and knows no scatter, so
    nothing is divided out: the signal becomes T + S, and air beside the object reads more than 1. Under a wide
    uniform slab the ratio of scatter to primary is fraction × (−ln T).

    ``source="glare"``: light that spreads in the detector itself. It is in the flat field as well, so the open beam
    stays 1: (T + fraction · G ∗ T) / (1 + fraction).

    Args:
        fraction: as above; for the object, the scattered share of the attenuation that reaches the detector.
        fwhm_px: [detector pixels] full width at half maximum of G, as a rule tens to hundreds.
        source: ``"object"`` or ``"glare"``.

    Raises:
        ValueError: a value outside its range or an unknown source.
    """

    fraction: Range = 0.0
    fwhm_px: Range = 100.0
    source: str = "object"

    def __post_init__(self):
        check_ranges(self, [("fraction", 0, 5), ("fwhm_px", 0, 1e5, "px")])
        if self.source not in ("object", "glare"):
            raise ValueError(f"source={self.source!r} is unknown; known: object, glare")

    def draw(self, rng: np.random.Generator) -> dict:
        """``fraction``, ``fwhm_px`` and ``source`` of one scan."""
        return draw_ranges(self, ["fraction", "fwhm_px"], rng) | {"source": self.source}


def add_scatter(signal: np.ndarray, parameters: dict, out: np.ndarray | None = None) -> np.ndarray:
    """Add the scattered radiation of each view, blurred along detectors and slices.

    Beyond the edges of the detector the field goes on as in a mirror; a single slice stands for an object that is the
    same all along the axis.

    Args:
        signal: float32 (angles, detectors[, slices]), at least 0.
        parameters: what ``Scatter.draw`` gave.
        out: array for the result, may be ``signal``.

    Returns:
        float32 of the same shape.

    Raises:
        ValueError: a signal or an ``out`` of another shape or type.
    """
    fraction = np.float32(parameters["fraction"])
    if not fraction:
        return _unchanged(signal, out)
    out = _destination(signal, out)
    blur = _Blur(signal.shape[1:], parameters["fwhm_px"])
    for frame, scattered in zip(signal, out, strict=True):
        if parameters["source"] == "object":
            np.subtract(frame, fraction * blur(xlogy(frame, frame)), out=scattered)
        else:
            np.add(frame, fraction * blur(frame), out=scattered)
            scattered /= 1 + fraction
    return out


@dataclass(frozen=True)
class ExposureDrift:
    """Intensity of the beam at each view, by that when the flat field was taken, at the first view.

    Args:
        walk_sd: a random walk of ln intensity: sd of its value at the last view.
        decay: share of the intensity that is lost, linearly, in one period of a storage ring.
        n_top_ups: refills during the scan, at equal distances; a period is the scan by (n_top_ups + 1). An integer or
            a pair.

    Raises:
        ValueError: a value outside its range.
    """

    walk_sd: Range = 0.0
    decay: Range = 0.0
    n_top_ups: int | tuple[int, int] = 0

    def __post_init__(self):
        check_ranges(self, [("walk_sd", 0, 1), ("decay", 0, 0.9)])
        object.__setattr__(self, "n_top_ups", _check_count("n_top_ups", self.n_top_ups, 10000))

    def draw(self, rng: np.random.Generator) -> dict:
        """The parameters of one scan: those of the constructor, and ``seed``."""
        return draw_ranges(self, ["walk_sd", "decay"], rng) | {
            "n_top_ups": _draw_count(self.n_top_ups, rng),
            "seed": _draw_seed(rng),
        }


def exposure(n_views: int, parameters: dict) -> np.ndarray:
    """Relative intensity at each view, 1 at the first; float64 (n_views,)."""
    steps = np.random.default_rng(parameters["seed"]).standard_normal(n_views)
    steps[0] = 0
    walk = np.cumsum(steps) * parameters["walk_sd"] / math.sqrt(max(n_views - 1, 1))
    since_refill = np.arange(n_views) * (parameters["n_top_ups"] + 1) % n_views / n_views
    return np.exp(walk) * (1 - parameters["decay"] * since_refill)


def drift_exposure(signal: np.ndarray, parameters: dict, out: np.ndarray | None = None) -> np.ndarray:
    """Multiply each view by an intensity that the flat correction does not know.

    Args:
        signal: float32 (angles, detectors[, slices]).
        parameters: what ``ExposureDrift.draw`` gave.
        out: array for the result, may be ``signal``.

    Returns:
        float32 of the same shape.

    Raises:
        ValueError: a signal or an ``out`` of another shape or type.
    """
    if not (parameters["walk_sd"] or parameters["decay"]):
        return _unchanged(signal, out)
    factors = exposure(len(signal), parameters).astype(np.float32)
    out = _destination(signal, out)
    return np.multiply(signal, factors.reshape(-1, *[1] * (signal.ndim - 1)), out=out)


@dataclass(frozen=True)
class Propagation:
    """Edge fringes of a coherent beam that propagates freely behind the object.

    Args:
        distance_mm: [mm] from the object to the detector.

    Raises:
        ValueError: a value outside its range.
    """

    distance_mm: Range = 0.0

    def __post_init__(self):
        check_ranges(self, [("distance_mm", 0, 1e5, "mm")])

    def draw(self, rng: np.random.Generator) -> dict:
        """``distance_mm`` of one scan."""
        return draw_ranges(self, ["distance_mm"], rng)


def fresnel_number(
    energy_kev: float, voxel_size_um: float, distance_mm: float, magnification: float = 1.0, feature_px: float = 1.0
) -> float:
    """Fresnel number a²·M/(λ z) of a feature of size a in the object: ``propagate`` holds where it is well above 1.

    Args:
        energy_kev: [keV] photon energy.
        voxel_size_um: [µm] detector pixel as seen at the object.
        distance_mm: [mm] from the object to the detector, above 0.
        magnification: of the object on the detector.
        feature_px: [detector pixels] size of the feature.

    Raises:
        ValueError: an argument that is not positive.
    """
    for name, value in (
        ("energy_kev", energy_kev),
        ("voxel_size_um", voxel_size_um),
        ("distance_mm", distance_mm),
        ("magnification", magnification),
        ("feature_px", feature_px),
    ):
        check_number(name, value, 1e-9, 1e9)
    size_cm = feature_px * voxel_size_um * 1e-4
    return size_cm**2 * magnification / (_KEV_CM / energy_kev * distance_mm * 0.1)


def propagate(
    signal: np.ndarray,
    decrement_cm: np.ndarray,
    parameters: dict,
    voxel_size_um: float,
    magnification: float = 1.0,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Propagation phase contrast by the transport-of-intensity equation, to first order in the distance.

    Teague, J. Opt. Soc. Am. 73, 1434 (1983): ∂I/∂z = −∇⊥·(I ∇⊥φ)/k. The phase behind an object of refractive index 1
    − δ + iβ is φ = −k ∫δ dz, so I = I₀ + R ∇⊥·(I₀ ∇⊥ ∫δ dz), which is I₀ (1 + R ∇⊥² ∫δ dz) where I₀ is flat: the
    inner side of an edge is dark and the outer side bright. A cone beam of magnification M acts as a parallel one
    over R = distance / M in the pixels at the object. The flux that crosses from pixel to pixel is summed, so the
    total intensity of a view is kept, and none crosses the border. Acts along detectors and, where there are several,
    slices.

    Valid while ``fresnel_number`` of the finest feature is well above 1 and |R ∇⊥² ∫δ dz| well below 1. It knows one
    fringe, no source blur and no loss of coherence. For a polychromatic beam ``decrement_cm`` is the mean over the
    detected spectrum.

    Args:
        signal: float32 (angles, detectors[, slices]), the intensity behind the object.
        decrement_cm: [cm] ∫δ dz, the shape of ``signal``: δ of each material times its path length, summed.
        parameters: what ``Propagation.draw`` gave.
        voxel_size_um: [µm] detector pixel as seen at the object.
        magnification: of the object on the detector, at least 1.
        out: array for the result, may be ``signal``.

    Returns:
        float32 of the same shape, positive.

    Raises:
        ValueError: shapes that differ; a distance at which the intensity is no longer positive, with the largest
            valid one.
    """
    distance_mm = parameters["distance_mm"]
    if not distance_mm:
        return _unchanged(signal, out)
    if decrement_cm.shape != signal.shape:
        raise ValueError(f"decrement_cm of shape {decrement_cm.shape} must have the signal's, {signal.shape}")
    check_number("voxel_size_um", voxel_size_um, 1e-4, 1e4, "µm")
    check_number("magnification", magnification, 1, 1e5)
    out = _destination(signal, out)
    strength = np.float32(distance_mm * 0.1 / magnification / (voxel_size_um * 1e-4) ** 2)  # cm / cm²
    steepest = 0.0
    for i, frame in enumerate(out):
        change = strength * _flux_divergence(signal[i], decrement_cm[i])
        result = signal[i] + change
        if not result.min() > 0:
            steepest = min(steepest, float((change / np.maximum(signal[i], SIGNAL_FLOOR)).min()))
        frame[...] = result
    if steepest:
        raise ValueError(
            f"distance_mm={distance_mm:g} leaves no intensity at an edge of the object: the transport-of-intensity "
            f"equation does not hold so far; nearest valid: below {distance_mm * min(1, -1 / steepest):.3g}"
        )
    return out


@dataclass(frozen=True)
class Zernike:
    """Halo and shade-off of Zernike phase contrast, as in nano-CT with zone plates.

    The phase ring has a finite width, so it also shifts the light that the object scatters at small angles, and that
    part of the image is lost: p − alpha · G ∗ p. Outside an object the sinogram goes below zero (halo); inside, one
    wider than G fades to 1 − alpha of its value (shade-off). One operator gives both.

    Args:
        alpha: share of the low frequencies that is lost.
        fwhm_px: [detector pixels] full width at half maximum of G.

    Raises:
        ValueError: a value outside its range.
    """

    alpha: Range = 0.0
    fwhm_px: Range = 30.0

    def __post_init__(self):
        check_ranges(self, [("alpha", 0, 1), ("fwhm_px", 0, 1e5, "px")])

    def draw(self, rng: np.random.Generator) -> dict:
        """``alpha`` and ``fwhm_px`` of one scan."""
        return draw_ranges(self, ["alpha", "fwhm_px"], rng)


def add_halo(sinogram: np.ndarray, parameters: dict, out: np.ndarray | None = None) -> np.ndarray:
    """Take the low frequencies from each view, along detectors and slices, with mirrored edges.

    Args:
        sinogram: float32 (angles, detectors[, slices]).
        parameters: what ``Zernike.draw`` gave.
        out: array for the result, may be ``sinogram``.

    Returns:
        float32 of the same shape.

    Raises:
        ValueError: a sinogram or an ``out`` of another shape or type.
    """
    alpha = np.float32(parameters["alpha"])
    if not alpha:
        return _unchanged(sinogram, out)
    out = _destination(sinogram, out)
    blur = _Blur(sinogram.shape[1:], parameters["fwhm_px"])
    for frame, filtered in zip(sinogram, out, strict=True):
        np.subtract(frame, alpha * blur(frame), out=filtered)
    return out


class _Blur:
    """Gaussian blur of a frame (detectors[, slices]) with mirrored edges, in the cosine modes that survive it.

    exp(−σ²k²/2) is the Gaussian's transfer function, and the modes of DCT-II are those of a mirrored field. A blur of σ
    pixels leaves 1.9 N/σ modes of N, so a wide one costs next to nothing; no kernel is cut off.
    """

    def __init__(self, shape: tuple[int, ...], fwhm_px: float):
        modes, gains = zip(*(_cosine_modes(n, fwhm_px * SIGMA_PER_FWHM) for n in (*shape, 1)[:2]), strict=True)
        (self.detector_modes, self.slice_modes), self.gains = modes, np.outer(*gains).astype(np.float32)

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        plane = frame.reshape(len(self.detector_modes), -1)
        modes = self.gains * (self.detector_modes.T @ plane @ self.slice_modes)
        return (self.detector_modes @ modes @ self.slice_modes.T).reshape(frame.shape)


def _cosine_modes(n: int, sigma_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal cosines, float32 (n, modes), whose gain is above float32's rounding, and their gains (modes,)."""
    k = np.pi * np.arange(n) / n
    gains = np.exp(-((sigma_px * k) ** 2) / 2)
    gains = gains[gains > 2e-8]
    modes = np.cos(np.outer(np.arange(n) + 0.5, k[: len(gains)])) * math.sqrt(2 / n)
    modes[:, 0] = math.sqrt(1 / n)
    return modes.astype(np.float32), gains


def _flux_divergence(intensity: np.ndarray, potential: np.ndarray) -> np.ndarray:
    """∇·(I ∇Δ) in pixels, from the flux through the faces between pixels; no flux through the border."""
    total = np.zeros_like(intensity)
    for axis in range(intensity.ndim):
        i, sums = np.moveaxis(intensity, axis, 0), np.moveaxis(total, axis, 0)
        flux = (i[1:] + i[:-1]) * np.float32(0.5) * np.diff(np.moveaxis(potential, axis, 0), axis=0)
        sums[:-1] += flux
        sums[1:] -= flux
    return total


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(axis=-1, keepdims=True)


def _check_stack(data: np.ndarray, out: np.ndarray | None) -> None:
    if data.ndim not in (2, 3) or data.dtype != np.float32:
        raise ValueError(f"{data.dtype} array of shape {data.shape} must be float32 (angles, detectors[, slices])")
    if out is not None and (out.shape != data.shape or out.dtype != data.dtype):
        raise ValueError(f"out, {out.dtype} {out.shape}, must be like the input, {data.dtype} {data.shape}")


def _destination(data: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """Where the result goes, after a look at what came in."""
    _check_stack(data, out)
    return np.empty_like(data) if out is None else out


def _unchanged(data: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    if out is None or out is data:
        return data
    out[...] = data
    return out


def _check_count(name: str, value, high: int) -> int | tuple[int, int]:
    """As ``check_range``, for integers from 0."""
    values = value if isinstance(value, (list, tuple)) else [value]
    if not all(type(v) is int for v in values):
        raise ValueError(f"{name}={value!r} must be an integer or a rising pair of integers")
    checked = check_range(name, value, 0, high)
    return tuple(int(v) for v in checked) if isinstance(checked, tuple) else int(checked)


def _draw_count(value: int | tuple[int, int], rng: np.random.Generator) -> int:
    return int(rng.integers(value[0], value[1] + 1)) if isinstance(value, tuple) else value


def _draw_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**32))
