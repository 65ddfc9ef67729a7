"""Adversarial training on the patch embeddings: nullspace noise's nearest relatives, which use the labels.

The loss of `EmbeddingAdversarial` is that of `NoiseAugmentation`, so that the two differ in the noise alone. `FreeLB`
(Zhu et al., arXiv 1909.11764) trains on all iterates of the ascent.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from nsaug.attacks import EmbeddingPGD
from nsaug.methods.base import LossAndMetrics, Method, check_noise_layer, top1
from nsaug.models.noisy_vit import NoisyViT, eval_mode, params_frozen
from nsaug.nullspace import embedding_rms
from nsaug.nullspace.noise import root_mean_square
from nsaug.utils.types import validate_args


class EmbeddingAdversarial(Method):
    """CE(f(u), y) + CE(f(u + v), y), v being noise in an L2 ball that maximizes the cross-entropy, in eval mode.

    Args:
        attack: finds the noise.
    """

    name = "embedding_pgd"

    @validate_args
    def __init__(self, attack: EmbeddingPGD) -> None:
        super().__init__()
        self.attack = attack
        self.cost = (6 + 2 * attack.num_steps) / 3

    def setup(self, model: NoisyViT) -> None:
        check_noise_layer(model, self.attack.layer, "method.attack.layer")

    def loss(self, model: NoisyViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> LossAndMetrics:
        rms = embedding_rms(model, images, self.attack.layer)
        with eval_mode(model), params_frozen(model):
            noise = self.attack(model, images, targets, rms, generator)
        clean_logits, noisy_logits = model(images), model(images, noise, self.attack.layer)
        clean_loss, noisy_loss = (F.cross_entropy(logits, targets) for logits in (clean_logits, noisy_logits))
        metrics = {
            "top1": top1(clean_logits, targets),
            "adv_top1": top1(noisy_logits, targets),
            "clean_loss": clean_loss.detach(),
            "noisy_loss": noisy_loss.detach(),
            "noise_rms": root_mean_square(noise).mean(),
        }
        return clean_loss + noisy_loss, metrics


class FreeLB(Method):
    """The mean of CE(f(u + v_k), y) over the K iterates v_0, ..., v_{K-1} of an ascent in an L2 ball.

    The authors accumulate gradients, at K plain steps. Here the K losses form one graph, which Lightning's automatic
    optimization takes as it is, and the gradients to the noise cost a third more.

    Args:
        attack: radius, number K and layer of the ascent. v_0 is its random start, v_{k+1} follows from the gradient at
            v_k.
    """

    name = "freelb"

    @validate_args
    def __init__(self, attack: EmbeddingPGD) -> None:
        super().__init__()
        self.attack = attack
        self.cost = (4 * attack.num_steps - 1) / 3

    def setup(self, model: NoisyViT) -> None:
        check_noise_layer(model, self.attack.layer, "method.attack.layer")

    def loss(self, model: NoisyViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> LossAndMetrics:
        attack = self.attack
        radius = attack.radius(model, embedding_rms(model, images, attack.layer))
        noise = attack.random_init(model, images, radius, generator)
        losses, accuracies = [], []
        for step in range(attack.num_steps):
            noise.requires_grad_()
            logits = model(images, noise, attack.layer)
            losses.append(F.cross_entropy(logits, targets))
            accuracies.append(top1(logits, targets))
            if step < attack.num_steps - 1:
                (gradient,) = torch.autograd.grad(losses[-1], noise, retain_graph=True)
                noise = attack.step(noise.detach(), gradient, radius)
        loss = torch.stack(losses).mean()
        return loss, {"adv_top1": torch.stack(accuracies).mean(), "noise_rms": root_mean_square(noise).mean()}
