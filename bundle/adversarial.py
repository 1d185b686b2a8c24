"""Pix2Pix: a segmentation network trained against a discriminator that sees the image beside the labels.

Isola, Zhu, Zhou and Efros, Image-to-Image Translation with Conditional Adversarial Networks, CVPR 2017,
arXiv 1611.07004. The generator turns the grey image into the label image; any network that gives logits can be it. The
discriminator says for each patch whether the label image that it sees with the grey image is the true one (one-hot) or
the generator's (softmax). The paper's noise, dropout, is the generator's own: here it acts in training only, so that a
segmentation is repeatable. At inference the generator is a network like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.losses import PatchAdversarialLoss
from monai.networks import one_hot
from monai.utils import convert_to_tensor
from monai.utils.enums import CommonKeys as Keys
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from bundle.training import unwrapped


class LabelL1Loss(torch.nn.Module):
    """Mean absolute difference of the class probabilities and the one-hot labels, the paper's L1 term (eq. 3)."""

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """logits: (B, C, spatial) float. label: (B, 1, spatial), 0 ... C - 1. Returns a number in 0 ... 1."""
        return functional.l1_loss(logits.float().softmax(1), one_hot(label, logits.shape[1]))


class AdversarialLoss(PatchAdversarialLoss):
    """MONAI's, with the cross-entropy taken of the logits.

    MONAI's own is that of a sigmoid, rounded to 1 where the discriminator is sure: no gradient would be left there.

    Args:
        criterion: "bce", "least_squares" or "hinge".
    """

    def __init__(self, criterion: str = "bce") -> None:
        super().__init__(criterion=criterion, no_activation_leastsq=True)
        if criterion == "bce":
            self.activation, self.loss_fct = None, torch.nn.BCEWithLogitsLoss()


class ConstantThenLinear(LambdaLR):
    """Learning rate that is constant at first and then falls linearly to zero at the last step.

    The schedule of the authors' later work: Zhu et al., CycleGAN, arXiv 1703.10593, section 4. A run that stops early
    never sees the second part.

    Args:
        optimizer: its learning rate is the constant.
        t_total: steps of the whole run.
        constant_share: share of the steps before the fall, 0 ≤ constant_share < 1.

    Raises ValueError for arguments out of range.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, t_total: int, constant_share: float = 0.5, last_epoch: int = -1
    ) -> None:
        if t_total < 1:
            raise ValueError(f"t_total {t_total} must be at least 1 step")
        if not 0 <= constant_share < 1:
            raise ValueError(f"constant_share {constant_share} must be at least 0 and below 1, for example 0.5")
        self.t_total, self.constant_share = t_total, constant_share  # plain attributes are part of the saved state
        super().__init__(optimizer, self.factor, last_epoch)

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by at this step, 1 ... 0."""
        return min(1.0, max(0.0, (1 - step / self.t_total) / (1 - self.constant_share)))


