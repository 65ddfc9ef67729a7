"""The interface of all finetuning methods."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nsaug.attacks.objectives import as_labels
from nsaug.models.noisy_vit import PATCH_EMBED, NoisyViT
from nsaug.nullspace.noise import Batches, ReduceMean
from nsaug.utils.errors import UserError

LossAndMetrics = tuple[Tensor, dict[str, Tensor]]


class Method(nn.Module):
    """Turns a batch into a loss. Subclasses define `loss`; keep state across steps in buffers.

    Attributes:
        name: in tables and dashboards.
        num_views: views of every image that `loss` takes.
        view_augment: a policy of timm that augments all views but the first, on the same crop; None: the views are
            independent augmentations.
        cost: of a step in plain training steps, counting a forward, a backward to activations and a backward to
            weights as 1/3 each; at most. `benchmarks/step_cost.py` measures it.
        duration_factor: by which epochs and steps of a run are multiplied.
    """

    name: str
    num_views: int = 1
    view_augment: str | None = None
    cost: float = 1.0
    duration_factor: float = 1.0

    def setup(self, model: NoisyViT) -> None:
        """Check that this model can be finetuned so, and allocate buffers; called once, before training."""

    def start_epoch(
        self,
        model: NoisyViT,
        batches: Batches,
        num_batches: int,
        generator: torch.Generator,
        reduce_mean: ReduceMean,
    ) -> None:
        """Prepare an epoch; called at its start.

        Args:
            batches: of this epoch's training images, augmented but not mixed; those of this rank.
            num_batches: of an epoch, on every rank.
            generator: on the device of the model, seeded by (seed, epoch), the same on all ranks.
            reduce_mean: averages a tensor over ranks.
        """

    def loss(self, model: NoisyViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> LossAndMetrics:
        """The loss to minimize, and metrics to log.

        Args:
            model: in train mode.
            images: (B, 3, H, W) in [0, 1]; (B, num_views, 3, H, W) for a method with several views.
            targets: (B,) class indices, or (B, C) probabilities if mixup, cutmix or label smoothing is on.
            generator: for all random draws; on the device of the images, seeded by (seed, step, rank).

        Returns:
            A scalar with a graph, and scalars without one by the names under which they are logged.
        """
        raise NotImplementedError


def top1(logits: Tensor, targets: Tensor) -> Tensor:
    """Accuracy over the batch, targets as class indices (B,) or probabilities (B, C)."""
    return (logits.argmax(1) == as_labels(targets)).float().mean()


def kl_divergence(logits: Tensor, clean_log_probabilities: Tensor) -> Tensor:
    """KL(clean || perturbed) of each image, (B,), from logits (B, C) and log-probabilities (B, C)."""
    return F.kl_div(logits.log_softmax(-1), clean_log_probabilities, reduction="none", log_target=True).sum(-1)


def symmetric_kl(logits: Tensor, other_logits: Tensor) -> Tensor:
    """KL(p || q) + KL(q || p) of each image, (B,), from two sets of logits (B, C)."""
    log_p, log_q = logits.log_softmax(-1), other_logits.log_softmax(-1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)


def check_noise_layer(model: NoisyViT, layer: str, setting: str) -> None:
    """Raise UserError unless a method can train on noise at this layer, which `setting` names."""
    model.noise_shape(layer)
    if model.grad_checkpointing and layer != PATCH_EMBED:
        raise UserError(
            f"gradient checkpointing recomputes blocks without the noise at {layer}: set"
            f" model.grad_checkpointing=false, or {setting}={PATCH_EMBED}"
        )
