"""Oracles: closed forms of shifted squares and boxes, hand counts, and MONAI's own functions."""

import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.handlers import IgniteMetricHandler
from monai.metrics import compute_average_surface_distance, compute_surface_dice
from monai.networks import one_hot

from bundle.metrics import PropertyError, VolumeFractionError, metric_names, score, spacing_per_axis, summarise

SHAPES = [(20, 24), (12, 10, 14)]


def _box(shape: tuple[int, ...], start: int, width: int, shift: int = 0) -> np.ndarray:
    """A box of `width` voxels an axis, moved by `shift` along the first axis."""
    labels = np.zeros(shape, dtype=np.uint8)
    labels[(slice(start + shift, start + shift + width),) + (slice(start, start + width),) * (len(shape) - 1)] = 1
    return labels


def _random_labels(shape: tuple[int, ...], n_classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, n_classes, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_perfect_prediction_has_perfect_scores(shape, n_classes):
    truth = _random_labels(shape, n_classes, 0)
    result = score(truth, truth, n_classes, 0.5)
    assert list(result) == metric_names(n_classes)
    for name in ("mean_dice", "mean_iou", "mean_iou_all", "accuracy", "mean_nsd"):
        assert result[name] == 1
    for name in ("mean_assd_um", "mean_abs_fraction_error", "absent_classes"):
        assert result[name] == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shift", [1, 2])
def test_overlap_of_a_shifted_box_is_its_closed_form(shape, shift):
    width = 5
    result = score(_box(shape, 3, width, shift), _box(shape, 3, width), 2, 1.0)
    # The overlap is (width - shift) / width of either box, in any number of dimensions.
    assert result["dice_1"] == pytest.approx((width - shift) / width)
    assert result["iou_1"] == pytest.approx((width - shift) / (width + shift))
    differing = 2 * shift * width ** (len(shape) - 1)
    assert result["accuracy"] == pytest.approx(1 - differing / math.prod(shape))
    assert result["mean_abs_fraction_error"] == 0


def test_surface_distance_of_a_shifted_square_is_its_hand_count():
    # The edge of a 5 × 5 square has 16 pixels. Moved by one along x, the two long sides share 4 + 4 pixels;
    # the other 8 (one column of 5 and the 3 inner pixels of the opposite column) are one pixel off.
    truth, pred = _box((20, 20), 5, 5), _box((20, 20), 5, 5, shift=1)
    distances_um = np.array([0] * 8 + [1] * 8)
    result = score(pred, truth, 2, 1.0)
    assert result["assd_um_1"] == pytest.approx(distances_um.mean())
    assert result["nsd_1"] == 1


def test_distances_are_in_um_and_anisotropic():
    truth, pred = _box((20, 24, 18), 5, 6), _box((20, 24, 18), 5, 6, shift=2)
    isotropic = score(pred, truth, 2, 1.0)["mean_assd_um"]
    assert score(pred, truth, 2, 0.25)["mean_assd_um"] == pytest.approx(0.25 * isotropic)
    # With y and z this coarse, the nearest surface voxel is the one along x, at most the shift away.
    x_only = score(pred, truth, 2, (0.25, 50.0, 50.0))["mean_assd_um"]
    assert 0 < x_only <= 2 * 0.25
    half = np.zeros((16, 12, 10), dtype=np.uint8)
    half[8:] = 1
    moved = np.zeros_like(half)
    moved[11:] = 1
    for axis, spacing_um in ((0, (0.4, 1, 1)), (1, (1, 0.4, 1)), (2, (1, 1, 0.4))):
        result = score(np.moveaxis(moved[:, :9, :9], 0, axis), np.moveaxis(half[:, :9, :9], 0, axis), 2, spacing_um)
        assert result["assd_um_1"] == pytest.approx(3 * 0.4, rel=1e-6)  # two parallel planes


def test_the_frame_of_the_image_is_no_surface():
    half = np.zeros((16, 12), dtype=np.uint8)
    half[8:] = 1
    moved = np.roll(half, 1, axis=0)
    moved[0] = 0
    result = score(moved, half, 2, 2.0)
    assert result["assd_um_1"] == pytest.approx(2.0)  # no pixel at distance 0
    assert result["nsd_1"] == 1
    assert score(np.roll(moved, 1, axis=0), half, 2, 2.0)["nsd_1"] == 0


def test_surface_dice_tolerates_one_voxel_and_no_more():
    truth = _box((30, 30), 5, 9)
    assert score(_box((30, 30), 5, 9, shift=1), truth, 2, 0.7)["nsd_1"] == 1
    assert score(_box((30, 30), 5, 9, shift=2), truth, 2, 0.7)["nsd_1"] < 1


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI calls itself with it
@pytest.mark.parametrize("shape", [(24, 26), (14, 15, 16)])
def test_agrees_with_monai_away_from_the_frame(shape):
    rng = np.random.default_rng(3)
    truth, pred = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    inner = (slice(2, -2),) * len(shape)
    truth[inner] = rng.integers(0, 3, truth[inner].shape)
    pred[inner] = np.where(rng.random(truth[inner].shape) < 0.7, truth[inner], rng.integers(0, 3, truth[inner].shape))
    spacing_um = (0.5, 0.7, 1.3)[: len(shape)]
    result = score(pred, truth, 3, spacing_um)
    hot = [one_hot(torch.from_numpy(x)[None, None].long(), 3) for x in (pred, truth)]
    assd = compute_average_surface_distance(*hot, symmetric=True, spacing=spacing_um)[0]
    nsd = compute_surface_dice(*hot, class_thresholds=[max(spacing_um) * (1 + 1e-6)] * 2, spacing=spacing_um)[0]
    for k in (1, 2):
        assert result[f"assd_um_{k}"] == pytest.approx(assd[k - 1].item(), rel=1e-5)
        assert result[f"nsd_{k}"] == pytest.approx(nsd[k - 1].item(), rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_overlap_and_fractions_equal_a_confusion_matrix(shape):
    pred, truth = _random_labels(shape, 3, 1), _random_labels(shape, 3, 2)
    confusion = np.zeros((3, 3))
    np.add.at(confusion, (truth.ravel(), pred.ravel()), 1)
    hits, n_truth, n_pred = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    dice, iou = 2 * hits / (n_truth + n_pred), hits / (n_truth + n_pred - hits)
    fraction_error = (n_pred - n_truth) / truth.size
    result = score(pred, truth, 3, 1.0)
    for k in range(3):
        assert result[f"dice_{k}"] == pytest.approx(dice[k], rel=1e-6)
        assert result[f"iou_{k}"] == pytest.approx(iou[k], rel=1e-6)
        assert result[f"fraction_error_{k}"] == pytest.approx(fraction_error[k], abs=1e-12)
    assert result["mean_dice"] == pytest.approx(dice[1:].mean(), rel=1e-6)
    assert result["mean_iou_all"] == pytest.approx(iou.mean(), rel=1e-6)
    assert result["accuracy"] == pytest.approx(hits.sum() / truth.size)
    assert result["mean_abs_fraction_error"] == pytest.approx(np.abs(fraction_error).mean())


def test_fraction_errors_are_signed_and_sum_to_zero():
    truth = np.zeros((10, 10), dtype=np.uint8)
    truth[:4] = 1
    pred = np.zeros_like(truth)
    pred[:5] = 1
    result = score(pred, truth, 2, 1.0)
    assert result["fraction_error_1"] == pytest.approx(0.1)
    assert result["fraction_error_0"] == pytest.approx(-0.1)
    assert result["mean_abs_fraction_error"] == pytest.approx(0.1)


def test_empty_prediction():
    truth = _box((12, 12), 3, 5)
    result = score(np.zeros_like(truth), truth, 2, 1.0)
    assert result["mean_dice"] == result["mean_iou"] == result["mean_nsd"] == 0
    assert math.isnan(result["mean_assd_um"])
    assert result["fraction_error_1"] == pytest.approx(-25 / 144)


def test_absent_class_is_nan_counted_and_left_out_of_the_means():
    truth = _box((12, 12), 3, 5)  # no class 2
    result = score(truth, truth, 3, 1.0)
    assert math.isnan(result["dice_2"]) and math.isnan(result["iou_2"])
    assert math.isnan(result["assd_um_2"]) and math.isnan(result["nsd_2"])
    assert result["absent_classes"] == 1
    assert result["mean_dice"] == result["mean_iou_all"] == 1
    false_positive = truth.copy()
    false_positive[0, 0] = 2
    result = score(false_positive, truth, 3, 1.0)
    assert math.isnan(result["dice_2"])
    assert result["nsd_2"] == 0
    assert result["fraction_error_2"] == pytest.approx(1 / 144)


def test_one_slice_volume_scores_as_its_slice():
    pred, truth = _random_labels((15, 16), 3, 5), _random_labels((15, 16), 3, 6)
    volume = score(pred[..., None], truth[..., None], 3, (0.5, 0.6, 0.6))
    assert volume == pytest.approx(score(pred, truth, 3, (0.5, 0.6)))


@pytest.mark.parametrize(
    ("pred", "truth", "n_classes", "spacing_um", "message"),
    [
        (np.zeros((4, 4), int), np.zeros((4, 5), int), 2, 1.0, "same shape"),
        (np.zeros((4, 4), int), np.full((4, 4), 2), 2, 1.0, "truth holds 2 to 2; classes are 0 to 1"),
        (np.full((4, 4), -1), np.zeros((4, 4), int), 2, 1.0, "pred holds -1"),
        (np.full((4, 4), 0.5), np.zeros((4, 4), int), 2, 1.0, "not probabilities"),
        (np.full((4, 4), np.nan), np.zeros((4, 4), int), 2, 1.0, "pred holds nan"),
        (np.zeros(4, int), np.zeros(4, int), 2, 1.0, "must be"),
        (np.zeros((4, 4), int), np.zeros((4, 4), int), 1, 1.0, "n_classes = 1"),
        (np.zeros((4, 4), int), np.zeros((4, 4), int), 2, (1.0, 0.0), "spacing_um"),
        (np.zeros((4, 4), int), np.zeros((4, 4), int), 2, (1.0, 1.0, 1.0), "spacing_um"),
    ],
)
def test_bad_input_is_one_clear_error(pred, truth, n_classes, spacing_um, message):
    with pytest.raises(ValueError, match=message) as caught:
        score(pred, truth, n_classes, spacing_um)
    assert "\n" not in str(caught.value)


def test_spacing_per_axis():
    assert spacing_per_axis(0.5, 3) == [0.5, 0.5, 0.5]
    assert spacing_per_axis([1, 2], 2) == [1, 2]


def test_summary_leaves_nan_out_and_counts():
    summary = summarise([{"a": 1.0, "b": math.nan}, {"a": 3.0, "b": 2.0}, {"a": 5.0, "b": math.nan}])
    assert summary["a"] == {"mean": 3, "sd": 2, "n": 3, "min": 1, "max": 5}
    assert summary["b"]["n"] == 1 and summary["b"]["mean"] == 2 and math.isnan(summary["b"]["sd"])
    assert summarise([{"a": math.nan}])["a"]["n"] == 0
    with pytest.raises(ValueError, match="no scores"):
        summarise([])
    with pytest.raises(ValueError, match="same metrics"):
        summarise([{"a": 1.0}, {"b": 1.0}])


@pytest.mark.parametrize("shape", SHAPES)
def test_volume_fraction_error_agrees_with_score_through_ignite(shape):
    pairs = [(_random_labels(shape, 3, seed), _random_labels(shape, 3, seed + 10)) for seed in range(3)]
    expected = np.mean([score(pred, truth, 3, 1.0)["mean_abs_fraction_error"] for pred, truth in pairs])
    hot = [[one_hot(torch.from_numpy(x)[None].long(), 3, dim=0) for x in pair] for pair in pairs]
    engine = Engine(lambda _, batch: ([batch[0]], [batch[1]]))
    IgniteMetricHandler(metric_fn=VolumeFractionError()).attach(engine, "fraction_error")
    engine.run(hot)
    assert engine.state.metrics["fraction_error"] == pytest.approx(expected, rel=1e-5)


def test_volume_fraction_error_without_background_and_bad_input():
    pred, truth = torch.zeros(1, 2, 4, 5), torch.zeros(1, 2, 4, 5)
    pred[:, 1], truth[:, 0] = 1, 1
    metric = VolumeFractionError(include_background=False)
    assert metric(pred, truth).tolist() == [[1.0]]
    assert metric.aggregate().item() == 1
    with pytest.raises(ValueError, match="differ"):
        metric(pred, truth[..., 1:])
    with pytest.raises(ValueError, match="one-hot"):
        metric(pred[:, :1], truth[:, :1])
    with pytest.raises(ValueError, match="no images"):
        VolumeFractionError().aggregate()


def _balls(radius: float, shape: tuple[int, ...]) -> np.ndarray:
    grid = np.indices(shape) - np.reshape([n / 2 for n in shape], (-1, *[1] * len(shape)))
    return ((grid**2).sum(axis=0) < radius**2).astype(np.uint8)


@pytest.mark.parametrize(("shape", "power"), [((60, 64), 1), ((40, 44, 42), 2)])
def test_property_errors_of_balls_are_their_closed_forms(shape, power):
    # radius 15 for 12: the surface is (15/12)^(d - 1) as large
    result = score(_balls(15, shape), _balls(12, shape), 2, 0.3)
    assert result["surface_error_1"] == pytest.approx(1.25**power - 1, abs=0.03)
    assert result["mean_abs_surface_error"] == pytest.approx(1.25**power - 1, abs=0.03)


@pytest.mark.parametrize("shape", [(60, 20), (60, 12, 10), (60, 20, 1)])
def test_property_errors_of_plates_are_exact(shape):
    # plates of 5 and 7 against plates of 6 and 6
    x = np.arange(60).reshape(-1, *[1] * (len(shape) - 1)) % 12
    pred, truth = (np.broadcast_to(x < n, shape).astype(np.uint8) for n in (5, 6))
    result = score(pred, truth, 2, 0.4)
    assert result["size_error_1"] == pytest.approx(5 / 6 - 1) and result["size_error_0"] == pytest.approx(7 / 6 - 1)
    assert result["mean_abs_size_error"] == pytest.approx(1 / 6)
    assert result["surface_error_1"] == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("shape", [(30, 28), (14, 16, 15)])
@pytest.mark.parametrize("quantity", ["fraction", "surface", "size"])
def test_property_error_agrees_with_score_through_ignite(shape, quantity):
    pairs = [(_random_labels(shape, 3, seed), _random_labels(shape, 3, seed + 10)) for seed in range(3)]
    expected = np.mean([score(pred, truth, 3, 1.0)[f"mean_abs_{quantity}_error"] for pred, truth in pairs])
    hot = [[one_hot(torch.from_numpy(x)[None].long(), 3, dim=0) for x in pair] for pair in pairs]
    engine = Engine(lambda _, batch: ([batch[0]], [batch[1]]))
    IgniteMetricHandler(metric_fn=PropertyError(quantity)).attach(engine, "error")
    engine.run(hot)
    assert engine.state.metrics["error"] == pytest.approx(expected, rel=1e-4)


def test_property_error_without_background_and_bad_input():
    truth = one_hot(torch.from_numpy(_box((20, 20), 5, 5))[None, None].long(), 3)
    metric = PropertyError("surface", include_background=False)
    found = metric(truth, truth)
    assert found.shape == (1, 2) and found[0, 0] == 0 and found[0, 1].isnan()  # the truth has no class 2
    assert metric.aggregate().item() == 0
    with pytest.raises(ValueError, match="quantity='volume' must be"):
        PropertyError("volume")
    with pytest.raises(ValueError, match="differ"):
        metric(truth, truth[..., 1:])
    with pytest.raises(ValueError, match="no images"):
        PropertyError().aggregate()
