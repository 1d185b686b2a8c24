"""Dictionary transforms that MONAI lacks: a check of pairs, and the artefacts of CT for augmentation.

The artefacts act on an "image" (channels, x, y) or (channels, x, y, z), scaled to about 0…1, and leave the label alone.
Each draws its parameters in ``randomize``, keeps them in ``drawn``, and applies a pure function of ``image_artifacts``
to every key. White noise, blur, sharpening, low resolution and shading are MONAI's own: RandGaussianNoised,
RandGaussianSmoothd, RandGaussianSharpend, RandSimulateLowResolutiond, RandBiasFieldd; ``Recordedd`` keeps what those
drew.

A range ``[low, high]`` is drawn uniformly, a single number is fixed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    AdjustContrast,
    Compose,
    MapTransform,
    Randomizable,
    RandomizableTrait,
    RandomizableTransform,
)
from monai.transforms.croppad.functional import pad_nd

from bundle import image_artifacts
from bundle.random_artifact import (
    META_KEY,
    InvertibleArtifactd,
    RandArtifactd,
    check_count,
    check_number,
    drawn_values,
    plain_values,
    with_values,
)
from bundle.slice_tomography import beyond_border, from_slices, to_slices


class CheckPaird(MapTransform):
    """Stop at an image and label pair that cannot be trained on, before it reaches the network.

    Args:
        num_classes: labels must be whole numbers from 0 to ``num_classes - 1``.
        image_key, label_key: where the image (channels, ...) and the label (1, ...) are.

    Raises:
        ValueError: names the file, the value found and the rule: NaN or infinity in the image, shapes that differ,
            labels out of range.
    """

    def __init__(self, num_classes: int, image_key: str = "image", label_key: str = "label"):
        super().__init__((image_key, label_key))
        self.num_classes, self.image_key, self.label_key = num_classes, image_key, label_key

    def __call__(self, data: Mapping[str, torch.Tensor]) -> dict:
        image, label = data[self.image_key], data[self.label_key]
        name = _file_name(label)
        if image.shape[1:] != label.shape[1:] or len(label) != 1:
            raise ValueError(f"{name}: the label has shape {tuple(label.shape)}, its image {tuple(image.shape)}")
        if not torch.isfinite(image).all():
            raise ValueError(f"{_file_name(image)}: {int((~torch.isfinite(image)).sum())} voxels are NaN or infinite")
        low, high = float(label.min()), float(label.max())
        if low < 0 or high >= self.num_classes or not torch.equal(label, label.round()):
            raise ValueError(
                f"{name}: labels run from {low:g} to {high:g}; they must be whole numbers from 0 to "
                f"{self.num_classes - 1} (num_classes={self.num_classes})"
            )
        return dict(data)


class ShallowCopyd(MapTransform, RandomizableTrait):
    """New tensor objects of the same values, with metadata of their own; the first of a list of random transforms.

    Their list of artefacts is there from now on, if empty: a batch keeps of the metadata what all of its images have.

    MONAI's OneOf notes its choice in the tensors that it is given. With ``CacheDataset(copy_cache=False)`` those are in
    the cache, and the notes would grow from epoch to epoch. It counts as random, so that it comes after the cache.
    """

    def __call__(self, data: Mapping[str, torch.Tensor]) -> dict:
        d = dict(data)
        for key in self.key_iterator(d):
            if isinstance(d[key], MetaTensor):
                d[key] = with_values(d[key], d[key].as_tensor())
                d[key].meta.setdefault(META_KEY, "[]")
        return d


class ScalePercentilesd(MapTransform):
    """MONAI's ``ScaleIntensityRangePercentilesd`` to 0…1, in a tenth of its time: numpy selects where torch sorts.

    Only for what is scaled anew each time, as after augmentation; what a bundle runs keeps MONAI's.

    Args:
        keys, allow_missing_keys: as everywhere; images of any shape.
        lower, upper: [%] the percentiles that become 0 and 1.
        images: how many images lie one after the other along the first axis, each scaled by itself.
        part: it is a part of an image that reached from 0 to 1, such as a patch of a volume; the scale then changes
            only where the percentiles lie beyond, as noise takes them. What a part happens to hold says nothing.

    Raises:
        ValueError: percentiles that do not rise from 0 to 100, a number of images that is none.
    """

    def __init__(
        self,
        keys,
        lower: float = 0.5,
        upper: float = 99.5,
        images: int = 1,
        part: bool = False,
        allow_missing_keys: bool = False,
    ):
        super().__init__(keys, allow_missing_keys)
        if not 0 <= lower < upper <= 100:
            raise ValueError(f"lower={lower!r} and upper={upper!r} must rise, from 0 to 100")
        self.percentiles, self.images, self.part = (lower, upper), check_count("images", images, 1, 1000), part

    def __call__(self, data: Mapping[str, torch.Tensor]) -> dict:
        d = dict(data)
        for key in self.key_iterator(d):
            values = plain_values(d[key])
            scaled = []
            for image in values.chunk(self.images):
                low, high = np.percentile(image.cpu().numpy(), self.percentiles).tolist()
                if self.part:
                    low, high = min(low, 0.0), max(high, 1.0)
                scaled.append((image - low) / ((high - low) or 1.0))  # of one grey value: zero, as MONAI's
            d[key] = with_values(d[key], torch.cat(scaled) if self.images > 1 else scaled[0])
        return d


class BeyondBorderd(MapTransform, Randomizable, RandomizableTrait):
    """Transforms that see the image go on beyond its border, where MONAI's blur and sharpening see zero.

    A slice fades beyond its border, as in ``slice_tomography.beyond_border``; along the rotation axis, its last, a
    volume goes on as its mirror image.

    Args:
        keys, allow_missing_keys: images (channels, x, y[, z]).
        transforms: dictionary transforms, which keep the shape.
        border_px: [pixels] by which an image is continued: as far as the transforms reach.
    """

    def __init__(self, keys, transforms: Sequence, border_px: int = 10, allow_missing_keys: bool = False):
        super().__init__(keys, allow_missing_keys)
        self.inside = Compose(transforms)
        self.border_px = check_count("border_px", border_px, 0, 10**4)

    def set_random_state(self, seed=None, state=None):
        self.inside.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[str, torch.Tensor]) -> dict:
        d = dict(data)
        for key in self.key_iterator(d):
            values = plain_values(d[key])
            wide = from_slices(beyond_border(to_slices(values), [self.border_px] * 4), values)
            if values.ndim == 4:
                wide = pad_nd(wide, [(0, 0)] * 3 + [(self.border_px, self.border_px)], mode="symmetric")
            d[key] = with_values(d[key], wide)
        d = self.inside(d)
        for key in self.key_iterator(d):
            values = plain_values(d[key])
            inner = [slice(self.border_px, n - self.border_px) for n in values.shape[1:]]
            d[key] = with_values(d[key], values[(slice(None), *inner)].contiguous())
        return d


class Recordedd(MapTransform, Randomizable, RandomizableTrait):
    """A random transform of MONAI; its name and what it drew come into the image's ``artifacts``, as of those here.

    Args:
        keys, allow_missing_keys: of the images.
        transform: dictionary transform, such as RandGaussianSmoothd.
    """

    def __init__(self, keys, transform: RandomizableTransform, allow_missing_keys: bool = False):
        super().__init__(keys, allow_missing_keys)
        self.transform = transform

    def set_random_state(self, seed=None, state=None):
        self.transform.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[str, torch.Tensor]) -> dict:
        d = self.transform(dict(data))
        if self.transform._do_transform:
            record = {"name": type(self.transform).__name__, **drawn_values(self.transform)}
            for key in self.key_iterator(d):
                d[key] = with_values(d[key], plain_values(d[key]), record)
        return d


class RandReconstructionNoised(RandArtifactd):
    """Noise as filtered back-projection makes it: fine grain, little at low frequencies.

    Args:
        keys, prob, allow_missing_keys: as in ``RandArtifactd``.
        sd: [grey] standard deviation, range.
        psf_px: [pixels] full width at half maximum of the detector's point spread, along the axis too, range.
        depth: −ln of the transmission along the densest line, range: the more, the more noise where it goes.
    """

    LIMITS: ClassVar = {"sd": (0, 10), "psf_px": (0, 100), "depth": (0, 20)}
    function = staticmethod(image_artifacts.reconstruction_noise)

    def __init__(self, keys, prob=0.1, sd=(0.0, 0.15), psf_px=(0.0, 2.0), depth=(0.0, 3.0), allow_missing_keys=False):
        super().__init__(keys, prob, allow_missing_keys, sd=sd, psf_px=psf_px, depth=depth)

    def draw(self, shape):
        return super().draw(shape) | {"seed": self.seed()}


class RandGreyNoised(RandArtifactd):
    """Poisson-like noise: white, with a variance proportional to the grey value.

    Args:
        keys, prob, allow_missing_keys: as in ``RandArtifactd``.
        sd: [grey] standard deviation at grey 1, range.
    """

    LIMITS: ClassVar = {"sd": (0, 10)}
    function = staticmethod(image_artifacts.grey_noise)

    def __init__(self, keys, prob=0.1, sd=(0.0, 0.15), allow_missing_keys=False):
        super().__init__(keys, prob, allow_missing_keys, sd=sd)

    def draw(self, shape):
        return super().draw(shape) | {"seed": self.seed()}


class RandRingsd(RandArtifactd):
    """Rings of detector pixels with a wrong gain, about the last axis of a volume; half rings after a scan of 180°.

    Args:
        keys, prob, allow_missing_keys: as in ``RandArtifactd``.
        gain_sd: [grey · pixels] sd of an error in every pixel, range. In an image of 256² the rings have 0.04 of it.
        error_sd: [grey · pixels] sd of the error of single stripes, range.
        share: of the pixels at which such a stripe begins, range.
        width_px: [pixels] of a stripe, range; rounded.
        correlation_px: [slices] over which an error fades along the axis, range.
        centre: largest distance of the axis from the middle, share of the image's size; above 0.5 it may lie outside.
        full_turn: probability of a scan of 360°.
        partial: probability that the single stripes last for a tenth to half of the scan only, in ``RUNS`` groups that
            begin at angles of their own; the error in every pixel always lasts.
    """

    RUNS: ClassVar = 2  # each takes as long as the rings of a whole scan

    LIMITS: ClassVar = {
        "gain_sd": (0, 1e3), "error_sd": (0, 1e3), "share": (0, 1), "width_px": (1, 100), "correlation_px": (1, 1e4),
    }  # fmt: skip

    def __init__(
        self, keys, prob=0.1, gain_sd=(0.0, 0.3), error_sd=(0.0, 2.0), share=(0.0, 0.05), width_px=(1, 3),
        correlation_px=(2.0, 30.0), centre=0.05, full_turn=0.3, partial=0.2, allow_missing_keys=False,
    ):  # fmt: skip
        ranges = {"gain_sd": gain_sd, "error_sd": error_sd, "share": share, "width_px": width_px}
        super().__init__(keys, prob, allow_missing_keys, **ranges, correlation_px=correlation_px)
        self.off_centre, self.full_turn = (
            check_number("centre", centre, 0, 2),
            check_number("full_turn", full_turn, 0, 1),
        )
        self.partial = check_number("partial", partial, 0, 1)

    def draw(self, shape):
        range_deg = 360 if self.chance(self.full_turn) else 180
        length = self.uniform(0.1, 0.5) if self.chance(self.partial) else 1.0
        drawn = super().draw(shape)
        return drawn | {
            "width_px": round(drawn["width_px"]),
            "seed": self.seed(),
            "centre_px": self.centre(shape, self.off_centre),
            "first_angle_deg": self.uniform(0, 360),
            "angular_range_deg": range_deg,
            "window_deg": length * range_deg,
            "runs_deg": [self.uniform(0, (1 - length) * range_deg) for _ in range(self.RUNS)] if length < 1 else [0.0],
        }

    @staticmethod
    def function(
        image, *, gain_sd, error_sd, share, seed, centre_px, first_angle_deg, angular_range_deg, window_deg, runs_deg,
        **size,
    ):  # fmt: skip
        x, y = image.shape[1:3]
        reach = 16 * math.ceil(math.hypot(x / 2 + abs(centre_px[0]), y / 2 + abs(centre_px[1])) / 16)
        slices = image.shape[3] if image.ndim == 4 else 1

        def pattern(seed, start_deg, window_deg, **errors):
            stripes = image_artifacts.random_stripes(2 * reach, slices, seed=seed, **errors, **size).to(image.device)
            scan = {"first_angle_deg": first_angle_deg + start_deg, "window_deg": window_deg}
            scan |= {"centre_px": centre_px, "full_turn": angular_range_deg == 360}
            return image_artifacts.ring_pattern((x, y), stripes, **scan)

        single = {"error_sd": error_sd, "share": share / len(runs_deg)}
        if window_deg == angular_range_deg:
            return image_artifacts.add_rings(image, pattern(seed, 0.0, window_deg, gain_sd=gain_sd, **single))
        total = pattern(seed, 0.0, angular_range_deg, gain_sd=gain_sd)
        for k, start_deg in enumerate(runs_deg, start=1):
            total += pattern(seed + k, start_deg, window_deg, **single)
        return image_artifacts.add_rings(image, total)


class RandMotiond(RandArtifactd):
    """An object that drifts, jumps or shakes in the slice during the scan, or a wrong centre of rotation.

    The label belongs to the pose that the moving scan shows, see ``image_artifacts.view_shifts``.

    Args:
        keys, prob, allow_missing_keys: as in ``RandArtifactd``.
        drift_px: [pixels] path from the first to the last view, range.
        jump_px: [pixels] length of a jump, range.
        jitter_px: [pixels] sd of the shaking, range.
        offset_px: [pixels] error of the centre of rotation, range; of either sign.
        kinds: probabilities that each of these four acts, where there is motion at all.
        most_jumps: the number of jumps is drawn from 1 to this.
        n_views: of the scan.
        full_turn: probability of a scan of 360°.
        aligned: probability that the detector of the first view lies along an axis of the image, as most programs for
            reconstruction have it; else at any angle.
    """

    LIMITS: ClassVar = {"drift_px": (0, 1e3), "jump_px": (0, 1e3), "jitter_px": (0, 100), "offset_px": (0, 1e3)}

    def __init__(
        self, keys, prob=0.1, drift_px=(0.0, 8.0), jump_px=(0.0, 5.0), jitter_px=(0.0, 1.0), offset_px=(0.0, 2.0),
        kinds=(0.6, 0.4, 0.3, 0.3), most_jumps=3, n_views=360, full_turn=0.3, aligned=0.5,
        allow_missing_keys=False,
    ):  # fmt: skip
        ranges = {"drift_px": drift_px, "jump_px": jump_px, "jitter_px": jitter_px, "offset_px": offset_px}
        super().__init__(keys, prob, allow_missing_keys, **ranges)
        if not isinstance(kinds, Sequence) or len(kinds) != 4:
            raise ValueError(f"kinds={kinds!r} must be four probabilities: of drift, jumps, shaking and offset")
        self.kinds = [check_number("kinds", p, 0, 1) for p in kinds]
        self.most_jumps = check_count("most_jumps", most_jumps, 1, 100)
        self.n_views = check_count("n_views", n_views, 8, 10**5)
        self.full_turn, self.aligned = (
            check_number("full_turn", full_turn, 0, 1),
            check_number("aligned", aligned, 0, 1),
        )

    def draw(self, shape):
        drift, jump, shake, offset = map(self.chance, self.kinds)
        drawn = super().draw(shape)
        times = [self.uniform(0, 1) for _ in range(self.R.randint(1, self.most_jumps + 1))] if jump else []
        return {
            "drift_px": drift * drawn["drift_px"],
            "direction_deg": self.uniform(0, 360),
            "jumps": [[when, self.uniform(*self.ranges["jump_px"]), self.uniform(0, 360)] for when in times],
            "jitter_px": shake * drawn["jitter_px"],
            "offset_px": offset * drawn["offset_px"] * (1 if self.chance(0.5) else -1),
            "seed": self.seed(),
            "n_views": self.n_views,
            "first_angle_deg": 90.0 * self.R.randint(4) if self.chance(self.aligned) else self.uniform(0, 360),
            "angular_range_deg": 360 if self.chance(self.full_turn) else 180,
        }

    @staticmethod
    def function(image, **motion):
        shift = image_artifacts.view_shifts(**motion)
        scan = {name: motion[name] for name in ("first_angle_deg", "angular_range_deg")}
        return image_artifacts.shift_views(image, shift, **scan)


class RandSparseViewsd(RandArtifactd):
    """The pattern of a scan of few views over 180°.

    Args:
        keys, prob, allow_missing_keys: as in ``RandArtifactd``.
        n_views: number of views, range; its logarithm is uniform. An image of n pixels needs 1.6 n to show no pattern.
    """

    LIMITS: ClassVar = {"n_views": (2, 1e5)}
    function = staticmethod(image_artifacts.keep_views)

    def __init__(self, keys, prob=0.1, n_views=(25, 150), allow_missing_keys=False):
        super().__init__(keys, prob, allow_missing_keys, n_views=n_views)

    def draw(self, shape):
        low, high = self.ranges["n_views"]
        views = round(math.exp(self.uniform(math.log(low), math.log(high))))
        return {"n_views": views, "first_angle_deg": self.uniform(0, 180)}


class RandMissingWedged(RandArtifactd):
    """A scan over less than 180°: edges along the missing directions fade.

    Args:
        keys, prob, allow_missing_keys: as in ``RandArtifactd``.
        angular_range_deg: [°] measured range, a range of it.
    """

    LIMITS: ClassVar = {"angular_range_deg": (1, 180)}
    function = staticmethod(image_artifacts.missing_wedge)

    def __init__(self, keys, prob=0.1, angular_range_deg=(120.0, 175.0), allow_missing_keys=False):
        super().__init__(keys, prob, allow_missing_keys, angular_range_deg=angular_range_deg)

    def draw(self, shape):
        return super().draw(shape) | {"first_angle_deg": self.uniform(0, 180)}


class RandHalod(InvertibleArtifactd):
    """Halo and shade-off of Zernike phase contrast.

    Args:
        keys, prob, allow_missing_keys: as in ``RandArtifactd``.
        alpha: share of the low frequencies that is lost, below 1, range.
        fwhm_px: [pixels] full width at half maximum of what is lost, range.
    """

    LIMITS: ClassVar = {"alpha": (0, 0.99), "fwhm_px": (0.1, 1e4)}
    function = staticmethod(image_artifacts.halo)
    inverse_function = staticmethod(partial(image_artifacts.halo, inverse=True))

    def __init__(self, keys, prob=0.1, alpha=(0.1, 0.6), fwhm_px=(10.0, 60.0), allow_missing_keys=False):
        super().__init__(keys, prob, allow_missing_keys, alpha=alpha, fwhm_px=fwhm_px)


class RandCuppingd(InvertibleArtifactd):
    """Cupping of a cylinder by beam hardening, a factor that depends on the radius.

    Args:
        keys, prob, allow_missing_keys: as in ``RandArtifactd``.
        depth: share of the grey value lost on the axis, below 1, negative for capping, range.
        radius: of the sample by half the image's longer edge, range.
        power: of 1 − ρ²: 0.5 for weak hardening, 1 for strong, range.
        centre: largest distance of the axis from the middle, share of the image's size.
    """

    LIMITS: ClassVar = {"depth": (-1, 0.95), "radius": (0.01, 100), "power": (0.1, 10)}
    function = staticmethod(image_artifacts.cupping)
    inverse_function = staticmethod(partial(image_artifacts.cupping, inverse=True))

    def __init__(
        self, keys, prob=0.1, depth=(-0.1, 0.3), radius=(0.9, 1.5), power=(0.5, 1.0), centre=0.1,
        allow_missing_keys=False,
    ):  # fmt: skip
        super().__init__(keys, prob, allow_missing_keys, depth=depth, radius=radius, power=power)
        self.off_centre = check_number("centre", centre, 0, 2)

    def draw(self, shape):
        drawn = super().draw(shape)
        radius_px = drawn.pop("radius") * max(shape[:2]) / 2
        return drawn | {"radius_px": radius_px, "centre_px": self.centre(shape, self.off_centre)}


class RandLocalTomographyd(InvertibleArtifactd):
    """The bright rim of a sample that sticks out of the field of view.

    Args:
        keys, prob, allow_missing_keys: as in ``RandArtifactd``.
        strength: [grey] line integral at the edge of the field by π times its radius, range.
        radius: of the field of view by half the image's diagonal, range.
        outer: radius of the sample by that of the field, above 1, range.
        centre: largest distance of the axis from the middle, share of the image's size.
    """

    LIMITS: ClassVar = {"strength": (0, 100), "radius": (0.1, 100), "outer": (1.01, 1e3)}
    function = staticmethod(image_artifacts.local_tomography)

    def __init__(
        self, keys, prob=0.1, strength=(0.05, 0.5), radius=(0.8, 1.2), outer=(1.2, 3.0), centre=0.05,
        allow_missing_keys=False,
    ):  # fmt: skip
        super().__init__(keys, prob, allow_missing_keys, strength=strength, radius=radius, outer=outer)
        self.off_centre = check_number("centre", centre, 0, 2)

    def draw(self, shape):
        drawn = super().draw(shape)
        radius_px = drawn.pop("radius") * math.hypot(*shape[:2]) / 2
        return drawn | {"radius_px": radius_px, "centre_px": self.centre(shape, self.off_centre)}

    @staticmethod
    def inverse_function(image, strength, **drawn):
        return image_artifacts.local_tomography(image, -strength, **drawn)


class RandBeamHardeningd(RandArtifactd):
    """Beam hardening of what is in the image: cupping, and dark bands between dense particles.

    Args:
        keys, prob, allow_missing_keys: as in ``RandArtifactd``.
        strength: share that the densest line integral loses, range.
    """

    LIMITS: ClassVar = {"strength": (0, 0.5)}
    function = staticmethod(image_artifacts.harden)

    def __init__(self, keys, prob=0.1, strength=(0.05, 0.35), allow_missing_keys=False):
        super().__init__(keys, prob, allow_missing_keys, strength=strength)


class RandScatterd(RandArtifactd):
    """Scattered radiation: low contrast and dark bands in the shadow of the sample.

    Args:
        keys, prob, allow_missing_keys: as in ``RandArtifactd``.
        fraction: of the attenuated radiation that is scattered to the detector, range.
        depth: −ln of the transmission along the densest line, range.
        fwhm_px: [pixels] full width at half maximum of its spread, range.
    """

    LIMITS: ClassVar = {"fraction": (0, 5), "depth": (0.01, 20), "fwhm_px": (0.1, 1e5)}
    function = staticmethod(image_artifacts.scatter)

    def __init__(
        self, keys, prob=0.1, fraction=(0.1, 1.0), depth=(0.5, 3.0), fwhm_px=(40.0, 200.0), allow_missing_keys=False
    ):
        super().__init__(keys, prob, allow_missing_keys, fraction=fraction, depth=depth, fwhm_px=fwhm_px)


class RandStreaksd(RandArtifactd):
    """Dark lines, each in one slice, from single wrong readings such as zingers in the sinogram.

    Args:
        keys, prob, allow_missing_keys: as in ``RandArtifactd``.
        height: [grey] by which a line is darker, range; drawn for each.
        most: the number of lines is drawn from 1 to this.
    """

    LIMITS: ClassVar = {"height": (0, 100)}
    function = staticmethod(image_artifacts.streaks)

    def __init__(self, keys, prob=0.1, height=(0.05, 0.6), most=6, allow_missing_keys=False):
        super().__init__(keys, prob, allow_missing_keys, height=height)
        self.most = check_count("most", most, 1, 1000)

    def draw(self, shape):
        count, reach = self.R.randint(1, self.most + 1), max(shape[:2]) / 2
        return {
            "angles_deg": [self.uniform(0, 180) for _ in range(count)],
            "offsets_px": [self.uniform(-reach, reach) for _ in range(count)],
            "heights": [-self.uniform(*self.ranges["height"]) for _ in range(count)],
            "slices": [int(self.R.randint(shape[2])) for _ in range(count)] if len(shape) == 3 else None,
        }


class RandDotsd(RandArtifactd):
    """Bright single voxels, as zingers leave them in the image.

    Args:
        keys, prob, allow_missing_keys: as in ``RandArtifactd``.
        share: of the voxels, range.
        height: [grey] mean of what is added, range.
    """

    LIMITS: ClassVar = {"share": (0, 1), "height": (-100, 100)}
    function = staticmethod(image_artifacts.dots)

    def __init__(self, keys, prob=0.1, share=(0.0, 0.002), height=(0.3, 1.5), allow_missing_keys=False):
        super().__init__(keys, prob, allow_missing_keys, share=share, height=height)

    def draw(self, shape):
        return super().draw(shape) | {"seed": self.seed()}


class RandInvertIntensityd(InvertibleArtifactd):
    """1 − image: dark particles in a bright matrix. Arguments as in ``RandArtifactd``."""

    LIMITS: ClassVar = {}
    function = staticmethod(image_artifacts.invert_intensity)
    inverse_function = staticmethod(image_artifacts.invert_intensity)

    def __init__(self, keys, prob=0.1, allow_missing_keys=False):
        super().__init__(keys, prob, allow_missing_keys)


class RandGammad(InvertibleArtifactd):
    """The grey values to the power of gamma, within the range of the image: MONAI's ``AdjustContrast``.

    Args:
        keys, prob, allow_missing_keys: as in ``RandArtifactd``.
        gamma: range.
    """

    LIMITS: ClassVar = {"gamma": (0.01, 100)}

    def __init__(self, keys, prob=0.1, gamma=(0.7, 1.4), allow_missing_keys=False):
        super().__init__(keys, prob, allow_missing_keys, gamma=gamma)

    @staticmethod
    def function(image, gamma):
        return AdjustContrast(gamma)(image)

    @staticmethod
    def inverse_function(image, gamma):
        return AdjustContrast(1 / gamma)(image)


def _file_name(tensor: torch.Tensor) -> str:
    return str(getattr(tensor, "meta", {}).get("filename_or_obj", "array"))
