"""The paper's recipe: one noise for all images, learned over part of a data set at the start of every epoch."""

import itertools

import torch
from torch import Tensor, nn

from nsaug.models.noisy_vit import PATCH_EMBED, NoisyViT, eval_mode, params_frozen
from nsaug.nullspace.influence import full_precision, influence
from nsaug.nullspace.noise import (
    Batches,
    Eps,
    NoiseResult,
    ReduceMean,
    check_images,
    eval_logits,
    measure_noise,
    root_mean_square,
    scale_noise,
    start_noise,
)
from nsaug.utils.errors import UserError
from nsaug.utils.rng import GeneratorLike
from nsaug.utils.types import PositiveFloat, PositiveFraction, PositiveInt, validate_args, validated_dataclass


@validated_dataclass
class UniversalConfig:
    """Settings of `learn_universal`; the defaults are those of the authors' code."""

    eps: Eps = 0.03
    """Learning ends at the first batch whose mean influence is below ε."""
    init_scale: PositiveFloat = 3.0
    """The noise starts from U(-init_scale, init_scale), in the units of the patch embeddings."""
    lr: PositiveFloat = 0.1
    """Of AdamW on the noise, in the same units; a cosine decays it over `num_passes` whole passes over the data."""
    num_passes: PositiveInt = 3
    """Passes over part of the data, at most."""
    data_fraction: PositiveFraction = 0.1
    """Fraction of the batches that a pass uses."""
    layer: str = PATCH_EMBED

    def num_updates(self, num_batches: int) -> int:
        """Updates of one pass, at most, for a data set of `num_batches`."""
        return max(1, int(self.data_fraction * num_batches))


def learn_universal(
    model: NoisyViT,
    batches: Batches,
    num_batches: int,
    config: UniversalConfig | None = None,
    generator: GeneratorLike = None,
    reduce_mean: ReduceMean = lambda tensor: tensor,
    start: Tensor | None = None,
    keep_norm: bool = False,
) -> NoiseResult:
    """Learn one noise from batch after batch, as the authors do (arXiv 2403.10476; github.com/Liu-Hy/ns-vit).

    Minimize the mean L2 distance of the logits by AdamW (weight decay 0.01, torch's default), the model in eval mode.
    The influence is measured on the current batch before its update, so that the last update of a noise that never
    gets below ε is not measured.

    Args:
        model: gradients, modes, running statistics and other generators stay unchanged.
        batches: called with the number of the pass and the number of updates in it.
        num_batches: of a whole pass over the data; the same on all ranks.
        config: the settings; the defaults if None.
        generator: draws the start; the same on all ranks.
        reduce_mean: averages influence and gradient over ranks, so that all of them end with the same noise.
        start: (1, *model.noise_shape(layer)) to start from instead of random noise; for analysis.
        keep_norm: rescale the noise to its first norm after every update; for analysis.

    Returns:
        The noise, (1, ...). The influences are those on the first batch and on the last one that was looked at, and so
        are the logits, without a graph.

    Raises:
        UserError: no batches, values outside [0, 1], an unknown layer.
    """
    config = config or UniversalConfig()
    noise = before = None
    updates = config.num_updates(num_batches)
    with eval_mode(model), params_frozen(model):
        for images in _iterate_passes(batches, config.num_passes, updates):
            check_images(images)
            if noise is None:
                if start is None:
                    start = start_noise(model, images, 1, config.init_scale, config.layer, generator)
                noise, start_rms = start.clone().requires_grad_(), root_mean_square(start)
                optimizer = torch.optim.AdamW([noise], lr=config.lr)
                scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_batches * config.num_passes)
            with torch.no_grad():
                clean_logits = full_precision(model(images))
            with torch.enable_grad():
                logits = full_precision(model(images, noise, config.layer))
                distance = (logits - clean_logits).norm(dim=-1).mean()
            after = influence(logits.detach(), clean_logits)
            before = after if before is None else before
            converged = reduce_mean(after.mean()) < config.eps
            if converged:
                break
            # Not backward(): it would fill the gradients of the parameters, which the outer step accumulates into.
            noise.grad = reduce_mean(torch.autograd.grad(distance, noise)[0])
            optimizer.step()
            scheduler.step()
            if keep_norm:
                with torch.no_grad():
                    noise.copy_(scale_noise(noise, start_rms / root_mean_square(noise)))
    if noise is None or before is None:
        raise UserError("there are no batches to learn the noise from: the training set is empty")
    return NoiseResult(noise.detach(), logits.detach(), before, after, converged.expand(len(after)))


class UniversalNoise(nn.Module):
    """The noise source of the paper's recipe: the same noise for all batches of an epoch.

    Its arguments are the settings of `UniversalConfig`.

    Attributes:
        noise: (1, *model.noise_shape(layer)), a buffer; zero until `start_epoch` has learned it.
    """

    noise: Tensor
    name = "nullspace"
    advice = "raise nullspace.num_passes, nullspace.data_fraction or nullspace.eps, or lower nullspace.init_scale"

    @validate_args
    def __init__(
        self,
        *,
        eps: Eps = 0.03,
        init_scale: PositiveFloat = 3.0,
        lr: PositiveFloat = 0.1,
        num_passes: PositiveInt = 3,
        data_fraction: PositiveFraction = 0.1,
        layer: str = PATCH_EMBED,
    ) -> None:
        super().__init__()
        self.config = UniversalConfig(
            eps=eps, init_scale=init_scale, lr=lr, num_passes=num_passes, data_fraction=data_fraction, layer=layer
        )
        self.eps = eps
        self.layer = layer
        self.cost = 1 / 3 + num_passes * data_fraction

    def setup(self, model: NoisyViT) -> None:
        """Allocate the buffer for a model; called once, before a checkpoint is loaded."""
        shape = (1, *model.noise_shape(self.layer))
        self.register_buffer("noise", torch.zeros(shape, device=model.mean.device, dtype=model.mean.dtype))

    def start_epoch(
        self,
        model: NoisyViT,
        batches: Batches,
        num_batches: int,
        generator: torch.Generator,
        reduce_mean: ReduceMean,
    ) -> None:
        """Learn the noise of this epoch; see `learn_universal`."""
        self.noise.copy_(learn_universal(model, batches, num_batches, self.config, generator, reduce_mean).noise)

    def start(self, model: NoisyViT, images: Tensor, generator: GeneratorLike = None) -> Tensor:
        """Random noise such as the learning starts from, (1, *model.noise_shape(layer))."""
        return start_noise(model, images, 1, self.config.init_scale, self.layer, generator)

    def forward(
        self,
        model: NoisyViT,
        images: Tensor,
        targets: Tensor | None = None,
        clean_logits: Tensor | None = None,
        generator: GeneratorLike = None,
    ) -> NoiseResult:
        clean_logits = eval_logits(model, images, clean_logits)
        return measure_noise(model, images, self.noise, clean_logits, self.eps, self.layer)


def _iterate_passes(batches: Batches, num_passes: int, updates: int) -> itertools.chain[Tensor]:
    return itertools.chain.from_iterable(
        itertools.islice(batches(number, updates), updates) for number in range(num_passes)
    )
