"""Perturbed interfaces: how far a plane and a sphere move, that nothing moves without need, and what comes of it."""

from functools import partial

import numpy as np
import pytest

from bundle.uncertainty import (
    FWHM_PER_SD,
    correlated_field,
    interface,
    interface_displacement,
    perturb_interface,
    perturb_to_width,
    property_distribution,
    restore_fractions,
    shift_interface,
    signed_distance,
    signed_distances,
    volume_drift,
)


def plane(shape=(64, 96, 96)):
    labels = np.zeros(shape, np.uint8)
    labels[: shape[0] // 2] = 1
    return labels


def ball(edge=64, radius=20.0, shift=0.0, ndim=3):
    x = np.stack(np.meshgrid(*[np.arange(edge) + 0.5] * ndim, indexing="ij"))
    centre = edge / 2 + np.array([0.13, 0.29, 0.41][:ndim])  # off every symmetry of the lattice
    return (np.linalg.norm(x - np.expand_dims(centre, tuple(range(1, ndim + 1))), axis=0) < radius + shift).astype(
        np.uint8
    )


def stripes(shape=(60, 60, 40)):
    """Three phases that meet in lines and points."""
    x, y, _ = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return ((x // 15 + y // 20) % 3).astype(np.uint8)


PERTURBATIONS = {
    "spread": perturb_interface,
    "spread, kept": partial(perturb_interface, keep_fractions=True),
    "shift": shift_interface,
    "shift, kept": partial(shift_interface, keep_fractions=True),
}


def test_the_interface_is_the_layer_on_either_side():
    np.testing.assert_array_equal(np.flatnonzero(interface(plane((8, 3, 3))).any((1, 2))), [3, 4])
    assert interface(stripes()).mean() > 0 and not interface(np.zeros((5, 5), int)).any()


def test_the_signed_distance_of_a_plane_is_half_way_between_voxels():
    np.testing.assert_array_equal(signed_distance(plane((6, 2)) == 1)[:, 0], [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    two = signed_distances(plane((6, 2)))
    np.testing.assert_array_equal(two[0], -two[1])
    assert np.isneginf(signed_distance(np.ones((3, 3), bool))).all()


@pytest.mark.parametrize("perturb", PERTURBATIONS.values(), ids=PERTURBATIONS)
@pytest.mark.parametrize(
    "labels", [stripes(), stripes()[..., 0], ball(40, 12.0).astype(np.int16) * 7], ids=["3D", "2D", "7"]
)
def test_the_same_generator_gives_the_same_labels(perturb, labels):
    before = labels.copy()
    first, again, other = (perturb(labels, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(labels, before)
    assert (
        first.shape == labels.shape and first.dtype == labels.dtype and set(np.unique(first)) == set(np.unique(labels))
    )
    assert first.tobytes() == again.tobytes() and first.tobytes() != other.tobytes()
    assert (first != labels).any()
    fortran = perturb(np.asfortranarray(labels), np.random.default_rng(0))  # as read from a TIFF
    np.testing.assert_array_equal(fortran, first)


@pytest.mark.parametrize(
    "perturb",
    [
        partial(perturb_interface, share=0.0),
        partial(perturb_interface, iterations=0),
        partial(perturb_interface, radius_voxels=0.9),
        partial(perturb_interface, share=0.0, keep_fractions=True),
        partial(shift_interface, fwhm_voxels=0.0),
        lambda labels, rng: perturb_to_width(labels, rng, 0.0)[0],
        lambda labels, rng: restore_fractions(labels, labels, rng),
    ],
)
@pytest.mark.parametrize("labels", [stripes(), ball(40, 12.0), stripes()[..., 0]], ids=["three", "ball", "2D"])
def test_nothing_to_do_changes_nothing(perturb, labels):
    out = perturb(labels, np.random.default_rng(0))
    np.testing.assert_array_equal(out, labels)
    assert out is not labels


@pytest.mark.parametrize("perturb", PERTURBATIONS.values(), ids=PERTURBATIONS)
def test_one_phase_stays_as_it_is(perturb):
    np.testing.assert_array_equal(perturb(np.full((9, 9), 3), np.random.default_rng(0)), np.full((9, 9), 3))


def test_one_voxel_paints_a_ball_of_its_own_label():
    labels = plane((20, 21, 21))
    out = perturb_interface(labels, np.random.default_rng(3), share=4e-3, iterations=1, radius_voxels=3.0)
    for phase in (0, 1):  # what has changed is within the reach, from the layer that touches the other phase
        x = np.flatnonzero(((out == phase) & (labels != phase)).any((1, 2)))
        assert not x.size or (x.max() <= 12 and x.min() >= 7)
    one = np.zeros((15, 15), np.uint8)
    one[7, 7] = 1
    for seed in range(40):  # until the single voxel is chosen alone or last: then the disc is whole
        disc = perturb_interface(one, np.random.default_rng(seed), share=0.3, iterations=1, radius_voxels=2.5)
        if disc.sum() == 21:
            return
    raise AssertionError("no disc of 21 pixels, those within 2.5 of the middle")


@pytest.mark.parametrize("fwhm", [3.0, 6.0, 10.0])
def test_a_plane_moves_by_the_width_asked(fwhm):
    """On a plane the shift is the field itself: Gaussian, of mean 0 and the sd asked, rounded to voxels (1/12)."""
    labels = plane((40, 192, 192))
    out = shift_interface(labels, np.random.default_rng(0), fwhm, correlation_voxels=10.0)
    moved = interface_displacement(labels, out, phase=1)
    # Areas of 2π L² are independent: 58 of them. Steep flanks count with more faces, which widens it by slope².
    n = 192**2 / (2 * np.pi * 10.0**2)
    sd = fwhm / FWHM_PER_SD
    slope = 1 + (sd / 10.0) ** 2
    assert moved["sd"] == pytest.approx(np.sqrt(sd**2 * slope + 1 / 12), rel=4 / np.sqrt(2 * n))
    assert abs(moved["mean"]) < 4 * sd / np.sqrt(n)
    assert moved["fwhm"] == pytest.approx(FWHM_PER_SD * moved["sd"])
    assert moved["fwhm_histogram"] == pytest.approx(moved["fwhm"], rel=0.25)
    assert np.sum(moved["density"]) == pytest.approx(1) and len(moved["density"]) == len(moved["bin_centres"])
    assert (
        moved["volume_drift"][1] == pytest.approx((out == 1).mean() - 0.5) == pytest.approx(-moved["volume_drift"][0])
    )


def test_a_plane_that_spreads_stays_where_it_is():
    labels = plane()
    moved = [interface_displacement(labels, perturb_interface(labels, np.random.default_rng(s)), 1) for s in range(6)]
    means = [m["mean"] for m in moved]
    assert abs(np.mean(means)) < 4 * np.std(means, ddof=1) / np.sqrt(6) + 0.02
    # measured before on a packing of spheres: 10 voxels. A plane has no curvature that adds to it.
    assert 6 < np.mean([m["fwhm"] for m in moved]) < 12


def test_the_width_grows_with_each_of_the_three_numbers():
    labels = plane()

    def width(**change):
        out = perturb_interface(labels, np.random.default_rng(0), **change)
        return interface_displacement(labels, out)["fwhm"]

    middle = width()
    assert width(share=0.02) < middle < width(share=0.3)
    assert width(iterations=2) < middle < width(iterations=10)
    assert width(radius_voxels=1.0) < middle < width(radius_voxels=4.0)


@pytest.mark.parametrize("asked", [4.0, 8.0])
def test_the_iterations_that_bring_the_width_asked(asked):
    labels = plane()
    out, widths = perturb_to_width(labels, np.random.default_rng(0), asked)
    reached = interface_displacement(labels, out)["fwhm"]
    assert min(abs(w - asked) for w in widths) == pytest.approx(abs(reached - asked), abs=1e-3)
    assert widths == sorted(widths) and abs(reached - asked) < np.diff(widths).max()


def test_a_width_out_of_reach_says_what_was_reached():
    with pytest.raises(ValueError, match=r"fwhm_voxels=40 was not reached in 3 iterations") as caught:
        perturb_to_width(plane((40, 40)), np.random.default_rng(0), 40, max_iterations=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shift", [-4, -1.5, 2, 5])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_sphere_of_another_radius_is_moved_by_the_difference(shift, ndim):
    before, after = ball(64, 20.0, 0, ndim), ball(64, 20.0, shift, ndim)
    moved = interface_displacement(before, after, phase=1)
    # a slanted surface has voxel centres of the other phase nearer than half a voxel beyond it: up to 0.5 is missing
    assert abs(shift) - 0.5 < abs(moved["mean"]) < abs(shift) + 0.1 and moved["mean"] * shift > 0
    assert moved["sd"] < np.sqrt(2 / 12) + 0.1
    assert interface_displacement(before, after)["mean"] == pytest.approx(0, abs=0.05)  # in and out, both phases
    volume = {2: np.pi, 3: 4 / 3 * np.pi}[ndim]
    drift = volume * ((20 + shift) ** ndim - 20.0**ndim) / 64**ndim
    assert moved["volume_drift"][1] == pytest.approx(
        drift, abs={2: 0.0041, 3: 0.0007}[ndim]
    )  # four sd of Kendall's count


def test_the_volume_of_a_shifted_sphere_grows_by_its_curvature():
    """E (R + δ)³ = R³ + 3 R σ²: the drift of the smooth shift on a sphere, where δ is the field over it."""
    before, sd = ball(64, 20.0), 5.0 / FWHM_PER_SD
    drifts = [
        volume_drift(before, shift_interface(before, np.random.default_rng(s), 5.0, 10.0))[1] * 64**3 for s in range(16)
    ]
    error = np.std(drifts, ddof=1) / np.sqrt(len(drifts))
    assert np.mean(drifts) == pytest.approx(4 / 3 * np.pi * 3 * 20 * sd**2, abs=4 * error)


@pytest.mark.parametrize("labels", [ball(), stripes(), stripes()[..., 0]], ids=["ball", "three", "2D"])
def test_fractions_are_kept_where_they_shall_be(labels):
    counts = np.bincount(labels.ravel())
    for perturb in (PERTURBATIONS["spread, kept"], PERTURBATIONS["shift, kept"]):
        kept = np.bincount(perturb(labels, np.random.default_rng(0)).ravel())
        assert np.abs(kept - counts).max() <= (2 if len(counts) == 2 else max(1e-4 * labels.size, 2))


def test_restoring_moves_every_part_of_the_interface_alike():
    """A plane that is two and a half layers too thick: two layers go everywhere, half of the third, in patches."""
    before = plane((40, 96, 96))
    thick = before.copy()
    thick[20:22] = 1
    thick[22, :, ::2] = 1
    out = restore_fractions(thick, before, np.random.default_rng(0))
    assert out.sum() == pytest.approx(before.sum(), abs=2)
    heights = out.sum(0)
    assert heights.min() >= 17 and heights.max() <= 23
    quarters = [heights[a:b, c:d].mean() for a, b in ((0, 48), (48, 96)) for c, d in ((0, 48), (48, 96))]
    assert np.ptp(quarters) < 0.5


def test_three_phases_each_move_by_the_width_asked():
    x = np.arange(120)[:, None, None] // 40
    labels = np.broadcast_to(x, (120, 96, 96)).astype(np.uint8)
    out = shift_interface(labels, np.random.default_rng(1), 5.0, 10.0)
    for phase in (0, 1, 2):
        moved = interface_displacement(labels, out, phase)
        assert moved["fwhm"] == pytest.approx(5.0, rel=0.3)  # 15 areas and more a face, two faces: sd 13 %


@pytest.mark.parametrize("length", [2.0, 6.0, 20.0])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_field_has_unit_variance_and_the_correlation_asked(length, ndim):
    shape = (400, 300) if ndim == 2 else (96, 80, 64)
    fields = np.stack([correlated_field(shape, length, np.random.default_rng(s)) for s in range(6)])
    assert fields.dtype == np.float32 and fields.shape[1:] == shape
    n = 6 * np.prod([max(s / (np.sqrt(np.pi) * length), 1) for s in shape])  # independent pieces, of variance
    assert (fields**2).mean() == pytest.approx(1, abs=4 * np.sqrt(2 / n) + 0.01)
    lag = round(length)
    for axis in range(1, ndim + 1):
        a, b = np.take(fields, range(lag, shape[axis - 1]), axis), np.take(fields, range(shape[axis - 1] - lag), axis)
        assert (a * b).mean() / (fields**2).mean() == pytest.approx(np.exp(-0.5), abs=4 / np.sqrt(n) + 0.02)
    assert not np.allclose(fields[0, 0], fields[0, -1], atol=0.5)  # not periodic


def test_a_distribution_of_properties():
    labels = ball(48, 14.0)

    def measure(a):
        return {"fraction": {"inside": a.mean(), "outside": 1 - a.mean()}, "name": "ball", "odd": float("nan")}

    perturb = partial(shift_interface, fwhm_voxels=4.0, correlation_voxels=8.0, distances=signed_distances(labels))
    found = property_distribution(labels, measure, perturb, 8, np.random.default_rng(0))
    inside = found["properties"]["fraction/inside"]
    assert set(found["properties"]) == {"fraction/inside", "fraction/outside", "odd"}
    assert inside["value"] == labels.mean() and inside["n"] == len(inside["values"]) == 8
    assert inside["mean"] == pytest.approx(np.mean(inside["values"])) and inside["sd"] > 0
    assert inside["p2.5"] < inside["p50"] < inside["p97.5"]
    assert found["volume_drift"][1] == pytest.approx(inside["mean"] - inside["value"])
    assert found["displacement"]["fwhm"] == pytest.approx(4.0, rel=0.4)
    assert found["properties"]["odd"]["n"] == 0 and np.isnan(found["properties"]["odd"]["mean"])
    fewer = property_distribution(labels, measure, perturb, 3, np.random.default_rng(0))
    assert fewer["properties"]["fraction/inside"]["values"] == inside["values"][:3]


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda a, r: perturb_interface(a, r, share=1.1), "share=1.1"),
        (lambda a, r: perturb_interface(a, r, iterations=-1), "iterations=-1"),
        (lambda a, r: perturb_interface(a, r, iterations=1.5), "iterations=1.5"),
        (lambda a, r: perturb_interface(a, r, radius_voxels=float("nan")), "radius_voxels=nan"),
        (lambda a, r: shift_interface(a, r, fwhm_voxels=-1), "fwhm_voxels=-1"),
        (lambda a, r: shift_interface(a, r, correlation_voxels=0), "correlation_voxels=0"),
        (lambda a, r: perturb_interface(a.astype(float), r), "integers"),
        (lambda a, r: perturb_interface(a[0, 0], r), "2 or 3 axes"),
        (lambda a, r: interface_displacement(a, a[1:]), "same"),
        (lambda a, r: interface_displacement(a, a, phase=9), "phase=9"),
        (lambda a, r: property_distribution(a, dict, perturb_interface, 1, r), "n=1"),
    ],
)
def test_bad_arguments(call, names):
    with pytest.raises(ValueError, match=names) as caught:
        call(plane((8, 8, 8)), np.random.default_rng(0))
    assert "\n" not in str(caught.value)
