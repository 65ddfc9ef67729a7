"""What a noise is like: beside its own permutations and random noise, and how large one can grow (sections 3, 5)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nsaug.models.noisy_vit import PATCH_EMBED, NoisyViT, eval_mode
from nsaug.nullspace.influence import full_precision, influence
from nsaug.nullspace.pixel_space import patch_projection
from nsaug.nullspace.scale_search import match_influence, scaled
from nsaug.nullspace.synthesis import embedding_rms, root_mean_square
from nsaug.nullspace.universal import EpochSynthesis
from nsaug.utils.rng import uniform


def permuted(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """All elements of each noise (M, N, D) in another order: its norm and its histogram, another direction."""
    return _shuffled(tokens.flatten(1), generator).view_as(tokens)


def permuted_within(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """The elements of each token in another order, which differs from token to token."""
    return _shuffled(tokens.flatten(0, 1), generator).view_as(tokens)


def permuted_across(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Whole tokens in another order."""
    order = torch.rand(tokens.shape[:2], generator=generator, device=generator.device).argsort(1).to(tokens.device)
    return tokens.gather(1, order[..., None].expand_as(tokens))


def random_like(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform noise of each one's norm."""
    drawn = uniform(tuple(tokens.shape), [generator] * len(tokens), tokens) * 2 - 1
    return scaled(drawn, root_mean_square(tokens) / root_mean_square(drawn))


def _shuffled(rows: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.rand(rows.shape, generator=generator, device=generator.device).argsort(1).to(rows.device)
    return rows.gather(1, order)


@dataclass(frozen=True)
class Answers:
    """What a model makes of B images.

    Attributes:
        logits: (B, C).
        features: (B, F), what its classifier is given.
    """

    logits: Tensor
    features: Tensor


@torch.no_grad()
def answers(vit: NoisyViT, images: Tensor, noise: Tensor | None = None, layer: str = PATCH_EMBED) -> Answers:
    """One forward in eval mode, seen at two places."""
    head = vit.model.get_classifier()
    seen: list[Tensor] = []
    # Of two heads, as a distilled model has them, the first.
    first: nn.Module = head[0] if isinstance(head, tuple | list | nn.ModuleList) else head
    handle = first.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(1)))
    try:
        with eval_mode(vit):
            logits = vit(images, noise, layer)
    finally:
        handle.remove()
    return Answers(full_precision(logits), full_precision(seen[0]))


def effects(noisy: Answers, clean: Answers) -> dict[str, Tensor]:
    """What noise changed in each answer, each (B,).

    influence: see `nsaug.nullspace.influence`. agreement: 1 where the likeliest class stayed. confidence: change of
    that class's probability, the clean image's. features: change of what the classifier is given, as a share of its
    norm.
    """
    likeliest = clean.logits.argmax(-1, keepdim=True)
    before, after = (each.logits.softmax(-1).gather(-1, likeliest)[:, 0] for each in (clean, noisy))
    change = (noisy.features - clean.features).norm(dim=-1)
    return {
        "influence": influence(noisy.logits, clean.logits),
        "agreement": (noisy.logits.argmax(-1) == likeliest[:, 0]).to(change),
        "confidence": after - before,
        "features": change / clean.features.norm(dim=-1),
    }


def overlap(vit: NoisyViT, tokens: Tensor) -> Tensor | None:
    """Which share of each noise's energy no image causes: that outside of the patch embedding's range.

    It lies in the exact nullspace of the patch embedding's pseudo-inverse. (The exact nullspace of the patch embedding
    itself holds images, and what a noise has of one through the pseudo-inverse is orthogonal to it.)

    Args:
        tokens: (M, N, D), at the patch embeddings.

    Returns:
        (M,) in [0, 1]; for random noise 1 - rank / D. None where the patch embedding is not one linear map per patch.
    """
    convolution = patch_projection(vit)
    if convolution is None:
        return None
    left, values, _ = torch.linalg.svd(convolution.weight.detach().flatten(1).double(), full_matrices=False)
    converged = left[:, values > 1e-6 * values.max()]
    inside = (tokens.double() @ converged).square().sum((1, 2))
    return (1 - inside / tokens.double().square().sum((1, 2))).clamp(0, 1)


@dataclass(frozen=True)
class Radius:
    """How large noise can be with a mean influence below ε on held-out images.

    Attributes:
        eps: ε.
        learned: root mean square of the largest learned noise, in units of what it is added to.
        random: of random noise, merely scaled.
    """

    eps: float
    learned: float
    random: float


def radii(
    vit: NoisyViT,
    images: Tensor,
    held_out: Tensor,
    eps: Sequence[float],
    generator: torch.Generator,
    limits: Sequence[float] = (0.5, 1, 2, 4, 8),
    updates: int = 200,
    batch_size: int = 64,
    layer: str = PATCH_EMBED,
    advance: Callable[[int], None] = lambda forwards: None,
) -> list[Radius]:
    """The radius of the ε-approximate nullspace as far as it can be found: one noise for all images, made large.

    From one random direction at each limit noise is learned with its norm held, so that it turns to where the
    predictions move least; it is then scaled until its mean influence on the held-out images is just below ε. The
    largest counts: a lower bound of the true radius.

    Args:
        images: (B, 3, H, W) in [0, 1], to learn on.
        held_out: likewise, to decide on.
        eps: each in (0, 2).
        generator: draws the direction; on the model's device.
        limits: in multiples of the root mean square of what is added to.
        updates: that noise is learned with, at each limit.
        batch_size: of these.
        advance: called with how many images went forward (a backward counts as two).
    """
    with torch.no_grad(), eval_mode(vit):
        clean = torch.cat([vit(batch) for batch in held_out.split(batch_size)])
    rms = embedding_rms(vit, held_out[:batch_size], layer)
    direction = rms * (uniform((1, *vit.noise_shape(layer)), generator, held_out) * 2 - 1)
    batches = images.split(batch_size)
    candidates = []
    for limit in limits:
        synthesis = EpochSynthesis(
            eps=1e-12,  # nothing gets below: all updates are made
            limit=limit,
            lr=0.05,
            weight_decay=0.0,
            init="warm",
            norm="held",
            rounds=max(1, round(updates / len(batches))),
            share=1.0,
            layer=layer,
        )
        found = synthesis.learn(vit, lambda _: iter(batches), len(batches), rms=rms, last=limit * direction)
        advance(4 * found.steps * batch_size)
        candidates.append(found.noise)

    def largest(noises: list[Tensor], bound: float) -> float:
        with eval_mode(vit):
            matches = [
                match_influence(vit, held_out, noise, clean, bound, steps=12, tolerance=0.05, layer=layer)
                for noise in noises
            ]
        advance(12 * len(held_out) * len(noises))
        return max(float(match.scale * root_mean_square(noise)) for match, noise in zip(matches, noises, strict=True))

    return [Radius(bound, largest(candidates, bound), largest([direction], bound)) for bound in eps]
