"""Scaling a noise until it has a given influence: what makes two noises comparable that are not of one norm."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nsaug.models.noisy_vit import PATCH_EMBED, NoisyViT
from nsaug.nullspace.influence import influence


@dataclass(frozen=True)
class Match:
    """Scales found, for M noises.

    Attributes:
        scale: (M,), what each noise is to be multiplied by; its influence lies below ε there.
        influence: (M,), at that scale.
        matched: (M,), whether that is within the tolerance of ε.
    """

    scale: Tensor
    influence: Tensor
    matched: Tensor


@torch.no_grad()
def match_influence(
    vit: NoisyViT,
    images: Tensor,
    noise: Tensor,
    clean_logits: Tensor,
    eps: float,
    steps: int = 10,
    tolerance: float = 0.1,
    layer: str = PATCH_EMBED,
) -> Match:
    """The scale at which noise has an influence just below ε, in [(1 - tolerance) ε, ε).

    A bracketed search on forwards alone: small noise has an influence that grows with the square of its scale, which
    gives the first guesses; between a scale that is too small and one that is too large the influence is interpolated
    by a power, and every third guess halves the bracket. A noise that no scale gets to ε keeps the largest one tried.

    Args:
        vit: in a mode that computes as eval mode does.
        images: (B, 3, H, W) in [0, 1].
        noise: (B, ...), one for each image, or (1, ...), for the mean influence over the batch; in units of what it is
            added to.
        clean_logits: (B, C), of the images without noise.
        eps: the influence to reach, in (0, 2].
        steps: the most forwards.
        tolerance: the search of a noise ends where its influence is that near.
        layer: where the noise is added.
    """
    goal = eps * (1 - tolerance / 2)
    scale = noise.new_ones(len(noise))
    low, found = torch.zeros_like(scale), torch.zeros_like(scale)
    high, exceeding = torch.full_like(scale, float("inf")), torch.full_like(scale, 2.0)
    for step in range(steps):
        each = influence(vit(images, scaled(noise, scale), layer), clean_logits).to(scale.dtype)
        now = each if len(noise) == len(images) else each.mean(0, keepdim=True)
        below = now < eps
        rises, falls = below & (scale >= low), ~below & (scale < high)
        low, found = torch.where(rises, scale, low), torch.where(rises, now, found)
        high, exceeding = torch.where(falls, scale, high), torch.where(falls, now, exceeding)
        matched = found >= (1 - tolerance) * eps
        if bool(matched.all()):
            break
        bracketed = (low > 0) & high.isfinite()
        # The power by which the influence grows within the bracket; the square where there is none yet.
        power = torch.where(bracketed, (exceeding / found).log() / (high / low).log(), 2.0)
        guess = torch.where(bracketed, low, scale) * (goal / torch.where(bracketed, found, now)) ** (1 / power)
        if step % 3 == 2:
            guess = torch.where(bracketed, (low * high).sqrt(), guess)
        # Where large noise drowns the image, its influence hardly depends on its scale: move by a factor all the same.
        guess = torch.minimum(guess, 4 * scale)
        if step > 0:
            guess = torch.where(low == 0, torch.minimum(guess, scale / 4), guess)
        inside = (guess > low) & (guess < high)
        fallback = torch.where(high.isinf(), 4 * scale, (low + high) / 2)
        scale = torch.where(matched, low, torch.where(inside, guess, fallback))
    return Match(low, found, matched)


def scaled(noise: Tensor, scale: Tensor) -> Tensor:
    """Noise (M, ...) with each multiplied by its own scale (M,)."""
    return noise * scale.view(-1, *[1] * (noise.dim() - 1))
