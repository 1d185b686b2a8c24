"""Where the object is at each view, and that the detector is as large as what it must measure."""

import numpy as np
import pytest

from data_gen.geometry import ConeBeam, ParallelBeam
from data_gen.projection import forward

ZERO = {"start_angle_deg": 0.0, "centre_offset_px": 0.0}


def corners(shape):
    """Corners of the volume (x, y, z) in ASTRA's coordinates, voxels from the axis, (3, 8)."""
    rows, columns, slices = shape
    signs = np.array(np.meshgrid(*[[-0.5, 0.5]] * 3)).reshape(3, -1)
    return signs * np.array([columns, rows, slices])[:, None]


def landing(geometry, shape, voxel_size_um, angles):
    """Where the corners fall on the virtual detector through the axis: |u| and |v| in voxels, (angles, corners)."""
    x, y, z = corners(shape)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    distance = geometry.distance_px(voxel_size_um)
    # the beam runs along (−sin, cos): a point this much nearer to the source is magnified this much more
    magnified = 1.0 if distance is None else distance / (distance + y * cos - x * sin)
    return np.abs(magnified * (x * cos + y * sin)), np.abs(magnified * z)


def test_views_are_equally_spaced_and_the_end_is_left_out():
    geometry = ParallelBeam(6, 120.0, start_angle_deg=10.0)
    views = geometry.views(geometry.draw(np.random.default_rng(0)))
    np.testing.assert_allclose(np.rad2deg(views.angles_rad), [10, 30, 50, 70, 90, 110])
    assert views.shift_px.tolist() == [0.0] * 6 and views.scale.tolist() == [1.0] * 6


def test_the_reconstruction_knows_the_start_angle_and_not_the_centre():
    geometry = ParallelBeam(5, start_angle_deg=[-20, 30], centre_offset_px=[1, 2])
    rng = np.random.default_rng(1)
    drawn = [geometry.draw(rng) for _ in range(40)]
    for name, low, high in (("start_angle_deg", -20, 30), ("centre_offset_px", 1, 2)):
        values = [d[name] for d in drawn]
        assert len(set(values)) == 40 and low <= min(values) and max(values) <= high
    views = geometry.views(drawn[0])
    np.testing.assert_array_equal(views.angles_rad, geometry.angles_rad(drawn[0]))
    assert np.rad2deg(views.angles_rad[0]) == pytest.approx(drawn[0]["start_angle_deg"])
    # what is left of a constant when cosine and sine are fitted to it: the same offset, and no pose
    left = views.shift_px - drawn[0]["centre_offset_px"]
    directions = np.array([np.cos(views.angles_rad), np.sin(views.angles_rad)])
    np.testing.assert_allclose(directions @ views.shift_px, 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.lstsq(directions.T, left, rcond=None)[0] @ directions, left, atol=1e-12)


@pytest.mark.parametrize("kind", [ParallelBeam, ConeBeam])
def test_an_offset_of_the_centre_keeps_the_pose_of_the_label(kind):
    half, turn = (kind(720, span, 20.0, centre_offset_px=1.5) for span in (180.0, 360.0))
    views = half.views(half.draw(np.random.default_rng(0)))
    # ∫ c sin / ∫ sin² = 4c/π along the direction of the scan's middle; the sum over n views errs by 1/n²
    expected = 1.5 * (1 - 4 / np.pi * np.cos(views.angles_rad - views.angles_rad.mean()))
    np.testing.assert_allclose(views.shift_px, expected, atol=1e-5)
    assert turn.views(turn.draw(np.random.default_rng(0))).shift_px.tolist() == [1.5] * 720


def test_magnification_and_distance():
    assert ParallelBeam().magnification == 1 and ParallelBeam().distance_px(0.5) is None
    cone = ConeBeam(source_object_mm=20, source_detector_mm=300)
    assert cone.magnification == 15 and cone.angular_range_deg == 360
    assert cone.distance_px(5.0) == pytest.approx(20e3 / 5)


