"""Artefacts against closed forms."""

import json

import numpy as np
import pytest

from data_gen.artifacts import (
    SIGNAL_FLOOR,
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
    exposure,
    fresnel_number,
    move,
    propagate,
    trajectory,
)
from data_gen.geometry import Views

EPS = float(np.finfo(np.float32).eps)
FWHM = np.sqrt(8 * np.log(2))  # by σ


def drawn(recipe, seed=0):
    return recipe.draw(np.random.default_rng(seed))


def still(n=360, range_deg=180.0):
    return Views(np.deg2rad(range_deg) * np.arange(n) / n, np.full(n, 0.25), np.full(n, 1.5))


def field(shape=(40, 64), seed=1):
    return np.random.default_rng(seed).uniform(0.2, 0.9, shape).astype(np.float32)


def gaussian(shape, sigma):
    """exp(−r²/2σ²) over the axes after the first, and r² along each of them."""
    squares = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) ** 2 for n in shape[1:]], indexing="ij")
    bump = np.exp(-sum(squares) / (2 * sigma**2))
    return np.broadcast_to(bump, shape), squares


def halo(sinogram, decrement_cm, parameters, **out):
    return add_halo(sinogram, parameters, **out)


def scatter(signal, decrement_cm, parameters, **out):
    return add_scatter(signal, parameters, **out)


def stripes(signal, decrement_cm, parameters, **out):
    return add_stripes(signal, parameters, **out)


def drift(signal, decrement_cm, parameters, **out):
    return drift_exposure(signal, parameters, **out)


def tie(signal, decrement_cm, parameters, **out):
    return propagate(signal, decrement_cm, parameters, voxel_size_um=1.0, **out)


ALL_STRIPES = Stripes(
    gain_sd=0.01,
    full_share=0.1,
    partial_share=0.1,
    drifting_share=0.1,
    fluctuating_share=0.1,
    offset_share=0.1,
    unresponsive_share=0.1,
)
ARTEFACTS = [  # function, switched on, switched off
    (stripes, ALL_STRIPES, Stripes()),
    (stripes, ALL_STRIPES, Stripes(full_share=0.5, partial_share=1, error_sd=0, offset_share=1, offset_sd=0)),
    (scatter, Scatter(0.1, 20), Scatter(0)),
    (scatter, Scatter(0.1, 20, "glare"), Scatter(0, source="glare")),
    (drift, ExposureDrift(0.1, 0.1, 3), ExposureDrift(n_top_ups=3)),
    (tie, Propagation(10), Propagation(0)),
    (halo, Zernike(0.5, 10), Zernike(0)),
]


# laws of every artefact


@pytest.mark.parametrize("shape", [(9, 31), (9, 31, 6)])
@pytest.mark.parametrize(("apply", "on", "off"), ARTEFACTS)
def test_same_parameters_same_bytes_and_the_input_stays(apply, on, off, shape):
    signal, decrement = field(shape), field(shape, 2) * np.float32(1e-9)
    kept = signal.copy()
    parameters = json.loads(json.dumps(drawn(on)))  # plain JSON values reproduce everything
    assert parameters == drawn(on)
    first = apply(signal, decrement, parameters)
    np.testing.assert_array_equal(signal, kept)
    assert first.dtype == np.float32 and first.shape == shape and not np.array_equal(first, signal)
    assert first.tobytes() == apply(signal, decrement, parameters).tobytes()
    assert apply(signal, decrement, parameters, out=signal) is signal
    assert first.tobytes() == signal.tobytes()


@pytest.mark.parametrize(("apply", "on", "off"), ARTEFACTS)
def test_what_is_off_changes_no_byte(apply, on, off):
    signal = field()
    signal[0, :2] = 0, -0.0
    kept = signal.tobytes()
    assert apply(signal, signal, drawn(off)) is signal
    other = np.empty_like(signal)
    assert apply(signal, signal, drawn(off), out=other) is other
    assert other.tobytes() == signal.tobytes() == kept


