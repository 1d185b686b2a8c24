"""Losses against closed forms, MONAI and SciPy; class weights against counted labels."""

import math

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.losses import DiceCELoss
from scipy import ndimage
from torch.nn import functional

from bundle.losses import BoundaryDiceCELoss, CrossEntropyLoss, boundary_weights, class_weights, interface_distance
from bundle.volume_io import affine_from_voxel_size, write_nifti

OVERLAYS = ["ce", "dice", "dice_ce", "focal", "weighted", "boundary"]


def batch(shape: tuple[int, ...], n_classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, n_classes, *shape, generator=generator)
    return logits, torch.randint(n_classes, (2, 1, *shape), generator=generator)


def overlay(root, name: str, n_classes: int):
    parser = ConfigParser(ConfigParser.load_config_file(str(root / f"configs/loss_{name}.json")))
    parser["imports"], parser["device"], parser["num_classes"] = ["$import torch"], "cpu", n_classes
    parser["class_weights"] = [1] * n_classes
    return parser.get_parsed_content("loss")


@pytest.mark.parametrize("shape", [(12, 10), (8, 7, 6)])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_falls_towards_the_truth(root, name, n_classes, shape):
    loss = overlay(root, name, n_classes)
    logits, labels = batch(shape, n_classes)
    labels = MetaTensor(labels.to(torch.uint8))  # as the data loader gives them
    truth = functional.one_hot(labels.as_tensor()[:, 0].long(), n_classes).movedim(-1, 1)
    values = [loss(torch.tensor(scale) * truth, labels) for scale in (20.0, 2.0, 0.0, -5.0)]
    assert all(value.ndim == 0 for value in values)
    assert [float(v) for v in values] == sorted(float(v) for v in values)
    assert float(values[0]) < 0.01
    logits.requires_grad_()
    loss(logits, labels).backward()
    assert torch.isfinite(logits.grad).all() and (logits.grad != 0).any()


def test_cross_entropy_of_two_classes_is_the_binary_one():
    logits, labels = batch((9, 8), 2)
    binary = functional.binary_cross_entropy_with_logits(logits[:, 1] - logits[:, 0], labels[:, 0].float())
    assert float(CrossEntropyLoss()(logits, labels)) == pytest.approx(float(binary), rel=1e-6)


def test_cross_entropy_is_the_mean_of_minus_log_p():
    logits, labels = batch((5, 4, 3), 3)
    p = logits.softmax(1).gather(1, labels)
    assert float(CrossEntropyLoss()(logits, labels)) == pytest.approx(float(-p.log().mean()), rel=1e-6)


def test_boundary_loss_without_extra_weight_is_dice_ce():
    logits, labels = batch((12, 11), 3)
    plain = DiceCELoss(to_onehot_y=True, softmax=True)(logits, labels)
    assert float(BoundaryDiceCELoss(w0=0)(logits, labels)) == pytest.approx(float(plain), rel=1e-6)
    one_phase = torch.zeros_like(labels)  # no interface, one weight
    plain = DiceCELoss(to_onehot_y=True, softmax=True)(logits, one_phase)
    assert float(BoundaryDiceCELoss()(logits, one_phase)) == pytest.approx(float(plain), rel=1e-6)


def test_weight_map_of_a_straight_interface_is_the_formula():
    labels = torch.zeros(1, 1, 20, 5, dtype=torch.long)
    labels[:, :, 10:] = 1
    w0, sigma = 10.0, 2.0
    weights = boundary_weights(labels, 2, w0, sigma)[0, 0]
    distance = torch.tensor([abs(x - 9.5) for x in range(20)]).clamp(max=3 * sigma + 0.5)
    expected = 1 + w0 * torch.exp(-(distance**2) / (2 * sigma**2))
    assert torch.allclose(weights, expected[:, None].expand(20, 5), rtol=1e-6)
    assert float(weights.max()) == pytest.approx(1 + w0 * math.exp(-1 / 32))


