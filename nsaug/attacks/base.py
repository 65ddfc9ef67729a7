"""The protocol that every attack satisfies."""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from nsaug.utils.rng import GeneratorLike


@runtime_checkable
class Attack(Protocol):
    """An untargeted attack: any object with this signature; no base class is needed.

    The result is a function of model, images, labels and generator alone. An attack uses the model in the mode it is in
    and leaves its mode, its parameters' gradients and the global random state unchanged.
    """

    @property
    def num_steps(self) -> int:
        """Gradient steps per run, at about three forwards each; used only to estimate how long an evaluation takes."""
        ...

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: GeneratorLike = None) -> Tensor:
        """Return the adversarial images, (B, 3, H, W) in [0, 1], detached.

        Args:
            model: maps images in [0, 1] to logits (B, C).
            images: (B, 3, H, W) in [0, 1].
            labels: class indices (B,), or class probabilities (B, C).
            generator: source of all random numbers: one generator on the images' device, one per image, or None for
                torch's global generator.
        """
        ...