@pytest.mark.parametrize(("apply", "on", "off"), ARTEFACTS)
def test_arrays_of_another_kind_are_refused(apply, on, off):
    signal = field()
    for bad, out in ((signal.astype(float), None), (signal[0], None), (signal, signal[:-1]), (signal, signal > 0)):
        with pytest.raises(ValueError, match="must be") as caught:
            apply(bad, bad, drawn(on), out=out)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("apply", "on", "off"), ARTEFACTS)
def test_a_stack_of_one_slice_is_a_slice(apply, on, off):
    signal, decrement = field(), field(seed=2) * np.float32(1e-9)
    parameters = drawn(on)
    flat = apply(signal, decrement, parameters)
    stack = apply(signal[..., None], decrement[..., None], parameters)[..., 0]
    np.testing.assert_allclose(stack, flat, rtol=64 * EPS)  # BLAS may sum the 64 pixels in another order


@pytest.mark.parametrize(
    ("recipe", "arguments", "names"),
    [
        (Motion, {"drift_px": -1}, "drift_px=-1"),
        (Motion, {"jitter_px": "1"}, "jitter_px='1'"),
        (Motion, {"jump_px": [3, 1]}, "jump_px="),
        (Motion, {"n_jumps": 1.5}, "n_jumps=1.5"),
        (Motion, {"n_jumps": [1, 2, 3]}, "n_jumps="),
        (Motion, {"n_jumps": -1}, "n_jumps=-1"),
        (Motion, {"n_jumps": True}, "n_jumps=True"),
        (Motion, {"rotation_drift_deg": 90}, "rotation_drift_deg=90"),
        (Motion, {"rotation_jitter_deg": -1}, "rotation_jitter_deg=-1"),
        (Motion, {"growth": -1}, "growth=-1"),
        (Motion, {"growth_profile": "cubic"}, "growth_profile='cubic'.*sigmoid, linear"),
        (Motion, {"growth_centre": 2}, "growth_centre=2"),
        *((Stripes, {name: -0.1}, f"{name}=-0.1") for name in Stripes.__dataclass_fields__),
        (Stripes, {"full_share": float("nan")}, "full_share=nan"),
        (Scatter, {"fraction": -0.1}, "fraction=-0.1"),
        (Scatter, {"fwhm_px": None}, "fwhm_px=None"),
        (Scatter, {"source": "air"}, "source='air'.*object, glare"),
        (ExposureDrift, {"walk_sd": 2}, "walk_sd=2"),
        (ExposureDrift, {"decay": 1}, "decay=1"),
        (ExposureDrift, {"n_top_ups": 0.5}, "n_top_ups=0.5"),
        (Propagation, {"distance_mm": -1}, "distance_mm=-1"),
        (Zernike, {"alpha": 1.1}, "alpha=1.1"),
        (Zernike, {"fwhm_px": -1}, "fwhm_px=-1"),
    ],
)
def test_bad_arguments_get_one_line(recipe, arguments, names):
    with pytest.raises(ValueError, match=names) as caught:
        recipe(**arguments)
    assert "\n" not in str(caught.value)


def test_ranges_are_drawn_and_counts_are_integers():
    recipe = Motion(drift_px=[1, 3], n_jumps=[0, 2], jump_px=2)
    samples = [drawn(recipe, seed) for seed in range(100)]
    assert all(1 <= p["drift_px"] <= 3 and p["jump_px"] == 2 for p in samples)
    assert {p["n_jumps"] for p in samples} == {0, 1, 2} and type(samples[0]["n_jumps"]) is int
    assert len({p["seed"] for p in samples}) == 100


# motion

ALL_MOTION = Motion(
    drift_px=5,
    jitter_px=0.5,
    jump_px=3,
    n_jumps=4,
    rotation_drift_deg=-0.4,
    rotation_jitter_deg=0.1,
    growth=0.05,
)


