"""Attacks that look for the nearest misclassified image, by the library foolbox; judged within a radius."""

from typing import Any

import torch
from torch import Tensor, nn

from nsaug.attacks.gradient import as_labels
from nsaug.attacks.library import left_as_it_was, seed_of
from nsaug.draws import Source
from nsaug.extras import extra
from nsaug.settings import NonNegative, Positive, PositiveCount, settings


@settings
class DeepFool:
    """Steps to the nearest of the classes' boundaries, taken for planes (Moosavi-Dezfooli et al., arXiv 1511.04599)."""

    eps: NonNegative = 0.5
    """Radius of the L2 ball over all values of an image, in pixel units: what lies farther does not count."""
    num_steps: PositiveCount = 50
    candidates: PositiveCount = 10
    """How many of the likeliest classes are looked at."""
    overshoot: NonNegative = 0.02

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: Source = None) -> Tensor:
        """Attacked images, (B, 3, H, W) in [0, 1]; the images themselves where the attack needs more than eps.

        Args:
            labels: (B,) class indices, or (B, C) probabilities.
            generator: seeds the library, which draws nothing here.

        Raises:
            NsaugError: foolbox is not installed.
        """
        attacks = extra("attacks", "foolbox.attacks")
        attack = attacks.L2DeepFoolAttack(steps=self.num_steps, candidates=self.candidates, overshoot=self.overshoot)
        return _within(attack, self.eps, model, images, labels, generator)


@settings
class CW:
    """The smallest change for which the margin is negative, by Adam (Carlini and Wagner, arXiv 1608.04644)."""

    eps: NonNegative = 0.5
    """Radius of the L2 ball over all values of an image, in pixel units: what lies farther does not count."""
    num_steps: PositiveCount = 100
    """Of Adam, for each weight of the margin."""
    weight: Positive = 1.0
    """The first weight of the margin that is tried."""
    searches: PositiveCount = 3
    """How many are tried: ten times the last where that found nothing, else halfway to the last that found nothing."""
    step_size: Positive = 0.01
    confidence: NonNegative = 0.0
    """By how much the wrong class has to lead."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: Source = None) -> Tensor:
        """Attacked images, (B, 3, H, W) in [0, 1]; as for `DeepFool`."""
        attack = extra("attacks", "foolbox.attacks").L2CarliniWagnerAttack(
            binary_search_steps=self.searches,
            steps=self.num_steps,
            initial_const=self.weight,
            stepsize=self.step_size,
            confidence=self.confidence,
        )
        return _within(attack, self.eps, model, images, labels, generator)


def _within(attack: Any, eps: float, model: nn.Module, images: Tensor, labels: Tensor, generator: Source) -> Tensor:
    """A library's attack where it succeeds within the radius, the images themselves where it does not."""
    if eps == 0:
        return images
    foolbox = extra("attacks", "foolbox")
    with left_as_it_was(model, seed_of(generator)), torch.enable_grad():
        bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
        found, _, _ = attack(bounded, images.contiguous(), as_labels(labels), epsilons=None)
    distance = (found - images).flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    near = found.isfinite().flatten(1).all(1).view(-1, 1, 1, 1) & (distance <= eps)
    return torch.where(near, found, images).detach().clamp(0, 1)
