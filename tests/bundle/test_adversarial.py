"""Two players, each moved by its own step, with losses that agree with the paper's formulas."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice
from monai.networks import one_hot
from monai.networks.nets import PatchDiscriminator, UNet
from torch.nn.functional import cross_entropy, logsigmoid

from bundle.adversarial import AdversarialLoss, ConstantThenLinear, LabelL1Loss, Pix2PixTrainer
from bundle.inference import AutocastInferer

LABEL = torch.tensor([[[[0, 1], [1, 0]]], [[[1, 1], [0, 0]]]])  # (B=2, 1, 2, 2)
LOGITS = torch.tensor([[[0.5, -1.0], [2.0, 0.0]], [[-0.5, 0.3], [1.0, 0.2]]]).expand(2, 2, 2, 2)


class FixedGenerator(torch.nn.Module):
    """Gives the same logits (B, 2, 2, 2) for every image: they are its weights."""

    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(LOGITS.clone())

    def forward(self, image):
        return self.logits


class PixelDiscriminator(torch.nn.Module):
    """A weighted sum of the image and two classes, one number a pixel."""

    def __init__(self, weights=(0.3, 0.7, -0.4), bias=0.1):
        super().__init__()
        self.conv = torch.nn.Conv2d(len(weights), 1, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor(weights).reshape(1, -1, 1, 1))
            self.conv.bias.fill_(bias)

    def forward(self, pair):
        return [pair, self.conv(pair)]


def make_trainer(generator, discriminator, batches=(), criterion="bce", rate=0.1, max_epochs=1, **options):
    defaults = {
        "optimizer": torch.optim.SGD(generator.parameters(), rate),
        "discriminator_optimizer": torch.optim.SGD(discriminator.parameters(), rate),
        "loss_function": LabelL1Loss(),
        "adversarial_loss": AdversarialLoss(criterion),
        "inferer": AutocastInferer(),
    }
    return Pix2PixTrainer(
        device="cpu",
        max_epochs=max_epochs,
        train_data_loader=list(batches),
        network=generator,
        discriminator=discriminator,
        **(defaults | options),
    )


def by_hand(criterion="bce", **options):
    """A trainer whose every number can be calculated by hand, its batch, and the verdicts on real and fake."""
    image = torch.arange(8.0).reshape(2, 1, 2, 2) / 8
    discriminator = PixelDiscriminator()
    trainer = make_trainer(FixedGenerator(), discriminator, [{"image": image, "label": LABEL}], criterion, **options)
    a, b, c = 0.3, 0.7, -0.4
    x, y, p = image[:, 0], LABEL[:, 0].float(), torch.sigmoid(LOGITS[:, 1] - LOGITS[:, 0])  # p: of class 1
    return trainer, a * x + b * (1 - y) + c * y + 0.1, a * x + b * (1 - p) + c * p + 0.1


def small_unet(dims=2, in_channels=1, classes=2):
    torch.manual_seed(0)
    return UNet(dims, in_channels, classes, [8, 16], [2], num_res_units=1, norm="instance")


def small_discriminator(dims=2, channels=3, norm="instance"):
    torch.manual_seed(1)
    return PatchDiscriminator(dims, 8, channels, num_layers_d=2, norm=norm)


def discs(shape, classes=2, batch=2, seed=0):
    """Images with label + noise, and labels: a ball of each class but 0."""
    rng = np.random.default_rng(seed)
    label = np.zeros((batch, 1, *shape), np.int64)
    axes = np.indices(shape)
    for item in label[:, 0]:
        for k in range(1, classes):
            centre = rng.uniform(0.25, 0.75, len(shape)) * shape
            distance = np.sqrt(sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)))
            item[distance < 0.2 * min(shape)] = k
    image = label / (classes - 1) + rng.normal(0, 0.1, label.shape)
    return {"image": torch.tensor(image, dtype=torch.float32), "label": torch.tensor(label)}


def frozen(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(module, before):
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_l1_by_hand():
    logits = torch.tensor([0.0, np.log(3.0)]).reshape(1, 2, 1, 1)  # probabilities 1/4, 3/4
    assert float(LabelL1Loss()(logits, torch.tensor([[[[1]]]]))) == pytest.approx(0.25)
    assert float(LabelL1Loss()(logits, torch.tensor([[[[0]]]]))) == pytest.approx(0.75)
    assert float(LabelL1Loss()(torch.zeros(1, 4, 3, 3), torch.zeros(1, 1, 3, 3))) == pytest.approx((0.75 + 3 / 4) / 4)


def test_losses_by_hand_with_cross_entropy_criterion():
    trainer, real, fake = by_hand(reconstruction_weight=100, cross_entropy_weight=2, rate=0.0)
    trainer.run()
    said = trainer.state.output[0]
    assert float(said["discriminator/loss_real"]) == pytest.approx(float(-logsigmoid(real).mean()))
    assert float(said["discriminator/loss_fake"]) == pytest.approx(float(-logsigmoid(-fake).mean()))
    assert float(said["generator/adversarial"]) == pytest.approx(float(-logsigmoid(fake).mean()))
    probability = LOGITS.softmax(1)
    l1 = float((probability - torch.cat([1 - LABEL, LABEL], 1)).abs().mean())
    ce = float(-probability.gather(1, LABEL).log().mean())
    assert float(said["generator/reconstruction"]) == pytest.approx(l1)
    assert float(said["generator/cross_entropy"]) == pytest.approx(ce)
    assert float(said["loss"]) == pytest.approx(float(-logsigmoid(fake).mean()) + 100 * l1 + 2 * ce)


def test_losses_by_hand_with_least_squares():
    trainer, real, fake = by_hand("least_squares", rate=0.0)
    trainer.run()
    said = trainer.state.output[0]
    assert float(said["discriminator/loss_real"]) == pytest.approx(float(((real - 1) ** 2).mean()))
    assert float(said["discriminator/loss_fake"]) == pytest.approx(float((fake**2).mean()))
    assert float(said["generator/adversarial"]) == pytest.approx(float(((fake - 1) ** 2).mean()))
    assert float(said["discriminator/accuracy"]) == pytest.approx(
        float(((real > 0.5).float().mean() + (fake <= 0.5).float().mean()) / 2)
    )


@pytest.mark.parametrize("logit", [-40.0, 0.3, 40.0])
def test_cross_entropy_pulls_however_sure_the_discriminator_is(logit):
    """d/dv of -log σ(v) is σ(v) - 1, of -log σ(-v) it is σ(v)."""
    for real in (True, False):
        verdict = torch.full((1, 1, 2, 2), logit, requires_grad=True)
        AdversarialLoss("bce")(verdict, target_is_real=real, for_discriminator=True).backward()
        expected = torch.sigmoid(torch.tensor(logit, dtype=torch.float64)) - float(real)
        assert float(verdict.grad.sum()) == pytest.approx(float(expected), rel=1e-5, abs=1e-15)


@pytest.mark.parametrize("criterion", ["bce", "least_squares"])
def test_smoothed_target_pulls_as_it_should(criterion):
    trainer, real, fake = by_hand(criterion, label_smoothing=0.2, rate=0.1)
    trainer.run()
    # gradients with respect to the bias of ½ (loss of real against 0.8 + loss of fake against 0)
    slope = torch.sigmoid(real) - 0.8 if criterion == "bce" else 2 * (real - 0.8)
    slope = slope.mean() + (torch.sigmoid(fake) if criterion == "bce" else 2 * fake).mean()
    assert trainer.discriminator.conv.bias.item() == pytest.approx(0.1 - 0.1 * float(slope) / 2)


def test_smoothing_is_one_sided():
    trainer, real, fake = by_hand(label_smoothing=0.1, rate=0.0)
    trainer.run()
    said = trainer.state.output[0]
    smooth = float(-(0.9 * logsigmoid(real) + 0.1 * logsigmoid(-real)).mean())
    assert float(said["discriminator/loss_real"]) == pytest.approx(smooth)
    assert float(said["discriminator/loss_fake"]) == pytest.approx(float(-logsigmoid(-fake).mean()))
    assert float(said["generator/adversarial"]) == pytest.approx(float(-logsigmoid(fake).mean()))


def test_discriminator_steps_down_half_its_objective():
    trainer, real, fake = by_hand(rate=0.1)
    trainer.run()
    # d/db of −log σ(real) is σ(real) − 1, of −log(1 − σ(fake)) it is σ(fake)
    slope = float(((torch.sigmoid(real) - 1).mean() + torch.sigmoid(fake).mean()) / 2)
    assert trainer.discriminator.conv.bias.item() == pytest.approx(0.1 - 0.1 * slope)


def test_generator_steps_against_the_discriminator_that_has_just_learnt():
    trainer, _, _ = by_hand(rate=0.1, reconstruction_weight=10, cross_entropy_weight=1)
    batch = trainer.data_loader[0]
    trainer.run()
    logits = LOGITS.clone().requires_grad_()
    verdict = trainer.discriminator(torch.cat([batch["image"], logits.softmax(1)], 1))[-1]
    l1 = (logits.softmax(1) - torch.cat([1 - LABEL, LABEL], 1)).abs().mean()
    (-logsigmoid(verdict).mean() + 10 * l1 + cross_entropy(logits, LABEL[:, 0])).backward()
    torch.testing.assert_close(trainer.network.logits.data, LOGITS - 0.1 * logits.grad)


def test_accuracy_of_a_discriminator_that_believes_everything_is_one_half():
    image = torch.zeros(2, 1, 2, 2)
    for weights, expected in (((0, 0, 0), 0.5), ((0, 5, -5), None)):
        trainer = make_trainer(FixedGenerator(), PixelDiscriminator(weights, bias=1.0), rate=0.0)
        with torch.no_grad():
            trainer.network.logits.copy_(20 * (1 - 2 * one_hot(LABEL, 2)))  # wrong everywhere
        real, fake = one_hot(LABEL, 2), trainer.network.logits.softmax(1)
        accuracy = float(trainer.update_discriminator(image, real, fake)["discriminator/accuracy"])
        # the second one calls class 0 real: right on real where the label is 0, on the fake where it is 0 as well
        assert accuracy == pytest.approx(0.5 if expected is None else expected)


@pytest.mark.parametrize(("dims", "in_channels", "classes"), [(2, 1, 2), (2, 3, 3), (3, 1, 3)])
def test_discriminator_sees_the_image_with_the_label_or_the_prediction(dims, in_channels, classes):
    batch = discs((16,) * dims, classes)
    batch["image"] = batch["image"].expand(-1, in_channels, *[-1] * dims)
    discriminator = small_discriminator(dims, in_channels + classes)
    seen = []
    discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    generator = small_unet(dims, in_channels, classes)
    make_trainer(generator, discriminator, [batch]).run()
    real, fake, again = seen
    assert {pair.shape for pair in seen} == {(2, in_channels + classes, *[16] * dims)}
    for pair in seen:
        assert torch.equal(pair[:, :in_channels], batch["image"])
    assert torch.equal(real[:, in_channels:].argmax(1, keepdim=True), batch["label"])
    assert set(real[:, in_channels:].unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(fake[:, in_channels:].sum(1), torch.ones(2, *[16] * dims))
    assert not torch.equal(real, fake)
    assert torch.equal(fake, again)  # the generator runs once a batch


def test_each_half_step_moves_one_player_only():
    batch = discs((16, 16))
    image, label = batch["image"], batch["label"]
    generator, discriminator = small_unet(), small_discriminator()
    trainer = make_trainer(generator, discriminator)
    trainer.state.output = {}
    logits = generator(image)
    before_g, before_d = frozen(generator), frozen(discriminator)

    trainer.update_discriminator(image, one_hot(label, 2), logits.softmax(1))
    assert same(generator, before_g)
    assert all(p.grad is None for p in generator.parameters())
    assert not same(discriminator, before_d)

    before_d = frozen(discriminator)
    gradients = [p.grad.clone() for p in discriminator.parameters()]
    trainer.update_generator(image, label, logits)
    assert same(discriminator, before_d)
    assert all(torch.equal(p.grad, g) for p, g in zip(discriminator.parameters(), gradients, strict=True))
    assert not same(generator, before_g)
    assert all(p.requires_grad for p in discriminator.parameters())


def test_generator_learns_from_the_discriminator_alone():
    generator, discriminator = small_unet(), small_discriminator()
    before = frozen(generator)
    make_trainer(generator, discriminator, [discs((16, 16))], reconstruction_weight=0).run()
    assert not same(generator, before)


@pytest.mark.parametrize("criterion", ["bce", "least_squares"])
def test_overfits_one_batch(criterion):
    batch = discs((24, 24), classes=3)
    generator, discriminator = small_unet(2, 1, 3), small_discriminator(2, 4)
    options = {
        "optimizer": torch.optim.Adam(generator.parameters(), 0.02, betas=(0.5, 0.999)),
        "discriminator_optimizer": torch.optim.Adam(discriminator.parameters(), 0.002, betas=(0.5, 0.999)),
    }
    trainer = make_trainer(generator, discriminator, [batch] * 80, criterion, **options)
    trainer.run()
    with torch.no_grad():
        found = generator.eval()(batch["image"]).argmax(1, keepdim=True)
    dice = compute_dice(one_hot(found, 3), one_hot(batch["label"], 3), include_background=False)
    assert float(dice.mean()) > 0.95


def test_mixed_precision_keeps_losses_and_logits_in_float32():
    generator, discriminator = small_unet(), small_discriminator()
    trainer = make_trainer(generator, discriminator, [discs((16, 16))], inferer=AutocastInferer(amp=True))
    trainer.run()
    said = trainer.state.output[0]
    assert said["pred"].dtype == torch.float32
    assert all(np.isfinite(float(v)) for k, v in said.items() if "/" in k or k == "loss")
    exact = make_trainer(small_unet(), small_discriminator(), [discs((16, 16))])
    exact.run()
    # bfloat16 has 8 bits: 2⁻⁸ for each of some ten layers
    assert float(said["loss"]) == pytest.approx(float(exact.state.output[0]["loss"]), rel=10 / 256)
    assert float(said["loss"]) != float(exact.state.output[0]["loss"])


def test_learning_rate_is_constant_then_falls_to_zero():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], 2.0)
    schedule = ConstantThenLinear(optimizer, t_total=10)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([2, 2, 2, 2, 2, 2, 1.6, 1.2, 0.8, 0.4, 0, 0])

    resumed = ConstantThenLinear(torch.optim.SGD([weight], 2.0), t_total=99, constant_share=0.0)
    resumed.load_state_dict(schedule.state_dict())
    assert (resumed.t_total, resumed.constant_share, resumed.last_epoch) == (10, 0.5, 12)


def test_schedules_of_both_players_step_once_a_batch():
    generator, discriminator = small_unet(), small_discriminator()
    optimizer = torch.optim.SGD(discriminator.parameters(), 1e-3)
    schedule = ConstantThenLinear(optimizer, t_total=6)
    options = {"discriminator_optimizer": optimizer, "discriminator_lr_scheduler": schedule}
    trainer = make_trainer(generator, discriminator, [discs((16, 16))] * 3, max_epochs=2, **options)
    trainer.run()
    assert schedule.last_epoch == 6
    assert optimizer.param_groups[0]["lr"] == 0
    assert set(trainer.extra_parts) == {"discriminator", "discriminator_optimizer", "discriminator_lr_scheduler"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reconstruction_weight": -1}, "reconstruction_weight -1"),
        ({"cross_entropy_weight": -0.5}, "cross_entropy_weight -0.5"),
        ({"label_smoothing": 0.5}, "label_smoothing 0.5"),
        ({"label_smoothing": 0.1, "criterion": "hinge"}, "hinge"),
        ({"amp": True}, "amp True"),
        ({"accumulation_steps": 2}, "accumulation_steps 2"),
    ],
)
def test_bad_arguments_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        make_trainer(FixedGenerator(), PixelDiscriminator(), **options)


@pytest.mark.parametrize(("total", "share"), [(0, 0.5), (10, 1.0), (10, -0.1)])
def test_bad_schedule_is_named(total, share):
    with pytest.raises(ValueError, match=r"t_total 0|constant_share"):
        ConstantThenLinear(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0), total, share)


def test_patch_too_small_for_the_discriminator_says_the_smallest():
    for size in (12, 11):
        batch = {k: v[..., :size, :size] for k, v in discs((16, 16)).items()}
        generator = torch.nn.Conv2d(1, 2, 1)
        trainer = make_trainer(generator, small_discriminator(), [batch])
        if size == 12:
            trainer.run()
        else:
            with pytest.raises(ValueError, match="needs 12 along each axis"):
                trainer.run()


def test_generator_without_logits_of_the_image_size_is_refused():
    for generator in (torch.nn.Conv2d(1, 2, 3), PixelDiscriminator(weights=(1.0,))):
        with pytest.raises(ValueError, match="must give logits"):
            make_trainer(generator, small_discriminator(), [discs((16, 16))]).run()
