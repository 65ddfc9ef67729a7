"""Attacks that look for the nearest misclassified image, by the library foolbox; judged within a radius."""

from typing import Any

import torch
from torch import Tensor, nn

from nsaug.attacks.objectives import as_labels
from nsaug.attacks.third_party import draw_seed, preserve_state
from nsaug.utils.optional_imports import optional_import
from nsaug.utils.rng import GeneratorLike
from nsaug.utils.types import NonNegativeFloat, PositiveFloat, PositiveInt, validated_dataclass


@validated_dataclass
class DeepFool:
    """Steps to the nearest of the classes' boundaries, taken for planes (Moosavi-Dezfooli et al., arXiv 1511.04599)."""

    eps: NonNegativeFloat = 0.5
    """Radius of the L2 ball over all values of an image, in pixel units: what lies farther does not count."""
    num_steps: PositiveInt = 50
    candidates: PositiveInt = 10
    """How many of the likeliest classes are looked at."""
    overshoot: NonNegativeFloat = 0.02

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: GeneratorLike = None) -> Tensor:
        """Attacked images, (B, 3, H, W) in [0, 1]; the images themselves where the attack needs more than eps.

        Args:
            labels: (B,) class indices, or (B, C) probabilities.
            generator: seeds the library, which draws nothing here.

        Raises:
            UserError: foolbox is not installed.
        """
        attacks = optional_import("attacks", "foolbox.attacks")
        attack = attacks.L2DeepFoolAttack(steps=self.num_steps, candidates=self.candidates, overshoot=self.overshoot)
        return _within(attack, self.eps, model, images, labels, generator)


@validated_dataclass
class CW:
    """The smallest change for which the margin is negative, by Adam (Carlini and Wagner, arXiv 1608.04644)."""

    eps: NonNegativeFloat = 0.5
    """Radius of the L2 ball over all values of an image, in pixel units: what lies farther does not count."""
    num_steps: PositiveInt = 100
    """Of Adam, for each weight of the margin."""
    weight: PositiveFloat = 1.0
    """The first weight of the margin that is tried."""
    searches: PositiveInt = 3
    """How many are tried: ten times the last where that found nothing, else halfway to the last that found nothing."""
    step_size: PositiveFloat = 0.01
    confidence: NonNegativeFloat = 0.0
    """By how much the wrong class has to lead."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: GeneratorLike = None) -> Tensor:
        """Attacked images, (B, 3, H, W) in [0, 1]; as for `DeepFool`."""
        attack = optional_import("attacks", "foolbox.attacks").L2CarliniWagnerAttack(
            binary_search_steps=self.searches,
            steps=self.num_steps,
            initial_const=self.weight,
            stepsize=self.step_size,
            confidence=self.confidence,
        )
        return _within(attack, self.eps, model, images, labels, generator)


def _within(
    attack: Any, eps: float, model: nn.Module, images: Tensor, labels: Tensor, generator: GeneratorLike
) -> Tensor:
    """A library's attack where it succeeds within the radius, the images themselves where it does not."""
    if eps == 0:
        return images
    foolbox = optional_import("attacks", "foolbox")
    with preserve_state(model, draw_seed(generator)), torch.enable_grad():
        bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
        found, _, _ = attack(bounded, images.contiguous(), as_labels(labels), epsilons=None)
    distance = (found - images).flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    near = found.isfinite().flatten(1).all(1).view(-1, 1, 1, 1) & (distance <= eps)
    return torch.where(near, found, images).detach().clamp(0, 1)