def test_an_error_costs_as_much_as_its_weight():
    labels = torch.zeros(1, 1, 20, 8, dtype=torch.long)
    labels[:, :, 10:] = 1
    loss = BoundaryDiceCELoss(lambda_dice=0)
    weights = boundary_weights(labels, 2, loss.w0, loss.sigma)
    right = 30.0 * functional.one_hot(labels[:, 0], 2).movedim(-1, 1)
    for x in (9, 7, 0):
        wrong = right.clone()
        wrong[0, :, x, 4] = 0  # p = 1/2 there
        share = float(weights[0, 0, x, 4] / weights.sum())
        assert float(loss(wrong, labels)) == pytest.approx(share * math.log(2), rel=1e-5)


@pytest.mark.parametrize("shape", [(23, 17), (13, 12, 11), (40, 3)])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_interface_distance_is_scipys(shape, n_classes):
    rng = np.random.default_rng(0)
    field = ndimage.gaussian_filter(rng.standard_normal((2, *shape)), (0, *[2] * len(shape)))
    labels = np.digitize(field, np.quantile(field, np.arange(1, n_classes) / n_classes))
    expected = np.zeros(labels.shape)
    for i in range(2):
        for k in range(n_classes):
            expected[i] += ndimage.distance_transform_edt(labels[i] == k)
    for most in (2, 30):
        found = interface_distance(torch.from_numpy(labels)[:, None], n_classes, most)
        assert found.dtype == torch.float32
        wanted = np.where(expected < most + 1, expected, most + 1) - 0.5
        assert np.allclose(found[:, 0], wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"w0": -1}, "w0 -1 must be at least 0"),
        ({"sigma": 0}, "sigma 0 must be above 0 voxels"),
        ({"sigma": math.nan}, "sigma nan"),
        ({"lambda_ce": math.inf}, "lambda_ce inf"),
    ],
)
def test_bad_arguments_of_the_boundary_loss(options, message):
    with pytest.raises(ValueError, match=message):
        BoundaryDiceCELoss(**options)


@pytest.mark.parametrize("loss", [CrossEntropyLoss(), BoundaryDiceCELoss()])
def test_shapes_that_do_not_fit(loss):
    logits, labels = batch((6, 5), 2)
    for bad in (labels[:, 0], labels[..., :4], labels.expand(2, 2, 6, 5)):
        with pytest.raises(ValueError, match="do not fit logits") as caught:
            loss(logits, bad)
        assert "\n" not in str(caught.value)


@pytest.fixture
def pairs(tmp_path) -> list[dict[str, str]]:
    """Two label images, of 100 and 300 pixels; together class 0 fills 0.80, class 1 0.16 and class 2 0.04."""
    counts = {"a": [100, 0, 0], "b": [220, 64, 16]}
    found = []
    for name, each in counts.items():
        labels = np.repeat(np.arange(3, dtype=np.uint8), each).reshape(10, -1)
        path = tmp_path / f"{name}.nii.gz"
        write_nifti(path, labels, affine_from_voxel_size([0.5, 0.5]))
        found.append({"image": "not read", "label": str(path)})
    return found


def test_class_weights_are_inverse_fractions_with_mean_1(pairs):
    inverse = np.array([1 / 0.80, 1 / 0.16, 1 / 0.04])
    assert class_weights(pairs, 3, most=100) == pytest.approx((inverse / inverse.mean()).tolist())


def test_rare_and_absent_classes_weigh_at_most_so_much(pairs):
    weights = np.array(class_weights(pairs, 4))
    assert weights / weights[0] == pytest.approx([1, 5, 10, 10])
    assert weights.mean() == pytest.approx(1)


def test_bad_arguments_of_class_weights(pairs):
    with pytest.raises(ValueError, match="pairs is empty"):
        class_weights([], 3)
    with pytest.raises(ValueError, match=r"most 0\.5 must be at least 1"):
        class_weights(pairs, 3, most=0.5)
    with pytest.raises(ValueError, match=r"b.nii.gz: holds labels 0 to 2; they must be 0 to 1"):
        class_weights(pairs, 2)
