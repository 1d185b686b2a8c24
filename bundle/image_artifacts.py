"""Artefacts of a CT scan, made in the image: cheap versions of what arises in the sinogram, to train on.

Pure functions of tensors, on any device. An ``image`` is float32 (channels, x, y) or (channels, x, y, z); z, the last
axis of a volume, is the rotation axis, so a slice is (x, y). Channels are images of one scan and share the artefact.
Grey values count from 0, air, to about 1; a line integral is in grey times pixels. The result is a new tensor of the
same shape. Random patterns come from a ``seed``: the same one gives the same pattern on the same kind of device.

At the angle θ the detector runs along (−sin θ, cos θ) in the image's first and second axis. By the Fourier slice
theorem the projection at θ has the spectrum of the image on the line through the origin along its detector: a filter of
each view multiplies the image's spectrum on that line. k is the frequency along the detector [cycles/pixel].
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bundle.slice_tomography import (
    FINER,
    FWHM_PER_SIGMA,
    SmallScan,
    axis_mixture,
    circle_places,
    cosine_modes,
    filter_slices,
    from_slices,
    lookup,
    noise_gain,
    pixel_axes,
    places_between,
    polar_places,
    ramp_kernel,
    ramp_matrix,
    to_slices,
)

_ROUND = 16  # [pixels] to which the radii of rings are rounded, so that a few tables serve all
_SLICES = 16  # of a ring pattern at a time: bounds its tables to some 20 MB

# motion


def view_shifts(
    n_views: int,
    *,
    drift_px: float = 0.0,
    direction_deg: float = 0.0,
    jumps: Sequence[Sequence[float]] = (),
    jitter_px: float = 0.0,
    offset_px: float = 0.0,
    seed: int = 0,
    first_angle_deg: float = 0.0,
    angular_range_deg: float = 180.0,
) -> Tensor:
    """Shift along the detector of an object that drifts, jumps and shakes, or turns about a wrong centre.

    The pose of the image and of its label is that of the object at rest which fits the whole shift best, by least
    squares: the mean pose in which each view counts by the direction that it sees, where the reconstruction shows the
    object, see ``data_gen.geometry.without_pose``.

    Args:
        n_views: number of views.
        drift_px: [pixels] length of a straight path at constant speed, from the first to the last view.
        direction_deg: [°] its direction: 0 along the second image axis, 90 against the first.
        jumps: for each its time, as a share of the scan, its length [pixels] and its direction [°].
        jitter_px: [pixels] sd of a white shift along the detector.
        offset_px: [pixels] constant shift along the detector: an error of the centre of rotation, less the pose that it
            shows after less than 360°.
        seed: of the shaking.
        first_angle_deg, angular_range_deg: [°] of the scan, end excluded.

    Returns:
        [pixels] float32 (n_views,).
    """
    time = torch.linspace(-0.5, 0.5, n_views)
    path = drift_px * cmath.rect(1, math.radians(direction_deg)) * time  # complex: second axis − i · first
    for when, length, direction in jumps:
        path = path + cmath.rect(length, math.radians(direction)) * (time + 0.5 >= when)
    angle = torch.deg2rad(first_angle_deg + angular_range_deg * torch.arange(n_views) / n_views)
    directions = torch.stack([angle.cos(), angle.sin()], 1)
    shake = torch.randn(n_views, generator=torch.Generator().manual_seed(seed))
    shift = (directions * torch.view_as_real(path)).sum(1) + jitter_px * (shake - shake.mean()) + offset_px
    # least squares by its normal equations: what torch.linalg.lstsq returns hangs on where its input lies in memory
    normal = (directions[:, :, None] * directions[:, None]).sum(0)
    shown = torch.linalg.pinv(normal, hermitian=True) @ (directions * shift[:, None]).sum(0)
    return shift - (directions * shown).sum(1)


def shift_views(
    image: Tensor, shift_px: Tensor, first_angle_deg: float = 0.0, angular_range_deg: float = 180.0
) -> Tensor:
    """The image of an object that moved along the detector from view to view.

    A shift s multiplies a view's spectrum by exp(−2πi k s). Blends and double edges are what this makes of a drift or a
    jump. The views in one cell of the discrete spectrum count by the mean and variance of their shifts, exp(−2πi k mean
    − 2π² k² variance). After 360° each line was seen from either end: the mean of the two.

    Args:
        image: see above.
        shift_px: [pixels] (views,), shift along the detector at equal steps of the angle.
        first_angle_deg: [°] angle of the first view.
        angular_range_deg: [°] 180 or 360.

    Raises:
        ValueError: another range of angles.
    """
    _check("angular_range_deg", angular_range_deg, angular_range_deg in (180, 360), "180 or 360")
    shift = shift_px.to(image.device, torch.float32)
    turn = torch.cat([shift, -shift]) if angular_range_deg == 180 else shift  # the opposite view is reversed
    per_rad, most = len(turn) / (2 * math.pi), len(turn) // 4  # views
    turns = torch.cat([turn[-most:], turn, turn[:most]])
    power = turns.square().mean()  # what is summed has no trend: float32 will do
    sums = F.pad(torch.cumsum(torch.stack([turns, turns**2 - power]), 1), (1, 0))

    def seen(k: Tensor, turned: Tensor) -> Tensor:
        width = (per_rad / (k * k.shape[0]).clamp(min=1e-6)).clamp(1, most)  # of a cell, in views
        place = turned * per_rad + (most + 0.5)
        ends = (lookup(sums, *places_between(place + sign * width / 2, sums.shape[1])) for sign in (1, -1))
        mean, square = (next(ends) - next(ends)) / width
        kept = torch.exp(-2 * (math.pi * k) ** 2 * (square + power - mean**2).clamp(min=0))
        turned_by = 2 * math.pi * k * mean
        return torch.complex(kept * turned_by.cos(), -kept * turned_by.sin())

    def mask(k: Tensor, angle: Tensor) -> Tensor:
        turned = torch.remainder(angle - math.radians(first_angle_deg), 2 * math.pi)
        if angular_range_deg == 180:
            return seen(k, turned)
        return (seen(k, turned) + seen(k, torch.remainder(turned + math.pi, 2 * math.pi)).conj()) / 2

    return filter_slices(image, mask, max(image.shape[1:3]) // 6 + math.ceil(2 * float(shift.abs().max())))


# few views


def keep_views(image: Tensor, n_views: int, first_angle_deg: float = 0.0) -> Tensor:
    """The pattern of few views over 180°: only the lines of the spectrum that they measured.

    Each line weighs as much as the sector that it stands for. It is spread over the cells of the discrete spectrum so
    that its streaks reach half the padded image, which is as large as the image, and no further. With w that window the
    gain at a distance of δ gaps g from a line is 1 + 2 Σ w(m/g) cos 2πmδ (Poisson's sum).

    Args:
        image: see above.
        n_views: number of views, at equal steps, at least 1.
        first_angle_deg: [°] angle of the first view.

    Raises:
        ValueError: no view.
    """
    _check("n_views", n_views, n_views >= 1 and n_views % 1 == 0, "a whole number of at least 1")

    def mask(k: Tensor, angle: Tensor) -> Tensor:
        widest = math.sqrt(0.5) * k.shape[0] * math.pi / n_views
        gap = torch.linspace(0, widest, max(2, math.ceil(4 * widest)), device=k.device)
        away = torch.linspace(0, 0.5, 4 * math.ceil(widest) + 2, device=k.device)
        orders = torch.arange(1, 1 + math.ceil(widest), device=k.device)
        window = ((0.55 - orders / gap[:, None].clamp(min=1e-6)) / 0.1).clamp(0, 1)
        table = 1 + 2 * window @ torch.cos(2 * math.pi * orders[:, None] * away)
        place = (angle - math.radians(first_angle_deg)) * (n_views / math.pi)
        off = (place - place.round()).abs()
        places = torch.stack([4 * off - 1, k * (2 / math.sqrt(0.5)) - 1], -1)
        return F.grid_sample(table[None, None], places[None], align_corners=True)[0, 0]

    return filter_slices(image, mask, max(image.shape[1:3]) // 2)


def missing_wedge(image: Tensor, first_angle_deg: float, angular_range_deg: float) -> Tensor:
    """A scan of less than 180° without compensation: the spectrum of the views that are missing is zero.

    A cell on the border counts by the share of it that was measured, the mean grey value by that of the angles.

    Args:
        image: see above.
        first_angle_deg: [°] where the measured range begins.
        angular_range_deg: [°] measured range, above 0 and up to 180.

    Raises:
        ValueError: a range outside these bounds.
    """
    _check("angular_range_deg", angular_range_deg, 0 < angular_range_deg <= 180, "above 0 and at most 180")
    measured = math.radians(angular_range_deg)
    narrow = min(measured, math.pi - measured)  # the narrower of the two wedges, measured or missing
    middle = math.radians(first_angle_deg) + (measured if measured == narrow else measured + math.pi) / 2

    def mask(k: Tensor, angle: Tensor) -> Tensor:
        away = torch.remainder(angle - middle + math.pi / 2, math.pi) - math.pi / 2
        inside = [(0.5 + k * k.shape[0] * torch.sin(narrow / 2 + sign * away)).clamp(0, 1) for sign in (1, -1)]
        share = (inside[0] + inside[1] - 1).clamp(min=0)  # of a cell between the two edges, where both cross it
        share = share if measured == narrow else 1 - share
        share[0, 0] = measured / math.pi
        return share

    if angular_range_deg == 180:
        return image.clone()
    return filter_slices(image, mask, max(image.shape[1:3]) // 2)


# rings


def random_stripes(
    detectors: int, slices: int, *, seed: int, gain_sd: float = 0.0, error_sd: float = 0.0, share: float = 0.0,
    width_px: int = 1, correlation_px: float = 8.0,
) -> Tensor:  # fmt: skip
    """Errors of the detector that stay the same from view to view.

    Args:
        detectors, slices: pixels across and along the rotation axis.
        seed: of the pattern.
        gain_sd: [grey · pixels] sd of a white error in every pixel.
        error_sd: [grey · pixels] sd of the error of single stripes.
        share: of the pixels at which a stripe begins.
        width_px: [pixels] of a stripe across.
        correlation_px: [pixels] along the axis over which an error fades into the next one.

    Returns:
        [grey · pixels] float32 (slices, detectors).
    """
    generator = torch.Generator().manual_seed(seed)
    nodes = 1 + math.ceil((slices - 1) / correlation_px)
    white, error = (torch.randn(nodes, detectors, generator=generator) for _ in range(2))
    hit = torch.rand(nodes, detectors, generator=generator) < share
    single = F.pad(error_sd * error * hit, (width_px - 1, 0)).unfold(1, width_px, 1).sum(-1)
    if nodes == 1:
        return gain_sd * white + single
    white, single = (F.interpolate(p.T[None], slices, mode="linear", align_corners=True)[0].T for p in (white, single))
    t = torch.linspace(0, nodes - 1, slices)[:, None] % 1  # between two nodes the sd of their mean is less than theirs
    return gain_sd * white / (t**2 + (1 - t) ** 2).sqrt() + single


def ring_pattern(
    shape: Sequence[int],
    stripes: Tensor,
    *,
    centre_px: Sequence[float] = (0.0, 0.0),
    first_angle_deg: float = 0.0,
    window_deg: float = 180.0,
    full_turn: bool = False,
) -> Tensor:
    """What filtered back-projection makes of a sinogram that is the same at every view of a window, and else zero.

    With q the stripes after the ramp filter it is ∫ q(r cos(θ − φ)) dθ over the window, at (r, φ) about the axis: the
    difference of two running integrals over the angle, tabulated for radii a quarter of a pixel apart. A 180° scan
    gives half rings: one end of the detector draws the upper half, the other the lower.

    Args:
        shape: (x, y) of the slices.
        stripes: [grey · pixels] (slices, detectors); the middle of the detectors is the axis.
        centre_px: [pixels] the rotation axis from the middle of the image, along x and y; may lie outside.
        first_angle_deg: [°] where the window begins.
        window_deg: [°] its length, up to 360.
        full_turn: it is part of a scan of 360°, where a view counts half.

    Returns:
        float32 (slices, x, y), to be added to an image.
    """
    device, detectors = stripes.device, stripes.shape[1]
    radius, angle = polar_places(tuple(shape[:2]), tuple(centre_px), device)
    first, last = _ROUND * math.floor(float(radius.min()) / _ROUND), _ROUND * math.ceil(float(radius.max()) / _ROUND)
    circles = circle_places(first, last, detectors, device)
    step = math.pi / circles.shape[1] / (2 if full_turn else 1)
    height = (radius - first) * (2 / (last - first)) - 1
    begin = torch.remainder(math.radians(first_angle_deg) - angle, 2 * math.pi)

    def places(t: Tensor | float) -> Tensor:
        """In the table of t from 0 to π, by radius; a stack of the two takes twice as long."""
        both = torch.empty(*height.shape, 2, device=device)
        both[..., 0], both[..., 1] = t * (2 / math.pi) - 1, height
        return both

    def folded(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """t from 0 to 4π as sign · f + 2π · turns with f from 0 to π: the integrand is even about every π."""
        turns = torch.floor(t / (2 * math.pi) + 0.5)
        t = t - 2 * math.pi * turns
        return places(t.abs()), t.sign(), 2 * turns

    start, start_sign, start_turns = folded(begin)
    end, end_sign, end_turns = folded(begin + math.radians(window_deg))
    half_turn = places(math.pi)

    def pattern(q: Tensor) -> Tensor:
        values = q.index_select(-1, circles.flatten()).unflatten(-1, circles.shape)
        integral = F.pad(torch.cumsum(values, -1), (1, 0))[:, None]  # over θ − φ from 0 to π

        def to(t: Tensor) -> Tensor:
            return F.grid_sample(integral, t.expand(len(q), *t.shape), padding_mode="border", align_corners=True)[:, 0]

        return step * (end_sign * to(end) - start_sign * to(start) + (end_turns - start_turns) * to(half_turn))

    filtered = F.pad(stripes @ ramp_matrix(detectors, device), (1, 1))  # nothing beyond the detector
    finer = F.interpolate(filtered[:, None], FINER * (detectors + 1) + 1, mode="linear", align_corners=True)[:, 0]
    return torch.cat([pattern(q) for q in finer.split(_SLICES)])


def add_rings(image: Tensor, patterns: Tensor) -> Tensor:
    """Add a ring pattern (slices, x, y) to every channel."""
    return image + (patterns[0] if image.ndim == 3 else patterns.movedim(0, -1))


# noise


def reconstruction_noise(image: Tensor, sd: float, seed: int, psf_px: float = 0.0, depth: float = 0.0) -> Tensor:
    """Add noise as filtered back-projection makes it of white noise in the sinogram.

    Its power is k̂²/k · sinc⁴ k, with k̂ the frequency in the samples of the detector: the ramp, by the density of the
    lines of views, and the linear interpolation between detectors; what lies beyond the frequencies of the pixels is
    folded back. Low frequencies have little. The point spread blurs across the slices and along the axis, as that of
    ``data_gen.detector`` does. With ``depth`` it is that of counted photons: the variance at a point is the mean of
    exp(line integral) over the views.

    Args:
        image: see above.
        sd: [grey] standard deviation, root mean square over the image.
        seed: of the noise.
        psf_px: [pixels] full width at half maximum of a Gaussian point spread before the reconstruction.
        depth: −ln of the transmission along the densest line through the image; 0 for a uniform variance.
    """
    white = _white(image, seed)
    if image.ndim == 4 and psf_px:
        white = white @ axis_mixture(image.shape[3], psf_px, image.device)
    white = to_slices(white)
    spectrum = torch.fft.rfft2(white) * noise_gain(tuple(white.shape[1:]), psf_px, image.device)
    noise = from_slices(torch.fft.irfft2(spectrum, s=white.shape[1:]), image)
    if depth:
        scan = SmallScan(image, 32, 32)
        variance = scan.back(torch.exp(depth / scan.largest * scan.lines))
        noise = noise * (variance / variance.mean()).sqrt()
    return image + sd * noise


def grey_noise(image: Tensor, sd: float, seed: int) -> Tensor:
    """Add white noise whose variance is proportional to the grey value, as of counts in the image itself.

    Args:
        image: see above; below 0 there is no noise.
        sd: [grey] standard deviation at grey 1, 1/√(counts there).
        seed: of the noise.
    """
    return image + sd * image.clamp(min=0).sqrt() * _white(image, seed)


# phase contrast, shading


def halo(image: Tensor, alpha: float, fwhm_px: float, inverse: bool = False) -> Tensor:
    """Zernike phase contrast: image − alpha · (Gaussian ∗ image), with mirrored borders, along all axes.

    Args:
        image: see above.
        alpha: share of the low frequencies that is lost, at least 0 and below 1.
        fwhm_px: [pixels] full width at half maximum of the Gaussian.
        inverse: give back the image that became this one, exactly.

    Raises:
        ValueError: an alpha outside its range.
    """
    _check("alpha", alpha, 0 <= alpha < 1, "at least 0 and below 1")
    sigma = fwhm_px / FWHM_PER_SIGMA
    modes, gains = zip(*(cosine_modes(n, sigma, image.device) for n in image.shape[1:]), strict=True)
    gain = gains[0]
    for other in gains[1:]:
        gain = gain[..., None] * other
    low = image
    for axis, mode in enumerate(modes, start=1):
        low = (low.movedim(axis, -1) @ mode).movedim(-1, axis)
    low = low * (alpha * gain / (1 - alpha * gain) if inverse else -alpha * gain)
    for axis, mode in enumerate(modes, start=1):
        low = (low.movedim(axis, -1) @ mode.T).movedim(-1, axis)
    return image + low


def cupping(
    image: Tensor, depth: float, radius_px: float, centre_px: Sequence[float] = (0.0, 0.0), power: float = 0.5,
    inverse: bool = False,
) -> Tensor:  # fmt: skip
    """Multiply by 1 − depth · (1 − ρ²)^power within a cylinder, ρ = r / radius.

    Beam hardening takes terms in L² and L³ from the line integrals L of a uniform cylinder. By Abel's transform the
    square reconstructs to √(1 − ρ²), the cube to 1 − ρ².

    Args:
        image: see above.
        depth: share of the grey value that is lost on the axis, below 1; negative for capping.
        radius_px: [pixels] of the sample.
        centre_px: [pixels] its axis from the middle of the image, along x and y.
        power: 0.5 for weak hardening, 1 for the next term.
        inverse: divide instead.

    Raises:
        ValueError: a depth of 1 or more.
    """
    _check("depth", depth, depth < 1, "below 1")
    radius, _ = polar_places(tuple(image.shape[1:3]), tuple(centre_px), image.device)
    field = 1 - depth * (1 - (radius / radius_px) ** 2).clamp(min=0) ** power
    field = field if image.ndim == 3 else field[..., None]
    return image / field if inverse else image * field


def local_tomography(
    image: Tensor, strength: float, radius_px: float, centre_px: Sequence[float] = (0.0, 0.0), outer: float = 1.5
) -> Tensor:
    """Add the bright rim of a sample that sticks out of the field of view.

    A constant line integral P between the field's radius a and the sample's, R, that is cut off adds (P/π)
    (1/√(a² − r²) − 1/√(R² − r²)): the ramp's −1/(2π²u²) integrated over the cut part, then over the views.

    Args:
        image: see above.
        strength: [grey] P/(πa).
        radius_px: [pixels] a; the last pixel before it has the highest value, beyond it stays.
        centre_px: [pixels] axis from the middle of the image, along x and y.
        outer: R/a, above 1.

    Raises:
        ValueError: a sample no larger than the field.
    """
    _check("outer", outer, outer > 1, "above 1")
    radius, _ = polar_places(tuple(image.shape[1:3]), tuple(centre_px), image.device)
    inside = (radius / radius_px).clamp(max=1 - 1 / radius_px) ** 2
    rim = strength * ((1 - inside).rsqrt() - (outer**2 - inside).rsqrt())
    return image + (rim if image.ndim == 3 else rim[..., None])


def harden(image: Tensor, strength: float) -> Tensor:
    """Beam hardening: every line integral p becomes p (1 − strength · p / largest).

    Cupping, and dark bands between dense particles. The change is smooth, so it is made in a coarse sinogram; edges get
    the mean change of slope, dp'/dp − 1, of the lines through them.

    Args:
        image: see above; air beyond its border.
        strength: share that the densest line loses, 0 to 0.5.

    Raises:
        ValueError: a strength outside its range; above 0.5 a denser line would count less.
    """
    _check("strength", strength, 0 <= strength <= 0.5, "in [0, 0.5]")
    return _through_sinogram(image, lambda p, top, _: (-strength * p**2 / top, -2 * strength * p / top))


def scatter(image: Tensor, fraction: float, depth: float, fwhm_px: float) -> Tensor:
    """Scattered radiation in the object: the transmission T becomes T + fraction · G ∗ (−T ln T).

    The model of ``data_gen.artifacts.Scatter``, in a coarse sinogram as in ``harden``.

    Args:
        image: see above; air beyond its border.
        fraction: of the attenuated radiation, at least 0.
        depth: −ln of the transmission along the densest line, above 0.
        fwhm_px: [pixels] full width at half maximum of G along the detector.

    Raises:
        ValueError: a fraction or a depth outside its range.
    """
    _check("fraction", fraction, fraction >= 0, "at least 0")
    _check("depth", depth, depth > 0, "above 0")

    def change(p: Tensor, top: Tensor, step: int) -> tuple[Tensor, Tensor]:
        optical = depth / top * p
        transmission = torch.exp(-optical)
        modes, gain = cosine_modes(p.shape[-1], fwhm_px / step / FWHM_PER_SIGMA, image.device)
        scattered = fraction * ((transmission * optical) @ modes * gain @ modes.T)
        return -torch.log1p(scattered / transmission) * top / depth, -scattered / (transmission + scattered)

    return _through_sinogram(image, change)


def _through_sinogram(image: Tensor, change: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]) -> Tensor:
    """What a change of the line integrals makes of the image, smooth but for the edges that there are.

    change: (line integrals, their largest, pixels in a small pixel) → (what is added to each, change of the slope).
    """
    scan = SmallScan(image)
    added, slope = change(scan.lines, scan.largest, scan.step)
    edges = image - scan.enlarged(scan.slices)
    return image + scan.reconstruct(added) + scan.back(slope) * edges


# single events


def streaks(
    image: Tensor,
    angles_deg: Sequence[float],
    offsets_px: Sequence[float],
    heights: Sequence[float],
    slices: Sequence[int] | None = None,
) -> Tensor:
    """Lines through the image from single readings that are wrong, such as a zinger in one pixel of one view.

    The profile of each is the kernel of the ramp, interpolated linearly: a ridge of one pixel between two trenches.

    Args:
        image: see above.
        angles_deg: [°] of the view of each.
        offsets_px: [pixels] along its detector, from the middle of the image.
        heights: [grey] of each ridge. A stray particle adds to the signal, which makes it negative.
        slices: of a volume, the one in which each streak lies; None: in all of them.
    """
    shape = tuple(image.shape[1:3])
    rows, columns = pixel_axes(shape, image.device)
    total = torch.zeros(image.shape[1:], device=image.device)
    for k, (angle, offset, height) in enumerate(zip(angles_deg, offsets_px, heights, strict=True)):
        across = math.cos(math.radians(angle)) * columns - (math.sin(math.radians(angle)) * rows + offset)
        kernel = (4 * height) * ramp_kernel(2 + math.ceil(math.hypot(*shape) / 2 + abs(offset))).to(image.device)
        streak = lookup(kernel, *places_between(across.abs(), len(kernel)))
        if image.ndim == 3:
            total += streak
        elif slices is None:
            total += streak[..., None]
        else:
            total[..., slices[k]] += streak
    return image + total


def dots(image: Tensor, share: float, height: float, seed: int) -> Tensor:
    """Add bright dots to single voxels, as of stray particles on the detector of a scan without tomography.

    Args:
        image: see above.
        share: of the voxels, 0 to 1.
        height: [grey] mean of their exponential distribution.
        seed: of the pattern.

    Raises:
        ValueError: a share outside its range.
    """
    _check("share", share, 0 <= share <= 1, "in [0, 1]")
    generator = torch.Generator(image.device).manual_seed(seed)
    count = round(share * image.numel())
    places = torch.randint(image.numel(), (count,), generator=generator, device=image.device)
    heights = -height * torch.log(torch.rand(count, generator=generator, device=image.device).clamp(min=1e-6))
    return image.flatten().index_add(0, places, heights).reshape(image.shape)


def invert_intensity(image: Tensor) -> Tensor:
    """1 − image: what was bright is dark. Its own inverse."""
    return 1 - image


def _check(name: str, value: float, good: bool, rule: str) -> None:
    if not good:
        raise ValueError(f"{name}={value!r} must be {rule}")


def _white(image: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(image.device).manual_seed(seed)
    return torch.randn(image.shape, generator=generator, device=image.device)