class Pix2PixTrainer(SupervisedTrainer):
    """Trains a segmentation network, the generator, and a discriminator in turns, one step each per batch.

    Paper section 3.3: the discriminator first, its objective halved; then the generator, which maximises
    log D(x, G(x)). The generator's loss is

        adversarial + reconstruction_weight * reconstruction + cross_entropy_weight * cross-entropy.

    ``engine.state.output`` has what MONAI's SupervisedTrainer puts there (image, label, pred: the logits, loss: the
    generator's) and the numbers ``generator/adversarial``, ``generator/reconstruction``, ``generator/cross_entropy``
    (if it has a weight), ``discriminator/loss_real``, ``discriminator/loss_fake`` and ``discriminator/accuracy`` (share
    of the patches that it judges right, before its step). MONAI's iteration events are the generator's.

    Args:
        discriminator: maps (B, image channels + classes, spatial) to a list whose last element is one number for
            each patch, before any activation, as MONAI's PatchDiscriminator does. With several processes it is wrapped
            in torch's DistributedDataParallel here.
        discriminator_optimizer: of its parameters.
        discriminator_lr_scheduler: stepped once per batch, or None.
        adversarial_loss: MONAI's PatchAdversarialLoss.
        reconstruction_weight: λ of the paper, ≥ 0; the reconstruction loss is ``loss_function``.
        cross_entropy_weight: ≥ 0, of the cross-entropy of the logits.
        label_smoothing: the discriminator is taught 1 - label_smoothing for true pairs (one-sided: the target
            of the generator's pairs stays 0); 0 ≤ label_smoothing < 0.5. Not in the paper.
        supervised: what SupervisedTrainer takes: ``network`` is the generator, ``optimizer`` its own and
            ``loss_function`` the reconstruction loss of logits (B, C, spatial) and labels (B, 1, spatial). ``inferer``
            runs both networks; mixed precision is its affair (``bundle.inference.AutocastInferer``), the losses are
            taken in float32.

    ``extra_parts`` names what belongs into a checkpoint beside the generator.

    Raises ValueError for weights out of range, for ``amp``, ``compile`` and ``accumulation_steps``, which are
    SupervisedTrainer's alone, for patches too small for the discriminator and for a generator that does not give logits
    of the image's size.
    """

    def __init__(
        self,
        *,
        discriminator: torch.nn.Module,
        discriminator_optimizer: torch.optim.Optimizer,
        adversarial_loss: PatchAdversarialLoss,
        discriminator_lr_scheduler: LRScheduler | None = None,
        reconstruction_weight: float = 100.0,
        cross_entropy_weight: float = 0.0,
        label_smoothing: float = 0.0,
        **supervised: Any,
    ) -> None:
        for name, value in (
            ("reconstruction_weight", reconstruction_weight),
            ("cross_entropy_weight", cross_entropy_weight),
        ):
            if value < 0:
                raise ValueError(f"{name} {value} must be at least 0")
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"label_smoothing {label_smoothing} must be at least 0 and below 0.5, for example 0.1")
        if label_smoothing and adversarial_loss.criterion == "hinge":
            raise ValueError(f"label_smoothing {label_smoothing}: the hinge criterion has no target; use bce or 0")
        for name, plain in (("amp", False), ("compile", False), ("accumulation_steps", 1)):
            if supervised.get(name, plain) != plain:
                raise ValueError(f"{name} {supervised[name]} is not supported by Pix2PixTrainer; leave it at {plain}")
        super().__init__(**supervised)
        if idist.get_world_size() > 1:
            devices = [self.state.device] if self.state.device.type == "cuda" else None
            # it is applied twice before a backward pass, which sent buffers would disturb
            discriminator = DistributedDataParallel(discriminator, device_ids=devices, forward_sync_buffers=False)
        self.discriminator, self.discriminator_optimizer = discriminator, discriminator_optimizer
        self.discriminator_lr_scheduler = discriminator_lr_scheduler
        self.adversarial_loss, self.label_smoothing = adversarial_loss, label_smoothing
        self.reconstruction_weight, self.cross_entropy_weight = reconstruction_weight, cross_entropy_weight

    @property
    def extra_parts(self) -> Mapping[str, Any]:
        """What a checkpoint needs beside the generator, its optimiser and its schedule."""
        parts = {
            "discriminator": unwrapped(self.discriminator),
            "discriminator_optimizer": self.discriminator_optimizer,
        }
        if self.discriminator_lr_scheduler is not None:
            parts["discriminator_lr_scheduler"] = self.discriminator_lr_scheduler
        return parts

    def discriminate(self, image: torch.Tensor, classes: torch.Tensor, learns: bool) -> torch.Tensor:
        """The discriminator's verdict, larger is more real.

        image: (B, channels, spatial) float. classes: (B, C, spatial) float, one-hot labels or probabilities. learns:
        its weights get gradients from this. Returns (B, 1, patches) float32, before any activation.
        """
        # DistributedDataParallel would wait for the gradients of the weights
        discriminator = self.discriminator if learns else unwrapped(self.discriminator)
        layers = getattr(unwrapped(discriminator), "num_layers_d", 0)
        smallest = 3 * 2**layers  # halved `layers` times, then two convolutions of 4 with a padding of 1
        if layers and min(image.shape[2:]) < smallest:
            raise ValueError(
                f"patches of {tuple(image.shape[2:])} are too small for a discriminator of {layers} layers, which "
                f"needs {smallest} along each axis; use a larger patch_size or fewer layers"
            )
        return self.inferer(torch.cat([image, classes], dim=1), lambda pair: discriminator(pair)[-1])

    def update_discriminator(
        self, image: torch.Tensor, real: torch.Tensor, fake: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """One step of the discriminator; no gradient reaches the generator.

        image: (B, channels, spatial). real, fake: (B, C, spatial), one-hot labels and the generator's
        probabilities. Returns the numbers named in the class's docstring.
        """
        self.discriminator_optimizer.zero_grad(set_to_none=self.optim_set_to_none)
        on_real = self.discriminate(image, real, learns=True)
        on_fake = self.discriminate(image, fake.detach(), learns=True)
        loss_real = self.adversarial_loss(on_real, target_is_real=True, for_discriminator=True)
        loss_fake = self.adversarial_loss(on_fake, target_is_real=False, for_discriminator=True)
        if self.label_smoothing:
            # PatchAdversarialLoss takes whole-number targets only; this mix has the gradient of the smoothed target
            taken_for_fake = self.adversarial_loss(on_real, target_is_real=False, for_discriminator=True)
            loss_real = torch.lerp(loss_real, taken_for_fake, self.label_smoothing)
        ((loss_real + loss_fake) / 2).backward()
        self.discriminator_optimizer.step()
        middle = 0.5 if self.adversarial_loss.criterion == "least_squares" else 0.0
        right = ((on_real > middle).float().mean() + (on_fake <= middle).float().mean()) / 2
        return {
            "discriminator/loss_real": loss_real.detach(),
            "discriminator/loss_fake": loss_fake.detach(),
            "discriminator/accuracy": right,
        }

    def update_generator(
        self, image: torch.Tensor, label: torch.Tensor, logits: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """One step of the generator; the discriminator's weights and gradients stay as they are.

        image: (B, channels, spatial). label: (B, 1, spatial). logits: (B, C, spatial), the generator's, with their
        graph. Returns the numbers named in the class's docstring, and their weighted sum as ``loss``.
        """
        self.discriminator.requires_grad_(False)
        self.optimizer.zero_grad(set_to_none=self.optim_set_to_none)
        verdict = self.discriminate(image, logits.softmax(1), learns=False)
        adversarial = self.adversarial_loss(verdict, target_is_real=True, for_discriminator=False)
        reconstruction = self.loss_function(logits, label).mean()
        parts = {"generator/adversarial": adversarial, "generator/reconstruction": reconstruction}
        loss = adversarial + self.reconstruction_weight * reconstruction
        if self.cross_entropy_weight:
            cross_entropy = functional.cross_entropy(logits, label[:, 0].long())
            parts["generator/cross_entropy"] = cross_entropy
            loss = loss + self.cross_entropy_weight * cross_entropy
        self.state.output |= {Keys.LOSS: loss}
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        loss.backward()
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self.optimizer.step()
        self.discriminator.requires_grad_(True)
        return {name: value.detach() for name, value in parts.items()}

    def _iteration(self, engine: Pix2PixTrainer, batchdata: dict[str, torch.Tensor]) -> dict:
        batch = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        image, label = (convert_to_tensor(x, track_meta=False) for x in batch[:2])
        args, kwargs = batch[2:] or ((), {})
        self.network.train()
        self.discriminator.train()
        self.state.output = {Keys.IMAGE: image, Keys.LABEL: label}
        logits = self.inferer(image, self.network, *args, **kwargs)
        if not torch.is_tensor(logits) or logits.shape[2:] != image.shape[2:]:
            found = tuple(logits.shape) if torch.is_tensor(logits) else type(logits).__name__
            raise ValueError(
                f"the generator gives {found} for an image {tuple(image.shape)}; it must give logits of its size"
            )
        self.state.output[Keys.PRED] = logits
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        numbers = self.update_discriminator(image, one_hot(label, logits.shape[1]), logits.softmax(1))
        self.state.output |= numbers | self.update_generator(image, label, logits)
        if self.discriminator_lr_scheduler is not None:
            self.discriminator_lr_scheduler.step()
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        return self.state.output