GEOMETRIES = [ParallelBeam(), ConeBeam(source_object_mm=2.0), ConeBeam(source_object_mm=0.1)]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=["parallel", "cone", "steep"])
@pytest.mark.parametrize("shape", [(40, 40, 30), (31, 44, 17), (60, 9, 8), (25, 25, 1)])
def test_the_detector_holds_the_volume_and_little_more(geometry, shape):
    voxel_um = 2.0  # 1000 and 50 voxels to the source: the corner of 44 x 31 is 27 from the axis
    u, v = landing(geometry, shape, voxel_um, np.linspace(0, 2 * np.pi, 7200))
    across, along = geometry.detectors(shape, voxel_um)
    assert 2 * u.max() <= across + 1e-3  # the corners of 40 x 40 pass 28.284 at 45°, between two of the angles
    assert across - 2 * u.max() < 2 + 1e-3  # rounded up to an even number
    if shape[2] > 1:
        assert 2 * v.max() <= along + 1e-3 < 2 * v.max() + 2 + 1e-2  # rounded up to the parity of the slices
        assert (along - shape[2]) % 2 == 0  # the middle of the detector stays the middle slice
    else:
        assert along == 1  # a fan


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=["parallel", "cone", "steep"])
def test_no_ray_through_the_object_misses_the_detector(geometry):
    shape, voxel_um = (20, 30, 12), 2.0
    distance = geometry.distance_px(voxel_um)
    detectors = geometry.detectors(shape, voxel_um)
    views = ParallelBeam(32, 360.0, 3.0).views(ZERO | {"start_angle_deg": 3.0})
    wide = tuple(n + 12 for n in detectors)
    shadow = forward(np.ones(shape, np.float32), views, wide, distance)
    # interpolation spreads a voxel by half a voxel beyond its face, which a near one shows magnified
    leak = 0 if distance is None else distance / (distance - np.hypot(20, 30) / 2)
    margin = int(np.ceil(max(1.0, 0.5 * leak * np.sqrt(2))))
    inner = np.zeros(wide, bool)
    inner[6 - margin : wide[0] - 6 + margin] = True
    if distance is not None:
        inner[:, : 6 - margin] = inner[:, wide[1] - 6 + margin :] = False
    else:
        inner = inner[:, : shape[2]]  # as many rows as slices
    assert shadow[:, ~inner].max(initial=0) == 0
    assert shadow[:, 6:-6].max() > 20  # and the object is there


@pytest.mark.parametrize("voxel_um", [1.0, 80.0])
def test_a_source_inside_the_object_is_named_with_the_least_distance(voxel_um):
    cone = ConeBeam(source_object_mm=0.02 * voxel_um)  # 20 voxels, the corners of 32² are at 22.6
    with pytest.raises(ValueError, match=r"source_object_mm=.*inside the object") as caught:
        cone.detectors((32, 32, 4), voxel_um)
    assert f"{np.hypot(32, 32) / 2 * voxel_um / 1e3:.3g} mm" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [ParallelBeam, ConeBeam])
@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"n_angles": 0}, "n_angles=0"),
        ({"n_angles": 1.5}, "n_angles=1.5"),
        ({"n_angles": True}, "n_angles=True"),
        ({"n_angles": 20001}, "n_angles=20001"),
        ({"angular_range_deg": 0.5}, "angular_range_deg=0.5"),
        ({"angular_range_deg": 361}, "angular_range_deg=361"),
        ({"angular_range_deg": [90, 180]}, "angular_range_deg"),
        ({"start_angle_deg": 400}, "start_angle_deg=400"),
        ({"start_angle_deg": [30, 10]}, "start_angle_deg"),
        ({"centre_offset_px": float("nan")}, "centre_offset_px=nan"),
        ({"centre_offset_px": "1"}, "centre_offset_px='1'"),
    ],
)
def test_bad_geometries(kind, arguments, names):
    with pytest.raises(ValueError, match=names) as caught:
        kind(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"source_object_mm": 0}, "source_object_mm=0"),
        ({"source_object_mm": [10, 20]}, "source_object_mm"),
        ({"source_object_mm": 100, "source_detector_mm": 50}, "source_detector_mm=50.*nearest valid: 100"),
        ({"source_detector_mm": float("inf")}, "source_detector_mm=inf"),
    ],
)
def test_bad_cones(arguments, names):
    with pytest.raises(ValueError, match=names) as caught:
        ConeBeam(**arguments)
    assert "\n" not in str(caught.value)