@pytest.mark.parametrize("profile", ["sigmoid", "linear"])
@pytest.mark.parametrize("n", [5, 361])
def test_every_trajectory_has_zero_mean(n, profile):
    poses = trajectory(n, drawn(ALL_MOTION) | {"growth_profile": profile})
    for values in (*poses.position_px, poses.shift_px, poses.rotation_rad, poses.log_scale):
        assert values.shape == (n,) and np.abs(values).max() > 0
        # rounding of a mean of n float64 numbers
        assert abs(values.mean()) < n * np.finfo(float).eps * np.abs(values).max()


def test_a_still_object_keeps_its_views_and_motion_its_bytes():
    views = still()
    assert move(views, drawn(Motion(n_jumps=3))) is views
    first, second = (move(views, drawn(ALL_MOTION)) for _ in range(2))
    for name in ("angles_rad", "shift_px", "scale"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
        assert getattr(first, name).dtype == np.float64
    assert not np.array_equal(first.shift_px, move(views, drawn(ALL_MOTION, 1)).shift_px)


def test_a_drift_is_a_straight_path_of_its_length():
    parameters = drawn(Motion(drift_px=7))
    x, y = trajectory(100, parameters).position_px
    assert np.hypot(x[-1] - x[0], y[-1] - y[0]) == pytest.approx(7, rel=1e-12)
    np.testing.assert_allclose(np.hypot(np.diff(x), np.diff(y)), 7 / 99, rtol=1e-9)
    angle = np.arctan2(y[-1] - y[0], x[-1] - x[0])
    assert np.cos(angle - np.deg2rad(parameters["drift_direction_deg"])) == pytest.approx(1, abs=1e-12)


def test_a_position_shifts_the_view_by_its_projection():
    views = still()
    parameters = drawn(Motion(drift_px=7, jump_px=2, n_jumps=3))
    x, y = trajectory(360, parameters).position_px
    moved = move(views, parameters)
    shown = shown_at(views, x * np.cos(views.angles_rad) + y * np.sin(views.angles_rad))
    x, y = x - shown[0], y - shown[1]
    expected = 0.25 + x * np.cos(views.angles_rad) + y * np.sin(views.angles_rad)
    np.testing.assert_allclose(moved.shift_px, expected, atol=1e-12)
    np.testing.assert_array_equal(moved.angles_rad, views.angles_rad)
    np.testing.assert_array_equal(moved.scale, views.scale)


def shown_at(views, shift_px):
    """Where an object at rest would have to be for such shifts, by least squares."""
    model = np.stack([np.cos(views.angles_rad), np.sin(views.angles_rad)], 1)
    return np.linalg.solve(model.T @ model, model.T @ shift_px)


@pytest.mark.parametrize(("range_deg", "displaced"), [(180, 1 / (2 * np.pi)), (360, 1 / (4 * np.pi))])
@pytest.mark.parametrize("direction", [0, 40, 90])
def test_the_scan_shows_the_object_at_the_pose_of_its_label(range_deg, displaced, direction):
    n, d = 720, 8.0
    views = still(n, range_deg)
    parameters = drawn(Motion(drift_px=d)) | {"drift_direction_deg": float(direction)}
    shift = move(views, parameters).shift_px - 0.25
    assert np.hypot(*shown_at(views, shift)) < 1e-12
    x, y = trajectory(n, parameters).position_px
    mean_over_time = shown_at(views, shift - x * np.cos(views.angles_rad) - y * np.sin(views.angles_rad))
    # ∫ t sin θ cos θ dt over the scan by ∫ sin² θ dt; as a sum over n views it errs by the order of d/n
    assert np.hypot(*mean_over_time) == pytest.approx(displaced * d, abs=2 * d / n)


def test_jumps_have_their_number_and_length():
    x, y = trajectory(50, drawn(Motion(jump_px=3, n_jumps=4))).position_px
    steps = np.hypot(np.diff(x), np.diff(y))
    at = steps > 1e-9
    assert at.sum() == 4
    np.testing.assert_allclose(steps[at], 3, rtol=1e-12)
    for seed in range(3):  # every view but the first can see a jump, and there is no jump before the first
        every = np.diff(trajectory(5, drawn(Motion(jump_px=3, n_jumps=4), seed)).position_px)
        np.testing.assert_allclose(np.hypot(*every), 3, rtol=1e-12)
    with pytest.raises(ValueError, match=r"n_jumps=5 .*5 views"):
        trajectory(5, drawn(Motion(jump_px=3, n_jumps=5)))


def test_jitter_and_rotation_error_are_white_with_their_sd():
    n = 4000
    poses = trajectory(n, drawn(Motion(jitter_px=0.7, rotation_jitter_deg=0.2)))
    for values, sd in ((poses.shift_px, 0.7), (np.rad2deg(poses.rotation_rad), 0.2)):
        assert values.std() == pytest.approx(sd, rel=4 / np.sqrt(2 * n))  # four standard errors of an sd
        assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 4 / np.sqrt(n)
    assert abs(np.corrcoef(poses.shift_px, poses.rotation_rad)[0, 1]) < 4 / np.sqrt(n)


def test_rotation_drift_is_linear_from_end_to_end():
    views = still(100)
    error = np.rad2deg(move(views, drawn(Motion(rotation_drift_deg=-0.6))).angles_rad - views.angles_rad)
    assert error[-1] - error[0] == pytest.approx(-0.6, abs=1e-12)
    np.testing.assert_allclose(np.diff(error), -0.6 / 99, atol=1e-12)


@pytest.mark.parametrize("growth", [0.08, -0.2])
@pytest.mark.parametrize("profile", ["sigmoid", "linear"])
def test_growth_is_last_size_by_first_with_a_geometric_mean_of_one(growth, profile):
    views = still(201)
    p = drawn(Motion(growth=growth, growth_profile=profile))
    scale = move(views, p).scale / 1.5
    assert scale[-1] / scale[0] == pytest.approx(1 + growth, rel=1e-12)
    assert np.log(scale).mean() == pytest.approx(0, abs=1e-14)
    steps = np.diff(np.log(scale))
    assert (steps * growth > 0).all()
    if profile == "linear":
        np.testing.assert_allclose(steps, np.log1p(growth) / 200, rtol=1e-9)
    else:
        # half way at the middle; a tenth to nine tenths take 2 ln 9 widths of 5 % of the scan: 44 views
        share = (np.log(scale) - np.log(scale[0])) / np.log1p(growth)
        assert share[100] == pytest.approx(0.5, abs=1e-12)
        assert ((share > 0.1) & (share < 0.9)).sum() == pytest.approx(2 * np.log(9) * 0.05 * 200, abs=1)


def test_the_parts_of_a_motion_do_not_disturb_each_other():
    whole = trajectory(60, drawn(ALL_MOTION))
    one = trajectory(60, drawn(ALL_MOTION) | {"drift_px": 0.0, "jump_px": 0.0, "rotation_drift_deg": 0.0})
    np.testing.assert_array_equal(whole.shift_px, one.shift_px)


# stripes


def log_gain(signal, parameters):
    """ln of what the signal was multiplied by; its error is a few roundings of a float32."""
    return np.log(add_stripes(signal, parameters).astype(float) / signal)


@pytest.mark.parametrize("shape", [(30, 200), (30, 50, 8)])
def test_a_full_stripe_adds_a_constant_to_the_sinogram_in_its_share_of_pixels(shape):
    added = -log_gain(field(shape), drawn(Stripes(full_share=0.05, error_sd=0.2)))
    np.testing.assert_allclose(added, np.broadcast_to(added[0], shape), atol=2 * EPS)
    hit = np.abs(added[0]) > 2 * EPS
    assert hit.sum() == round(0.05 * hit.size)
    np.testing.assert_array_equal(added[:, ~hit], 0)


def test_a_full_stripe_is_exactly_the_gain_times_the_signal():
    parameters = drawn(Stripes(full_share=0.05, error_sd=0.2))
    gain = add_stripes(np.ones((1, 200), np.float32), parameters)
    signal = field((30, 200))
    np.testing.assert_array_equal(add_stripes(signal, parameters), signal * gain)


def test_the_white_gain_error_has_its_sd_in_every_pixel():
    n = 20000
    errors = log_gain(field((2, n)), drawn(Stripes(gain_sd=0.03)))
    np.testing.assert_allclose(errors[0], errors[1], atol=2 * EPS)
    assert errors[0].std() == pytest.approx(0.03, rel=4 / np.sqrt(2 * n))
    assert abs(errors[0].mean()) < 4 * 0.03 / np.sqrt(n)


def test_the_error_of_a_stripe_has_its_sd():
    errors = log_gain(field((1, 20000)), drawn(Stripes(full_share=0.5, error_sd=0.1)))[0]
    assert errors[errors != 0].std() == pytest.approx(0.1, rel=4 / np.sqrt(2 * 10000))


def test_a_partial_stripe_is_limited_to_its_views():
    signal = field((100, 300))
    errors = log_gain(signal, drawn(Stripes(partial_share=0.1, partial_length=0.3, error_sd=0.5)))
    stripes_ = errors[:, (errors != 0).any(0)].T
    assert len(stripes_) == 30
    starts = set()
    for stripe in stripes_:
        views = np.flatnonzero(stripe)
        assert len(views) == 30 and views[-1] - views[0] == 29
        np.testing.assert_allclose(stripe[views], stripe[views[0]], atol=3 * EPS)
        starts.add(views[0])
    assert len(starts) > 10


def test_a_drifting_stripe_is_a_straight_line_of_zero_mean():
    errors = log_gain(field((101, 300)), drawn(Stripes(drifting_share=0.1, error_sd=0.5)))
    lines = errors[:, (errors != 0).any(0)]
    assert lines.shape[1] == 30
    slope = lines[-1] - lines[0]
    np.testing.assert_allclose(lines, np.linspace(-0.5, 0.5, 101)[:, None] * slope, atol=4 * EPS)


def test_a_fluctuating_stripe_is_white_over_the_views():
    n = 2000
    errors = log_gain(field((n, 20)), drawn(Stripes(fluctuating_share=0.1, error_sd=0.2)))
    one, other = errors[:, (errors != 0).any(0)].T
    for values in (one, other):
        assert values.std() == pytest.approx(0.2, rel=4 / np.sqrt(2 * n))
        assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 4 / np.sqrt(n)
    assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(n)


def test_an_offset_adds_to_the_signal_and_never_below_the_floor():
    parameters = drawn(Stripes(offset_share=0.2, offset_sd=0.05))
    signal = field((20, 500))  # at least 0.2: four sd
    added = add_stripes(signal, parameters).astype(float) - signal
    np.testing.assert_allclose(added, np.broadcast_to(added[0], added.shape), atol=2 * EPS)
    assert (np.abs(added[0]) > 2 * EPS).sum() == 100
    dark = add_stripes(np.full((20, 500), 1e-3, np.float32), parameters)
    assert dark.min() == np.float32(SIGNAL_FLOOR)


def test_an_unresponsive_pixel_does_not_see_the_object():
    parameters = drawn(Stripes(unresponsive_share=0.04))
    first, second = (add_stripes(field((20, 500), seed), parameters) for seed in (1, 2))
    stuck = first[0] == second[0]
    assert stuck.sum() == 20 and first[:, stuck].min() >= 0.1 and first.max() <= 1
    np.testing.assert_array_equal(first[:, stuck], np.broadcast_to(first[0, stuck], (20, 20)))
    np.testing.assert_array_equal(first[:, ~stuck], field((20, 500), 1)[:, ~stuck])


def test_a_kind_that_is_switched_on_does_not_move_the_others():
    signal = field()
    full = drawn(Stripes(full_share=0.1))
    both = full | {"partial_share": 0.1}
    only = both | {"full_share": 0.0}
    np.testing.assert_allclose(log_gain(signal, both), log_gain(signal, full) + log_gain(signal, only), atol=6 * EPS)


# scatter


@pytest.mark.parametrize(("shape", "fwhm"), [((2, 90), 40), ((2, 90, 30), 40), ((2, 90, 30), 1000), ((2, 90), 0)])
def test_scatter_keeps_a_uniform_field_uniform(shape, fwhm):
    signal = np.full(shape, np.exp(-1.5), np.float32)
    added = add_scatter(signal, {"fraction": 0.2, "fwhm_px": fwhm, "source": "object"})
    # scatter by primary is fraction · depth; sums of up to 90 · 30 float32 terms, whose errors add as a random walk
    tolerance = 4 * np.sqrt(90 * 30) * EPS
    np.testing.assert_allclose(added, np.exp(-1.5) * (1 + 0.2 * 1.5), rtol=tolerance)
    glare = add_scatter(signal, {"fraction": 0.2, "fwhm_px": fwhm, "source": "glare"})
    np.testing.assert_allclose(glare, np.exp(-1.5), rtol=tolerance)


def test_without_an_object_there_is_no_scatter():
    air = np.ones((3, 50, 4), np.float32)
    np.testing.assert_array_equal(add_scatter(air, drawn(Scatter(0.5, 30))), air)
    dark = np.zeros((3, 50, 4), np.float32)
    np.testing.assert_array_equal(add_scatter(dark, drawn(Scatter(0.5, 30))), dark)


@pytest.mark.parametrize("fwhm", [8.0, 60.0, 4000.0])
def test_scatter_reduces_contrast(fwhm):
    n, mode, depth, fraction, contrast = 240, 12, 2.0, 0.3, 1e-3
    wave_number = np.pi * mode / n  # a wave that the mirror at the edges continues
    wave = np.cos(wave_number * (np.arange(n) + 0.5))
    mean = np.exp(-depth)
    signal = (mean * (1 + contrast * wave)).astype(np.float32)[None]

    def amplitude(values):
        values = values[0].astype(float)
        return 2 / n * (values / values.mean() - 1) @ wave

    passed = np.exp(-((fwhm / FWHM * wave_number) ** 2) / 2)
    parameters = {"fraction": fraction, "fwhm_px": fwhm}
    # the source −T ln T has the slope depth − 1, and a curvature that adds contrast² only; float32 adds EPS of noise
    tolerance = contrast**2 + 4 * EPS
    seen = amplitude(add_scatter(signal, parameters | {"source": "object"}))
    expected = contrast * (1 + fraction * passed * (depth - 1)) / (1 + fraction * depth)
    assert seen == pytest.approx(expected, abs=tolerance)
    seen = amplitude(add_scatter(signal, parameters | {"source": "glare"}))
    assert seen == pytest.approx(contrast * (1 + fraction * passed) / (1 + fraction), abs=tolerance)


def test_scatter_fills_the_shadow_and_lightens_the_air_beside_it():
    signal = np.ones((1, 200), np.float32)
    signal[:, 80:120] = np.exp(-4)
    seen = add_scatter(signal, drawn(Scatter(0.1, 60)))[0]
    assert seen[60] > 1 and seen[60] > seen[0] and seen[100] > signal[0, 100]
    assert -np.log(seen[100]) < 4


# exposure


def test_exposure_decays_and_is_topped_up():
    parameters = drawn(ExposureDrift(decay=0.2, n_top_ups=3))
    factors = exposure(400, parameters)
    np.testing.assert_allclose(factors, np.tile(1 - 0.2 * np.arange(100) / 100, 4), atol=1e-14)
    signal = field((400, 7, 2))
    np.testing.assert_allclose(drift_exposure(signal, parameters), signal * factors[:, None, None], rtol=2 * EPS)


def test_the_random_walk_starts_at_one_and_spreads_to_its_sd():
    n = 2000
    ends = np.array([np.log(exposure(50, drawn(ExposureDrift(walk_sd=0.1), seed))) for seed in range(n)])
    np.testing.assert_array_equal(ends[:, 0], 0)
    assert ends[:, -1].std() == pytest.approx(0.1, rel=4 / np.sqrt(2 * n))
    assert ends[:, 24].std() == pytest.approx(0.1 * np.sqrt(24 / 49), rel=4 / np.sqrt(2 * n))


def test_one_view_is_the_flat_fields_own():
    assert exposure(1, drawn(ExposureDrift(0.1, 0.1, 2))).tolist() == [1.0]


# propagation


@pytest.mark.parametrize("shape", [(2, 81), (2, 81, 71)])
@pytest.mark.parametrize("magnification", [1.0, 4.0])
def test_tie_of_a_gaussian_phase_object(shape, magnification):
    sigma, peak_cm, voxel_um, distance_mm, flat = 6.0, 1e-8, 0.5, 20.0, 0.7
    bump, squares = gaussian(shape, sigma)
    signal = np.full(shape, flat, np.float32)
    seen = propagate(signal, (peak_cm * bump).astype(np.float32), {"distance_mm": distance_mm}, voxel_um, magnification)
    strength = distance_mm * 0.1 / magnification / (voxel_um * 1e-4) ** 2 * peak_cm
    laplacian = sum(s / sigma**4 - 1 / sigma**2 for s in squares) * bump
    assert strength / sigma**2 > 0.005  # there is something to see
    # h²/12 times the fourth derivative, 3/σ⁴ at most, of the second differences along each axis; and float32: rounding
    # of the path, which the second difference multiplies by 4 and the strength, and of the result
    axes = len(squares)
    tolerance = axes * (3 / sigma**4 / 12 + 4 * EPS) * strength + EPS
    np.testing.assert_allclose(seen / flat, 1 + strength * laplacian, atol=tolerance)
    centre = tuple(n // 2 for n in shape[1:])
    assert (seen[(0, *centre)] < flat).all()  # the refractive index is below 1: a convex object spreads the light


def test_tie_of_one_material_is_the_filter_that_paganin_inverts():
    # I = (1 − R (δ/µ) ∇²) exp(−µT), Paganin et al., J. Microsc. 206, 33 (2002), Eq. 7
    sigma, depth, strength = 12.0, 1.2, 5.0  # strength: R (δ/µ) / h²
    bump, (x2,) = gaussian((1, 141), sigma)
    u = depth * bump  # µT
    decrement_cm = (u * strength * 1e-8).astype(np.float32)  # R = 1 cm, h = 1 µm
    seen = propagate(np.exp(-u).astype(np.float32), decrement_cm, {"distance_mm": 10.0}, 1.0)
    slope2, curvature = u**2 * x2 / sigma**4, u * (x2 / sigma**4 - 1 / sigma**2)  # u′² and u″
    expected = np.exp(-u) * (1 - strength * (slope2 - curvature))
    # A face takes the mean of two intensities and the difference of two paths: by Taylor the sum of the fluxes errs by
    # h² [(I″u′)′/8 + (I u‴)′/24 + I⁗/24], with |u^(n)| ≤ 1.2 · (0.61, 1, 1.38, 3)/σⁿ at most (0.69 + 0.20 + 0.70)/σ⁴.
    # Rounding: of the path, which the second difference multiplies by 4, and of the intensities.
    tolerance = strength * (1.6 / sigma**4 + 4 * depth * EPS) + 2 * EPS
    np.testing.assert_allclose(seen, expected, atol=tolerance)


@pytest.mark.parametrize("shape", [(3, 64), (3, 64, 20)])
def test_fringes_keep_the_total_intensity(shape):
    signal = field(shape)
    decrement = np.zeros(shape, np.float32)
    decrement[:, 20:40] = 1e-9  # a sharp edge
    seen = tie(signal, decrement, {"distance_mm": 10.0})
    assert np.abs(seen - signal).max() > 0.05
    sums = (
        seen.sum(axis=tuple(range(1, seen.ndim)), dtype=float),
        signal.sum(axis=tuple(range(1, seen.ndim)), dtype=float),
    )
    np.testing.assert_allclose(*sums, rtol=4 * EPS)  # each pixel is rounded a few times


def test_an_edge_is_dark_inside_and_bright_outside():
    signal = np.ones((1, 40), np.float32)
    decrement = np.zeros_like(signal)
    decrement[:, 20:] = 1e-9
    seen = tie(signal, decrement, {"distance_mm": 10.0})[0]
    np.testing.assert_allclose(seen[[18, 19, 20, 21]], [1, 1.1, 0.9, 1], atol=2 * EPS)  # R Δ / h² = 1 · 1e-9 / 1e-8


def test_a_distance_that_leaves_no_intensity_is_refused_with_the_largest_valid_one():
    signal = np.full((2, 40), 0.5, np.float32)
    decrement = np.zeros_like(signal)
    decrement[1, 20:] = 1e-9
    with pytest.raises(ValueError, match=r"distance_mm=150 .*nearest valid: below 100$") as caught:
        tie(signal, decrement, {"distance_mm": 150.0})
    assert "\n" not in str(caught.value)
    assert tie(signal, decrement, {"distance_mm": 99.0}).min() > 0


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"decrement_cm": np.zeros((2, 5), np.float32)}, "decrement_cm"),
        ({"voxel_size_um": 0}, "voxel_size_um=0"),
        ({"magnification": 0.5}, "magnification=0.5"),
    ],
)
def test_bad_arguments_of_propagation(arguments, names):
    good = {"signal": field((2, 6)), "decrement_cm": field((2, 6)), "parameters": {"distance_mm": 1.0}}
    with pytest.raises(ValueError, match=names):
        propagate(**{**good, "voxel_size_um": 1.0, **arguments})


