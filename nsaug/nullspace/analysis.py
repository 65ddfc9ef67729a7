"""Properties of noise, beside its own permutations and random noise, and how large it can be (paper, sections 3, 5)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nsaug.models.noisy_vit import PATCH_EMBED, NoisyViT, eval_mode
from nsaug.nullspace.controls import match_influence
from nsaug.nullspace.influence import full_precision, influence
from nsaug.nullspace.noise import embedding_rms, root_mean_square, scale_noise
from nsaug.nullspace.pixel_space import patch_projection
from nsaug.nullspace.universal import UniversalConfig, learn_universal
from nsaug.utils.rng import uniform


def permute_elements(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """All elements of each noise (M, N, D) permuted: the same norm and histogram in another direction."""
    return _shuffle_rows(tokens.flatten(1), generator).view_as(tokens)


def permute_within_tokens(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """The elements of each token permuted, differently for every token."""
    return _shuffle_rows(tokens.flatten(0, 1), generator).view_as(tokens)


def permute_tokens(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Whole tokens permuted."""
    order = torch.rand(tokens.shape[:2], generator=generator, device=generator.device).argsort(1).to(tokens.device)
    return tokens.gather(1, order[..., None].expand_as(tokens))


def random_like(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform noise with the norm of each one."""
    drawn = uniform(tuple(tokens.shape), [generator] * len(tokens), tokens) * 2 - 1
    return scale_noise(drawn, root_mean_square(tokens) / root_mean_square(drawn))


def _shuffle_rows(rows: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.rand(rows.shape, generator=generator, device=generator.device).argsort(1).to(rows.device)
    return rows.gather(1, order)


@dataclass(frozen=True)
class Outputs:
    """Outputs of a model for B images.

    Attributes:
        logits: (B, C).
        features: (B, F), the input of the classifier.
    """

    logits: Tensor
    features: Tensor


@torch.no_grad()
def compute_outputs(model: NoisyViT, images: Tensor, noise: Tensor | None = None, layer: str = PATCH_EMBED) -> Outputs:
    """Logits and features of one forward in eval mode."""
    head = model.model.get_classifier()
    captured: list[Tensor] = []
    # A distilled model has two heads: the first one's input.
    first: nn.Module = head[0] if isinstance(head, tuple | list | nn.ModuleList) else head
    handle = first.register_forward_pre_hook(lambda module, args: captured.append(args[0].flatten(1)))
    try:
        with eval_mode(model):
            logits = model(images, noise, layer)
    finally:
        handle.remove()
    return Outputs(full_precision(logits), full_precision(captured[0]))


def noise_effects(noisy: Outputs, clean: Outputs) -> dict[str, Tensor]:
    """Effect of noise on every image, each value (B,).

    Returns:
        `influence`: see `nsaug.nullspace.influence`. `agreement`: 1 if the predicted class is the same, else 0.
        `confidence_change`: of the probability of the class predicted without noise. `feature_change`: norm of the
        change of the features, as a fraction of their norm.
    """
    predicted = clean.logits.argmax(-1, keepdim=True)
    before, after = (outputs.logits.softmax(-1).gather(-1, predicted)[:, 0] for outputs in (clean, noisy))
    change = (noisy.features - clean.features).norm(dim=-1)
    return {
        "influence": influence(noisy.logits, clean.logits),
        "agreement": (noisy.logits.argmax(-1) == predicted[:, 0]).to(change),
        "confidence_change": after - before,
        "feature_change": change / clean.features.norm(dim=-1),
    }


def unreachable_energy(model: NoisyViT, tokens: Tensor) -> Tensor | None:
    """Fraction of the energy of each noise that no image causes: outside the range of the patch embedding.

    That part lies in the exact nullspace of the pseudo-inverse of the patch embedding. (The exact nullspace of the
    patch embedding itself contains images, not embeddings.)

    Args:
        tokens: (M, N, D), noise at the patch embeddings.

    Returns:
        (M,) in [0, 1]; 1 - rank / D on average for random noise. None if the patch embedding is not one linear map per
        patch.
    """
    convolution = patch_projection(model)
    if convolution is None:
        return None
    left, values, _ = torch.linalg.svd(convolution.weight.detach().flatten(1).double(), full_matrices=False)
    basis = left[:, values > 1e-6 * values.max()]
    inside = (tokens.double() @ basis).square().sum((1, 2))
    return (1 - inside / tokens.double().square().sum((1, 2))).clamp(0, 1)


@dataclass(frozen=True)
class Radius:
    """How large noise can be with a mean influence below ε on held-out images.

    Attributes:
        eps: ε.
        learned: root mean square of the largest learned noise, in the units of what it is added to.
        random: of random noise, merely scaled.
    """

    eps: float
    learned: float
    random: float


def nullspace_radius(
    model: NoisyViT,
    images: Tensor,
    held_out: Tensor,
    eps: Sequence[float],
    generator: torch.Generator,
    init_scales: Sequence[float] = (0.5, 1, 2, 4, 8),
    num_updates: int = 200,
    batch_size: int = 64,
    layer: str = PATCH_EMBED,
) -> list[Radius]:
    """A lower bound of the radius of the ε-approximate nullspace: the largest noise for all images that was found.

    From one random direction, scaled to each `init_scale`, noise is learned with its norm kept, so that it turns to
    where the predictions change least. It is then scaled until its mean influence on the held-out images is just below
    ε; the largest counts.

    Args:
        images: (B, 3, H, W) in [0, 1], to learn on.
        held_out: likewise, to measure on.
        eps: values in (0, 2).
        generator: draws the direction; on the device of the model.
        init_scales: in multiples of rms(u).
        num_updates: of the noise, for each scale.
        batch_size: for all forwards.
    """
    with torch.no_grad(), eval_mode(model):
        clean = torch.cat([model(batch) for batch in held_out.split(batch_size)])
    rms = float(embedding_rms(model, held_out[:batch_size], layer))
    direction = rms * (uniform((1, *model.noise_shape(layer)), generator, held_out) * 2 - 1)
    batches = images.split(batch_size)
    candidates = []
    for scale in init_scales:
        config = UniversalConfig(
            eps=1e-12,  # never below: all updates are made
            lr=0.05 * scale * rms,
            num_passes=max(1, round(num_updates / len(batches))),
            data_fraction=1.0,
            layer=layer,
        )
        result = learn_universal(
            model, lambda *_: iter(batches), len(batches), config, start=scale * direction, keep_norm=True
        )
        candidates.append(result.noise)

    def largest(noises: list[Tensor], bound: float) -> float:
        with eval_mode(model):
            scales = [
                match_influence(model, held_out, noise, clean, bound, num_steps=12, layer=layer).scale
                for noise in noises
            ]
        return max(float(scale * root_mean_square(noise)) for scale, noise in zip(scales, noises, strict=True))

    return [Radius(bound, largest(candidates, bound), largest([direction], bound)) for bound in eps]