def test_the_fresnel_number():
    # 12.398 keV is 1 Å: (1 µm)² / (1e-4 µm · 10 mm) = 1
    assert fresnel_number(12.398419843, 1.0, 10.0) == pytest.approx(1, rel=1e-9)
    assert fresnel_number(12.398419843, 1.0, 10.0, magnification=3, feature_px=2) == pytest.approx(12, rel=1e-9)
    with pytest.raises(ValueError, match="distance_mm=0"):
        fresnel_number(10, 1, 0)


# Zernike


@pytest.mark.parametrize("shape", [(2, 161), (2, 161, 141)])
@pytest.mark.parametrize("fwhm", [5.0, 25.0])
def test_the_halo_of_a_gaussian(shape, fwhm):
    width, alpha = 5.0, 0.6
    bump, squares = gaussian(shape, width)
    wide = np.hypot(width, fwhm / FWHM)
    blurred = (width / wide) ** len(squares) * np.exp(-sum(squares) / (2 * wide**2))
    seen = add_halo(bump.astype(np.float32), {"alpha": alpha, "fwhm_px": fwhm})
    # the mirror returns what the Gaussian has beyond the nearest edge; sums of 161 · 141 float32 terms
    mirrored = 2 * len(squares) * np.exp(-((min(shape[1:]) / 2) ** 2) / (2 * wide**2))
    np.testing.assert_allclose(seen, bump - alpha * blurred, atol=mirrored + 4 * np.sqrt(161 + 141) * EPS)
    if fwhm > 20:
        assert seen[0].min() < -0.01  # the halo


def test_a_wide_object_fades_to_what_is_left_of_it():
    uniform = np.full((2, 300, 20), 2.0, np.float32)
    seen = add_halo(uniform, drawn(Zernike(0.4, 15)))
    np.testing.assert_allclose(seen, 2.0 * (1 - 0.4), rtol=4 * np.sqrt(300 * 20) * EPS)


def test_a_halo_of_no_width_scales():
    signal = field()
    np.testing.assert_allclose(add_halo(signal, {"alpha": 0.25, "fwhm_px": 0.0}), 0.75 * signal, rtol=64 * EPS)
